//! A bad network, for developers, load generators and simulations: latency, jitter, loss alone and in bursts,
//! reordering, duplicates, and a bottleneck with a queue. Driven by a seed and by the time that is handed in, so
//! that the same seed does the same to the same datagrams.
//!
//! ```text
//! send ─▶ burst or single loss ─▶ queue of the bottleneck (full: lost) ─▶ latency ± jitter ─▶ receive
//!                                                                 some overtake, some arrive twice
//! ```

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::str::FromStr;
use std::time::Duration;

use rand::RngExt;
use rand_pcg::Pcg32;
use serde::Deserialize;
use shadowland_proto::Time;
use thiserror::Error;

/// What one direction of a link does to datagrams. Shares are from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Conditions {
    /// Time that every datagram takes, in milliseconds.
    pub latency_ms: f64,
    /// Time added or taken away at random, in milliseconds.
    pub jitter_ms: f64,
    /// Whether jitter lets datagrams overtake each other; else a late one holds up those behind it.
    pub jitter_reorders: bool,
    /// Share of datagrams that are lost, each by itself.
    pub loss: f64,
    /// Share of datagrams at which a burst of losses begins.
    pub burst: f64,
    /// Datagrams that a burst takes on average.
    pub burst_length: f64,
    /// Share of datagrams that overtake: they arrive after half of the latency.
    pub reorder: f64,
    /// Share of datagrams that arrive twice.
    pub duplicate: f64,
    /// Kilobits a second that get through, counting the bytes of datagrams alone; 0 for no limit.
    pub bandwidth_kbit_s: f64,
    /// Datagrams wait for that at most so long, in milliseconds; what would wait longer is lost.
    pub queue_ms: f64,
}

impl Conditions {
    /// Nothing happens to datagrams.
    pub const PERFECT: Self = Self {
        latency_ms: 0.0,
        jitter_ms: 0.0,
        jitter_reorders: false,
        loss: 0.0,
        burst: 0.0,
        burst_length: 1.0,
        reorder: 0.0,
        duplicate: 0.0,
        bandwidth_kbit_s: 0.0,
        queue_ms: 100.0,
    };

    /// Whether every figure is one that a network can have.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let shares = [self.loss, self.burst, self.reorder, self.duplicate];
        let amounts = [self.latency_ms, self.jitter_ms, self.bandwidth_kbit_s, self.queue_ms];
        shares.into_iter().all(|share| (0.0..=1.0).contains(&share))
            && amounts.into_iter().all(|amount| (0.0..1e9).contains(&amount))
            && (1.0..1e9).contains(&self.burst_length)
    }
}

impl Default for Conditions {
    fn default() -> Self {
        Self::PERFECT
    }
}

/// Both directions of a player's link.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetProfile {
    /// From the player to the server.
    pub up: Conditions,
    /// From the server to the player.
    pub down: Conditions,
}

/// Text that names no profile.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("there is no network profile `{name}`; there are {}", NetProfile::NAMES.join(", "))]
pub struct NoSuchProfile {
    /// The text.
    pub name: String,
}

impl NetProfile {
    /// The profiles with names.
    pub const NAMES: [&str; 4] = ["wifi", "mobile", "transatlantic", "terrible"];

    /// Whether every figure is one that a network can have.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.up.is_valid() && self.down.is_valid()
    }
}

impl FromStr for NetProfile {
    type Err = NoSuchProfile;

    fn from_str(name: &str) -> Result<Self, NoSuchProfile> {
        let both = |conditions| Self { up: conditions, down: conditions };
        match name {
            // A home network two walls away from its access point.
            "wifi" => Ok(both(Conditions {
                latency_ms: 15.0,
                jitter_ms: 8.0,
                loss: 0.005,
                burst: 0.001,
                burst_length: 5.0,
                duplicate: 0.001,
                bandwidth_kbit_s: 20_000.0,
                ..Conditions::PERFECT
            })),
            // A phone in a moving train: narrow upwards, a long queue, short gaps.
            "mobile" => {
                let down = Conditions {
                    latency_ms: 45.0,
                    jitter_ms: 20.0,
                    loss: 0.01,
                    burst: 0.003,
                    burst_length: 8.0,
                    reorder: 0.005,
                    bandwidth_kbit_s: 6_000.0,
                    queue_ms: 300.0,
                    ..Conditions::PERFECT
                };
                Ok(Self { up: Conditions { bandwidth_kbit_s: 1_500.0, ..down }, down })
            }
            // Far away over good cables.
            "transatlantic" => Ok(both(Conditions {
                latency_ms: 50.0,
                jitter_ms: 2.0,
                loss: 0.002,
                reorder: 0.001,
                ..Conditions::PERFECT
            })),
            // What nobody should have to play over, and what must work nevertheless.
            "terrible" => Ok(both(Conditions {
                latency_ms: 150.0,
                jitter_ms: 60.0,
                jitter_reorders: true,
                loss: 0.15,
                burst: 0.005,
                burst_length: 10.0,
                reorder: 0.05,
                duplicate: 0.05,
                bandwidth_kbit_s: 1_000.0,
                queue_ms: 200.0,
            })),
            name => Err(NoSuchProfile { name: name.to_owned() }),
        }
    }
}

