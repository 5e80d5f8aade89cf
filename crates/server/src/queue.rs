//! What passes between the threads: bounded single-producer queues of values, and frames.
//!
//! ```text
//!            ToWorld: joins, leaves, inputs            bounded; inputs give way to joins and leaves
//!  worker ─────────────────────────────────────▶ world
//!         ─────────────────────────────────────▶       Completed: when a tick's last datagram left
//!         ◀─────────────────────────────────────       ToWorker: answers to joins; never lost
//!         ◀───────────────────────────────────── frames: the latest wins
//! ```
//!
//! An input that finds the queue full is dropped and counted: the client repeats its last inputs in every
//! message. A join or leave waits at the worker until there is room. The world takes no more joins from a
//! worker than it has room to answer.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rtrb::{Consumer, Producer, RingBuffer};
use shadowland_proto::{Slot, Time};
use shadowland_wire::message::client::Input;
use shadowland_world::{PlayerHandle, Tick};

use crate::mail::Post;

/// From a worker to the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToWorld {
    /// A confirmed session wants a player; answered by [`ToWorker`].
    Join {
        /// Whose answer it will be.
        session: Slot,
    },
    /// A session ended.
    Leave(PlayerHandle),
    /// What a player wants to do.
    Input {
        player: PlayerHandle,
        /// Counted by the client, from 1 on.
        number: u32,
        input: Input,
    },
}

/// From the world to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToWorker {
    /// The player is in every frame from tick `from` on.
    Joined { session: Slot, player: PlayerHandle, from: Tick },
    /// The world has no room.
    Refused { session: Slot },
}

/// A worker has handed the last datagram of this tick, and of all before it, to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Completed {
    pub(crate) tick: Tick,
    pub(crate) at: Time,
}

/// A worker's ends of the queues.
#[derive(Debug)]
pub(crate) struct WorkerQueues {
    to_world: Producer<ToWorld>,
    /// Places of it that are known to be free: the world takes out more, which is looked at only when these run out, for
    /// its end of the queue is in the cache of another processor.
    free: usize,
    pub(crate) from_world: Consumer<ToWorker>,
    pub(crate) completed: Producer<Completed>,
    /// The game's own messages.
    pub(crate) mail: Post,
}

/// The world's ends of one worker's queues.
#[derive(Debug)]
pub(crate) struct WorldQueues {
    pub(crate) to_worker: Producer<ToWorker>,
    pub(crate) from_worker: Consumer<ToWorld>,
    pub(crate) completed: Consumer<Completed>,
}

/// Places that inputs leave free for joins and leaves.
const RESERVED: usize = 256;
/// Completions: the world looks at them every tick.
const COMPLETIONS: usize = 64;

/// The queues between one worker, with at most `sessions` sessions, and the world; and its end of the mailbox.
pub(crate) fn queues(sessions: usize, mail: Post) -> (WorkerQueues, WorldQueues) {
    // Two messages a player and tick: a tick that comes late finds what piled up.
    let (to_world, from_worker) = RingBuffer::new(2 * sessions + 4 * RESERVED);
    let (to_worker, from_world) = RingBuffer::new(sessions + RESERVED);
    let (completed_in, completed_out) = RingBuffer::new(COMPLETIONS);
    (
        WorkerQueues { free: to_world.slots(), to_world, from_world, completed: completed_in, mail },
        WorldQueues { to_worker, from_worker, completed: completed_out },
    )
}

impl WorkerQueues {
    /// Queues an input; `false` when it had to give way.
    pub(crate) fn push_input(&mut self, player: PlayerHandle, number: u32, input: Input) -> bool {
        self.push(ToWorld::Input { player, number, input }, RESERVED)
    }

    /// Queues a join or leave; `false` when it has to be tried again later.
    pub(crate) fn push_control(&mut self, message: ToWorld) -> bool {
        self.push(message, 0)
    }

