//! Crowds, as a viewer sees them: how often each of their pages comes, and what is known to have arrived.
//!
//! The pages of a crowd go round: each has its turn once in a **period**, at a phase that is the same for all viewers.
//! The more pages a viewer sees, the longer the period: these are the steps of detail.

use crate::Tick;

/// Bytes of blocks in the one packet that a viewer in a crowd gets in a tick: beside what is always in it, the
/// datagram has 1,150 bytes at most.
pub(super) const CROWD_BYTES: usize = 1_060;
/// Pages of crowds that wait for room at most; while so many do, no other has its turn.
pub(super) const WAITING_PAGES: usize = 4;

/// How finely a player sees the crowds around it: how often each of their pages has its turn. Who is near comes in
/// every tick besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum CrowdDetail {
    /// No crowd in sight: everything by its distance.
    #[default]
    Full,
    /// Every tenth of a second.
    Dense,
    /// Every fifth of a second.
    Thick,
    /// Every 0.4 s.
    Packed,
    /// Every 0.8 s.
    Crammed,
    /// Every 1.6 s.
    Swarm,
    /// Every 2.8 s.
    Host,
}

impl CrowdDetail {
    /// All steps, the finest first.
    pub const ALL: [Self; 7] =
        [Self::Full, Self::Dense, Self::Thick, Self::Packed, Self::Crammed, Self::Swarm, Self::Host];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        ["full", "dense", "thick", "packed", "crammed", "swarm", "host"][self as usize]
    }

    /// Ticks between the turns of a crowd's page; 0: there is none.
    #[must_use]
    pub fn period(self) -> Tick {
        [0, 6, 12, 24, 48, 96, 168][self as usize]
    }

    /// The step for so many pages of crowds in sight: five in two ticks at most, as long as there is such a step.
    pub(super) fn of(pages: usize) -> Self {
        let fits = |step: &Self| 2 * pages <= 5 * step.period() as usize;
        Self::ALL.into_iter().find(fits).unwrap_or(Self::Host)
    }
}

/// The ticks of the last four seconds whose first packet the viewer is known to have applied.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct AppliedTicks {
    newest: Tick,
    /// Bit `n` of the whole stands for the tick `n` before the newest.
    bits: [u64; 4],
}

impl AppliedTicks {
    const LENGTH: Tick = 256;

    pub(super) fn insert(&mut self, tick: Tick) {
        if tick > self.newest {
            self.shift(tick - self.newest);
            self.newest = tick;
        }
        let age = self.newest - tick;
        if age < Self::LENGTH {
            self.bits[age as usize / 64] |= 1 << (age % 64);
        }
    }

    pub(super) fn contains(&self, tick: Tick) -> bool {
        let age = self.newest.wrapping_sub(tick);
        age < Self::LENGTH && self.bits[age as usize / 64] & 1 << (age % 64) != 0
    }

    fn shift(&mut self, by: Tick) {
        let (words, bits) = ((by / 64) as usize, by % 64);
        let before = self.bits;
        let word = |index: usize| before.get(index).copied().unwrap_or(0);
        for (index, after) in self.bits.iter_mut().enumerate() {
            let from = |back: usize| index.checked_sub(words + back).map_or(0, word);
            *after = from(0) << bits | if bits > 0 { from(1) >> (64 - bits) } else { 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn applied_ticks_are_a_set(steps in proptest::collection::vec((0u32..300, any::<bool>()), 1..100)) {
            let (mut ticks, mut model, mut newest) = (AppliedTicks::default(), BTreeSet::new(), 0);
            for (by, ahead) in steps {
                let tick = if ahead { newest + by } else { u32::saturating_sub(newest, by) };
                newest = newest.max(tick);
                ticks.insert(tick);
                model.insert(tick);
            }
            for tick in 0..=newest + 2 {
                let expected = model.contains(&tick) && newest - tick < AppliedTicks::LENGTH;
                prop_assert_eq!(ticks.contains(tick), expected, "{}", tick);
            }
        }
    }

    #[test]
    fn the_more_pages_the_longer_the_period() {
        let periods = [0, 1, 15, 16, 84, 417, 420, 421, 2_700].map(|pages| CrowdDetail::of(pages).period());
        assert_eq!(periods, [0, 6, 6, 12, 48, 168, 168, 168, 168]);
    }
}
