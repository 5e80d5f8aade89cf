//! What a game shows: everybody in sight, moving smoothly between the snapshots that arrived.
//!
//! Snapshots arrive late, unevenly, and for distant entities only every third tick. So the view plays back a
//! little in the past: it estimates the server's clock from the snapshots' arrivals, holds back by as much as
//! they are late at times, and shows each entity between the two samples around the moment of playback. Where
//! the newer one has not arrived yet, the entity goes on for a short while: at the velocity that the server tells of
//! what flies or drives, else as it moved between its last two samples, and then back to where it was last seen.
//!
//! Of some entities the server tells more rarely than that, as of those deep in a crowd. Such a one is shown later by as
//! much: a sample that comes when its predecessor was passed long ago is where the entity goes from where it is shown
//! now, in the time that it took itself. So it stands nowhere else than on its way, and never ahead of what is known of it
//! by more than the short while. When it is told of more often, it catches up.
//!
//! ```text
//! ticks    ... 100   101   102   103   104   105   106   107        the newest that arrived
//! samples       x                 x                 x
//!                            ^ playback = server's tick now - delay
//! ```

mod clock;
mod track;

use std::collections::hash_map::Entry;
use std::time::Duration;

use rustc_hash::FxHashMap;
use shadowland_proto::Time;
use shadowland_wire::block::EntityRecord;
use shadowland_wire::entity::{EntityId, EntityState, EntityType};
use shadowland_wire::lattice::Lattice;
use shadowland_wire::message::server::{OwnerRecord, Welcome};
use shadowland_wire::quantize::Vitals;

use clock::{Clock, MAX_DELAY_US};
use track::{Pace, SAMPLES_OF_DELAY, Track};

use crate::replica::{Replica, Watcher};

/// Of what is far off and moves, the server sends something in the first snapshot after so many ticks; of what
/// is near, in each.
const FAR_TICKS: u32 = 3;

/// An entity as it is to be shown.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EntityView {
    /// Which entity; the same for its whole life.
    pub id: EntityId,
    /// What it is.
    pub kind: EntityType,
    /// Whether it is the player's own.
    pub is_own: bool,
    /// Where it is, in centimetres: X forward, Y right, Z up.
    pub position_cm: [f64; 3],
    /// Where it looks, in degrees from 0 up to 360, growing from X towards Y.
    pub yaw_degrees: f64,
    /// How far its front points up, in degrees from 0 up to 360; 0 of whatever only turns around the vertical axis.
    pub pitch_degrees: f64,
    /// How far it leans to the right, in the same way.
    pub roll_degrees: f64,
    /// How it moves, in cm/s, as far as the server tells: of what flies or drives.
    pub velocity_cm_per_s: [f64; 3],
    /// What its body does.
    pub animation: u16,
    /// Its state flags.
    pub state: EntityState,
    /// Health and mana.
    pub vitals: Vitals,
}

/// The player's own entity, as exactly as the server tells it, and as new: not interpolated, not predicted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OwnPlayer {
    /// The entity.
    pub id: EntityId,
    /// The newest tick that was heard of.
    pub tick: u32,
    /// Number of the newest input that the server had simulated in this state.
    pub last_input: u32,
    /// In centimetres.
    pub position_cm: [f64; 3],
    /// In degrees from 0 up to 360.
    pub yaw_degrees: f64,
    /// In cm/s.
    pub velocity_cm_per_s: [f64; 3],
    /// State flags.
    pub state: EntityState,
    /// Share of the greatest health, 0 to 1.
    pub health: f64,
    /// Share of the greatest mana, 0 to 1.
    pub mana: f64,
}

/// What a game shows.
#[derive(Debug, Default)]
pub struct View {
    world: Option<Knowledge>,
    clock: Clock,
    tracks: Vec<Track>,
    /// Where in `tracks` an entity is.
    by_id: FxHashMap<EntityId, u32>,
    own: Option<OwnPlayer>,
    playback: f64,
}

/// What the welcome said.
#[derive(Debug, Clone, Copy)]
struct Knowledge {
    entity: EntityId,
    lattice: Lattice,
    tick_hz: f64,
}

