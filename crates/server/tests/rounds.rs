//! Rounds that end before everybody was served, as those of a worker that has too much to do: without sockets, threads and
//! clock, so that nothing depends on time.

mod common;

use common::stage::{ALL, Stage, config};
use rand::SeedableRng;
use rand::rngs::StdRng;
use shadowland_proto::DisconnectReason;
use shadowland_server::config::Config;
use shadowland_server::mail::{Mail, Recipient};

const PLAYERS: usize = 30;

/// So many players who are in the world, and no round put off so far.
fn playing(config: &Config, players: usize, seed: u64) -> Stage {
    let mut stage = Stage::new(config, &mut StdRng::seed_from_u64(seed));
    (0..players).for_each(|_| stage.connect());
    while stage.guests.iter().any(|guest| guest.heard.last.is_none()) {
        stage.round(ALL);
    }
    stage
}

fn deferred(stage: &Stage) -> u64 {
    stage.server.hubs[0].stats().sessions_deferred
}

/// Those who got something, in order; nobody gets two datagrams in a round of so small a world.
fn sorted(mut guests: Vec<usize>) -> Vec<usize> {
    guests.sort_unstable();
    guests
}

/// The tick that a player was shown last.
fn shown(stage: &Stage, guest: usize) -> u32 {
    stage.guests[guest].heard.last.expect("it plays").tick
}

#[test]
fn with_time_for_a_third_everybody_has_a_fresh_snapshot_in_every_third_round() {
    let mut stage = playing(&config(PLAYERS), PLAYERS, 1);
    assert_eq!(deferred(&stage), 0);
    for _ in 0..5 {
        let mut served = Vec::new();
        for _ in 0..3 {
            let now = stage.round(PLAYERS / 3);
            assert_eq!(now.len(), PLAYERS / 3);
            let tick = stage.server.world.world().now();
            assert!(now.iter().all(|&guest| shown(&stage, guest) == tick), "not the newest frame");
            served.extend(now);
        }
        assert_eq!(sorted(served), (0..PLAYERS).collect::<Vec<_>>());
    }
    assert_eq!(deferred(&stage), 15 * 2 * PLAYERS as u64 / 3);
    // Enough time again.
    assert_eq!(sorted(stage.round(ALL)), (0..PLAYERS).collect::<Vec<_>>());
    assert_eq!(deferred(&stage), 15 * 2 * PLAYERS as u64 / 3);
}

#[test]
fn a_round_that_is_given_up_for_a_newer_frame_is_gone_on_with_as_well() {
    let mut stage = playing(&config(PLAYERS), PLAYERS, 2);
    stage.round(PLAYERS / 2);
    let first: Vec<_> =
        (0..PLAYERS).filter(|&guest| shown(&stage, guest) == stage.server.world.world().now()).collect();
    // Started, and never ended.
    stage.server.world.tick();
    let frame = stage.server.world.publish();
    stage.server.hubs[0].start_round(stage.now, frame, PLAYERS);
    let second = stage.round(PLAYERS / 2);
    assert_eq!(sorted([first, second].concat()), (0..PLAYERS).collect::<Vec<_>>());
    assert_eq!(deferred(&stage), (PLAYERS + PLAYERS) as u64);
}

#[test]
fn nobody_is_passed_over_or_served_twice_while_others_leave_and_come() {
    let mut stage = playing(&config(2 * PLAYERS), PLAYERS, 3);
    let mut last_served = vec![0; PLAYERS];
    let mut here = vec![true; PLAYERS];
    for round in 1..=60 {
        // Every fourth round somebody leaves; its place in the list is anywhere before or behind the one who is next.
        if round % 4 == 0 {
            let leaver = (round / 4 * 7) % PLAYERS;
            stage.guests[leaver].connection.close(stage.now, DisconnectReason::Leaving);
            stage.answer(leaver);
            here[leaver] = false;
        }
        if round % 5 == 0 {
            stage.connect();
            last_served.push(round);
            here.push(true);
        }
        let served = stage.round(10);
        let mut once = sorted(served.clone());
        once.dedup();
        assert_eq!(once.len(), served.len(), "round {round}: two turns");
        for guest in served {
            last_served[guest] = round;
        }
        let most = last_served.len().div_ceil(10) + 1;
        for guest in (0..here.len()).filter(|&guest| here[guest]) {
            let waits = round - last_served[guest];
            assert!(waits <= most, "round {round}: {guest} has waited for {waits} rounds");
        }
    }
    let playing = here.iter().filter(|&&here| here).count();
    for _ in 0..10 {
        stage.round(10);
    }
    assert_eq!(stage.server.hubs[0].stats().sessions, playing as u64);
    assert_eq!(stage.server.world.world().player_count(), playing);
    for (guest, _) in here.iter().enumerate().filter(|(_, here)| **here) {
        assert!(stage.guests[guest].heard.last.is_some(), "{guest} came and does not play");
    }
}

/// Who is served in every second tick and gets a snapshot in every third: its turns are where they would be, or a tick later.
#[test]
fn who_misses_a_turn_has_it_next_and_keeps_its_rate() {
    let mut config = config(PLAYERS);
    config.session.send_hz = 20;
    let mut stage = playing(&config, PLAYERS, 4);
    let before: Vec<_> = stage.guests.iter().map(|guest| guest.heard.snapshots).collect();
    for _ in 0..60 {
        stage.round(PLAYERS / 2);
    }
    for (guest, before) in before.into_iter().enumerate() {
        let snapshots = stage.guests[guest].heard.snapshots - before;
        assert!((19..=21).contains(&snapshots), "{guest} got {snapshots} in a second");
    }
}

/// The game is told of every connection once a second, also where sessions are never served in the same ticks.
#[test]
fn what_the_game_knows_of_a_connection_is_a_second_old_at_most() {
    let mut stage = playing(&config(4), 4, 5);
    let recipients: Vec<Recipient> = std::iter::from_fn(|| stage.server.mailbox.try_next())
        .map(|mail| match mail {
            Mail::Joined(recipient) => recipient,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(recipients.len(), 4);
    let packets =
        || recipients.iter().map(|recipient| recipient.connection().0.packets_sent).collect::<Vec<_>>();
    for _ in 0..3 {
        let before = packets();
        for _ in 0..62 {
            stage.round(2);
        }
        let after = packets();
        let grown = std::iter::zip(&before, &after).all(|(before, after)| after > before);
        assert!(grown, "{before:?}, a second later {after:?}");
    }
}
