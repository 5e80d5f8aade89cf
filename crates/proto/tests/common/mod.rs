//! A server's endpoint, clients, a virtual clock, and a link that loses, delays, repeats and reorders by a seed.
//! Every datagram that was ever sent is kept, so that tests can look at the bytes.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use shadowland_proto::{
    ConnectConfig, ConnectError, Connecting, Connection, DropReason, Endpoint, EndpointConfig, Identity,
    Receiver, Routed, Slot, State, Time,
};

pub(crate) const STEP: Duration = Duration::from_millis(1);

/// How bad the link is. Probabilities are per datagram.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) loss: f64,
    pub(crate) duplicates: f64,
    pub(crate) delay: Duration,
    /// Each datagram takes up to so much longer: above a few milliseconds it reorders.
    pub(crate) jitter: Duration,
}

pub(crate) const PERFECT: Link =
    Link { loss: 0.0, duplicates: 0.0, delay: Duration::ZERO, jitter: Duration::ZERO };

pub(crate) const BAD: Link =
    Link { loss: 0.2, duplicates: 0.05, delay: Duration::from_millis(50), jitter: Duration::from_millis(60) };

/// What an application got from its connection.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) messages: Vec<(u8, Vec<u8>)>,
    pub(crate) acked: Vec<u64>,
    /// The application takes no more reliable messages.
    pub(crate) full: bool,
}

impl Receiver for Log {
    fn message(&mut self, kind: u8, body: &[u8]) {
        self.messages.push((kind, body.to_vec()));
    }
    fn has_room(&self, _kind: u8, _bytes: usize) -> bool {
        !self.full
    }
    fn acked(&mut self, sequence: u64) {
        self.acked.push(sequence);
    }
}

pub(crate) enum Phase {
    Connecting(Box<Connecting>),
    Connected(Box<Connection>),
    Failed(ConnectError),
}

pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    pub(crate) phase: Phase,
    pub(crate) log: Log,
    pub(crate) dropped: Vec<DropReason>,
}

impl Client {
    pub(crate) fn connection(&mut self) -> &mut Connection {
        match &mut self.phase {
            Phase::Connected(connection) => connection,
            _ => panic!("not connected"),
        }
    }

    pub(crate) fn state(&self) -> Option<State> {
        match &self.phase {
            Phase::Connected(connection) => Some(connection.state()),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum To {
    Server { from: SocketAddr },
    Client { at: SocketAddr },
}

pub(crate) struct Net {
    pub(crate) now: Time,
    pub(crate) rng: StdRng,
    pub(crate) link: Link,
    pub(crate) server: Endpoint<Log>,
    pub(crate) server_key: [u8; 32],
    pub(crate) clients: Vec<Client>,
    /// Whether the server process is there at all.
    pub(crate) server_up: bool,
    /// Datagrams that are lost whatever the link is like.
    pub(crate) lose: fn(&[u8]) -> bool,
    /// Everything that was ever sent.
    pub(crate) sent: Vec<(To, Vec<u8>)>,
    in_flight: BTreeMap<(Time, u64), (To, Vec<u8>)>,
    number: u64,
}

impl Net {
    pub(crate) fn new(seed: u64, link: Link, config: EndpointConfig) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let identity = Identity::generate(&mut rng);
        let server_key = identity.public_key();
        Self {
            // Not zero, and not at the start of a cookie epoch.
            now: Time::from_micros(100_000_000),
            server: Endpoint::new(config, identity, &[5; 32], &mut rng),
            server_key,
            link,
            clients: Vec::new(),
            server_up: true,
            lose: |_| false,
            sent: Vec::new(),
            in_flight: BTreeMap::new(),
            number: 0,
            rng,
        }
    }

    /// A server and one client that are connected.
    pub(crate) fn connected(seed: u64, link: Link) -> Self {
        Self::connected_to(seed, link, EndpointConfig::default())
    }

    /// The same with another server.
    pub(crate) fn connected_to(seed: u64, link: Link, config: EndpointConfig) -> Self {
        let mut net = Self::new(seed, link, config);
        net.join(ConnectConfig::default());
        net.run_until(Duration::from_secs(10), |net| net.all_established());
        net
    }

    pub(crate) fn join(&mut self, config: ConnectConfig) -> usize {
        self.join_towards(config, self.server_key)
    }

    pub(crate) fn join_towards(&mut self, config: ConnectConfig, server_key: [u8; 32]) -> usize {
        let index = self.clients.len();
        let connecting = Connecting::new(config, server_key, &mut self.rng, self.now).unwrap();
        self.clients.push(Client {
            address: format!("198.51.{}.{}:4000", index / 250, index % 250 + 1).parse().unwrap(),
            phase: Phase::Connecting(Box::new(connecting)),
            log: Log::default(),
            dropped: Vec::new(),
        });
        index
    }

    pub(crate) fn slots(&mut self) -> Vec<Slot> {
        self.server.sessions_mut().map(|(slot, _)| slot).collect()
    }

    /// The server's side of the only session.
    pub(crate) fn session(&mut self) -> &mut shadowland_proto::Session<Log> {
        self.server.sessions_mut().next().expect("there is a session").1
    }

    /// What the server's side of the only session has received.
    pub(crate) fn server_log(&mut self) -> &mut Log {
        self.session().data.get_or_insert_default()
    }

    pub(crate) fn all_established(&mut self) -> bool {
        let clients = self.clients.iter().all(|client| client.state() == Some(State::Established));
        clients
            && self.server.sessions_mut().all(|(_, session)| session.connection.state() == State::Established)
    }

    pub(crate) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.step();
        }
    }

