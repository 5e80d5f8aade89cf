//! How much may be under way, behind one small trait: by delay (Copa) or by loss (NewReno).
//!
//! Both are told of every acknowledgement and every loss and answer with a window in bytes. Neither lets it grow
//! while the application uses less than half of it (RFC 9002, 7.8): what was never tried is not known.

use std::time::Duration;

use super::config::Congestion;
use crate::Time;

/// What a packet counts for, in bytes: a whole one.
pub(super) const PACKET_BYTES: u64 = 1200;
/// Ten packets, as RFC 9002 and TCP start.
const WINDOW_START: u64 = 10 * PACKET_BYTES;
const WINDOW_MIN: u64 = 2 * PACKET_BYTES;
/// As much as the ring of sent packets remembers.
const WINDOW_MAX: u64 = 240 * PACKET_BYTES;

/// Packets that were acknowledged together.
#[derive(Debug, Clone, Copy)]
pub(super) struct AckEvent {
    pub(super) now: Time,
    /// How many they are.
    pub(super) packets: u32,
    /// Bytes of them.
    pub(super) bytes: u64,
    /// The round trip of the newest one without the peer's delay, if it could be measured.
    pub(super) rtt_us: Option<u64>,
    /// The smoothed round trip.
    pub(super) smoothed_us: u64,
    /// When the newest of them was sent.
    pub(super) sent_at: Time,
    /// Most bytes that were under way at a time during the last round trip.
    pub(super) used: u64,
}

/// One way to find a window.
pub(super) trait Controller {
    /// Packets were acknowledged.
    fn on_ack(&mut self, ack: &AckEvent);
    /// Packets were lost, the newest of them sent at `sent_at`.
    fn on_loss(&mut self, now: Time, sent_at: Time);
    /// Nothing has been acknowledged for several timeouts in a row.
    fn on_silence(&mut self);
    /// Bytes that may be under way.
    fn window(&self) -> u64;
}

/// The controller of a connection. An enum, so that a connection needs no allocation for it.
#[derive(Debug)]
pub(super) enum Chosen {
    Delay(Copa),
    Loss(NewReno),
    Off,
}

impl Chosen {
    pub(super) fn new(choice: Congestion) -> Self {
        match choice {
            Congestion::Delay => Self::Delay(Copa::new()),
            Congestion::Loss => Self::Loss(NewReno::new()),
            Congestion::Off => Self::Off,
        }
    }

    #[inline]
    pub(super) fn on_ack(&mut self, ack: &AckEvent) {
        match self {
            Self::Delay(controller) => controller.on_ack(ack),
            Self::Loss(controller) => controller.on_ack(ack),
            Self::Off => {}
        }
    }

    pub(super) fn on_loss(&mut self, now: Time, sent_at: Time) {
        match self {
            Self::Delay(controller) => controller.on_loss(now, sent_at),
            Self::Loss(controller) => controller.on_loss(now, sent_at),
            Self::Off => {}
        }
    }

    pub(super) fn on_silence(&mut self) {
        match self {
            Self::Delay(controller) => controller.on_silence(),
            Self::Loss(controller) => controller.on_silence(),
            Self::Off => {}
        }
    }

    /// `None` without a limit.
    #[inline]
    pub(super) fn window(&self) -> Option<u64> {
        match self {
            Self::Delay(controller) => Some(controller.window()),
            Self::Loss(controller) => Some(controller.window()),
            Self::Off => None,
        }
    }
}

/// NewReno as in RFC 9002, 7.
#[derive(Debug)]
pub(super) struct NewReno {
    window: u64,
    threshold: u64,
    /// Bytes acknowledged since the window grew last.
    credit: u64,
    /// Losses of packets that were sent before are of the same congestion.
    recovery_since: Time,
}

impl NewReno {
    fn new() -> Self {
        Self { window: WINDOW_START, threshold: u64::MAX, credit: 0, recovery_since: Time::default() }
    }
}

