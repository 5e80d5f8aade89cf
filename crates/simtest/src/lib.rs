//! The server and its clients in one thread, under virtual time, over a bad network, driven by a seed.
//!
//! The same seed gives the same run, bit for bit, so that a failure is reproduced by one command.

//!
//! | module | holds |
//! |---|---|
//! | [`lossy`] | a profile: the whole server and its clients over bad links |
//! | [`rekey`] | a profile: the same with new keys and new addresses all the time |
//! | [`reliable`] | two profiles: reliable messages over random links, and over all combinations |
//! | [`bottleneck`] | congestion control, measured |
//! | [`net`] | sessions without a server on a shared link |
//! | [`replication`] | a profile: replication alone, without the session protocol |
//! | [`machine`] | the server under virtual time |
//! | [`player`] | a client with a will of its own |
//! | [`link`] | a bad network |
//! | [`truth`] | what must hold of replication |
//! | [`spy`] | what must hold of every datagram |

#![forbid(unsafe_code)]

pub mod bottleneck;
pub mod link;
pub mod lossy;
pub mod machine;
pub mod net;
pub mod player;
pub mod rekey;
pub mod reliable;
pub mod replication;
pub mod spy;
pub mod truth;

/// Length of a tick, in microseconds.
pub const TICK_US: u64 = 1_000_000 / 60;

/// What a run without a violation was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Datagrams that were lost, doubled or overtaken.
    pub faults: u64,
    /// Packets that were sent.
    pub messages: u64,
    /// Times that the server has replaced the keys of a session that is alive at the end.
    pub rekeys: u64,
    /// Integrity challenges that the client of such a session has answered.
    pub proofs: u64,
    /// Times that such a session has moved to another address.
    pub moves: u64,
    /// Poses of crowds that told somebody something new.
    pub poses: u64,
    /// Fingerprint of the world at the end.
    pub world_hash: u64,
    /// Fingerprint of all that was sent.
    pub traffic_hash: u64,
}

/// An invariant that does not hold, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub String);

/// Runs a seed twice: both runs must be the same, to the last byte that was sent.
pub fn run_twice(run: impl Fn(u64) -> Result<Outcome, Violation>, seed: u64) -> Result<Outcome, Violation> {
    let first = run(seed)?;
    let second = run(seed)?;
    if first == second {
        Ok(first)
    } else {
        Err(Violation(format!("two runs of the same seed differ: {first:?} and {second:?}")))
    }
}
