//! The world, and the phases of a tick.

use std::hash::{DefaultHasher, Hash, Hasher};

use glam::DVec3;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;
use shadowland_wire::entity::{EntityId, EntityState, EntityType};
use shadowland_wire::message::client::{Buttons, Input};
use shadowland_wire::quantize::{Rotation, Velocity, Vitals};

use crate::columns::{Columns, SpawnError, WorldFull, indices_for, is_ballistic};
use crate::combat::{self, Combat};
use crate::creatures::{self, Creatures};
use crate::interest::Interest;
use crate::movement::{self, Body};
use crate::players::{PlayerHandle, Players};
use crate::replication::{Frame, OwnerRow};
use crate::{Tick, WorldConfig};

/// While one entity is brought up to date, the rows of so many that come after it are on their way from memory: they lie
/// where the entities' pages are, in no order.
const ENTITIES_AHEAD: usize = 16;

/// A running world.
#[derive(Debug)]
pub struct World {
    config: WorldConfig,
    tick: Tick,
    columns: Columns,
    players: Players,
    creatures: Creatures,
    combat: Combat,
    interest: Interest,
    /// Where newcomers appear.
    spawn_points: Pcg32,
}

impl World {
    /// A world at tick 0 with its creatures in it.
    ///
    /// # Panics
    /// When the configuration is not one that [`WorldConfig::check`] accepts.
    #[must_use]
    pub fn new(config: WorldConfig) -> Self {
        if let Err(problem) = config.check() {
            panic!("a checked configuration: {problem}");
        }
        let (entities, players) = (config.entity_capacity, config.player_capacity);
        let indices = indices_for(entities, players);
        let mut world = Self {
            tick: 0,
            columns: Columns::new(entities, players),
            players: Players::new(players),
            creatures: Creatures::new(Pcg32::seed_from_u64(config.seed ^ 1), indices),
            combat: Combat::new(&config.combat, indices),
            interest: Interest::new(&config),
            spawn_points: Pcg32::seed_from_u64(config.seed),
            config,
        };
        for _ in 0..world.config.npcs {
            let position = world.random_point();
            let npc = world.spawn(EntityType::Npc, position).expect("checked: capacity above the npcs");
            world.creatures.wander(npc);
        }
        world
    }

    /// Everything that moves the world on, in order.
    pub fn tick(&mut self) {
        self.tick += 1;
        self.move_players();
        self.move_creatures();
        self.move_ballistic();
        self.fight();
        self.update_interest();
    }

    /// The last tick that was simulated.
    #[must_use]
    pub fn now(&self) -> Tick {
        self.tick
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &WorldConfig {
        &self.config
    }

    /// Entities in the world.
    #[must_use]
    pub fn entity_count(&self) -> usize {
        self.columns.living()
    }

    /// Players in the world.
    #[must_use]
    pub fn player_count(&self) -> usize {
        self.players.count()
    }

    /// Everybody who plays, by slot.
    pub fn players(&self) -> impl Iterator<Item = PlayerHandle> + '_ {
        self.players.iter()
    }

    /// Whether a player is in the world, and has not left.
    #[must_use]
    pub fn is_playing(&self, player: PlayerHandle) -> bool {
        self.players.contains(player)
    }

    /// Lets somebody in, at a random point of the map. The player is in the frame of the next tick.
    pub fn join(&mut self) -> Result<PlayerHandle, WorldFull> {
        if !self.players.has_room() {
            return Err(WorldFull);
        }
        let position = self.random_point();
        let entity = self.enter(EntityType::Player, DVec3::from_array(position))?;
        self.players.add(entity)
    }

    /// Lets a player out; nothing happens when it has left already.
    pub fn leave(&mut self, player: PlayerHandle) {
        if self.players.remove(player) {
            self.interest.forget_seer(self.tick + 1, player);
            self.remove(player.entity);
        }
    }

    /// Accepts a player's input; numbers start at 1, and repetitions are ignored.
    pub fn input(&mut self, player: PlayerHandle, number: u32, input: Input) {
        if let Some(player) = self.players.get_mut(player) {
            player.inputs.push(number, input);
        }
    }

