//! Before a session: whoever can reach a server's port, and whoever can answer a client, without any key.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use shadowland_proto::{
    ConnectConfig, Connecting, Connection, DenyReason, Endpoint, EndpointConfig, Identity, LoginToken,
    Routed, Time, TokenSigner, TokenVerifier,
};
use shadowland_wire::PROTOCOL_VERSION;
use shadowland_wire::codec::Writer;
use shadowland_wire::handshake::{
    COOKIE_BYTES, ClientHandshake, KEY_BYTES, NOISE_ACCEPTANCE_BYTES, NOISE_REQUEST_BYTES,
    REQUEST_PAYLOAD_BYTES, ServerHandshake,
};
use shadowland_wire::limits::{DATAGRAM_BYTES, TOKEN_BYTES, TOKEN_SECONDS_MAX};

use crate::pair::{self, Deaf, HOME, START};
use crate::script::{Script, Step};
use crate::within;

/// The endpoint's tables, eight sessions, and what the script keeps.
const HEAP_BYTES: u64 = 4 << 20;
/// Honest clients in a script.
const CLIENTS: usize = 3;
/// Datagrams that a script can send again.
const HISTORY: usize = 64;
/// Wall clock, in seconds since 1970, at the start of the endpoint's clock.
const UNIX_AT_ZERO_S: u64 = 1_700_000_000;

/// Datagrams of any form from several addresses, among those of honest clients, with time between them.
pub fn endpoint(data: &[u8]) {
    within(HEAP_BYTES, || {
        let mut script = Script::new(data);
        let mut street = Street::new();
        while street.step(&mut script).is_ok() {
            street.check();
        }
    });
}

/// A server's port, and who is about.
struct Street {
    now: Time,
    server: Endpoint<()>,
    config: EndpointConfig,
    key: [u8; KEY_BYTES],
    rng: StdRng,
    clients: [Client; CLIENTS],
    /// The cookie that was given last.
    cookie: [u8; COOKIE_BYTES],
    history: Vec<Vec<u8>>,
}

enum Client {
    Absent,
    Connecting(Box<Connecting>),
    Connected(Box<Connection>),
}

impl Street {
    fn new() -> Self {
        let config = pair::small();
        let (server, key, rng) = pair::endpoint(config.clone());
        let clients = [const { Client::Absent }; CLIENTS];
        Self { now: START, server, config, key, rng, clients, cookie: [0; COOKIE_BYTES], history: Vec::new() }
    }

    fn step(&mut self, script: &mut Script<'_>) -> Step {
        let mut buffer = [0; DATAGRAM_BYTES];
        match script.u8()? % 9 {
            0 => {
                let mut datagram = script.bytes()?.to_vec();
                self.arrive(address(script)?, &mut datagram);
            }
            1 => {
                let version = if script.flag()? { PROTOCOL_VERSION } else { script.u16()? };
                let connect = ClientHandshake::Connect { version, ephemeral: script.array()? };
                self.arrive(address(script)?, encoded(&connect, &mut buffer));
            }
            2 => {
                let mut cookie = self.cookie;
                cookie[script.below(COOKIE_BYTES)?] ^= script.u8()?;
                let mut noise = [0; NOISE_REQUEST_BYTES + REQUEST_PAYLOAD_BYTES];
                let given = script.bytes()?;
                let length = given.len().clamp(NOISE_REQUEST_BYTES + 1, noise.len());
                let copied = given.len().min(length);
                noise[..copied].copy_from_slice(&given[..copied]);
                let (version, noise) = (PROTOCOL_VERSION, &noise[..length]);
                let request = ClientHandshake::ConnectRequest { version, cookie: &cookie, noise };
                self.arrive(address(script)?, encoded(&request, &mut buffer));
            }
            3 | 4 => self.client_speaks(script)?,
            5 => {
                let (which, place, flip) = (script.u8()?, script.u16()?, script.u8()?);
                let from = address(script)?;
                if !self.history.is_empty() {
                    let mut datagram = self.history[usize::from(which) % self.history.len()].clone();
                    let place = usize::from(place) % datagram.len();
                    datagram[place] ^= flip;
                    self.arrive(from, &mut datagram);
                }
            }
            6 => {
                self.now = self.now + script.pause()?;
                self.server.on_timeout(self.now);
                assert!(self.server.next_timeout().is_none_or(|next| next > self.now));
                for (_, session) in self.server.sessions_mut() {
                    session.connection.on_timeout(self.now);
                }
            }
            7 => self.server.refuse_new(script.flag()?.then_some(DenyReason::Full)),
            _ => {
                let which = script.u8()?;
                let slots: Vec<_> = self.server.sessions_mut().map(|(slot, _)| slot).collect();
                if !slots.is_empty() {
                    self.server.remove(slots[usize::from(which) % slots.len()]);
                }
            }
        }
        Ok(())
    }

