//! A session from its first datagram to its end.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{BAD, Link, Net, PERFECT, To};
use rand::RngExt;
use shadowland_proto::{
    CloseReason, ConnectConfig, DisconnectReason, DropReason, EndpointConfig, Rate, State,
};
use shadowland_wire::codec::Reader;
use shadowland_wire::header::{Flags, HEADER_BYTES, Header};

const INPUT: u8 = 0x20;
const SNAPSHOT: u8 = 0x41;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn local(reason: DisconnectReason) -> State {
    State::Closed(CloseReason::Local(reason))
}

fn peer(reason: DisconnectReason) -> State {
    State::Closed(CloseReason::Peer(reason))
}

fn header_of(datagram: &[u8]) -> Header {
    Header::decode(&mut Reader::new(datagram)).unwrap()
}

#[test]
fn a_client_connects_and_both_sides_talk() {
    let mut net = Net::connected(1, PERFECT);
    let from_client = net.client_says(0, INPUT, b"forward");
    let from_server = net.server_says(SNAPSHOT, b"the world");
    net.run(ms(100));
    assert_eq!(net.server_log().messages, [(INPUT, b"forward".to_vec())]);
    assert_eq!(net.clients[0].log.messages, [(SNAPSHOT, b"the world".to_vec())]);
    assert!(net.clients[0].log.acked.contains(&from_client));
    assert!(net.server_log().acked.contains(&from_server));
}

// Found by the simulation, seed 13: a client whose answer was lost refused 40 good packets in a row.
#[test]
fn a_lost_answer_to_the_handshake_comes_again_with_the_next_packet() {
    let mut net = Net::new(1, Link { delay: ms(20), ..PERFECT }, EndpointConfig::default());
    net.join(ConnectConfig::default());
    net.run_until(ms(1_000), |net| net.clients[0].state().is_some());
    net.link.loss = 1.0;
    net.run_until(ms(100), |net| net.session().connection.state() == State::Established);
    net.link.loss = 0.0;
    assert_eq!(net.clients[0].state(), Some(State::Handshaking));
    let sequence = net.server_says(SNAPSHOT, b"the world");
    net.run(ms(100));
    assert_eq!(net.clients[0].state(), Some(State::Established));
    assert_eq!(net.clients[0].log.messages, [(SNAPSHOT, b"the world".to_vec())]);
    assert!(net.server_log().acked.contains(&sequence));
    // From then on packets are without it.
    let before = net.sent.len();
    net.server_says(SNAPSHOT, b"the world");
    net.run(ms(10));
    assert!(!header_of(&net.sent[before].1).flags.contains(Flags::RELIABLE_HANDSHAKE));
}

#[test]
fn unreliable_messages_arrive_at_most_once_and_only_applied_packets_are_acknowledged() {
    for seed in 0..20 {
        let mut net = Net::connected(seed, BAD);
        let mut said = Vec::new();
        for number in 0..300u32 {
            let sequence = net.client_says(0, INPUT, &number.to_le_bytes());
            said.push((sequence, number));
            net.server_says(SNAPSHOT, b"beside");
            net.run(ms(16));
        }
        net.run(ms(500));
        let arrived: Vec<u32> = net
            .server_log()
            .messages
            .iter()
            .map(|(_, body)| u32::from_le_bytes(body[..].try_into().unwrap()))
            .collect();
        let distinct: BTreeSet<_> = arrived.iter().copied().collect();
        assert_eq!(distinct.len(), arrived.len(), "seed {seed}: a message arrived twice");
        assert!(arrived.len() > 150, "seed {seed}: only {} arrived", arrived.len());

        let acked: BTreeSet<_> = net.clients[0].log.acked.iter().copied().collect();
        assert_eq!(acked.len(), net.clients[0].log.acked.len(), "seed {seed}: acknowledged twice");
        for (sequence, number) in &said {
            assert!(!acked.contains(sequence) || distinct.contains(number), "seed {seed}: not applied");
        }
        let named = said.iter().filter(|(sequence, _)| acked.contains(sequence)).count();
        assert!(named * 10 > arrived.len() * 9, "seed {seed}: {named} of {} were named", arrived.len());
    }
}

#[test]
fn an_idle_session_lives_on_heartbeats_and_knows_its_round_trip() {
    let link = Link { delay: ms(40), ..PERFECT };
    let mut net = Net::connected(2, link);
    let before = net.sent.len();
    net.run(Duration::from_secs(60));
    assert!(net.all_established());
    // A Ping every 5 s from each side, its Pong, and an acknowledgement of that at most.
    assert!(net.sent.len() - before <= 12 * 2 * 3, "{} datagrams", net.sent.len() - before);
    for rtt in [net.clients[0].connection().rtt(), net.session().connection.rtt()] {
        assert!((ms(80)..ms(84)).contains(&rtt), "{rtt:?}");
    }
}

#[test]
fn the_round_trip_is_found_from_acknowledgements_alone() {
    let mut net = Net::connected(3, Link { delay: ms(30), jitter: ms(2), ..PERFECT });
    for _ in 0..120 {
        net.client_says(0, INPUT, b"x");
        net.server_says(SNAPSHOT, b"y");
        net.run(ms(16));
    }
    let rtt = net.clients[0].connection().rtt();
    assert!((ms(60)..ms(68)).contains(&rtt), "{rtt:?}");
}

