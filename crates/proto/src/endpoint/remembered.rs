//! Handshakes that were accepted lately: a request that is repeated, because its answer was lost or late, gets
//! the same bytes and no second session.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use shadowland_wire::handshake::{KEY_BYTES, NOISE_ACCEPTANCE_BYTES};
use shadowland_wire::limits::REMEMBERED_HANDSHAKES;

use super::Slot;
use crate::Time;

/// As long as a cookie lives: after that the same request is refused anyway.
const REMEMBER: Duration = Duration::from_secs(10);

/// Accepted handshakes by the client's ephemeral key; bounded in number and time.
#[derive(Default)]
pub(super) struct Remembered {
    /// Ordered, so that nobody can choose keys that make it slow.
    by_key: BTreeMap<[u8; KEY_BYTES], (Time, Accepted)>,
    /// A key that was accepted again stands in it twice; only the time in `by_key` counts.
    oldest_first: VecDeque<(Time, [u8; KEY_BYTES])>,
}

/// What an accepted handshake led to.
#[derive(Clone, Copy)]
pub(super) struct Accepted {
    pub(super) slot: Slot,
    pub(super) address: SocketAddr,
    /// The second Noise message.
    pub(super) noise: [u8; NOISE_ACCEPTANCE_BYTES],
}

impl Remembered {
    /// When a handshake was accepted, and what it led to.
    pub(super) fn get(&self, ephemeral: &[u8; KEY_BYTES]) -> Option<&(Time, Accepted)> {
        self.by_key.get(ephemeral)
    }

    /// Remembers a handshake, and forgets those that are too old or too many.
    pub(super) fn insert(&mut self, now: Time, ephemeral: [u8; KEY_BYTES], accepted: Accepted) {
        self.forget(now);
        if self.oldest_first.len() == REMEMBERED_HANDSHAKES
            && let Some((at, oldest)) = self.oldest_first.pop_front()
        {
            self.remove(at, &oldest);
        }
        self.by_key.insert(ephemeral, (now, accepted));
        self.oldest_first.push_back((now, ephemeral));
    }

    pub(super) fn forget(&mut self, now: Time) {
        while let Some((at, oldest)) = self.oldest_first.pop_front_if(|(at, _)| now - *at > REMEMBER) {
            self.remove(at, &oldest);
        }
    }

    /// Forgets what was accepted at `at`, unless it was accepted again since.
    fn remove(&mut self, at: Time, ephemeral: &[u8; KEY_BYTES]) {
        if self.by_key.get(ephemeral).is_some_and(|(latest, _)| *latest == at) {
            self.by_key.remove(ephemeral);
        }
    }
}