    /// Puts an entity that nobody plays into the world, at a point in centimetres, or the nearest one of the map. It is
    /// at rest, and seen from the next tick on. Players keep the room to join, and to leave and come back.
    pub fn spawn(&mut self, kind: EntityType, position_cm: [f64; 3]) -> Result<EntityId, SpawnError> {
        if kind == EntityType::Player {
            return Err(SpawnError::Player);
        }
        let position = self.point(position_cm).ok_or(SpawnError::NotFinite)?;
        self.enter(kind, position).map_err(|WorldFull| SpawnError::Full)
    }

    /// Takes an entity out of the world. `false`, and nothing else, for those that do not live, and for players, who go by
    /// leaving.
    pub fn despawn(&mut self, id: EntityId) -> bool {
        let is_loose = self.kind(id).is_some_and(|kind| kind != EntityType::Player);
        if is_loose {
            self.remove(id);
        }
        is_loose
    }

    /// Takes an entity out of everybody's sight but that of `seers`, from the next tick on: nobody else is sent anything
    /// that depends on it. A second call changes who may see it. A player is always told of its own state, and seers who
    /// have left count for nothing. `false`, and nothing else, when the entity does not live.
    pub fn hide(&mut self, id: EntityId, seers: &[PlayerHandle]) -> bool {
        let lives = self.columns.lives(id);
        if lives {
            let playing = |seer: &PlayerHandle| self.players.contains(*seer);
            let seers: Vec<PlayerHandle> = seers.iter().copied().filter(playing).collect();
            // Frames up to this tick have shown it.
            self.interest.hide(self.tick + 1, id, &seers);
        }
        lives
    }

    /// Shows a hidden entity to everybody again, from the next tick on. `false`, and nothing else, when it is not hidden.
    pub fn reveal(&mut self, id: EntityId) -> bool {
        let is_hidden = self.is_hidden(id);
        if is_hidden {
            self.interest.reveal(self.tick + 1, id);
        }
        is_hidden
    }

    /// Whether an entity is hidden.
    #[must_use]
    pub fn is_hidden(&self, id: EntityId) -> bool {
        self.columns.lives(id) && self.interest.is_hidden(id)
    }

    /// Moves an entity at once, without regard to its speed, to a point in centimetres, or the nearest one of the map.
    /// `false`, and nothing else, for those that do not live, and numbers that are not finite.
    pub fn teleport(&mut self, id: EntityId, position_cm: [f64; 3]) -> bool {
        let point = self.point(position_cm).filter(|_| self.columns.lives(id));
        if let Some(point) = point {
            self.columns.position[id.index()] = point;
        }
        point.is_some()
    }

    /// Has a vehicle or a projectile go on at this velocity, in cm/s, and turns it by yaw, pitch and roll, in degrees, until
    /// it is told something else; at the map's edge it stops. What is faster than the configuration allows is slowed
    /// down to that. `false`, and nothing else, for entities of other types, those that do not live, and numbers that are
    /// not finite.
    pub fn steer(&mut self, id: EntityId, velocity_cm_per_s: [f64; 3], rotation_degrees: [f64; 3]) -> bool {
        let Self { columns, config, .. } = self;
        let index = id.index();
        let velocity = DVec3::from_array(velocity_cm_per_s);
        let finite = velocity.is_finite() && rotation_degrees.iter().all(|angle| angle.is_finite());
        if !columns.lives(id) || !is_ballistic(columns.kind[index]) || !finite {
            return false;
        }
        columns.velocity[index] = velocity.clamp_length_max(config.top_speed_cm_per_s(columns.kind[index]));
        let [yaw, pitch, roll] = rotation_degrees;
        columns.attitude[index] = Rotation::from_degrees(yaw, pitch, roll);
        true
    }

    /// Has an npc or a monster walk as players do who hold this input, from the next tick on, until it is told something
    /// else; an npc that wandered does so no more. Of the buttons, [`Buttons::ATTACK`] does nothing. `false`, and nothing
    /// else, for entities of other types, and those that do not live.
    pub fn walk(&mut self, id: EntityId, input: Input) -> bool {
        let walks = self.kind(id).is_some_and(creatures::walks);
        if walks {
            self.creatures.walk(id, input);
        }
        walks
    }

