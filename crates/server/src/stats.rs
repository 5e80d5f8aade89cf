//! What a running server tells about itself.
//!
//! Threads count in plain numbers of their own and leave a copy here once a tick.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use shadowland_proto::Dropped;
use shadowland_world::replication::CrowdDetail;

/// Counters of one I/O worker since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerStats {
    /// Sessions, half-open ones left out.
    pub sessions: u64,
    /// Sessions that have a player in the world.
    pub players: u64,
    /// Players that came into the world.
    pub joined: u64,
    /// Datagrams received.
    pub datagrams_in: u64,
    /// Their bytes, without UDP and IP headers.
    pub bytes_in: u64,
    /// Datagrams that the kernel took.
    pub datagrams_out: u64,
    /// Their bytes, without UDP and IP headers.
    pub bytes_out: u64,
    /// Snapshots among them.
    pub snapshots: u64,
    /// Those that congestion control gave less than the setting.
    pub snapshots_reduced: u64,
    /// Snapshots by how finely their player saw crowds, in the order of [`CrowdDetail::ALL`].
    pub crowd_details: [u64; CrowdDetail::ALL.len()],
    /// Answers to handshakes that denied a session.
    pub denied: u64,
    /// Arrived datagrams that were dropped, by reason.
    pub dropped: Dropped,
    /// Arrived datagrams that were longer than any of the protocol.
    pub oversized: u64,
    /// Departing datagrams given up because their destination makes errors.
    pub refused: u64,
    /// Datagrams that arrived and that the kernel dropped, because its buffer was full (Linux; 0 elsewhere).
    pub kernel_drops: u64,
    /// Arrived datagrams that were passed on to the worker of their session, where the kernel does not steer them.
    pub passed_on: u64,
    /// Those that found the way to their worker full, and were dropped.
    pub passing_dropped: u64,
    /// Times that the socket buffer was full and datagrams had to wait.
    pub blocked: u64,
    /// Answers to handshakes that found no room behind waiting datagrams, and were not sent; clients repeat what they ask.
    pub crowded_out: u64,
    /// Messages from players that their session allows and the world cannot read.
    pub bad_messages: u64,
    /// Inputs that found the queue to the world full, and requests above what a tick has room for; clients repeat them.
    pub inputs_dropped: u64,
    /// Integrity challenges that players have failed.
    pub integrity_failed: u64,
    /// Messages of the game's own from players.
    pub mail_in: u64,
    /// Messages of the game's own that found their player gone, or that its client does not take.
    pub mail_lost: u64,
    /// Frames that were replaced by newer ones before this worker got to them.
    pub frames_skipped: u64,
    /// Turns of sessions that were put off to the next round, because this one took too long: the worker is overloaded.
    pub sessions_deferred: u64,
    /// Sessions that the player ended.
    pub left: u64,
    /// Sessions that ended otherwise: timeout, undeliverable messages, refusal.
    pub lost: u64,
    /// CPU time of the thread.
    pub cpu: Duration,
}

/// How long datagrams and frames take through the I/O workers.
#[derive(Clone)]
pub struct Latencies {
    /// From when a datagram could be received until what it says was in the world's queue, in microseconds, at the
    /// most: from when the worker was woken by it, or, where the worker was busy, from when it had last seen the
    /// socket empty, until the whole batch was handled.
    pub receive_us: Histogram<u64>,
    /// From when a frame was published until a worker had handed its last datagram to the kernel, in microseconds.
    pub send_us: Histogram<u64>,
}

/// How the world keeps its time.
#[derive(Clone)]
pub struct TickStats {
    /// Ticks simulated.
    pub ticks: u64,
    /// Ticks that started more than 1 ms late because earlier work was not done.
    pub overruns: u64,
    /// Ticks left out after a long stall.
    pub skipped: u64,
    /// From the start of a tick until the last datagram that it caused was handed to the kernel, in
    /// microseconds.
    pub duration_us: Histogram<u64>,
    /// The simulation's part of it, in microseconds.
    pub simulation_us: Histogram<u64>,
    /// Frames that memory is set aside for.
    pub frames: u64,
    /// Entities alive, players included.
    pub entities: u64,
    /// CPU time of the world thread.
    pub cpu: Duration,
}

/// A copy of all counters.
#[derive(Debug, Clone)]
pub struct ServerStats {
    /// One entry per worker.
    pub workers: Vec<WorkerStats>,
    /// All workers together.
    pub latencies: Latencies,
    /// The world.
    pub ticks: TickStats,
}

impl ServerStats {
    /// Players in the world.
    #[must_use]
    pub fn players(&self) -> u64 {
        self.workers.iter().map(|worker| worker.players).sum()
    }

    /// CPU time of all threads of the server.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        self.ticks.cpu + self.workers.iter().map(|worker| worker.cpu).sum::<Duration>()
    }

    /// The sum of a counter over all workers.
    #[must_use]
    pub fn sum(&self, counter: impl Fn(&WorkerStats) -> u64) -> u64 {
        self.workers.iter().map(counter).sum()
    }
}

/// Longest duration that the histograms tell apart from longer ones.
const LONGEST_US: u64 = 60_000_000;

/// Two digits: 1 % of a duration; 20 KiB, all of it now.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, 2).expect("the bounds are in order")
}

/// Of a histogram for people: its own form lists its thousands of counts.
fn quantiles(histogram: &Histogram<u64>) -> [u64; 3] {
    [0.5, 0.99, 1.0].map(|q| histogram.value_at_quantile(q))
}

impl Latencies {
    pub(crate) fn new() -> Self {
        Self { receive_us: histogram(), send_us: histogram() }
    }

    /// Adds what another worker measured.
    pub(crate) fn add(&mut self, other: &Self) {
        self.receive_us += &other.receive_us;
        self.send_us += &other.send_us;
    }
}

impl fmt::Debug for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latencies")
            .field("receive_us_p50_p99_max", &quantiles(&self.receive_us))
            .field("send_us_p50_p99_max", &quantiles(&self.send_us))
            .finish()
    }
}

impl TickStats {
    pub(crate) fn new() -> Self {
        Self {
            ticks: 0,
            overruns: 0,
            skipped: 0,
            duration_us: histogram(),
            simulation_us: histogram(),
            frames: 0,
            entities: 0,
            cpu: Duration::ZERO,
        }
    }
}

impl fmt::Debug for TickStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TickStats")
            .field("ticks", &self.ticks)
            .field("overruns", &self.overruns)
            .field("skipped", &self.skipped)
            .field("duration_us_p50_p99_max", &quantiles(&self.duration_us))
            .field("simulation_us_p50_p99_max", &quantiles(&self.simulation_us))
            .field("frames", &self.frames)
            .field("entities", &self.entities)
            .field("cpu", &self.cpu)
            .finish()
    }
}

/// Adds a duration to a histogram of microseconds.
pub(crate) fn record(histogram: &mut Histogram<u64>, duration: Duration) {
    histogram.saturating_record(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
}

/// Adds a duration so many times.
pub(crate) fn record_many(histogram: &mut Histogram<u64>, duration: Duration, count: u64) {
    let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    histogram.saturating_record_n(us, count);
}

/// A value that one thread leaves for others to copy.
pub(crate) struct Shared<T>(Mutex<T>);

impl<T> Shared<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Held only to copy or change a few numbers.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        // The numbers of a thread that panicked are still what it counted.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

/// CPU time that the calling thread has used; zero where the system does not tell.
pub(crate) fn thread_cpu() -> Duration {
    #[cfg(target_os = "linux")]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
    }
    #[cfg(not(target_os = "linux"))]
    Duration::ZERO
}
