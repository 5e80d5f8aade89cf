//! One entity on its way: the samples that arrived of it, and where it is shown between and behind them.

use shadowland_wire::block::EntityRecord;
use shadowland_wire::lattice::LatticePosition;
use shadowland_wire::quantize::{ANGLE_BITS, Rotation};

use super::{EntityView, Knowledge};

/// Samples that are kept of an entity: those of the longest delay, and some more where the playback lags behind
/// it. 960 bytes.
const SAMPLES: usize = 40;
/// Samples of them that the longest delay takes up at most.
pub(super) const SAMPLES_OF_DELAY: u32 = 32;
/// How far an entity is shown ahead of its newest sample, in ticks (a quarter of a second at 60 Hz). What nobody has
/// confirmed is taken back in as many.
pub(super) const EXTRAPOLATION_TICKS: f64 = 15.0;
/// The least of what an entity goes on at its own, in ticks: as much as snapshots come unevenly.
const UNEVEN_TICKS: f64 = 3.0;
/// Samples that may be lost in a row; a longer gap means that the entity stood still in between, unless it has gone
/// as far as if it had not.
const LOST_SAMPLES: u32 = 3;
/// Gaps of an entity by which is judged how often it is told of: by the shortest, for samples are lost and entities rest.
const GAPS: usize = 3;
/// The longest gap from which is concluded that an entity is told of so rarely. The server's longest is 168 ticks.
const LONGEST_GAP: u32 = 200;
/// Farther off than what its speed explains by this much, in centimetres, an entity has not walked there. Of what goes
/// on foot no speed is told: it may be this, in cm/s.
const TELEPORT_CM: f64 = 300.0;
pub(super) const ON_FOOT_CM_PER_S: f64 = 1_000.0;
/// Slower than this nobody walks all the time between two samples that are far apart, in cm/s: it rested for a part.
const WALK_CM_PER_S: f64 = 150.0;

/// What is known of how an entity moved lately: its last samples, and how it goes on from there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Track {
    pub(super) record: EntityRecord,
    /// A ring.
    samples: [Sample; SAMPLES],
    /// Where the oldest is.
    first: u8,
    count: u8,
    /// The last gaps in which it moved, in ticks, the newest first; 0 = none yet.
    gaps: [u16; GAPS],
    /// The tick of which the newest sample tells; it may be shown later.
    told: u32,
    /// How it moved up to there, in cm a tick, as far as it was told.
    step: [f32; 3],
}

/// How close samples are to each other, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pace {
    /// The most between two samples of what moves, if none is lost.
    pub(super) update: u32,
    /// The least between two samples, so that all of the longest delay are kept.
    pub(super) spacing: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sample {
    /// When it is shown.
    tick: u32,
    position: LatticePosition,
    rotation: Rotation,
}

/// How an entity moved between two samples.
#[derive(Debug, Clone, Copy)]
struct Motion {
    /// How often it is told of, in ticks.
    usual: u32,
    /// How long it took.
    ticks: u32,
    /// In cm a tick; 0 where that is not known.
    step: [f32; 3],
    /// How fast it may be shown, in cm a tick.
    fastest: f64,
    /// It was moving before, and so was shown to go on.
    went_on: bool,
    is_teleport: bool,
}

impl Track {
    pub(super) fn new(tick: u32, record: &EntityRecord) -> Self {
        Self {
            record: *record,
            samples: [Sample::of(tick, record); SAMPLES],
            first: 0,
            count: 1,
            gaps: [0; GAPS],
            told: tick,
            step: [0.0; 3],
        }
    }

    /// One of the samples, by age; the oldest is 0.
    fn sample(&self, index: usize) -> &Sample {
        &self.samples[(usize::from(self.first) + index) % SAMPLES]
    }

    fn count(&self) -> usize {
        self.count.into()
    }

    fn newest(&mut self) -> &mut Sample {
        &mut self.samples[usize::from(self.first + self.count - 1) % SAMPLES]
    }

