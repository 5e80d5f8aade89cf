//! Sessions that go on for long, get new keys every few hundred packets, move to other addresses, and have to answer
//! integrity challenges, over links with 10 % loss, 50 ms +- 40 ms each way, reordering and duplicates. Nothing but the
//! keys may notice.

use std::time::Duration;

use crate::link::Conditions;
use crate::lossy::{self, Scenario};
use crate::{Outcome, Violation};

/// What happens in it.
pub const SCENARIO: Scenario = Scenario {
    conditions: Conditions {
        loss: 0.1,
        latency_us: 50_000,
        jitter_us: 40_000,
        reorder: 0.1,
        duplicate: 0.02,
    },
    steady: true,
    rekey_bytes: Some((10_000, 40_000)),
    integrity_interval: Some(Duration::from_secs(3)),
    seconds: (20, 30),
};

/// Runs one seed.
pub fn run(seed: u64) -> Result<Outcome, Violation> {
    let outcome = lossy::run_scenario(seed, SCENARIO)?;
    match outcome {
        Outcome { rekeys: 0, .. } => Err(Violation("no session has got new keys".to_owned())),
        Outcome { proofs: 0, .. } => Err(Violation("nobody has answered an integrity challenge".to_owned())),
        outcome => Ok(outcome),
    }
}
