//! What a peer with the keys may make of a rekey, and what it may not; both sides without a network.

use super::*;
use crate::connection::tests::{NOW, connection};
use shadowland_wire::header::HEADER_BYTES;
use shadowland_wire::limits::TAG_BYTES;

const PTO: Duration = Duration::from_millis(250);

/// Both sides' keys, and the keys that they seal with.
struct Pair {
    server: Keys,
    client: Keys,
    server_key: Secret,
    client_key: Secret,
}

impl Pair {
    fn new() -> Self {
        let secret = |byte| Zeroizing::new([byte; KEY_BYTES]);
        let keys =
            || SessionKeys { client_to_server: secret(1), server_to_client: secret(2), chain: secret(3) };
        let entropy =
            |seed| Entropy::new(&mut <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed));
        Self {
            server: Keys::new(Role::Server, keys(), entropy(1), NOW),
            client: Keys::new(Role::Client, keys(), entropy(2), NOW),
            server_key: secret(2),
            client_key: secret(1),
        }
    }

    /// One rekey, without a loss.
    fn rekey(&mut self, now: Time) {
        let Some(Control::RekeyRequest { number, share }) = self.ask(now) else { panic!("no request") };
        assert!(matches!(self.client.request(number, &share), Ok(Step::Send)));
        let Some(Control::RekeyResponse { number, share }) = self.client.message() else {
            panic!("no response")
        };
        let Ok(Step::Flip(key)) = self.server.response(number, &share) else { panic!("no flip") };
        self.server_key = key;
        let Step::Flip(key) = opened(&mut self.client, now, &header(number, 100)) else {
            panic!("the client does not flip")
        };
        self.client_key = key;
        assert!(matches!(opened(&mut self.server, now, &header(number, 100)), Step::Nothing));
    }

    fn ask(&mut self, now: Time) -> Option<Control> {
        self.server.sealed(1_000_000_000);
        assert!(matches!(self.server.on_timeout(now, PTO), Ok(Step::Send)));
        self.server.message()
    }
}

/// As a connection does it.
fn opened(keys: &mut Keys, now: Time, header: &Header) -> Step {
    if keys.is_current(header) {
        keys.opened(header.sequence, 50);
        return Step::Nothing;
    }
    keys.opened_other(now, header.sequence, PTO)
}

fn header(number: u32, sequence: u64) -> Header {
    let phase = if number & 1 == 1 { Flags::KEY_PHASE } else { Flags::NONE };
    let channel = shadowland_wire::header::Channel::Unreliable;
    Header { connection_id: 7, channel, flags: Flags::SEALED.with(phase), sequence }
}

#[test]
fn both_sides_get_the_same_fresh_keys_every_time() {
    let mut pair = Pair::new();
    let mut seen = vec![pair.server_key.to_vec(), pair.client_key.to_vec()];
    let mut now = NOW;
    for round in 1..=20u32 {
        pair.rekey(now);
        for key in [&pair.server_key, &pair.client_key, &pair.server.chain] {
            assert!(!seen.contains(&key.to_vec()), "round {round}");
            seen.push(key.to_vec());
        }
        assert_eq!(pair.server.chain[..], pair.client.chain[..]);
        assert_eq!((pair.server.number, pair.client.number), (round, round));
        // What the server seals, the client opens.
        let mut sealer = crate::crypto::seal::Sealer::new(&pair.server_key, 7);
        let mut packet = [0; HEADER_BYTES + TAG_BYTES];
        let flags = if round & 1 == 1 { Flags::KEY_PHASE } else { Flags::NONE };
        sealer.seal(&mut packet, shadowland_wire::header::Channel::Unreliable, flags);
        let head = Header::decode(&mut shadowland_wire::codec::Reader::new(&packet)).unwrap();
        assert!(pair.client.open(now, &head, &mut packet).is_ok());
        now = now + 3 * PTO;
        for keys in [&mut pair.server, &mut pair.client] {
            assert!(matches!(keys.on_timeout(now, PTO), Ok(Step::Nothing)), "the old key is forgotten");
            assert!(matches!(keys.other, Other::None));
        }
    }
}