#[test]
fn a_blackout_of_ten_seconds_loses_no_session() {
    for seed in 0..10 {
        let mut net = Net::connected(seed, PERFECT);
        net.run(ms(seed * 700));
        net.link.loss = 1.0;
        net.run(Duration::from_secs(10));
        net.link.loss = 0.0;
        net.run(Duration::from_secs(10));
        assert!(net.all_established(), "seed {seed}");
    }
}

#[test]
fn both_sides_give_up_when_nothing_is_heard() {
    let mut net = Net::connected(4, PERFECT);
    net.link.loss = 1.0;
    net.run(Duration::from_millis(14_900));
    assert!(net.all_established());
    net.run(Duration::from_secs(6));
    assert_eq!(net.clients[0].state(), Some(local(DisconnectReason::IdleTimeout)));
    assert_eq!(net.session().connection.state(), local(DisconnectReason::IdleTimeout));
    assert_eq!(net.session().connection.next_timeout(), None);
}

#[test]
fn a_disconnect_is_told_three_times_and_then_nothing_more() {
    for closer in ["client", "server"] {
        let mut net = Net::connected(5, PERFECT);
        net.run(ms(100));
        let (now, before) = (net.now, net.sent.len());
        match closer {
            "client" => net.clients[0].connection().close(now, DisconnectReason::Leaving),
            _ => net.session().connection.close(now, DisconnectReason::ShuttingDown),
        }
        net.run(Duration::from_secs(30));
        assert_eq!(net.sent.len() - before, 3, "{closer}");
        let states = (net.clients[0].state().unwrap(), net.session().connection.state());
        assert_eq!(
            states,
            match closer {
                "client" => (local(DisconnectReason::Leaving), peer(DisconnectReason::Leaving)),
                _ => (peer(DisconnectReason::ShuttingDown), local(DisconnectReason::ShuttingDown)),
            }
        );
    }
}

#[test]
fn one_disconnect_of_three_is_enough() {
    let mut net = Net::connected(6, PERFECT);
    let now = net.now;
    net.clients[0].connection().close(now, DisconnectReason::Leaving);
    let mut buffer = [0; 1200];
    let mut last = 0;
    while let Some(length) = net.clients[0].connection().poll_transmit(now, &mut buffer) {
        last = length;
    }
    let from = net.clients[0].address;
    net.deliver(To::Server { from }, &mut buffer[..last]);
    assert_eq!(net.session().connection.state(), peer(DisconnectReason::Leaving));
}

#[test]
fn nothing_leaves_in_clear_after_the_handshake() {
    let mut net = Net::connected(7, BAD);
    let id = net.session().connection.id();
    let handshake_is_over = net.sent.len();
    let secret = b"the player stands at 1234 5678";
    for _ in 0..200 {
        net.server_says(SNAPSHOT, secret);
        net.client_says(0, INPUT, secret);
        let client = net.clients[0].connection();
        let _ = client.send(shadowland_proto::Channel::ReliableOrdered, 0, INPUT, secret);
        net.run(ms(16));
    }
    let now = net.now;
    net.clients[0].connection().close(now, DisconnectReason::Leaving);
    net.run(ms(500));

    let after = &net.sent[handshake_is_over..];
    assert!(after.len() > 600);
    for (to, bytes) in after {
        let header = header_of(bytes);
        assert_eq!(header.connection_id, id);
        assert!(header.flags.contains(Flags::SEALED), "{to:?}");
        assert!(!bytes.windows(8).any(|window| secret.windows(8).any(|part| part == window)));
    }
    // Sealed bytes look random: every value of a byte is about as frequent as any other.
    let mut histogram = [0u32; 256];
    for byte in after.iter().flat_map(|(_, bytes)| &bytes[HEADER_BYTES..]) {
        histogram[usize::from(*byte)] += 1;
    }
    let mean = histogram.iter().sum::<u32>() / 256;
    assert!(histogram.iter().all(|&count| count.abs_diff(mean) < mean / 2), "mean {mean}, {histogram:?}");
}

#[test]
fn no_sequence_is_used_twice_whatever_is_sent_again() {
    let mut net = Net::connected(8, BAD);
    for number in 0..300u32 {
        let body = number.to_le_bytes();
        let _ = net.clients[0].connection().send(shadowland_proto::Channel::ReliableOrdered, 0, INPUT, &body);
        let _ =
            net.session().connection.send(shadowland_proto::Channel::ReliableUnordered, 0, SNAPSHOT, &body);
        net.run(ms(5));
    }
    net.run(Duration::from_secs(3));
    assert!(net.clients[0].connection().stats().messages_resent > 10);
    let mut seen = BTreeSet::new();
    for (to, bytes) in &net.sent {
        let header = header_of(bytes);
        if header.flags.contains(Flags::SEALED) {
            let to_server = matches!(to, To::Server { .. });
            assert!(seen.insert((to_server, header.connection_id, header.sequence)), "{header:?}");
        }
    }
}