    /// Queues a message if more than `reserved` places are free.
    #[inline]
    fn push(&mut self, message: ToWorld, reserved: usize) -> bool {
        if self.free <= reserved {
            self.free = self.to_world.slots();
        }
        let taken = self.free > reserved && self.to_world.push(message).is_ok();
        self.free -= usize::from(taken);
        taken
    }
}

/// A frame on its way to a worker.
#[derive(Debug)]
pub(crate) struct Fresh<F> {
    pub(crate) frame: Arc<F>,
    /// When its tick started.
    pub(crate) started_at: Time,
    pub(crate) published_at: Time,
}

/// Where the world leaves the latest frame for a worker. A frame that nobody took is replaced.
#[derive(Debug)]
pub(crate) struct FrameSlot<F>(Mutex<Option<Fresh<F>>>);

impl<F> FrameSlot<F> {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(None))
    }

    // They hold the lock for the exchange of a pointer; what comes out is dropped after it.
    pub(crate) fn put(&self, fresh: Fresh<F>) {
        let _replaced = self.lock().replace(fresh);
    }

    pub(crate) fn take(&self) -> Option<Fresh<F>> {
        self.lock().take()
    }

    pub(crate) fn is_waiting(&self) -> bool {
        self.lock().is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Fresh<F>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The frames of a world, recycled as soon as nobody holds them.
#[derive(Debug)]
pub(crate) struct FramePool<F> {
    frames: Vec<Arc<F>>,
    next: usize,
}

impl<F> FramePool<F> {
    /// A pool of `count` frames. Without subscribers that hold frames, two a worker and one are enough: one that
    /// it works on, one that waits for it, one being filled.
    pub(crate) fn new(count: usize, mut make: impl FnMut() -> F) -> Self {
        Self { frames: (0..count).map(|_| Arc::new(make())).collect(), next: 0 }
    }

    /// Fills a frame that nobody holds, or one from `make` when all are held, and hands it out.
    pub(crate) fn fill(&mut self, make: impl FnOnce() -> F, fill: impl FnOnce(&mut F)) -> Arc<F> {
        let count = self.frames.len();
        let free = (0..count)
            .map(|ahead| (self.next + ahead) % count)
            .find(|&index| Arc::get_mut(&mut self.frames[index]).is_some());
        let index = free.unwrap_or_else(|| {
            self.frames.push(Arc::new(make()));
            count
        });
        self.next = (index + 1) % self.frames.len();
        fill(Arc::get_mut(&mut self.frames[index]).expect("nobody else holds this frame"));
        Arc::clone(&self.frames[index])
    }

    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }
}

/// A frame as its subscribers get it.
#[derive(Debug, Clone)]
pub struct Published<F> {
    /// The frame.
    pub frame: Arc<F>,
    /// When its tick started.
    pub tick_started: Instant,
}

/// A subscription to every published frame, bounded: what does not fit is missing and counted.
#[derive(Debug)]
pub struct FrameTap<F> {
    frames: Receiver<Published<F>>,
    missed: Arc<std::sync::atomic::AtomicU64>,
}

impl<F> FrameTap<F> {
    /// The next frame, if it is there.
    pub fn try_next(&self) -> Option<Published<F>> {
        self.frames.try_recv().ok()
    }

    /// Waits for the next frame; `None` after `timeout`, or when the server is gone.
    pub fn next_timeout(&self, timeout: std::time::Duration) -> Option<Published<F>> {
        self.frames.recv_timeout(timeout).ok()
    }

    /// Frames that found the subscription full.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// The publisher's side of all subscriptions.
#[derive(Debug)]
pub(crate) struct FrameTaps<F>(Mutex<Vec<TapSender<F>>>);

#[derive(Debug)]
struct TapSender<F> {
    frames: SyncSender<Published<F>>,
    missed: Arc<std::sync::atomic::AtomicU64>,
}

impl<F> FrameTaps<F> {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// A new subscription that holds up to `capacity` frames.
    pub(crate) fn subscribe(&self, capacity: usize) -> FrameTap<F> {
        let (sender, frames) = sync_channel(capacity);
        let missed = Arc::default();
        let tap = FrameTap { frames, missed: Arc::clone(&missed) };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(TapSender { frames: sender, missed });
        tap
    }

