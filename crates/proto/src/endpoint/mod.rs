//! The server's side of the socket: who may become a session, and which session a datagram belongs to.
//!
//! Before a valid cookie an endpoint keeps nothing about a client and computes nothing with public keys. After
//! it, a request passes these checks, each cheaper than the next: network rate, version, repetition, half-open
//! sessions of the network, budget for handshakes, and only then the Noise message itself. What is full is full for good
//! requests only: nobody gives way to one that is not proved.

mod addresses;
mod rate;
mod remembered;

pub use addresses::AddressLimit;
pub use rate::Rate;

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{CryptoRng, Rng, SeedableRng};
use shadowland_prefetch::prefetch_first;
use shadowland_wire::PROTOCOL_VERSION;
use shadowland_wire::codec::{Reader, Writer};
use shadowland_wire::handshake::{
    Acceptance, COOKIE_BYTES, ClientHandshake, DenyReason, KEY_BYTES, NOISE_ACCEPTANCE_BYTES,
    ServerHandshake, SessionParameters, echo_of,
};
use shadowland_wire::header::Header;
use shadowland_wire::limits::DATAGRAM_BYTES;

use crate::Time;
use crate::connection::{Connection, HeldLimit, IntegrityChecks, RekeyLimits, Role, TransportConfig};
use crate::crypto::cookie::{Client, Cookies};
use crate::crypto::entropy::Entropy;
use crate::crypto::handshake::Responder;
use crate::crypto::identity::Identity;
use crate::crypto::token::{LoginToken, TokenError, TokenVerifier};
use crate::drop_reason::{DropReason, Dropped};
use crate::key_log::{KeyLog, SessionKeyLog};

use rate::{FairBucket, Network, Networks};
use remembered::{Accepted, Remembered};

/// Most sessions that an endpoint can have: a connection id has 16 bits for the slot.
pub const SESSIONS_MAX: usize = 1 << 16;

/// Half-open sessions among which the one is chosen that gives way.
const OLDEST: usize = 32;

/// Bytes of reliable messages that all sessions hold together by default.
const HELD_BYTES: usize = 64 << 20;

/// How an endpoint admits clients.
#[derive(Debug, Clone)]
pub struct EndpointConfig {
    /// The worker that owns the endpoint: the low byte of its connection ids.
    pub worker: u8,
    /// Most sessions, half-open ones included; at most [`SESSIONS_MAX`].
    pub max_sessions: usize,
    /// Most sessions whose client has not confirmed the keys. When there are more, one of the oldest is given up, of the
    /// network that has most: an honest client confirms within a round trip.
    pub max_half_open: usize,
    /// Most of them from one network, with the same networks as in `network_rate`; above it requests are dropped.
    pub max_half_open_of_network: usize,
    /// How long a client may take to confirm the keys. Who still asks after half of it gets a new session.
    pub half_open_timeout: Duration,
    /// Requests per network (IPv4 /24, IPv6 /48).
    pub network_rate: Rate,
    /// Whether the machine's own addresses are networks like others. Otherwise the limits of networks do not hold
    /// for them.
    pub limits_loopback: bool,
    /// Noise messages that the endpoint computes, so that a flood cannot take the tick's CPU (about 0.1 ms
    /// each). Under pressure networks come first that have lately had few.
    pub handshake_rate: Rate,
    /// How many sessions an address may have; shared by all endpoints of a server.
    pub addresses: Arc<AddressLimit>,
    /// How much sessions may hold of reliable messages that cannot be delivered yet; shared by all endpoints of a server.
    pub held: Arc<HeldLimit>,
    /// Bytes a second that a client may send, packets counted with 64 bytes more.
    pub client_bytes_per_s: u64,
    /// Who checks login tokens; without it anybody may come in, and tokens are not looked at.
    pub tokens: Option<Arc<TokenVerifier>>,
    /// Who knows which accounts play: where tokens are asked for, those come in also when the server is full, because
    /// the older session of the account makes room.
    pub playing: Option<Arc<dyn Playing>>,
    /// When the keys of a session are replaced.
    pub rekey: RekeyLimits,
    /// Which proofs of their version clients have to give now and then; without it none.
    pub integrity: Option<IntegrityChecks>,
    /// Where the keys of sessions are logged, if at all.
    pub key_log: Option<Arc<KeyLog>>,
    /// What sessions run with. The version of integrity keys in it is that of `integrity`.
    pub parameters: SessionParameters,
    /// Figures of reliable messages and congestion control.
    pub transport: TransportConfig,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self {
            worker: 0,
            max_sessions: 10_000,
            max_half_open: 1_024,
            max_half_open_of_network: 256,
            half_open_timeout: Duration::from_secs(5),
            network_rate: Rate { per_second: 64, burst: 256 },
            limits_loopback: false,
            handshake_rate: Rate { per_second: 1_000, burst: 64 },
            addresses: Arc::new(AddressLimit::new(SESSIONS_MAX)),
            held: Arc::new(HeldLimit::new(HELD_BYTES, 10_000)),
            client_bytes_per_s: 256 * 1024,
            tokens: None,
            playing: None,
            rekey: RekeyLimits::default(),
            integrity: None,
            key_log: None,
            parameters: SessionParameters::default(),
            transport: TransportConfig::default(),
        }
    }
}

