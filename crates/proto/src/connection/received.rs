//! Which of the peer's packets were applied, and when to tell the peer.

use std::time::Duration;

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
    /// Applied packets that ask for an acknowledgement and have had none.
    owed: u32,
    due: Option<Time>,
    delay: Duration,
    at_once: u32,
}

impl Received {
    pub(super) fn new(config: &TransportConfig) -> Self {
        Self {
            largest: 0,
            largest_at: Time::default(),
            mask: u64::MAX,
            owed: 0,
            due: None,
            delay: config.ack_delay,
            at_once: config.ack_packets,
        }
    }

    /// Remembers an applied packet. One that carries only acknowledgements asks for none itself.
    #[inline]
    pub(super) fn applied(&mut self, now: Time, sequence: u64, asks: bool) {
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
        if asks {
            self.owed += 1;
            let due = if self.owed >= self.at_once { now } else { now + self.delay };
            self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
        }
    }

    /// The block for a packet that leaves now; `None` before anything was applied.
    #[inline]
    pub(super) fn block(&self, now: Time) -> Option<AckBlock> {
        (self.largest != 0).then(|| AckBlock {
            largest_low: self.largest as u32,
            mask: self.mask,
            delay: AckDelay::from_micros((now - self.largest_at).as_micros() as u64),
        })
    }

    /// A packet with the current block has left.
    #[inline]
    pub(super) fn sent(&mut self) {
        self.owed = 0;
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

    proptest! {
        #[test]
        fn a_block_names_exactly_what_was_applied(steps in proptest::collection::vec(-70i64..80, 1..200)) {
            let (mut received, mut applied, mut largest) = (Received::new(&TransportConfig::default()), BTreeSet::new(), 0u64);
            for step in steps {
                let sequence = largest.saturating_add_signed(step).max(1);
                received.applied(Time::default(), sequence, true);
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
        let mut received = Received::new(&TransportConfig::default());
        let start = Time::from_micros(1_000);
        assert_eq!(received.block(start), None);
        received.applied(start, 1, false);
        assert_eq!(received.due(), None);
        received.applied(start, 2, true);
        assert_eq!(received.due(), Some(start + Duration::from_millis(25)));
        for sequence in 3..10 {
            received.applied(start, sequence, true);
        }
        assert_eq!(received.due(), Some(start));
        received.sent();
        assert_eq!(received.due(), None);
    }
}
