//! What a connection counts.

use std::mem::offset_of;

use crate::drop_reason::Dropped;

/// Counters of one connection since it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Stats {
    /// Packets that were sealed.
    pub packets_sent: u64,
    /// Bytes of those, header and tag included.
    pub bytes_sent: u64,
    /// Packets that opened.
    pub packets_received: u64,
    /// Bytes of those, header and tag included.
    pub bytes_received: u64,
    /// Sent packets that the peer has applied.
    pub packets_acked: u64,
    /// Bytes of the application's messages that were sent, by the number of their channel: unreliable ones with
    /// their frames; reliable ones as they were sent, so compressed and as often as it took.
    pub body_bytes_sent: [u64; 3],
    /// Sent packets that were taken for lost, because later ones were acknowledged.
    pub packets_lost: u64,
    /// Those of them that were acknowledged after all: the link reorders.
    pub packets_late: u64,
    /// Reliable messages that were put into another packet.
    pub messages_resent: u64,
    /// Times that a reliable message was not acknowledged before its timeout.
    pub messages_timed_out: u64,
    /// Messages of a type that this version does not know; skipped.
    pub messages_unknown: u64,
    /// Times that this side began to seal with new keys.
    pub rekeys: u64,
    /// Times that the peer's address has changed.
    pub migrations: u64,
    /// Apparent moves of a peer that was still where it had been.
    pub moves_refused: u64,
    /// Integrity challenges that the client has answered; at the server, that it has answered rightly.
    pub integrity_answered: u64,
    /// Those that the client has failed, at the server.
    pub integrity_failed: u64,
    /// Datagrams that were dropped.
    pub dropped: Dropped,
}

impl Stats {
    /// What every packet changes comes first.
    pub(super) const HEAD_BYTES: usize = offset_of!(Self, body_bytes_sent) + size_of::<u64>();
}