/// Knows which accounts have a session, over all endpoints of a server.
pub trait Playing: fmt::Debug + Send + Sync {
    /// Whether somebody plays as this account.
    fn plays(&self, account: u64) -> bool;
}

/// A session's place in an endpoint. A slot that was given to somebody else is another value; the default is no
/// session's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u32);

/// The connection id is `worker u8 | index u16 | generation u8`, the generation never 0.
impl Slot {
    fn new(worker: u8, index: u16, generation: u8) -> Self {
        Self(u32::from(worker) | u32::from(index) << 8 | u32::from(generation) << 24)
    }

    /// The slot of which a datagram claims to be, judged by nothing but its first bytes; `None` where it claims no
    /// session.
    #[must_use]
    #[inline]
    pub fn claimed_by(datagram: &[u8]) -> Option<Self> {
        let id = u32::from_le_bytes(*datagram.first_chunk()?);
        (id != 0).then_some(Self(id))
    }

    /// The connection id of the session.
    #[must_use]
    pub fn connection_id(self) -> u32 {
        self.0
    }

    /// The worker that owns the session.
    #[must_use]
    pub fn worker(self) -> u8 {
        self.0 as u8
    }

    fn index(self) -> usize {
        usize::from((self.0 >> 8) as u16)
    }
}

/// What to do with a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routed {
    /// It claims to be of this session: give it to the session's connection.
    Session(Slot),
    /// So many bytes of the reply go back to where it came from.
    Reply(usize),
    /// It was dropped, and counted.
    Dropped(DropReason),
}

/// A session of the endpoint, with what the server hangs on it.
pub struct Session<T> {
    /// The protocol, and where its packets go.
    pub connection: Connection,
    /// The client's static public key.
    pub client_key: [u8; KEY_BYTES],
    /// Where the session was admitted from.
    admitted_from: IpAddr,
    /// What the login token says, where one is asked for.
    pub login: Option<LoginToken>,
    /// What the server hangs on the session.
    pub data: Option<T>,
}

/// What an endpoint counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Bytes of datagrams before a session exists.
    pub handshake_bytes_in: u64,
    /// Bytes of the answers to them.
    pub handshake_bytes_out: u64,
    /// Cookies that were made.
    pub cookies: u64,
    /// Handshakes that were computed, whatever came of them.
    pub handshakes: u64,
    /// Sessions that were accepted.
    pub accepted: u64,
    /// Accepted sessions whose client never confirmed the keys.
    pub half_open_expired: u64,
    /// Denials that were sent.
    pub denied: u64,
    /// Datagrams that were dropped, also by sessions if [`Endpoint::count_drop`] is told.
    pub dropped: Dropped,
}

/// All sessions of one socket.
pub struct Endpoint<T> {
    config: EndpointConfig,
    transport: Arc<TransportConfig>,
    identity: Identity,
    rng: StdRng,
    cookies: Cookies,
    networks: Networks,
    handshakes: FairBucket,
    remembered: Remembered,
    refusing: Option<DenyReason>,
    slots: Vec<SlotEntry<T>>,
    /// Unused indices; the one that was freed first is used first, so that ids repeat late.
    free: VecDeque<u16>,
    /// Sessions that have not confirmed their keys when last looked at, and when they expire; oldest first.
    half_open: VecDeque<HalfOpen>,
    counters: Counters,
}

#[derive(Clone, Copy)]
struct HalfOpen {
    slot: Slot,
    expires: Time,
    network: Network,
}