    /// An honest client says what it has to say, from wherever the script wants, changed or not.
    fn client_speaks(&mut self, script: &mut Script<'_>) -> Step {
        let (which, from) = (script.below(CLIENTS)?, address(script)?);
        let mut buffer = [0; DATAGRAM_BYTES];
        let now = self.now;
        let length = match &mut self.clients[which] {
            Client::Absent => {
                let config = ConnectConfig { timeout: Duration::from_secs(600), ..ConnectConfig::default() };
                let connecting = Connecting::new(config, self.key, &mut self.rng, now).expect("a key");
                self.clients[which] = Client::Connecting(Box::new(connecting));
                return Ok(());
            }
            Client::Connecting(connecting) => connecting.poll_transmit(now, &mut buffer),
            Client::Connected(connection) => {
                connection.on_timeout(now);
                connection.poll_transmit(now, &mut buffer)
            }
        };
        let Some(length) = length else { return Ok(()) };
        let (place, flip) = (usize::from(script.u16()?) % length, script.u8()?);
        buffer[place] ^= flip;
        let Some(reply) = self.arrive(from, &mut buffer[..length]) else { return Ok(()) };
        if let Client::Connecting(connecting) = &mut self.clients[which]
            && let Ok(Some(connection)) = connecting.handle(now, &reply)
        {
            self.clients[which] = Client::Connected(Box::new(connection));
        }
        Ok(())
    }

    /// A datagram reaches the server; what it answers.
    fn arrive(&mut self, from: SocketAddr, datagram: &mut [u8]) -> Option<Vec<u8>> {
        if self.history.len() < HISTORY && !datagram.is_empty() {
            self.history.push(datagram.to_vec());
        }
        let mut reply = [0; 128];
        match self.server.route(self.now, from, datagram, &mut reply) {
            Routed::Reply(length) => {
                assert!(length <= datagram.len(), "an answer is never larger than its request");
                assert_ne!(from.port(), 0);
                if let Ok(ServerHandshake::Cookie { cookie, .. }) = ServerHandshake::decode(&reply[..length])
                {
                    self.cookie = cookie;
                }
                Some(reply[..length].to_vec())
            }
            Routed::Session(slot) => {
                let session = self.server.session_mut(slot).expect("it was routed to it");
                let _ = session.connection.handle_from(self.now, from, datagram, &mut Deaf);
                None
            }
            Routed::Dropped(_) => None,
        }
    }

    fn check(&mut self) {
        let counters = *self.server.counters();
        assert!(counters.handshake_bytes_out <= counters.handshake_bytes_in);
        assert!(self.server.session_count() <= self.config.max_sessions);
        let unconfirmed =
            self.server.sessions_mut().filter(|(_, session)| !session.connection.is_confirmed()).count();
        assert!(unconfirmed <= self.config.max_half_open, "{unconfirmed} half-open sessions");
    }
}

