//! A seeded bad network between two ends, under virtual time: the [`Conditioner`] of the client, in microseconds.

use rand_pcg::Pcg32;
use shadowland_client::conditioner::{self, Conditioner};
use shadowland_proto::Time;

/// What a link does to datagrams.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conditions {
    /// Share of datagrams that are lost.
    pub loss: f64,
    /// Time that every datagram takes, in microseconds.
    pub latency_us: u64,
    /// Time added or taken away at random, in microseconds; more than the time between two datagrams
    /// reorders them.
    pub jitter_us: u64,
    /// Share of datagrams that overtake: they arrive after half of the latency.
    pub reorder: f64,
    /// Share of datagrams that arrive twice.
    pub duplicate: f64,
}

impl Conditions {
    /// A cable.
    pub const PERFECT: Self =
        Self { loss: 0.0, latency_us: 1_000, jitter_us: 0, reorder: 0.0, duplicate: 0.0 };
}

impl From<Conditions> for conditioner::Conditions {
    fn from(conditions: Conditions) -> Self {
        Self {
            latency_ms: conditions.latency_us as f64 / 1_000.0,
            jitter_ms: conditions.jitter_us as f64 / 1_000.0,
            jitter_reorders: true,
            loss: conditions.loss,
            reorder: conditions.reorder,
            duplicate: conditions.duplicate,
            ..Self::PERFECT
        }
    }
}

/// One direction of a link without a bottleneck.
#[derive(Debug)]
pub struct Link<T>(Conditioner<T>);

impl<T: Clone> Link<T> {
    /// A link with its own randomness.
    pub fn new(conditions: Conditions, random: Pcg32) -> Self {
        Self(Conditioner::new(conditions.into(), random))
    }

    /// Changes the weather; what is on its way arrives as planned.
    pub fn set_conditions(&mut self, conditions: Conditions) {
        self.0.set_conditions(conditions.into());
    }

    /// Datagrams that were lost, doubled or overtaken so far.
    pub fn faults(&self) -> u64 {
        let stats = self.0.stats();
        stats.lost + stats.doubled + stats.overtaking
    }

    /// Puts a datagram on its way.
    pub fn send(&mut self, now_us: u64, datagram: T) {
        self.0.send(Time::from_micros(now_us), 0, datagram);
    }

    /// When the next datagram arrives.
    pub fn next_arrival_us(&self) -> Option<u64> {
        self.0.next_arrival().map(Time::as_micros)
    }

    /// Takes the next datagram that has arrived by `now_us`.
    pub fn receive(&mut self, now_us: u64) -> Option<T> {
        self.0.receive(Time::from_micros(now_us))
    }
}
