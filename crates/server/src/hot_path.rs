//! The test that the hot threads allocate nothing once they have warmed up: the world's, with a game, and a worker's code,
//! with real sockets, from `recvmmsg` to `sendmmsg`. Here one thread does what they do, so that the counter, which counts
//! by thread, sees both and nothing else. The same under virtual time, on two workers: `simtest/tests/allocations.rs`.

use std::hint::black_box;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use allocation_counter::measure;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shadowland_client::{ConnectConfig, Input, Session};
use shadowland_proto::Identity;
use shadowland_udp::Options;
use shadowland_wire::limits::DATAGRAM_BYTES;
use shadowland_world::Frame;

use crate::config::Config;
use crate::control::Control;
use crate::embed::{Assembly, assemble};
use crate::game::{EntityId, EntityType, Game, GameWorld};
use crate::queue::{FrameSlot, FrameTaps};
use crate::schedule::Clock;
use crate::server::Ear;
use crate::stats::{Latencies, Shared, TickStats, WorkerStats};
use crate::worker::{Parts, RoundTime, Worker};
use crate::world_thread::{WorkerLink, WorldThread};

const PLAYERS: usize = 200;
/// What grows with the pages in use has reached its next power of two by then.
const WARM_UP_TICKS: usize = 1_200;
const TICKS: usize = 600;

/// A server's hot threads at rest.
struct HotPath {
    worker: Worker,
    world: WorldThread,
    frames: Arc<FrameSlot<Frame>>,
    stats: Arc<Shared<WorkerStats>>,
    latencies: Arc<Shared<Latencies>>,
    clock: Clock,
    address: SocketAddr,
}

impl HotPath {
    fn new(players: usize, identity: &Identity, rng: &mut StdRng) -> Self {
        let mut config = Config::default();
        config.session.max_players = players;
        config.world.player_capacity = players;
        config.world.entity_capacity = 1_000;
        config.world.set_density(players, 50.0, 100_000.0);
        let Assembly { mut hubs, mut world, mailbox: _ } = assemble(&config, 1, identity, rng);
        world.set_game(Busy::default());
        let options = Options { recv_buffer_bytes: Some(1 << 20), ..Options::default() };
        let socket = shadowland_udp::UdpSocket::bind(([127, 0, 0, 1], 0).into(), &options).unwrap();
        let address = socket.local_addr().unwrap();
        let Ear { poll, socket, waker } = Ear::new(socket).unwrap();
        let frames = Arc::new(FrameSlot::new());
        let stats = Arc::new(Shared::new(WorkerStats::default()));
        let latencies = Arc::new(Shared::new(Latencies::new()));
        let (clock, control) = (Clock::start(), Arc::new(Control::default()));
        let worker = Worker::new(Parts {
            poll,
            socket,
            hub: hubs.remove(0),
            handover: None,
            frames: Arc::clone(&frames),
            // Everybody is served in every tick, however slow the machine is.
            round_time: RoundTime { of_tick: Duration::from_secs(600), of_frame: Duration::ZERO },
            clock,
            tokens: None,
            control: Arc::clone(&control),
            stats: Arc::clone(&stats),
            latencies: Arc::clone(&latencies),
        });
        let links = vec![WorkerLink { frames: Arc::clone(&frames), waker }];
        let ticks = Arc::new(Shared::new(TickStats::new()));
        let world = WorldThread::new(world, links, Arc::new(FrameTaps::new()), clock, ticks, control);
        Self { worker, world, frames, stats, latencies, clock, address }
    }

    /// One tick, until its last datagram has left; returns what that allocated.
    fn tick(&mut self, careless: bool) -> u64 {
        let allocated = measure(|| {
            self.world.tick();
            if careless {
                drop(black_box(Box::new(1)));
            }
            self.worker.turn(Duration::ZERO);
            while self.worker.is_busy() {
                self.worker.turn(Duration::ZERO);
            }
        });
        allocated.count_total
    }
}

/// A game that has something to do in each tick.
#[derive(Default)]
struct Busy(Vec<EntityId>);