impl View {
    /// Shows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The player is in the world.
    pub fn welcomed(&mut self, welcome: &Welcome) {
        self.world = Some(Knowledge {
            entity: welcome.entity,
            lattice: welcome.lattice(),
            tick_hz: welcome.tick_hz.into(),
        });
    }

    /// Notes what the replica knows of the player itself, and when its newest snapshot arrived: to be called after each
    /// datagram, for of a tick's packets the one that tells of the player may come last. Everybody else came by way of
    /// the [`Watcher`].
    pub fn snapshot_arrived(&mut self, now: Time, replica: &Replica) {
        let Some(world) = self.world else { return };
        self.clock.snapshot_arrived(now, replica.tick(), world.tick_hz);
        self.own = replica.owner().map(|owner| own_player(world, owner, replica));
    }

    /// Moves the playback on to where it belongs at `now`. Never backwards.
    pub fn advance(&mut self, now: Time) {
        if let Some(world) = self.world {
            self.playback = self.clock.playback(now, world.tick_hz);
        }
    }

    /// Everybody in sight, the player itself included, in no particular order. Nobody before the player is in
    /// the world. Allocates nothing, and goes through memory in a row.
    pub fn entities(&self) -> impl Iterator<Item = EntityView> + '_ {
        self.world
            .into_iter()
            .flat_map(move |world| self.tracks.iter().map(move |track| track.at(self.playback, world)))
    }

    /// One of those in sight.
    #[must_use]
    pub fn entity(&self, id: EntityId) -> Option<EntityView> {
        let world = self.world?;
        let &index = self.by_id.get(&id)?;
        Some(self.tracks[index as usize].at(self.playback, world))
    }

    /// The player's own entity, once it was heard of.
    #[must_use]
    pub fn own(&self) -> Option<&OwnPlayer> {
        self.own.as_ref()
    }

    /// The tick that is being shown, with its fraction.
    #[must_use]
    pub fn playback_tick(&self) -> f64 {
        self.playback
    }

    /// How far the playback is behind the earliest moment at which a snapshot could be shown.
    #[must_use]
    pub fn delay(&self) -> Duration {
        Duration::from_secs_f64(self.clock.delay_us.max(0.0) / 1e6)
    }
}

impl View {
    fn pace(&self) -> Pace {
        let snapshot = (self.clock.interval_ticks.round() as u32).clamp(1, 240);
        let delay = self.world.map_or(0.0, |world| world.tick_hz * MAX_DELAY_US / 1e6).ceil() as u32;
        Pace {
            update: snapshot * FAR_TICKS.div_ceil(snapshot),
            spacing: delay.div_ceil(SAMPLES_OF_DELAY).max(1),
        }
    }
}

impl Watcher for View {
    fn appeared(&mut self, tick: u32, record: &EntityRecord) {
        let track = Track::new(tick, record);
        match self.by_id.entry(record.id) {
            Entry::Occupied(known) => self.tracks[*known.get() as usize] = track,
            Entry::Vacant(new) => {
                new.insert(self.tracks.len() as u32);
                self.tracks.push(track);
            }
        }
    }

    fn updated(&mut self, _since: u32, tick: u32, record: &EntityRecord) {
        let (pace, playback, world) = (self.pace(), self.playback, self.world);
        match self.by_id.get(&record.id) {
            Some(&index) => self.tracks[index as usize].push(tick, record, pace, playback, world),
            None => self.appeared(tick, record),
        }
    }

    fn vanished(&mut self, id: EntityId) {
        let Some(index) = self.by_id.remove(&id) else { return };
        self.tracks.swap_remove(index as usize);
        if let Some(moved) = self.tracks.get(index as usize) {
            self.by_id.insert(moved.record.id, index);
        }
    }
}

