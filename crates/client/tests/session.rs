//! A session against a real endpoint.

mod common;

use std::time::Duration;

use common::{Blocks, GAME_TYPE, Lab, PAGE, TICK, walker};
use shadowland_client::{ConnectError, End, EntityId, Event, View};
use shadowland_proto::{CloseReason, DisconnectReason, State};

#[test]
fn every_input_arrives_once_in_order_though_half_of_the_packets_are_lost() {
    let mut lab = Lab::playing();
    lab.lost_of_four = 2;
    for _ in 0..400 {
        lab.step(Some(Blocks::Full), &mut ());
    }
    lab.lost_of_four = 0;
    lab.step(None, &mut ());
    let numbers: Vec<u32> = lab.heard.inputs.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=lab.session.newest_input()).collect::<Vec<_>>());
    assert!(numbers.len() > 400);
    assert!(lab.heard.inputs.windows(2).all(|pair| pair[0].1 != pair[1].1), "each with its own value");
    lab.step(Some(Blocks::Full), &mut ());
    assert_eq!(lab.session.replica().last_input(), lab.session.newest_input());
}

#[test]
fn what_comes_on_the_stream_of_the_welcome_is_told_in_its_order() {
    let mut lab = Lab::new(None);
    lab.said_beside_welcome = Some([b"before", b"after"]);
    for _ in 0..10 {
        lab.step(None, &mut ());
    }
    let said = |body: &[u8]| Event::Message { kind: GAME_TYPE, body: body.into() };
    let welcomed = Event::Welcomed(*lab.session.welcome().unwrap());
    assert_eq!(lab.events, [Event::Connected, said(b"before"), welcomed, said(b"after")]);
}

#[test]
fn a_snapshot_is_acknowledged_once_it_was_applied() {
    let mut lab = Lab::playing();
    lab.step(Some(Blocks::Full), &mut ());
    let snapshot = lab.last_snapshot;
    assert_eq!(lab.session.replica().entity(EntityId::new(3, 0)), Some(&lab.walkers[3]));
    assert!(!lab.heard.acked.contains(&snapshot), "the acknowledgement rides on the next input");
    lab.step(Some(Blocks::Since(1)), &mut ());
    assert!(lab.heard.acked.contains(&snapshot));
    assert_eq!(lab.session.replica().entities().len(), lab.walkers.len());
    assert_eq!(lab.session.replica().entity(EntityId::new(3, 0)), Some(&lab.walkers[3]));
    let stats = lab.session.stats();
    assert_eq!((stats.snapshots, stats.blocks, stats.blocks_skipped, stats.resets), (2, 2, 0, 0));
}

#[test]
fn a_page_without_its_baseline_is_asked_for_once() {
    let mut lab = Lab::playing();
    for _ in 0..5 {
        lab.step(Some(Blocks::Since(4)), &mut ());
    }
    assert_eq!(lab.heard.resets, [PAGE]);
    assert_eq!(lab.session.replica().entities().len(), 0);
    lab.step(Some(Blocks::Full), &mut ());
    lab.step(Some(Blocks::Since(1)), &mut ());
    assert_eq!(lab.session.replica().entity(EntityId::new(9, 0)), Some(&lab.walkers[9]));
    assert_eq!(lab.heard.resets, [PAGE]);
}

#[test]
fn a_page_that_could_not_be_asked_for_yet_is_asked_for_though_nothing_more_comes_of_it() {
    let mut lab = Lab::playing();
    lab.step(Some(Blocks::Since(4)), &mut ());
    lab.step(None, &mut ());
    assert_eq!(lab.heard.resets, [PAGE]);
    // The server forgets the request, and says something once, within the pause.
    lab.step(Some(Blocks::Since(4)), &mut ());
    assert!(lab.session.next_timeout().unwrap() - lab.now <= Duration::from_secs(1));
    for _ in 0..70 {
        lab.step(None, &mut ());
    }
    assert_eq!(lab.heard.resets, [PAGE, PAGE]);
}

#[test]
fn who_leaves_says_so_three_times() {
    let mut lab = Lab::playing();
    let before = lab.datagrams_from_client;
    lab.session.disconnect(lab.now);
    lab.session.disconnect(lab.now);
    lab.step(None, &mut ());
    assert_eq!(lab.events, [Event::Disconnected(End::Here(DisconnectReason::Leaving))]);
    assert_eq!(lab.datagrams_from_client - before, 3);
    assert_eq!(lab.server().state(), State::Closed(CloseReason::Peer(DisconnectReason::Leaving)));
    assert!(lab.session.is_over() && lab.session.next_timeout().is_none());
}

