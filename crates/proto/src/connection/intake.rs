//! How much a client may send: what is above it is dropped before it costs a decryption.
//!
//! Only packets that open count, so that nobody without the keys can use up a client's share.

use crate::Time;
use crate::drop_reason::DropReason;

/// What a packet costs besides its bytes: the system's work on it, and UDP and IP around it.
const PACKET_BYTES: u64 = 64;
/// How far the rate may be exceeded for a moment, as the time that it then takes to make up for.
const BURST_US: u64 = 1_000_000;

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
        self.spend_bytes(now, bytes as u64 + PACKET_BYTES);
    }

    /// Compressed messages were unpacked to so many bytes: few that came can cost as much work as many.
    pub(super) fn spend_unpacked(&mut self, now: Time, bytes: usize) {
        self.spend_bytes(now, bytes as u64);
    }

    #[inline]
    fn spend_bytes(&mut self, now: Time, bytes: u64) {
        if self.us_per_byte > 0 {
            let cost_us = (bytes * self.us_per_byte) >> 32;
            self.paid_at_us = self.paid_at_us.max(now.as_micros()) + cost_us;
        }
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
    fn without_a_limit_there_is_none() {
        let mut intake = Intake::default();
        for _ in 0..10_000 {
            intake.spend(Time::default(), 1_200);
        }
        assert_eq!(intake.check(Time::default()), Ok(()));
    }
}
