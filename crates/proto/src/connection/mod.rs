//! A session after the handshake: sealed packets both ways, the same on either side.
//!
//! | module | holds |
//! |---|---|
//! | `mod.rs` | the state, and what happens to an incoming packet |
//! | `rekey` | which keys open what arrives, and when new ones take over |
//! | `packet_builder` | how a packet is put together and sealed |
//! | `intake` | how much a client may send |
//! | `path` | which address packets go to, and how it moves |
//! | `integrity` | whether the client proves to be of a known version |
//! | `replay` | which sequences were received |
//! | `received` | which packets were applied, and when to say so |
//! | `sent` | which packets were sent, and which of them were acknowledged |
//! | `rtt` | the round-trip time and the timeouts that follow from it |
//! | `flow`, `congestion`, `pacer` | how much may leave now |
//! | `config` | the figures of all this |
//! | `outbox`, `inbox` | reliable messages, to and from the peer |
//! | `fragments`, `compress` | those of them that are large |
//! | `held` | how much of them all connections hold together |
//! | `hostile` | what a peer sends that keeps to no rule, for tests |
//!
//! An idle connection takes 4 KiB, of which 2 KiB are for the last 256 packets sent. Reliable messages take more only
//! while there are some; how much at most, `docs/TUNING.md` tells.
//!
//! A server with ten thousand connections finds none of them in a cache, and waits for each line of memory that it
//! touches. So the parts of a connection, and the fields of a part, stand in the order of their use (`repr(C)`), and
//! a packet with nothing but state in it touches no part that has nothing to do.

mod compress;
mod config;
mod congestion;
mod flow;
mod fragments;
mod held;
#[cfg(feature = "hostile")]
mod hostile;
mod inbox;
mod intake;
mod integrity;
mod outbox;
mod pacer;
mod packet_builder;
mod path;
mod received;
mod rekey;
mod replay;
mod rtt;
mod sent;
mod stats;
#[cfg(test)]
mod tests;

pub use config::{Congestion, TransportConfig};
pub use flow::Path;
pub use held::HeldLimit;
pub use integrity::{IntegrityChecks, IntegrityFailure};
pub use outbox::{Reliable, SendError};
pub use packet_builder::{PacketBuilder, Sent};
pub use rekey::RekeyLimits;
pub use stats::Stats;

use std::mem::offset_of;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use shadowland_prefetch::prefetch_first;
use shadowland_wire::ack::AckBlock;
use shadowland_wire::codec::Reader;
use shadowland_wire::handshake::{Acceptance, SessionParameters};
use shadowland_wire::header::{Channel, Flags, Header};
use shadowland_wire::limits::{DATAGRAM_BYTES, MESSAGES_PER_PACKET, RELIABLE_FIRST_ID_MAX, SEQUENCE_MAX};
use shadowland_wire::message::control::{Control, DisconnectReason, ReliableHandshake};
use shadowland_wire::message::{FIRST_APPLICATION_TYPE, Frame, is_of_game};

use crate::Time;
use crate::crypto::entropy::Entropy;
use crate::crypto::key_schedule::SessionKeys;
use crate::crypto::seal::Sealer;
use crate::drop_reason::DropReason;
use crate::key_log::SessionKeyLog;

use flow::{Demand, Flow, Told};
use inbox::{Inbox, NotTaken};
use intake::Intake;
use integrity::Integrity;
use outbox::{Outbox, Timeouts, Undeliverable};
use path::{PathTokens, Paths, add_token};
use received::{Asks, Received};
use rekey::{Exhausted, Keys};
use replay::ReplayWindow;
use rtt::Rtt;
use sent::SentPackets;

/// As the interval of Pings while a Ping is unanswered, so that a lost one does not cost a third of the idle timeout.
const PING_AGAIN: Duration = Duration::from_secs(1);
/// First pause before the client repeats its ReliableHandshake; it doubles up to [`HELLO_PAUSE_MAX`]. The server
/// forgets a session that is not confirmed within 5 s, and answers a request again in the first half of that: six of
/// them at least, so that one arrives on any link that can be played on.
const HELLO_PAUSE: Duration = Duration::from_millis(250);
const HELLO_PAUSE_MAX: Duration = Duration::from_millis(500);
/// How long the ReliableHandshake may take once the keys are confirmed: what it runs on is still half a session.
const ESTABLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// Of the packets that are remembered, those that may be used up by more than one packet at a time.
const UNHEARD_MAX: u64 = sent::SENT_PACKETS as u64 - 56;
/// How often Disconnect is sent: it is never answered.
const DISCONNECTS: u8 = 3;

