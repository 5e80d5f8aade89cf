//! A client of few lines over a real socket: the protocol without the client library, so that tests see every
//! byte.

#![allow(dead_code, reason = "each test file uses some of it")]

pub(crate) mod stage;

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use shadowland_proto::{
    CloseReason, ConnectConfig, ConnectError, Connecting, Connection, Receiver, State, Time,
};
use shadowland_server::config::Config;
use shadowland_wire::codec::Reader;
use shadowland_wire::message::client::{Input, InputMessage};
use shadowland_wire::message::server::{SnapshotHeader, Welcome};
use shadowland_wire::message::{ClientType, ServerType};

/// A configuration for tests: any free port of the loopback interface, a small world.
pub(crate) fn config(workers: usize, max_players: usize) -> Config {
    let mut config = Config::default();
    config.network.listen = "127.0.0.1:0".parse().unwrap();
    config.network.workers = workers;
    config.session.max_players = max_players;
    config.world.player_capacity = max_players;
    config.world.map.size_cm = 20_000.0;
    config.world.npcs = 10;
    config
}

/// What a client has been told.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) welcome: Option<Welcome>,
    pub(crate) snapshots: usize,
    pub(crate) last: Option<SnapshotHeader>,
}

impl Receiver for Heard {
    fn message(&mut self, kind: u8, body: &[u8]) {
        match ServerType::from_byte(kind).expect("a known message") {
            ServerType::Welcome => {
                assert!(self.welcome.is_none(), "one welcome");
                self.welcome = Some(Welcome::decode(body).unwrap());
            }
            ServerType::Snapshot => {
                let mut reader = Reader::new(body);
                let header = SnapshotHeader::decode(&mut reader, self.last.as_ref()).unwrap();
                self.snapshots += 1;
                if header.owner.is_some() && self.last.is_none_or(|last| last.tick < header.tick) {
                    self.last = Some(header);
                }
            }
        }
    }

    fn acked(&mut self, _sequence: u64) {}
}

/// A connected client.
pub(crate) struct Client {
    pub(crate) connection: Connection,
    pub(crate) heard: Heard,
    /// Every datagram that came after the handshake, as it was on the wire.
    pub(crate) datagrams: Vec<Vec<u8>>,
    pub(crate) socket: UdpSocket,
    start: Instant,
    input: u32,
}

impl Client {
    pub(crate) fn connect(
        server: SocketAddr,
        key: [u8; 32],
        seed: u64,
        config: ConnectConfig,
    ) -> Result<Self, ConnectError> {
        let socket = UdpSocket::bind(if server.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" }).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let start = Instant::now();
        let mut connecting = Connecting::new(config, key, &mut StdRng::seed_from_u64(seed), Time::default())?;
        let mut buffer = [0; 1200];
        loop {
            let now = Time::default() + start.elapsed();
            connecting.on_timeout(now)?;
            while let Some(len) = connecting.poll_transmit(now, &mut buffer) {
                socket.send(&buffer[..len]).unwrap();
            }
            let Ok(len) = socket.recv(&mut buffer) else { continue };
            if let Ok(Some(connection)) = connecting.handle(Time::default() + start.elapsed(), &buffer[..len])
            {
                let heard = Heard::default();
                return Ok(Self { connection, heard, datagrams: Vec::new(), socket, start, input: 0 });
            }
        }
    }

    pub(crate) fn now(&self) -> Time {
        Time::default() + self.start.elapsed()
    }

    /// Receives for some milliseconds, sends what is due, and an input if one is given.
    pub(crate) fn step(&mut self, input: Option<Input>) {
        let mut buffer = [0; 1200];
        while let Ok(len) = self.socket.recv(&mut buffer) {
            self.datagrams.push(buffer[..len].to_vec());
            let now = self.now();
            // Repeated handshake answers are not packets of the session.
            let _ = self.connection.handle(now, &mut buffer[..len], &mut self.heard);
        }
        let now = self.now();
        if self.connection.next_timeout().is_some_and(|at| now >= at) {
            self.connection.on_timeout(now);
        }
        if let Some(input) = input
            && let Some(mut packet) = self.connection.packet(now, &mut buffer)
        {
            self.input += 1;
            let message = InputMessage::new(self.input, &[input]);
            packet.message(ClientType::Input as u8, |writer| message.encode(writer)).unwrap();
            let len = packet.finish().len;
            self.send(&buffer[..len]);
        }
        while let Some(len) = self.connection.poll_transmit(now, &mut buffer) {
            self.send(&buffer[..len]);
        }
    }

    fn send(&self, bytes: &[u8]) {
        // Refused when the server is gone: as good as lost.
        let _ = self.socket.send(bytes);
    }

    /// Steps until `done`, for five seconds at most.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let give_up = Instant::now() + Duration::from_secs(5);
        while !done(self) {
            assert!(Instant::now() < give_up, "not within five seconds: {what}; {:?}", self.heard);
            self.step(None);
        }
    }

    pub(crate) fn close_reason(&self) -> Option<CloseReason> {
        match self.connection.state() {
            State::Closed(reason) => Some(reason),
            _ => None,
        }
    }
}
