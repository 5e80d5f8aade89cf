//! What walks without a player: npcs that wander, so that a fresh world is alive, and whoever a game sends somewhere.

use rand::RngExt;
use rand_pcg::Pcg32;
use shadowland_wire::entity::{EntityId, EntityType};
use shadowland_wire::message::client::Input;

use crate::Tick;

/// Shortest and longest time on one course, in ticks.
const COURSE_TICKS: std::ops::Range<Tick> = 60..240;
/// Walking speed as a share of the greatest.
const SPEED_SHARE: std::ops::Range<i8> = 25..80;

/// The creatures, each with the course that it is on.
#[derive(Debug)]
pub(crate) struct Creatures {
    pub(crate) paused: bool,
    random: Pcg32,
    rows: Vec<Creature>,
    /// By index of the entity.
    row_of: Vec<Option<u32>>,
}

#[derive(Debug, Clone, Copy)]
struct Creature {
    entity: EntityId,
    course: Input,
    /// [`FOR_GOOD`] of one that does not wander.
    until: Tick,
}

const FOR_GOOD: Tick = Tick::MAX;

/// Whether entities of a type can be told where to walk.
pub(crate) fn walks(kind: EntityType) -> bool {
    matches!(kind, EntityType::Npc | EntityType::Monster)
}

impl Creatures {
    pub(crate) fn new(random: Pcg32, indices: usize) -> Self {
        Self { paused: false, random, rows: Vec::with_capacity(indices), row_of: vec![None; indices] }
    }

    /// From now on one wanders.
    pub(crate) fn wander(&mut self, entity: EntityId) {
        self.put(Creature { entity, course: Input::default(), until: 0 });
    }

    /// From now on one walks on this course.
    pub(crate) fn walk(&mut self, entity: EntityId, course: Input) {
        self.put(Creature { entity, course, until: FOR_GOOD });
    }

    fn put(&mut self, creature: Creature) {
        let row = &mut self.row_of[creature.entity.index()];
        match *row {
            Some(row) => self.rows[row as usize] = creature,
            None => {
                *row = Some(self.rows.len() as u32);
                self.rows.push(creature);
            }
        }
    }

    pub(crate) fn remove(&mut self, entity: EntityId) {
        let Some(row) = self.row_of[entity.index()].take() else { return };
        self.rows.swap_remove(row as usize);
        if let Some(moved) = self.rows.get(row as usize) {
            self.row_of[moved.entity.index()] = Some(row);
        }
    }

    /// What each creature wants to do in this tick.
    pub(crate) fn intentions(&mut self, now: Tick) -> impl Iterator<Item = (EntityId, Input)> + '_ {
        let Self { paused, random, rows, .. } = self;
        rows.iter_mut().map(move |creature| {
            if *paused {
                return (creature.entity, Input { yaw: creature.course.yaw, ..Input::default() });
            }
            if now >= creature.until && creature.until != FOR_GOOD {
                creature.until = now + random.random_range(COURSE_TICKS);
                let rests = random.random_ratio(1, 4);
                creature.course = Input {
                    forward: if rests { 0 } else { random.random_range(SPEED_SHARE) },
                    yaw: random.random(),
                    ..Input::default()
                };
            }
            (creature.entity, creature.course)
        })
    }
}