    /// Takes points of health from a player, an npc or a monster, as a blow does: it is in combat, and dead when none are
    /// left. `false`, and nothing else, for entities of other types, the dead, and those that do not live.
    pub fn damage(&mut self, id: EntityId, points: u16) -> bool {
        let Self { columns, combat, config, tick, .. } = self;
        let has_health = can_be_hurt(columns, combat, id);
        if has_health {
            combat.hurt(*tick + 1, &config.combat, columns, id.index(), points);
        }
        has_health
    }

    /// Gives points of health to a player, an npc or a monster, up to those at the start. `false`, and nothing else, for
    /// entities of other types, the dead, and those that do not live.
    pub fn heal(&mut self, id: EntityId, points: u16) -> bool {
        let Self { columns, combat, config, .. } = self;
        let has_health = can_be_hurt(columns, combat, id);
        if has_health {
            combat.heal(&config.combat, columns, id.index(), points);
        }
        has_health
    }

    /// Stops or starts everything that moves by itself.
    pub fn pause_creatures(&mut self, paused: bool) {
        self.creatures.paused = paused;
    }

    /// Everybody in the world, by index, with the place in centimetres.
    pub fn entities(&self) -> impl Iterator<Item = (EntityId, [f64; 3])> + '_ {
        self.columns.iter().map(|id| (id, self.columns.position[id.index()].to_array()))
    }

    /// What an entity is.
    #[must_use]
    pub fn kind(&self, id: EntityId) -> Option<EntityType> {
        self.columns.lives(id).then(|| self.columns.kind[id.index()])
    }

    /// Where an entity is, in centimetres.
    #[must_use]
    pub fn position_cm(&self, id: EntityId) -> Option<[f64; 3]> {
        self.columns.lives(id).then(|| self.columns.position[id.index()].to_array())
    }

    /// Where an entity looks, in degrees from 0 up to 360, growing from X towards Y.
    #[must_use]
    pub fn yaw_degrees(&self, id: EntityId) -> Option<f64> {
        self.kind(id).map(|kind| {
            if is_ballistic(kind) {
                self.columns.attitude[id.index()].yaw_degrees()
            } else {
                f64::from(self.columns.yaw[id.index()]) * (360.0 / 65_536.0)
            }
        })
    }

    /// How an entity moves, in cm/s.
    #[must_use]
    pub fn velocity_cm_per_s(&self, id: EntityId) -> Option<[f64; 3]> {
        self.columns.lives(id).then(|| self.columns.velocity[id.index()].to_array())
    }

    /// Points of health of a player, an npc or a monster, of [`CombatConfig::health`](crate::config::CombatConfig) at the
    /// start; 0 of the dead.
    #[must_use]
    pub fn health(&self, id: EntityId) -> Option<u16> {
        self.kind(id).filter(|kind| combat::fights(*kind)).map(|_| self.combat.health(id))
    }

    /// The state flags of an entity.
    #[must_use]
    pub fn state(&self, id: EntityId) -> Option<EntityState> {
        self.columns.lives(id).then(|| self.columns.state[id.index()])
    }

    /// What the body of an entity does.
    #[must_use]
    pub fn animation(&self, id: EntityId) -> Option<u16> {
        self.columns.lives(id).then(|| self.columns.animation[id.index()])
    }

    /// Health and mana of an entity, as others are told them.
    #[must_use]
    pub fn vitals(&self, id: EntityId) -> Option<Vitals> {
        self.columns.lives(id).then(|| self.columns.vitals[id.index()])
    }

    /// Takes a picture of the last tick.
    pub fn publish(&self, frame: &mut Frame) {
        let owners = (0..).zip(self.players.rows()).map(|(slot, player)| match player {
            None => OwnerRow::default(),
            Some(player) => {
                let index = player.entity.index();
                OwnerRow {
                    entity: Some(player.entity),
                    last_input: player.inputs.processed(),
                    position_cm: self.columns.position[index].to_array(),
                    velocity: Velocity::from_cm_per_s(self.columns.velocity[index].to_array()),
                    yaw: self.columns.yaw[index],
                    state: self.columns.state[index],
                    vitals: self.columns.vitals[index],
                    sees_hidden: self.interest.sees_hidden(slot),
                }
            }
        });
        frame.fill(self.tick, &self.interest, owners);
    }

    /// A fingerprint of everything that is simulated: equal for equal configurations and inputs.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.tick.hash(&mut hasher);
        for id in self.columns.iter() {
            let index = id.index();
            (id, self.interest.is_hidden(id)).hash(&mut hasher);
            (self.columns.kind[index], self.columns.yaw[index]).hash(&mut hasher);
            for value in self.columns.position[index].to_array() {
                value.to_bits().hash(&mut hasher);
            }
            for value in self.columns.velocity[index].to_array() {
                value.to_bits().hash(&mut hasher);
            }
            if is_ballistic(self.columns.kind[index]) {
                self.columns.attitude[index].hash(&mut hasher);
            }
            (self.columns.animation[index], self.columns.state[index], self.columns.vitals[index])
                .hash(&mut hasher);
        }
        hasher.finish()
    }

    /// A point that an entity can be at; `None` of what is not finite.
    fn point(&self, position_cm: [f64; 3]) -> Option<DVec3> {
        let position = DVec3::from_array(position_cm);
        position.is_finite().then(|| movement::within(&self.config.map, position))
    }

    /// Puts an entity into the world.
    fn enter(&mut self, kind: EntityType, position: DVec3) -> Result<EntityId, WorldFull> {
        let id = self.columns.spawn(self.tick, kind, position)?;
        self.combat.enter(&self.config.combat, id);
        Ok(id)
    }

    /// Takes an entity out of the world.
    fn remove(&mut self, id: EntityId) {
        if self.columns.despawn(self.tick, id) {
            // Frames up to this tick have shown it, so it leaves in the next one.
            self.interest.remove(self.tick + 1, id);
            self.creatures.remove(id);
        }
    }

    fn move_players(&mut self) {
        let Self { columns, players, combat, interest, config, tick, .. } = self;
        for player in players.iter_mut() {
            let index = player.entity.index();
            let mut body = body_at(columns, index);
            let mut moved = false;
            let dead = combat.is_dead(player.entity);
            for input in player.inputs.take() {
                // A blow would tell that somebody is there.
                if input.buttons.contains(Buttons::ATTACK) && !interest.is_hidden(player.entity) {
                    combat.attack(*tick, player.entity);
                }
                let input = if dead { Input { yaw: body.yaw, ..Input::default() } } else { input };
                body = movement::step(body, input, &config.movement, &config.map, config.tick_seconds());
                moved = true;
            }
            // Silence keeps nobody in the air; the time in which one fell cannot be caught up with.
            if !moved && !body.is_grounded() {
                let nothing = Input { yaw: body.yaw, ..Input::default() };
                body = movement::step(body, nothing, &config.movement, &config.map, config.tick_seconds());
                player.inputs.forfeit_tick();
                moved = true;
            }
            if moved {
                put_body(columns, index, &body);
            }
        }
    }

    fn move_creatures(&mut self) {
        let Self { columns, creatures, combat, config, tick, .. } = self;
        for (entity, input) in creatures.intentions(*tick) {
            let index = entity.index();
            let body = body_at(columns, index);
            let dead = combat.is_dead(entity);
            let input = if dead { Input { yaw: body.yaw, ..Input::default() } } else { input };
            let body = movement::step(body, input, &config.movement, &config.map, config.tick_seconds());
            put_body(columns, index, &body);
        }
    }

    fn move_ballistic(&mut self) {
        let Self { columns, config, .. } = self;
        for (position, velocity) in columns.ballistic_mut() {
            movement::glide(position, velocity, &config.map, config.tick_seconds());
        }
    }

    fn fight(&mut self) {
        let Self { columns, combat, config, interest, spawn_points, tick, .. } = self;
        let point = || random_point(spawn_points, config.map.size_cm);
        combat.fight(*tick, &config.combat, columns, |id| interest.is_hidden(id), point);
    }

    /// Quantizes everybody and notes what changed, in the order of their indices.
    fn update_interest(&mut self) {
        let Self { columns, interest, config, tick, .. } = self;
        let lattice = config.lattice();
        for id in columns.iter() {
            interest.prefetch(id.index() + ENTITIES_AHEAD);
            let has_turn = interest.has_turn(*tick, id, columns.kind[id.index()]);
            if has_turn && !interest.is_hidden(id) {
                interest.update(*tick, &columns.record(id, lattice));
            }
        }
        let position_of = |id: EntityId| lattice.quantize(columns.position[id.index()].to_array());
        interest.update_hidden(*tick, |id| columns.record(id, lattice), position_of);
        interest.maintain(*tick);
    }

    /// A point on the ground, anywhere on the map.
    fn random_point(&mut self) -> [f64; 3] {
        random_point(&mut self.spawn_points, self.config.map.size_cm)
    }
}

