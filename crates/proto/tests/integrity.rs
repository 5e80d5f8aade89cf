//! Integrity challenges: who has the keys of its version is left in peace, who has not is found out, and the network
//! is nobody's fault.

mod common;

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use common::{Link, Net, PERFECT};
use rand::SeedableRng;
use rand::rngs::StdRng;
use shadowland_proto::{
    ConnectConfig, EndpointConfig, IntegrityChecks, IntegrityFailure, IntegrityTable, IntegrityTables, State,
};

const INTERVAL: Duration = Duration::from_secs(2);

fn table(version: u16, seed: u64) -> IntegrityTable {
    IntegrityTable::generate(NonZeroU16::new(version).unwrap(), &mut StdRng::seed_from_u64(seed))
}

/// A server that knows the versions 6 and 7.
fn checking() -> EndpointConfig {
    let tables = Arc::new(IntegrityTables::new([table(6, 6), table(7, 7)]).unwrap());
    EndpointConfig {
        integrity: Some(IntegrityChecks { tables, interval: INTERVAL }),
        ..EndpointConfig::default()
    }
}

/// Such a server and one client, which has this table.
fn connected(seed: u64, table: Option<IntegrityTable>) -> Net {
    let mut net = Net::new(seed, PERFECT, checking());
    net.join(ConnectConfig { integrity: table.map(Arc::new), ..ConnectConfig::default() });
    net.run_until(Duration::from_secs(10), Net::all_established);
    net
}

/// Challenges that the client has answered rightly, and not.
fn counted(net: &mut Net) -> (u64, u64) {
    let stats = net.session().connection.stats();
    (stats.integrity_answered, stats.integrity_failed)
}

/// Runs until the client has failed.
fn failure(net: &mut Net) -> IntegrityFailure {
    let mut failure = None;
    net.run_until(Duration::from_secs(60), |net| {
        failure = net.session().connection.take_integrity_failure();
        failure.is_some()
    });
    failure.unwrap()
}

#[test]
fn a_client_of_any_known_version_answers_again_and_again() {
    for version in [6, 7] {
        let mut net = connected(1, Some(table(version, version.into())));
        assert_eq!(net.clients[0].connection().parameters().integrity_version, 7, "the newest");
        net.run(Duration::from_secs(60));
        let (passed, failed) = counted(&mut net);
        // Every 2 s on average.
        assert!((24..=36).contains(&passed), "{passed} in a minute");
        assert_eq!((failed, net.session().connection.take_integrity_failure()), (0, None));
        assert!(net.all_established());
    }
}

#[test]
fn without_a_table_there_is_no_answer_and_it_does_not_take_long() {
    let mut net = connected(2, None);
    let start = net.now;
    assert_eq!(failure(&mut net), IntegrityFailure::NoAnswer);
    assert!((net.now - start) < Duration::from_secs(12), "{:?}", net.now - start);
    // What comes of it is not decided here; the next challenge follows.
    assert_eq!(failure(&mut net), IntegrityFailure::NoAnswer);
    assert_eq!(counted(&mut net), (0, 2));
    assert!(net.all_established());
}

#[test]
fn other_keys_and_other_versions_are_found_out_at_the_first_answer() {
    for (table, expected) in
        [(table(7, 99), IntegrityFailure::Wrong(7)), (table(5, 5), IntegrityFailure::UnknownVersion(5))]
    {
        let mut net = connected(3, Some(table));
        let start = net.now;
        assert_eq!(failure(&mut net), expected);
        assert!((net.now - start) < 2 * INTERVAL, "{:?}", net.now - start);
    }
}

#[test]
fn a_bad_link_and_a_blackout_are_no_failure() {
    let link = Link {
        loss: 0.3,
        duplicates: 0.1,
        delay: Duration::from_millis(100),
        jitter: Duration::from_millis(100),
    };
    for seed in 0..5 {
        let mut net = connected(seed, Some(table(7, 7)));
        net.link = link;
        for _ in 0..3 {
            net.run(Duration::from_secs(15));
            net.lose = |_| true;
            net.run(Duration::from_secs(10));
            net.lose = |_| false;
        }
        net.run(Duration::from_secs(15));
        let (passed, failed) = counted(&mut net);
        assert!(passed > 10 && failed == 0, "seed {seed}: {passed} passed, {failed} failed");
        assert_eq!(net.clients[0].state(), Some(State::Established));
    }
}

#[test]
fn nobody_is_asked_where_there_are_no_checks() {
    let mut net = Net::new(4, PERFECT, EndpointConfig::default());
    net.join(ConnectConfig { integrity: Some(Arc::new(table(7, 7))), ..ConnectConfig::default() });
    net.run_until(Duration::from_secs(10), Net::all_established);
    assert_eq!(net.clients[0].connection().parameters().integrity_version, 0);
    net.run(Duration::from_secs(30));
    assert_eq!(counted(&mut net), (0, 0));
}
