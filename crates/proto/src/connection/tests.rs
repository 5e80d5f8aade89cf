//! What a peer with the keys can do that it should not: payloads that no connection of ours would seal.

use super::*;
use crate::crypto::seal::Opener;
use rand::SeedableRng;
use rand::rngs::StdRng;
use shadowland_wire::codec::Writer;
use shadowland_wire::header::HEADER_BYTES;
use shadowland_wire::limits::{PATH_TOKEN_BYTES, TAG_BYTES};
use shadowland_wire::message::fragment::Whole;
use shadowland_wire::message::{ControlType, MessageId, StreamId, encode_frame};
use zeroize::Zeroizing;

pub(super) const NOW: Time = Time::from_micros(1_000_000);
const ANSWER: Control = Control::ReliableHandshake(ReliableHandshake {
    answer: true,
    first_id: 10,
    window_messages: 64,
    window_bytes: 65_536,
    message_bytes: 65_536,
});

#[derive(Default)]
struct Log(Vec<(u8, Vec<u8>)>);

impl Receiver for Log {
    fn message(&mut self, kind: u8, body: &[u8]) {
        self.0.push((kind, body.to_vec()));
    }
    fn acked(&mut self, _sequence: u64) {}
}

pub(super) fn connection(role: Role) -> Connection {
    let keys = SessionKeys {
        client_to_server: Zeroizing::new([1; 32]),
        server_to_client: Zeroizing::new([2; 32]),
        chain: Zeroizing::new([3; 32]),
    };
    let acceptance = Acceptance { connection_id: 7, parameters: SessionParameters::default() };
    let entropy = Entropy::new(&mut StdRng::seed_from_u64(role as u64));
    Connection::new(role, &acceptance, keys, entropy, Arc::default(), NOW)
}

/// A client's connection, and a sealer for packets from its server.
fn client() -> (Connection, Sealer) {
    (connection(Role::Client), Sealer::new(&[2; 32], 7))
}

fn established() -> (Connection, Sealer) {
    let (mut client, mut server) = client();
    let answer = payload(|writer| ANSWER.encode(writer).unwrap());
    client.handle(NOW, &mut seal(&mut server, &answer), &mut Log::default()).unwrap();
    assert_eq!(client.state(), State::Established);
    (client, server)
}

/// A payload that acknowledges nothing.
fn payload(write: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut buffer = [0; 1100];
    let mut writer = Writer::new(&mut buffer);
    writer.u8(0).unwrap();
    write(&mut writer);
    writer.written().to_vec()
}

fn seal(sealer: &mut Sealer, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; HEADER_BYTES];
    packet.extend(payload);
    packet.extend([0; TAG_BYTES]);
    sealer.seal(&mut packet, Channel::Unreliable, Flags::NONE);
    packet
}

/// What came of a packet, what was delivered, and whether it will be acknowledged.
type Outcome = (Result<(), DropReason>, Vec<(u8, Vec<u8>)>, bool);

/// Gives the client one packet.
fn give(client: &mut Connection, server: &mut Sealer, payload: &[u8]) -> Outcome {
    let mut log = Log::default();
    let before = client.received.block(NOW);
    let result = client.handle(NOW, &mut seal(server, payload), &mut log);
    (result, log.0, client.received.block(NOW) != before)
}

#[test]
fn a_broken_message_costs_its_packet_the_acknowledgement_and_nothing_else() {
    let (mut client, mut server) = established();
    let broken = [0, 0x41, 1, 5, 0x41, 9, 1];
    let outcome = give(&mut client, &mut server, &broken);
    assert_eq!(outcome, (Err(DropReason::Malformed), vec![(0x41, vec![5])], false));
    let outcome = give(&mut client, &mut server, &[0, 0x41, 1, 6]);
    assert_eq!(outcome, (Ok(()), vec![(0x41, vec![6])], true));
    // The gap stays: the broken packet was never applied.
    assert_eq!(client.received.block(NOW).unwrap().mask, !1);
}

#[test]
fn unknown_messages_are_skipped() {
    let (mut client, mut server) = established();
    let outcome = give(&mut client, &mut server, &[0, 0x1f, 2, 9, 9, 0x05, 1, 9, 0x5f, 0, 0x41, 1, 6]);
    assert_eq!(outcome, (Ok(()), vec![(0x5f, vec![]), (0x41, vec![6])], true));
    assert_eq!(client.stats().messages_unknown, 2);
}

#[test]
fn messages_of_the_game_have_to_be_reliable() {
    let (mut client, mut server) = established();
    for kind in [0x30, 0x3f, 0x60, 0x7f] {
        let outcome = give(&mut client, &mut server, &[0, 0x41, 1, 6, kind, 0]);
        assert_eq!(outcome, (Err(DropReason::Malformed), vec![(0x41, vec![6])], false), "{kind:#x}");
    }
}