struct SlotEntry<T> {
    generation: u8,
    session: Option<Box<Session<T>>>,
}

impl<T> Endpoint<T> {
    /// An endpoint with a server's identity. `cookie_master` is the secret that all endpoints of the server
    /// share; `rng` seeds the endpoint's own generator.
    ///
    /// # Panics
    /// When the configuration asks for more than [`SESSIONS_MAX`] sessions.
    pub fn new(
        mut config: EndpointConfig,
        identity: Identity,
        cookie_master: &[u8; 32],
        rng: &mut dyn CryptoRng,
    ) -> Self {
        assert!(config.max_sessions <= SESSIONS_MAX, "an endpoint has at most {SESSIONS_MAX} sessions");
        config.parameters.integrity_version =
            config.integrity.as_ref().map_or(0, |checks| checks.tables.newest().version());
        let mut rng = StdRng::from_rng(rng);
        let mut network_key = [0; 32];
        rng.fill_bytes(&mut network_key);
        Self {
            transport: Arc::new(config.transport.clone().within_bounds()),
            identity,
            cookies: Cookies::new(cookie_master),
            networks: Networks::new(&network_key, config.network_rate, config.limits_loopback),
            handshakes: FairBucket::default(),
            remembered: Remembered::default(),
            refusing: None,
            slots: (0..config.max_sessions).map(|_| SlotEntry { generation: 1, session: None }).collect(),
            free: (0..config.max_sessions).map(|index| index as u16).collect(),
            half_open: VecDeque::with_capacity(config.max_half_open),
            counters: Counters::default(),
            rng,
            config,
        }
    }

    /// Looks at a datagram that came from `from`. `reply` must hold
    /// [`HANDSHAKE_REPLY_BYTES`](shadowland_wire::handshake::HANDSHAKE_REPLY_BYTES).
    ///
    /// # Panics
    /// When `reply` is too short for an answer.
    pub fn route(&mut self, now: Time, from: SocketAddr, datagram: &[u8], reply: &mut [u8]) -> Routed {
        let routed = match self.session_of(from, datagram) {
            Ok(Some(slot)) => return Routed::Session(slot),
            Ok(None) => self.handshake(now, from, datagram, reply),
            Err(reason) => Err(reason),
        };
        match routed {
            Err(reason) => {
                self.counters.dropped.count(reason);
                Routed::Dropped(reason)
            }
            Ok(length) => {
                self.counters.handshake_bytes_out += length as u64;
                Routed::Reply(length)
            }
        }
    }

    /// The session in a slot; `None` once it is gone.
    pub fn session_mut(&mut self, slot: Slot) -> Option<&mut Session<T>> {
        let entry = self.slots.get_mut(slot.index())?;
        entry.session.as_deref_mut().filter(|session| session.connection.id() == slot.0)
    }

    /// Fetches a session into the cache, and so many bytes of what hangs on it. To be called some microseconds before
    /// it is needed; what its parts point to can be fetched only after that.
    #[inline]
    pub fn prefetch(&self, slot: Slot, data_bytes: usize) {
        if let Some(session) = self.in_place_of(slot) {
            session.connection.prefetch();
            prefetch_first(&session.data, data_bytes);
        }
    }

    /// The session in the place that a slot names, whether it is the same session or not.
    #[inline]
    pub fn in_place_of(&self, slot: Slot) -> Option<&Session<T>> {
        self.slots.get(slot.index())?.session.as_deref()
    }

    /// All sessions, half-open ones included, in the order of their slots.
    pub fn sessions_mut(&mut self) -> impl Iterator<Item = (Slot, &mut Session<T>)> {
        let sessions = self.slots.iter_mut().filter_map(|entry| entry.session.as_deref_mut());
        sessions.map(|session| (Slot(session.connection.id()), session))
    }

    /// How many sessions there are, half-open ones included.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Forgets a session, without a word to its client, and returns what the server hung on it.
    pub fn remove(&mut self, slot: Slot) -> Option<T> {
        self.session_mut(slot)?;
        let entry = &mut self.slots[slot.index()];
        let session = entry.session.take()?;
        self.config.addresses.give_back(session.admitted_from);
        entry.generation = entry.generation.checked_add(1).unwrap_or(1);
        self.free.push_back(slot.index() as u16);
        session.data
    }

    /// From now on new clients are denied for this reason; `None` admits them again.
    pub fn refuse_new(&mut self, reason: Option<DenyReason>) {
        self.refusing = reason;
    }

