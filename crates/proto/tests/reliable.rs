//! Reliable messages: exactly once, in order where that was asked for, or a clean end with a reason.

mod common;

use std::time::Duration;

use common::{BAD, Link, Net, PERFECT, Phase};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shadowland_proto::{
    Channel, CloseReason, Congestion, ConnectConfig, DisconnectReason, EndpointConfig, SendError, State,
    TransportConfig,
};
use shadowland_wire::codec::Reader;
use shadowland_wire::header::{Flags, Header};

const CHAT: u8 = 0x30;
const COMBAT: u8 = 0x31;
const LOOT: u8 = 0x32;
const SNAPSHOT: u8 = 0x41;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn numbers(messages: &[(u8, Vec<u8>)], kind: u8) -> Vec<u32> {
    let of_kind = messages.iter().filter(|(of, _)| *of == kind);
    of_kind.map(|(_, body)| u32::from_le_bytes(body[..4].try_into().unwrap())).collect()
}

fn header_of(datagram: &[u8]) -> Header {
    Header::decode(&mut Reader::new(datagram)).unwrap()
}

/// Both sides send on three streams, beside 60 Hz of unreliable packets, until all has arrived.
fn exchange(seed: u64, link: Link, count: u32) {
    let mut net = Net::connected(seed, link);
    let (mut from_client, mut from_server) = ([0; 3], [0; 3]);
    let streams = [
        (CHAT, Channel::ReliableOrdered, 0),
        (COMBAT, Channel::ReliableOrdered, 5),
        (LOOT, Channel::ReliableUnordered, 0),
    ];
    let deadline = net.now + Duration::from_secs(120);
    loop {
        for (index, (kind, channel, stream)) in streams.into_iter().enumerate() {
            for _ in 0..3 {
                // A body of any size up to some hundred bytes, told by its number.
                let body = |number: u32| {
                    let mut body = number.to_le_bytes().to_vec();
                    body.resize(4 + (number as usize * 37) % 400, 7);
                    body
                };
                if from_client[index] < count
                    && net.clients[0]
                        .connection()
                        .send(channel, stream, kind, &body(from_client[index]))
                        .is_ok()
                {
                    from_client[index] += 1;
                }
                if from_server[index] < count
                    && net.session().connection.send(channel, stream, kind, &body(from_server[index])).is_ok()
                {
                    from_server[index] += 1;
                }
            }
        }
        net.client_says(0, 0x20, b"input");
        net.server_says(SNAPSHOT, &[9; 600]);
        net.run(ms(16));
        assert!(net.all_established(), "seed {seed}: {:?}", net.clients[0].state());
        assert!(net.now < deadline, "seed {seed}: not through in 120 s");
        let through = net.clients[0].connection().unacknowledged() == 0
            && net.session().connection.unacknowledged() == 0;
        if through && from_client == [count; 3] && from_server == [count; 3] {
            break;
        }
    }
    let expected: Vec<u32> = (0..count).collect();
    let client_got = std::mem::take(&mut net.clients[0].log.messages);
    for messages in [&net.server_log().messages, &client_got] {
        assert_eq!(numbers(messages, CHAT), expected, "seed {seed}");
        assert_eq!(numbers(messages, COMBAT), expected, "seed {seed}");
        let mut unordered = numbers(messages, LOOT);
        unordered.sort_unstable();
        assert_eq!(unordered, expected, "seed {seed}");
    }
}

#[test]
fn exactly_once_and_in_order_on_a_perfect_link() {
    exchange(1, PERFECT, 500);
}

#[test]
fn exactly_once_and_in_order_on_bad_links() {
    for seed in 0..6 {
        exchange(seed, BAD, 200);
    }
    for (loss, delay, jitter, duplicates) in
        [(0.0, 0, 30, 0.05), (0.05, 12, 0, 0.0), (0.1, 150, 60, 0.05), (0.3, 25, 30, 0.05)]
    {
        exchange(7, Link { loss, duplicates, delay: ms(delay), jitter: ms(jitter) }, 200);
    }
}

#[test]
fn nothing_is_sent_again_without_need() {
    let mut net = Net::connected(2, Link { delay: ms(40), ..PERFECT });
    for number in 0..200u32 {
        net.clients[0].connection().send(Channel::ReliableOrdered, 0, CHAT, &number.to_le_bytes()).unwrap();
        net.run(ms(16));
    }
    net.run(ms(300));
    assert_eq!(net.clients[0].connection().stats().messages_resent, 0);
    assert_eq!(net.clients[0].connection().stats().packets_lost, 0);
    assert_eq!(numbers(&net.server_log().messages, CHAT).len(), 200);
}