#[test]
fn integrity_messages_the_wrong_way_are_malformed() {
    let challenge = Control::CheckIntegrity { version: 1, index: 2, nonce: [3; 16] };
    let answer = Control::IntegrityAnswer { version: 1, echo: [3; 8], proof: [4; 16] };
    for (role, key, wrong) in [(Role::Client, 2, answer), (Role::Server, 1, challenge)] {
        let mut connection = connection(role);
        let mut peer = Sealer::new(&[key; 32], 7);
        let broken = payload(|writer| wrong.encode(writer).unwrap());
        let outcome = give(&mut connection, &mut peer, &broken);
        assert_eq!(outcome, (Err(DropReason::Malformed), vec![], false));
    }
    // A challenge to who has no table, and an answer that nobody asked for, are no fault.
    for (role, key, right) in [(Role::Client, 2, challenge), (Role::Server, 1, answer)] {
        let mut connection = connection(role);
        let mut peer = Sealer::new(&[key; 32], 7);
        let fine = payload(|writer| right.encode(writer).unwrap());
        assert_eq!(give(&mut connection, &mut peer, &fine), (Ok(()), vec![], true));
        assert!(!connection.pending.has(Controls::INTEGRITY));
    }
}

#[test]
fn nothing_is_delivered_before_the_reliable_handshake_unless_it_rides_along() {
    let (mut client, mut server) = client();
    let outcome = give(&mut client, &mut server, &[0, 0x41, 1, 6]);
    assert_eq!(outcome, (Err(DropReason::NotEstablished), vec![], false));
    let together = payload(|writer| {
        ANSWER.encode(writer).unwrap();
        writer.bytes(&[0x41, 1, 6]).unwrap();
    });
    let outcome = give(&mut client, &mut server, &together);
    assert_eq!(outcome, (Ok(()), vec![(0x41, vec![6])], true));
}

#[test]
fn a_reliable_message_too_far_ahead_is_not_acknowledged() {
    let (mut client, mut server) = established();
    // Stream 0 starts at 10, as the server has said.
    let outcome = give(&mut client, &mut server, &[0, 0xc1, 0, 0x8a, 8, 1, 5]); // id 1034
    assert_eq!(outcome, (Err(DropReason::AheadOfWindow), vec![], false));
    let outcome = give(&mut client, &mut server, &[0, 0xc1, 0, 10, 1, 5]);
    assert_eq!(outcome, (Ok(()), vec![(0x41, vec![5])], true));
    // Again, in another packet: taken, and acknowledged, but not delivered.
    let outcome = give(&mut client, &mut server, &[0, 0xc1, 0, 10, 1, 5]);
    assert_eq!(outcome, (Ok(()), vec![], true));
}

