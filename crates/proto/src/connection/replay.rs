//! The replay window: which sequences have been received.

use shadowland_wire::limits::REPLAY_WINDOW;

use crate::drop_reason::DropReason;

const WORDS: usize = (REPLAY_WINDOW / 64) as usize;
const _: () = assert!(REPLAY_WINDOW >= 64 && REPLAY_WINDOW.is_multiple_of(64));

/// Remembers the largest sequence and which of the [`REPLAY_WINDOW`] up to it were received.
#[derive(Debug)]
pub(super) struct ReplayWindow {
    largest: u64,
    /// Bit `i` of word `w` stands for `largest - 64 * w - i`.
    seen: [u64; WORDS],
}

impl ReplayWindow {
    pub(super) fn new() -> Self {
        Self { largest: 0, seen: [0; WORDS] }
    }

    /// The largest sequence that was received; 0 before the first.
    #[inline]
    pub(super) fn largest(&self) -> u64 {
        self.largest
    }

    /// Whether a packet with this sequence may be opened. Changes nothing: a forged packet must not either.
    #[inline]
    pub(super) fn check(&self, sequence: u64) -> Result<(), DropReason> {
        if sequence > self.largest {
            return Ok(());
        }
        let age = self.largest - sequence;
        // Sequences count from 1.
        if age >= REPLAY_WINDOW || sequence == 0 {
            Err(DropReason::BehindWindow)
        } else if self.seen[(age / 64) as usize] & (1 << (age % 64)) != 0 {
            Err(DropReason::Replayed)
        } else {
            Ok(())
        }
    }

    /// Remembers a sequence whose packet has opened.
    #[inline]
    pub(super) fn mark(&mut self, sequence: u64) {
        if sequence > self.largest {
            self.advance(sequence - self.largest);
            self.largest = sequence;
        }
        let age = self.largest - sequence;
        if age < REPLAY_WINDOW {
            self.seen[(age / 64) as usize] |= 1 << (age % 64);
        }
    }

    fn advance(&mut self, by: u64) {
        if by >= REPLAY_WINDOW {
            self.seen = [0; WORDS];
            return;
        }
        let (words, bits) = ((by / 64) as usize, by % 64);
        for word in (0..WORDS).rev() {
            let taken = |offset: usize| (word >= words + offset).then(|| self.seen[word - words - offset]);
            let high = taken(0).unwrap_or(0) << bits;
            let carried = if bits == 0 { 0 } else { taken(1).unwrap_or(0) >> (64 - bits) };
            self.seen[word] = high | carried;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// The window against the simplest thing that is right: a set of everything received.
        #[test]
        fn the_window_agrees_with_a_set(
            steps in proptest::collection::vec((-80i64..100, proptest::bool::weighted(0.02)), 1..400),
        ) {
            let (mut window, mut received, mut largest) = (ReplayWindow::new(), BTreeSet::new(), 0u64);
            for (step, leap) in steps {
                let step = if leap { 1_000_000 } else { step };
                let sequence = largest.saturating_add_signed(step);
                let expected = if sequence + REPLAY_WINDOW <= largest || sequence == 0 {
                    Err(DropReason::BehindWindow)
                } else if received.contains(&sequence) {
                    Err(DropReason::Replayed)
                } else {
                    Ok(())
                };
                prop_assert_eq!(window.check(sequence), expected, "sequence {}", sequence);
                if expected.is_ok() {
                    window.mark(sequence);
                    received.insert(sequence);
                    largest = largest.max(sequence);
                }
            }
        }
    }

    #[test]
    fn the_last_sequence_does_not_overflow() {
        let mut window = ReplayWindow::new();
        window.mark(u64::MAX);
        assert_eq!(window.check(u64::MAX), Err(DropReason::Replayed));
        assert_eq!(window.check(u64::MAX - REPLAY_WINDOW + 1), Ok(()));
        assert_eq!(window.check(u64::MAX - REPLAY_WINDOW), Err(DropReason::BehindWindow));
    }
}
