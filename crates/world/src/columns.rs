//! The entities: plain typed columns with a free list and generational identifiers, allocated once.

use std::collections::VecDeque;

use glam::DVec3;
use shadowland_wire::block::EntityRecord;
use shadowland_wire::entity::{EntityId, EntityState, EntityType};
use shadowland_wire::lattice::Lattice;
use shadowland_wire::quantize::{Rotation, Velocity, Vitals};
use thiserror::Error;

use crate::Tick;
use crate::interest::TOMBSTONE_TICKS;

/// No entity can be added: the configured capacity is in use, or was until a moment ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the world is full: raise `entity_capacity` or `player_capacity`")]
pub struct WorldFull;

/// Why an entity is not spawned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SpawnError {
    /// All that can live at once do, or did until a moment ago, but for the players who can still join or come back.
    #[error("the world is full but for its players: raise `entity_capacity`")]
    Full,
    /// A player comes by joining.
    #[error("a player comes by joining")]
    Player,
    /// The position is not finite.
    #[error("the position is not finite")]
    NotFinite,
}

/// Indices for so many entities, players among them. Those that are free rest for a while, and more of them make up for
/// that: a quarter, and at least one for each player, for all may time out together and come back at once.
pub(crate) const fn indices_for(entities: usize, players: usize) -> usize {
    let quarter = entities / 4;
    entities + if quarter > players { quarter } else { players } + 64
}

/// One value per entity in every column, at the entity's index.
#[derive(Debug)]
pub(crate) struct Columns {
    /// Who lives at this index; `None` where nobody does.
    pub(crate) id: Vec<Option<EntityId>>,
    pub(crate) kind: Vec<EntityType>,
    /// Centimetres; X forward, Y right, Z up.
    pub(crate) position: Vec<DVec3>,
    /// cm/s.
    pub(crate) velocity: Vec<DVec3>,
    /// 65,536 to the full turn.
    pub(crate) yaw: Vec<u16>,
    /// How what flies or drives is turned; others turn by `yaw` only.
    pub(crate) attitude: Vec<Rotation>,
    pub(crate) animation: Vec<u16>,
    pub(crate) state: Vec<EntityState>,
    pub(crate) vitals: Vec<Vitals>,
    generation: Vec<u32>,
    /// Free indices, the longest free first, with the tick since when.
    free: VecDeque<(u32, Tick)>,
    /// So many of them, from the first on, are known to have rested.
    rested: usize,
    /// Indices below this one have been used.
    used: usize,
    living: usize,
    /// Those of them that fly or drive.
    ballistic: usize,
    /// Those of them that are players.
    playing: usize,
    /// Free indices of players that have not rested.
    resting_players: usize,
    capacity: usize,
    /// Most players, among the capacity.
    players: usize,
}

impl Columns {
    pub(crate) fn new(entities: usize, players: usize) -> Self {
        let indices = indices_for(entities, players);
        Self {
            id: vec![None; indices],
            kind: vec![EntityType::Player; indices],
            position: vec![DVec3::ZERO; indices],
            velocity: vec![DVec3::ZERO; indices],
            yaw: vec![0; indices],
            attitude: vec![Rotation::default(); indices],
            animation: vec![0; indices],
            state: vec![EntityState::NONE; indices],
            vitals: vec![Vitals::FULL; indices],
            generation: vec![0; indices],
            free: VecDeque::with_capacity(indices),
            rested: 0,
            used: 0,
            living: 0,
            ballistic: 0,
            playing: 0,
            resting_players: 0,
            capacity: entities,
            players,
        }
    }

    /// Adds an entity at rest.
    ///
    /// An index rests before it is given out again, for longer than any client can be behind.
    pub(crate) fn spawn(
        &mut self,
        now: Tick,
        kind: EntityType,
        position: DVec3,
    ) -> Result<EntityId, WorldFull> {
        while let Some(&(index, since)) = self.free.get(self.rested)
            && now - since > TOMBSTONE_TICKS
        {
            self.rested += 1;
            self.resting_players -= usize::from(self.kind[index as usize] == EntityType::Player);
        }
        if !self.has_room(kind) {
            return Err(WorldFull);
        }
        let index = if self.rested > 0 {
            let (index, _) = self.free.pop_front().ok_or(WorldFull)?;
            self.rested -= 1;
            index as usize
        } else {
            self.used += 1;
            self.used - 1
        };
        let id = EntityId::new(index as u32, self.generation[index]);
        self.id[index] = Some(id);
        self.kind[index] = kind;
        self.position[index] = position;
        self.velocity[index] = DVec3::ZERO;
        self.yaw[index] = 0;
        self.attitude[index] = Rotation::default();
        self.animation[index] = 0;
        self.state[index] = EntityState::NONE;
        self.vitals[index] = Vitals::FULL;
        self.living += 1;
        self.ballistic += usize::from(is_ballistic(kind));
        self.playing += usize::from(kind == EntityType::Player);
        Ok(id)
    }