    /// Takes what a block told.
    pub(super) fn push(
        &mut self,
        tick: u32,
        record: &EntityRecord,
        pace: Pace,
        playback: f64,
        world: Option<Knowledge>,
    ) {
        let newest = *self.newest();
        if tick <= self.told {
            // A late block told what was missing in the newest sample.
            self.record = *record;
            *self.newest() = Sample::of(newest.tick, record);
            return;
        }
        let sample = Sample::of(tick, record);
        if let Some(world) = world {
            let motion = self.motion(record, tick, pace, world);
            let now = ticks_up(playback);
            // What is shown now is not passed over by the way to a new sample: it lies ahead, or goes the same way.
            let goes_on = now <= self.told || (motion.went_on && motion.usual == pace.update);
            let in_time = newest.tick == self.told && tick - self.told <= motion.usual * (LOST_SAMPLES + 1);
            if in_time && (goes_on || motion.is_teleport) {
                self.push_sample(sample, pace);
            } else {
                let (position, _) = self.pose(now.into(), world);
                let way = distance(position, world.lattice.dequantize(sample.position));
                let catching_up = if motion.is_teleport { 1 } else { ticks_up(way / motion.fastest) };
                let ticks = motion.ticks.max(catching_up);
                let end = tick.max(now.saturating_add(ticks));
                self.go_on_from(end - ticks, now, world);
                self.append(Sample { tick: end, ..sample });
            }
            self.step = motion.step;
        } else {
            // Nothing is shown before the welcome.
            self.push_sample(sample, pace);
        }
        self.record = *record;
        self.told = tick;
    }

    /// What a new sample tells of how the entity moved in the gap before it.
    fn motion(&mut self, record: &EntityRecord, tick: u32, pace: Pace, world: Knowledge) -> Motion {
        let gap = tick - self.told;
        let start = world.lattice.dequantize(self.newest().position);
        let end = world.lattice.dequantize(record.position);
        let way = distance(start, end);
        if way > 0.0 {
            self.gaps.rotate_right(1);
            self.gaps[0] = gap.min(LONGEST_GAP) as u16;
        }
        let shortest = self.gaps.into_iter().min().unwrap_or(0);
        let usual = pace.update.max(shortest.into());
        let told = length(record.velocity.to_cm_per_s()) / world.tick_hz;
        let before = length(self.step.map(f64::from));
        let fastest = fastest(record, world);
        let went_on = told.max(before) > 0.0;
        let speed = way / f64::from(gap);
        let least = (told.max(before) / 2.0).max(WALK_CM_PER_S / world.tick_hz);
        let moved_all_along = gap <= usual * (LOST_SAMPLES + 1) || (gap <= LONGEST_GAP && speed >= least);
        let at_most = if moved_all_along { f64::from(gap) } else { f64::from(gap).min(world.tick_hz) };
        let rested = Motion {
            usual,
            ticks: usual.min(gap),
            step: [0.0; 3],
            fastest,
            went_on,
            is_teleport: way > TELEPORT_CM + fastest * at_most,
        };
        if rested.is_teleport {
            return Motion { ticks: 1, ..rested };
        }
        if !moved_all_along {
            return rested;
        }
        let step = [0, 1, 2].map(|axis| ((end[axis] - start[axis]) / f64::from(gap)) as f32);
        Motion { ticks: gap, step, ..rested }
    }

    /// Has the entity set out at `start` for a sample to come, from where it is shown then. Nothing of what is shown
    /// up to `now` changes.
    fn go_on_from(&mut self, start: u32, now: u32, world: Knowledge) {
        let newest = *self.newest();
        if start == newest.tick {
            return;
        }
        let mut sample = Sample { tick: start, ..newest };
        if start < newest.tick || now > newest.tick {
            let (position, angles) = self.pose(start.into(), world);
            sample.position = world.lattice.quantize(position);
            let [yaw, pitch, roll] = angles.map(|angle| angle.round() as u16 % (1 << ANGLE_BITS));
            sample.rotation = Rotation { yaw, pitch, roll };
        }
        while self.count > 0 && self.newest().tick >= start {
            self.count -= 1;
        }
        self.append(sample);
    }

    fn append(&mut self, sample: Sample) {
        if self.count() == SAMPLES {
            self.first = (self.first + 1) % SAMPLES as u8;
        } else {
            self.count += 1;
        }
        *self.newest() = sample;
    }

    fn push_sample(&mut self, sample: Sample, pace: Pace) {
        let close = self.count > 1 && self.newest().tick - self.sample(self.count() - 2).tick < pace.spacing;
        if close {
            *self.newest() = sample;
        } else {
            self.append(sample);
        }
    }