/// One direction of a link, and the datagrams on their way through it.
#[derive(Debug)]
pub struct Conditioner<T> {
    conditions: Conditions,
    random: Pcg32,
    on_the_way: BinaryHeap<Reverse<Travelling<T>>>,
    /// When the bottleneck has sent what waits for it.
    free_at: Time,
    /// The latest arrival so far.
    last_arrival: Time,
    /// Datagrams that a burst still takes.
    burst_left: u32,
    number: u64,
    stats: ConditionerStats,
}

/// What a link has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConditionerStats {
    /// Datagrams that were handed in.
    pub sent: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Lost because the bottleneck's queue was full.
    pub overflowed: u64,
    /// Arrived twice.
    pub doubled: u64,
    /// Sent to overtake.
    pub overtaking: u64,
    /// Bytes that got through the bottleneck.
    pub bytes_through: u64,
}

#[derive(Debug)]
struct Travelling<T> {
    at: Time,
    /// In the order of sending, so that equal times keep it.
    number: u64,
    datagram: T,
}

impl<T> PartialEq for Travelling<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for Travelling<T> {}

impl<T> PartialOrd for Travelling<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Travelling<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl<T: Clone> Conditioner<T> {
    /// A link with its own randomness.
    #[must_use]
    pub fn new(conditions: Conditions, random: Pcg32) -> Self {
        Self {
            conditions,
            random,
            on_the_way: BinaryHeap::new(),
            free_at: Time::default(),
            last_arrival: Time::default(),
            burst_left: 0,
            number: 0,
            stats: ConditionerStats::default(),
        }
    }

    /// Changes the weather; what is on its way arrives as planned.
    pub fn set_conditions(&mut self, conditions: Conditions) {
        self.conditions = conditions;
    }

    /// What the link has done so far.
    #[must_use]
    pub fn stats(&self) -> ConditionerStats {
        self.stats
    }

    /// How long a datagram that is sent now would wait for the bottleneck.
    #[must_use]
    pub fn queued(&self, now: Time) -> Duration {
        self.free_at - now
    }

    /// Puts a datagram of so many bytes on its way.
    pub fn send(&mut self, now: Time, bytes: usize, datagram: T) {
        self.stats.sent += 1;
        self.stats.bytes += bytes as u64;
        if self.is_lost() {
            self.stats.lost += 1;
            return;
        }
        let Some(through) = self.pass_bottleneck(now, bytes) else {
            self.stats.overflowed += 1;
            return;
        };
        self.stats.bytes_through += bytes as u64;
        let twice = self.random.random_bool(self.conditions.duplicate);
        if twice {
            self.stats.doubled += 1;
            self.travel(through, datagram.clone());
        }
        self.travel(through, datagram);
    }

    /// When the next datagram arrives.
    #[must_use]
    pub fn next_arrival(&self) -> Option<Time> {
        self.on_the_way.peek().map(|Reverse(next)| next.at)
    }

    /// Takes the next datagram that has arrived by now.
    pub fn receive(&mut self, now: Time) -> Option<T> {
        if self.next_arrival()? > now {
            return None;
        }
        self.on_the_way.pop().map(|Reverse(arrived)| arrived.datagram)
    }

    fn is_lost(&mut self) -> bool {
        let Conditions { loss, burst, burst_length, .. } = self.conditions;
        if self.burst_left > 0 {
            self.burst_left -= 1;
            return true;
        }
        if burst > 0.0 && self.random.random_bool(burst) {
            // Lengths are geometric, as a channel of two states has them (Gilbert).
            while self.random.random_bool(1.0 - 1.0 / burst_length) {
                self.burst_left += 1;
            }
            return true;
        }
        self.random.random_bool(loss)
    }

    /// When the bottleneck has sent it; `None` when its queue is full.
    fn pass_bottleneck(&mut self, now: Time, bytes: usize) -> Option<Time> {
        let Conditions { bandwidth_kbit_s, queue_ms, .. } = self.conditions;
        if bandwidth_kbit_s <= 0.0 {
            return Some(now);
        }
        if self.queued(now) > milliseconds(queue_ms) {
            return None;
        }
        let takes = milliseconds(bytes as f64 * 8.0 / bandwidth_kbit_s);
        self.free_at = self.free_at.max(now) + takes;
        Some(self.free_at)
    }

