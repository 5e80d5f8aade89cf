//! What was in the last packets, so that an acknowledgement can raise baselines.

use crate::Tick;

/// Packets that are remembered; older ones count as lost, which is always safe. An acknowledgement names the
/// newest packet and 64 before it, so this covers a round trip of a second at 60 packets/s.
const PACKETS: usize = 128;
/// Page references of all remembered packets together; when they run out, the oldest packets are forgotten.
const REFERENCES: usize = 2048;

/// A page in a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Reference {
    /// The subscription entry of the page.
    pub(super) entry: u16,
    /// The age of the block before it, which the viewer must have applied too; 0 = it builds on nothing that
    /// is not known to be applied.
    pub(super) relies_on_age: u8,
}

/// A packet that was sent.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Packet {
    /// Low bits of its sequence number.
    sequence: u32,
    /// The tick that it showed; 0 = no packet.
    pub(super) tick: Tick,
    first: u32,
    count: u16,
    /// It carried all closes that were pending.
    pub(super) closes: bool,
}

/// A ring of packets, each with the pages that it carried.
#[derive(Debug)]
pub(super) struct Ledger {
    packets: Box<[Packet; PACKETS]>,
    references: Box<[Reference]>,
    /// References ever written; the ring index is its remainder.
    written: u32,
    /// References that belong to no packet yet.
    open: u16,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self {
            packets: Box::new([Packet::default(); PACKETS]),
            references: vec![Reference::default(); REFERENCES].into(),
            written: 0,
            open: 0,
        }
    }

    /// Notes that the packet being written carries a page.
    #[inline]
    pub(super) fn note(&mut self, reference: Reference) {
        self.references[self.written as usize % REFERENCES] = reference;
        self.written = self.written.wrapping_add(1);
        self.open += 1;
    }

    /// The packet being written was not sent after all.
    pub(super) fn forget_open(&mut self) {
        self.open = 0;
    }

    /// The packet being written got its sequence number.
    pub(super) fn seal(&mut self, sequence: u64, tick: Tick, closes: bool) {
        let first = self.written.wrapping_sub(self.open.into());
        self.packets[sequence as usize % PACKETS] =
            Packet { sequence: sequence as u32, tick, first, count: self.open, closes };
        self.open = 0;
    }

    /// Takes out a packet that was acknowledged, if it is still remembered.
    pub(super) fn take(&mut self, sequence: u64) -> Option<Packet> {
        let packet = &mut self.packets[sequence as usize % PACKETS];
        if packet.tick == 0 || packet.sequence != sequence as u32 {
            return None;
        }
        let taken = std::mem::take(packet);
        let overwritten = self.written.wrapping_sub(taken.first) as usize > REFERENCES;
        (!overwritten).then_some(taken)
    }

    /// The pages that a packet carried.
    #[inline]
    pub(super) fn references(&self, packet: Packet) -> impl Iterator<Item = Reference> + '_ {
        (0..u32::from(packet.count))
            .map(move |index| self.references[packet.first.wrapping_add(index) as usize % REFERENCES])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(entry: u16) -> Reference {
        Reference { entry, relies_on_age: 0 }
    }

    #[test]
    fn packets_give_their_pages_back_once() {
        let mut ledger = Ledger::new();
        ledger.note(reference(3));
        ledger.note(reference(5));
        ledger.seal(10, 7, true);
        ledger.seal(11, 7, false);
        let packet = ledger.take(10).unwrap();
        assert_eq!((packet.tick, packet.closes), (7, true));
        assert_eq!(ledger.references(packet).collect::<Vec<_>>(), [reference(3), reference(5)]);
        assert!(ledger.take(10).is_none() && ledger.take(12).is_none());
        assert_eq!(ledger.take(11).map(|packet| packet.count), Some(0));
    }

    #[test]
    fn what_was_overwritten_is_lost() {
        let mut ledger = Ledger::new();
        ledger.note(reference(1));
        ledger.seal(1, 1, false);
        for _ in 0..REFERENCES {
            ledger.note(reference(2));
        }
        ledger.seal(2, 2, false);
        assert!(ledger.take(1).is_none());
        assert!(ledger.take(2).is_some());
        ledger.seal(3, 3, false);
        ledger.seal(3 + PACKETS as u64, 4, false);
        assert!(ledger.take(3).is_none());
    }
}