impl Controller for NewReno {
    fn on_ack(&mut self, ack: &AckEvent) {
        if ack.sent_at <= self.recovery_since || ack.used < self.window / 2 {
            return;
        }
        if self.window < self.threshold {
            self.window += ack.bytes;
        } else {
            self.credit += ack.bytes;
            if self.credit >= self.window {
                self.credit -= self.window;
                self.window += PACKET_BYTES;
            }
        }
        self.window = self.window.min(WINDOW_MAX);
    }

    fn on_loss(&mut self, now: Time, sent_at: Time) {
        if sent_at <= self.recovery_since {
            return;
        }
        self.recovery_since = now;
        self.window = (self.window / 2).max(WINDOW_MIN);
        self.threshold = self.window;
        self.credit = 0;
    }

    fn on_silence(&mut self) {
        self.window = WINDOW_MIN;
    }

    fn window(&self) -> u64 {
        self.window
    }
}

/// How long the shortest round trip is believed in.
const LEAST_FOR_US: u64 = 10_000_000;
/// What one flow leaves in a queue is about `1 / DELTA` packets: 2.
const PACKETS_IN_QUEUE: u64 = 2;
/// At least so long the shortest of the last round trips is taken for the standing one, so that jitter does not
/// look like a queue.
const STANDING_FOR_MIN_US: u64 = 50_000;
/// Velocity doubles up to where a round trip moves the window by a quarter.
const STEPS_PER_WINDOW: u64 = 4;
/// A queue that never empties hides how short a round trip is, be it of others or of our own: so often the window
/// shrinks to a quarter for a moment to look.
const LOOK_AFTER_US: u64 = 2_500_000;
/// That moment, beside one round trip.
const LOOK_FOR: Duration = Duration::from_millis(100);
/// The share of packets lost in a round trip, in percent, above which a short queue is overflowing whatever the
/// delay says. Below it loss is the link's own.
const LOSS_TOLERATED_PERCENT: u64 = 35;

/// Copa: the window follows the rate `1 / (delta * queueing delay)`, which keeps about two packets in the
/// bottleneck's queue, empties it every few round trips, and shares a link evenly among its like.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Copa {
    /// The window is small until then, to see how long a round trip is without a queue.
    looks_until: Option<Time>,
    window: u64,
    /// Bytes of growth below one.
    fraction: u64,
    /// When the window was small last.
    looked_at: Time,
    least: WindowedLeast,
    standing: WindowedLeast,
    round_since: Time,
    round_window: u64,
    round_acked: u32,
    round_lost: u32,
    velocity: u64,
    /// Round trips in a row in which the window has gone one way.
    rounds_one_way: u32,
    slow_start: bool,
    rises: bool,
}

impl Copa {
    fn new() -> Self {
        Self {
            window: WINDOW_START,
            least: WindowedLeast::default(),
            standing: WindowedLeast::default(),
            slow_start: true,
            velocity: 1,
            rises: true,
            rounds_one_way: 0,
            round_since: Time::default(),
            round_window: WINDOW_START,
            round_acked: 0,
            round_lost: 0,
            fraction: 0,
            looked_at: Time::default(),
            looks_until: None,
        }
    }

    /// Whether the window is kept small to find the shortest round trip.
    fn looks(&mut self, ack: &AckEvent) -> bool {
        if self.looks_until.is_some_and(|until| ack.now >= until) {
            self.looks_until = None;
            self.looked_at = ack.now;
            self.velocity = 1;
        }
        if ack.used < self.window / 2 {
            // Who sends less than it may builds no queue.
            self.looked_at = ack.now;
        }
        if self.looks_until.is_none() && ack.now.micros_since(self.looked_at) >= LOOK_AFTER_US {
            self.looks_until = Some(ack.now + LOOK_FOR + Duration::from_micros(ack.smoothed_us));
        }
        self.looks_until.is_some()
    }

