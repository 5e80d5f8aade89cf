//! How far a viewer is known to be with something that it is told in blocks.

use super::encoder::OPTIMISTIC_TICKS;
use super::ledger::AppliedTicks;
use crate::Tick;

/// A probe that has not arrived when a tick so much later has is given up.
const PROBE_OVERTAKEN_TICKS: Tick = 16;
/// As an age: no block is watched.
const NO_PROBE: u8 = u8::MAX;

/// How far a viewer is with one page, or with all pages that go in step. Which blocks have arrived is known by tick
/// ([`AppliedTicks`]), and what this keeps is when they were sent:
///
/// ```text
///                       sent - 3  sent - 2  sent - 1   sent
/// blocks that were sent     R ◀────── b ◀────────────── b      chain = 0b1101; R relies on the baseline alone
/// ticks that were applied   x                           x      the one between is missing: the baseline is sent - 3
/// ```
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    /// The tick up to which the viewer is known to have applied everything; 0 = nothing.
    pub(super) baseline: Tick,
    /// The tick of the last block that was sent; 0 = none.
    pub(super) sent: Tick,
    /// Bit `i`: a block was sent `i` ticks before `sent` that relies on the one of the next higher bit. The
    /// highest one relies on none; 0 = there is no such block.
    chain: u16,
    /// A block that relied on none was sent so many ticks before `sent`, and is watched until it is known to have
    /// arrived: where answers take longer than `chain` reaches, it is what raises the baseline.
    probe_age: u8,
    /// The last block, complete or after one that is missing, is none that others may rely on.
    broken: bool,
}

impl Progress {
    /// Nothing was sent.
    pub(super) const NONE: Self = Self { baseline: 0, sent: 0, chain: 0, probe_age: NO_PROBE, broken: false };

    /// Raises the baseline to the newest block that is known to have arrived with all that it relies on.
    #[inline]
    pub(super) fn settle(&mut self, applied: &AppliedTicks) {
        if self.chain != 0 {
            let arrived = self.chain & applied.up_to(self.sent);
            // What is newer than the oldest missing one does not count.
            let newer_than_missing =
                u16::MAX.checked_shr((self.chain & !arrived).leading_zeros()).unwrap_or(0);
            let counts = arrived & !newer_than_missing;
            if counts != 0 {
                self.baseline = self.baseline.max(self.sent - counts.trailing_zeros());
            }
            self.broken |= arrived != counts;
        }
        if self.probe_age != NO_PROBE {
            let probe = self.sent - Tick::from(self.probe_age);
            let arrived = applied.contains(probe);
            if arrived {
                self.baseline = self.baseline.max(probe);
            }
            // One that many later ticks have overtaken is lost, and another one takes its place.
            if arrived || probe <= self.baseline || applied.newest() > probe + PROBE_OVERTAKEN_TICKS {
                self.probe_age = NO_PROBE;
            }
        }
    }

    /// The tick from which the next block can start: the last one that was sent, if it may be relied on though
    /// it is still on its way, else the baseline; 0 = none. `patience` is how long an answer takes.
    #[inline]
    pub(super) fn start(&self, now: Tick, patience: Tick) -> Tick {
        let optimistic = self.baseline != 0
            && self.sent > self.baseline
            && !self.broken
            && now - self.baseline <= patience.min(OPTIMISTIC_TICKS);
        if optimistic { self.sent } else { self.baseline }
    }

    /// Notes that a block is sent now, complete or not, which relies on the last one or on none.
    #[inline]
    pub(super) fn note_sent(&mut self, now: Tick, complete: bool, relies: bool) {
        let since = now - self.sent;
        let aged = Tick::from(self.probe_age) + since;
        self.probe_age =
            if self.probe_age == NO_PROBE || aged >= NO_PROBE.into() { NO_PROBE } else { aged as u8 };
        if relies {
            self.chain = self.chain.checked_shl(since).unwrap_or(0) | 1;
        } else {
            self.chain = 1;
            if self.probe_age == NO_PROBE {
                self.probe_age = 0;
            }
            // A complete block that comes late is superseded by anything newer, so nothing may rely on it.
            self.broken = complete;
        }
        self.sent = now;
    }
}

#[cfg(test)]
mod tests {
    use super::super::ledger::Ledger;
    use super::*;

    /// Ticks that were applied.
    fn applied(ticks: &[Tick]) -> AppliedTicks {
        let mut ledger = Ledger::new();
        for &tick in ticks {
            ledger.sent(tick.into(), tick);
            ledger.acknowledge(tick);
        }
        *ledger.applied()
    }

    /// A block in every tick from 100 on, each relying on the one before.
    fn every_tick(ticks: Tick) -> Progress {
        let mut progress = Progress::NONE;
        for now in 100..100 + ticks {
            progress.note_sent(now, false, now > 100);
        }
        progress
    }

    #[test]
    fn the_baseline_is_the_newest_block_without_a_gap_before_it() {
        let mut progress = every_tick(6);
        progress.settle(&applied(&[100, 101, 102]));
        assert_eq!((progress.baseline, progress.start(106, 10)), (102, 105));
        progress.settle(&applied(&[100, 101, 102, 104]));
        assert_eq!(
            (progress.baseline, progress.start(106, 10)),
            (102, 102),
            "103 may be lost: nothing relies on it"
        );
        progress.note_sent(106, false, false);
        assert_eq!(progress.start(107, 10), 106);
        progress.settle(&applied(&[100, 101, 102, 104, 106]));
        assert_eq!(progress.baseline, 106);
    }

    #[test]
    fn what_is_on_its_way_is_relied_on_only_for_a_while() {
        let mut progress = every_tick(30);
        assert_eq!(progress.start(130, 100), 0, "nothing is known to have arrived");
        progress.settle(&applied(&(100..=118).collect::<Vec<_>>()));
        assert_eq!(progress.start(133, 100), 129);
        assert_eq!(progress.start(134, 100), 118, "more than {OPTIMISTIC_TICKS} ticks");
        assert_eq!(progress.start(130, 11), 118, "the answer is overdue");
    }

    #[test]
    fn nothing_relies_on_a_complete_block() {
        let mut progress = Progress::NONE;
        progress.note_sent(100, true, false);
        assert_eq!(progress.start(101, 10), 0);
        progress.settle(&applied(&[100]));
        assert_eq!(progress.start(103, 10), 100);
    }

    #[test]
    fn where_answers_take_long_a_probe_raises_the_baseline() {
        let mut progress = Progress::NONE;
        for now in 100..140 {
            progress.note_sent(now, false, false);
        }
        progress.settle(&applied(&[100]));
        assert_eq!(progress.baseline, 100);
        // The next one is on its way now; when something much newer has arrived without it, it is given up.
        progress.note_sent(140, false, false);
        progress.settle(&applied(&[157]));
        progress.note_sent(160, false, false);
        progress.settle(&applied(&[157, 160]));
        assert_eq!(progress.baseline, 160);
    }
}
