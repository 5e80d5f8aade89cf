//! What was in the last packets, so that an acknowledgement can raise baselines.

use crate::Tick;

/// Packets that are remembered; older ones count as lost, which is always safe.
const PACKETS: usize = 256;
/// Page references of all remembered packets together; when they run out, the oldest packets are forgotten.
const REFERENCES: usize = 2048;

/// A ring of packets, each with the subscription entries whose pages it carried.
#[derive(Debug)]
pub(super) struct Ledger {
    packets: Box<[Packet]>,
    references: Box<[u16]>,
    /// References ever written; the ring index is its remainder.
    written: u32,
    /// References that belong to no packet yet.
    open: u32,
}

/// A packet that was sent.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Packet {
    sequence: u64,
    /// The tick that it showed; 0 = no packet.
    pub(super) tick: Tick,
    /// It carried all closes that were pending.
    pub(super) closes: bool,
    first: u32,
    count: u32,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self {
            packets: vec![Packet::default(); PACKETS].into(),
            references: vec![0; REFERENCES].into(),
            written: 0,
            open: 0,
        }
    }

    /// Notes that the packet being written carries the page of this entry.
    pub(super) fn note(&mut self, entry: u16) {
        self.references[self.written as usize % REFERENCES] = entry;
        self.written = self.written.wrapping_add(1);
        self.open += 1;
    }

    /// The packet being written was not sent after all.
    pub(super) fn forget_open(&mut self) {
        self.open = 0;
    }

    /// The packet being written got its sequence number.
    pub(super) fn seal(&mut self, sequence: u64, tick: Tick, closes: bool) {
        let first = self.written.wrapping_sub(self.open);
        let packet = Packet { sequence, tick, closes, first, count: self.open };
        self.packets[sequence as usize % PACKETS] = packet;
        self.open = 0;
    }

    /// Takes out a packet that was acknowledged, if it is still remembered.
    pub(super) fn take(&mut self, sequence: u64) -> Option<Packet> {
        let packet = &mut self.packets[sequence as usize % PACKETS];
        if packet.tick == 0 || packet.sequence != sequence {
            return None;
        }
        let taken = *packet;
        *packet = Packet::default();
        let overwritten = self.written.wrapping_sub(taken.first) as usize > REFERENCES;
        (!overwritten).then_some(taken)
    }

    /// The entries whose pages a packet carried.
    pub(super) fn entries(&self, packet: Packet) -> impl Iterator<Item = u16> + '_ {
        (0..packet.count)
            .map(move |index| self.references[packet.first.wrapping_add(index) as usize % REFERENCES])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_give_their_entries_back_once() {
        let mut ledger = Ledger::new();
        ledger.note(3);
        ledger.note(5);
        ledger.seal(10, 7, true);
        ledger.seal(11, 7, false);
        let packet = ledger.take(10).unwrap();
        assert_eq!(packet.tick, 7);
        assert_eq!(ledger.entries(packet).collect::<Vec<_>>(), [3, 5]);
        assert!(ledger.take(10).is_none() && ledger.take(12).is_none());
        assert_eq!(ledger.take(11).map(|packet| packet.count), Some(0));
    }

    #[test]
    fn what_was_overwritten_is_lost() {
        let mut ledger = Ledger::new();
        ledger.note(1);
        ledger.seal(1, 1, false);
        for _ in 0..REFERENCES {
            ledger.note(2);
        }
        ledger.seal(2, 2, false);
        assert!(ledger.take(1).is_none());
        assert!(ledger.take(2).is_some());
        ledger.seal(3, 3, false);
        ledger.seal(3 + PACKETS as u64, 4, false);
        assert!(ledger.take(3).is_none());
    }
}