    /// Once a round trip: has the window kept its direction?
    fn end_round(&mut self, now: Time) {
        let rises = self.window > self.round_window;
        if rises == self.rises && self.window != self.round_window {
            self.rounds_one_way += 1;
        } else {
            self.rounds_one_way = 0;
            self.velocity = 1;
        }
        self.rises = rises;
        if self.rounds_one_way >= 3 {
            let packets = self.window / PACKET_BYTES;
            let most = packets / (STEPS_PER_WINDOW * PACKETS_IN_QUEUE);
            self.velocity = (2 * self.velocity).min(most.max(1));
        }
        let [acked, lost] = [self.round_acked, self.round_lost].map(u64::from);
        if acked + lost >= 8 && lost * 100 > (acked + lost) * LOSS_TOLERATED_PERCENT {
            self.window = (self.window * 7 / 10).max(WINDOW_MIN);
            self.slow_start = false;
        }
        self.round_since = now;
        self.round_window = self.window;
        (self.round_acked, self.round_lost) = (0, 0);
    }

    fn turn(&mut self, rises: bool) {
        if rises != self.rises {
            self.rises = rises;
            self.velocity = 1;
            self.rounds_one_way = 0;
        }
    }

    /// Moves the window by `velocity * acked / (delta * window)` packets.
    fn step(&mut self, rises: bool, bytes: u64) {
        let packets = self.velocity * PACKETS_IN_QUEUE * PACKET_BYTES;
        self.fraction += bytes * packets;
        let step = self.fraction / self.window;
        self.fraction %= self.window;
        self.window = if rises { self.window + step } else { self.window.saturating_sub(step) };
        self.window = self.window.clamp(WINDOW_MIN, WINDOW_MAX);
    }
}

impl Controller for Copa {
    #[inline]
    fn on_ack(&mut self, ack: &AckEvent) {
        self.round_acked = self.round_acked.saturating_add(ack.packets);
        if let Some(rtt_us) = ack.rtt_us {
            let standing_for_us = (ack.smoothed_us / 2).max(STANDING_FOR_MIN_US);
            self.least.add(ack.now, rtt_us, LEAST_FOR_US / 2);
            self.standing.add(ack.now, rtt_us, standing_for_us / 2);
        }
        if self.looks(ack) {
            return;
        }
        let (Some(least), Some(standing)) = (self.least.get(), self.standing.get()) else { return };
        let queued_us = standing.saturating_sub(least);
        // rate = window / standing; target = 1 / (delta * queued); so window * queued against standing / delta.
        let is_below = self.window * queued_us <= PACKETS_IN_QUEUE * PACKET_BYTES * standing;
        let in_use = ack.used >= self.window / 2;
        if self.slow_start {
            if is_below && in_use {
                self.window = (self.window + ack.bytes).min(WINDOW_MAX);
            }
            self.slow_start &= is_below;
        } else if !is_below || in_use {
            self.turn(is_below);
            self.step(is_below, ack.bytes);
        }
        if ack.now.micros_since(self.round_since) >= ack.smoothed_us {
            self.end_round(ack.now);
        }
    }

    fn on_loss(&mut self, _now: Time, _sent_at: Time) {
        self.round_lost = self.round_lost.saturating_add(1);
    }

    fn on_silence(&mut self) {
        self.window = WINDOW_MIN;
        self.velocity = 1;
        self.slow_start = true;
        self.looks_until = None;
    }

    #[inline]
    fn window(&self) -> u64 {
        if self.looks_until.is_some() { (self.window / 4).max(WINDOW_MIN) } else { self.window }
    }
}

/// The least of the samples of the last one to two periods.
#[derive(Debug)]
struct WindowedLeast {
    since: Time,
    /// Of this period and of the one before; the largest number stands for no sample.
    least: [u32; 2],
}

impl Default for WindowedLeast {
    fn default() -> Self {
        Self { since: Time::default(), least: [u32::MAX; 2] }
    }
}