    fn travel(&mut self, from: Time, datagram: T) {
        let Conditions { latency_ms, jitter_ms, jitter_reorders, reorder, .. } = self.conditions;
        let jitter = if jitter_ms > 0.0 { self.random.random_range(-jitter_ms..=jitter_ms) } else { 0.0 };
        let mut delay_ms = (latency_ms + jitter).max(0.0);
        let overtakes = self.random.random_bool(reorder);
        if overtakes {
            self.stats.overtaking += 1;
            delay_ms /= 2.0;
        }
        let mut at = from + milliseconds(delay_ms);
        if !jitter_reorders && !overtakes {
            at = at.max(self.last_arrival);
            self.last_arrival = at;
        }
        self.number += 1;
        self.on_the_way.push(Reverse(Travelling { at, number: self.number, datagram }));
    }
}

fn milliseconds(ms: f64) -> Duration {
    Duration::from_micros((ms * 1_000.0).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn at(us: u64) -> Time {
        Time::from_micros(us)
    }

    /// Sends so many datagrams of 1,000 bytes, one a millisecond; what arrived, and when.
    fn run(conditions: Conditions, count: u64, seed: u64) -> (Vec<(u64, u64)>, ConditionerStats) {
        let mut link = Conditioner::new(conditions, Pcg32::seed_from_u64(seed));
        let mut arrived = Vec::new();
        for ms in 0..count + 2_000 {
            if ms < count {
                link.send(at(ms * 1_000), 1_000, ms);
            }
            while let Some(number) = link.receive(at(ms * 1_000)) {
                arrived.push((number, ms));
            }
        }
        (arrived, link.stats())
    }

    #[test]
    fn the_same_seed_does_the_same() {
        let terrible: NetProfile = "terrible".parse().unwrap();
        assert_eq!(run(terrible.down, 2_000, 7), run(terrible.down, 2_000, 7));
        assert_ne!(run(terrible.down, 2_000, 7), run(terrible.down, 2_000, 8));
    }

    #[test]
    fn loss_alone_and_in_bursts_takes_its_share() {
        let single = Conditions { loss: 0.1, ..Conditions::PERFECT };
        let lost = run(single, 20_000, 1).1.lost;
        assert!((1_800..2_200).contains(&lost), "{lost}");
        let bursts = Conditions { burst: 0.01, burst_length: 9.0, ..Conditions::PERFECT };
        let (arrived, stats) = run(bursts, 20_000, 1);
        let share = 0.01 * 9.0 / (1.0 + 0.01 * 8.0);
        assert!((stats.lost as f64 / 20_000.0 - share).abs() < 0.02, "{}", stats.lost);
        let gaps = arrived.windows(2).filter(|pair| pair[1].0 - pair[0].0 > 1).count();
        assert!((gaps as u64) < stats.lost / 5, "{gaps} gaps for {} lost", stats.lost);
    }

    #[test]
    fn jitter_keeps_the_order_unless_it_may_not() {
        let jittery = Conditions { latency_ms: 50.0, jitter_ms: 20.0, ..Conditions::PERFECT };
        let (arrived, _) = run(jittery, 1_000, 3);
        assert!(arrived.is_sorted());
        assert!(arrived.iter().all(|(number, at)| (30..=71).contains(&(at - number))));
        let (arrived, _) = run(Conditions { jitter_reorders: true, ..jittery }, 1_000, 3);
        assert!(!arrived.is_sorted_by_key(|(number, _)| *number));
        assert_eq!(arrived.len(), 1_000);
    }

    #[test]
    fn the_bottleneck_lets_its_bandwidth_through_and_queues_no_longer_than_it_may() {
        // 8,000 kbit/s come in.
        let narrow = Conditions { bandwidth_kbit_s: 4_000.0, queue_ms: 100.0, ..Conditions::PERFECT };
        let (arrived, stats) = run(narrow, 5_000, 1);
        let within = arrived.iter().filter(|(_, at)| *at < 5_000).count();
        assert!((2_490..=2_500).contains(&within), "{within} in 5 s");
        assert!(arrived.iter().all(|(number, at)| at - number <= 103));
        assert_eq!(stats.overflowed + arrived.len() as u64, 5_000);
    }

    #[test]
    fn profiles_have_names() {
        for name in NetProfile::NAMES {
            assert!(name.parse::<NetProfile>().unwrap().is_valid(), "{name}");
        }
        assert!("wife".parse::<NetProfile>().unwrap_err().to_string().contains("wifi, mobile"));
        let broken = Conditions { loss: 1.5, ..Conditions::PERFECT };
        assert!(!NetProfile { up: broken, ..NetProfile::default() }.is_valid());
    }
}