#[test]
fn a_lost_message_is_noticed_from_later_packets_and_holds_up_only_its_stream() {
    let mut net = Net::connected(3, Link { delay: ms(10), ..PERFECT });
    let say = |net: &mut Net, stream, kind, number: u32| {
        let connection = net.clients[0].connection();
        connection.send(Channel::ReliableOrdered, stream, kind, &number.to_le_bytes()).unwrap();
    };
    net.link.loss = 1.0;
    say(&mut net, 0, CHAT, 0);
    net.step();
    net.link.loss = 0.0;
    say(&mut net, 0, CHAT, 1);
    net.step();
    say(&mut net, 1, COMBAT, 0);
    for _ in 0..6 {
        net.client_says(0, 0x20, b"input");
        net.run(ms(4));
    }
    assert_eq!(numbers(&net.server_log().messages, COMBAT), [0]);
    assert_eq!(numbers(&net.server_log().messages, CHAT), []);
    // Long before the timeout of 250 ms.
    net.run(ms(60));
    assert_eq!(numbers(&net.server_log().messages, CHAT), [0, 1]);
}

#[test]
fn a_message_that_fills_a_packet_goes_even_beside_full_snapshots() {
    let mut net = Net::connected(4, PERFECT);
    for number in 0..20u32 {
        let mut body = vec![3; 1024];
        body[..4].copy_from_slice(&number.to_le_bytes());
        net.session().connection.send(Channel::ReliableOrdered, 0, CHAT, &body).unwrap();
        net.server_says(SNAPSHOT, &[9; 1100]);
        net.run(ms(16));
    }
    net.run(ms(100));
    let log = &net.clients[0].log.messages;
    assert_eq!(numbers(log, CHAT), (0..20).collect::<Vec<_>>());
    assert_eq!(log.iter().filter(|(kind, _)| *kind == SNAPSHOT).count(), 20);
}

#[test]
fn small_messages_ride_in_packets_that_leave_anyway() {
    let mut net = Net::connected(5, PERFECT);
    net.run(ms(100));
    let before = net.session().connection.stats().packets_sent;
    net.session().connection.send(Channel::ReliableOrdered, 0, CHAT, &7u32.to_le_bytes()).unwrap();
    net.server_says(SNAPSHOT, b"the world");
    net.run(ms(20));
    assert_eq!(net.session().connection.stats().packets_sent - before, 1);
    assert_eq!(net.clients[0].log.messages.len(), 2);
}

