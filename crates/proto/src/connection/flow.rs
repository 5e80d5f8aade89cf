//! What may leave now: congestion control, pacing, and the budget for replication, put together.
//!
//! ```text
//! acknowledgements, losses -> Controller -> window -> Pacer -> reliable messages, budget of a tick
//! ```
//!
//! State that goes out every tick is never held back here: it is made to fit the budget, which never falls below
//! a floor. So reliable messages are sure of half of the window and half of the rate.

use std::time::Duration;

use super::config::TransportConfig;
use super::congestion::{AckEvent, Chosen};
use super::pacer::Pacer;
use super::rtt::Rtt;
use super::sent::Lost;
use crate::Time;

/// What is known of the path, for whoever wants to show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Path {
    /// The smoothed round-trip time; zero before the first sample.
    pub rtt: Duration,
    /// Bytes that may be under way; `u64::MAX` without congestion control.
    pub window_bytes: u64,
    /// Bytes that are under way.
    pub in_flight_bytes: u64,
    /// Bytes a second at which they leave; `u64::MAX` without congestion control.
    pub rate_bytes_per_s: u64,
}

/// The sending side of a connection's congestion control. What sending needs comes first.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Flow {
    pacer: Pacer,
    /// Most bytes under way in this and in the previous round trip.
    used: [u64; 2],
    /// Packets that may leave past the window, because a timeout says that it may be full of lost ones.
    probes: u8,
    /// Timeouts since something was acknowledged.
    timeouts: u32,
    controller: Chosen,
    round_since: Time,
}

/// What waits for a way out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Demand {
    /// Bytes under way, of all packets.
    pub(super) in_flight: u64,
    /// Bytes of reliable messages among them.
    pub(super) reliable_in_flight: u64,
}

/// Packets that were acknowledged together, each for the first time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    pub(super) packets: u32,
    pub(super) bytes: u64,
    /// How long ago the newest of them was sent, in microseconds.
    pub(super) newest_age_us: u64,
}

impl Flow {
    pub(super) fn new(config: &TransportConfig, now: Time) -> Self {
        let controller = Chosen::new(config.congestion);
        let pacer = Pacer::new(now, controller.window().unwrap_or(0), config.burst);
        Self { pacer, used: [0; 2], probes: 0, timeouts: 0, controller, round_since: now }
    }

    /// Whether a packet with reliable messages may leave now.
    pub(super) fn lets_reliable_go(&mut self, now: Time, rtt: &Rtt, demand: Demand) -> bool {
        let Some(window) = self.controller.window() else { return true };
        if self.probes > 0 {
            return true;
        }
        self.pacer.fill(now, Pacer::rate(window, rtt.smoothed_us()));
        Self::has_room(window, demand) && self.pacer.lets_reliable_go()
    }

    /// When a packet with reliable messages may leave, if that is only a matter of time.
    pub(super) fn ready_at(&self, rtt: &Rtt, demand: Demand) -> Option<Time> {
        let window = self.controller.window().filter(|&window| Self::has_room(window, demand))?;
        Some(self.pacer.ready_at(Pacer::rate(window, rtt.smoothed_us())))
    }

    fn has_room(window: u64, demand: Demand) -> bool {
        demand.in_flight < window || demand.reliable_in_flight < window / 2
    }

    /// Bytes of datagrams that replication may send now, while `waiting` bytes of reliable messages wait, which
    /// get at most half. Never less than `floor`.
    pub(super) fn budget(
        &mut self,
        now: Time,
        rtt: &Rtt,
        in_flight: u64,
        waiting: usize,
        floor: usize,
    ) -> usize {
        let Some(window) = self.controller.window() else { return usize::MAX };
        self.pacer.fill(now, Pacer::rate(window, rtt.smoothed_us()));
        let free = self.pacer.available().min(window.saturating_sub(in_flight)) as usize;
        (free - waiting.min(free / 2)).max(floor)
    }

    /// A packet has left that will be acknowledged.
    pub(super) fn sent(&mut self, bytes: usize, reliable: bool, in_flight: u64) {
        self.pacer.take(bytes, reliable);
        if reliable {
            self.probes = self.probes.saturating_sub(1);
        }
        self.used[0] = self.used[0].max(in_flight);
    }

    /// Packets were acknowledged; `sample_us` is the round trip that they tell, if they do.
    pub(super) fn acked(&mut self, now: Time, rtt: &Rtt, told: Told, sample_us: Option<u64>) {
        let Told { packets, bytes, newest_age_us } = told;
        self.timeouts = 0;
        let smoothed_us = rtt.smoothed_us();
        let sent_at = Time::from_micros(now.as_micros().saturating_sub(newest_age_us));
        let used = self.used[0].max(self.used[1]);
        self.controller.on_ack(&AckEvent {
            now,
            packets,
            bytes,
            rtt_us: sample_us,
            smoothed_us,
            sent_at,
            used,
        });
        if now.micros_since(self.round_since) >= smoothed_us {
            self.used = [0, self.used[0]];
            self.round_since = now;
        }
    }

    /// Packets were lost. What an acknowledgement could not have named is no sign of congestion.
    pub(super) fn lost(&mut self, now: Time, lost: Lost) {
        let sent_at = Time::from_micros(now.as_micros().saturating_sub(lost.newest_age_us));
        for _ in 0..lost.named {
            self.controller.on_loss(now, sent_at);
        }
    }

    /// Reliable messages have timed out: their packets may block the window, so one may leave past it.
    pub(super) fn timed_out(&mut self) {
        self.timeouts += 1;
        self.probes = self.probes.max(1);
        if self.timeouts == 2 {
            self.controller.on_silence();
        }
    }

    pub(super) fn path(&self, rtt: &Rtt, in_flight: u64) -> Path {
        let window = self.controller.window();
        Path {
            rtt: rtt.smoothed(),
            window_bytes: window.unwrap_or(u64::MAX),
            in_flight_bytes: in_flight,
            rate_bytes_per_s: window.map_or(u64::MAX, |window| Pacer::rate(window, rtt.smoothed_us())),
        }
    }
}
