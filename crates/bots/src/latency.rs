//! How long a change takes: from the start of the tick in which a value changed to the moment when a client that
//! should see it has applied it.
//!
//! Bots note [`Sample`]s: this entity's page had been applied up to tick A, and now, at this time, up to tick B.
//! Who has the server's frames tells the [`Resolver`] in which ticks which entities changed, and when those
//! ticks began. Every change in A+1 ..= B is then a latency, also where a later change came along with it: the
//! client never saw the earlier value, and had to wait as long for something that is not older.

use std::collections::VecDeque;

use hdrhistogram::Histogram;
use shadowland_proto::Time;
use shadowland_wire::entity::EntityId;

/// Ticks whose changes are remembered: 17 s at 60 Hz.
const TICKS: usize = 1_024;
/// Longest latency that is told apart from longer ones.
const LONGEST_US: u64 = 60_000_000;

/// A client has applied what is new of an entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Which entity.
    pub entity: EntityId,
    /// The tick up to which the client had applied its page before; 0 = not at all.
    pub since: u32,
    /// The tick up to which it has applied it now.
    pub tick: u32,
    /// When.
    pub applied_at: Time,
}

/// Turns samples into latencies.
#[derive(Debug)]
pub struct Resolver {
    /// Oldest first, without gaps in their numbers.
    ticks: VecDeque<TickChanges>,
    /// Samples of ticks that were not told yet.
    waiting: Vec<Sample>,
    latencies_us: Histogram<u64>,
    /// Only changes of ticks that began in this span count.
    span: (Time, Time),
    unresolved: u64,
}

#[derive(Debug)]
struct TickChanges {
    tick: u32,
    started: Time,
    /// Bit per entity index.
    changed: Vec<u64>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self::new()
    }
}

impl Resolver {
    /// Knows nothing yet, and counts everything.
    #[must_use]
    pub fn new() -> Self {
        Self {
            ticks: VecDeque::with_capacity(TICKS),
            waiting: Vec::new(),
            // Three digits: 0.1 % of a latency.
            latencies_us: Histogram::new_with_bounds(1, LONGEST_US, 3).expect("the bounds are in order"),
            span: (Time::default(), Time::from_micros(u64::MAX)),
            unresolved: 0,
        }
    }

    /// From now on counts only changes of ticks that begin at `from` or later, and forgets what was counted.
    pub fn count_from(&mut self, from: Time) {
        self.span.0 = from;
        self.latencies_us.reset();
        self.unresolved = 0;
    }

    /// Counts only changes of ticks that begin before `until`.
    pub fn count_until(&mut self, until: Time) {
        self.span.1 = until;
    }

    /// A tick began at `started` and changed these entities. A gap in the ticks is as good as a new start.
    pub fn tick(&mut self, tick: u32, started: Time, changed: impl IntoIterator<Item = EntityId>) {
        if self.ticks.back().is_some_and(|newest| newest.tick + 1 != tick) {
            self.ticks.clear();
        }
        let recycled = if self.ticks.len() == TICKS { self.ticks.pop_front() } else { None };
        let mut bits = recycled.map_or_else(Vec::new, |oldest| oldest.changed);
        bits.clear();
        for entity in changed {
            let word = entity.index() / 64;
            if word >= bits.len() {
                bits.resize(word + 1, 0);
            }
            bits[word] |= 1 << (entity.index() % 64);
        }
        self.ticks.push_back(TickChanges { tick, started, changed: bits });
        let waiting = std::mem::take(&mut self.waiting);
        for sample in waiting {
            self.sample(sample);
        }
    }

    /// Resolves a sample, or keeps it until its tick is told.
    pub fn sample(&mut self, sample: Sample) {
        // Who comes into sight was not waited for, and what was applied before brings nothing new.
        if sample.since == 0 || sample.since >= sample.tick {
            return;
        }
        let (Some(oldest), Some(newest)) = (self.ticks.front(), self.ticks.back()) else {
            self.waiting.push(sample);
            return;
        };
        if sample.tick > newest.tick {
            self.waiting.push(sample);
            return;
        }
        let first = sample.since + 1;
        if first < oldest.tick {
            // Before the span nobody cares; within it, something is missing.
            self.unresolved += u64::from(oldest.started >= self.span.0);
        }
        let (word, bit) = (sample.entity.index() / 64, sample.entity.index() % 64);
        let from = first.max(oldest.tick) - oldest.tick;
        let count = (sample.tick + 1).saturating_sub(first.max(oldest.tick));
        for at in self.ticks.range(from as usize..(from + count) as usize) {
            let changed = at.changed.get(word).is_some_and(|word| word & (1 << bit) != 0);
            if changed && at.started >= self.span.0 && at.started < self.span.1 {
                let latency = (sample.applied_at - at.started).as_micros();
                self.latencies_us.saturating_record(u64::try_from(latency).unwrap_or(u64::MAX));
            }
        }
    }

