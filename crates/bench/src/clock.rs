//! Clocks for measuring, and what becomes of many measurements.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// A stretch of work: what it took of the processor, and how long it lasted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Span {
    pub(crate) cpu: Duration,
    pub(crate) wall: Duration,
    pub(crate) allocations: u64,
}

impl std::ops::AddAssign for Span {
    fn add_assign(&mut self, other: Self) {
        self.cpu += other.cpu;
        self.wall += other.wall;
        self.allocations += other.allocations;
    }
}

impl std::ops::Sub for Span {
    type Output = Self;

    /// Without a part of it.
    fn sub(self, part: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(part.cpu),
            wall: self.wall.saturating_sub(part.wall),
            allocations: self.allocations.saturating_sub(part.allocations),
        }
    }
}

/// Measures a stretch of work of this thread.
pub(crate) fn measure(work: impl FnOnce()) -> Span {
    let started = Instant::now();
    let before = thread_cpu();
    let allocated = allocation_counter::measure(work);
    Span { cpu: thread_cpu() - before, wall: started.elapsed(), allocations: allocated.count_total }
}

/// CPU time that the calling thread has used.
pub(crate) fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// The value below which this share of the values lies; 0 when there are none.
pub(crate) fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get((last as f64 * share).round() as usize).copied().unwrap_or(0.0)
}

/// In milliseconds.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}