impl WindowedLeast {
    fn add(&mut self, now: Time, sample_us: u64, period_us: u64) {
        let passed_us = now.micros_since(self.since);
        if passed_us >= period_us {
            let before = if passed_us >= 2 * period_us { u32::MAX } else { self.least[0] };
            (self.since, self.least) = (now, [u32::MAX, before]);
        }
        self.least[0] = self.least[0].min(u32::try_from(sample_us).unwrap_or(u32::MAX - 1));
    }

    /// In microseconds.
    fn get(&self) -> Option<u64> {
        let least = self.least[0].min(self.least[1]);
        (least != u32::MAX).then(|| least.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(now_ms: u64, rtt_ms: u64, used: u64) -> AckEvent {
        AckEvent {
            now: Time::from_micros(now_ms * 1_000),
            packets: 1,
            bytes: PACKET_BYTES,
            rtt_us: Some(rtt_ms * 1_000),
            smoothed_us: rtt_ms * 1_000,
            sent_at: Time::from_micros((now_ms - rtt_ms) * 1_000),
            used,
        }
    }

    #[test]
    fn no_window_grows_that_is_not_used() {
        for choice in [Congestion::Delay, Congestion::Loss] {
            let mut controller = Chosen::new(choice);
            for step in 0..1_000 {
                controller.on_ack(&ack(1_000 + 16 * step, 50, 2_000));
            }
            assert_eq!(controller.window(), Some(WINDOW_START), "{choice:?}");
            for step in 0..1_000 {
                let used = controller.window().unwrap();
                controller.on_ack(&ack(20_000 + 16 * step, 50, used));
            }
            assert!(controller.window().unwrap() > 2 * WINDOW_START, "{choice:?}");
        }
    }

    #[test]
    fn losses_of_one_round_trip_halve_the_loss_based_window_once() {
        let mut reno = NewReno::new();
        let at = |ms: u64| Time::from_micros(ms * 1_000);
        reno.on_loss(at(100), at(50));
        reno.on_loss(at(110), at(60));
        assert_eq!(reno.window(), WINDOW_START / 2);
        reno.on_loss(at(220), at(120));
        assert_eq!(reno.window(), WINDOW_START / 4);
    }

    #[test]
    fn a_growing_queue_shrinks_the_delay_based_window_and_loss_alone_does_not() {
        let mut copa = Copa::new();
        for step in 0..50 {
            copa.on_ack(&ack(1_000 + 10 * step, 50, u64::MAX));
            copa.on_loss(Time::default(), Time::default());
            copa.on_ack(&ack(1_005 + 10 * step, 50, u64::MAX));
            copa.on_ack(&ack(1_005 + 10 * step, 50, u64::MAX));
        }
        let open = copa.window();
        assert!(open > 4 * WINDOW_START, "{open}");
        for step in 0..700 {
            copa.on_ack(&ack(2_000 + 10 * step, 150, u64::MAX));
        }
        assert!(copa.window() < open * 3 / 4, "{} of {open}", copa.window());
    }

    /// Small packets that are acknowledged many at a time are as many as large ones.
    #[test]
    fn a_quarter_lost_by_chance_leaves_the_delay_based_window_open() {
        let mut copa = Copa::new();
        for step in 0..500 {
            copa.on_ack(&AckEvent { packets: 6, bytes: 600, ..ack(1_000 + 10 * step, 50, u64::MAX) });
            (0..2).for_each(|_| copa.on_loss(Time::default(), Time::default()));
        }
        assert!(copa.window() > WINDOW_START, "{}", copa.window());
    }

    #[test]
    fn the_least_sample_is_forgotten_after_two_periods() {
        let mut least = WindowedLeast::default();
        let period_us = 1_000_000;
        for (second, sample, expected) in [(0, 5, 5), (1, 9, 5), (2, 8, 8), (9, 10, 10)] {
            least.add(Time::from_micros(second * 1_000_000), sample, period_us);
            assert_eq!(least.get(), Some(expected), "after {second} s");
        }
    }
}