#[test]
fn a_packet_of_too_many_messages_is_refused() {
    let (mut client, mut server) = established();
    let mut many = vec![0];
    many.extend([0x41, 0].repeat(MESSAGES_PER_PACKET + 1));
    assert_eq!(give(&mut client, &mut server, &many).0, Err(DropReason::TooManyMessages));
    assert_eq!(give(&mut client, &mut server, &many[..many.len() - 2]).0, Ok(()));
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_is_refused() {
    let (mut client, mut server) = established();
    for sequence in [1u32, 200, u32::MAX] {
        let mut block = vec![0x80];
        block.extend(sequence.to_le_bytes());
        assert_eq!(give(&mut client, &mut server, &block).0, Err(DropReason::Malformed), "{sequence}");
    }
    assert_eq!(client.stats().packets_acked, 0);
}

#[test]
fn ids_that_would_run_out_are_refused() {
    let (mut client, mut server) = client();
    let answer = payload(|writer| {
        Control::ReliableHandshake(ReliableHandshake {
            answer: true,
            first_id: u64::MAX,
            window_messages: 64,
            window_bytes: 0,
            message_bytes: 0,
        })
        .encode(writer)
        .unwrap();
    });
    assert_eq!(give(&mut client, &mut server, &answer).0, Err(DropReason::Malformed));
    assert_eq!(client.state(), State::Handshaking);
}

#[test]
fn the_outbox_is_left_alone_once_everything_in_it_is_acknowledged() {
    let (mut client, mut server) = established();
    assert!(!client.sends_reliable);
    let mut buffer = [0; DATAGRAM_BYTES];
    for body in [1, 2] {
        client.send(Channel::ReliableOrdered, 0, 0x20, &[body]).unwrap();
        client.poll_transmit(NOW, &mut buffer).unwrap();
    }
    let last = Header::decode(&mut Reader::new(&buffer)).unwrap().sequence as u8;
    // One byte of flags, the largest sequence, and a mask: first only the last packet, then the one before too.
    for (mask, left) in [(0, 1), (1, 0)] {
        let acks = [0xc0, last, 0, 0, 0, mask, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(give(&mut client, &mut server, &acks).0, Ok(()));
        assert_eq!((client.unacknowledged(), client.sends_reliable), (left, left > 0));
    }
}

#[test]
fn a_session_whose_sequences_are_used_up_ends() {
    let (mut client, _) = established();
    client.sealer.exhaust();
    assert!(client.packet(NOW, &mut [0; DATAGRAM_BYTES]).is_none());
    client.on_timeout(NOW);
    assert_eq!(client.state(), State::Closed(CloseReason::Local(DisconnectReason::KeysExhausted)));
    assert_eq!(client.poll_transmit(NOW, &mut [0; DATAGRAM_BYTES]), None);
}

/// A server's connection that is established with a client at `home`, and a sealer for packets from that client.
fn served(home: SocketAddr) -> (Connection, Sealer) {
    let (mut server, mut client) = (connection(Role::Server), Sealer::new(&[1; 32], 7));
    server.set_address(home);
    let Control::ReliableHandshake(answer) = ANSWER else { unreachable!() };
    let hello = Control::ReliableHandshake(ReliableHandshake { answer: false, first_id: 0, ..answer });
    let hello = payload(|writer| hello.encode(writer).unwrap());
    server.handle_from(NOW, home, &mut seal(&mut client, &hello), &mut Log::default()).unwrap();
    (server, client)
}

#[test]
fn the_answer_in_a_refused_packet_proves_no_address() {
    let (home, attacker) = ("192.0.2.1:1".parse().unwrap(), "203.0.113.9:9".parse().unwrap());
    let (mut server, mut client) = served(home);
    // Copies of packets of the client come from elsewhere, before its own.
    for _ in 0..2 {
        let packet = seal(&mut client, &[&[0, 0x20, 20][..], &[1; 20]].concat());
        server.handle_from(NOW, attacker, &mut packet.clone(), &mut Log::default()).unwrap();
    }
    let mut buffer = [0; DATAGRAM_BYTES];
    let (len, to) = server.poll_probe(NOW, &mut buffer).unwrap();
    assert_eq!(to, attacker);
    let header = Header::decode(&mut Reader::new(&buffer)).unwrap();
    let opened = Opener::new(&[2; 32]).open(&header, &mut buffer[..len]).unwrap();
    let challenge = opened.windows(10).find(|window| window[..2] == [0x0b, PATH_TOKEN_BYTES as u8]);
    let token = challenge.unwrap()[2..].try_into().unwrap();
    // The client answers from home; a reliable message in the same packet is too far ahead.
    let answer = payload(|writer| {
        Control::PathResponse { token }.encode(writer).unwrap();
        writer.bytes(&[0xa0, 0, 0x8a, 8, 1, 5]).unwrap();
    });
    let refused = server.handle_from(NOW, home, &mut seal(&mut client, &answer), &mut Log::default());
    assert_eq!(refused, Err(DropReason::AheadOfWindow));
    let next = seal(&mut client, &[0, 0x20, 0]);
    server.handle_from(NOW, attacker, &mut next.clone(), &mut Log::default()).unwrap();
    assert_eq!(server.address(), Some(home));
}

#[test]
fn who_confirms_the_keys_and_then_never_says_hello_is_sent_away() {
    let (mut server, mut client) = (connection(Role::Server), Sealer::new(&[1; 32], 7));
    let mut now = NOW;
    for _ in 0..49 {
        server.handle(now, &mut seal(&mut client, &[0]), &mut Log::default()).unwrap();
        assert_eq!(server.state(), State::Handshaking);
        now = now + Duration::from_millis(100);
        server.on_timeout(now);
    }
    server.on_timeout(NOW + ESTABLISH_TIMEOUT);
    assert_eq!(server.state(), State::Closed(CloseReason::Local(DisconnectReason::IdleTimeout)));
}

/// A packet from the server with any sequence, sealed by the other implementation: a sealer of ours stops in time.
fn sealed_as(sequence: u64, payload: &[u8]) -> Vec<u8> {
    use chacha20poly1305::aead::{Aead, KeyInit, Payload};
    let header = Header { connection_id: 7, channel: Channel::Unreliable, flags: Flags::SEALED, sequence };
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&7u32.to_le_bytes());
    nonce[4..].copy_from_slice(&sequence.to_le_bytes());
    let cipher = chacha20poly1305::ChaCha20Poly1305::new(&[2; 32].into());
    let payload = Payload { msg: payload, aad: &header.to_bytes() };
    let sealed = cipher.encrypt(&nonce.into(), payload).unwrap();
    [&header.to_bytes()[..], &sealed].concat()
}

#[test]
fn sequences_beyond_the_last_are_refused_and_near_it_nothing_overflows() {
    let (mut client, _) = established();
    let empty = payload(|_| {});
    for sequence in [u64::MAX, u64::MAX - 1, SEQUENCE_MAX + 1] {
        let dropped = client.handle(NOW, &mut sealed_as(sequence, &empty), &mut Log::default());
        assert_eq!(dropped, Err(DropReason::NotProtocol));
    }
    for sequence in [SEQUENCE_MAX, SEQUENCE_MAX - 1, SEQUENCE_MAX - 63] {
        let taken = client.handle(NOW, &mut sealed_as(sequence, &empty), &mut Log::default());
        assert_eq!(taken, Ok(()));
    }
}

#[test]
fn a_large_message_that_gets_no_further_ends_the_session_of_who_asks_only_whether_something_is_due() {
    let (mut client, mut server) = established();
    let stream = StreamId::new(Channel::ReliableOrdered, 0).unwrap();
    let whole = Whole { kind: FIRST_APPLICATION_TYPE, size: 4_000, plain_size: None };
    let piece = fragments::take_apart(whole, &[0; 4_000]).next().unwrap();
    let first = payload(|writer| {
        let place = Some(MessageId { stream, id: 10 });
        encode_frame(writer, ControlType::Fragment as u8, place, |writer| writer.bytes(&piece)).unwrap();
    });
    assert_eq!(give(&mut client, &mut server, &first).0, Ok(()));
    let news = payload(|writer| encode_frame(writer, FIRST_APPLICATION_TYPE, None, |_| Ok(())).unwrap());
    let mut buffer = [0; DATAGRAM_BYTES];
    for tick in 1..=660 {
        let now = NOW + Duration::from_micros(tick * 1_000_000 / 60);
        client.handle(now, &mut seal(&mut server, &news), &mut Log::default()).unwrap();
        if client.is_due(now) {
            client.on_timeout(now);
        }
        while client.poll_transmit(now, &mut buffer).is_some() {}
        let is_over = client.state() != State::Established;
        assert_eq!(is_over, now - NOW > Duration::from_secs(10), "after {:?}", now - NOW);
        if is_over {
            return;
        }
    }
}

/// A packet is lost when three later ones have arrived, also if all that those did was to acknowledge.
#[test]
fn packets_that_only_acknowledge_show_what_was_lost_before_them() {
    let (mut client, mut server) = established();
    client.send(Channel::ReliableOrdered, 1, 0x30, b"lost").unwrap();
    let mut buffer = [0; DATAGRAM_BYTES];
    while client.poll_transmit(NOW, &mut buffer).is_some() {}
    let before = Header::decode(&mut Reader::new(&buffer)).unwrap().sequence;
    let (mut now, mut last) = (NOW, before);
    while last < before + 3 {
        now = now + Duration::from_millis(30);
        client.handle(now, &mut seal(&mut server, &[0, 0x41, 1, 6]), &mut Log::default()).unwrap();
        client.on_timeout(now);
        while client.poll_transmit(now, &mut buffer).is_some() {
            last += 1;
        }
    }
    let acks = [0xc0, last as u8, 0, 0, 0, 0b11, 0, 0, 0, 0, 0, 0, 0];
    client.handle(now, &mut seal(&mut server, &acks), &mut Log::default()).unwrap();
    assert_eq!(client.stats().packets_lost, 1);
    assert!(client.poll_transmit(now, &mut buffer).is_some(), "it goes out again at once");
}

/// What takes much work to unpack counts as what it becomes.
#[test]
fn what_was_unpacked_counts_as_what_a_client_has_sent() {
    let home = "192.0.2.1:1".parse().unwrap();
    let (mut server, mut client) = served(home);
    server.set_intake(256 * 1024);
    let packed = compress::compress(&[7; 200_000]).unwrap();
    let whole = Whole { kind: 0x30, size: packed.len() as u32, plain_size: Some(200_000) };
    let body = fragments::take_apart(whole, &packed).next().unwrap();
    let stream = StreamId::new(Channel::ReliableOrdered, 1).unwrap();
    let mut outcomes = (0..20).map(|id| {
        let message = payload(|writer| {
            let place = Some(MessageId { stream, id });
            encode_frame(writer, ControlType::Fragment as u8, place, |writer| writer.bytes(&body)).unwrap();
        });
        server.handle_from(NOW, home, &mut seal(&mut client, &message), &mut Log::default())
    });
    let taken = outcomes.by_ref().take_while(Result::is_ok).count();
    assert_eq!(taken, 2, "a second of the rate, and what exceeds it");
    assert!(outcomes.all(|outcome| outcome == Err(DropReason::TooFast)));
}