#[test]
fn no_request_before_the_phase_is_settled() {
    let mut pair = Pair::new();
    pair.rekey(NOW);
    pair.server.sealed(1_000_000_000);
    let early = NOW + Duration::from_millis(749);
    assert!(matches!(pair.server.on_timeout(early, PTO), Ok(Step::Nothing)));
    assert!(matches!(pair.server.on_timeout(NOW + 3 * PTO, PTO), Ok(Step::Send)));
}

#[test]
fn repeated_messages_are_answered_alike_and_late_ones_ignored() {
    let mut pair = Pair::new();
    let Some(Control::RekeyRequest { number, share }) = pair.ask(NOW) else { panic!("no request") };
    assert!(pair.client.request(number, &share).is_ok());
    let answer = pair.client.message();
    assert!(matches!(pair.client.request(number, &share), Ok(Step::Send)));
    assert_eq!(pair.client.message(), answer);
    // Another share under the same number: no honest server.
    assert!(matches!(pair.client.request(number, &[9; KEY_BYTES]), Err(Violation)));

    let Some(Control::RekeyResponse { share: client_share, .. }) = answer else { panic!("no response") };
    assert!(matches!(pair.server.response(number, &client_share), Ok(Step::Flip(_))));
    assert!(matches!(pair.server.response(number, &client_share), Ok(Step::Nothing)));
    let _ = opened(&mut pair.client, NOW, &header(1, 10));
    let _ = opened(&mut pair.server, NOW, &header(1, 10));
    assert!(matches!(pair.client.request(number, &share), Ok(Step::Nothing)));
    assert!(matches!(pair.server.response(number, &client_share), Ok(Step::Nothing)));
}

#[test]
fn messages_that_nobody_asked_for_are_violations() {
    let mut pair = Pair::new();
    let share = *KeyPair::new(&[5; 32]).public();
    assert!(matches!(pair.server.response(1, &share), Err(Violation)));
    assert!(matches!(pair.server.response(2, &share), Err(Violation)));
    assert!(matches!(pair.server.request(1, &share), Err(Violation)));
    assert!(matches!(pair.client.response(1, &share), Err(Violation)));
    assert!(matches!(pair.client.request(2, &share), Err(Violation)));
    // A point of low order, whose secret anybody knows.
    assert!(matches!(pair.client.request(1, &[0; KEY_BYTES]), Err(Violation)));
    let _ = pair.ask(NOW);
    assert!(matches!(pair.server.response(1, &[0; KEY_BYTES]), Err(Violation)));
}

#[test]
fn a_violation_ends_the_session() {
    let mut server = connection(Role::Server);
    let result = server.keys.response(1, &[9; KEY_BYTES]);
    assert_eq!(server.apply_rekey(NOW, result), Err(DropReason::Malformed));
    let reason = super::super::CloseReason::Local(DisconnectReason::ProtocolViolation);
    assert_eq!(server.state(), super::super::State::Closed(reason));
}

#[test]
fn keys_that_could_not_be_replaced_end_the_session() {
    for role in [Role::Client, Role::Server] {
        let old = NOW + Duration::from_secs(KEY_SECONDS_MAX);
        let mut connection = connection(role);
        connection.state = super::super::State::Established;
        assert_eq!(connection.keys.on_timeout(old, PTO).err(), Some(Exhausted));
        connection.keys.sealed(KEY_BYTES_MAX as usize);
        assert!(connection.next_timeout() <= Some(NOW));
        connection.on_timeout(NOW);
        let reason = super::super::CloseReason::Local(DisconnectReason::KeysExhausted);
        assert_eq!(connection.state(), super::super::State::Closed(reason), "{role:?}");
    }
}

#[test]
fn limits_are_drawn_from_the_last_eighth() {
    let mut pair = Pair::new();
    let limits = RekeyLimits { bytes: 256_000, age: Duration::from_secs(256) };
    let mut drawn = std::collections::BTreeSet::new();
    for _ in 0..200 {
        pair.server.set_limits(limits);
        assert!((224_000..=256_000).contains(&pair.server.due_bytes));
        let age = pair.server.due_at - NOW;
        assert!((223..=256).contains(&age.as_secs()), "{age:?}");
        drawn.insert(pair.server.due_bytes);
    }
    assert!(drawn.len() > 20);
    pair.server.set_limits(RekeyLimits { bytes: u64::MAX, ..limits });
    assert_eq!(u64::from(pair.server.due_bytes), KEY_BYTES_MAX);
}
