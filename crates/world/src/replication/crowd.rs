//! Crowds, as a viewer sees them: how often each of their pages comes.
//!
//! The pages of a crowd go round: each has its turn once in a **period**, at a phase that is the same for all viewers.
//! The more pages a viewer sees, the longer the period: these are the steps of detail.

use crate::Tick;

/// Bytes of blocks in the one packet that a viewer in a crowd gets in a tick: beside what is always in it, the
/// datagram has 1,150 bytes at most.
pub(super) const CROWD_BYTES: usize = 1_060;
/// While so many pages of crowds wait for room, no other phase has its turn.
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
    pub const fn period(self) -> Tick {
        [0, 6, 12, 24, 48, 96, 168][self as usize]
    }

    /// The step for so many pages of crowds in sight: five in two ticks at most, as long as there is such a step.
    pub(super) fn of(pages: usize) -> Self {
        let fits = |step: &Self| 2 * pages <= 5 * step.period() as usize;
        Self::ALL.into_iter().find(fits).unwrap_or(Self::Host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_pages_the_longer_the_period() {
        let periods = [0, 1, 15, 16, 84, 417, 420, 421, 2_700].map(|pages| CrowdDetail::of(pages).period());
        assert_eq!(periods, [0, 6, 6, 12, 48, 168, 168, 168, 168]);
    }
}
