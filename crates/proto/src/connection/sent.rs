//! The packets that were sent last: when, how large, and what became of them.
//!
//! A packet is acknowledged, or it is lost: because one that was sent some packets later was acknowledged, or
//! because a later one was and more than a round trip has passed (RFC 9002, 6.1). Both thresholds grow on a link
//! where that turns out to be wrong, because it reorders.

use std::mem::offset_of;
use std::time::Duration;

use shadowland_prefetch::prefetch;
use shadowland_wire::ack::AckBlock;

use super::config::TransportConfig;
use crate::Time;

/// Packets that are remembered. An acknowledgement names at most 65 packets, and one that comes later than 256
/// packets (0.85 s at 300 packets a second, 4 s at 60) tells nothing that a timeout has not decided yet.
pub(crate) const SENT_PACKETS: usize = 256;
/// The packet threshold grows up to here.
const LOSS_PACKETS_MAX: u64 = 48;
/// Packets before the largest that an acknowledgement names.
const MASK: u64 = 64;

/// The last [`SENT_PACKETS`] packets, by sequence. 8 bytes each, so that a connection stays small.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct SentPackets {
    next_sequence: u64,
    largest_acked: u64,
    /// Bit `i`: of `largest_acked - 1 - i`, an acknowledgement tells nothing new.
    acked: u64,
    /// Every packet up to here has been judged: acknowledged, lost, or forgotten.
    judged: u64,
    /// Bytes of packets that are neither.
    in_flight: u64,
    /// When the oldest packet before the largest acknowledged one will be lost.
    loss_at: Option<Time>,
    loss_packets: u32,
    loss_eighths: u16,
    loss_eighths_max: u16,
    ring: [Sent; SENT_PACKETS],
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    /// Low bits of the sending time: they wrap after 71 minutes, in which a session sends more than 256 packets
    /// (at least a Ping every 5 s), and nothing but ages are computed from them.
    at_us: u32,
    bytes: u16,
    carries: Carries,
    fate: Fate,
}

impl Sent {
    const NONE: Self = Self { at_us: 0, bytes: 0, carries: Carries::OnlyAcks, fate: Fate::Acked };

    /// Whether it asks for an acknowledgement and has had none.
    #[inline]
    fn is_unheard_of(self) -> bool {
        self.carries != Carries::OnlyAcks && self.fate != Fate::Acked
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    InFlight,
    /// Nothing was heard of it for so long that it does not count as under way any more.
    Forgotten,
    Lost,
    Acked,
}

/// What a packet carries, as far as acknowledging it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carries {
    /// Nothing but acknowledgements: never acknowledged itself.
    OnlyAcks,
    /// Messages that are not sent again.
    Unreliable,
    /// Among others, reliable messages.
    Reliable,
}

/// A packet that was acknowledged for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Acked {
    pub(super) sequence: u64,
    pub(super) bytes: u16,
    /// Whether it carried reliable messages.
    pub(super) reliable: bool,
    /// It had been taken for lost.
    pub(super) late: bool,
}

/// Packets that were judged lost together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Lost {
    pub(super) packets: u64,
    /// Of those, the ones that an acknowledgement could have named and did not.
    pub(super) named: u64,
    /// The age of the newest of them, in microseconds.
    pub(super) newest_age_us: u64,
}

impl SentPackets {
    pub(super) fn new(config: &TransportConfig) -> Self {
        let eighths = u16::try_from(config.loss_eighths).unwrap_or(u16::MAX);
        Self {
            ring: [Sent::NONE; SENT_PACKETS],
            next_sequence: 1,
            largest_acked: 0,
            acked: u64::MAX,
            judged: 0,
            in_flight: 0,
            loss_packets: u32::try_from(config.loss_packets).unwrap_or(u32::MAX),
            loss_eighths: eighths,
            loss_eighths_max: eighths.saturating_mul(2),
            loss_at: None,
        }
    }

