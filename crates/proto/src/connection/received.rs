//! Which of the peer's packets were applied, and when to tell the peer.

use shadowland_wire::ack::{AckBlock, AckDelay};

use super::config::TransportConfig;
use crate::Time;

/// The packets that were received and applied.
#[derive(Debug)]
pub(super) struct Received {
    /// The largest applied sequence; 0 before the first.
    largest: u64,
    largest_at: Time,
    /// As in an [`AckBlock`]: what lies before the first packet counts as applied.
    mask: u64,
    /// When an acknowledgement must leave.
    due: Option<Time>,
    /// Applied packets that ask for an acknowledgement and have had none.
    owed: u32,
    /// Of those, the ones with reliable messages.
    owed_reliable: u32,
}

/// What an applied packet asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    /// Nothing: it carried only acknowledgements.
    Nothing,
    /// An acknowledgement that can wait for company.
    Soon,
    /// The same, for reliable messages: the sender's rate hangs on it.
    ForReliable,
}

impl Received {
    pub(super) fn new() -> Self {
        Self { largest: 0, largest_at: Time::default(), mask: u64::MAX, due: None, owed: 0, owed_reliable: 0 }
    }

    /// Remembers an applied packet.
    #[inline]
    pub(super) fn applied(&mut self, config: &TransportConfig, now: Time, sequence: u64, asks: Asks) {
        let leaves_gap = sequence.saturating_sub(self.largest) > 1;
        if sequence > self.largest {
            let step = sequence - self.largest;
            self.mask = match step {
                1..=64 => (self.mask << 1 | 1) << (step - 1),
                _ => 0,
            };
            self.largest = sequence;
            self.largest_at = now;
        } else if let Some(bit) = (self.largest - sequence).checked_sub(1).filter(|&bit| bit < 64) {
            self.mask |= 1 << bit;
        }
        if asks != Asks::Nothing {
            self.owed += 1;
            self.owed_reliable += u32::from(asks == Asks::ForReliable);
            // A gap may be a loss, which the sender is to learn of soon if it can do something about it.
            let may_be_loss = leaves_gap && asks == Asks::ForReliable;
            let enough = self.owed >= config.ack_packets || self.owed_reliable >= config.ack_reliable_packets;
            let due = if enough || may_be_loss { now } else { now + config.ack_delay };
            self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
        }
    }

    /// The block for a packet that leaves now; `None` before anything was applied.
    #[inline]
    pub(super) fn block(&self, now: Time) -> Option<AckBlock> {
        (self.largest != 0).then(|| AckBlock {
            largest_low: self.largest as u32,
            mask: self.mask,
            delay: AckDelay::from_micros(now.micros_since(self.largest_at)),
        })
    }

    /// A packet with the current block has left.
    #[inline]
    pub(super) fn sent(&mut self) {
        (self.owed, self.owed_reliable) = (0, 0);
        self.due = None;
    }

    /// When an acknowledgement must leave, with or without company.
    pub(super) fn due(&self) -> Option<Time> {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::time::Duration;

    proptest! {
        #[test]
        fn a_block_names_exactly_what_was_applied(steps in proptest::collection::vec(-70i64..80, 1..200)) {
            let (mut received, mut applied, mut largest) = (Received::new(), BTreeSet::new(), 0u64);
            for step in steps {
                let sequence = largest.saturating_add_signed(step).max(1);
                received.applied(&TransportConfig::default(), Time::default(), sequence, Asks::Soon);
                applied.insert(sequence);
                largest = largest.max(sequence);

                let block = received.block(Time::default()).unwrap();
                prop_assert_eq!(block.largest_low, largest as u32);
                for bit in 0..64u64 {
                    let named = block.mask & (1 << bit) != 0;
                    let expected = match largest.checked_sub(bit + 1) {
                        None | Some(0) => true,
                        Some(sequence) => applied.contains(&sequence),
                    };
                    prop_assert_eq!(named, expected, "bit {} below {}", bit, largest);
                }
            }
        }
    }

    #[test]
    fn an_acknowledgement_waits_a_little_but_not_for_many_packets() {
        let mut received = Received::new();
        let start = Time::from_micros(1_000);
        assert_eq!(received.block(start), None);
        received.applied(&TransportConfig::default(), start, 1, Asks::Nothing);
        assert_eq!(received.due(), None);
        received.applied(&TransportConfig::default(), start, 2, Asks::Soon);
        assert_eq!(received.due(), Some(start + Duration::from_millis(25)));
        for sequence in 3..10 {
            received.applied(&TransportConfig::default(), start, sequence, Asks::Soon);
        }
        assert_eq!(received.due(), Some(start));
        received.sent();
        assert_eq!(received.due(), None);
    }

    #[test]
    fn reliable_messages_are_acknowledged_sooner_and_at_once_where_one_may_be_missing() {
        let mut received = Received::new();
        let start = Time::from_micros(1_000);
        received.applied(&TransportConfig::default(), start, 1, Asks::ForReliable);
        assert_eq!(received.due(), Some(start + Duration::from_millis(25)));
        received.applied(&TransportConfig::default(), start, 2, Asks::ForReliable);
        assert_eq!(received.due(), Some(start));
        received.sent();
        received.applied(&TransportConfig::default(), start, 4, Asks::Soon);
        assert_eq!(received.due(), Some(start + Duration::from_millis(25)));
        received.applied(&TransportConfig::default(), start, 6, Asks::ForReliable);
        assert_eq!(received.due(), Some(start));
    }
}
