//! The server's clock, estimated from when snapshots arrive, and the moment of playback that follows from it.

use shadowland_proto::Time;

/// The share of the way by which an estimate follows what contradicts it, per snapshot: about 16 s at 60 Hz.
const DRIFT: f64 = 0.001;
/// How fast the delay follows a late snapshot, and how slowly it forgets it.
const JITTER_RISE: f64 = 0.25;
const JITTER_FALL: f64 = 0.995;
/// Bounds of the delay.
const MIN_DELAY_US: f64 = 17_000.0;
pub(super) const MAX_DELAY_US: f64 = 500_000.0;
/// The playback runs at most this much faster or slower than real time to get where it belongs...
const MAX_SLEW: f64 = 0.1;
/// ... unless it is off by more ticks than this; then it jumps.
const JUMP_TICKS: f64 = 60.0;

/// An estimate of the server's clock.
#[derive(Debug, Default)]
pub(super) struct Clock {
    pub(super) newest_tick: u32,
    /// The local time of tick 0 by the fastest snapshots, in microseconds.
    origin_us: Option<f64>,
    /// How late snapshots are behind those, at most and lately.
    jitter_us: f64,
    /// Ticks between two snapshots.
    pub(super) interval_ticks: f64,
    /// How far the playback is held back.
    pub(super) delay_us: f64,
    playback: Option<(Time, f64)>,
}

impl Clock {
    pub(super) fn snapshot_arrived(&mut self, now: Time, tick: u32, tick_hz: f64) {
        if tick <= self.newest_tick {
            return;
        }
        let period_us = 1e6 / tick_hz;
        let measured = now.as_micros() as f64 - f64::from(tick) * period_us;
        let step = f64::from(tick - self.newest_tick);
        self.newest_tick = tick;
        let Some(origin) = &mut self.origin_us else {
            self.origin_us = Some(measured);
            self.interval_ticks = 1.0;
            self.delay_us = self.wanted_delay(period_us);
            return;
        };
        self.interval_ticks += (step - self.interval_ticks) * 0.05;
        let late = measured - *origin;
        *origin += if late < 0.0 { late } else { late * DRIFT };
        self.jitter_us *= JITTER_FALL;
        if late > self.jitter_us {
            self.jitter_us += (late - self.jitter_us) * JITTER_RISE;
        }
        self.delay_us += (self.wanted_delay(period_us) - self.delay_us) * 0.05;
    }

    /// Long enough that the next snapshot has arrived when its samples are needed.
    fn wanted_delay(&self, period_us: f64) -> f64 {
        (self.jitter_us + (self.interval_ticks + 1.0) * period_us).clamp(MIN_DELAY_US, MAX_DELAY_US)
    }

    /// The tick to be shown, with its fraction. Never goes backwards.
    pub(super) fn playback(&mut self, now: Time, tick_hz: f64) -> f64 {
        let Some(origin) = self.origin_us else { return 0.0 };
        let period_us = 1e6 / tick_hz;
        let wanted = (now.as_micros() as f64 - origin - self.delay_us) / period_us;
        let playback = match self.playback {
            Some((at, playback)) if (wanted - playback).abs() <= JUMP_TICKS => {
                let passed = (now - at).as_micros() as f64 / period_us;
                let off = wanted - playback - passed;
                playback + passed * (1.0 + (off * 0.05).clamp(-MAX_SLEW, MAX_SLEW))
            }
            // A jump backwards would show everybody running backwards for a moment.
            Some((_, playback)) => wanted.max(playback),
            None => wanted.max(0.0),
        };
        self.playback = Some((now, playback));
        playback
    }
}
