//! New keys in the middle of a session: nobody notices but the keys.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{BAD, Link, Net, PERFECT, To};
use shadowland_proto::{Channel, DropReason, EndpointConfig, RekeyLimits};
use shadowland_wire::codec::Reader;
use shadowland_wire::header::{Flags, Header};

const INPUT: u8 = 0x20;
const SNAPSHOT: u8 = 0x41;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A server that replaces keys after so many bytes.
fn every(bytes: u64) -> EndpointConfig {
    EndpointConfig { rekey: RekeyLimits { bytes, ..RekeyLimits::default() }, ..EndpointConfig::default() }
}

fn header(datagram: &[u8]) -> Header {
    Header::decode(&mut Reader::new(datagram)).unwrap()
}

/// How often each side began to seal with new keys.
fn rekeys(net: &mut Net) -> (u64, u64) {
    let client = net.clients[0].connection().stats().rekeys;
    (net.session().connection.stats().rekeys, client)
}

fn speak(net: &mut Net, packets: u32) {
    for number in 0..packets {
        net.client_says(0, INPUT, &number.to_le_bytes());
        net.server_says(SNAPSHOT, &[number as u8; 300]);
        net.run(ms(16));
    }
}

#[test]
fn keys_change_and_nothing_is_lost_or_delayed() {
    let mut net = Net::connected_to(1, Link { delay: ms(30), ..PERFECT }, every(60_000));
    speak(&mut net, 3_000);
    net.run(ms(500));
    let (server, client) = rekeys(&mut net);
    // 1 MB sent, new keys after 52 to 60 kB each.
    assert!((13..=20).contains(&server), "{server} rekeys");
    assert_eq!(server, client);
    assert_eq!(net.server_log().messages.len(), 3_000);
    assert_eq!(net.clients[0].log.messages.len(), 3_000);
    let dropped = net.session().connection.stats().dropped.total();
    assert_eq!((dropped, net.clients[0].dropped.len()), (0, 0));
    // The phase is on the wire: it changes as often as the keys, and sequences go on.
    for to_server in [false, true] {
        let sent = net.sent.iter().filter(|(to, _)| matches!(to, To::Server { .. }) == to_server);
        let headers: Vec<_> = sent.map(|(_, bytes)| header(bytes)).filter(|h| h.connection_id != 0).collect();
        let phase = |header: &Header| header.flags.contains(Flags::KEY_PHASE);
        let flips = headers.windows(2).filter(|pair| phase(&pair[0]) != phase(&pair[1])).count();
        assert_eq!(flips as u64, server);
        assert!(headers.windows(2).all(|pair| pair[1].sequence == pair[0].sequence + 1));
    }
}

#[test]
fn on_a_bad_link_reliable_messages_still_arrive_once_and_in_order() {
    let mut total = 0;
    for seed in 0..10 {
        let mut net = Net::connected_to(seed, BAD, every(20_000));
        for number in 0..1_200u32 {
            let body = number.to_le_bytes();
            if number % 8 == 0 {
                let (client, server) = (Channel::ReliableOrdered, Channel::ReliableOrdered);
                net.clients[0].connection().send(client, 0, INPUT, &body).unwrap();
                net.session().connection.send(server, 0, SNAPSHOT, &body).unwrap();
            }
            net.client_says(0, INPUT + 1, b"beside");
            net.server_says(SNAPSHOT + 1, &[7; 200]);
            net.run(ms(16));
        }
        net.run(Duration::from_secs(4));
        assert!(net.all_established(), "seed {seed}");
        let (server, client) = rekeys(&mut net);
        // The client flips with the first packet of the new phase, so that it may be one behind.
        assert!(server == client || server == client + 1, "seed {seed}: {server} and {client}");
        total += server;
        let expected: Vec<_> = (0..1_200u32).step_by(8).map(|number| number.to_le_bytes().to_vec()).collect();
        let reliable = |log: &common::Log, kind| -> Vec<_> {
            let of_kind = log.messages.iter().filter(|(other, _)| *other == kind);
            of_kind.map(|(_, body)| body.clone()).collect()
        };
        assert_eq!(reliable(net.server_log(), INPUT), expected, "seed {seed}");
        assert_eq!(reliable(&net.clients[0].log, SNAPSHOT), expected, "seed {seed}");
        // Nothing that an honest peer sealed has ever met a key that does not open it.
        let bad_tags = net.session().connection.stats().dropped.by(DropReason::BadTag)
            + net.clients[0].connection().stats().dropped.by(DropReason::BadTag);
        assert_eq!(bad_tags, 0, "seed {seed}");
    }
    assert!(total >= 50, "only {total} rekeys");
}