    pub(crate) fn publish(&self, frame: &Arc<F>, tick_started: Instant) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|tap| {
            match tap.frames.try_send(Published { frame: Arc::clone(frame), tick_started }) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    tap.missed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    true
                }
                Err(TrySendError::Disconnected(_)) => false,
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::mailbox;
    use shadowland_wire::entity::EntityId;

    #[test]
    fn inputs_give_way_to_joins_and_leaves() {
        let (mut worker, mut world) = queues(0, mailbox(1, 0).1.remove(0));
        let player = PlayerHandle { slot: 0, entity: EntityId::from_bits(1) };
        let inputs = (1..).take_while(|&number| worker.push_input(player, number, Input::default())).count();
        assert_eq!(inputs, 3 * RESERVED);
        for _ in 0..RESERVED {
            assert!(worker.push_control(ToWorld::Leave(player)));
        }
        assert!(!worker.push_control(ToWorld::Leave(player)));
        // In the order in which they were pushed.
        assert_eq!(
            world.from_worker.pop(),
            Ok(ToWorld::Input { player, number: 1, input: Input::default() })
        );
        assert!(worker.push_control(ToWorld::Leave(player)));
        // What the world has taken out is free again.
        assert!(!worker.push_input(player, 9, Input::default()));
        while world.from_worker.pop().is_ok() {}
        assert!((0..3 * RESERVED as u32).all(|number| worker.push_input(player, number, Input::default())));
        assert!(!worker.push_input(player, 9, Input::default()));
    }

    #[test]
    fn the_latest_frame_wins_and_frames_are_recycled() {
        let slot = FrameSlot::new();
        let mut pool = FramePool::new(3, || 0_u32);
        let mut addresses = std::collections::HashSet::new();
        for tick in 1..=20 {
            let frame = pool.fill(|| unreachable!("three frames are enough"), |frame| *frame = tick);
            addresses.insert(Arc::as_ptr(&frame) as usize);
            let at = Time::from_micros(u64::from(tick));
            slot.put(Fresh { frame, started_at: at, published_at: at });
            assert!(slot.is_waiting());
            if tick % 3 == 0 {
                let taken = slot.take().map(|fresh| (*fresh.frame, fresh.started_at, fresh.published_at));
                assert_eq!(taken, Some((tick, at, at)));
                assert!(slot.take().is_none() && !slot.is_waiting());
            }
        }
        assert_eq!((addresses.len(), pool.len()), (3, 3));
    }

    #[test]
    fn held_frames_make_the_pool_grow_and_are_never_written_to() {
        let mut pool = FramePool::new(1, || 0_u32);
        let held: Vec<_> = (1..=5).map(|tick| pool.fill(|| 0, |frame| *frame = tick)).collect();
        assert_eq!(held.iter().map(|frame| **frame).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!(pool.len(), 5);
        drop(held);
        pool.fill(|| unreachable!("all are free"), |frame| *frame = 6);
    }

    #[test]
    fn subscribers_get_every_frame_in_order_and_know_what_they_missed() {
        let taps = FrameTaps::new();
        let (patient, short) = (taps.subscribe(8), taps.subscribe(2));
        for tick in 1..=4_u32 {
            taps.publish(&Arc::new(tick), Instant::now());
        }
        let seen =
            |tap: &FrameTap<u32>| std::iter::from_fn(|| tap.try_next()).map(|p| *p.frame).collect::<Vec<_>>();
        assert_eq!((seen(&patient), patient.missed()), (vec![1, 2, 3, 4], 0));
        assert_eq!((seen(&short), short.missed()), (vec![1, 2], 2));
        drop(short);
        taps.publish(&Arc::new(5), Instant::now());
        assert_eq!(taps.0.lock().unwrap().len(), 1);
    }
}