#[test]
fn a_server_that_ends_the_session_is_heard() {
    let mut lab = Lab::playing();
    let now = lab.now;
    lab.server().close(now, DisconnectReason::ShuttingDown);
    lab.step(None, &mut ());
    assert_eq!(lab.events, [Event::Disconnected(End::ByServer(DisconnectReason::ShuttingDown))]);
}

#[test]
fn a_server_that_is_gone_is_noticed() {
    let mut lab = Lab::playing();
    lab.lost_of_four = 4;
    lab.slot = None;
    for _ in 0..16 * 60 {
        lab.step(None, &mut ());
    }
    assert_eq!(lab.events, [Event::Disconnected(End::Here(DisconnectReason::IdleTimeout))]);
}

#[test]
fn a_snapshot_that_cannot_be_read_ends_the_session() {
    let mut lab = Lab::playing();
    lab.step(Some(Blocks::Junk), &mut ());
    assert!(matches!(lab.events[..], [Event::Disconnected(End::Unreadable(_))]), "{:?}", lab.events);
    lab.step(None, &mut ());
    assert_eq!(lab.server().state(), State::Closed(CloseReason::Peer(DisconnectReason::Leaving)));
}

#[test]
fn a_wrong_key_is_told_with_what_looks_the_same() {
    let mut lab = Lab::new(Some([9; 32]));
    for _ in 0..11 * 60 {
        lab.step(None, &mut ());
    }
    let [Event::Disconnected(end)] = lab.events[..] else { panic!("{:?}", lab.events) };
    assert_eq!(end, End::NotConnected(ConnectError::NotAccepted));
    assert!(end.to_string().contains("public key"), "{end}");
}

#[test]
fn the_view_shows_everybody_a_little_in_the_past() {
    let mut lab = Lab::new(None);
    let mut view = View::new();
    for _ in 0..10 {
        lab.step(None, &mut view);
    }
    view.welcomed(lab.session.welcome().unwrap());
    let mut blocks = Blocks::Full;
    let mut before = f64::MIN;
    for step in 0..200 {
        lab.step(Some(blocks), &mut view);
        blocks = Blocks::Since(1);
        view.snapshot_arrived(lab.now, lab.session.replica());
        // Between two snapshots, as a faster screen would.
        view.advance(lab.now + TICK / 2);
        let shown = view.entity(EntityId::new(4, 0)).unwrap().position_cm[0];
        assert!(shown >= before, "step {step}: {shown} after {before}");
        if step > 20 {
            let moved = shown - before;
            assert!((8.0..12.0).contains(&moved), "step {step}: {moved} cm instead of 10");
            let behind = f64::from(lab.walkers[4].position.x) - shown;
            assert!((5.0..40.0).contains(&behind), "step {step}: {behind} cm behind");
        }
        before = shown;
    }
    assert_eq!(view.entities().count(), lab.walkers.len());
    assert_eq!(view.entities().filter(|entity| entity.is_own).count(), 1);
    let own = view.own().unwrap();
    assert_eq!((own.tick, own.id), (lab.tick, walker(0, 0).id));
    assert_eq!(own.position_cm[0], f64::from(lab.walkers[0].position.x) + 0.25);
    assert_eq!((own.yaw_degrees, own.health), (90.0, 1.0));
}

#[test]
fn who_closes_its_eyes_answers_like_everybody() {
    let play = |blind: bool| {
        let mut lab = Lab::playing();
        if blind {
            lab.session.close_eyes();
        }
        let mut blocks = Blocks::Full;
        for _ in 0..50 {
            lab.step(Some(blocks), &mut ());
            blocks = Blocks::Since(1);
        }
        let seen = lab.session.replica().entities().len();
        let own = *lab.session.replica().owner().unwrap();
        assert_eq!(lab.session.replica().tick(), lab.tick);
        assert_eq!(lab.session.stats().snapshots, 50);
        (seen, (own, lab.heard.acked, lab.heard.inputs, lab.heard.resets, lab.datagrams_from_client))
    };
    let ((all, seeing), (none, blind)) = (play(false), play(true));
    assert_eq!((all, none), (10, 0));
    assert!(seeing.1.len() > 40, "{:?}", seeing.1);
    assert_eq!(seeing, blind);
}