impl Game for Busy {
    fn tick(&mut self, world: &mut GameWorld<'_>) {
        if world.now() == 0 {
            let kinds = [EntityType::Vehicle, EntityType::Monster].into_iter().cycle();
            self.0.extend(kinds.take(40).map(|kind| world.spawn(kind, [0.0; 3]).unwrap()));
        }
        let angle = f64::from(world.now() % 360);
        for &id in &self.0 {
            let walk = Input { forward: 127, yaw: (angle * 182.0) as u16, ..Input::default() };
            let (sin, cos) = angle.to_radians().sin_cos();
            assert!(
                world.steer(id, [900.0 * cos, 900.0 * sin, 0.0], [angle, 0.0, 0.0]) || world.walk(id, walk)
            );
        }
        // One comes and one goes, no faster than indices have rested.
        if world.now().is_multiple_of(4) {
            let oldest = self.0.remove(0);
            self.0
                .push(world.spawn(world.kind(oldest).unwrap(), world.position_cm(oldest).unwrap()).unwrap());
            assert!(world.despawn(oldest) && world.players().count() == world.player_count());
        }
    }
}

struct Client {
    socket: UdpSocket,
    session: Session,
}

impl Client {
    fn tick(&mut self, clock: Clock, input: Input) {
        let Self { socket, session } = self;
        let mut buffer = [0; DATAGRAM_BYTES];
        loop {
            match socket.recv(&mut buffer) {
                Ok(len) => session.handle(clock.now(), &mut buffer[..len]).unwrap(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        let now = clock.now();
        if session.next_timeout().is_some_and(|at| now >= at) {
            session.on_timeout(now);
        }
        session.input(input);
        while let Some(len) = session.poll_transmit(now, &mut buffer) {
            socket.send(&buffer[..len]).unwrap();
        }
    }
}

/// Lets so many players play for so many ticks; returns what the server allocated in each.
fn server_with(players: usize, ticks: usize, careless: bool) -> (HotPath, Vec<u64>) {
    let mut rng = StdRng::seed_from_u64(1);
    let identity = Identity::generate(&mut rng);
    let mut server = HotPath::new(players, &identity, &mut rng);
    let mut clients: Vec<_> = (0..players)
        .map(|_| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(server.address).unwrap();
            socket.set_nonblocking(true).unwrap();
            let key = identity.public_key();
            let session = Session::new(ConnectConfig::default(), key, &mut rng, server.clock.now()).unwrap();
            Client { socket, session }
        })
        .collect();
    let mut allocations = Vec::new();
    for _ in 0..ticks {
        for client in &mut clients {
            let input = Input { forward: rng.random(), yaw: rng.random(), ..Input::default() };
            client.tick(server.clock, input);
        }
        allocations.push(server.tick(careless));
    }
    assert!(
        clients.iter().all(|client| client.session.welcome().is_some() && !client.session.is_over()),
        "everybody plays"
    );
    (server, allocations)
}

/// What the server allocates in each tick after the warm-up, while so many play.
fn play(players: usize, warm_up_ticks: usize, ticks: usize, careless: bool) -> Vec<u64> {
    let (server, mut allocations) = server_with(players, warm_up_ticks + ticks, careless);
    let stats = *server.stats.lock();
    let sent = (players * ticks) as u64;
    assert!(
        stats.snapshots >= sent && stats.datagrams_out >= sent && stats.datagrams_in >= sent,
        "{stats:?}"
    );
    assert!(server.latencies.lock().receive_us.len() >= sent);
    allocations.split_off(warm_up_ticks)
}

#[test]
fn two_hundred_players_on_real_sockets_cost_no_allocation() {
    let allocations = play(PLAYERS, WARM_UP_TICKS, TICKS, false);
    let guilty: Vec<_> = allocations.iter().enumerate().filter(|(_, count)| **count > 0).collect();
    assert_eq!(guilty, [], "ticks with allocations, and how many");
}

/// What the test above would say of a single allocation in a tick.
#[test]
fn a_single_allocation_in_a_tick_is_noticed() {
    let careless = play(20, 200, 100, true);
    assert!(careless.iter().all(|&count| count >= 1), "{careless:?}");
}

/// A worker that waits for nothing has taken the newest frame, though the wake for it came while a round was on.
#[test]
fn a_frame_that_comes_during_a_round_is_served_after_it() {
    let (mut server, _) = server_with(100, 300, false);
    // After many logins a turn serves more for a while.
    std::thread::sleep(crate::worker::FLOOD);
    server.world.tick();
    server.worker.turn(Duration::ZERO);
    assert!(server.worker.is_busy(), "a turn serves fewer than there are");
    server.world.tick();
    while server.worker.is_busy() {
        server.worker.turn(Duration::ZERO);
    }
    assert!(!server.frames.is_waiting());
}
