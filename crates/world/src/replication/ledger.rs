//! What was in the last packets, so that an acknowledgement can raise baselines.

use shadowland_prefetch::prefetch;

use crate::Tick;

/// Packets that are remembered; older ones count as lost, which is always safe. An acknowledgement names the
/// newest packet and 64 before it, so this covers a round trip of a second at 60 packets/s.
const PACKETS: usize = 128;
/// Pages that stand with their packet, so that a usual packet is one line of cache.
const IN_PLACE: usize = 12;
/// Pages of all remembered packets beyond those; when they run out, the oldest packets are forgotten.
const OVERFLOW: usize = 2048;

/// A page in a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Reference {
    /// The subscription entry of the page; what is no index of one names a page that is out of sight.
    pub(super) entry: u16,
    /// Which life of the entry.
    pub(super) life: u8,
    /// The age of the block before it, which the viewer must have applied too; 0 = it builds on nothing that
    /// is not known to be applied.
    pub(super) relies_on_age: u8,
}

/// A packet that was sent.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(64))]
pub(super) struct Packet {
    /// Low bits of its sequence number.
    sequence: u32,
    /// The tick that it showed; 0 = no packet.
    pub(super) tick: Tick,
    /// Its first page in the overflow.
    overflow: u32,
    count: u16,
    /// It is the first of its tick: it carried the owner's record and all closes that were pending.
    pub(super) is_first: bool,
    in_place: [Reference; IN_PLACE],
}

/// A ring of packets, each with the pages that it carried.
#[derive(Debug)]
pub(super) struct Ledger {
    packets: Box<[Packet; PACKETS]>,
    overflow: Box<[Reference]>,
    /// References ever written to the overflow; the ring index is its remainder.
    written: u64,
    /// The packet being written.
    open: Packet,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self {
            packets: Box::new([Packet::default(); PACKETS]),
            overflow: vec![Reference::default(); OVERFLOW].into(),
            written: 0,
            open: Packet::default(),
        }
    }

    /// Starts another packet; one that was not sealed was never sent.
    pub(super) fn open(&mut self) {
        self.open.count = 0;
        self.open.overflow = self.written as u32;
    }

    /// Notes that the packet being written carries a page.
    #[inline]
    pub(super) fn note(&mut self, reference: Reference) {
        let place = usize::from(self.open.count);
        self.open.count += 1;
        if let Some(in_place) = self.open.in_place.get_mut(place) {
            *in_place = reference;
            return;
        }
        self.overflow[self.written as usize % OVERFLOW] = reference;
        self.written += 1;
    }

    /// The packet being written got its sequence number.
    pub(super) fn seal(&mut self, sequence: u64, tick: Tick, is_first: bool) {
        self.packets[sequence as usize % PACKETS] =
            Packet { sequence: sequence as u32, tick, is_first, ..self.open };
    }

    /// Fetches into the cache what is known of a packet.
    #[inline]
    pub(super) fn prefetch(&self, sequence: u32) {
        prefetch(&self.packets[sequence as usize % PACKETS]);
    }

    /// Takes out a packet, named by the low bits of its sequence, that was acknowledged, if it is still remembered.
    pub(super) fn take(&mut self, sequence: u32) -> Option<Packet> {
        let packet = &mut self.packets[sequence as usize % PACKETS];
        if packet.tick == 0 || packet.sequence != sequence {
            return None;
        }
        let taken = *packet;
        packet.tick = 0;
        let overwritten = (self.written as u32).wrapping_sub(taken.overflow) as usize > OVERFLOW;
        (usize::from(taken.count) <= IN_PLACE || !overwritten).then_some(taken)
    }

    /// The pages that a packet carried.
    #[inline]
    pub(super) fn references<'a>(&'a self, packet: &'a Packet) -> impl Iterator<Item = Reference> + 'a {
        let count = usize::from(packet.count);
        let beyond = (0..count.saturating_sub(IN_PLACE) as u32)
            .map(|index| self.overflow[packet.overflow.wrapping_add(index) as usize % OVERFLOW]);
        packet.in_place[..count.min(IN_PLACE)].iter().copied().chain(beyond)
    }

    /// Entries have changed their places.
    pub(super) fn follow(&mut self, place_of: impl Fn(u16) -> u16) {
        let moved = |reference: &mut Reference| {
            // Stale references may name places that no longer exist.
            reference.entry = place_of(reference.entry);
        };
        for packet in self.packets.iter_mut().filter(|packet| packet.tick != 0) {
            let count = usize::from(packet.count).min(IN_PLACE);
            packet.in_place[..count].iter_mut().for_each(moved);
        }
        let written = self.written.min(OVERFLOW as u64) as usize;
        self.overflow[..written].iter_mut().for_each(moved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(entry: u16) -> Reference {
        Reference { entry, life: 0, relies_on_age: 0 }
    }

    #[test]
    fn packets_give_their_pages_back_once() {
        let mut ledger = Ledger::new();
        ledger.open();
        ledger.note(reference(3));
        ledger.note(reference(5));
        ledger.seal(10, 7, true);
        ledger.open();
        ledger.seal(11, 7, false);
        let packet = ledger.take(10).unwrap();
        assert_eq!((packet.tick, packet.is_first), (7, true));
        assert_eq!(ledger.references(&packet).collect::<Vec<_>>(), [reference(3), reference(5)]);
        assert!(ledger.take(10).is_none() && ledger.take(12).is_none());
        assert_eq!(ledger.take(11).map(|packet| packet.count), Some(0));
    }

    #[test]
    fn what_was_overwritten_is_lost() {
        let mut ledger = Ledger::new();
        let send = |ledger: &mut Ledger, sequence, pages| {
            ledger.open();
            (0..pages).for_each(|page| ledger.note(reference(page)));
            ledger.seal(sequence, 1, false);
        };
        send(&mut ledger, 1, 20);
        send(&mut ledger, 2, 5);
        let pages =
            |ledger: &Ledger, packet| ledger.references(&packet).map(|page| page.entry).collect::<Vec<_>>();
        send(&mut ledger, 3, (OVERFLOW + IN_PLACE) as u16 - 8);
        assert_eq!(ledger.take(1).map(|packet| pages(&ledger, packet)), Some((0..20).collect()));
        send(&mut ledger, 4, 21);
        assert!(ledger.take(3).is_none(), "its pages are overwritten");
        assert_eq!(ledger.take(2).map(|packet| pages(&ledger, packet)), Some((0..5).collect()));
        send(&mut ledger, 4 + PACKETS as u64, 1);
        assert!(ledger.take(4).is_none(), "its place is taken");
    }

    #[test]
    fn references_follow_their_entries() {
        let mut ledger = Ledger::new();
        ledger.open();
        (0..30).for_each(|page| ledger.note(reference(page)));
        ledger.seal(1, 1, false);
        ledger.follow(|entry| if entry < 15 { u16::MAX } else { entry - 15 });
        let packet = ledger.take(1).unwrap();
        let pages: Vec<u16> = ledger.references(&packet).map(|page| page.entry).collect();
        assert_eq!(pages[..15], [u16::MAX; 15]);
        assert_eq!(pages[15..], (0..15).collect::<Vec<u16>>());
    }
}
