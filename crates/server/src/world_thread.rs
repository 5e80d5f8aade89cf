//! The thread that simulates: 60 ticks a second, whatever the workers do.

use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use mio::Waker;
use shadowland_proto::Time;
use shadowland_world::Frame;

use crate::config::TICK_HZ;
use crate::control::Control;
use crate::queue::{FrameSlot, FrameTaps, Fresh};
use crate::schedule::{Clock, Lateness, Schedule, TickTimes};
use crate::stats::{Shared, TickStats, record, thread_cpu};
use crate::world_side::WorldSide;

/// What the world thread has of one worker.
pub(crate) struct WorkerLink {
    pub(crate) frames: Arc<FrameSlot<Frame>>,
    pub(crate) waker: Arc<Waker>,
}

/// The world thread's state.
pub(crate) struct WorldThread {
    side: WorldSide,
    workers: Vec<WorkerLink>,
    taps: Arc<FrameTaps<Frame>>,
    clock: Clock,
    times: TickTimes,
    stats: Arc<Shared<TickStats>>,
    control: Arc<Control>,
    complaint: Complaint,
}

impl WorldThread {
    pub(crate) fn new(
        side: WorldSide,
        workers: Vec<WorkerLink>,
        taps: Arc<FrameTaps<Frame>>,
        clock: Clock,
        stats: Arc<Shared<TickStats>>,
        control: Arc<Control>,
    ) -> Self {
        Self {
            side,
            times: TickTimes::new(workers.len()),
            workers,
            taps,
            clock,
            stats,
            control,
            complaint: Complaint::default(),
        }
    }

    /// Ticks until told to stop.
    pub(crate) fn run(mut self) {
        let mut schedule = Schedule::new(self.clock.now(), TICK_HZ);
        while !self.control.stops() {
            sleep(schedule.deadline() - self.clock.now());
            self.tick();
            let now = self.clock.now();
            let lateness = schedule.work_done(now);
            self.note(lateness, now);
        }
    }

    /// Simulates a tick, and publishes what came of it.
    pub(crate) fn tick(&mut self) {
        let started = self.clock.now();
        self.hear_completions();
        self.side.pause_creatures(self.control.creatures_paused());
        self.side.tick();
        self.control.set_players(self.side.world().player_count());
        let simulated = self.clock.now();

        let frame = self.side.publish();
        let published = self.clock.now();
        for worker in &self.workers {
            let frame = Arc::clone(&frame);
            worker.frames.put(Fresh { frame, started_at: started, published_at: published });
            if let Err(error) = worker.waker.wake() {
                // It looks for frames at every datagram and timeout too.
                tracing::warn!(%error, "cannot wake a worker");
            }
        }
        self.taps.publish(&frame, self.clock.instant(started));

        let mut stats = self.stats.lock();
        self.times
            .begin(frame.tick(), started, self.clock.now(), |time| record(&mut stats.duration_us, time));
        record(&mut stats.simulation_us, simulated - started);
        stats.ticks += 1;
        stats.frames = self.side.frame_count() as u64;
        stats.entities = self.side.world().entity_count() as u64;
        stats.cpu = thread_cpu();
    }

    fn hear_completions(&mut self) {
        let mut stats = self.stats.lock();
        self.side.hear_completions(|worker, tick, at| {
            self.times.completed(worker, tick, at, |time| record(&mut stats.duration_us, time));
        });
    }

    fn note(&mut self, lateness: Lateness, now: Time) {
        if !lateness.overrun {
            return;
        }
        {
            let mut stats = self.stats.lock();
            stats.overruns += 1;
            stats.skipped += lateness.skipped;
        }
        self.complaint.add(lateness, now);
    }
}

/// Overruns since the last line about them: at most one line a second.
#[derive(Debug, Default)]
struct Complaint {
    overruns: u64,
    skipped: u64,
    next: Time,
}

impl Complaint {
    fn add(&mut self, lateness: Lateness, now: Time) {
        self.overruns += 1;
        self.skipped += lateness.skipped;
        if now >= self.next {
            tracing::warn!(
                overruns = self.overruns,
                skipped = self.skipped,
                "the world does not keep up with its 60 ticks a second"
            );
            *self = Self { next: now + Duration::from_secs(1), ..Self::default() };
        }
    }
}