    /// Removes sessions whose client has not confirmed the keys in time. The sessions' own timeouts are theirs.
    pub fn on_timeout(&mut self, now: Time) {
        self.remembered.forget(now);
        self.forget_confirmed();
        while let Some(expired) = self.half_open.pop_front_if(|half_open| now >= half_open.expires) {
            self.give_up(expired);
        }
    }

    /// When to call [`Endpoint::on_timeout`].
    #[must_use]
    pub fn next_timeout(&self) -> Option<Time> {
        self.half_open.front().map(|half_open| half_open.expires)
    }

    /// What the endpoint has counted.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Counts a datagram that a session's connection has dropped.
    pub fn count_drop(&mut self, reason: DropReason) {
        self.counters.dropped.count(reason);
    }

    /// The session that a datagram claims to be of; `None` when it claims to be of a handshake.
    #[inline]
    fn session_of(&self, from: SocketAddr, datagram: &[u8]) -> Result<Option<Slot>, DropReason> {
        // Nothing can be sent to such an address, and systems refuse a batch with one in it.
        if from.port() == 0 {
            return Err(DropReason::NoPort);
        }
        if datagram.len() > DATAGRAM_BYTES {
            return Err(DropReason::TooLarge);
        }
        let header = Header::decode(&mut Reader::new(datagram)).map_err(|_| DropReason::NotProtocol)?;
        if header.connection_id == 0 {
            return Ok(None);
        }
        let slot = Slot(header.connection_id);
        match self.in_place_of(slot) {
            Some(session) if session.connection.id() == slot.0 => Ok(Some(slot)),
            _ => Err(DropReason::UnknownSession),
        }
    }

    /// Takes a datagram of a handshake; gives the length of the answer.
    fn handshake(
        &mut self,
        now: Time,
        from: SocketAddr,
        datagram: &[u8],
        reply: &mut [u8],
    ) -> Result<usize, DropReason> {
        self.counters.handshake_bytes_in += datagram.len() as u64;
        match ClientHandshake::decode(datagram).map_err(|_| DropReason::NotProtocol)? {
            ClientHandshake::Connect { version, ephemeral } => {
                let client = Client { address: from, version, ephemeral: &ephemeral };
                let mut nonce = [0; 8];
                self.rng.fill_bytes(&mut nonce);
                let cookie = self.cookies.make(now, client, nonce);
                self.counters.cookies += 1;
                Ok(answer(&ServerHandshake::Cookie { echo: echo_of(&ephemeral), cookie }, reply))
            }
            ClientHandshake::ConnectRequest { version, cookie, noise } => {
                let ephemeral = noise.first_chunk().ok_or(DropReason::NotProtocol)?;
                let client = Client { address: from, version, ephemeral };
                self.connect_request(now, client, cookie, noise, reply)
            }
        }
    }

    fn connect_request(
        &mut self,
        now: Time,
        client: Client<'_>,
        cookie: &[u8; COOKIE_BYTES],
        noise: &[u8],
        reply: &mut [u8],
    ) -> Result<usize, DropReason> {
        self.cookies.verify(now, client, cookie)?;
        let network = self.networks.of(client.address.ip());
        if !self.networks.take(now, network) {
            return Err(DropReason::NetworkRate);
        }
        let echo = echo_of(client.ephemeral);
        if client.version != PROTOCOL_VERSION {
            return Ok(self.deny(client, DenyReason::Version, reply));
        }
        let (mut earlier, patience) = (None, self.config.half_open_timeout / 2);
        if let Some((at, accepted)) = self.remembered.get(client.ephemeral).copied()
            && let Some(session) = self.session_mut(accepted.slot)
        {
            // Who still asks when half of the time to confirm is over has not heard yet, and could be too late with what
            // is left: it gets a session with all of it, if it can prove once more who it is.
            if now - at > patience && !session.connection.is_confirmed() && accepted.address == client.address
            {
                earlier = Some(accepted.slot);
            } else {
                // Somebody may have copied the request on its way, and been faster with a cookie of its own: whoever
                // has the client's private key makes use of the answer, and shows where it is.
                session.connection.may_be_at(client.address);
                let repeated = ServerHandshake::ConnectionAccepted { echo, noise: &accepted.noise };
                return Ok(answer(&repeated, reply));
            }
        }
        // Who asks for tokens has to read one to know whether somebody comes back.
        let may_come_back = self.refusing == Some(DenyReason::Full) && self.config.playing.is_some();
        if let Some(reason) = self.refusing.filter(|_| !may_come_back) {
            return Ok(self.deny(client, reason, reply));
        }
        let is_more = earlier.is_none();
        if is_more && self.networks.half_open_of(network) >= self.config.max_half_open_of_network {
            return Err(DropReason::HalfOpenFull);
        }
        let had = self.networks.handshakes_of(now, network);
        if !self.handshakes.take(now, self.config.handshake_rate, had) {
            return Err(DropReason::HandshakeBudget);
        }
        self.networks.handshake(now, network);
        self.counters.handshakes += 1;
        match self.accept(now, client, network, earlier, noise) {
            Ok(noise) => Ok(answer(&ServerHandshake::ConnectionAccepted { echo, noise: &noise }, reply)),
            Err(Refusal::Denied(reason)) => Ok(self.deny(client, reason, reply)),
            Err(Refusal::Dropped(reason)) => Err(reason),
        }
    }

