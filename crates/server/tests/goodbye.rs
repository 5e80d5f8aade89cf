//! How a session ends at the server: without a socket, so that nothing depends on time.

use std::net::SocketAddr;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use shadowland_proto::{ConnectConfig, Connecting, Connection, Identity, Receiver, State, Time};
use shadowland_server::config::Config;
use shadowland_server::embed::{Assembly, Outbox, assemble};

const SESSIONS: usize = 40;

struct Nobody;

impl Receiver for Nobody {
    fn message(&mut self, _kind: u8, _body: &[u8]) {}
    fn acked(&mut self, _sequence: u64) {}
}

/// Takes so many datagrams a round.
struct Sent {
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

struct Stage {
    server: Assembly,
    now: Time,
    sent: Sent,
}

impl Stage {
    fn deliver(&mut self, from: SocketAddr, bytes: &mut [u8]) -> Vec<u8> {
        self.sent.datagrams.clear();
        self.server.hubs[0].receive(self.now, from, bytes, &mut self.sent);
        self.sent.datagrams.pop().map(|(_, bytes)| bytes).unwrap_or_default()
    }

    fn connect(&mut self, from: SocketAddr, server_key: [u8; 32], rng: &mut StdRng) -> Connection {
        let mut client = Connecting::new(ConnectConfig::default(), server_key, rng, self.now).unwrap();
        let mut buffer = [0; 1200];
        let mut connection = loop {
            let len = client.poll_transmit(self.now, &mut buffer).unwrap();
            let answer = self.deliver(from, &mut buffer[..len]);
            if let Some(connection) = client.handle(self.now, &answer).unwrap() {
                break connection;
            }
        };
        let len = connection.poll_transmit(self.now, &mut buffer).unwrap();
        self.deliver(from, &mut buffer[..len]);
        connection
    }

    /// A tick, and what it sends.
    fn round(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        self.now = self.now + Duration::from_micros(16_667);
        self.server.world.tick();
        let frame = self.server.world.publish();
        let hub = &mut self.server.hubs[0];
        self.sent.datagrams.clear();
        hub.hear_world(self.now);
        hub.start_round(self.now, frame, self.server.world.world().player_count());
        while hub.has_unserved() {
            hub.serve_next(self.now, &mut self.sent);
        }
        hub.end_round(self.now);
        std::mem::take(&mut self.sent.datagrams)
    }
}

fn stage(rng: &mut StdRng) -> (Stage, Vec<(SocketAddr, Connection)>) {
    let mut config = Config::default();
    config.session.max_players = SESSIONS;
    config.world.player_capacity = SESSIONS;
    config.world.npcs = 0;
    config.session.idle_timeout = Duration::from_secs(6);
    let identity = Identity::generate(rng);
    let server_key = identity.public_key();
    let server = assemble(&config, 1, &identity, rng);
    let sent = Sent { room: usize::MAX, slot: Box::new([0; 1200]), datagrams: Vec::new() };
    let mut stage = Stage { server, now: Time::from_micros(100_000_000), sent };
    let clients = (0..SESSIONS)
        .map(|number| {
            let from = SocketAddr::from(([10, 0, number as u8, 1], 1_000));
            (from, stage.connect(from, server_key, rng))
        })
        .collect();
    (stage, clients)
}

/// All of them go silent at the same time.
#[test]
fn sessions_that_end_are_told_three_times_and_forgotten() {
    let mut rng = StdRng::seed_from_u64(1);
    let (mut stage, mut clients) = stage(&mut rng);
    for _ in 0..3 {
        for (to, mut bytes) in stage.round() {
            let client = clients.iter_mut().find(|(at, _)| *at == to).unwrap();
            client.1.handle(stage.now, &mut bytes, &mut Nobody).unwrap();
        }
    }
    assert!(clients.iter().all(|(_, client)| client.state() == State::Established));
    assert_eq!(stage.server.world.world().player_count(), SESSIONS);

    stage.now = stage.now + Duration::from_secs(7);
    let rounds: Vec<_> = (0..4).map(|_| stage.round().len()).collect();
    assert_eq!(rounds, [SESSIONS, SESSIONS, SESSIONS, 0]);
    assert_eq!(stage.server.hubs[0].stats().sessions, 0);
    // The tick after the last round takes them out of the world.
    stage.round();
    stage.round();
    assert_eq!(stage.server.world.world().player_count(), 0);
}

/// A socket that takes little: goodbyes wait for room, in no more places than the sessions had.
#[test]
fn goodbyes_that_find_no_room_keep_nothing_but_their_session() {
    let mut rng = StdRng::seed_from_u64(2);
    let (mut stage, _clients) = stage(&mut rng);
    stage.now = stage.now + Duration::from_secs(7);
    stage.sent.room = 1;
    let (mut rounds, mut goodbyes) = (0, 0);
    while stage.server.hubs[0].stats().sessions > 0 {
        goodbyes += stage.round().len();
        rounds += 1;
        assert!(rounds <= 4 * SESSIONS, "{} sessions are left", stage.server.hubs[0].stats().sessions);
    }
    assert_eq!(goodbyes, 3 * SESSIONS);
    assert_eq!(stage.server.hubs[0].stats().lost, SESSIONS as u64);
}
