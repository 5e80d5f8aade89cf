//! What moves by itself: for now npcs that wander, so that a fresh world is alive.

use rand::RngExt;
use rand_pcg::Pcg32;
use shadowland_wire::entity::EntityId;
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
}

#[derive(Debug, Clone, Copy)]
struct Creature {
    entity: EntityId,
    course: Input,
    until: Tick,
}

impl Creatures {
    pub(crate) fn new(random: Pcg32, capacity: usize) -> Self {
        Self { paused: false, random, rows: Vec::with_capacity(capacity) }
    }

    pub(crate) fn add(&mut self, entity: EntityId) {
        self.rows.push(Creature { entity, course: Input::default(), until: 0 });
    }

    pub(crate) fn remove(&mut self, entity: EntityId) {
        self.rows.retain(|creature| creature.entity != entity);
    }

    /// What each creature wants to do in this tick.
    pub(crate) fn intentions(&mut self, now: Tick) -> impl Iterator<Item = (EntityId, Input)> + '_ {
        let Self { paused, random, rows } = self;
        rows.iter_mut().map(move |creature| {
            if *paused {
                return (creature.entity, Input { forward: 0, ..creature.course });
            }
            if now >= creature.until {
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