    /// How the entity looks at a moment, in ticks.
    pub(super) fn at(&self, playback: f64, world: Knowledge) -> EntityView {
        let (position_cm, angles) = self.pose(playback, world);
        let [yaw_degrees, pitch_degrees, roll_degrees] =
            angles.map(|angle| angle * 360.0 / f64::from(1u32 << ANGLE_BITS));
        EntityView {
            id: self.record.id,
            kind: self.record.kind,
            is_own: self.record.id == world.entity,
            position_cm,
            yaw_degrees,
            pitch_degrees,
            roll_degrees,
            velocity_cm_per_s: self.record.velocity.to_cm_per_s(),
            animation: self.record.animation,
            state: self.record.state,
            vitals: self.record.vitals,
        }
    }

    /// Position in centimetres, and yaw, pitch and roll in their own steps.
    fn pose(&self, playback: f64, world: Knowledge) -> ([f64; 3], [f64; 3]) {
        // The playback is nearer to the newest one.
        let passed = |&index: &usize| f64::from(self.sample(index).tick) <= playback;
        let before = (0..self.count()).rev().find(passed);
        let centre = |sample: &Sample| world.lattice.dequantize(sample.position);
        let Some(before) = before else {
            return (centre(self.sample(0)), self.sample(0).angles());
        };
        let from = self.sample(before);
        if before + 1 == self.count() {
            return (self.beyond_newest(playback, world), from.angles());
        }
        let to = self.sample(before + 1);
        let (start, end) = (centre(from), centre(to));
        let share = (playback - f64::from(from.tick)) / f64::from(to.tick - from.tick);
        if self.is_teleport(from, to, world) {
            return (start, from.angles());
        }
        let position = [0, 1, 2].map(|axis| start[axis] + (end[axis] - start[axis]) * share);
        let (start, end) = (from.rotation.to_array(), to.rotation.to_array());
        (position, [0, 1, 2].map(|axis| turn(start[axis], end[axis], share)))
    }

    /// Where it may be when nothing newer has come.
    fn beyond_newest(&self, playback: f64, world: Knowledge) -> [f64; 3] {
        let newest = self.sample(self.count() - 1);
        let centre = world.lattice.dequantize(newest.position);
        let ticks = playback - f64::from(newest.tick);
        let told = self.record.velocity.to_cm_per_s();
        let (velocity, ticks) = if told != [0.0; 3] {
            (told, ticks.min(EXTRAPOLATION_TICKS))
        } else {
            // It may as well have stopped: its last step is news of motion, its rest is none. What is shown later than
            // it was told had its time already.
            let late = f64::from(newest.tick.saturating_sub(self.told));
            let at_most = (EXTRAPOLATION_TICKS - late).max(UNEVEN_TICKS);
            let taken_back = (ticks - at_most).max(0.0) * 2.0;
            let velocity = self.step.map(|step| f64::from(step) * world.tick_hz);
            (velocity, (ticks - taken_back).max(0.0))
        };
        [0, 1, 2].map(|axis| centre[axis] + velocity[axis] * ticks / world.tick_hz)
    }

    /// Whether it cannot have moved there by itself.
    fn is_teleport(&self, from: &Sample, to: &Sample, world: Knowledge) -> bool {
        let (start, end) = (world.lattice.dequantize(from.position), world.lattice.dequantize(to.position));
        distance(start, end) > TELEPORT_CM + fastest(&self.record, world) * f64::from(to.tick - from.tick)
    }
}

impl Sample {
    fn of(tick: u32, record: &EntityRecord) -> Self {
        Self { tick, position: record.position, rotation: record.rotation }
    }

    fn angles(&self) -> [f64; 3] {
        self.rotation.to_array().map(f64::from)
    }
}

/// How fast an entity may be shown to move by itself, in cm a tick.
fn fastest(record: &EntityRecord, world: Knowledge) -> f64 {
    (2.0 * length(record.velocity.to_cm_per_s()) + ON_FOOT_CM_PER_S) / world.tick_hz
}

fn length(vector: [f64; 3]) -> f64 {
    vector.iter().map(|value| value * value).sum::<f64>().sqrt()
}

fn distance(from: [f64; 3], to: [f64; 3]) -> f64 {
    length([0, 1, 2].map(|axis| to[axis] - from[axis]))
}

/// Rounded up; what is beyond all ticks becomes the last one.
fn ticks_up(ticks: f64) -> u32 {
    ticks.ceil() as u32
}

/// An angle between two others, the short way round.
fn turn(from: u16, to: u16, share: f64) -> f64 {
    let full = 1i32 << ANGLE_BITS;
    let difference = (i32::from(to) - i32::from(from) + full / 2).rem_euclid(full) - full / 2;
    (f64::from(from) + f64::from(difference) * share).rem_euclid(f64::from(full))
}
