//! Once it has warmed up, a server with 200 players allocates nothing: not for what comes in, not for a tick, not
//! for what goes out. Only allocations made while the server's code runs are counted; the cipher library's own, in
//! C, are not seen.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};

use allocation_counter::measure;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shadowland_client::{ConnectConfig, Input, Session};
use shadowland_proto::{Identity, Time};
use shadowland_server::config::Config;
use shadowland_server::embed::Guards;
use shadowland_simtest::TICK_US;
use shadowland_simtest::machine::{Hiccups, Machine};
use shadowland_wire::limits::DATAGRAM_BYTES;

const PLAYERS: u16 = 200;
const FIRST_PORT: u16 = 10_000;
/// What grows with the pages in use has reached its next power of two by then.
const WARM_UP_TICKS: u64 = 1_200;
const TICKS: u64 = 600;

/// A datagram to or from a player.
struct Mail {
    player: usize,
    len: usize,
    bytes: [u8; DATAGRAM_BYTES],
}

fn mail(player: usize, datagram: &[u8]) -> Mail {
    let mut bytes = [0; DATAGRAM_BYTES];
    bytes[..datagram.len()].copy_from_slice(datagram);
    Mail { player, len: datagram.len(), bytes }
}

fn address(player: usize) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST_PORT + player as u16))
}

/// Sends what the player has to send.
fn drain(player: usize, session: &mut Session, now: Time, to_server: &mut Vec<Mail>) {
    let mut buffer = [0; DATAGRAM_BYTES];
    while let Some(len) = session.poll_transmit(now, &mut buffer) {
        to_server.push(mail(player, &buffer[..len]));
    }
}

/// One tick of the server, and of everybody else; returns what the server allocated. If it is careless, the first
/// datagram of the tick costs it an allocation.
fn step(
    machine: &mut Machine,
    sessions: &mut [Session],
    mailboxes: &mut [Vec<Mail>; 2],
    now_us: u64,
    random: &mut StdRng,
    careless: bool,
) -> u64 {
    let now = Time::from_micros(now_us);
    let [to_server, to_players] = mailboxes;
    let allocated = measure(|| {
        let mut deliver = |to: SocketAddr, datagram: &[u8]| {
            assert!(to_players.len() < to_players.capacity(), "the mailbox is large enough");
            if careless && to_players.is_empty() {
                drop(black_box(Box::new(datagram.len())));
            }
            to_players.push(mail(usize::from(to.port() - FIRST_PORT), datagram));
        };
        for mail in to_server.iter_mut() {
            machine.receive(now_us, address(mail.player), &mut mail.bytes[..mail.len], &mut deliver);
        }
        machine.tick();
        machine.work(now_us, &mut deliver);
    });
    to_server.clear();
    for mut mail in to_players.drain(..) {
        let session = &mut sessions[mail.player];
        session.handle(now, &mut mail.bytes[..mail.len]).unwrap();
        drain(mail.player, session, now, to_server);
    }
    for (player, session) in sessions.iter_mut().enumerate() {
        if session.next_timeout().is_some_and(|at| now >= at) {
            session.on_timeout(now);
        }
        session.input(Input { forward: random.random(), yaw: random.random(), ..Input::default() });
        drain(player, session, now, to_server);
    }
    allocated.count_total
}

/// Lets so many players play; returns what the server allocated in each tick after the warm-up.
fn play(players: u16, warm_up_ticks: u64, ticks: u64, careless: bool) -> Vec<u64> {
    let mut random = StdRng::seed_from_u64(1);
    let identity = Identity::generate(&mut random);
    let mut config = Config::default();
    config.session.max_players = usize::from(players);
    config.world.player_capacity = usize::from(players);
    config.world.entity_capacity = 1_000;
    config.world.set_density(usize::from(players), 50.0, 100_000.0);
    let mut machine = Machine::new(&config, 2, &identity, &Guards::default(), Hiccups::NONE, 1);
    let mut sessions: Vec<_> = (0..players)
        .map(|_| {
            let (config, start) = (ConnectConfig::default(), Time::from_micros(0));
            Session::new(config, identity.public_key(), &mut random, start).unwrap()
        })
        .collect();
    let mut mailboxes = [Vec::with_capacity(8_192), Vec::with_capacity(8_192)];
    let mut allocations = Vec::new();
    for tick in 0..warm_up_ticks + ticks {
        let now_us = tick * TICK_US;
        allocations.push(step(&mut machine, &mut sessions, &mut mailboxes, now_us, &mut random, careless));
    }
    assert!(sessions.iter().all(|session| session.welcome().is_some() && !session.is_over()));
    assert_eq!(machine.world().world().player_count(), usize::from(players));
    let snapshots: u64 = machine.hubs().map(|hub| hub.stats().snapshots).sum();
    assert!(snapshots > u64::from(players) * ticks, "{snapshots} snapshots");
    allocations.split_off(warm_up_ticks as usize)
}

#[test]
fn two_hundred_players_cost_no_allocation() {
    let allocations = play(PLAYERS, WARM_UP_TICKS, TICKS, false);
    let guilty: Vec<_> = allocations.iter().enumerate().filter(|(_, count)| **count > 0).collect();
    assert_eq!(guilty, [], "ticks with allocations, and how many");
}

/// What the test above would say of a single allocation in a tick: the same world again, with a deliberate one.
#[test]
fn a_single_allocation_in_a_tick_is_noticed() {
    let [careful, careless] = [false, true].map(|careless| play(20, 200, 100, careless));
    assert!(careful.iter().zip(&careless).all(|(careful, careless)| careless - careful == 1), "{careless:?}");
}