    /// Latencies that were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.latencies_us.len()
    }

    /// Samples that reach back beyond what is remembered.
    #[must_use]
    pub fn unresolved(&self) -> u64 {
        self.unresolved
    }

    /// The latency, in milliseconds, that so many percent of the changes do not exceed; 0 without changes.
    #[must_use]
    pub fn percentile_ms(&self, percent: f64) -> f64 {
        self.latencies_us.value_at_quantile(percent / 100.0) as f64 / 1_000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: u32) -> EntityId {
        EntityId::new(index, 0)
    }

    fn ms(ms: u64) -> Time {
        Time::from_micros(ms * 1_000)
    }

    fn sample(entity: u32, since: u32, tick: u32, applied_ms: u64) -> Sample {
        Sample { entity: id(entity), since, tick, applied_at: ms(applied_ms) }
    }

    /// Ticks of 10 ms; entity 5 changes in each, entity 200 in every third.
    fn resolver(ticks: std::ops::RangeInclusive<u32>) -> Resolver {
        let mut resolver = Resolver::new();
        for tick in ticks {
            let third = (tick % 3 == 0).then(|| id(200));
            resolver.tick(tick, ms(u64::from(tick) * 10), [id(5)].into_iter().chain(third));
        }
        resolver
    }

    fn latencies(resolver: &Resolver) -> Vec<u64> {
        let steps = resolver.latencies_us.iter_recorded();
        steps
            .flat_map(|step| vec![step.value_iterated_to() / 1_000; step.count_at_value() as usize])
            .collect()
    }

    #[test]
    fn every_change_since_the_page_was_applied_is_a_latency() {
        let mut resolver = resolver(1..=20);
        resolver.sample(sample(5, 9, 12, 125));
        assert_eq!(latencies(&resolver), [5, 15, 25], "ticks 10, 11 and 12");
        resolver.sample(sample(200, 9, 12, 121));
        assert_eq!(latencies(&resolver), [1, 5, 15, 25], "only tick 12: 9 was applied before");
        resolver.sample(sample(7, 9, 12, 125));
        resolver.sample(sample(5, 0, 12, 125));
        assert_eq!(resolver.count(), 4, "what never changed and what came into sight do not count");
    }

    #[test]
    fn a_sample_that_brings_nothing_new_is_none() {
        let mut resolver = resolver(1..=20);
        for since in [18, 19, 20, 24, u32::MAX] {
            resolver.sample(sample(5, since, 18, 200));
        }
        assert_eq!((resolver.count(), resolver.unresolved()), (0, 0));
    }

    #[test]
    fn samples_wait_for_their_tick() {
        let mut resolver = Resolver::new();
        resolver.sample(sample(5, 9, 11, 117));
        resolver.tick(10, ms(100), [id(5)]);
        assert_eq!(resolver.count(), 0);
        resolver.tick(11, ms(110), [id(5)]);
        assert_eq!(latencies(&resolver), [7, 17]);
    }

    #[test]
    fn only_the_span_counts() {
        let mut resolver = resolver(1..=20);
        resolver.sample(sample(5, 9, 12, 125));
        resolver.count_from(ms(110));
        assert_eq!(resolver.count(), 0);
        resolver.count_until(ms(130));
        resolver.sample(sample(5, 9, 14, 145));
        assert_eq!(latencies(&resolver), [25, 35], "ticks 11 and 12");
    }

    #[test]
    fn what_is_not_remembered_is_told() {
        let mut gap = resolver(1..=20);
        gap.tick(30, ms(300), [id(5)]);
        gap.sample(sample(5, 20, 30, 304));
        assert_eq!((latencies(&gap), gap.unresolved()), (vec![4], 1));
        let mut long = resolver(1..=TICKS as u32 + 10);
        long.sample(sample(5, 5, 8, 1_000));
        assert_eq!((long.count(), long.unresolved()), (0, 1));
    }

    #[test]
    fn percentiles_are_in_milliseconds() {
        let mut resolver = Resolver::new();
        assert_eq!(resolver.percentile_ms(99.0), 0.0);
        resolver.tick(1, ms(10), [id(1)]);
        resolver.tick(2, ms(20), [id(1)]);
        for applied in 21..=120 {
            resolver.sample(sample(1, 1, 2, applied));
        }
        assert!((resolver.percentile_ms(50.0) - 50.0).abs() < 0.1, "{}", resolver.percentile_ms(50.0));
        assert!((resolver.percentile_ms(99.0) - 99.0).abs() < 0.1, "{}", resolver.percentile_ms(99.0));
    }
}