    /// Remembers a packet; sequences come without gaps.
    #[inline]
    pub(super) fn record(&mut self, now: Time, sequence: u64, bytes: usize, carries: Carries) {
        debug_assert_eq!(sequence, self.next_sequence);
        let slot = &mut self.ring[index(sequence)];
        if slot.fate == Fate::InFlight && slot.carries != Carries::OnlyAcks {
            self.in_flight -= u64::from(slot.bytes);
        }
        *slot = Sent { at_us: now.as_micros() as u32, bytes: bytes as u16, carries, fate: Fate::InFlight };
        if carries != Carries::OnlyAcks {
            self.in_flight += bytes as u64;
        }
        self.next_sequence = sequence + 1;
    }

    /// Forgets everything up to a packet that was sealed without being recorded.
    #[cfg(feature = "hostile")]
    pub(super) fn forget_up_to(&mut self, sequence: u64) {
        self.ring.fill(Sent::NONE);
        (self.in_flight, self.loss_at, self.next_sequence) = (0, None, sequence.saturating_add(1));
    }

    /// How many packets were sent after the newest one that is known to have arrived.
    pub(super) fn unheard(&self) -> u64 {
        self.next_sequence - 1 - self.largest_acked
    }

    /// The newest packet that is known to have arrived; 0 = none.
    #[inline]
    pub(super) fn largest_acked(&self) -> u64 {
        self.largest_acked
    }

    /// Bytes of packets that are under way.
    #[inline]
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// The full sequence of the largest packet that `block` names; `None` when that was never sent.
    #[inline]
    pub(super) fn largest_of(&self, block: &AckBlock) -> Option<u64> {
        let last = self.next_sequence - 1;
        let behind = (last as u32).wrapping_sub(block.largest_low);
        last.checked_sub(u64::from(behind)).filter(|&sequence| sequence > 0)
    }

    /// The packets that `block` acknowledges for the first time, oldest first.
    pub(super) fn take_acked(&mut self, largest: u64, mask: u64, mut each: impl FnMut(Acked)) {
        let oldest = self.oldest();
        let (mut news, largest_is_news) = self.note_acked(largest, mask);
        while news != 0 {
            let bit = MASK - 1 - u64::from(news.leading_zeros());
            news &= !(1 << bit);
            if let Some(sequence) = largest.checked_sub(bit + 1).filter(|&sequence| sequence >= oldest) {
                self.take_one(sequence, &mut each);
            }
        }
        if largest_is_news && largest >= oldest {
            self.take_one(largest, &mut each);
        }
        self.largest_acked = self.largest_acked.max(largest);
    }

    /// Which packets `mask` names before `largest` that none has named before, and whether `largest` is one.
    fn note_acked(&mut self, largest: u64, mask: u64) -> (u64, bool) {
        // Shifts by 64 and more leave nothing.
        let shifted = |bits: u64, by: u64| if by < MASK { bits << by } else { 0 };
        if largest > self.largest_acked {
            let step = largest - self.largest_acked;
            // The largest one so far, and those before it, in their new places.
            let known = shifted(self.acked, step) | shifted(1, step - 1);
            self.acked = known | mask;
            return (mask & !known, true);
        }
        let behind = self.largest_acked - largest;
        let known = if behind < MASK { self.acked >> behind } else { 0 };
        let largest_is_known = behind == 0 || (behind <= MASK && self.acked & (1 << (behind - 1)) != 0);
        self.acked |= shifted(mask, behind);
        if !largest_is_known && behind <= MASK {
            self.acked |= 1 << (behind - 1);
        }
        (mask & !known, !largest_is_known)
    }

    /// Acknowledges a packet that is remembered.
    fn take_one(&mut self, sequence: u64, each: &mut impl FnMut(Acked)) {
        let sent = &mut self.ring[index(sequence)];
        if !sent.is_unheard_of() {
            return;
        }
        let late = sent.fate == Fate::Lost;
        if sent.fate == Fate::InFlight {
            self.in_flight -= u64::from(sent.bytes);
        }
        sent.fate = Fate::Acked;
        each(Acked { sequence, bytes: sent.bytes, reliable: sent.carries == Carries::Reliable, late });
        if late {
            self.be_more_patient(sequence);
        }
    }

