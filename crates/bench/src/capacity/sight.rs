//! What clients see, compared with the truth.

use std::collections::HashMap;

use shadowland_client::replica::Watcher;
use shadowland_client::session::Session;
use shadowland_wire::block::EntityRecord;
use shadowland_wire::entity::{EntityId, EntityType};
use shadowland_wire::lattice::{Lattice, LatticePosition};
use shadowland_world::{Frame, World};

/// Those whose rate counts as that of the near ones.
const NEAREST: usize = 40;
const TICK_HZ: f64 = 60.0;

/// Where everybody really is.
#[derive(Debug)]
pub(super) struct Truth {
    lattice: Lattice,
    distance_cm: f64,
    /// How far off somebody can be who is still shown: a cell's diagonal and its edge's share of hysteresis more.
    farthest_cm: f64,
    positions: HashMap<EntityId, [f64; 3]>,
}

impl Truth {
    pub(super) fn new(world: &World, frame: &Frame) -> Self {
        let ids = frame.all_pages().flat_map(|page| page.rows().map(|row| row.record.id).collect::<Vec<_>>());
        let positions = ids.filter_map(|id| Some((id, world.position_cm(id)?))).collect();
        let distance_cm = world.config().distance_cm(EntityType::Player);
        let layer = frame.layers().of(EntityType::Player);
        let cell_cm = (layer.cell_diagonal() + f64::from(layer.cell_edge())) * frame.lattice().step_cm();
        Self { lattice: frame.lattice(), distance_cm, farthest_cm: distance_cm + cell_cm, positions }
    }
}

/// Everybody in one tick, as the server has it.
#[derive(Debug)]
pub(super) struct Moment {
    tick: u32,
    /// The interest distance, in steps.
    distance: i64,
    entities: Vec<Present>,
}

#[derive(Debug, Clone, Copy)]
struct Present {
    id: EntityId,
    position: LatticePosition,
    /// Whether its place changed in this tick, and whether anything did.
    moved: bool,
    changed: bool,
}

impl Moment {
    pub(super) fn new(frame: &Frame) -> Self {
        let tick = frame.tick();
        let present = |row: &shadowland_world::interest::Row| Present {
            id: row.record.id,
            position: row.record.position,
            moved: row.changed[0] == tick,
            changed: row.changed.contains(&tick),
        };
        let entities =
            frame.all_pages().flat_map(|page| page.rows().map(present).collect::<Vec<_>>()).collect();
        let distance = frame.layers().of(EntityType::Player).distance().into();
        Self { tick, distance, entities }
    }

    pub(super) fn tick(&self) -> u32 {
        self.tick
    }
}

/// What clients saw, in sum.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    clients: u64,
    visible: u64,
    /// Times that one of the nearest had moved, and of those the times that the client learnt of it in that tick.
    near_moved: u64,
    near_told: u64,
    refresh_ticks_max: u32,
    pub(super) position_error_cm_max: f64,
    /// Entities within the interest distance of a client that it does not show, and those that it shows though they
    /// are not there, or farther off than anybody is told of.
    pub(super) missing: u64,
    pub(super) extra: u64,
    /// Pages that clients had to ask for.
    pub(super) resets: u64,
}

impl Seen {
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            clients: self.clients + other.clients,
            visible: self.visible + other.visible,
            near_moved: self.near_moved + other.near_moved,
            near_told: self.near_told + other.near_told,
            refresh_ticks_max: self.refresh_ticks_max.max(other.refresh_ticks_max),
            position_error_cm_max: self.position_error_cm_max.max(other.position_error_cm_max),
            missing: self.missing + other.missing,
            extra: self.extra + other.extra,
            resets: self.resets + other.resets,
        }
    }

    /// Others within the interest distance of a client, on average.
    pub(super) fn visible_mean(&self) -> f64 {
        self.visible as f64 / self.clients.max(1) as f64
    }

    /// Of the ticks in which one of the nearest moved, those whose snapshot said so, by 60 a second.
    pub(super) fn nearest_40_hz(&self) -> f64 {
        self.near_told as f64 / self.near_moved.max(1) as f64 * TICK_HZ
    }

    /// The longest time for which a change of anybody in sight was not followed by any news of it.
    pub(super) fn refresh_s_max(&self) -> f64 {
        f64::from(self.refresh_ticks_max) / TICK_HZ
    }
}

/// Watches the updates that one client gets.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// By index.
    told: Vec<Told>,
    /// By index: the tick of the first change of which there was no news since; 0 = none.
    waits_since: Vec<u32>,
    /// The tick that was judged last.
    judged: u32,
    /// The nearest; scratch.
    by_distance: Vec<(i64, usize)>,
    seen: Seen,
}

/// Of which ticks a client was told something of an entity.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    newest: u32,
    /// Bit `n` stands for the tick `n` before the newest.
    ticks: u64,
}

