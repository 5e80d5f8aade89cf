//! The packets that were sent last: when, and whether they have been acknowledged.

use shadowland_wire::ack::AckBlock;

use crate::Time;

/// Packets that are remembered. An acknowledgement names at most 65 packets, and one that comes later than 256
/// packets (0.85 s at 300 packets a second, 4 s at 60) tells nothing that a timeout has not decided yet.
pub(crate) const SENT_PACKETS: usize = 256;

/// A packet counts as lost when one that was sent so much later has been acknowledged (RFC 9002, 6.1.1).
const LOSS_THRESHOLD: u64 = 3;

/// The last [`SENT_PACKETS`] packets, by sequence. 8 bytes each, so that a connection stays small.
#[derive(Debug)]
pub(super) struct SentPackets {
    ring: Box<[Sent; SENT_PACKETS]>,
    next_sequence: u64,
    largest_acked: u64,
    /// Every packet up to here has been judged: acknowledged, lost, or forgotten.
    judged: u64,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    /// Low bits of the sending time: they wrap after 71 minutes, in which a session sends more than 256 packets
    /// (at least a Ping every 5 s), and nothing but a round trip is computed from them.
    at_us: u32,
    state: SentState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SentState {
    /// Never acknowledged itself: nothing but acknowledgements in it.
    AckOnly,
    Unreliable,
    /// Carries reliable messages.
    Reliable,
    Acked,
}

/// What a packet carries, as far as acknowledging it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carries {
    /// Nothing but acknowledgements.
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
    /// Whether it carried reliable messages.
    pub(super) reliable: bool,
}

impl SentPackets {
    pub(super) fn new() -> Self {
        let empty = Sent { at_us: 0, state: SentState::AckOnly };
        Self { ring: Box::new([empty; SENT_PACKETS]), next_sequence: 1, largest_acked: 0, judged: 0 }
    }

    /// Remembers a packet; sequences come without gaps.
    #[inline]
    pub(super) fn record(&mut self, now: Time, sequence: u64, carries: Carries) {
        debug_assert_eq!(sequence, self.next_sequence);
        let state = match carries {
            Carries::OnlyAcks => SentState::AckOnly,
            Carries::Unreliable => SentState::Unreliable,
            Carries::Reliable => SentState::Reliable,
        };
        self.ring[index(sequence)] = Sent { at_us: now.as_micros() as u32, state };
        self.next_sequence = sequence + 1;
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
        let oldest = self.next_sequence.saturating_sub(SENT_PACKETS as u64).max(1);
        for age in (0..=64u64).rev() {
            let Some(sequence) = largest.checked_sub(age).filter(|&sequence| sequence >= oldest) else {
                continue;
            };
            // Age 0 is the largest itself; bit 0 of the mask is the packet before it.
            if age > 0 && mask & (1 << (age - 1)) == 0 {
                continue;
            }
            let sent = &mut self.ring[index(sequence)];
            let reliable = sent.state == SentState::Reliable;
            if reliable || sent.state == SentState::Unreliable {
                sent.state = SentState::Acked;
                each(Acked { sequence, reliable });
            }
        }
        self.largest_acked = self.largest_acked.max(largest);
    }

    /// Microseconds since a packet was sent.
    pub(super) fn age_us(&self, now: Time, sequence: u64) -> u64 {
        u64::from((now.as_micros() as u32).wrapping_sub(self.ring[index(sequence)].at_us))
    }

    /// Everything up to the returned sequence that is not acknowledged is lost by now.
    pub(super) fn lost_up_to(&self) -> u64 {
        self.largest_acked.saturating_sub(LOSS_THRESHOLD)
    }

    /// Counts the packets that became lost since the last call.
    pub(super) fn count_lost(&mut self) -> u64 {
        let up_to = self.lost_up_to();
        let oldest = self.next_sequence.saturating_sub(SENT_PACKETS as u64).max(1);
        let lost = (oldest.max(self.judged + 1)..=up_to)
            .filter(|&sequence| {
                matches!(self.ring[index(sequence)].state, SentState::Unreliable | SentState::Reliable)
            })
            .count();
        self.judged = self.judged.max(up_to);
        lost as u64
    }
}

fn index(sequence: u64) -> usize {
    (sequence % SENT_PACKETS as u64) as usize
}