#[test]
fn an_idle_session_gets_new_keys_by_their_age() {
    let limits = RekeyLimits { age: Duration::from_secs(60), ..RekeyLimits::default() };
    let mut net =
        Net::connected_to(3, PERFECT, EndpointConfig { rekey: limits, ..EndpointConfig::default() });
    net.run(Duration::from_secs(305));
    assert!(net.all_established());
    assert_eq!(rekeys(&mut net), (5, 5));
}

/// Whatever becomes of the messages of a rekey: until it is through, the old keys go on.
#[test]
fn a_rekey_that_does_not_get_through_is_tried_again() {
    let mut net = Net::connected_to(4, Link { delay: ms(20), ..PERFECT }, every(20_000));
    net.lose = |bytes| header(bytes).flags.contains(Flags::REKEY);
    speak(&mut net, 300);
    assert!(net.all_established());
    assert_eq!(rekeys(&mut net), (0, 0));
    let asked = net.sent.iter().filter(|(_, bytes)| header(bytes).flags.contains(Flags::REKEY)).count();
    assert!((3..=20).contains(&asked), "{asked} requests");

    net.lose = |_| false;
    speak(&mut net, 300);
    let (server, client) = rekeys(&mut net);
    assert!(server >= 1 && server == client);
}

#[test]
fn packets_of_old_keys_are_refused_after_a_while_and_never_behind_new_ones() {
    let mut net = Net::connected_to(5, PERFECT, every(20_000));
    // One packet of the first phase that stays on the way.
    net.client_says(0, INPUT, b"late");
    let (to, late) = net.sent.last().cloned().unwrap();
    net.lose = |_| true;
    net.client_says(0, INPUT, b"later still");
    let later = net.sent.last().cloned().unwrap().1;
    net.client_says(0, INPUT, b"never heard");
    let mut unheard = net.sent.last().cloned().unwrap().1;
    net.lose = |_| false;
    // Fewer than the replay window, but large.
    for _ in 0..30 {
        net.server_says(SNAPSHOT, &[1; 1_000]);
        net.run(ms(5));
    }
    assert_eq!(rekeys(&mut net), (1, 1));
    net.deliver(to, &mut late.clone());
    let messages = net.server_log().messages.len();
    net.deliver(to, &mut later.clone());
    assert_eq!(net.server_log().messages.len(), messages + 1, "within 3 PTO the old key still opens it");

    let mut forged = later.clone();
    // A sequence above the flip in the old phase.
    forged[6..14].copy_from_slice(&10_000u64.to_le_bytes());
    net.deliver(to, &mut forged);
    assert_eq!(net.session().connection.stats().dropped.by(DropReason::WrongPhase), 1);

    net.lose = |_| true;
    net.client_says(0, INPUT, b"of the new phase, lost");
    net.run(Duration::from_secs(2));
    net.lose = |_| false;
    let before = net.session().connection.stats().dropped;
    net.deliver(to, &mut unheard);
    let after = net.session().connection.stats().dropped;
    assert_eq!(after.total() - before.total(), 1, "the old key is gone");
    assert_eq!(after.by(DropReason::WrongPhase) - before.by(DropReason::WrongPhase), 1, "no key was tried");
}

/// All (phase, direction, sequence) of a session that rekeys, resends and is reordered: a sequence is never used
/// twice, so that no nonce is, under any key.
#[test]
fn no_nonce_is_used_twice_over_rekeys_and_retransmissions() {
    let mut net = Net::connected_to(6, BAD, every(10_000));
    for number in 0..1_000u32 {
        let body = number.to_le_bytes();
        let _ = net.session().connection.send(Channel::ReliableUnordered, 0, SNAPSHOT, &body);
        let _ = net.clients[0].connection().send(Channel::ReliableOrdered, 0, INPUT, &body);
        net.server_says(SNAPSHOT, &[3; 100]);
        net.run(ms(8));
    }
    assert!(rekeys(&mut net).0 >= 5);
    let mut seen = BTreeSet::new();
    for (to, bytes) in &net.sent {
        let header = header(bytes);
        if header.connection_id != 0 {
            assert!(seen.insert((matches!(to, To::Server { .. }), header.sequence)), "{header:?}");
        }
    }
}
