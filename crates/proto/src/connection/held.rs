//! How much all connections of a server hold together of what cannot be delivered yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a message or a piece that is held costs beside its bytes, in bytes: its entry in a tree whose nodes are half
/// full, some 81, and what an allocator adds to a small allocation.
pub(super) const MESSAGE_OVERHEAD: usize = 128;
/// What the first message ahead of a gap costs beside that: the node of the tree.
pub(super) const TREE_OVERHEAD: usize = 512;
/// What an incomplete message costs beside its pieces.
pub(super) const ASSEMBLY_OVERHEAD: usize = 640;

/// Of what all share, nobody may take more than one part in so many of what he leaves. One session alone gets a ninth
/// of it, a hundred a hundred-and-eighth each, and there is always some left for the next.
const LEFT_FOR_OTHERS: usize = 8;

/// A bound on the memory that connections use for reliable messages which cannot be delivered yet: those behind a gap,
/// and the pieces of large ones. Shared by all connections of a server, so that many peers cannot do together what one
/// is kept from.
///
/// Half of it is divided among all sessions: a share that nobody else can take. The other half is common, and bounded
/// for each by what is left of it (dynamic thresholds as in the buffers of switches: Choudhury and Hahne, IEEE/ACM
/// Transactions on Networking 6(2), 1998), so that it cannot be used up.
#[derive(Debug)]
pub struct HeldLimit {
    /// Bytes of each session.
    share: usize,
    /// Bytes for all.
    common: usize,
    /// Of them, those in use.
    taken: AtomicUsize,
}

impl HeldLimit {
    /// At most so many bytes by at most so many sessions.
    #[must_use]
    pub fn new(most: usize, sessions: usize) -> Self {
        let sessions = sessions.max(1);
        let share = most / 2 / sessions;
        Self { share, common: most - share * sessions, taken: AtomicUsize::new(0) }
    }

    /// Bytes that sessions hold now beyond their own shares.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
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
        let Some(limit) = self.limit.as_ref().filter(|_| bytes > 0) else { return true };
        let before = self.bytes.saturating_sub(limit.share);
        let after = (self.bytes + bytes).saturating_sub(limit.share);
        let take = |taken: usize| {
            let taken = taken + after - before;
            let left = limit.common.checked_sub(taken)?;
            (after <= left / LEFT_FOR_OTHERS).then_some(taken)
        };
        let fits = after == 0 || limit.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
        self.bytes += if fits { bytes } else { 0 };
        fits
    }

    /// What is really held now: gives back what was reserved beyond it.
    pub(super) fn settle(&mut self, bytes: usize) {
        let Some(limit) = &self.limit else { return };
        let [before, after] = [self.bytes, bytes].map(|bytes| bytes.saturating_sub(limit.share));
        if after < before {
            limit.taken.fetch_sub(before - after, Ordering::Relaxed);
        } else if after > before {
            limit.taken.fetch_add(after - before, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }
}

impl Drop for HeldShare {
    fn drop(&mut self) {
        self.settle(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(share: &mut HeldShare) -> usize {
        std::iter::repeat_with(|| share.reserve(10)).take_while(|taken| *taken).count() * 10
    }

    #[test]
    fn everybody_has_a_share_and_there_is_always_some_left_of_what_is_common() {
        let limit = Arc::new(HeldLimit::new(200_000, 100));
        let share = || HeldShare::of(Arc::clone(&limit));
        let mut alone = share();
        assert_eq!(fill(&mut alone), 1_000 + 100_000 / 9 / 10 * 10);
        let mut many: Vec<_> = (0..99).map(|_| share()).collect();
        let each: Vec<usize> = many.iter_mut().map(fill).collect();
        // Who comes late gets less, but more than its share; who has much keeps it, and gets no more.
        assert!(each.is_sorted_by(|a, b| a >= b) && each.iter().all(|bytes| *bytes >= 1_000), "{each:?}");
        assert!(each[9] > 4_000 && !alone.reserve(10), "{each:?}");
        // What needs no room is taken however little is left: it is what makes room.
        assert!(alone.reserve(0));
        assert!(limit.taken() <= 100_000 && alone.bytes + each.iter().sum::<usize>() <= 200_000);
        drop(many);
        alone.settle(500);
        assert_eq!(limit.taken(), 0);
    }

    #[test]
    fn a_small_limit_gives_everybody_little_and_never_underflows() {
        for (most, sessions) in [(0, 0), (0, 10), (7, 10), (1_000, 1)] {
            let limit = Arc::new(HeldLimit::new(most, sessions));
            let mut share = HeldShare::of(Arc::clone(&limit));
            assert!(!share.reserve(most + 1));
            assert!(share.reserve(0));
            // What was not reserved is counted all the same.
            share.settle(most + 100);
            assert!(!share.reserve(1));
            drop(share);
            assert_eq!(limit.taken(), 0);
        }
    }
}