fn can_be_hurt(columns: &Columns, combat: &Combat, id: EntityId) -> bool {
    columns.lives(id) && combat::fights(columns.kind[id.index()]) && !combat.is_dead(id)
}

fn random_point(random: &mut Pcg32, size_cm: f64) -> [f64; 3] {
    let half = size_cm / 2.0;
    [random.random_range(-half..half), random.random_range(-half..half), 0.0]
}

fn body_at(columns: &Columns, index: usize) -> Body {
    Body {
        position: columns.position[index],
        velocity: columns.velocity[index],
        yaw: columns.yaw[index],
        state: columns.state[index],
    }
}

fn put_body(columns: &mut Columns, index: usize, body: &Body) {
    columns.position[index] = body.position;
    columns.velocity[index] = body.velocity;
    columns.yaw[index] = body.yaw;
    columns.state[index] = body.state;
    columns.animation[index] = movement::animation(body.velocity, body.state);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_jumps_and_falls_silent_comes_down() {
        let mut world = World::new(WorldConfig { npcs: 0, ..WorldConfig::default() });
        let player = world.join().unwrap();
        for number in 1..=10 {
            world.input(player, number, Input { buttons: Buttons::JUMP, ..Input::default() });
            world.tick();
        }
        assert!(world.position_cm(player.entity).unwrap()[2] > 30.0);
        (0..120).for_each(|_| world.tick());
        assert_eq!(world.position_cm(player.entity).unwrap()[2], 0.0);
    }

    #[test]
    fn who_is_put_into_the_air_and_falls_silent_comes_down() {
        let mut world = World::new(WorldConfig { npcs: 0, ..WorldConfig::default() });
        let player = world.join().unwrap().entity;
        world.teleport(player, [0.0, 0.0, 1_000.0]);
        world.tick();
        assert!(world.state(player).unwrap().contains(EntityState::AIRBORNE));
        (0..120).for_each(|_| world.tick());
        assert_eq!(world.position_cm(player).unwrap()[2], 0.0);
        assert_eq!(world.state(player), Some(EntityState::NONE));
    }

    #[test]
    fn what_a_world_cannot_have_is_refused_and_changes_nothing() {
        let mut world = World::new(WorldConfig { npcs: 1, ..WorldConfig::default() });
        let player = world.join().unwrap();
        let [item, gone] = [EntityType::Item; 2].map(|kind| world.spawn(kind, [0.0; 3]).unwrap());
        assert!(world.despawn(gone));
        world.tick();
        let before = world.hash();
        for nowhere in [[f64::NAN, 0.0, 0.0], [0.0, f64::INFINITY, 0.0], [0.0, 0.0, f64::NEG_INFINITY]] {
            assert_eq!(world.spawn(EntityType::Item, nowhere), Err(SpawnError::NotFinite));
            assert!(!world.teleport(item, nowhere) && !world.steer(item, nowhere, [0.0; 3]));
        }
        assert_eq!(world.spawn(EntityType::Player, [0.0; 3]), Err(SpawnError::Player));
        assert!(!world.despawn(player.entity), "players go by leaving");
        assert!(!world.reveal(item), "it is not hidden");
        assert!(!world.walk(item, Input::default()) && !world.walk(player.entity, Input::default()));
        assert!(!world.damage(item, 1) && !world.heal(item, 1) && world.health(item).is_none());
        for nobody in [gone, EntityId::NONE, EntityId::new(EntityId::MAX_INDEX, 0)] {
            assert!(!world.despawn(nobody) && !world.teleport(nobody, [0.0; 3]));
            assert!(!world.hide(nobody, &[player]) && !world.reveal(nobody) && !world.is_hidden(nobody));
            assert!(!world.steer(nobody, [0.0; 3], [0.0; 3]) && !world.walk(nobody, Input::default()));
            assert!(!world.damage(nobody, 1) && !world.heal(nobody, 1) && world.health(nobody).is_none());
            assert!(world.position_cm(nobody).is_none() && world.yaw_degrees(nobody).is_none());
        }
        assert_eq!(world.hash(), before);
        assert!(world.is_playing(player) && world.players().eq([player]));
        world.leave(player);
        assert!(!world.is_playing(player) && world.players().next().is_none());
    }

    #[test]
    fn what_lies_outside_of_the_map_is_put_at_its_edge() {
        let mut world = World::new(WorldConfig { npcs: 0, ..WorldConfig::default() });
        let (half, height) = (world.config().map.size_cm / 2.0, world.config().map.height_cm);
        let far = [f64::MAX, -1e9, 1e9];
        let chest = world.spawn(EntityType::Environment, far).unwrap();
        let player = world.join().unwrap().entity;
        assert!(world.teleport(player, far));
        for id in [chest, player] {
            assert_eq!(world.position_cm(id), Some([half, -half, height]));
        }
        world.tick();
        assert!(world.teleport(chest, [0.0, 0.0, -5.0]));
        assert_eq!(world.position_cm(chest), Some([0.0; 3]));
    }

    #[test]
    fn who_is_told_to_walk_does_so_until_told_otherwise() {
        let mut world = World::new(WorldConfig { npcs: 1, ..WorldConfig::default() });
        let npc = world.entities().next().unwrap().0;
        let monster = world.spawn(EntityType::Monster, [0.0; 3]).unwrap();
        assert!(world.teleport(npc, [0.0; 3]));
        // To the right, for longer than any course of one that wanders.
        let walk = Input { forward: 127, yaw: 16_384, ..Input::default() };
        for id in [npc, monster] {
            assert!(world.walk(id, walk));
        }
        (0..600).for_each(|_| world.tick());
        for id in [npc, monster] {
            let [x, y, _] = world.position_cm(id).unwrap();
            assert!(x.abs() < 1e-6 && (y - 6_000.0).abs() < 1e-6, "{x} {y}");
            assert_eq!((world.yaw_degrees(id), world.animation(id)), (Some(90.0), Some(1)));
            let [_, speed, _] = world.velocity_cm_per_s(id).unwrap();
            assert!((speed - 600.0).abs() < 1e-6);
        }
        assert!(world.walk(npc, Input::default()) && world.despawn(monster));
        let before = world.position_cm(npc);
        (0..600).for_each(|_| world.tick());
        assert_eq!(world.position_cm(npc), before);
        // Its row went with it, and others keep theirs.
        let next = world.spawn(EntityType::Monster, [0.0; 3]).unwrap();
        assert!(world.walk(next, walk) && world.despawn(npc) && world.walk(next, Input::default()));
        world.tick();
        assert_eq!(world.position_cm(next), Some([0.0; 3]));
    }

    #[test]
    fn damage_kills_and_healing_has_a_limit() {
        let mut world = World::new(WorldConfig { npcs: 0, ..WorldConfig::default() });
        let full = world.config().combat.health;
        let monster = world.spawn(EntityType::Monster, [0.0; 3]).unwrap();
        assert!(world.damage(monster, full - 10) && world.heal(monster, 5));
        assert_eq!(world.health(monster), Some(15));
        assert!(world.state(monster).unwrap().contains(EntityState::IN_COMBAT));
        assert!(world.heal(monster, u16::MAX));
        assert_eq!((world.health(monster), world.vitals(monster)), (Some(full), Some(Vitals::FULL)));
        assert!(world.damage(monster, u16::MAX));
        assert_eq!((world.health(monster), world.vitals(monster).unwrap().health), (Some(0), 0));
        assert!(!world.heal(monster, 1) && !world.damage(monster, 1), "the dead are left alone");
        (0..world.config().combat.dead_ticks).for_each(|_| world.tick());
        assert!(world.state(monster).unwrap().contains(EntityState::DEAD));
        world.tick();
        assert_eq!((world.health(monster), world.state(monster)), (Some(full), Some(EntityState::NONE)));
    }

    #[test]
    fn what_is_steered_goes_on_until_the_edge_and_shows_three_angles() {
        let config = WorldConfig { npcs: 0, ..WorldConfig::default() };
        let (half, top) = (config.map.size_cm / 2.0, config.movement.vehicle_cm_per_s);
        let mut world = World::new(config);
        let ship = world.spawn(EntityType::Vehicle, [half - 200.0, 0.0, 5_000.0]).unwrap();
        let walker = world.spawn(EntityType::Npc, [0.0; 3]).unwrap();
        assert!(!world.steer(walker, [100.0, 0.0, 0.0], [0.0; 3]));
        assert!(!world.steer(ship, [f64::NAN, 0.0, 0.0], [0.0; 3]));
        assert!(world.steer(ship, [2.0 * top, 0.0, 0.0], [90.0, -30.0, 45.0]));
        world.tick();
        world.tick();
        let [x, y, z] = world.position_cm(ship).unwrap();
        assert!((x - half + 200.0 - top / 30.0).abs() < 1e-6 && [y, z] == [0.0, 5_000.0], "{x} {y} {z}");
        let seen = |world: &World| {
            let mut frame = Frame::new(world.config());
            world.publish(&mut frame);
            frame.all_pages().find_map(|page| page.rows().find(|row| row.record.id == ship).copied()).unwrap()
        };
        let row = seen(&world);
        assert_eq!(row.record.rotation, Rotation::from_degrees(90.0, -30.0, 45.0));
        assert_eq!(row.record.velocity.to_cm_per_s(), [top, 0.0, 0.0]);
        assert_eq!((row.changed[0], row.hurried, row.teleported), (2, 1, 1), "{row:?}");
        (0..60).for_each(|_| world.tick());
        assert_eq!(world.position_cm(ship), Some([half, 0.0, 5_000.0]));
        assert_eq!(seen(&world).record.velocity, Velocity::default());
        world.despawn(ship);
        assert!(!world.steer(ship, [0.0; 3], [0.0; 3]));
    }

    #[test]
    fn types_are_looked_at_as_often_as_configured() {
        let mut config = WorldConfig { npcs: 0, ..WorldConfig::default() };
        config.look_periods[EntityType::Vehicle as usize] = 6;
        let mut world = World::new(config);
        let ids =
            [EntityType::Vehicle, EntityType::Projectile].map(|kind| world.spawn(kind, [0.0; 3]).unwrap());
        ids.iter().for_each(|&id| assert!(world.steer(id, [5_000.0, 0.0, 0.0], [0.0; 3])));
        let mut frame = Frame::new(world.config());
        let mut changes = [[0; 2]; 2];
        for tick in 1..=61 {
            world.tick();
            world.publish(&mut frame);
            for row in frame.all_pages().flat_map(|page| page.rows().collect::<Vec<_>>()) {
                let nth = usize::from(row.record.id == ids[1]);
                changes[nth][0] += u32::from(tick > 1 && row.changed[0] == tick);
                changes[nth][1] += u32::from(tick > 1 && row.hurried.max(row.teleported) == tick);
            }
        }
        assert_eq!(changes, [[10, 0], [60, 0]], "of the vehicle and the projectile: changes, hurried ones");
    }

    #[test]
    fn the_same_seed_and_inputs_give_the_same_world() {
        let run = |seed| {
            let mut world = World::new(WorldConfig { seed, ..WorldConfig::default() });
            let player = world.join().unwrap();
            for number in 1..=200 {
                world.input(
                    player,
                    number,
                    Input { forward: 127, yaw: number as u16 * 300, ..Input::default() },
                );
                world.tick();
            }
            world.hash()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }
}