/// One of a few addresses: of a network, of others, of both families, and one that cannot be.
fn address(script: &mut Script<'_>) -> Step<SocketAddr> {
    const ADDRESSES: [&str; 8] = [
        "198.51.100.1:4000",
        "198.51.100.1:4001",
        "198.51.100.2:4000",
        "203.0.113.9:4000",
        "[2001:db8::1]:4000",
        "[2001:db8:0:1::1]:4000",
        "127.0.0.1:4000",
        "198.51.100.1:0",
    ];
    Ok(ADDRESSES[script.below(ADDRESSES.len())?].parse().expect("an address"))
}

fn encoded<'b>(message: &ClientHandshake<'_>, buffer: &'b mut [u8; DATAGRAM_BYTES]) -> &'b mut [u8] {
    let mut writer = Writer::new(buffer);
    message.encode(&mut writer).expect("there is room");
    let length = writer.len();
    &mut buffer[..length]
}

/// Login tokens that are right but for what the script changes, beside a model of who may come in.
pub fn tokens(data: &[u8]) {
    within(HEAP_BYTES, || {
        let mut script = Script::new(data);
        let mut gate = Gate::new();
        while gate.step(&mut script).is_ok() {}
    });
}

/// A server that asks for tokens.
struct Gate {
    now: Time,
    server: Endpoint<()>,
    key: [u8; KEY_BYTES],
    rng: StdRng,
    signers: [TokenSigner; 2],
    identities: [Identity; 2],
    /// Tokens that were let in.
    used: BTreeSet<[u8; 16]>,
}

impl Gate {
    fn new() -> Self {
        let mut rng = StdRng::seed_from_u64(2);
        // The server knows the first.
        let signers = [TokenSigner::generate(&mut rng), TokenSigner::generate(&mut rng)];
        let unix_at_zero = Duration::from_secs(UNIX_AT_ZERO_S);
        let verifier = TokenVerifier::new(vec![signers[0].public_key()]);
        verifier.set_clock(Time::default(), unix_at_zero);
        let config = EndpointConfig { tokens: Some(Arc::new(verifier)), ..pair::small() };
        let (server, key, _) = pair::endpoint(config);
        let identities = [Identity::generate(&mut rng), Identity::generate(&mut rng)];
        Self { now: START, server, key, rng, signers, identities, used: BTreeSet::new() }
    }

    fn step(&mut self, script: &mut Script<'_>) -> Step {
        self.now = self.now + script.pause()?;
        self.server.on_timeout(self.now);
        let now_s = UNIX_AT_ZERO_S + self.now.as_millis() / 1_000;
        let issued_s = now_s.wrapping_add_signed(i64::from(script.u16()? as i16));
        let expires_s = issued_s.wrapping_add_signed(i64::from(script.u16()? as i16));
        let (signer, bearer, named) = (script.below(2)?, script.below(2)?, script.below(2)?);
        let token = LoginToken {
            id: [script.u8()?; 16],
            account: script.number()?,
            issued_s,
            expires_s,
            client_key: self.identities[named].public_key(),
        };
        let issued = self.signers[signer].issue(&token);
        let mut bytes = issued.to_vec();
        match script.u8()? % 4 {
            0 => bytes.truncate(usize::from(script.u8()?)),
            1 => bytes.extend_from_slice(script.bytes()?),
            2 => {
                for flip in script.bytes()?.chunks_exact(2) {
                    let place = usize::from(flip[0]) % bytes.len();
                    bytes[place] ^= flip[1];
                }
            }
            _ => {}
        }
        bytes.truncate(TOKEN_BYTES);
        let right = bytes == issued
            && signer == 0
            && bearer == named
            && (issued_s..issued_s.saturating_add(TOKEN_SECONDS_MAX + 1)).contains(&expires_s)
            && issued_s <= now_s + 30
            && now_s < expires_s
            && !self.used.contains(&token.id);
        let came_in = self.ask(self.identities[bearer].clone(), bytes);
        assert_eq!(came_in, right, "{token:?} at {now_s}");
        if came_in {
            self.used.insert(token.id);
            // It stays used, and makes room: a session that is never confirmed would give its token back.
            let slot = self.server.sessions_mut().next().expect("a session").0;
            self.server.remove(slot);
        }
        Ok(())
    }

