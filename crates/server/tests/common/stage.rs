//! A server of one worker and its clients without sockets, threads and clock: whoever drives it decides how far a round gets.

use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shadowland_proto::{ConnectConfig, Connecting, Connection, Identity, Time};
use shadowland_server::config::Config;
use shadowland_server::embed::{Assembly, Outbox, assemble};

use super::Heard;

/// From one tick to the next.
pub(crate) const TICK: Duration = Duration::from_micros(16_667);

/// A round in which everybody is served.
pub(crate) const ALL: usize = usize::MAX;

/// A configuration for so many players.
pub(crate) fn config(players: usize) -> Config {
    let mut config = super::config(1, players);
    config.world.npcs = 0;
    config
}

/// Datagrams that left.
struct Sent {
    /// So many are taken a round.
    room: usize,
    slot: Box<[u8; 1200]>,
    datagrams: Vec<(SocketAddr, Vec<u8>)>,
}

impl Outbox for Sent {
    fn slot(&mut self) -> Option<&mut [u8; 1200]> {
        (self.datagrams.len() < self.room).then_some(&mut self.slot)
    }

    fn commit(&mut self, len: usize, to: SocketAddr) {
        self.datagrams.push((to, self.slot[..len].to_vec()));
    }
}

/// A client, and what it has heard.
pub(crate) struct Guest {
    pub(crate) at: SocketAddr,
    pub(crate) connection: Connection,
    pub(crate) heard: Heard,
}

/// All of it.
pub(crate) struct Stage {
    pub(crate) server: Assembly,
    pub(crate) now: Time,
    pub(crate) guests: Vec<Guest>,
    server_key: [u8; 32],
    rng: StdRng,
    sent: Sent,
}

impl Stage {
    pub(crate) fn new(config: &Config, rng: &mut StdRng) -> Self {
        let identity = Identity::generate(rng);
        Self {
            server_key: identity.public_key(),
            server: assemble(config, 1, &identity, rng),
            now: Time::from_micros(100_000_000),
            guests: Vec::new(),
            rng: StdRng::seed_from_u64(rng.next_u64()),
            sent: Sent { room: usize::MAX, slot: Box::new([0; 1200]), datagrams: Vec::new() },
        }
    }

    /// From now on the socket takes so many datagrams a round.
    pub(crate) fn limit(&mut self, room: usize) {
        self.sent.room = room;
    }

    /// One more client, up to its first sealed packet.
    pub(crate) fn connect(&mut self) {
        let number = self.guests.len() as u8;
        let at = SocketAddr::from(([10, 0, number, 1], 1_000));
        let mut client =
            Connecting::new(ConnectConfig::default(), self.server_key, &mut self.rng, self.now).unwrap();
        let mut buffer = [0; 1200];
        let connection = loop {
            let len = client.poll_transmit(self.now, &mut buffer).unwrap();
            let answer = self.deliver(at, &mut buffer[..len]);
            if let Some(connection) = client.handle(self.now, &answer).unwrap() {
                break connection;
            }
        };
        self.guests.push(Guest { at, connection, heard: Heard::default() });
        self.answer(self.guests.len() - 1);
    }

    /// The server gets what a client has to send now.
    pub(crate) fn answer(&mut self, guest: usize) {
        let mut buffer = [0; 1200];
        loop {
            let Guest { at, connection, .. } = &mut self.guests[guest];
            if connection.next_timeout().is_some_and(|due| self.now >= due) {
                connection.on_timeout(self.now);
            }
            let (at, Some(len)) = (*at, connection.poll_transmit(self.now, &mut buffer)) else { return };
            self.deliver(at, &mut buffer[..len]);
        }
    }

    fn deliver(&mut self, from: SocketAddr, bytes: &mut [u8]) -> Vec<u8> {
        self.sent.datagrams.clear();
        self.server.hubs[0].receive(self.now, from, bytes, &mut self.sent);
        self.sent.datagrams.pop().map(|(_, bytes)| bytes).unwrap_or_default()
    }

    /// A tick, and a round that serves so many sessions at most; what it sends.
    pub(crate) fn send_round(&mut self, most: usize) -> Vec<(SocketAddr, Vec<u8>)> {
        self.now = self.now + TICK;
        self.server.world.tick();
        let frame = self.server.world.publish();
        let hub = &mut self.server.hubs[0];
        self.sent.datagrams.clear();
        hub.hear_world(self.now);
        hub.start_round(self.now, frame, self.server.world.world().player_count());
        let mut served = 0;
        while hub.has_unserved() && served < most {
            hub.serve_next(self.now, &mut self.sent);
            served += 1;
        }
        hub.end_round(self.now);
        std::mem::take(&mut self.sent.datagrams)
    }

    /// The same, and its clients get it; which of them got something, each once for each datagram.
    pub(crate) fn round(&mut self, most: usize) -> Vec<usize> {
        let sent = self.send_round(most);
        let find = |to| self.guests.iter().position(|guest| guest.at == to).expect("a client's address");
        let to: Vec<usize> = sent.iter().map(|(to, _)| find(*to)).collect();
        for (guest, (_, mut bytes)) in std::iter::zip(&to, sent) {
            let Guest { connection, heard, .. } = &mut self.guests[*guest];
            connection.handle(self.now, &mut bytes, heard).unwrap();
        }
        to
    }
}
