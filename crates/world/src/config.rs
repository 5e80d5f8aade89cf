//! Everything about a world that can be set, with defaults that run.

use shadowland_wire::entity::{EntityId, EntityType};
use shadowland_wire::lattice::Lattice;
use shadowland_wire::limits::CELLS_PER_MAP;
use thiserror::Error;

use crate::columns::indices_for;
use crate::interest::storey_cm;
use crate::sight;

/// Most layers of interest.
pub const MAX_LAYERS: usize = 4;
/// Most ticks between updates of what is distant.
pub const DISTANT_PERIOD_MAX: u32 = 60;
/// Most entities that a world can hold; the indices of a quarter of as many more may rest, or of all players.
pub const MAX_ENTITIES: usize = 800_000;
/// Most players that can be in a world: the indices of all of them may rest.
pub const MAX_PLAYERS: usize = 200_000;

const _: () = assert!(indices_for(MAX_ENTITIES, MAX_PLAYERS) < EntityId::MAX_INDEX as usize);

/// A world's configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct WorldConfig {
    /// Where the world's randomness starts.
    pub seed: u64,
    /// Ticks per second.
    pub tick_hz: u32,
    /// Length of a lattice step in centimetres; positions are seen with half of it as error.
    pub lattice_step_cm: f64,
    /// The map.
    pub map: MapConfig,
    /// Entities that can live at once, all types together.
    pub entity_capacity: usize,
    /// Players that can be in the world at once.
    pub player_capacity: usize,
    /// Layers of interest, by growing distance.
    pub layers: Vec<LayerConfig>,
    /// Which part of a layer's distance is near; beyond it updates come every `distant_period` ticks.
    pub near_share: f64,
    /// Ticks between updates of what is distant.
    pub distant_period: u32,
    /// Ticks from one look at an entity to the next, for viewers near and far, by type in the order of
    /// [`EntityType::ALL`]. What changes meanwhile is seen at the next look.
    pub look_periods: [u32; EntityType::ALL.len()],
    /// A cell with so many entities is a crowd: its pages go round, and who is near is told of besides in every tick.
    /// Until it has less than three quarters of that.
    pub crowd_entities: usize,
    /// How bodies move.
    pub movement: MovementConfig,
    /// How they fight.
    pub combat: CombatConfig,
    /// Npcs that wander over the map.
    pub npcs: usize,
}

/// The map: a flat box for now, centred at the origin, with the ground at height 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MapConfig {
    /// Length of both horizontal edges, in centimetres.
    pub size_cm: f64,
    /// Height of the sky above the ground, in centimetres.
    pub height_cm: f64,
}

/// A layer of interest: entity types that are seen equally far.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerConfig {
    /// How far its entities are seen, in centimetres.
    pub distance_cm: f64,
    /// The horizontal edge of a cell is `distance_cm / cells_per_distance`.
    pub cells_per_distance: f64,
    /// The types in this layer.
    pub types: Vec<EntityType>,
}

/// How bodies move.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MovementConfig {
    /// Speed on foot, in cm/s.
    pub walk_cm_per_s: f64,
    /// Speed while sprinting, in cm/s.
    pub sprint_cm_per_s: f64,
    /// Speed while crouching, in cm/s.
    pub crouch_cm_per_s: f64,
    /// Upward speed at the start of a jump, in cm/s.
    pub jump_cm_per_s: f64,
    /// Greatest speed of falling, in cm/s.
    pub fall_cm_per_s: f64,
    /// Acceleration of falling, in cm/s^2.
    pub gravity_cm_per_s2: f64,
    /// Greatest speed of vehicles, in cm/s.
    pub vehicle_cm_per_s: f64,
    /// Greatest speed of projectiles, in cm/s.
    pub projectile_cm_per_s: f64,
}

/// How bodies fight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CombatConfig {
    /// How far a blow reaches, in centimetres.
    pub reach_cm: f64,
    /// Points of health at the start.
    pub health: u16,
    /// Points that a blow takes.
    pub damage: u16,
    /// Ticks between two blows.
    pub cooldown_ticks: u32,
    /// Ticks after a blow for which both sides are in combat.
    pub combat_ticks: u32,
    /// Ticks that the dead lie before they rise.
    pub dead_ticks: u32,
}

impl Default for CombatConfig {
    fn default() -> Self {
        Self {
            reach_cm: 250.0,
            health: 1_000,
            damage: 60,
            cooldown_ticks: 60,
            combat_ticks: 300,
            dead_ticks: 300,
        }
    }
}