impl Told {
    fn insert(&mut self, tick: u32) {
        let ahead = tick.saturating_sub(self.newest);
        self.ticks = self.ticks.checked_shl(ahead).unwrap_or(0);
        self.newest += ahead;
        self.ticks |= 1u64.checked_shl(self.newest - tick).unwrap_or(0);
    }

    fn contains(self, tick: u32) -> bool {
        let age = self.newest.checked_sub(tick);
        age.and_then(|age| self.ticks.checked_shr(age)).is_some_and(|ticks| ticks & 1 != 0)
    }
}

impl Watch {
    /// Forgets what was seen up to a tick.
    pub(super) fn restart(&mut self, tick: u32) {
        self.judged = tick;
        self.waits_since.fill(0);
        self.seen = Seen::default();
    }

    fn note(&mut self, tick: u32, id: EntityId) {
        let index = id.index();
        if self.told.len() <= index {
            self.told.resize(index + 1, Told::default());
        }
        self.told[index].insert(tick);
    }

    /// Compares what was told of a tick with what happened in it, once its snapshot must have come. Every tick is to be
    /// judged, in order.
    pub(super) fn judge(&mut self, own: EntityId, moment: &Moment) {
        if moment.tick <= self.judged {
            return;
        }
        self.judged = moment.tick;
        let Some(here) = moment.entities.iter().find(|present| present.id == own) else { return };
        let here = here.position.to_array().map(i64::from);
        self.by_distance.clear();
        for (at, present) in moment.entities.iter().enumerate().filter(|(_, present)| present.id != own) {
            let there = present.position.to_array();
            let squared = (0..3).map(|axis| (i64::from(there[axis]) - here[axis]).pow(2)).sum();
            self.by_distance.push((squared, at));
            let index = present.id.index();
            if self.told.len() <= index {
                self.told.resize(index + 1, Told::default());
            }
            if self.waits_since.len() <= index {
                self.waits_since.resize(index + 1, 0);
            }
            let waits_since = &mut self.waits_since[index];
            if self.told[index].contains(moment.tick) || squared > moment.distance * moment.distance {
                *waits_since = 0;
            } else if *waits_since == 0 && present.changed {
                *waits_since = moment.tick;
            }
            if *waits_since != 0 {
                let waits = moment.tick - *waits_since;
                self.seen.refresh_ticks_max = self.seen.refresh_ticks_max.max(waits);
            }
        }
        let nearest = NEAREST.min(self.by_distance.len());
        if nearest < self.by_distance.len() {
            self.by_distance.select_nth_unstable(nearest);
        }
        for &(_, at) in &self.by_distance[..nearest] {
            let present = &moment.entities[at];
            if present.moved {
                self.seen.near_moved += 1;
                self.seen.near_told += u64::from(self.told[present.id.index()].contains(moment.tick));
            }
        }
    }
}

impl Watcher for Watch {
    fn appeared(&mut self, tick: u32, record: &EntityRecord) {
        self.note(tick, record.id);
    }

    fn updated(&mut self, _since: u32, tick: u32, record: &EntityRecord) {
        self.note(tick, record.id);
    }
}

/// What one client sees, and what `watch` saw in its place.
pub(super) fn look(session: &Session, own: EntityId, watch: &Watch, truth: &Truth) -> Seen {
    let replica = session.replica();
    let mut seen = Seen { clients: 1, resets: session.stats().resets, ..watch.seen.clone() };
    let Some(&here) = truth.positions.get(&own) else { return seen };
    let distance = |there: [f64; 3]| here.iter().zip(there).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    let within = |position: &[f64; 3]| distance(*position) <= truth.distance_cm;
    seen.visible = truth.positions.values().filter(|position| within(position)).count() as u64 - 1;
    let is_missing =
        |&(id, position): &(&EntityId, &[f64; 3])| within(position) && replica.entity(*id).is_none();
    seen.missing = truth.positions.iter().filter(is_missing).count() as u64;
    for record in replica.entities() {
        let position =
            truth.positions.get(&record.id).filter(|position| distance(**position) <= truth.farthest_cm);
        let Some(&position) = position else {
            seen.extra += 1;
            continue;
        };
        let shown = truth.lattice.dequantize(record.position);
        let error = shown.iter().zip(position).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        seen.position_error_cm_max = seen.position_error_cm_max.max(error);
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn told_ticks_are_remembered_one_by_one() {
        let mut told = Told::default();
        for tick in [70, 71, 74, 72, 5] {
            told.insert(tick);
        }
        let known: Vec<u32> = (0..200).filter(|&tick| told.contains(tick)).collect();
        assert_eq!(known, [70, 71, 72, 74], "5 is too long ago");
        told.insert(400);
        assert!(told.contains(400) && !told.contains(74));
    }
}
