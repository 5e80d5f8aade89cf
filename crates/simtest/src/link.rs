//! A seeded bad network between two ends, under virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::RngExt;
use rand_pcg::Pcg32;

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

/// One direction of a link.
#[derive(Debug)]
pub struct Link<T> {
    conditions: Conditions,
    random: Pcg32,
    /// Arrival time and number in the order of sending, so that equal times keep their order.
    on_the_way: BinaryHeap<Reverse<(u64, u64)>>,
    datagrams: Vec<(u64, T)>,
    sent: u64,
    faults: u64,
}

impl<T: Clone> Link<T> {
    /// A link with its own randomness.
    pub fn new(conditions: Conditions, random: Pcg32) -> Self {
        Self { conditions, random, on_the_way: BinaryHeap::new(), datagrams: Vec::new(), sent: 0, faults: 0 }
    }

    /// Changes the weather; what is on its way arrives as planned.
    pub fn set_conditions(&mut self, conditions: Conditions) {
        self.conditions = conditions;
    }

    /// Datagrams that were lost, doubled or overtaken so far.
    pub fn faults(&self) -> u64 {
        self.faults
    }

    /// Puts a datagram on its way.
    pub fn send(&mut self, now_us: u64, datagram: T) {
        let Conditions { loss, latency_us, jitter_us, reorder, duplicate } = self.conditions;
        if self.random.random_bool(loss) {
            self.faults += 1;
            return;
        }
        let twice = self.random.random_bool(duplicate);
        self.faults += u64::from(twice);
        for _ in 0..=usize::from(twice) {
            let jitter = if jitter_us == 0 { 0 } else { self.random.random_range(0..=2 * jitter_us) };
            let mut delay = (latency_us + jitter).saturating_sub(jitter_us);
            if self.random.random_bool(reorder) {
                self.faults += 1;
                delay /= 2;
            }
            self.sent += 1;
            self.on_the_way.push(Reverse((now_us + delay, self.sent)));
            self.datagrams.push((self.sent, datagram.clone()));
        }
    }

    /// When the next datagram arrives.
    pub fn next_arrival_us(&self) -> Option<u64> {
        self.on_the_way.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes the next datagram that has arrived by `now_us`.
    pub fn receive(&mut self, now_us: u64) -> Option<T> {
        let Reverse((at, number)) = *self.on_the_way.peek()?;
        if at > now_us {
            return None;
        }
        self.on_the_way.pop();
        let index = self.datagrams.iter().position(|(sent, _)| *sent == number)?;
        Some(self.datagrams.swap_remove(index).1)
    }
}