    /// What is always looked at comes before the ring.
    pub(super) const HEAD_BYTES: usize = offset_of!(Self, ring);

    /// Fetches into the cache the places of the next packets to be sent and acknowledged.
    #[inline]
    pub(super) fn prefetch(&self) {
        prefetch(&self.ring[index(self.next_sequence)]);
        prefetch(&self.ring[index(self.largest_acked + 1)]);
    }

    /// A packet was not lost after all.
    fn be_more_patient(&mut self, sequence: u64) {
        let overtaken_by = self.largest_acked.saturating_sub(sequence) + 1;
        self.loss_packets = self.loss_packets.max(overtaken_by.min(LOSS_PACKETS_MAX) as u32);
        self.loss_eighths = self.loss_eighths.saturating_add(1).min(self.loss_eighths_max);
    }

    /// Microseconds since a packet was sent.
    pub(super) fn age_us(&self, now: Time, sequence: u64) -> u64 {
        u64::from((now.as_micros() as u32).wrapping_sub(self.ring[index(sequence)].at_us))
    }

    /// Everything up to the returned sequence that is not acknowledged is lost by now.
    pub(super) fn lost_up_to(&self) -> u64 {
        self.judged
    }

    /// When [`SentPackets::judge`] will find the next loss, if nothing is acknowledged until then.
    pub(super) fn loss_at(&self) -> Option<Time> {
        self.loss_at
    }

    /// Finds the packets that became lost since the last call. They are judged in the order of sending.
    #[inline]
    pub(super) fn judge(&mut self, now: Time, smoothed_rtt_us: u64) -> Lost {
        self.loss_at = None;
        // Nearly always all packets before the largest acknowledged one are acknowledged too.
        let mut judged = self.judged.max(self.oldest() - 1);
        while judged + 1 < self.largest_acked && !self.ring[index(judged + 1)].is_unheard_of() {
            judged += 1;
        }
        self.judged = judged;
        if judged + 1 < self.largest_acked {
            self.judge_unheard_of(now, smoothed_rtt_us)
        } else {
            Lost::default()
        }
    }

    fn judge_unheard_of(&mut self, now: Time, smoothed_rtt_us: u64) -> Lost {
        let mut lost = Lost::default();
        let patience_us = (smoothed_rtt_us * u64::from(self.loss_eighths) / 8).max(1_000);
        while self.judged + 1 < self.largest_acked {
            let sequence = self.judged + 1;
            let age_us = self.age_us(now, sequence);
            let sent = &mut self.ring[index(sequence)];
            if sent.is_unheard_of() {
                let overtaken = sequence + u64::from(self.loss_packets) <= self.largest_acked;
                if !overtaken && age_us < patience_us {
                    self.loss_at = Some(now + Duration::from_micros(patience_us - age_us));
                    break;
                }
                if sent.fate == Fate::InFlight {
                    self.in_flight -= u64::from(sent.bytes);
                }
                sent.fate = Fate::Lost;
                lost.packets += 1;
                lost.named += u64::from(self.largest_acked - sequence <= MASK);
                lost.newest_age_us = age_us;
            }
            self.judged = sequence;
        }
        lost
    }

    /// Packets older than `age` do not count as under way any more.
    pub(super) fn forget_older_than(&mut self, now: Time, age: Duration) {
        let age_us = age.as_micros() as u64;
        for sequence in self.oldest().max(self.judged + 1)..self.next_sequence {
            if self.age_us(now, sequence) < age_us {
                break;
            }
            let sent = &mut self.ring[index(sequence)];
            if sent.carries != Carries::OnlyAcks && sent.fate == Fate::InFlight {
                self.in_flight -= u64::from(sent.bytes);
                sent.fate = Fate::Forgotten;
            }
        }
    }