    /// Computes the handshake and makes a session of it, in place of the client's `earlier` one. Nobody has to give way
    /// before the request is proved to be good.
    fn accept(
        &mut self,
        now: Time,
        client: Client<'_>,
        network: Network,
        earlier: Option<Slot>,
        noise: &[u8],
    ) -> Result<[u8; NOISE_ACCEPTANCE_BYTES], Refusal> {
        const FAILED: Refusal = Refusal::Dropped(DropReason::HandshakeFailed);
        let responder = Responder::read(&self.identity, noise, &mut self.rng).map_err(|_| FAILED)?;
        let token = decode_token(responder.payload()).ok_or(FAILED)?;
        let client_key = responder.client_key();
        if let Some(earlier) = earlier
            && let Some(index) = self.half_open.iter().position(|half_open| half_open.slot == earlier)
            && let Some(half_open) = self.half_open.remove(index)
        {
            self.give_up(half_open);
        }
        let admitted_from = client.address.ip();
        let (index, login) = self.admit(now, admitted_from, token, &client_key)?;
        let slot = Slot::new(self.config.worker, index, self.slots[usize::from(index)].generation);
        let acceptance =
            Acceptance { connection_id: slot.connection_id(), parameters: self.config.parameters };
        let Ok((noise, keys)) = responder.accept(&acceptance) else {
            self.take_back(admitted_from, login);
            return Err(FAILED);
        };

        let entropy = Entropy::new(&mut self.rng);
        let config = Arc::clone(&self.transport);
        let id = acceptance.connection_id;
        let log = self.config.key_log.as_ref().map(|log| SessionKeyLog::new(log, id));
        log.iter().for_each(|log| log.note(0, &keys));
        let mut connection = Connection::new(Role::Server, &acceptance, keys, entropy, config, now);
        connection.set_rekey_limits(self.config.rekey);
        connection.set_address(client.address);
        connection.set_intake(self.config.client_bytes_per_s);
        connection.set_held_limit(Arc::clone(&self.config.held));
        if let Some(log) = log {
            connection.set_key_log(log);
        }
        if let Some(checks) = &self.config.integrity {
            connection.set_integrity_checks(checks.clone());
        }

        self.free.pop_front();
        self.slots[usize::from(index)].session =
            Some(Box::new(Session { connection, client_key, admitted_from, login, data: None }));
        self.half_open.push_back(HalfOpen { slot, expires: now + self.config.half_open_timeout, network });
        self.networks.half_open(network);
        self.remembered.insert(now, *client.ephemeral, Accepted { slot, address: client.address, noise });
        self.counters.accepted += 1;
        Ok(noise)
    }

    /// Finds a free slot for a client that has proved who it is, counts its address and takes its token.
    fn admit(
        &mut self,
        now: Time,
        from: IpAddr,
        token: Option<&[u8]>,
        client_key: &[u8; KEY_BYTES],
    ) -> Result<(u16, Option<LoginToken>), Refusal> {
        if self.free.is_empty() {
            // If there are half-open sessions enough one gives way, but those that were confirmed meanwhile do not count.
            self.forget_confirmed();
            if self.half_open.len() < self.config.max_half_open {
                return Err(Refusal::Denied(DenyReason::Full));
            }
        }
        if !self.config.addresses.take(from) {
            return Err(Refusal::Denied(DenyReason::Address));
        }
        let login = self.take_token(now, token, client_key);
        let login = login.inspect_err(|_| self.config.addresses.give_back(from))?;
        self.make_room_for_half_open();
        let Some(&index) = self.free.front() else {
            self.take_back(from, login);
            return Err(Refusal::Denied(DenyReason::Full));
        };
        Ok((index, login))
    }