/// How much of a connection every packet needs, from its beginning.
const HEAD_BYTES: usize = offset_of!(Connection, stats) + Stats::HEAD_BYTES;
const LINE: usize = 64;
const _: () = {
    // Ten thousand of them are read twice in a tick.
    assert!(HEAD_BYTES <= 7 * LINE);
    assert!(Keys::HEAD_BYTES <= LINE && Paths::HEAD_BYTES <= LINE && SentPackets::HEAD_BYTES <= LINE);
    assert!(Outbox::HEAD_BYTES <= LINE);
};

/// The application's side of an incoming packet.
pub trait Receiver {
    /// A message has arrived: an unreliable one at once, a reliable one exactly once and in its order.
    fn message(&mut self, kind: u8, body: &[u8]);
    /// Whether there is room for another reliable message: of this type, and so many bytes long once it is whole and
    /// unpacked. While there is none, the peer keeps what it sends, and `send` says full there; but it gives up after its
    /// last retry. Messages that wait here for an earlier one are delivered all the same, so that up to a window of them
    /// can come at once.
    fn has_room(&self, kind: u8, bytes: usize) -> bool {
        let _ = (kind, bytes);
        true
    }
    /// The peer has applied a packet that we sent.
    fn acked(&mut self, sequence: u64);
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The keys exist; the ReliableHandshake is not through, and the application cannot send yet.
    Handshaking,
    /// Both sides have confirmed the keys.
    Established,
    /// It is over.
    Closed(CloseReason),
}

/// Who ended a connection, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// This side: the application, a timeout, or a limit.
    Local(DisconnectReason),
    /// The peer has said so.
    Peer(DisconnectReason),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// One session. Feed it datagrams and the time; take packets from [`Connection::packet`] and then from
/// [`Connection::poll_transmit`] until there are none; call [`Connection::on_timeout`] when
/// [`Connection::next_timeout`] says so.
///
/// The fields stand in the order of their use: those that every packet needs come first, so that
/// [`Connection::prefetch`] has them in few lines of the cache.
#[repr(C, align(64))]
pub struct Connection {
    id: u32,
    role: Role,
    state: State,
    /// Whether the peer has proved that it holds the keys.
    confirmed: bool,
    /// The server has answered a ReliableHandshake, and the client is not known to have heard it. Until then it
    /// refuses everything else, so that every packet carries the answer.
    answer_unheard: bool,
    /// Large messages have arrived in part.
    assembles: bool,
    /// Whether there are messages in the outbox: looked at before it, so that an empty one is not even touched.
    sends_reliable: bool,
    parameters: SessionParameters,
    /// Before this nothing times out; see [`Connection::is_due`].
    quiet_until: Time,
    config: Arc<TransportConfig>,
    heard_at: Time,
    /// When this side last sent something that will be acknowledged.
    asked_at: Time,
    /// Control messages that wait for the next packet.
    pending: Controls,
    rtt: Rtt,
    received: Received,
    replay: ReplayWindow,
    intake: Intake,
    flow: Flow,
    sealer: Sealer,
    /// Of these four only the beginnings are looked at, as long as everything goes its usual way.
    stats: Stats,
    keys: Keys,
    paths: Paths,
    sent: SentPackets,
    outbox: Outbox,
    inbox: Inbox,
    /// What the pending ones say.
    to_say: ToSay,
    /// Only where there are challenges, or what answers them.
    integrity: Option<Box<Integrity>>,
    /// Until when the connection must be established; there is such a time from the confirmation on.
    establish_by: Option<Time>,
    /// The client's next ReliableHandshake, and the pause after it.
    hello_at: Option<Time>,
    hello_pause: Duration,
    /// The last Ping and when it was sent; `None` once it is answered.
    ping: Option<(u32, Time)>,
    next_ping_id: u32,
}

/// A set of control messages; nearly always there are none, and that is one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Controls(u8);

