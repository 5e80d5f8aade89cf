//! How much a client may send: what is above it is dropped before it costs a decryption.
//!
//! Only packets that open count, so that nobody without the keys can use up a client's share.

use crate::Time;
use crate::drop_reason::DropReason;

/// What a packet costs besides its bytes: the system's work on it, and UDP and IP around it.
const PACKET_BYTES: u64 = 64;
/// How far the rate may be exceeded for a moment, as the time that it then takes to make up for.
const BURST_US: u64 = 1_000_000;
/// No session ends by it: the shortest idle timeout is three times as long.
const DEBT_MAX_US: u64 = 2 * BURST_US;

/// A bucket of bytes, kept as the time at which everything that was taken is paid for.
#[derive(Debug, Default)]
pub(super) struct Intake {
    /// Microseconds that a byte takes, times 2^32. Zero: no limit, as at a client, who trusts its server.
    us_per_byte: u64,
    paid_at_us: u64,
}

impl Intake {
    pub(super) fn limit(&mut self, bytes_per_s: u64) {
        self.us_per_byte = (1_000_000 << 32) / bytes_per_s.max(1);
    }

    /// Whether another packet is taken.
    #[inline]
    pub(super) fn check(&self, now: Time) -> Result<(), DropReason> {
        let debt_us = self.paid_at_us.saturating_sub(now.as_micros());
        if debt_us > BURST_US { Err(DropReason::TooFast) } else { Ok(()) }
    }

    /// A packet has opened.
    #[inline]
    pub(super) fn spend(&mut self, now: Time, bytes: usize) {
        if self.us_per_byte > 0 {
            self.paid_at_us =
                self.paid_at_us.max(now.as_micros()) + self.cost_us(bytes as u64 + PACKET_BYTES);
        }
    }

    /// Unpacking what has come takes work as for so many bytes more. However much that is, it has the client wait for no
    /// longer than [`DEBT_MAX_US`].
    pub(super) fn spend_unpacked(&mut self, now: Time, bytes: usize) {
        let paid_at_us = self.paid_at_us.max(now.as_micros()).saturating_add(self.cost_us(bytes as u64));
        self.paid_at_us = paid_at_us.min(now.as_micros() + DEBT_MAX_US).max(self.paid_at_us);
    }

    #[inline]
    fn cost_us(&self, bytes: u64) -> u64 {
        bytes.saturating_mul(self.us_per_byte) >> 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_rate_holds_over_time_and_a_burst_is_a_second_of_it() {
        let mut intake = Intake::default();
        intake.limit(100_000);
        let start = Time::from_micros(5_000_000);
        let mut taken = |at: Time| {
            let mut bytes = 0;
            while intake.check(at).is_ok() {
                intake.spend(at, 936);
                bytes += 1_000;
            }
            bytes
        };
        assert_eq!(taken(start), 101_000);
        let later: u64 = (1..=100).map(|tenth| taken(start + Duration::from_millis(100 * tenth))).sum();
        assert!((999_000..=1_001_000).contains(&later), "{later} bytes in 10 s");
    }

    #[test]
    fn whatever_was_unpacked_the_wait_is_short() {
        let mut intake = Intake::default();
        intake.limit(1);
        let now = Time::from_micros(5_000_000);
        for bytes in [1_000, 1 << 28, usize::MAX] {
            intake.spend_unpacked(now, bytes);
            assert_eq!(intake.check(now), Err(DropReason::TooFast));
            assert_eq!(intake.check(now + Duration::from_secs(1)), Ok(()), "{bytes}");
        }
    }

    #[test]
    fn without_a_limit_there_is_none() {
        let mut intake = Intake::default();
        for _ in 0..10_000 {
            intake.spend(Time::default(), 1_200);
        }
        assert_eq!(intake.check(Time::default()), Ok(()));
    }
}
