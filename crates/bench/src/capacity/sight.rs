//! What clients see, compared with the truth.

use std::collections::HashMap;

use shadowland_client::replica::{Replica, Watcher};
use shadowland_wire::block::EntityRecord;
use shadowland_wire::entity::{EntityId, EntityType};
use shadowland_wire::lattice::Lattice;
use shadowland_world::{Frame, World};

/// Those whose rate counts as that of the near ones.
const NEAREST: usize = 40;
const TICK_HZ: f64 = 60.0;

/// Where everybody really is.
#[derive(Debug)]
pub(super) struct Truth {
    lattice: Lattice,
    distance_cm: f64,
    positions: HashMap<EntityId, [f64; 3]>,
}

impl Truth {
    pub(super) fn new(world: &World, frame: &Frame) -> Self {
        let ids = frame.all_pages().flat_map(|page| page.rows().map(|row| row.record.id).collect::<Vec<_>>());
        let positions = ids.filter_map(|id| Some((id, world.position_cm(id)?))).collect();
        let distance_cm = world.config().distance_cm(EntityType::Player);
        Self { lattice: frame.lattice(), distance_cm, positions }
    }
}

/// What clients saw, in sum.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    clients: u64,
    visible: u64,
    /// Updates a second of the nearest, and how many they are.
    near_hz: f64,
    near: u64,
    pub(super) refresh_s_max: f64,
    pub(super) position_error_cm_max: f64,
}

impl Seen {
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            clients: self.clients + other.clients,
            visible: self.visible + other.visible,
            near_hz: self.near_hz + other.near_hz,
            near: self.near + other.near,
            refresh_s_max: self.refresh_s_max.max(other.refresh_s_max),
            position_error_cm_max: self.position_error_cm_max.max(other.position_error_cm_max),
        }
    }

    /// Others within the interest distance of a client, on average.
    pub(super) fn visible_mean(&self) -> f64 {
        self.visible as f64 / self.clients.max(1) as f64
    }

    /// Updates a second of those of the nearest that move all the time, on average.
    pub(super) fn nearest_40_hz(&self) -> f64 {
        self.near_hz / self.near.max(1) as f64
    }
}

/// Watches the updates that one client gets.
#[derive(Debug, Default)]
pub(super) struct Watch {
    since: u32,
    entities: HashMap<EntityId, Updates>,
}

#[derive(Debug, Clone, Copy)]
struct Updates {
    first: u32,
    last: u32,
    count: u32,
    longest: u32,
}

impl Watch {
    /// Forgets what was seen up to a tick.
    pub(super) fn restart(&mut self, tick: u32) {
        self.since = tick;
        self.entities.clear();
    }

    fn note(&mut self, tick: u32, id: EntityId) {
        let updates =
            self.entities.entry(id).or_insert(Updates { first: tick, last: tick, count: 0, longest: 0 });
        if tick > updates.last {
            updates.count += 1;
            updates.longest = updates.longest.max(tick - updates.last);
            updates.last = tick;
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

    fn vanished(&mut self, id: EntityId) {
        self.entities.remove(&id);
    }
}

/// What one client sees. `watch` is what it was told lately, if that was watched.
pub(super) fn look(replica: &Replica, own: EntityId, watch: Option<&Watch>, truth: &Truth) -> Seen {
    let mut seen = Seen { clients: 1, ..Seen::default() };
    let Some(&here) = truth.positions.get(&own) else { return seen };
    let distance = |there: [f64; 3]| here.iter().zip(there).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    let within = |position: &[f64; 3]| distance(*position) <= truth.distance_cm;
    seen.visible = truth.positions.values().filter(|position| within(position)).count() as u64 - 1;
    for record in replica.entities() {
        let Some(&position) = truth.positions.get(&record.id) else { continue };
        let shown = truth.lattice.dequantize(record.position);
        let error = shown.iter().zip(position).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        seen.position_error_cm_max = seen.position_error_cm_max.max(error);
    }
    if let Some(watch) = watch {
        seen.watched(replica, own, watch, truth, distance);
    }
    seen
}

impl Seen {
    fn watched(
        &mut self,
        replica: &Replica,
        own: EntityId,
        watch: &Watch,
        truth: &Truth,
        distance: impl Fn([f64; 3]) -> f64,
    ) {
        // Who walks changes its place in every tick.
        let walks = |record: &&EntityRecord| record.animation != 0 && record.id != own;
        let mut others: Vec<(f64, EntityId)> = replica
            .entities()
            .filter(walks)
            .filter_map(|record| Some((distance(*truth.positions.get(&record.id)?), record.id)))
            .collect();
        others.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let now = replica.tick();
        for (place, (far, id)) in others.into_iter().enumerate() {
            let Some(updates) = watch.entities.get(&id) else {
                // Not a word since the start.
                self.refresh_s_max = self.refresh_s_max.max(f64::from(now - watch.since) / TICK_HZ);
                continue;
            };
            if far <= truth.distance_cm {
                let gap = updates.longest.max(now - updates.last);
                self.refresh_s_max = self.refresh_s_max.max(f64::from(gap) / TICK_HZ);
            }
            let span = updates.last - updates.first;
            if place < NEAREST && span >= 60 {
                self.near_hz += f64::from(updates.count) / f64::from(span) * TICK_HZ;
                self.near += 1;
            }
        }
    }
}
