//! No nonce is used twice under a key: sequences only grow, in each direction of every session, over new keys,
//! retransmissions and everything else that seals, on several threads at a time. (The sealer alone does 10^7 in its
//! own tests.)

mod common;

use std::thread;
use std::time::Duration;

use common::{BAD, Net, To};
use shadowland_proto::{Channel, EndpointConfig, RekeyLimits};
use shadowland_wire::codec::Reader;
use shadowland_wire::header::{Flags, Header};

/// What a thread has seen.
#[derive(Debug, Default)]
struct Seen {
    seals: u64,
    rekeys: u64,
    resent: u64,
}

/// A session over a bad link, with reliable messages both ways and new keys every 20 kB, until so many packets were
/// sealed.
fn seal(seed: u64, seals: u64) -> Seen {
    let rekey = RekeyLimits { bytes: 20_000, ..RekeyLimits::default() };
    let mut net = Net::connected_to(seed, BAD, EndpointConfig { rekey, ..EndpointConfig::default() });
    let id = net.clients[0].connection().id();
    let (mut seen, mut last) = (Seen::default(), [0, 0]);
    for number in 0u32.. {
        let body = number.to_le_bytes();
        let _ = net.clients[0].connection().send(Channel::ReliableOrdered, 0, 0x20, &body);
        let _ = net.session().connection.send(Channel::ReliableUnordered, 0, 0x41, &body);
        net.client_says(0, 0x20, &body);
        net.server_says(0x41, &[number as u8; 200]);
        net.run(Duration::from_millis(5));
        for (to, datagram) in net.sent.drain(..) {
            let header = Header::decode(&mut Reader::new(&datagram)).unwrap();
            if header.flags.contains(Flags::SEALED) {
                let last = &mut last[usize::from(matches!(to, To::Server { .. }))];
                assert_eq!(header.connection_id, id);
                assert!(header.sequence > *last, "{header:?} after {last}");
                *last = header.sequence;
                seen.seals += 1;
            }
        }
        if seen.seals >= seals {
            break;
        }
    }
    for stats in [*net.session().connection.stats(), *net.clients[0].connection().stats()] {
        seen.rekeys += stats.rekeys;
        seen.resent += stats.messages_resent;
    }
    seen
}

fn on_four_threads(seals_each: u64) {
    let threads: Vec<_> = (0..4).map(|seed| thread::spawn(move || seal(seed, seals_each))).collect();
    for thread in threads {
        let seen = thread.join().unwrap();
        assert!(seen.rekeys > seen.seals / 500 && seen.resent > seen.seals / 500, "{seen:?}");
    }
}

#[test]
fn sequences_only_grow_over_rekeys_retransmissions_and_threads() {
    on_four_threads(5_000);
}

/// `cargo test --release -p shadowland-proto --test nonces -- --ignored`
#[test]
#[ignore = "the long form: 10^7 packets of whole sessions"]
fn sequences_only_grow_over_ten_million_packets() {
    on_four_threads(2_500_000);
}
