//! The server and its clients in one thread, under virtual time, over a bad network, driven by a seed.
//!
//! The same seed gives the same run, bit for bit, so that a failure is reproduced by one command.

#![forbid(unsafe_code)]

pub mod link;
pub mod replication;
pub mod truth;

/// What a run without a violation was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Datagrams that were lost, doubled or overtaken.
    pub faults: u64,
    /// Packets that were sent.
    pub messages: u64,
    /// Fingerprint of the world at the end.
    pub world_hash: u64,
}

/// An invariant that does not hold, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub String);
