//! Why a datagram was dropped, and how often.

use thiserror::Error;

/// Why a datagram was dropped. Peer input is counted by reason and never logged per packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
#[repr(u8)]
pub enum DropReason {
    /// It came from port 0, to which nothing can be sent.
    #[error("from port 0")]
    NoPort,
    /// Larger than any datagram of the protocol.
    #[error("larger than any datagram of the protocol")]
    TooLarge,
    /// Not a header, or not a handshake message.
    #[error("not a message of the protocol")]
    NotProtocol,
    /// No session has the header's connection id.
    #[error("no session has its connection id")]
    UnknownSession,
    /// The cookie was not made by this server for this client.
    #[error("the cookie was not made by this server for this client")]
    BadCookie,
    /// The cookie is older than it may be, or from the future.
    #[error("the cookie is too old or from the future")]
    StaleCookie,
    /// Too many requests from the client's network.
    #[error("too many requests from its network")]
    NetworkRate,
    /// As many half-open sessions as there may be.
    #[error("too many half-open sessions")]
    HalfOpenFull,
    /// As many handshakes as the endpoint computes in this time.
    #[error("the budget for handshakes is used up")]
    HandshakeBudget,
    /// The Noise message does not open: made for another server's key, or damaged.
    #[error("the handshake does not open: made for another key, or damaged")]
    HandshakeFailed,
    /// The login token does not let its bearer in; the client is told.
    #[error("the login token does not let its bearer in")]
    BadToken,
    /// The answer belongs to another client on the same socket.
    #[error("an answer for another client")]
    ForeignAnswer,
    /// Not a packet of this session, or with flags that a session's packet cannot have.
    #[error("not a sealed packet of this session")]
    NotSealed,
    /// The client sends more than it may.
    #[error("its client sends more than it may")]
    TooFast,
    /// The sequence was received before.
    #[error("received before")]
    Replayed,
    /// The sequence is behind the replay window.
    #[error("too old to tell whether it was received before")]
    BehindWindow,
    /// Sealed with keys that are no longer in use, or not yet.
    #[error("sealed with keys that are no longer in use, or not yet")]
    WrongPhase,
    /// The tag does not verify.
    #[error("the tag does not verify")]
    BadTag,
    /// The payload of a sealed packet is not a sequence of messages.
    #[error("the sealed payload is malformed")]
    Malformed,
    /// More messages than a packet may carry.
    #[error("more messages than a packet may carry")]
    TooManyMessages,
    /// Messages before the ReliableHandshake was through.
    #[error("messages before the reliable handshake")]
    NotEstablished,
    /// A reliable message too far ahead to be held; its packet stays unacknowledged.
    #[error("a reliable message is too far ahead")]
    AheadOfWindow,
    /// The session is over.
    #[error("the session is over")]
    Closed,
}

impl DropReason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 23] = [
        Self::NoPort,
        Self::TooLarge,
        Self::NotProtocol,
        Self::UnknownSession,
        Self::BadCookie,
        Self::StaleCookie,
        Self::NetworkRate,
        Self::HalfOpenFull,
        Self::HandshakeBudget,
        Self::HandshakeFailed,
        Self::BadToken,
        Self::ForeignAnswer,
        Self::NotSealed,
        Self::TooFast,
        Self::Replayed,
        Self::BehindWindow,
        Self::WrongPhase,
        Self::BadTag,
        Self::Malformed,
        Self::TooManyMessages,
        Self::NotEstablished,
        Self::AheadOfWindow,
        Self::Closed,
    ];
}

/// Dropped datagrams by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dropped([u64; DropReason::ALL.len()]);

impl Dropped {
    /// How many were dropped for this reason.
    #[must_use]
    pub fn by(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// How many were dropped altogether.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Counts one more.
    pub fn count(&mut self, reason: DropReason) {
        self.0[reason as usize] += 1;
    }

    /// Adds what somebody else counted.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter() {
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