impl Controls {
    const NONE: Self = Self(0);
    const HANDSHAKE: Self = Self(1 << 0);
    const PING: Self = Self(1 << 1);
    const PONG: Self = Self(1 << 2);
    const REKEY: Self = Self(1 << 3);
    const INTEGRITY: Self = Self(1 << 4);
    const PATH_RESPONSES: Self = Self(1 << 5);
    const DISCONNECT: Self = Self(1 << 6);

    #[inline]
    fn is_empty(self) -> bool {
        self == Self::NONE
    }

    #[inline]
    fn has(self, control: Self) -> bool {
        self.0 & control.0 != 0
    }

    #[inline]
    fn add(&mut self, control: Self) {
        self.0 |= control.0;
    }

    fn remove(&mut self, controls: Self) {
        self.0 &= !controls.0;
    }
}

/// What control messages say that is known before they leave. Of those that are not pending it means nothing.
#[derive(Debug, Clone, Copy)]
struct ToSay {
    pong: Pong,
    path_responses: PathTokens,
    disconnect: DisconnectReason,
    /// How often it is still to be said.
    disconnects: u8,
}

impl ToSay {
    const NOTHING: Self = Self {
        pong: Pong { id: 0, asked_at: Time::from_micros(0) },
        path_responses: [None; 2],
        disconnect: DisconnectReason::Leaving,
        disconnects: 0,
    };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pong {
    id: u32,
    asked_at: Time,
}

impl Connection {
    pub(crate) fn new(
        role: Role,
        acceptance: &Acceptance,
        keys: SessionKeys,
        entropy: Entropy,
        config: Arc<TransportConfig>,
        now: Time,
    ) -> Self {
        let seal_key = match role {
            Role::Client => &keys.client_to_server,
            Role::Server => &keys.server_to_client,
        };
        Self {
            id: acceptance.connection_id,
            role,
            state: State::Handshaking,
            confirmed: false,
            answer_unheard: false,
            assembles: false,
            sends_reliable: false,
            parameters: acceptance.parameters,
            quiet_until: Time::default(),
            heard_at: now,
            asked_at: now,
            pending: Controls::NONE,
            rtt: Rtt::default(),
            received: Received::new(),
            replay: ReplayWindow::new(),
            intake: Intake::default(),
            flow: Flow::new(&config, now),
            sealer: Sealer::new(seal_key, acceptance.connection_id),
            stats: Stats::default(),
            keys: Keys::new(role, keys, entropy, now),
            paths: Paths::default(),
            sent: SentPackets::new(&config),
            outbox: Outbox::new(),
            inbox: Inbox::new(&config),
            to_say: ToSay::NOTHING,
            integrity: None,
            establish_by: None,
            hello_at: (role == Role::Client).then_some(now),
            hello_pause: HELLO_PAUSE,
            ping: None,
            next_ping_id: 0,
            config,
        }
    }

    /// From here on the session's keys are logged. Those that it began with the caller has logged.
    pub(crate) fn set_key_log(&mut self, log: SessionKeyLog) {
        self.keys.set_key_log(log);
    }

    /// From here on the peer may send so much; what is above it is dropped unopened.
    pub(crate) fn set_intake(&mut self, bytes_per_s: u64) {
        self.intake.limit(bytes_per_s);
    }

    /// From here on what it holds of reliable messages counts there.
    pub(crate) fn set_held_limit(&mut self, limit: Arc<HeldLimit>) {
        self.inbox.count_in(limit);
    }

    /// The session's id, in the header of all its packets.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What the session runs with.
    #[must_use]
    pub fn parameters(&self) -> &SessionParameters {
        &self.parameters
    }

    /// Fetches into the cache what the next packet of this connection needs, whichever way it goes. To be called
    /// some microseconds before, and followed by [`Connection::prefetch_more`].
    #[inline]
    pub fn prefetch(&self) {
        prefetch_first(self, HEAD_BYTES);
        prefetch_first(&self.keys, Keys::HEAD_BYTES);
        prefetch_first(&self.paths, Paths::HEAD_BYTES);
        prefetch_first(&self.sent, SentPackets::HEAD_BYTES);
    }

    /// What can only be fetched when [`Connection::prefetch`] is through.
    #[inline]
    pub fn prefetch_more(&self) {
        self.sent.prefetch();
        if self.sends_reliable {
            prefetch_first(&self.outbox, Outbox::HEAD_BYTES);
        }
    }