    /// Whether the server accepts who comes with this token.
    fn ask(&mut self, identity: Identity, token: Vec<u8>) -> bool {
        let config =
            ConnectConfig { token: Some(token), identity: Some(identity), ..ConnectConfig::default() };
        let mut connecting = Connecting::new(config, self.key, &mut self.rng, self.now).expect("it is short");
        let mut buffer = [0; DATAGRAM_BYTES];
        for _ in 0..2 {
            let length = connecting.poll_transmit(self.now, &mut buffer).expect("a request");
            let mut reply = [0; 128];
            let routed = self.server.route(self.now, HOME, &buffer[..length], &mut reply);
            let Routed::Reply(length) = routed else { panic!("{routed:?}") };
            if connecting.handle(self.now, &reply[..length]).expect("an answer").is_some() {
                return true;
            }
        }
        false
    }
}

/// A client that is answered by somebody without the server's key, who sees all that it sends. There is never a
/// session.
pub fn connecting(data: &[u8]) {
    within(HEAP_BYTES, || {
        let mut script = Script::new(data);
        let mut rng = StdRng::seed_from_u64(3);
        let key = Identity::generate(&mut rng).public_key();
        let config = ConnectConfig { timeout: Duration::from_secs(60), ..ConnectConfig::default() };
        let client = Connecting::new(config, key, &mut rng, START).expect("a key");
        let mut siege = Siege { now: START, client, requests: 0 };
        while siege.step(&mut script).is_ok() {}
    });
}

struct Siege {
    now: Time,
    client: Connecting,
    requests: u64,
}

impl Siege {
    fn step(&mut self, script: &mut Script<'_>) -> Step {
        let mut buffer = [0; DATAGRAM_BYTES];
        let mut writer = Writer::new(&mut buffer);
        let echo = self.client.echo();
        match script.u8()? % 5 {
            0 => {
                let given = script.bytes()?;
                writer.bytes(&given[..given.len().min(DATAGRAM_BYTES)]).expect("there is room");
            }
            1 => {
                let mut cookie = [0; COOKIE_BYTES];
                cookie[..8].copy_from_slice(&script.array::<8>()?);
                ServerHandshake::Cookie { echo, cookie }.encode(&mut writer).expect("there is room");
            }
            2 => {
                let mut noise = [script.u8()?; NOISE_ACCEPTANCE_BYTES];
                for (byte, given) in noise.iter_mut().zip(script.bytes()?) {
                    *byte = *given;
                }
                let accepted = ServerHandshake::ConnectionAccepted { echo, noise: &noise };
                accepted.encode(&mut writer).expect("there is room");
            }
            3 => {
                let reason = DenyReason::from_code(script.u8()?);
                let denied = ServerHandshake::ConnectionDenied { echo, reason };
                denied.encode(&mut writer).expect("there is room");
            }
            _ => return self.time_passes(script),
        }
        let length = writer.len();
        let session = self.client.handle(self.now, &buffer[..length]);
        assert!(!matches!(session, Ok(Some(_))), "a session without the server's key");
        Ok(())
    }

    fn time_passes(&mut self, script: &mut Script<'_>) -> Step {
        self.now = self.now + script.pause()?;
        let over = self.client.on_timeout(self.now).is_err();
        let mut buffer = [0; DATAGRAM_BYTES];
        while let Some(length) = self.client.poll_transmit(self.now, &mut buffer) {
            assert!(!over && ClientHandshake::decode(&buffer[..length]).is_ok());
            self.requests += 1;
        }
        // Nobody can make it send faster than it would by itself but by one cookie in five seconds.
        let seconds = (self.now - START).as_secs();
        assert!(self.requests <= 8 + 4 * seconds, "{} requests in {seconds} s", self.requests);
        assert!(self.client.next_timeout().is_none_or(|next| next > self.now));
        Ok(())
    }
}