    /// Whether one more can come. Others leave players the room to join, and to leave and come back once while the
    /// indices that they had rest.
    fn has_room(&self, kind: EntityType) -> bool {
        let (joins, returns) = match kind {
            EntityType::Player => (0, 0),
            _ => {
                (self.players.saturating_sub(self.playing), self.players.saturating_sub(self.resting_players))
            }
        };
        let indices = self.rested + self.id.len() - self.used;
        self.capacity - self.living > joins && indices > joins + returns
    }

    /// Removes an entity; `false` when it does not live.
    pub(crate) fn despawn(&mut self, now: Tick, id: EntityId) -> bool {
        let index = id.index();
        if !self.lives(id) {
            return false;
        }
        self.id[index] = None;
        self.living -= 1;
        self.ballistic -= usize::from(is_ballistic(self.kind[index]));
        let was_player = usize::from(self.kind[index] == EntityType::Player);
        self.playing -= was_player;
        self.resting_players += was_player;
        // After its last generation an index starts again: nobody has heard of its first entity for 4096 rests.
        self.generation[index] = (self.generation[index] + 1) & EntityId::MAX_GENERATION;
        self.free.push_back((index as u32, now));
        true
    }

    pub(crate) fn lives(&self, id: EntityId) -> bool {
        self.id.get(id.index()).is_some_and(|living| *living == Some(id))
    }

    /// An entity as others see it, on the map's lattice.
    #[inline]
    pub(crate) fn record(&self, id: EntityId, lattice: Lattice) -> EntityRecord {
        let index = id.index();
        let kind = self.kind[index];
        EntityRecord {
            id,
            kind,
            position: lattice.quantize(self.position[index].to_array()),
            rotation: if is_ballistic(kind) {
                self.attitude[index]
            } else {
                Rotation::nearest_coarse_yaw(self.yaw[index])
            },
            animation: self.animation[index],
            state: self.state[index],
            velocity: if is_ballistic(kind) {
                Velocity::from_cm_per_s(self.velocity[index].to_array())
            } else {
                Velocity::default()
            },
            vitals: self.vitals[index],
        }
    }

    pub(crate) fn living(&self) -> usize {
        self.living
    }

    /// Position and velocity of all that flies or drives, by index.
    pub(crate) fn ballistic_mut(&mut self) -> impl Iterator<Item = (&mut DVec3, &mut DVec3)> {
        let indices = if self.ballistic == 0 { 0 } else { self.used };
        let bodies = self.position[..indices].iter_mut().zip(&mut self.velocity);
        let of_them = |(id, kind): (&Option<EntityId>, &EntityType)| id.is_some() && is_ballistic(*kind);
        self.id.iter().zip(&self.kind).zip(bodies).filter_map(move |(who, body)| of_them(who).then_some(body))
    }

    /// Everybody who lives, by index.
    pub(crate) fn iter(&self) -> impl Iterator<Item = EntityId> + '_ {
        self.id[..self.used].iter().copied().flatten()
    }
}

/// Whether an entity flies or drives: others are told its velocity and all three of its angles. Who walks changes its
/// velocity with every turn of the head, and others see it well enough from one position to the next; what flies or
/// drives keeps it for long.
pub(crate) fn is_ballistic(kind: EntityType) -> bool {
    matches!(kind, EntityType::Projectile | EntityType::Vehicle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capacity_is_that_of_the_living() {
        let mut columns = Columns::new(2, 0);
        let spawn = |columns: &mut Columns, now| columns.spawn(now, EntityType::Item, DVec3::ZERO);
        let a = spawn(&mut columns, 1).unwrap();
        let b = spawn(&mut columns, 1).unwrap();
        assert_eq!(spawn(&mut columns, 1), Err(WorldFull));
        assert!(columns.despawn(5, a) && !columns.despawn(5, a) && columns.lives(b));
        // Who leaves can be replaced at once, by another index.
        let c = spawn(&mut columns, 5).unwrap();
        assert_ne!(c.index(), a.index());
        assert_eq!((columns.living(), spawn(&mut columns, 5)), (2, Err(WorldFull)));
    }

    #[test]
    fn players_keep_their_room_however_fast_some_come_and_go() {
        let mut columns = Columns::new(10, 4);
        let (mut now, mut full) = (1, 0);
        for _ in 0..10 * columns.id.len() {
            match columns.spawn(now, EntityType::Projectile, DVec3::ZERO) {
                Ok(id) => assert!(columns.despawn(now, id)),
                Err(WorldFull) => full += 1,
            }
            now += 1;
        }
        assert!(full > 0, "it was never full");
        let joined = (0..4).filter(|_| columns.spawn(now, EntityType::Player, DVec3::ZERO).is_ok());
        assert_eq!(joined.count(), 4);
    }

    #[test]
    fn indices_rest_and_come_back_as_another_generation() {
        let mut columns = Columns::new(1, 0);
        let (mut now, mut generations) = (1, vec![0; indices_for(1, 0)]);
        for _ in 0..20 * generations.len() {
            let id = columns.spawn(now, EntityType::Item, DVec3::ZERO).unwrap();
            assert_eq!(id.generation(), generations[id.index()]);
            generations[id.index()] += 1;
            columns.despawn(now, id);
            now += TOMBSTONE_TICKS / 16;
        }
        assert!(generations.iter().any(|lives| *lives > 10), "{generations:?}");
    }
}