    /// How far the connection is.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether the peer has proved that it holds the keys, by any packet that opened.
    #[must_use]
    pub fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// The smoothed round-trip time; zero before the first sample.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.rtt.smoothed()
    }

    /// What the connection has counted.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// What congestion control knows of the path.
    #[must_use]
    pub fn path(&self) -> Path {
        self.flow.path(&self.rtt, self.sent.in_flight())
    }

    /// Bytes of datagrams, header and tag included, that the application's packets may have together now, at most
    /// `at_most`: once a tick, before the tick's snapshot. It is what congestion control lets go, less what
    /// waiting reliable messages need (no more than half), and never less than the floor of the configuration, if
    /// `at_most` is not. Whoever sends more is not held back, but finds less in the following ticks.
    #[inline]
    pub fn budget_bytes(&mut self, now: Time, at_most: usize) -> usize {
        let waiting = if self.is_reliable_ready() { self.outbox.waiting_bytes() } else { 0 };
        let floor = self.config.budget_floor_bytes;
        self.flow.budget(now, &self.rtt, self.sent.in_flight(), waiting, floor).min(at_most)
    }

    /// Whether the application may send more than one packet at a time. Of packets that were sent long ago nothing is
    /// known any more, not even when the peer acknowledges them; so while many are unanswered, one at a time has to do.
    #[must_use]
    pub fn has_room_for_more(&self) -> bool {
        self.sent.unheard() < UNHEARD_MAX
    }

    /// Reliable messages that the peer has not acknowledged yet.
    #[must_use]
    pub fn unacknowledged(&self) -> usize {
        self.outbox.len()
    }

    /// Takes a reliable message for sending, on a stream of a reliable channel; of the unordered channel there
    /// is only stream 0. One that is larger than a packet is taken apart, and does not hold up smaller ones of
    /// other streams; it has to wait for the peer's ReliableHandshake, and is `Full` before. It leaves with the next packets, also when those are full of other messages, for then
    /// [`Connection::poll_transmit`] gives it packets of its own.
    pub fn send(&mut self, channel: Channel, stream: u8, kind: u8, body: &[u8]) -> Result<(), SendError> {
        match self.state {
            State::Closed(_) => Err(SendError::Closed),
            _ => {
                self.rouse();
                self.outbox.push(&self.config, channel, stream, kind, body)?;
                self.sends_reliable = true;
                Ok(())
            }
        }
    }

    /// Whether there are reliable messages that only congestion control may hold back.
    #[inline]
    fn is_reliable_ready(&self) -> bool {
        self.sends_reliable && self.outbox.is_ready()
    }

    /// Starts a packet for the application's messages in `buffer`, which must hold [`DATAGRAM_BYTES`]. `None`
    /// while the connection is handshaking, when it is closed, or when its sequences are used up.
    #[inline]
    pub fn packet<'c, 'b>(&'c mut self, now: Time, buffer: &'b mut [u8]) -> Option<PacketBuilder<'c, 'b>> {
        if self.state != State::Established {
            return None;
        }
        self.say_answer_again();
        PacketBuilder::start(self, now, buffer)
    }

    /// Writes a packet that must leave now into `buffer`, which must hold [`DATAGRAM_BYTES`], and returns its
    /// length: control messages, reliable messages, or an acknowledgement that cannot wait for company. Call it
    /// after anything else that was called, until it returns `None`.
    #[inline]
    pub fn poll_transmit(&mut self, now: Time, buffer: &mut [u8]) -> Option<usize> {
        // Most of the time there is nothing, and that is seen at once.
        let ready = !self.pending.is_empty() || self.is_ack_due(now) || self.is_reliable_ready();
        if ready { self.transmit(now, buffer) } else { None }
    }

    fn transmit(&mut self, now: Time, buffer: &mut [u8]) -> Option<usize> {
        let ready = match self.state {
            State::Closed(_) => self.pending.has(Controls::DISCONNECT),
            State::Handshaking => !self.pending.is_empty() || self.is_ack_due(now),
            State::Established => {
                !self.pending.is_empty() || self.is_ack_due(now) || self.lets_reliable_go(now)
            }
        };
        if !ready {
            return None;
        }
        self.say_answer_again();
        let mut packet = PacketBuilder::start(self, now, buffer)?;
        packet.fill_reliable();
        packet.is_worth_sending(now).then(|| packet.finish().len)
    }

