//! How much all connections of a server hold together of what cannot be delivered yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A bound on the bytes of reliable messages that connections hold: those behind a gap, and the pieces of large ones.
/// Shared by all connections of a server, so that many peers cannot do together what one is kept from.
#[derive(Debug)]
pub struct HeldLimit {
    most: usize,
    held: AtomicUsize,
}

impl HeldLimit {
    /// At most so many bytes.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, held: AtomicUsize::new(0) }
    }

    /// Bytes that are held now, those included that are only reserved.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

/// A connection's part of it; given back when it is dropped.
#[derive(Debug, Default)]
pub(super) struct HeldShare {
    /// `None`: no bound, as at a client.
    limit: Option<Arc<HeldLimit>>,
    bytes: usize,
}

impl HeldShare {
    pub(super) fn of(limit: Arc<HeldLimit>) -> Self {
        Self { limit: Some(limit), bytes: 0 }
    }

    /// Reserves so many bytes more, or says that there is no room.
    pub(super) fn reserve(&mut self, bytes: usize) -> bool {
        let Some(limit) = &self.limit else { return true };
        let room = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= limit.most);
        let reserved = limit.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok();
        if reserved {
            self.bytes += bytes;
        }
        reserved
    }

    /// Gives back what was reserved beyond what is really held.
    pub(super) fn settle(&mut self, held: usize) {
        let Some(limit) = &self.limit else { return };
        let spare = self.bytes.saturating_sub(held);
        if spare > 0 {
            limit.held.fetch_sub(spare, Ordering::Relaxed);
            self.bytes -= spare;
        }
    }
}

impl Drop for HeldShare {
    fn drop(&mut self) {
        self.settle(0);
    }
}