    /// Undoes what [`Endpoint::admit`] has counted.
    fn take_back(&self, from: IpAddr, login: Option<LoginToken>) {
        self.config.addresses.give_back(from);
        if let (Some(tokens), Some(login)) = (&self.config.tokens, login) {
            tokens.give_back(&login);
        }
    }

    /// Uses a login token up, where one is asked for.
    fn take_token(
        &mut self,
        now: Time,
        token: Option<&[u8]>,
        client_key: &[u8; KEY_BYTES],
    ) -> Result<Option<LoginToken>, Refusal> {
        let Some(tokens) = &self.config.tokens else { return Ok(None) };
        let login = tokens.take(now, token, client_key).map_err(|error| {
            if error == TokenError::TooMany {
                // Another time it may be taken.
                return Refusal::Denied(DenyReason::Full);
            }
            self.counters.dropped.count(DropReason::BadToken);
            Refusal::Denied(DenyReason::Token)
        })?;
        let plays = self.config.playing.as_ref().is_some_and(|playing| playing.plays(login.account));
        if let Some(reason) = self.refusing.filter(|_| !plays) {
            tokens.give_back(&login);
            return Err(Refusal::Denied(reason));
        }
        Ok(Some(login))
    }

    fn deny(&mut self, client: Client<'_>, reason: DenyReason, reply: &mut [u8]) -> usize {
        self.counters.denied += 1;
        answer(&ServerHandshake::ConnectionDenied { echo: echo_of(client.ephemeral), reason }, reply)
    }

    /// Gives up a half-open session if there are as many as there may be: of the oldest ones that of the network that
    /// has most of them.
    fn make_room_for_half_open(&mut self) {
        while self.half_open.len() >= self.config.max_half_open {
            let oldest = self.half_open.iter().take(OLDEST).enumerate().rev();
            let most = oldest.max_by_key(|(_, half_open)| self.networks.half_open_of(half_open.network));
            let index = most.map_or(0, |(index, _)| index);
            let Some(given_up) = self.half_open.remove(index) else { return };
            if self.is_half_open(given_up.slot) {
                self.give_up(given_up);
            } else {
                self.networks.not_half_open(given_up.network);
            }
        }
    }

    fn is_half_open(&mut self, slot: Slot) -> bool {
        self.session_mut(slot).is_some_and(|session| !session.connection.is_confirmed())
    }

    /// Forgets a session whose client has not confirmed the keys, and lets it have its token again.
    fn give_up(&mut self, HalfOpen { slot, network, .. }: HalfOpen) {
        self.networks.not_half_open(network);
        self.counters.half_open_expired += 1;
        let login = self.session_mut(slot).and_then(|session| session.login);
        if let (Some(tokens), Some(login)) = (&self.config.tokens, login) {
            tokens.give_back(&login);
        }
        self.remove(slot);
    }

    /// Takes those off the list of half-open sessions that are confirmed or gone by now.
    fn forget_confirmed(&mut self) {
        let mut half_open = std::mem::take(&mut self.half_open);
        half_open.retain(|&HalfOpen { slot, network, .. }| {
            let still = self.is_half_open(slot);
            if !still {
                self.networks.not_half_open(network);
            }
            still
        });
        self.half_open = half_open;
    }
}

/// Why a request that was read leads to no session.
enum Refusal {
    /// In silence.
    Dropped(DropReason),
    /// The client is told.
    Denied(DenyReason),
}

fn answer(message: &ServerHandshake<'_>, reply: &mut [u8]) -> usize {
    let mut writer = Writer::new(reply);
    message.encode(&mut writer).expect("the reply buffer holds HANDSHAKE_REPLY_BYTES");
    writer.len()
}

/// The token in the payload of the first Noise message; an empty one is none.
#[expect(clippy::option_option, reason = "no payload and no token are different things")]
fn decode_token(payload: &[u8]) -> Option<Option<&[u8]>> {
    let mut reader = Reader::new(payload);
    let token = reader.length_prefixed().ok()?;
    reader.finish().ok()?;
    Some((!token.is_empty()).then_some(token))
}