    /// As long as the client is not known to have heard the answer to its ReliableHandshake, every packet carries it.
    #[inline]
    fn say_answer_again(&mut self) {
        if self.answer_unheard {
            self.pending.add(Controls::HANDSHAKE);
        }
    }

    /// When to call [`Connection::on_timeout`] at the latest; `None` once the connection is closed.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Time> {
        if matches!(self.state, State::Closed(_)) {
            return None;
        }
        [self.received.due(), self.paced_until()].into_iter().flatten().chain([self.times_out_at()]).min()
    }

    /// Whether [`Connection::on_timeout`] has something to do; for whoever asks again and again, and calls
    /// [`Connection::poll_transmit`] as often: cheaper than [`Connection::next_timeout`], and does not tell of what
    /// only waits to be sent.
    #[inline]
    pub fn is_due(&mut self, now: Time) -> bool {
        if now < self.quiet_until {
            debug_assert!(matches!(self.state, State::Closed(_)) || now < self.times_out_at());
            return false;
        }
        if matches!(self.state, State::Closed(_)) {
            return false;
        }
        self.quiet_until = self.times_out_at();
        now >= self.quiet_until
    }

    /// Something has happened after which a timeout may come sooner than it seemed.
    fn rouse(&mut self) {
        self.quiet_until = Time::default();
    }

    /// When the first timeout comes of a connection that is not closed. Most packets only put it off; what may bring
    /// it nearer calls [`Connection::rouse`].
    fn times_out_at(&self) -> Time {
        let sooner = [
            self.hello_at,
            self.establish_by,
            self.outbox.deadline(),
            self.sent.loss_at(),
            self.paths.deadline(),
            self.integrity.as_deref().and_then(Integrity::deadline),
            (self.assembles && self.inbox.assemblies.has_expired()).then(Time::default),
        ];
        let established =
            (self.state == State::Established).then(|| self.ping_at().min(self.keys.deadline()));
        sooner.into_iter().flatten().chain(established).fold(self.idle_at(), Time::min)
    }

    /// Does what is due: repeats, a Ping, the end. Then [`Connection::poll_transmit`] has it.
    pub fn on_timeout(&mut self, now: Time) {
        if matches!(self.state, State::Closed(_)) {
            return;
        }
        if now >= self.idle_at() || self.establish_by.is_some_and(|at| now >= at) {
            return self.close(now, DisconnectReason::IdleTimeout);
        }
        if self.inbox.assemblies.has_expired() {
            return self.close(now, DisconnectReason::Undeliverable);
        }
        if self.repeat_reliable(now).is_err() {
            return self.close(now, DisconnectReason::Undeliverable);
        }
        if self.sealer.is_exhausted() {
            return self.close(now, DisconnectReason::KeysExhausted);
        }
        if self.state == State::Established {
            match self.keys.on_timeout(now, self.rtt.timeout(&self.config, 0)) {
                Ok(step) => self.apply_step(step),
                Err(Exhausted) => return self.close(now, DisconnectReason::KeysExhausted),
            }
        }
        self.paths_on_timeout(now);
        self.check_integrity(now);
        if self.hello_at.is_some_and(|at| now >= at) {
            self.pending.add(Controls::HANDSHAKE);
            self.hello_at = Some(now + self.hello_pause);
            self.hello_pause = (2 * self.hello_pause).min(HELLO_PAUSE_MAX);
        }
        if now >= self.ping_at() && self.state == State::Established {
            self.pending.add(Controls::PING);
        }
    }

    /// Ends the session: the peer is told three times by the next calls of [`Connection::poll_transmit`], and
    /// nothing that arrives is looked at any more.
    pub fn close(&mut self, _now: Time, reason: DisconnectReason) {
        if matches!(self.state, State::Closed(_)) {
            return;
        }
        self.rouse();
        self.end(CloseReason::Local(reason));
        // A server sends nothing sealed to a client that has not confirmed the keys.
        if self.confirmed || self.role == Role::Client {
            self.pending.add(Controls::DISCONNECT);
            (self.to_say.disconnect, self.to_say.disconnects) = (reason, DISCONNECTS);
        }
    }

    /// Takes a datagram: opens it in place, refuses what was received before, takes its acknowledgements, and
    /// gives its messages to `receiver`. The packet counts as applied, and is acknowledged, only after that.
    pub fn handle(
        &mut self,
        now: Time,
        datagram: &mut [u8],
        receiver: &mut impl Receiver,
    ) -> Result<(), DropReason> {
        let result = self.receive(now, datagram, receiver);
        if let Err(reason) = result {
            self.stats.dropped.count(reason);
        }
        result
    }

    /// As [`Connection::handle`], for a server: notices when the peer's address has changed.
    pub fn handle_from(
        &mut self,
        now: Time,
        from: SocketAddr,
        datagram: &mut [u8],
        receiver: &mut impl Receiver,
    ) -> Result<(), DropReason> {
        let (bytes, before) = (datagram.len(), self.replay.largest());
        let unconfirmed = !self.confirmed;
        self.paths.begin_packet();
        let result = self.handle(now, datagram, receiver);
        if unconfirmed && self.confirmed {
            self.paths.confirmed_from(from);
        }
        result?;
        self.arrived(now, from, bytes, self.replay.largest() != before);
        Ok(())
    }

    fn receive(
        &mut self,
        now: Time,
        datagram: &mut [u8],
        receiver: &mut impl Receiver,
    ) -> Result<(), DropReason> {
        if matches!(self.state, State::Closed(_)) {
            return Err(DropReason::Closed);
        }
        let bytes = datagram.len();
        let (header, payload) = self.open(now, datagram)?;
        self.stats.packets_received += 1;
        self.stats.bytes_received += bytes as u64;
        if !self.confirmed {
            self.confirmed = true;
            self.establish_by = Some(now + ESTABLISH_TIMEOUT);
            self.rouse();
        }
        self.heard_at = now;
        if self.assembles {
            self.inbox.assemblies.heard(now);
            self.rouse();
        }

        let reliable = self.apply(now, payload, receiver)?;
        let asks = match header.flags.contains(Flags::ACKNOWLEDGMENT) {
            true => Asks::Nothing,
            false if reliable => Asks::ForReliable,
            false => Asks::Soon,
        };
        self.received.applied(&self.config, now, header.sequence, asks);
        Ok(())
    }

    /// The header and the payload of a packet of this session that was never received before.
    #[inline]
    fn open<'p>(&mut self, now: Time, datagram: &'p mut [u8]) -> Result<(Header, &'p [u8]), DropReason> {
        if datagram.len() > DATAGRAM_BYTES {
            return Err(DropReason::TooLarge);
        }
        let header = Header::decode(&mut Reader::new(datagram)).map_err(|_| DropReason::NotProtocol)?;
        if header.connection_id != self.id || !header.flags.contains(Flags::SEALED) {
            return Err(DropReason::NotSealed);
        }
        // No honest sealer goes beyond it, and what is computed from sequences need not look out for the end of numbers.
        if header.sequence > SEQUENCE_MAX {
            return Err(DropReason::NotProtocol);
        }
        self.intake.check(now)?;
        self.replay.check(header.sequence)?;
        let bytes = datagram.len();
        let payload = self.keys.open(now, &header, datagram)?;
        self.replay.mark(header.sequence);
        self.intake.spend(now, bytes);
        if self.keys.is_current(&header) {
            self.keys.opened(header.sequence, bytes);
        } else {
            self.opened_other(now, header.sequence);
        }
        if self.keys.are_used_up() {
            self.rouse();
        }
        Ok((header, payload))
    }

    /// A packet has opened with another key than the current one.
    #[cold]
    fn opened_other(&mut self, now: Time, sequence: u64) {
        self.rouse();
        let pto = self.rtt.timeout(&self.config, 0);
        let step = self.keys.opened_other(now, sequence, pto);
        self.apply_step(step);
    }

    /// Applies a payload; returns whether there were reliable messages in it.
    fn apply(&mut self, now: Time, payload: &[u8], receiver: &mut impl Receiver) -> Result<bool, DropReason> {
        let mut reader = Reader::new(payload);
        if let Some(block) = AckBlock::decode(&mut reader).map_err(|_| DropReason::Malformed)? {
            self.apply_acks(now, &block, receiver)?;
        }
        let mut messages = 0;
        let mut outcome = Ok(false);
        while !reader.is_empty() {
            messages += 1;
            if messages > MESSAGES_PER_PACKET {
                return Err(DropReason::TooManyMessages);
            }
            let frame = Frame::decode(&mut reader).map_err(|_| DropReason::Malformed)?;
            if frame.kind < FIRST_APPLICATION_TYPE && frame.reliable.is_none() {
                self.rouse();
                self.apply_control(now, &frame)?;
            } else if self.state == State::Handshaking {
                return Err(DropReason::NotEstablished);
            } else if let Some(place) = frame.reliable {
                self.inbox.assemblies.heard(now);
                let taken = self.inbox.accept(place, frame.kind, frame.body, receiver);
                self.assembles = self.inbox.assemblies.are_open();
                let unpacked = self.inbox.take_unpacked_bytes();
                if unpacked > 0 {
                    self.intake.spend_unpacked(now, unpacked);
                }
                match taken {
                    Ok(()) => outcome = outcome.map(|_| true),
                    Err(NotTaken::AheadOfWindow) => outcome = Err(DropReason::AheadOfWindow),
                    Err(NotTaken::Broken) => {
                        self.close(now, DisconnectReason::ProtocolViolation);
                        return Err(DropReason::Malformed);
                    }
                }
            } else if is_of_game(frame.kind) {
                // Nothing would bound how many there are.
                return Err(DropReason::Malformed);
            } else {
                receiver.message(frame.kind, frame.body);
            }
            if matches!(self.state, State::Closed(_)) {
                break;
            }
        }
        outcome
    }

    fn apply_acks(
        &mut self,
        now: Time,
        block: &AckBlock,
        receiver: &mut impl Receiver,
    ) -> Result<(), DropReason> {
        let largest = self.sent.largest_of(block).ok_or(DropReason::Malformed)?;
        let is_newer = largest > self.sent.largest_acked();
        let Self { outbox, sends_reliable, stats, .. } = self;
        let (mut newest, mut packets, mut bytes) = (None, 0, 0);
        self.sent.take_acked(largest, block.mask, |acked| {
            stats.packets_acked += 1;
            if acked.late {
                stats.packets_late += 1;
            }
            packets += 1;
            bytes += u64::from(acked.bytes);
            if acked.reliable {
                outbox.acked(acked.sequence);
                *sends_reliable = !outbox.is_empty();
            }
            receiver.acked(acked.sequence);
            newest = Some(acked.sequence);
        });
        // Only the largest tells a round trip: of the others it is not known how long the peer held them.
        let held_us = block.delay.as_micros().filter(|_| newest == Some(largest));
        let sample = held_us.map(|held_us| self.rtt.sample(self.sent.age_us(now, largest), held_us));
        if let Some(newest) = newest {
            self.answer_unheard = false;
            let told = Told { packets, bytes, newest_age_us: self.sent.age_us(now, newest) };
            self.flow.acked(now, &self.rtt, told, sample);
        }
        // One that has nothing in it to be told, for it only acknowledged, overtakes others all the same.
        if is_newer || newest.is_some() {
            self.find_lost(now);
        }
        Ok(())
    }

    /// Judges the packets that are still unacknowledged, and lets what the lost ones carried go out again.
    fn find_lost(&mut self, now: Time) {
        let lost = self.sent.judge(now, self.rtt.smoothed_us());
        if self.sent.loss_at().is_some() {
            self.rouse();
        }
        if lost.packets > 0 {
            self.stats.packets_lost += lost.packets;
            self.flow.lost(now, lost);
        }
        if self.sends_reliable {
            self.outbox.lost_up_to(self.sent.lost_up_to());
        }
    }

    /// Lets reliable messages go out again that were lost or not acknowledged in time.
    fn repeat_reliable(&mut self, now: Time) -> Result<(), Undeliverable> {
        if self.sent.loss_at().is_some_and(|at| now >= at) {
            self.find_lost(now);
        }
        let timeouts = Timeouts { config: &self.config, rtt: &self.rtt };
        let timed_out = self.outbox.on_timeout(now, timeouts)?;
        if timed_out > 0 {
            self.stats.messages_timed_out += timed_out;
            self.sent.forget_older_than(now, self.rtt.timeout(&self.config, 0));
            self.flow.timed_out();
        }
        Ok(())
    }

    /// Whether there are reliable messages that may leave now.
    fn lets_reliable_go(&mut self, now: Time) -> bool {
        if self.state != State::Established || !self.is_reliable_ready() {
            return false;
        }
        let demand = self.demand();
        self.flow.lets_reliable_go(now, &self.rtt, demand)
    }

    /// When pacing lets the next reliable message go, if one waits only for that.
    fn paced_until(&self) -> Option<Time> {
        let waits = self.state == State::Established && self.is_reliable_ready();
        waits.then(|| self.flow.ready_at(&self.rtt, self.demand())).flatten()
    }

    fn demand(&self) -> Demand {
        Demand { in_flight: self.sent.in_flight(), reliable_in_flight: self.outbox.in_flight_bytes() as u64 }
    }

    fn apply_control(&mut self, now: Time, frame: &Frame<'_>) -> Result<(), DropReason> {
        match Control::decode(frame.kind, frame.body).map_err(|_| DropReason::Malformed)? {
            None => self.stats.messages_unknown += 1,
            Some(Control::Ping { id }) => {
                self.pending.add(Controls::PONG);
                self.to_say.pong = Pong { id, asked_at: now };
            }
            Some(Control::Pong { id, held_us }) => {
                if let Some((_, sent_at)) = self.ping.take_if(|(asked, _)| *asked == id) {
                    self.rtt.sample((now - sent_at).as_micros() as u64, u64::from(held_us));
                }
            }
            Some(Control::Disconnect(reason)) => self.end(CloseReason::Peer(reason)),
            Some(Control::ReliableHandshake(handshake)) => self.apply_handshake(now, &handshake)?,
            Some(Control::PathChallenge { token }) if self.role == Role::Client => {
                self.pending.add(Controls::PATH_RESPONSES);
                add_token(&mut self.to_say.path_responses, token);
            }
            Some(Control::PathResponse { token }) if self.role == Role::Server => self.paths.response(token),
            Some(Control::PathChallenge { .. } | Control::PathResponse { .. }) => {
                return Err(DropReason::Malformed);
            }
            Some(message @ (Control::CheckIntegrity { .. } | Control::IntegrityAnswer { .. })) => {
                self.apply_integrity(now, message)?;
            }
            Some(Control::RekeyRequest { number, share }) => {
                let result = self.keys.request(number, &share);
                self.apply_rekey(now, result)?;
            }
            Some(Control::RekeyResponse { number, share }) => {
                let result = self.keys.response(number, &share);
                self.apply_rekey(now, result)?;
            }
        }
        Ok(())
    }

    fn apply_handshake(&mut self, now: Time, handshake: &ReliableHandshake) -> Result<(), DropReason> {
        let from_server = self.role == Role::Client;
        if handshake.answer != from_server || handshake.first_id > RELIABLE_FIRST_ID_MAX {
            return Err(DropReason::Malformed);
        }
        if self.state == State::Handshaking {
            self.state = State::Established;
            self.establish_by = None;
            self.start_integrity(now);
            self.answer_unheard = self.role == Role::Server;
            self.inbox.start_at(handshake.first_id);
            self.outbox.set_windows(
                handshake.window_messages,
                handshake.window_bytes,
                handshake.message_bytes,
            );
        }
        self.hello_at = None;
        // A repeated one means that the answer was lost.
        if self.role == Role::Server {
            self.pending.add(Controls::HANDSHAKE);
        }
        Ok(())
    }

    fn end(&mut self, reason: CloseReason) {
        self.state = State::Closed(reason);
        self.pending = Controls::NONE;
        self.answer_unheard = false;
        self.outbox.clear();
        self.sends_reliable = false;
    }

    fn handshake(&self) -> ReliableHandshake {
        ReliableHandshake {
            answer: self.role == Role::Server,
            first_id: outbox::FIRST_ID,
            window_messages: self.config.window_messages,
            window_bytes: self.config.window_bytes,
            message_bytes: self.config.message_bytes as u32,
        }
    }

    fn is_ack_due(&self, now: Time) -> bool {
        self.received.due().is_some_and(|due| now >= due)
    }

    fn idle_at(&self) -> Time {
        self.heard_at + Duration::from_millis(u64::from(self.parameters.idle_timeout_ms))
    }

    fn ping_at(&self) -> Time {
        self.asked_at
            + if self.ping.is_some() {
                PING_AGAIN.min(self.config.ping_interval)
            } else {
                self.config.ping_interval
            }
    }
}
