//! How a session ends at the server: without a socket, so that nothing depends on time.

mod common;

use std::time::Duration;

use common::stage::{ALL, Stage, config};
use rand::SeedableRng;
use rand::rngs::StdRng;
use shadowland_proto::State;

const SESSIONS: usize = 40;

/// Clients and their server.
fn stage(seed: u64) -> Stage {
    let mut config = config(SESSIONS);
    config.session.idle_timeout = Duration::from_secs(6);
    let mut stage = Stage::new(&config, &mut StdRng::seed_from_u64(seed));
    (0..SESSIONS).for_each(|_| stage.connect());
    stage
}

/// All of them go silent at the same time.
#[test]
fn sessions_that_end_are_told_three_times_and_forgotten() {
    let mut stage = stage(1);
    for _ in 0..3 {
        stage.round(ALL);
    }
    assert!(stage.guests.iter().all(|guest| guest.connection.state() == State::Established));
    assert_eq!(stage.server.world.world().player_count(), SESSIONS);

    stage.now = stage.now + Duration::from_secs(7);
    let rounds: Vec<_> = (0..4).map(|_| stage.send_round(ALL).len()).collect();
    assert_eq!(rounds, [SESSIONS, SESSIONS, SESSIONS, 0]);
    assert_eq!(stage.server.hubs[0].stats().sessions, 0);
    // The tick after the last round takes them out of the world.
    stage.send_round(ALL);
    stage.send_round(ALL);
    assert_eq!(stage.server.world.world().player_count(), 0);
}

/// A worker with time for a fourth of them in a round: it takes four times as long.
#[test]
fn who_is_put_off_is_told_three_times_as_well() {
    let mut stage = stage(3);
    for _ in 0..12 {
        stage.round(SESSIONS / 4);
    }
    stage.now = stage.now + Duration::from_secs(7);
    let mut told = vec![0; SESSIONS];
    for _ in 0..12 {
        let sent = stage.send_round(SESSIONS / 4);
        assert_eq!(sent.len(), SESSIONS / 4);
        for (to, _) in sent {
            told[stage.guests.iter().position(|guest| guest.at == to).unwrap()] += 1;
        }
    }
    assert_eq!(told, [3; SESSIONS]);
    for _ in 0..4 {
        assert_eq!(stage.send_round(SESSIONS / 4).len(), 0);
    }
    assert_eq!(stage.server.hubs[0].stats().sessions, 0);
}

/// A socket that takes little: goodbyes wait for room, in no more places than the sessions had.
#[test]
fn goodbyes_that_find_no_room_keep_nothing_but_their_session() {
    let mut stage = stage(2);
    stage.now = stage.now + Duration::from_secs(7);
    stage.limit(1);
    let (mut rounds, mut goodbyes) = (0, 0);
    while stage.server.hubs[0].stats().sessions > 0 {
        goodbyes += stage.send_round(ALL).len();
        rounds += 1;
        assert!(rounds <= 4 * SESSIONS, "{} sessions are left", stage.server.hubs[0].stats().sessions);
    }
    assert_eq!(goodbyes, 3 * SESSIONS);
    assert_eq!(stage.server.hubs[0].stats().lost, SESSIONS as u64);
}