impl Default for WorldConfig {
    fn default() -> Self {
        Self {
            seed: 1,
            tick_hz: 60,
            lattice_step_cm: 1.0,
            map: MapConfig { size_cm: 800_000.0, height_cm: 200_000.0 },
            entity_capacity: 32_768,
            player_capacity: 10_000,
            layers: sight::layers(sight::default_distance_cm, 2.0),
            near_share: 0.5,
            distant_period: 3,
            look_periods: [1; EntityType::ALL.len()],
            crowd_entities: 288,
            movement: MovementConfig {
                walk_cm_per_s: 600.0,
                sprint_cm_per_s: 900.0,
                crouch_cm_per_s: 250.0,
                jump_cm_per_s: 450.0,
                fall_cm_per_s: 900.0,
                gravity_cm_per_s2: 980.0,
                vehicle_cm_per_s: 5_000.0,
                projectile_cm_per_s: 30_000.0,
            },
            combat: CombatConfig::default(),
            npcs: 200,
        }
    }
}

/// A value that a world cannot have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{key}` must be {allowed}")]
pub struct ConfigProblem {
    /// Which one.
    pub key: &'static str,
    /// What it may be.
    pub allowed: &'static str,
}

impl WorldConfig {
    /// Whether a world can be made of it.
    pub fn check(&self) -> Result<(), ConfigProblem> {
        let require =
            |holds: bool, key, allowed| if holds { Ok(()) } else { Err(ConfigProblem { key, allowed }) };
        let length = |cm: f64, low: f64, high: f64| cm.is_finite() && (low..=high).contains(&cm);
        require((1..=240).contains(&self.tick_hz), "tick_hz", "between 1 and 240")?;
        require(length(self.lattice_step_cm, 0.1, 100.0), "lattice_step_cm", "between 0.1 and 100 cm")?;
        require(
            self.has_told_step(),
            "lattice_step_cm",
            "a whole number of 0.0001 cm, as clients are told it",
        )?;
        // The lattice has 2^31 steps to either side; a quarter of it is plenty and keeps sums in range.
        let longest = self.lattice_step_cm * f64::from(1u32 << 29);
        require(
            length(self.map.size_cm, 100.0, longest),
            "map.size_cm",
            "at least 100 cm and below 2^29 steps",
        )?;
        require(
            length(self.map.height_cm, 100.0, longest),
            "map.height_cm",
            "at least 100 cm and below 2^29 steps",
        )?;
        require(
            (1..=MAX_ENTITIES).contains(&self.entity_capacity),
            "entity_capacity",
            "between 1 and 800,000",
        )?;
        require(self.player_capacity <= MAX_PLAYERS, "player_capacity", "at most 200,000")?;
        require(
            self.player_capacity.saturating_add(self.npcs) <= self.entity_capacity,
            "entity_capacity",
            "at least player_capacity + npcs",
        )?;
        require((0.0..=1.0).contains(&self.near_share), "near_share", "between 0 and 1")?;
        require(
            (1..=DISTANT_PERIOD_MAX).contains(&self.distant_period),
            "distant_period",
            "between 1 and 60 ticks",
        )?;
        require(
            self.look_periods.iter().all(|period| (1..=60).contains(period)),
            "look_periods",
            "between 1 and 60 ticks",
        )?;
        require(
            (4..=MAX_ENTITIES).contains(&self.crowd_entities),
            "crowd_entities",
            "between 4 and 800,000",
        )?;
        require((1..=MAX_LAYERS).contains(&self.layers.len()), "layers", "one to four layers")?;
        let in_a_layer = |kind| self.layers.iter().any(|layer| layer.types.contains(&kind));
        require(
            EntityType::ALL.into_iter().all(in_a_layer),
            "layers.types",
            "so that every entity type is in a layer",
        )?;
        // Every player can have a private cell.
        let mut cells = self.player_capacity as f64;
        for layer in &self.layers {
            require(
                length(layer.distance_cm, 100.0, longest),
                "layers.distance_cm",
                "at least 100 cm and below 2^29 steps",
            )?;
            require(
                (0.25..=16.0).contains(&layer.cells_per_distance),
                "layers.cells_per_distance",
                "between 0.25 and 16",
            )?;
            let edge = layer.distance_cm / layer.cells_per_distance;
            cells += (self.map.size_cm / edge + 2.0).powi(2)
                * (self.map.height_cm / storey_cm(&self.map, layer) + 2.0);
        }
        require(
            cells < f64::from(CELLS_PER_MAP),
            "layers.distance_cm",
            "long enough that the map has below 2^26 cells",
        )?;
        let combat = &self.combat;
        require(length(combat.reach_cm, 1.0, 10_000.0), "combat.reach_cm", "between 1 and 10,000 cm")?;
        require(combat.health > 0, "combat.health", "above 0")?;
        let ticks = 1..=1_000_000;
        require(ticks.contains(&combat.cooldown_ticks), "combat.cooldown_ticks", "between 1 and 1,000,000")?;
        require(ticks.contains(&combat.combat_ticks), "combat.combat_ticks", "between 1 and 1,000,000")?;
        require(ticks.contains(&combat.dead_ticks), "combat.dead_ticks", "between 1 and 1,000,000")?;
        let movement = &self.movement;
        let speeds = [
            movement.walk_cm_per_s,
            movement.sprint_cm_per_s,
            movement.crouch_cm_per_s,
            movement.jump_cm_per_s,
        ];
        let slow_enough = |speed: &f64| length(*speed, 0.0, 100_000.0);
        require(speeds.iter().all(slow_enough), "movement", "speeds between 0 and 100,000 cm/s")?;
        require(
            length(movement.fall_cm_per_s, 1.0, 100_000.0),
            "movement.fall_cm_per_s",
            "between 1 and 100,000 cm/s, or nobody comes down",
        )?;
        // What is told of a velocity ends there.
        let told = |speed: f64| length(speed, 0.0, i16::MAX.into());
        let steered = told(movement.vehicle_cm_per_s) && told(movement.projectile_cm_per_s);
        require(steered, "movement", "vehicles and projectiles of at most 32,767 cm/s")?;
        require(
            length(movement.gravity_cm_per_s2, 1.0, 100_000.0),
            "movement.gravity_cm_per_s2",
            "between 1 and 100,000",
        )
    }

