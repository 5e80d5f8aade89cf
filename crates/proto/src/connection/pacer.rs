//! When the next packet may leave: the window, spread over a round trip.
//!
//! A bucket fills at the pacing rate and every packet takes from it. Reliable messages have a second one at half
//! the rate that only they take from, so that state which must go out every tick cannot starve them.

use std::time::Duration;

use super::congestion::PACKET_BYTES;
use crate::Time;

/// Pacing goes a quarter faster than the window asks, so that it never is what limits (RFC 9002, 7.7).
const GAIN_PERCENT: u64 = 125;
/// So much may be sent at once at least: what is above one byte lets a whole packet go.
const BURST_BYTES: i64 = PACKET_BYTES as i64;
/// The round trip before the first was measured.
const RTT_ASSUMED_US: u64 = 100_000;

/// The buckets of a connection, in bytes.
#[derive(Debug)]
pub(super) struct Pacer {
    tokens: i64,
    reliable: i64,
    filled_at: Time,
    /// Bytes times microseconds below one byte.
    rest: u32,
    /// How much of the rate may leave at once.
    burst_ms: u32,
}

impl Pacer {
    pub(super) fn new(now: Time, window: u64, burst: Duration) -> Self {
        let burst_ms = u32::try_from(burst.as_millis()).unwrap_or(u32::MAX);
        Self { tokens: window as i64, reliable: 0, filled_at: now, rest: 0, burst_ms }
    }

    /// Bytes a second for this window and round trip.
    pub(super) fn rate(window: u64, smoothed_us: u64) -> u64 {
        let rtt_us = if smoothed_us == 0 { RTT_ASSUMED_US } else { smoothed_us };
        window.saturating_mul(10_000 * GAIN_PERCENT) / rtt_us
    }

    /// Lets time pass.
    #[inline]
    pub(super) fn fill(&mut self, now: Time, rate: u64) {
        let passed_us = now.micros_since(self.filled_at).min(1_000_000);
        self.filled_at = self.filled_at.max(now);
        let flow = rate * passed_us + u64::from(self.rest);
        self.rest = (flow % 1_000_000) as u32;
        let bytes = flow / 1_000_000;
        let burst = ((rate / 1_000 * u64::from(self.burst_ms)) as i64).max(BURST_BYTES);
        // The first burst is the whole window: it stays until it is used.
        self.tokens = (self.tokens + bytes as i64).min(burst.max(self.tokens));
        self.reliable = (self.reliable + (bytes / 2) as i64).min(burst / 2);
    }

    /// A packet has left.
    pub(super) fn take(&mut self, bytes: usize, reliable: bool) {
        // State goes out every tick whatever the bucket says; it owes at most one burst.
        self.tokens = (self.tokens - bytes as i64).max(-BURST_BYTES);
        if reliable {
            self.reliable = (self.reliable - bytes as i64).max(-BURST_BYTES);
        }
    }

    /// Bytes that may leave now.
    pub(super) fn available(&self) -> u64 {
        u64::try_from(self.tokens).unwrap_or(0)
    }

    /// Whether reliable messages may leave now.
    pub(super) fn lets_reliable_go(&self) -> bool {
        self.tokens > 0 || self.reliable > 0
    }

    /// When reliable messages may leave, if nothing else does until then.
    pub(super) fn ready_at(&self, rate: u64) -> Time {
        let missing = (1 - self.tokens).min(2 * (1 - self.reliable)).max(0) as u64;
        self.filled_at + Duration::from_micros((missing * 1_000_000).div_ceil(rate.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_micros(ms * 1_000)
    }

    #[test]
    fn packets_leave_at_the_rate() {
        let rate = 120_000;
        let mut pacer = Pacer::new(at(0), 0, Duration::from_millis(25));
        let (mut now, mut sent) = (at(0), 0);
        while now < at(10_000) {
            pacer.fill(now, rate);
            while pacer.lets_reliable_go() {
                pacer.take(1_200, true);
                sent += 1_200;
            }
            let next = pacer.ready_at(rate);
            assert!(next > now);
            now = next;
        }
        assert!((1_190_000..=1_210_000).contains(&sent), "{sent} bytes in 10 s");
    }

    #[test]
    fn state_that_cannot_wait_leaves_reliable_messages_their_half() {
        let rate = 12_000;
        let mut pacer = Pacer::new(at(0), 0, Duration::from_millis(25));
        let mut reliable = 0;
        for tick in 0..600 {
            pacer.fill(at(tick * 1_000 / 60), rate);
            pacer.take(400, false);
            if pacer.lets_reliable_go() {
                pacer.take(600, true);
                reliable += 600;
            }
        }
        assert!((50_000..70_000).contains(&reliable), "{reliable} bytes in 10 s");
    }
}