    fn oldest(&self) -> u64 {
        self.next_sequence.saturating_sub(SENT_PACKETS as u64).max(1)
    }
}

fn index(sequence: u64) -> usize {
    (sequence % SENT_PACKETS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const RTT_US: u64 = 100_000;

    fn at(ms: u64) -> Time {
        Time::from_micros(1_000_000 + ms * 1_000)
    }

    /// Packets of 100 bytes, one a millisecond, the first at 1 ms.
    fn sent(count: u64) -> SentPackets {
        let mut sent = SentPackets::new(&TransportConfig::default());
        for sequence in 1..=count {
            sent.record(at(sequence), sequence, 100, Carries::Unreliable);
        }
        sent
    }

    #[test]
    fn three_later_packets_or_more_than_a_round_trip_make_a_loss() {
        let mut packets = sent(5);
        packets.take_acked(4, 0, |_| {});
        let lost = packets.judge(at(100), RTT_US);
        assert_eq!((lost.packets, lost.named, packets.in_flight()), (1, 1, 300), "only packet 1");
        // Packet 2, sent at 2 ms, after nine eighths of the round trip.
        assert_eq!(packets.loss_at(), Some(Time::from_micros(1_000_000 + 114_500)));
        assert_eq!(packets.judge(at(115), RTT_US).packets, 1);
        assert_eq!(packets.judge(at(200), RTT_US).packets, 1);
        assert_eq!(packets.loss_at(), None, "packet 5 is newer than what was acknowledged");
    }

    #[test]
    fn a_link_that_reorders_gets_more_patience() {
        let mut packets = sent(30);
        packets.take_acked(10, 0, |_| {});
        assert_eq!(packets.judge(at(50), RTT_US).packets, 7);
        let mut late = 0;
        packets.take_acked(10, 0x1ff, |acked| late += u64::from(acked.late));
        assert_eq!(late, 7);
        packets.take_acked(20, 0, |_| {});
        assert_eq!(packets.judge(at(50), RTT_US).packets, 0, "up to 10 later ones are no loss now");
    }

    #[test]
    fn what_an_acknowledgement_could_not_name_is_no_sign_of_congestion() {
        let mut packets = sent(100);
        packets.take_acked(100, 0, |_| {});
        let lost = packets.judge(at(100), RTT_US);
        assert_eq!((lost.packets, lost.named), (97, 62));
    }

    proptest! {
        #[test]
        fn every_acknowledged_packet_is_told_once(
            blocks in proptest::collection::vec((1u64..160, any::<u64>(), any::<u64>()), 1..40),
        ) {
            let mut packets = sent(160);
            let (mut told, mut named) = (Vec::new(), BTreeSet::new());
            for (largest, bits, more) in blocks {
                // Half of the bits, or fewer, so that packets are named by different blocks.
                let mask = bits & more;
                let before = told.len();
                packets.take_acked(largest, mask, |acked| told.push(acked.sequence));
                prop_assert!(told[before..].is_sorted(), "oldest first");
                named.insert(largest);
                named.extend((0..64).filter(|bit| mask & 1 << bit != 0).filter_map(|bit| largest.checked_sub(bit + 1)));
                named.remove(&0);
                let mut all = told.clone();
                all.sort_unstable();
                prop_assert_eq!(&all, &named.iter().copied().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn the_ring_and_silence_take_packets_out_of_flight() {
        let mut packets = sent(300);
        assert_eq!(packets.in_flight(), 256 * 100);
        packets.forget_older_than(at(400), Duration::from_millis(150));
        assert_eq!(packets.in_flight(), 50 * 100);
        let mut acked = 0;
        packets.take_acked(300, u64::MAX, |_| acked += 1);
        assert_eq!((acked, packets.in_flight()), (65, 0));
    }
}
