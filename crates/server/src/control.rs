//! What the threads of a server tell each other in passing.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Flags and numbers that need no order among each other.
#[derive(Debug, Default)]
pub(crate) struct Control {
    stop: AtomicBool,
    failed: AtomicBool,
    creatures_paused: AtomicBool,
    players: AtomicUsize,
}

impl Control {
    /// Whether all threads are to end.
    pub(crate) fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether a thread has panicked.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Players in the world at the last tick.
    pub(crate) fn players(&self) -> usize {
        self.players.load(Ordering::Relaxed)
    }

    pub(crate) fn set_players(&self, players: usize) {
        self.players.store(players, Ordering::Relaxed);
    }

    pub(crate) fn creatures_paused(&self) -> bool {
        self.creatures_paused.load(Ordering::Relaxed)
    }

    pub(crate) fn pause_creatures(&self, paused: bool) {
        self.creatures_paused.store(paused, Ordering::Relaxed);
    }
}

/// Held by a thread for as long as it runs: a panic stops the others, since a server that lacks a thread only
/// looks alive.
pub(crate) struct Alive<'a>(pub(crate) &'a Control);

impl Drop for Alive<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::Relaxed);
            self.0.stop();
        }
    }
}