#[test]
fn a_peer_that_acknowledges_nothing_fills_a_bounded_queue_and_ends_the_session() {
    let mut net = Net::connected(6, PERFECT);
    let now = net.now;
    // Deaf in one direction only: the client is heard, so that it is not the idle timeout that ends it.
    let mut sent = 0;
    let result = loop {
        match net.session().connection.send(Channel::ReliableOrdered, 0, CHAT, &noise(9, 1000)) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(result, SendError::Full);
    assert!((255..270).contains(&sent), "{sent} messages of 1000 bytes");

    let mut buffer = [0; 1200];
    let mut at = now;
    let state = loop {
        at = at + ms(10);
        let session = net.session();
        session.connection.on_timeout(at);
        while session.connection.poll_transmit(at, &mut buffer).is_some() {}
        let client = net.clients[0].connection();
        if let Some(mut packet) = client.packet(at, &mut buffer) {
            packet.message(0x20, |writer| writer.bytes(b"alive")).unwrap();
            let length = packet.finish().len;
            let mut log = common::Log::default();
            let _ = net.session().connection.handle(at, &mut buffer[..length], &mut log);
        }
        match net.session().connection.state() {
            State::Established => assert!(at - now < Duration::from_secs(30)),
            closed => break closed,
        }
    };
    assert_eq!(state, State::Closed(CloseReason::Local(DisconnectReason::Undeliverable)));
    // 250 + 500 + 1000 ms, then 2 s each.
    assert!((Duration::from_secs(17)..Duration::from_secs(19)).contains(&(at - now)), "{:?}", at - now);
}

#[test]
fn who_does_not_read_for_a_while_misses_nothing_and_who_never_does_is_given_up() {
    let mut net = Net::connected(13, Link { delay: ms(20), ..PERFECT });
    let mut sent = 0u32;
    let mut go_on = |net: &mut Net, seconds: u64| {
        for _ in 0..seconds * 60 {
            if !net.all_established() {
                break;
            }
            let mut body = noise(u64::from(sent), 600);
            body[..4].copy_from_slice(&sent.to_le_bytes());
            let connection = &mut net.session().connection;
            sent += u32::from(connection.send(Channel::ReliableOrdered, 0, CHAT, &body).is_ok());
            net.server_says(SNAPSHOT, &[9; 100]);
            net.client_says(0, 0x20, b"input");
            net.run(ms(16));
        }
        sent
    };
    go_on(&mut net, 1);
    net.clients[0].log.full = true;
    let read = numbers(&net.clients[0].log.messages, CHAT).len();
    let before = net.session().connection.stats().bytes_sent;
    go_on(&mut net, 5);
    // At most a window ahead of a gap, once; and what waits is not sent with every round trip.
    let unread = numbers(&net.clients[0].log.messages, CHAT).len() - read;
    assert!(unread <= 1_024, "{unread} messages were forced on it");
    let bytes = net.session().connection.stats().bytes_sent - before;
    assert!(bytes < 2_000_000, "{bytes} bytes in 5 s");
    net.clients[0].log.full = false;
    let sent = go_on(&mut net, 5);
    net.run(Duration::from_secs(1));
    assert_eq!(numbers(&net.clients[0].log.messages, CHAT), (0..sent).collect::<Vec<_>>());
    assert!(net.all_established());

    net.clients[0].log.full = true;
    go_on(&mut net, 25);
    net.run(ms(100));
    let given_up = DisconnectReason::Undeliverable;
    assert_eq!(net.clients[0].state(), Some(State::Closed(CloseReason::Peer(given_up))));
}

#[test]
fn what_cannot_be_sent_is_refused_by_name() {
    let mut net = Net::connected(7, PERFECT);
    let now = net.now;
    let connection = net.clients[0].connection();
    assert_eq!(connection.send(Channel::ReliableOrdered, 8, CHAT, &[]), Err(SendError::NoSuchStream));
    assert_eq!(connection.send(Channel::Unreliable, 0, CHAT, &[]), Err(SendError::NoSuchStream));
    assert_eq!(connection.send(Channel::ReliableOrdered, 0, 4, &[]), Err(SendError::BadType));
    let too_large = vec![0; 256 * 1024 + 1];
    assert_eq!(connection.send(Channel::ReliableOrdered, 0, CHAT, &too_large), Err(SendError::TooLarge));
    connection.close(now, DisconnectReason::Leaving);
    assert_eq!(connection.send(Channel::ReliableOrdered, 0, CHAT, &[]), Err(SendError::Closed));
}

/// Bytes without a pattern, told by their number.
fn noise(number: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(number).fill_bytes(&mut bytes);
    bytes
}

#[test]
fn large_messages_arrive_whole_in_their_place_and_hold_up_no_other_stream() {
    for (seed, link) in [(8, PERFECT), (9, BAD)] {
        let mut net = Net::connected(seed, link);
        let say = |net: &mut Net, stream, kind, body: &[u8]| {
            let connection = net.clients[0].connection();
            connection.send(Channel::ReliableOrdered, stream, kind, body).unwrap();
        };
        let (first, large, last) = (noise(1, 40), noise(2, 256 * 1024), noise(3, 1_500));
        say(&mut net, 0, CHAT, &first);
        say(&mut net, 0, CHAT, &large);
        let more = net.clients[0].connection().send(Channel::ReliableOrdered, 0, CHAT, &last);
        assert_eq!(more, Err(SendError::Full), "what is queued is above the limit already");
        net.run(ms(1));
        say(&mut net, 1, COMBAT, b"hit");
        // Sooner or later there is room again.
        net.run_until(Duration::from_secs(60), |net| {
            net.clients[0].connection().send(Channel::ReliableOrdered, 0, CHAT, &last).is_ok()
        });
        net.run_until(Duration::from_secs(60), |net| net.server_log().messages.len() == 4);
        let combat = net.server_log().messages.iter().position(|(kind, _)| *kind == COMBAT).unwrap();
        let messages = &mut net.server_log().messages;
        messages.remove(combat);
        assert!(*messages == [(CHAT, first), (CHAT, large), (CHAT, last)], "seed {seed}");
        assert!(combat < 2, "it overtook the pieces that were still to be sent");
        assert!(net.all_established());
    }
}

#[test]
fn what_repeats_itself_is_compressed_and_noise_is_not() {
    let mut net = Net::connected(10, PERFECT);
    let text = "Aerin offers 12 silver for the sword. ".repeat(100).into_bytes();
    let noise = noise(4, text.len());
    let mut sent = Vec::new();
    for body in [&text, &noise] {
        let before = net.session().connection.stats().body_bytes_sent[2];
        net.session().connection.send(Channel::ReliableUnordered, 0, LOOT, body).unwrap();
        net.run(ms(100));
        sent.push(net.session().connection.stats().body_bytes_sent[2] - before);
    }
    assert!(sent[0] * 10 < text.len() as u64, "{sent:?}");
    assert!(sent[1] > noise.len() as u64, "{sent:?}");
    assert!(net.clients[0].log.messages == [(LOOT, text), (LOOT, noise)]);
    let flags = net.sent.iter().fold(Flags::NONE, |all, (_, datagram)| all.with(header_of(datagram).flags));
    assert!(flags.contains(Flags::FRAGMENT.with(Flags::COMPRESSED)));
}

#[test]
fn large_messages_wait_for_what_the_peer_takes() {
    let config = EndpointConfig {
        transport: TransportConfig { message_bytes: 10_000, ..TransportConfig::default() },
        ..EndpointConfig::default()
    };
    let mut net = Net::new(11, PERFECT, config);
    net.join(ConnectConfig::default());
    net.run_until(Duration::from_secs(1), |net| matches!(net.clients[0].phase, Phase::Connected(_)));
    let connection = net.clients[0].connection();
    if connection.state() != State::Established {
        let early = connection.send(Channel::ReliableOrdered, 0, CHAT, &noise(1, 10_000));
        assert_eq!(early, Err(SendError::Full));
    }
    net.run_until(Duration::from_secs(1), Net::all_established);
    let connection = net.clients[0].connection();
    let above = connection.send(Channel::ReliableOrdered, 0, CHAT, &noise(1, 10_001));
    assert_eq!(above, Err(SendError::TooLarge));
    connection.send(Channel::ReliableOrdered, 0, CHAT, &noise(1, 10_000)).unwrap();
    net.run(ms(500));
    assert_eq!(net.server_log().messages.len(), 1);
}

#[test]
fn a_blackout_of_ten_seconds_ends_nothing_and_one_of_sixty_ends_both_sides() {
    for congestion in [Congestion::Delay, Congestion::Loss] {
        let transport = TransportConfig { congestion, ..TransportConfig::default() };
        let config = EndpointConfig { transport: transport.clone(), ..EndpointConfig::default() };
        let mut net = Net::new(12, Link { delay: ms(30), ..PERFECT }, config);
        net.join(ConnectConfig { transport, ..ConnectConfig::default() });
        net.run_until(Duration::from_secs(10), |net| net.all_established());
        let large = noise(5, 60_000);
        net.session().connection.send(Channel::ReliableOrdered, 0, CHAT, &large).unwrap();
        net.clients[0].connection().send(Channel::ReliableUnordered, 0, LOOT, &large).unwrap();
        net.run(ms(40));
        net.link.loss = 1.0;
        net.run(Duration::from_secs(10));
        net.link.loss = 0.0;
        net.run(Duration::from_secs(6));
        assert!(net.all_established(), "{congestion:?}");
        assert!(net.clients[0].log.messages == [(CHAT, large.clone())]);
        assert!(net.server_log().messages == [(LOOT, large)]);

        net.link.loss = 1.0;
        net.run(Duration::from_secs(60));
        let timeout = State::Closed(CloseReason::Local(DisconnectReason::IdleTimeout));
        assert_eq!(net.clients[0].state(), Some(timeout));
        assert_eq!(net.session().connection.state(), timeout);
    }
}

/// As many packets at a time as a server may be configured for, and more, over a link where that is more than is
/// remembered of sent packets.
#[test]
fn many_packets_at_a_time_do_not_end_a_session() {
    let mut net = Net::connected(3, Link { delay: ms(200), ..PERFECT });
    net.session().connection.send(Channel::ReliableOrdered, 0, CHAT, &[0; 4]).unwrap();
    let mut most = 0;
    for _ in 0..2_000 {
        let mut packets = 0;
        while packets == 0 || packets < 55 && net.session().connection.has_room_for_more() {
            net.server_says(SNAPSHOT, &[1; 1_100]);
            packets += 1;
        }
        most = most.max(packets);
        net.client_says(0, CHAT, b"x");
        net.run(ms(16));
        net.sent.clear();
        assert!(net.all_established());
    }
    assert_eq!(most, 55);
    assert_eq!(net.session().connection.unacknowledged(), 0);
}