fn own_player(world: Knowledge, owner: &OwnerRecord, replica: &Replica) -> OwnPlayer {
    OwnPlayer {
        id: world.entity,
        tick: replica.tick(),
        last_input: replica.last_input(),
        position_cm: owner.position_cm(world.lattice),
        yaw_degrees: f64::from(owner.yaw) * 360.0 / 65_536.0,
        velocity_cm_per_s: owner.velocity.to_cm_per_s(),
        state: owner.state,
        health: f64::from(owner.health) / f64::from(u16::MAX),
        mana: f64::from(owner.mana) / f64::from(u16::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::track::{EXTRAPOLATION_TICKS, ON_FOOT_CM_PER_S};
    use super::*;
    use shadowland_wire::lattice::LatticePosition;
    use shadowland_wire::quantize::{Rotation, Velocity};

    fn record(x: i32, yaw: u16, velocity: i16) -> EntityRecord {
        EntityRecord {
            id: EntityId::new(7, 0),
            kind: EntityType::Monster,
            position: LatticePosition { x, y: 0, z: 0 },
            rotation: Rotation { yaw, ..Rotation::default() },
            animation: 1,
            state: EntityState::NONE,
            velocity: Velocity { x: velocity, y: 0, z: 0 },
            vitals: Vitals::FULL,
        }
    }

    fn view() -> View {
        let mut view = View::new();
        view.welcomed(&Welcome {
            entity: EntityId::new(1, 0),
            lattice_step_um: 10_000,
            tick_hz: 60,
            interest_distance_cm: 100_000,
        });
        view
    }

    fn x_at(view: &mut View, tick: f64) -> f64 {
        view.playback = tick;
        view.entity(EntityId::new(7, 0)).unwrap().position_cm[0]
    }

    #[test]
    fn an_entity_is_shown_between_its_samples() {
        let mut view = view();
        view.appeared(100, &record(1_000, 4_090, 600));
        view.updated(100, 103, &record(1_030, 4, 600));
        for (tick, x) in [(90.0, 1_000.0), (100.0, 1_000.0), (101.5, 1_015.0), (103.0, 1_030.0)] {
            assert_eq!(x_at(&mut view, tick), x, "at tick {tick}");
        }
        view.playback = 101.5;
        let yaw = view.entity(EntityId::new(7, 0)).unwrap().yaw_degrees;
        assert!((yaw - 4_095.0 * 360.0 / 4_096.0).abs() < 1e-9, "the short way round: {yaw}");
    }

    #[test]
    fn a_late_sample_is_bridged_by_the_velocity_for_a_while() {
        let mut view = view();
        view.appeared(100, &record(1_000, 0, 600));
        assert_eq!(x_at(&mut view, 106.0), 1_060.0);
        assert_eq!(x_at(&mut view, 500.0), 1_150.0);
    }

    #[test]
    fn who_walks_goes_on_for_a_while_and_back_again() {
        let mut view = view();
        view.appeared(100, &record(1_000, 0, 0));
        view.updated(100, 101, &record(1_010, 0, 0));
        for (tick, x) in [(101.0, 1_010.0), (104.0, 1_040.0), (116.0, 1_160.0), (120.0, 1_120.0)] {
            assert_eq!(x_at(&mut view, tick), x, "at tick {tick}");
        }
        assert_eq!(x_at(&mut view, 500.0), 1_010.0, "where it was last seen");
        view.updated(101, 102, &record(1_010, 0, 0));
        assert_eq!(x_at(&mut view, 110.0), 1_010.0, "it stopped");
        view.updated(102, 103, &record(90_000, 0, 0));
        assert_eq!(x_at(&mut view, 110.0), 90_000.0, "a teleport is no speed");
    }

    #[test]
    fn all_three_angles_turn_the_short_way_round() {
        let mut view = view();
        view.appeared(
            100,
            &EntityRecord { rotation: Rotation::from_degrees(350.0, 10.0, 90.0), ..record(0, 0, 0) },
        );
        let turned = EntityRecord { rotation: Rotation::from_degrees(10.0, 350.0, 180.0), ..record(0, 0, 0) };
        view.updated(100, 102, &turned);
        view.playback = 101.0;
        let entity = view.entity(EntityId::new(7, 0)).unwrap();
        for (angle, expected) in
            [(entity.yaw_degrees, 0.0), (entity.pitch_degrees, 0.0), (entity.roll_degrees, 135.0)]
        {
            let off = (angle - expected + 180.0).rem_euclid(360.0) - 180.0;
            assert!(off.abs() < 0.1, "{angle} is not {expected}");
        }
    }

    #[test]
    fn who_vanishes_leaves_the_others_where_they_are() {
        let mut view = view();
        let of = |index: u32| EntityRecord { id: EntityId::new(index, 0), ..record(index as i32, 0, 0) };
        (0..5).for_each(|index| view.appeared(100, &of(index)));
        view.appeared(101, &of(1));
        view.vanished(EntityId::new(2, 0));
        view.vanished(EntityId::new(2, 0));
        let mut shown: Vec<_> = view.entities().map(|entity| entity.id.index()).collect();
        shown.sort_unstable();
        assert_eq!(shown, [0, 1, 3, 4]);
        for index in shown {
            let entity = view.entity(EntityId::new(index as u32, 0)).unwrap();
            assert_eq!(entity.position_cm[0], index as f64);
        }
        assert_eq!(view.entity(EntityId::new(2, 0)), None);
    }

    #[test]
    fn who_starts_after_a_rest_does_not_creep_there() {
        let mut view = view();
        view.appeared(100, &record(1_000, 0, 0));
        view.updated(100, 400, &record(1_030, 0, 600));
        assert_eq!(x_at(&mut view, 300.0), 1_000.0);
        assert_eq!(x_at(&mut view, 398.5), 1_015.0);
    }

    #[test]
    fn a_teleport_is_not_interpolated() {
        let mut view = view();
        view.appeared(100, &record(1_000, 0, 0));
        view.updated(100, 104, &record(90_000, 0, 0));
        assert_eq!(x_at(&mut view, 103.9), 1_000.0);
        assert_eq!(x_at(&mut view, 104.0), 90_000.0);
    }

    fn view_of_ticks(tick_hz: u8, newest: u32) -> View {
        let mut view = view();
        view.world.as_mut().unwrap().tick_hz = tick_hz.into();
        view.appeared(1, &record(10, 0, 600));
        for tick in 2..=newest {
            view.updated(tick - 1, tick, &record(10 * tick as i32, 0, 600));
        }
        view
    }

    #[test]
    fn all_samples_of_the_longest_delay_are_kept() {
        let mut view = view_of_ticks(60, 60);
        for (delay, x) in [(1.5, 585.0), (12.0, 480.0), (30.0, 300.0), (59.0, 210.0)] {
            assert_eq!(x_at(&mut view, 60.0 - delay), x, "delay {delay}");
        }
        let mut view = view_of_ticks(240, 2_000);
        for delay in 1..=120 {
            assert_eq!(x_at(&mut view, f64::from(2_000 - delay)), f64::from(10 * (2_000 - delay)));
        }
        view.vanished(EntityId::new(7, 0));
        assert_eq!(view.entities().count(), 0);
        assert!(size_of::<Track>() <= 1_024, "{}", size_of::<Track>());
    }

    #[test]
    fn lost_snapshots_are_no_rest_where_they_are_far_between() {
        let mut view = view();
        for (interval, update) in [(0.0, 3), (1.0, 3), (1.6, 4), (3.1, 3), (6.0, 6), (60.0, 60)] {
            view.clock.interval_ticks = interval;
            assert_eq!(view.pace(), Pace { update, spacing: 1 }, "{interval}");
        }
        view.clock.interval_ticks = 6.0;
        view.appeared(100, &record(1_000, 0, 600));
        view.updated(100, 106, &record(1_060, 0, 600));
        view.updated(106, 124, &record(1_240, 0, 600));
        assert_eq!(x_at(&mut view, 115.0), 1_150.0);
        view.updated(124, 149, &record(1_300, 0, 600));
        assert_eq!((x_at(&mut view, 143.0), x_at(&mut view, 146.0)), (1_240.0, 1_270.0), "after a rest");
    }

    /// Shows somebody who is at `x` of a tick and told of in tick 100 and what `next` gives after it, when the
    /// playback is two ticks short of that, or up to `uneven` ticks after. Calls `each` with every half tick, where the entity is shown then,
    /// and where it was told to be last.
    fn watch(
        x: impl Fn(u32) -> i32,
        next: impl Fn(u32) -> u32,
        until: u32,
        uneven: u32,
        mut each: impl FnMut(f64, f64, f64),
    ) -> View {
        let mut view = view();
        view.appeared(100, &record(x(100), 0, 0));
        let (mut told, mut coming) = (100, next(100));
        for half in 2 * 98..2 * until {
            let playback = f64::from(half) / 2.0;
            view.playback = playback;
            let late = |tick: u32| f64::from((tick.wrapping_mul(2_654_435_761) >> 16) % (uneven + 1));
            while f64::from(coming) + late(coming) <= playback + 2.0 {
                if x(coming) != x(told) {
                    view.updated(told, coming, &record(x(coming), 0, 0));
                }
                (told, coming) = (coming, next(coming));
            }
            let shown = x_at(&mut view, playback);
            each(playback, shown, f64::from(x(told)));
        }
        view
    }

    /// 600 cm/s.
    fn walk(tick: u32) -> i32 {
        10 * tick as i32
    }

    /// The most that somebody on foot is shown to move in half a tick, and the rounding to the lattice.
    const HALF_TICK_CM: f64 = ON_FOOT_CM_PER_S / 120.0 + 1.0;

    #[test]
    fn a_straight_walk_is_smooth_however_rarely_it_is_told() {
        for interval in [1, 2, 3, 6, 7, 12, 13, 20, 24, 35, 48, 96, 168] {
            for uneven in [0, 1, 3] {
                let mut before = 1_000.0;
                let next = |tick| tick + interval;
                watch(walk, next, 100 + 20 * interval, uneven, |playback, shown, known| {
                    let at = format!(
                        "{interval} ticks, uneven by {uneven}, tick {playback}: {shown}, known {known}"
                    );
                    assert!(shown >= before, "{at}, before {before}");
                    assert!(shown - before <= HALF_TICK_CM, "{at}, before {before}");
                    let pace = f64::from(interval + uneven).min(EXTRAPOLATION_TICKS);
                    assert!(shown <= known + 10.0 * pace, "{at}");
                    // As late as it is told, and the longest it took to see that it walks.
                    let late = f64::from(interval + uneven) + 5.0;
                    assert!(shown >= 10.0 * (playback - late).max(100.0), "{at}");
                    before = shown;
                });
            }
        }
    }

    #[test]
    fn rare_samples_allocate_nothing() {
        let mut view = view();
        view.appeared(100, &record(1_000, 0, 0));
        let allocated = allocation_counter::measure(|| {
            for tick in (120..4_000).step_by(20) {
                view.playback = f64::from(tick) - 2.0;
                view.updated(tick - 20, tick, &record(walk(tick), 0, 0));
            }
        });
        assert_eq!(allocated.count_total, 0);
        assert_eq!(
            x_at(&mut view, 3_990.0),
            10.0 * (3_990.0 - 18.0),
            "later by the interval, less the delay"
        );
    }

    #[test]
    fn who_is_told_of_more_rarely_or_more_often_goes_on_smoothly() {
        for (near, far) in [(1, 20), (1, 48), (3, 24), (6, 48), (1, 168)] {
            let next = |tick| tick + if (400..400 + 10 * far).contains(&tick) { far } else { near };
            let mut before = 1_000.0;
            let end = 400 + 30 * far;
            let view = watch(walk, next, end, 0, |playback, shown, known| {
                let at = format!("{near} and {far}, tick {playback}: {shown}, known {known}");
                let moved = shown - before;
                // For once nobody can know that it goes on: then it is taken back.
                let surprised = (400.0..400.0 + f64::from(far)).contains(&playback);
                assert!(moved >= if surprised { -5.0 } else { 0.0 }, "{at}, before {before}");
                assert!(moved <= HALF_TICK_CM, "{at}, before {before}");
                assert!(shown <= known + 10.0 * EXTRAPOLATION_TICKS, "{at}");
                before = shown;
            });
            assert!(
                before >= 10.0 * (view.playback - 6.0),
                "it has caught up: {before} at {}",
                view.playback
            );
        }
    }

    #[test]
    fn who_rested_and_starts_neither_creeps_nor_jumps() {
        for interval in [1, 3, 6, 13, 20, 24, 35, 48] {
            let starts = 700 + interval / 2;
            let x = |tick: u32| 1_000 + 10 * tick.saturating_sub(starts) as i32;
            let told = |tick: u32| (tick - 100).next_multiple_of(interval) + 100;
            let mut before = 1_000.0;
            let next = |tick| tick + interval;
            watch(x, next, 1_200, 0, |playback, shown, _| {
                let at = format!("interval {interval}, tick {playback}: {shown}");
                assert!(shown >= before && shown - before <= HALF_TICK_CM, "{at}, before {before}");
                let first = f64::from(told(starts + 1));
                assert!(playback >= first - 4.0 || shown == 1_000.0, "{at}");
                let late = f64::from(interval) + 5.0;
                assert!(playback < first || shown >= f64::from(x((playback - late) as u32)), "{at}");
                before = shown;
            });
        }
    }

    #[test]
    fn who_turns_round_is_not_shown_far_beyond() {
        for interval in [3, 13, 20, 24, 35, 48] {
            // There and back again, 20 m each.
            let x = |tick: u32| (tick as i32 % 400 - 200).abs() * 10;
            let mut before = f64::from(x(100));
            let next = |tick| tick + interval;
            watch(x, next, 2_000, 0, |playback, shown, _| {
                let at = format!("interval {interval}, tick {playback}: {shown}, before {before}");
                let beyond = 10.0 * f64::from(interval).min(EXTRAPOLATION_TICKS);
                assert!((-beyond..=2_000.0 + beyond).contains(&shown), "{at}");
                assert!((shown - before).abs() <= HALF_TICK_CM, "{at}");
                before = shown;
            });
        }
    }

    #[test]
    fn a_late_block_tells_where_an_entity_rests() {
        let mut view = view();
        view.appeared(100, &record(1_000, 0, 0));
        // Its position is that of tick 100, but what moved it in tick 102 comes only now.
        view.updated(100, 103, &record(1_000, 0, 0));
        view.updated(100, 102, &record(1_030, 0, 0));
        assert_eq!((x_at(&mut view, 100.0), x_at(&mut view, 200.0)), (1_000.0, 1_030.0));
    }

    /// Plays snapshots whose delay is up to `jitter_us`, and returns the greatest lead of the playback over the
    /// newest snapshot, and its lag behind, in ticks, after a warm-up; and checks that it never runs backwards.
    fn play(jitter_us: u64) -> (f64, f64) {
        let mut clock = Clock::default();
        let (mut lead, mut lag, mut before) = (f64::MIN, f64::MIN, 0.0);
        for tick in 1u32..3_000 {
            let due = 5_000_000 + u64::from(tick) * 16_667;
            let late = u64::from(tick.wrapping_mul(2_654_435_761) >> 16) % (jitter_us + 1);
            let now = Time::from_micros(due + late);
            // The frame before the snapshot is what shows whether its predecessor came in time.
            let shown = clock.playback(now, 60.0);
            assert!(shown >= before, "never backwards");
            before = shown;
            if tick > 1_000 {
                lead = lead.max(shown - f64::from(clock.newest_tick));
                lag = lag.max(f64::from(clock.newest_tick) - shown);
            }
            clock.snapshot_arrived(now, tick, 60.0);
        }
        (lead, lag)
    }

    #[test]
    fn the_delay_adapts_to_jitter() {
        let (lead, lag) = play(0);
        assert!(lead <= 0.0 && lag < 3.0, "steady arrivals: {lead} {lag}");
        let (lead, lag) = play(16_000);
        assert!(lead <= 1.0 && lag < 5.0, "uneven arrivals: {lead} {lag}");
    }

    #[test]
    fn nothing_is_shown_before_the_welcome() {
        let mut view = View::new();
        view.appeared(100, &record(0, 0, 0));
        view.advance(Time::from_micros(1));
        assert_eq!(view.entities().count(), 0);
    }
}
