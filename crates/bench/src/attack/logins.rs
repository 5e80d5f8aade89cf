//! Real logins, one after the other and from another network each: how long players wait to get in.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use shadowland_proto::Time;

use crate::clock::ms;

use super::attacker::now;
use super::guest::Guest;
use super::stage::Stage;

/// From one login to the next.
const EVERY: Duration = Duration::from_millis(100);

/// Who does not get in counts as if it had waited for so long: as long as a client tries.
const NEVER: Duration = Duration::from_secs(10);

/// Logins in progress, and how long those took that are done.
pub(super) struct Logins<'a> {
    stage: &'a Stage,
    rng: StdRng,
    next_at: Instant,
    number: u32,
    under_way: Vec<(Instant, Guest)>,
    took: Vec<Duration>,
}

impl<'a> Logins<'a> {
    /// Logins of others than those of another seed.
    pub(super) fn new(stage: &'a Stage, seed: u64) -> Self {
        Self {
            stage,
            rng: StdRng::seed_from_u64(seed),
            next_at: Instant::now(),
            number: 0,
            under_way: Vec::new(),
            took: Vec::new(),
        }
    }

    /// Does what is due: a new login now and then while `more`, and a step of those that are under way.
    pub(super) fn step(&mut self, more: bool) -> anyhow::Result<()> {
        let at = Instant::now();
        if more && at >= self.next_at {
            self.next_at += EVERY;
            let guest = self.arrive()?;
            self.under_way.push((at, guest));
        }
        let time: Time = now(self.stage.clock);
        let (stepping, done): (Vec<_>, Vec<_>) = std::mem::take(&mut self.under_way)
            .into_iter()
            .map(|(began, mut guest)| {
                guest.step(time, None, |_| ());
                (began, guest)
            })
            .partition(|(_, guest)| !guest.plays() && !guest.session.is_over());
        self.under_way = stepping;
        for (began, mut guest) in done {
            self.took.push(if guest.plays() { began.elapsed() } else { NEVER });
            guest.session.disconnect(time);
            guest.step(time, None, |_| ());
        }
        Ok(())
    }

    /// How long the logins took, in milliseconds.
    pub(super) fn finish(self) -> Vec<f64> {
        let waiting = self.under_way.iter().map(|_| NEVER);
        self.took.iter().copied().chain(waiting).map(ms).collect()
    }

    /// Whether nobody is on the way in.
    pub(super) fn are_done(&self) -> bool {
        self.under_way.is_empty()
    }

    fn arrive(&mut self) -> anyhow::Result<Guest> {
        self.number += 1;
        let [.., low] = self.number.to_be_bytes();
        // 127.32.0.1, 127.32.1.1, ...: networks that nobody attacks from.
        let from = Ipv4Addr::new(127, 32, low, 1);
        let Stage { server_key, clock, .. } = *self.stage;
        let config = self.stage.login(&mut self.rng);
        Guest::new(from, self.stage.address(), server_key, config, &mut self.rng, now(clock))
    }
}
