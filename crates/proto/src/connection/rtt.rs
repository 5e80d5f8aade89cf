//! The round-trip time, from this side's clock alone (RFC 6298 with the delay of RFC 9002, 5.3).

use std::time::Duration;

use super::config::TransportConfig;

/// Smoothed round-trip time and its variation, in microseconds.
#[derive(Debug, Default)]
pub(super) struct Rtt {
    smoothed_us: u64,
    variation_us: u64,
    least_us: u64,
}

impl Rtt {
    /// Takes a measured round trip, of which the peer says that it held the answer back for `held_us`. The
    /// peer's word shortens a sample, but never below the shortest round trip that was ever seen. Returns the
    /// sample as it was taken.
    #[inline]
    pub(super) fn sample(&mut self, measured_us: u64, held_us: u64) -> u64 {
        // Zero stands for "no sample yet".
        let measured_us = measured_us.max(1);
        if self.smoothed_us == 0 {
            *self = Self { smoothed_us: measured_us, variation_us: measured_us / 2, least_us: measured_us };
            return measured_us;
        }
        self.least_us = self.least_us.min(measured_us);
        let sample = measured_us.saturating_sub(held_us).max(self.least_us);
        self.variation_us = (3 * self.variation_us + self.smoothed_us.abs_diff(sample)) / 4;
        self.smoothed_us = (7 * self.smoothed_us + sample) / 8;
        sample
    }

    /// The smoothed round-trip time; zero before the first sample.
    pub(super) fn smoothed(&self) -> Duration {
        Duration::from_micros(self.smoothed_us)
    }

    /// The same in microseconds.
    pub(super) fn smoothed_us(&self) -> u64 {
        self.smoothed_us
    }

    /// When a message counts as lost that was sent again after `timeouts` timeouts.
    pub(super) fn timeout(&self, config: &TransportConfig, timeouts: u8) -> Duration {
        let base = Duration::from_micros(self.smoothed_us + 4 * self.variation_us).max(config.timeout_min);
        let doubled = base.saturating_mul(1 << timeouts.min(16));
        doubled.min(config.timeout_max.max(base))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_doubles_from_its_minimum_to_its_maximum() {
        let rtt = Rtt::default();
        let ms: Vec<_> =
            (0..6).map(|timeouts| rtt.timeout(&TransportConfig::default(), timeouts).as_millis()).collect();
        assert_eq!(ms, [250, 500, 1000, 2000, 2000, 2000]);
    }

    #[test]
    fn a_steady_round_trip_is_found_whatever_the_peer_claims() {
        let mut rtt = Rtt::default();
        for _ in 0..100 {
            rtt.sample(100_000, 0);
        }
        assert_eq!(rtt.smoothed().as_millis(), 100);
        for _ in 0..100 {
            rtt.sample(100_000, u64::MAX);
        }
        assert_eq!(rtt.smoothed().as_millis(), 100);
        for _ in 0..100 {
            rtt.sample(120_000, 20_000);
        }
        assert_eq!(rtt.smoothed().as_millis(), 100);
    }
}