    /// Runs until `done`; panics when that takes longer than `limit`.
    pub(crate) fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) {
        let end = self.now + limit;
        while !done(self) {
            assert!(self.now < end, "not done after {limit:?}");
            self.step();
        }
    }

    pub(crate) fn step(&mut self) {
        self.now = self.now + STEP;
        while let Some(entry) = self.in_flight.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let (to, mut bytes) = entry.remove();
            self.deliver(to, &mut bytes);
        }
        self.time_passes();
        self.drain();
    }

    /// Hands a datagram to its receiver, past the link.
    pub(crate) fn deliver(&mut self, to: To, bytes: &mut [u8]) {
        match to {
            To::Server { from } if self.server_up => self.deliver_to_server(from, bytes),
            To::Server { .. } => {}
            To::Client { at } => {
                let Some(client) = self.clients.iter_mut().find(|client| client.address == at) else {
                    return;
                };
                let result = match &mut client.phase {
                    Phase::Connected(connection) => connection.handle(self.now, bytes, &mut client.log),
                    Phase::Connecting(connecting) => connecting.handle(self.now, bytes).map(|connection| {
                        if let Some(connection) = connection {
                            client.phase = Phase::Connected(Box::new(connection));
                        }
                    }),
                    Phase::Failed(_) => Ok(()),
                };
                client.dropped.extend(result.err());
            }
        }
    }

    fn deliver_to_server(&mut self, from: SocketAddr, bytes: &mut [u8]) {
        let mut reply = [0; 128];
        match self.server.route(self.now, from, bytes, &mut reply) {
            Routed::Dropped(_) => {}
            Routed::Reply(length) => self.transmit(To::Client { at: from }, &reply[..length]),
            Routed::Session(slot) => {
                let session = self.server.session_mut(slot).unwrap();
                let log = session.data.get_or_insert_default();
                if let Err(reason) = session.connection.handle_from(self.now, from, bytes, log) {
                    self.server.count_drop(reason);
                }
            }
        }
    }

    fn time_passes(&mut self) {
        let now = self.now;
        let due = |at: Option<Time>| at.is_some_and(|at| at <= now);
        for client in &mut self.clients {
            match &mut client.phase {
                Phase::Connecting(connecting) if due(connecting.next_timeout()) => {
                    if let Err(error) = connecting.on_timeout(now) {
                        client.phase = Phase::Failed(error);
                    }
                }
                Phase::Connected(connection) if due(connection.next_timeout()) => connection.on_timeout(now),
                _ => {}
            }
        }
        for (_, session) in self.server.sessions_mut() {
            if due(session.connection.next_timeout()) {
                session.connection.on_timeout(now);
            }
        }
        if due(self.server.next_timeout()) {
            self.server.on_timeout(now);
        }
    }

    /// Takes from everybody what must be sent.
    pub(crate) fn drain(&mut self) {
        let mut buffer = [0; 1200];
        let mut out = Vec::new();
        for client in &mut self.clients {
            let to = To::Server { from: client.address };
            while let Some(length) = match &mut client.phase {
                Phase::Connecting(connecting) => connecting.poll_transmit(self.now, &mut buffer),
                Phase::Connected(connection) => connection.poll_transmit(self.now, &mut buffer),
                Phase::Failed(_) => None,
            } {
                out.push((to, buffer[..length].to_vec()));
            }
        }
        if self.server_up {
            for (_, session) in self.server.sessions_mut() {
                let to = To::Client { at: session.connection.address().unwrap() };
                while let Some(length) = session.connection.poll_transmit(self.now, &mut buffer) {
                    out.push((to, buffer[..length].to_vec()));
                }
                while let Some((length, at)) = session.connection.poll_probe(self.now, &mut buffer) {
                    out.push((To::Client { at }, buffer[..length].to_vec()));
                }
            }
        }
        for (to, bytes) in out {
            self.transmit(to, &bytes);
        }
    }

    /// Puts a datagram on the link.
    pub(crate) fn transmit(&mut self, to: To, bytes: &[u8]) {
        self.sent.push((to, bytes.to_vec()));
        let copies = 1 + usize::from(self.rng.random_bool(self.link.duplicates));
        for _ in 0..copies {
            if self.rng.random_bool(self.link.loss) || (self.lose)(bytes) {
                continue;
            }
            let jitter_us = self.link.jitter.as_micros() as u64;
            let extra = if jitter_us == 0 { 0 } else { self.rng.next_u64() % jitter_us };
            let at = self.now + self.link.delay + Duration::from_micros(extra);
            self.number += 1;
            self.in_flight.insert((at, self.number), (to, bytes.to_vec()));
        }
    }

    /// One unreliable message from client `index`, in a packet of its own; its sequence.
    pub(crate) fn client_says(&mut self, index: usize, kind: u8, body: &[u8]) -> u64 {
        let mut buffer = [0; 1200];
        let now = self.now;
        let client = &mut self.clients[index];
        let from = client.address;
        let mut packet = client.connection().packet(now, &mut buffer).expect("it is established");
        packet.message(kind, |writer| writer.bytes(body)).unwrap();
        let sent = packet.finish();
        self.transmit(To::Server { from }, &buffer[..sent.len]);
        sent.sequence
    }

    /// One unreliable message from the server to its only session.
    pub(crate) fn server_says(&mut self, kind: u8, body: &[u8]) -> u64 {
        let mut buffer = [0; 1200];
        let now = self.now;
        let session = self.session();
        let at = session.connection.address().unwrap();
        let mut packet = session.connection.packet(now, &mut buffer).expect("it is established");
        packet.message(kind, |writer| writer.bytes(body)).unwrap();
        let sent = packet.finish();
        self.transmit(To::Client { at }, &buffer[..sent.len]);
        sent.sequence
    }
}
