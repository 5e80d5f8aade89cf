//! Sessions whose datagrams share one link, under virtual time: what the profiles for reliable messages and the
//! measurements of congestion control drive. Time goes from event to event.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg32;
use shadowland_client::conditioner::{Conditioner, Conditions};
use shadowland_proto::{
    ConnectConfig, Connecting, Connection, Endpoint, EndpointConfig, Identity, Receiver, Routed, Slot, State,
    Time, TransportConfig,
};
use shadowland_wire::limits::DATAGRAM_BYTES;

use crate::Violation;

/// The clients' address: their datagrams never meet.
const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 4_000);
/// Sessions start here: not at zero, which stands for "never" in places.
const START: Time = Time::from_micros(100_000_000);

/// An end of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that connected.
    Client,
    /// The other one.
    Server,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Client, Self::Server];

    /// The other end.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// What an end has received.
#[derive(Debug, Default)]
pub struct Inbox {
    /// Type, body and time of every message, in the order of their delivery.
    pub messages: Vec<(u8, Vec<u8>, Time)>,
    now: Time,
}

impl Receiver for Inbox {
    fn message(&mut self, kind: u8, body: &[u8]) {
        self.messages.push((kind, body.to_vec(), self.now));
    }
    fn acked(&mut self, _sequence: u64) {}
}

struct Session {
    client: Connection,
    endpoint: Endpoint<()>,
    slot: Slot,
    inboxes: [Inbox; 2],
}

/// The sessions and their link.
pub struct Net {
    /// The time.
    pub now: Time,
    /// From the clients, and from the servers.
    pub links: [Conditioner<(usize, Vec<u8>)>; 2],
    sessions: Vec<Session>,
    rng: StdRng,
}

impl Net {
    /// No session yet.
    #[must_use]
    pub fn new(seed: u64, up: Conditions, down: Conditions) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut link = |conditions| Conditioner::new(conditions, Pcg32::seed_from_u64(rng.next_u64()));
        Self { now: START, links: [link(up), link(down)], sessions: Vec::new(), rng }
    }

    /// Adds a session. Its handshake passes the link by.
    ///
    /// # Errors
    /// When the handshake fails.
    pub fn join(&mut self, transport: &TransportConfig) -> Result<usize, Violation> {
        let identity = Identity::generate(&mut self.rng);
        let key = identity.public_key();
        let config =
            EndpointConfig { max_sessions: 1, transport: transport.clone(), ..EndpointConfig::default() };
        let mut endpoint = Endpoint::new(config, identity, &[5; 32], &mut self.rng);
        let connect = ConnectConfig { transport: transport.clone(), ..ConnectConfig::default() };
        let mut connecting = Connecting::new(connect, key, &mut self.rng, self.now).map_err(violation)?;
        let (mut buffer, mut reply) = ([0; DATAGRAM_BYTES], [0; DATAGRAM_BYTES]);
        let client = loop {
            let Some(length) = connecting.poll_transmit(self.now, &mut buffer) else {
                return Err(violation("the handshake is stuck"));
            };
            let routed = endpoint.route(self.now, CLIENT, &buffer[..length], &mut reply);
            let Routed::Reply(length) = routed else { return Err(violation(format!("{routed:?}"))) };
            let accepted = connecting.handle(self.now, &reply[..length]);
            if let Some(connection) = accepted.map_err(violation)? {
                break connection;
            }
        };
        let Some((slot, _)) = endpoint.sessions_mut().next() else {
            return Err(violation("there is no session"));
        };
        self.sessions.push(Session { client, endpoint, slot, inboxes: Default::default() });
        Ok(self.sessions.len() - 1)
    }

    /// How many sessions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// An end of a session.
    pub fn connection(&mut self, session: usize, side: Side) -> &mut Connection {
        self.sessions[session].connection(side)
    }

    /// What an end of a session has received.
    pub fn inbox(&mut self, session: usize, side: Side) -> &mut Inbox {
        &mut self.sessions[session].inboxes[side as usize]
    }

    /// Whether both ends can send.
    pub fn is_established(&mut self, session: usize) -> bool {
        Side::BOTH.into_iter().all(|side| self.connection(session, side).state() == State::Established)
    }

    /// Sends an unreliable message in a packet of its own.
    pub fn say(&mut self, session: usize, side: Side, kind: u8, body: &[u8]) {
        let now = self.now;
        let mut buffer = [0; DATAGRAM_BYTES];
        let Some(mut packet) = self.connection(session, side).packet(now, &mut buffer) else { return };
        if packet.message(kind, |writer| writer.bytes(body)).is_ok() {
            let length = packet.finish().len;
            self.links[side as usize].send(now, length, (session, buffer[..length].to_vec()));
        }
    }

    /// Lets everything happen up to a point of time.
    pub fn run_until(&mut self, end: Time) {
        self.transmit();
        loop {
            let timeouts = self.sessions.iter_mut().flat_map(|session| session.next_timeouts());
            let links = self.links.iter().filter_map(Conditioner::next_arrival);
            // What is overdue could not be helped at once: a moment later, so that time passes.
            let next = timeouts.chain(links).min().unwrap_or(end).max(self.now + Duration::from_micros(100));
            if next > end {
                self.now = end;
                return;
            }
            self.now = next;
            self.arrivals();
            for session in &mut self.sessions {
                session.on_timeout(next);
            }
            self.transmit();
        }
    }

    /// Lets so much time pass.
    pub fn run(&mut self, duration: Duration) {
        self.run_until(self.now + duration);
    }

    fn arrivals(&mut self) {
        for side in Side::BOTH {
            while let Some((session, mut datagram)) = self.links[side as usize].receive(self.now) {
                self.sessions[session].receive(self.now, side.other(), &mut datagram);
            }
        }
    }

    /// Takes from everybody in turn what may leave now.
    fn transmit(&mut self) {
        let mut buffer = [0; DATAGRAM_BYTES];
        for side in Side::BOTH {
            let mut busy = true;
            while std::mem::take(&mut busy) {
                for (number, session) in self.sessions.iter_mut().enumerate() {
                    if let Some(length) = session.connection(side).poll_transmit(self.now, &mut buffer) {
                        busy = true;
                        self.links[side as usize].send(self.now, length, (number, buffer[..length].to_vec()));
                    }
                }
            }
        }
    }
}

impl Session {
    fn connection(&mut self, side: Side) -> &mut Connection {
        match side {
            Side::Client => &mut self.client,
            Side::Server => {
                &mut self.endpoint.session_mut(self.slot).expect("it is never removed").connection
            }
        }
    }

    fn next_timeouts(&mut self) -> Vec<Time> {
        Side::BOTH.into_iter().filter_map(|side| self.connection(side).next_timeout()).collect()
    }

    fn on_timeout(&mut self, now: Time) {
        for side in Side::BOTH {
            let connection = self.connection(side);
            if connection.next_timeout().is_some_and(|at| at <= now) {
                connection.on_timeout(now);
            }
        }
    }

    fn receive(&mut self, now: Time, side: Side, datagram: &mut [u8]) {
        let mut inbox = std::mem::take(&mut self.inboxes[side as usize]);
        inbox.now = now;
        // What is dropped is counted by the connection.
        let _ = self.connection(side).handle(now, datagram, &mut inbox);
        self.inboxes[side as usize] = inbox;
    }
}

fn violation(what: impl ToString) -> Violation {
    Violation(what.to_string())
}
