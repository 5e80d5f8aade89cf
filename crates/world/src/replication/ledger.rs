//! Which ticks a viewer is known to have applied, from the acknowledgements of the packets that showed them.

use std::mem::offset_of;

use shadowland_prefetch::prefetch;

use super::crowd::CrowdDetail;
use crate::Tick;

/// Packets that are remembered; older ones count as lost, which is always safe. An acknowledgement names the
/// newest packet and 64 before it, so this covers a round trip of a second at 60 packets/s.
const PACKETS: u32 = 128;

/// The last packets, each with the tick that it showed. A tick is applied when all of its packets are: what was in
/// which of them does not matter, and need not be remembered.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Ledger {
    applied: AppliedTicks,
    /// Low bits of the sequence of the newest packet that showed a tick.
    newest: u32,
    /// Bit by sequence: the packet was acknowledged.
    acknowledged: u128,
    /// By sequence; 0 = it showed no tick.
    ticks: [Tick; PACKETS as usize],
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self { applied: AppliedTicks::default(), newest: 0, acknowledged: 0, ticks: [0; PACKETS as usize] }
    }

    /// What is always looked at comes before the ring.
    pub(super) const HEAD_BYTES: usize = offset_of!(Self, ticks);

    /// The ticks that are known to be applied.
    #[inline]
    pub(super) fn applied(&self) -> &AppliedTicks {
        &self.applied
    }

    /// A packet that shows a tick got its sequence.
    #[inline]
    pub(super) fn sent(&mut self, sequence: u64, tick: Tick) {
        let sequence = sequence as u32;
        // Those in between showed none.
        let others = sequence.wrapping_sub(self.newest).wrapping_sub(1).min(PACKETS - 1);
        for back in 1..=others {
            *self.tick_mut(sequence.wrapping_sub(back)) = 0;
        }
        *self.tick_mut(sequence) = tick;
        self.acknowledged &= !bit(sequence);
        self.newest = sequence;
    }

    /// Something of a tick was not sent after all: the tick never counts as applied. To be called before anything is
    /// sent of a later one.
    pub(super) fn abandon(&mut self, tick: Tick) {
        for back in 0..PACKETS {
            let sequence = self.newest.wrapping_sub(back);
            if self.tick(sequence) != tick {
                return;
            }
            *self.tick_mut(sequence) = 0;
        }
    }

    /// Fetches into the cache what [`Ledger::acknowledge`] looks at.
    #[inline]
    pub(super) fn prefetch(&self, sequence: u32) {
        prefetch(&self.ticks[place(sequence)]);
    }

    /// A packet, named by the low bits of its sequence, was acknowledged. Gives its tick if that is applied now.
    pub(super) fn acknowledge(&mut self, sequence: u32) -> Option<Tick> {
        let age = self.newest.wrapping_sub(sequence);
        let tick = self.tick(sequence);
        if age >= PACKETS || tick == 0 || self.acknowledged & bit(sequence) != 0 {
            return None;
        }
        self.acknowledged |= bit(sequence);
        let of_tick = |back: &u32| self.tick(self.newest.wrapping_sub(*back)) == tick;
        let oldest = (age..PACKETS).take_while(of_tick).last()?;
        let newest = (0..=age).rev().take_while(of_tick).last()?;
        let is_open = |back| self.acknowledged & bit(self.newest.wrapping_sub(back)) == 0;
        // Whether all packets of the tick are remembered is only known if one before them is.
        if oldest == PACKETS - 1 || (newest..=oldest).any(is_open) {
            return None;
        }
        self.applied.insert(tick);
        Some(tick)
    }

    fn tick(&self, sequence: u32) -> Tick {
        self.ticks[place(sequence)]
    }

    fn tick_mut(&mut self, sequence: u32) -> &mut Tick {
        &mut self.ticks[place(sequence)]
    }
}

fn place(sequence: u32) -> usize {
    (sequence % PACKETS) as usize
}

fn bit(sequence: u32) -> u128 {
    1 << (sequence % PACKETS)
}

/// The ticks of the last eight seconds that the viewer is known to have applied: more than what a page of a crowd waits
/// for its turn, in which it is asked what arrived of the last one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct AppliedTicks {
    newest: Tick,
    /// By tick, in a ring of bits; what is newer than the newest means nothing.
    bits: [u64; Self::WORDS],
}

/// A page of a crowd has its turn after two periods, as long as half of what has its turn fits, and an answer is not waited
/// for longer than a second. What is forgotten after that is sent anew.
const _: () = assert!(AppliedTicks::LENGTH > 2 * CrowdDetail::Host.period() + 60);

