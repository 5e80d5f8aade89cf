//! When ticks start, and how long it takes until everything that a tick caused has left.

use std::time::{Duration, Instant};

use shadowland_proto::Time;
use shadowland_world::Tick;

/// The clock of a server: all its threads share one start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    pub(crate) fn now(self) -> Time {
        Time::from_micros(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    pub(crate) fn instant(self, time: Time) -> Instant {
        self.start + Duration::from_micros(time.as_micros())
    }
}

/// A tick that starts this much after its time, because earlier work was not done, is an overrun.
const OVERRUN: Duration = Duration::from_millis(1);
/// Work that is further behind than this is not caught up with: the missed ticks are skipped, and counted.
const MOST_BEHIND: Duration = Duration::from_millis(250);

/// The times of ticks: multiples of the period since the start, so that rounding never adds up to a drift.
#[derive(Debug)]
pub(crate) struct Schedule {
    start: Time,
    hz: u64,
    /// Periods from `start` to the next tick.
    next: u64,
}

/// What came to light when the work of a tick was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Lateness {
    /// The next tick starts late because of it.
    pub(crate) overrun: bool,
    /// Ticks that will never be.
    pub(crate) skipped: u64,
}

impl Schedule {
    pub(crate) fn new(start: Time, hz: u32) -> Self {
        Self { start, hz: u64::from(hz), next: 0 }
    }

    /// When the next tick is to start.
    pub(crate) fn deadline(&self) -> Time {
        self.start + Duration::from_micros(self.next * 1_000_000 / self.hz)
    }

    /// The work of the tick of [`deadline`](Self::deadline) is done at `now`: on to the next one.
    pub(crate) fn work_done(&mut self, now: Time) -> Lateness {
        self.next += 1;
        let late = now - self.deadline();
        let mut lateness = Lateness { overrun: late > OVERRUN, skipped: 0 };
        if late > MOST_BEHIND {
            lateness.skipped = u64::try_from(late.as_micros()).unwrap_or(u64::MAX) * self.hz / 1_000_000;
            self.next += lateness.skipped;
        }
        lateness
    }
}

/// Ticks whose completion is waited for at most; an older one is recorded as it is.
const WAITING: usize = 64;

/// From the start of a tick until the last datagram that it caused was handed to the kernel, workers included.
#[derive(Debug)]
pub(crate) struct TickTimes {
    /// Oldest first; never more than [`WAITING`].
    waiting: std::collections::VecDeque<Waiting>,
    /// A bit for every worker.
    everybody: u64,
}

#[derive(Debug)]
struct Waiting {
    tick: Tick,
    started: Time,
    last: Time,
    /// A bit for every worker that is not done.
    missing: u64,
}

impl TickTimes {
    /// For at most 64 workers.
    pub(crate) fn new(workers: usize) -> Self {
        assert!((1..=64).contains(&workers), "a bit for every worker");
        Self {
            waiting: std::collections::VecDeque::with_capacity(WAITING),
            everybody: u64::MAX >> (64 - workers),
        }
    }

    /// A tick has started at `started` and was published at `published`.
    pub(crate) fn begin(
        &mut self,
        tick: Tick,
        started: Time,
        published: Time,
        mut record: impl FnMut(Duration),
    ) {
        if self.waiting.len() == WAITING
            && let Some(oldest) = self.waiting.pop_front()
        {
            record(published - oldest.started);
        }
        self.waiting.push_back(Waiting { tick, started, last: published, missing: self.everybody });
    }

    /// A worker is done with this tick and all before it.
    pub(crate) fn completed(
        &mut self,
        worker: usize,
        tick: Tick,
        at: Time,
        mut record: impl FnMut(Duration),
    ) {
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.tick <= tick) {
            if waiting.missing & (1 << worker) != 0 {
                waiting.missing &= !(1 << worker);
                waiting.last = waiting.last.max(at);
            }
        }
        while let Some(oldest) = self.waiting.front().filter(|waiting| waiting.missing == 0) {
            record(oldest.last - oldest.started);
            self.waiting.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Time {
        Time::from_micros(ms * 1000)
    }

    #[test]
    fn deadlines_do_not_drift() {
        let mut schedule = Schedule::new(ms(5), 60);
        assert_eq!(schedule.deadline(), ms(5));
        for _ in 0..60 * 3600 {
            let deadline = schedule.deadline();
            assert_eq!(schedule.work_done(deadline + Duration::from_millis(3)), Lateness::default());
        }
        assert_eq!(schedule.deadline(), ms(5) + Duration::from_secs(3600));
    }

    #[test]
    fn lateness_is_told_and_a_long_stall_is_not_caught_up_with() {
        for (done_ms, overrun, skipped, next_ms) in [
            (16, false, 0, 16),
            (17, false, 0, 16),
            (18, true, 0, 16),
            (200, true, 0, 16),
            (1016, true, 59, 1000),
        ] {
            let mut schedule = Schedule::new(ms(0), 60);
            assert_eq!(schedule.work_done(ms(done_ms)), Lateness { overrun, skipped }, "done at {done_ms}");
            assert_eq!(schedule.deadline().as_millis(), next_ms, "done at {done_ms}");
        }
    }

    #[test]
    fn a_tick_lasts_until_the_slowest_worker_is_done() {
        let mut times = TickTimes::new(2);
        let mut seen = Vec::new();
        times.begin(1, ms(0), ms(2), |_| unreachable!());
        times.completed(0, 1, ms(5), |_| unreachable!());
        times.begin(2, ms(16), ms(17), |_| unreachable!());
        // Worker 1 missed the frame of tick 1: what it had to say left with tick 2.
        times.completed(1, 2, ms(20), |time| seen.push(time.as_millis()));
        assert_eq!(seen, [20]);
        times.completed(0, 2, ms(18), |time| seen.push(time.as_millis()));
        assert_eq!(seen, [20, 4]);
    }

    #[test]
    fn a_worker_that_never_reports_keeps_no_memory() {
        let mut times = TickTimes::new(1);
        let mut recorded = 0;
        for tick in 1..=200 {
            times.begin(tick, ms(tick.into()), ms(tick.into()), |_| recorded += 1);
        }
        assert_eq!((times.waiting.len(), recorded), (WAITING, 200 - WAITING));
    }
}
