//! The thread that simulates: 60 ticks a second, whatever the workers do.

use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use mio::Waker;
use shadowland_proto::Time;
use shadowland_world::{Frame, World, WorldConfig};

use crate::config::TICK_HZ;
use crate::control::Control;
use crate::queue::{FramePool, FrameSlot, FrameTaps, ToWorker, ToWorld, WorldQueues};
use crate::schedule::{Clock, Lateness, Schedule, TickTimes};
use crate::stats::{Shared, TickStats, record, thread_cpu};

/// What the world thread has of one worker.
pub(crate) struct WorkerLink {
    pub(crate) queues: WorldQueues,
    pub(crate) frames: Arc<FrameSlot<Frame>>,
    pub(crate) waker: Arc<Waker>,
}

/// The world thread's state.
pub(crate) struct WorldThread {
    world: World,
    config: WorldConfig,
    workers: Vec<WorkerLink>,
    pool: FramePool<Frame>,
    taps: Arc<FrameTaps<Frame>>,
    clock: Clock,
    times: TickTimes,
    stats: Arc<Shared<TickStats>>,
    control: Arc<Control>,
    complaint: Complaint,
}

impl WorldThread {
    pub(crate) fn new(
        config: WorldConfig,
        workers: Vec<WorkerLink>,
        taps: Arc<FrameTaps<Frame>>,
        clock: Clock,
        stats: Arc<Shared<TickStats>>,
        control: Arc<Control>,
    ) -> Self {
        Self {
            world: World::new(config.clone()),
            pool: FramePool::new(2 * workers.len() + 1, || Frame::new(&config)),
            times: TickTimes::new(workers.len()),
            config,
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

    fn tick(&mut self) {
        let started = self.clock.now();
        self.hear_completions();
        self.hear_workers();
        self.world.pause_creatures(self.control.creatures_paused());
        self.world.tick();
        self.control.set_players(self.world.player_count());
        let simulated = self.clock.now();

        let (world, config) = (&self.world, &self.config);
        let frame = self.pool.fill(|| Frame::new(config), |frame| world.publish(frame));
        for worker in &self.workers {
            worker.frames.put(Arc::clone(&frame));
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
        stats.frames = self.pool.len() as u64;
        stats.entities = self.world.entity_count() as u64;
        stats.cpu = thread_cpu();
    }

    fn hear_completions(&mut self) {
        let mut stats = self.stats.lock();
        for (index, worker) in self.workers.iter_mut().enumerate() {
            while let Ok(completed) = worker.queues.completed.pop() {
                self.times.completed(index, completed.tick, completed.at, |time| {
                    record(&mut stats.duration_us, time);
                });
            }
        }
    }

    /// Takes what the workers queued before this tick; what comes meanwhile waits for the next one.
    fn hear_workers(&mut self) {
        let from = self.world.now() + 1;
        for worker in &mut self.workers {
            let queues = &mut worker.queues;
            for _ in 0..queues.from_worker.slots() {
                // No room to answer a join: it waits where it is, and with it what stands behind it.
                if queues.to_worker.is_full() {
                    break;
                }
                match queues.from_worker.pop() {
                    Ok(ToWorld::Input { player, number, input }) => self.world.input(player, number, input),
                    Ok(ToWorld::Leave(player)) => self.world.leave(player),
                    Ok(ToWorld::Join { session }) => {
                        let answer = match self.world.join() {
                            Ok(player) => ToWorker::Joined { session, player, from },
                            Err(_full) => ToWorker::Refused { session },
                        };
                        queues.to_worker.push(answer).expect("there is room: this is the only producer");
                    }
                    Err(_empty) => break,
                }
            }
        }
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