#[test]
fn every_bit_flip_of_a_live_packet_is_refused_and_the_packet_itself_is_still_taken() {
    let mut net = Net::connected(9, PERFECT);
    net.client_says(0, INPUT, b"forward");
    let (to, packet) = net.sent.last().cloned().unwrap();
    let stats = *net.session().connection.stats();
    for bit in 0..packet.len() * 8 {
        let mut flipped = packet.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        net.deliver(to, &mut flipped);
    }
    assert_eq!(net.server_log().messages, []);
    let after = *net.session().connection.stats();
    assert_eq!(after.packets_received, stats.packets_received);
    net.deliver(to, &mut packet.clone());
    assert_eq!(net.server_log().messages, [(INPUT, b"forward".to_vec())]);
}

#[test]
fn replayed_packets_change_nothing() {
    let mut net = Net::connected(10, PERFECT);
    for number in 0..100 {
        net.client_says(0, INPUT, &[number]);
        net.run(ms(10));
    }
    net.run(ms(100));
    let messages = net.server_log().messages.len();
    let client_messages = net.clients[0].log.messages.len();
    for (to, bytes) in net.sent.clone() {
        if header_of(&bytes).connection_id != 0 {
            net.deliver(to, &mut bytes.clone());
        }
    }
    assert_eq!(net.server_log().messages.len(), messages);
    assert_eq!(net.clients[0].log.messages.len(), client_messages);
    let dropped = net.session().connection.stats().dropped;
    assert!(dropped.by(DropReason::Replayed) >= 60 && dropped.by(DropReason::BehindWindow) >= 30);
    assert!(net.all_established());
}

/// Whatever somebody without the keys sends, from the right address and with the right id, in clear or sealed
/// with nothing: the session does not notice.
#[test]
fn forged_packets_change_nothing() {
    let mut net = Net::connected(11, PERFECT);
    net.run(ms(100));
    let (id, client) = (net.session().connection.id(), net.clients[0].address);
    // Disconnect, Pong, acknowledgements, ReliableHandshake, application messages.
    let payloads: [&[u8]; 6] = [
        &[0, 4, 1, 1],
        &[0, 2, 8, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0x80, 9, 0, 0, 0],
        &[0, 6, 8, 1, 0, 64, 0, 0, 0, 1, 0],
        &[0, INPUT, 1, 9],
        &[],
    ];
    let (client_before, server_before) =
        (*net.clients[0].connection().stats(), *net.session().connection.stats());
    for to in [To::Server { from: client }, To::Client { at: client }] {
        for flags in 0..=u8::MAX {
            for (number, payload) in payloads.iter().enumerate() {
                let sequence = 1_000 + number as u64;
                let (channel, flags) = (shadowland_proto::Channel::Unreliable, Flags::from_bits(flags));
                let mut bytes = Header { connection_id: id, channel, flags, sequence }.to_bytes().to_vec();
                bytes.extend(*payload);
                net.deliver(to, &mut bytes.clone());
                let tag: [u8; 16] = net.rng.random();
                bytes.extend(tag);
                net.deliver(to, &mut bytes);
            }
        }
    }
    net.run(ms(100));
    assert!(net.all_established());
    assert_eq!(net.server_log().messages, []);
    assert_eq!(net.clients[0].log.messages, []);
    let (client_after, server_after) =
        (*net.clients[0].connection().stats(), *net.session().connection.stats());
    for (before, after) in [(client_before, client_after), (server_before, server_after)] {
        assert_eq!(after.packets_received, before.packets_received);
        assert_eq!(after.packets_sent, before.packets_sent, "a forged packet was answered");
        assert_eq!(after.dropped.total() - before.dropped.total(), 256 * 6 * 2);
    }
}

#[test]
fn a_packet_from_another_address_does_not_move_the_session() {
    let mut net = Net::connected(12, PERFECT);
    let home = net.clients[0].address;
    net.client_says(0, INPUT, b"forward");
    let (_, mut packet) = net.sent.last().cloned().unwrap();
    net.deliver(To::Server { from: "203.0.113.9:999".parse().unwrap() }, &mut packet);
    assert_eq!(net.server_log().messages.len(), 1);
    assert_eq!(net.session().connection.address(), Some(home));
}

#[test]
fn two_hundred_clients_share_a_server() {
    let config = EndpointConfig {
        // All at once, and from one network.
        max_half_open_of_network: 200,
        handshake_rate: Rate { per_second: 1_000, burst: 200 },
        ..EndpointConfig::default()
    };
    let mut net = Net::new(13, Link { delay: ms(20), jitter: ms(10), loss: 0.05, ..PERFECT }, config);
    for _ in 0..200 {
        net.join(ConnectConfig::default());
    }
    net.run_until(Duration::from_secs(5), |net| net.all_established());
    let ids: BTreeSet<_> = net.slots().iter().map(|slot| slot.connection_id()).collect();
    assert_eq!(ids.len(), 200);
    let addresses: BTreeSet<_> =
        net.server.sessions_mut().map(|(_, session)| session.connection.address()).collect();
    assert_eq!(addresses.len(), 200);
}
