//! A point on the caller's clock.

use std::ops::{Add, Sub};
use std::time::Duration;

/// Microseconds on a monotonic clock since a start that the caller chooses.
///
/// All endpoints of a process share one clock, since a cookie that one of them made is checked by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(u64);

impl Time {
    /// The point `us` microseconds after the start.
    #[must_use]
    pub const fn from_micros(us: u64) -> Self {
        Self(us)
    }

    /// Microseconds since the start.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Microseconds since `earlier`; zero when it is in fact later.
    #[must_use]
    #[inline]
    pub const fn micros_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Milliseconds since the start.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    /// Later by `duration`; stays at the end of time.
    #[inline]
    fn add(self, duration: Duration) -> Self {
        let us = duration.as_secs().saturating_mul(1_000_000).saturating_add(duration.subsec_micros().into());
        Self(self.0.saturating_add(us))
    }
}

impl Sub for Time {
    type Output = Duration;

    /// The time since `earlier`; zero when it is in fact later.
    #[inline]
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}