    /// Whether the step is one that clients can be told: in whole micrometres, to the last bit. From any other one theirs
    /// would differ, and positions with it by metres far from the origin.
    #[must_use]
    pub fn has_told_step(&self) -> bool {
        (self.lattice_step_cm * 10_000.0).round() / 10_000.0 == self.lattice_step_cm
    }

    /// The lattice of the map.
    #[must_use]
    pub fn lattice(&self) -> Lattice {
        Lattice::new(self.lattice_step_cm)
    }

    /// How far entities of a type are seen, in centimetres.
    ///
    /// # Panics
    /// When the type is in no layer; [`WorldConfig::check`] finds that.
    #[must_use]
    pub fn distance_cm(&self, kind: EntityType) -> f64 {
        let layer = self.layers.iter().find(|layer| layer.types.contains(&kind));
        layer.expect("every entity type is in a layer").distance_cm
    }

    /// Seconds that a tick lasts.
    #[must_use]
    pub fn tick_seconds(&self) -> f64 {
        1.0 / f64::from(self.tick_hz)
    }

    /// The fastest that entities of a type move by themselves, in cm/s; what moves farther in a tick has teleported.
    #[must_use]
    pub fn top_speed_cm_per_s(&self, kind: EntityType) -> f64 {
        let movement = &self.movement;
        match kind {
            EntityType::Vehicle => return movement.vehicle_cm_per_s,
            EntityType::Projectile => return movement.projectile_cm_per_s,
            _ => {}
        }
        let on_foot = [movement.walk_cm_per_s, movement.sprint_cm_per_s, movement.crouch_cm_per_s];
        let upright = movement.jump_cm_per_s.max(movement.fall_cm_per_s);
        on_foot.into_iter().fold(upright, f64::max)
    }

    /// Sets size and player count so that a player has on average `others` others within `distance_cm`,
    /// the density of the reference workload `wander`.
    pub fn set_density(&mut self, players: usize, others: f64, distance_cm: f64) {
        let area = players as f64 * std::f64::consts::PI * distance_cm * distance_cm / others;
        self.map.size_cm = area.sqrt();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lattice_step_is_one_that_clients_can_be_told() {
        let check = |step| WorldConfig { lattice_step_cm: step, ..WorldConfig::default() }.check();
        for told in [0.1, 0.3, 1.0, 2.54, 33.3333, 100.0] {
            assert_eq!(check(told), Ok(()), "{told}");
        }
        for lost in [0.12345, 1.00005, 100.0 / 3.0] {
            assert_eq!(check(lost).unwrap_err().key, "lattice_step_cm", "{lost}");
        }
    }
}