impl AppliedTicks {
    const WORDS: usize = 8;
    const LENGTH: Tick = 64 * Self::WORDS as Tick;

    fn insert(&mut self, tick: Tick) {
        if tick > self.newest {
            let skipped = (tick - self.newest - 1).min(Self::LENGTH);
            (tick - skipped..tick).for_each(|skipped| *self.word_mut(skipped) &= !bit_in_word(skipped));
            self.newest = tick;
        }
        if self.newest - tick < Self::LENGTH {
            *self.word_mut(tick) |= bit_in_word(tick);
        }
    }

    pub(super) fn contains(&self, tick: Tick) -> bool {
        self.newest.wrapping_sub(tick) < Self::LENGTH && self.word(tick) & bit_in_word(tick) != 0
    }

    /// The newest of them; 0 = there is none.
    #[inline]
    pub(super) fn newest(&self) -> Tick {
        self.newest
    }

    /// Bit `i`: `tick - i` is in it.
    #[inline]
    pub(super) fn up_to(&self, tick: Tick) -> u16 {
        let oldest = tick.wrapping_sub(u16::BITS - 1);
        let at = oldest % 64;
        // Two steps: a shift by 64 is none.
        let ascending = self.word(oldest) >> at | self.word(tick) << 1 << (63 - at);
        let known = match tick.checked_sub(self.newest) {
            Some(ahead) => u16::MAX.checked_shl(ahead).unwrap_or(0),
            // Behind the oldest that is remembered the ring begins anew.
            None => {
                let remembered = Self::LENGTH.saturating_sub(self.newest - tick);
                u16::MAX.checked_shr(u16::BITS.saturating_sub(remembered)).unwrap_or(0)
            }
        };
        (ascending as u16).reverse_bits() & known
    }

    fn word(&self, tick: Tick) -> u64 {
        self.bits[(tick / 64) as usize % Self::WORDS]
    }

    fn word_mut(&mut self, tick: Tick) -> &mut u64 {
        &mut self.bits[(tick / 64) as usize % Self::WORDS]
    }
}

fn bit_in_word(tick: Tick) -> u64 {
    1 << (tick % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn applied_ticks_are_a_set(steps in proptest::collection::vec((0u32..600, any::<bool>()), 1..100)) {
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
                let up_to = (0..16).filter(|back| tick >= *back && ticks.contains(tick - back));
                let up_to = up_to.fold(0, |bits, back| bits | 1 << back);
                prop_assert_eq!(ticks.up_to(tick), up_to, "{}", tick);
            }
        }
    }

    #[test]
    fn a_tick_is_applied_when_its_packets_are_acknowledged() {
        let mut ledger = Ledger::new();
        ledger.sent(10, 7);
        // Sequences 11 and 12 are of packets that show nothing.
        ledger.sent(13, 8);
        assert_eq!(ledger.acknowledge(11), None);
        assert_eq!(ledger.acknowledge(13), Some(8));
        assert_eq!(ledger.acknowledge(10), Some(7));
        assert_eq!(ledger.acknowledge(10), None, "only once");
        assert_eq!(ledger.acknowledge(14), None, "it was not sent yet");
        let applied = [6, 7, 8, 9].map(|tick| ledger.applied().contains(tick));
        assert_eq!(applied, [false, true, true, false]);
    }

    #[test]
    fn a_tick_of_several_packets_needs_all_of_them() {
        for order in [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]] {
            let mut ledger = Ledger::new();
            (1..=3).for_each(|sequence| ledger.sent(sequence, 5));
            ledger.sent(4, 6);
            let told = order.map(|sequence| ledger.acknowledge(sequence));
            assert_eq!(told, [None, None, Some(5)], "{order:?}");
        }
    }

    #[test]
    fn what_was_forgotten_or_abandoned_is_never_applied() {
        let mut ledger = Ledger::new();
        let last = u64::from(PACKETS);
        (1..=last + 1).for_each(|sequence| ledger.sent(sequence, 1 + (sequence / 2) as Tick));
        assert_eq!(ledger.acknowledge(1), None, "its place is taken");
        assert_eq!(ledger.acknowledge(3), None);
        assert_eq!(
            ledger.acknowledge(2),
            None,
            "the first of those that are left may have had one before it"
        );
        ledger.sent(last + 2, 100);
        ledger.sent(last + 3, 100);
        ledger.abandon(100);
        ledger.abandon(101);
        assert_eq!(ledger.acknowledge(last as u32 + 2), None);
        assert_eq!(ledger.acknowledge(last as u32 + 3), None);
        assert_eq!(
            [0, 1].map(|more| ledger.acknowledge(last as u32 + more)),
            [None, Some(1 + last as Tick / 2)]
        );
    }
}
