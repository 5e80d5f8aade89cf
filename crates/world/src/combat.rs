//! Fighting, the simplest kind: who attacks hits the nearest other in reach. Who has no health left lies dead for a
//! while, and rises again somewhere else.

use glam::DVec3;
use shadowland_wire::entity::{EntityId, EntityState, EntityType};
use shadowland_wire::quantize::Vitals;

use crate::Tick;
use crate::columns::Columns;
use crate::config::CombatConfig;
use crate::movement;

/// What bodies look like that fight.
const STRIKE: u16 = 4;
const DEAD: u16 = 5;
/// How long a blow is to be seen.
const STRIKE_TICKS: Tick = 20;

/// Everybody's health, and who is about to strike.
#[derive(Debug)]
pub(crate) struct Combat {
    fighters: Vec<Fighter>,
    /// Those who attack in this tick, in the order in which they were heard.
    attackers: Vec<EntityId>,
    /// The dead whose time is over; scratch.
    risen: Vec<EntityId>,
    grid: Grid,
}

#[derive(Debug, Clone, Copy)]
struct Fighter {
    health: u16,
    /// When the next blow is possible.
    ready_at: Tick,
    /// When its last blow is no longer seen; 0 = it is not.
    strike_until: Tick,
    /// When it is no longer in combat; 0 = it is not.
    combat_until: Tick,
    /// When it rises; 0 = it lives.
    rises_at: Tick,
}

impl Combat {
    pub(crate) fn new(config: &CombatConfig, indices: usize) -> Self {
        Self {
            fighters: vec![Fighter::fresh(config); indices],
            attackers: Vec::with_capacity(indices),
            risen: Vec::with_capacity(indices),
            grid: Grid::new(config.reach_cm, indices),
        }
    }

    /// Somebody came into the world.
    pub(crate) fn enter(&mut self, config: &CombatConfig, id: EntityId) {
        self.fighters[id.index()] = Fighter::fresh(config);
    }

    pub(crate) fn is_dead(&self, id: EntityId) -> bool {
        self.fighters[id.index()].rises_at != 0
    }

    /// Points of health; none of the dead.
    pub(crate) fn health(&self, id: EntityId) -> u16 {
        self.fighters[id.index()].health
    }

    /// Takes points of health from somebody who is not dead, as a blow does.
    pub(crate) fn hurt(
        &mut self,
        now: Tick,
        config: &CombatConfig,
        columns: &mut Columns,
        index: usize,
        points: u16,
    ) {
        self.involve(now, config, columns, index);
        let victim = &mut self.fighters[index];
        victim.health = victim.health.saturating_sub(points);
        if victim.health == 0 {
            victim.rises_at = now + config.dead_ticks;
            columns.state[index] = columns.state[index].with(EntityState::DEAD, true);
        }
        self.show_health(config, columns, index);
    }

    /// Gives points of health to somebody who is not dead.
    pub(crate) fn heal(&mut self, config: &CombatConfig, columns: &mut Columns, index: usize, points: u16) {
        let fighter = &mut self.fighters[index];
        fighter.health = fighter.health.saturating_add(points).min(config.health);
        self.show_health(config, columns, index);
    }

    /// Somebody wants to strike.
    pub(crate) fn attack(&mut self, now: Tick, id: EntityId) {
        let fighter = &self.fighters[id.index()];
        if fighter.rises_at == 0 && fighter.ready_at <= now && self.attackers.last() != Some(&id) {
            self.attackers.push(id);
        }
    }

    /// The blows of a tick, and what becomes of those before: who is no longer in combat, and who rises, at a
    /// point that `point` gives. The hidden are not hit, for that would tell where they are.
    pub(crate) fn fight(
        &mut self,
        now: Tick,
        config: &CombatConfig,
        columns: &mut Columns,
        is_hidden: impl Fn(EntityId) -> bool,
        mut point: impl FnMut() -> [f64; 3],
    ) {
        if !self.attackers.is_empty() {
            self.grid.fill(columns, |id| self.fighters[id.index()].rises_at == 0 && !is_hidden(id));
            for at in 0..self.attackers.len() {
                self.strike(now, config, columns, self.attackers[at]);
            }
            self.attackers.clear();
        }
        let Columns { id: ids, velocity, state, animation, .. } = &mut *columns;
        for id in ids.iter().copied().flatten() {
            let index = id.index();
            let fighter = &mut self.fighters[index];
            if fighter.combat_until != 0 && fighter.combat_until <= now {
                fighter.combat_until = 0;
                state[index] = state[index].with(EntityState::IN_COMBAT, false);
            }
            if fighter.rises_at != 0 {
                animation[index] = DEAD;
                if fighter.rises_at <= now {
                    self.risen.push(id);
                }
            } else if fighter.strike_until > now {
                animation[index] = STRIKE;
            } else if fighter.strike_until != 0 {
                fighter.strike_until = 0;
                // Nobody else ends the blow of somebody who has fallen silent.
                animation[index] = movement::animation(velocity[index], state[index]);
            }
        }
        for id in self.risen.drain(..) {
            let index = id.index();
            self.fighters[index] = Fighter::fresh(config);
            columns.position[index] = DVec3::from_array(point());
            columns.velocity[index] = DVec3::ZERO;
            columns.state[index] = EntityState::NONE;
            columns.animation[index] = 0;
            columns.vitals[index] = Vitals::FULL;
        }
    }

    fn strike(&mut self, now: Tick, config: &CombatConfig, columns: &mut Columns, id: EntityId) {
        let attacker = &mut self.fighters[id.index()];
        // It may have been killed by a blow of this tick.
        if attacker.rises_at != 0 {
            return;
        }
        attacker.ready_at = now + config.cooldown_ticks;
        attacker.strike_until = now + STRIKE_TICKS;
        let fighters = &self.fighters;
        let lives = |index: usize| fighters[index].rises_at == 0;
        let Some(target) = self.grid.nearest(columns, id.index(), config.reach_cm, lives) else { return };
        self.involve(now, config, columns, id.index());
        self.hurt(now, config, columns, target, config.damage);
    }

    /// Somebody is in combat, from now on.
    fn involve(&mut self, now: Tick, config: &CombatConfig, columns: &mut Columns, index: usize) {
        self.fighters[index].combat_until = now + config.combat_ticks;
        columns.state[index] = columns.state[index].with(EntityState::IN_COMBAT, true);
    }

    fn show_health(&self, config: &CombatConfig, columns: &mut Columns, index: usize) {
        let health = f64::from(self.fighters[index].health) / f64::from(config.health);
        let mana = f64::from(columns.vitals[index].mana) / 255.0;
        columns.vitals[index] = Vitals::from_shares(health, mana);
    }
}

impl Fighter {
    fn fresh(config: &CombatConfig) -> Self {
        Self { health: config.health, ready_at: 0, strike_until: 0, combat_until: 0, rises_at: 0 }
    }
}

/// Whether entities of a type have health to lose.
pub(crate) fn fights(kind: EntityType) -> bool {
    matches!(kind, EntityType::Player | EntityType::Npc | EntityType::Monster)
}

/// How many a blow looks at to find its target. In a crowd of one on a square metre, 56 stand in nine squares.
const LOOKS: u32 = 512;

/// Who can be hit, by place: squares as long as a reach, hashed into lists.
#[derive(Debug)]
struct Grid {
    edge_cm: f64,
    /// The first of each list, as index and one; 0 = none.
    heads: Vec<u32>,
    /// Who comes after, by index.
    next: Vec<u32>,
}

impl Grid {
    fn new(edge_cm: f64, indices: usize) -> Self {
        Self { edge_cm, heads: vec![0; indices.next_power_of_two()], next: vec![0; indices] }
    }

    fn fill(&mut self, columns: &Columns, can_be_hit: impl Fn(EntityId) -> bool) {
        self.heads.fill(0);
        for id in columns.iter() {
            let index = id.index();
            if fights(columns.kind[index]) && can_be_hit(id) {
                let list = self.list(self.square(columns.position[index]));
                self.next[index] = std::mem::replace(&mut self.heads[list], index as u32 + 1);
            }
        }
    }

    /// The nearest other one within reach, of the first [`LOOKS`] in its squares: so that many in one heap do not cost
    /// the square of their number.
    fn nearest(
        &self,
        columns: &Columns,
        from: usize,
        reach_cm: f64,
        lives: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let here = columns.position[from];
        let [x, y] = self.square(here);
        let mut best = (reach_cm * reach_cm, usize::MAX);
        let mut looks = LOOKS;
        // Far outside of 2^31 squares all are one, whose neighbours are anywhere: the distance tells.
        let at = |dx, dy| [x.wrapping_add(dx), y.wrapping_add(dy)];
        for square in (-1..=1).flat_map(|dy| (-1..=1).map(move |dx| at(dx, dy))) {
            let mut at = self.heads[self.list(square)];
            while let Some(index) = at.checked_sub(1).map(|index| index as usize).filter(|_| looks > 0) {
                looks -= 1;
                at = self.next[index];
                let distance = columns.position[index].distance_squared(here);
                // Lists of several squares may be one; who is as far away is hit by its index.
                if index != from && (distance, index) < best && lives(index) {
                    best = (distance, index);
                }
            }
        }
        (best.1 != usize::MAX).then_some(best.1)
    }

    fn square(&self, position: DVec3) -> [i32; 2] {
        [(position.x / self.edge_cm).floor() as i32, (position.y / self.edge_cm).floor() as i32]
    }

    fn list(&self, [x, y]: [i32; 2]) -> usize {
        let mixed = (x as u32).wrapping_mul(0x9e37_79b9) ^ (y as u32).wrapping_mul(0x85eb_ca6b);
        (mixed ^ mixed >> 15) as usize & (self.heads.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use shadowland_wire::message::client::{Buttons, Input};

    use super::*;
    use crate::{World, WorldConfig, sight};

    #[test]
    fn who_is_hit_often_enough_dies_and_rises() {
        let config = WorldConfig { npcs: 0, ..WorldConfig::default() };
        let blows = u32::from(config.combat.health.div_ceil(config.combat.damage));
        let (cooldown, dead) = (config.combat.cooldown_ticks, config.combat.dead_ticks);
        let mut world = World::new(config);
        let (attacker, victim) = (world.join().unwrap(), world.join().unwrap());
        let bystander = world.spawn(EntityType::Item, [100.0, 0.0, 0.0]).unwrap();
        world.teleport(attacker.entity, [0.0; 3]);
        world.teleport(victim.entity, [150.0, 0.0, 0.0]);
        let state =
            |world: &World, id: EntityId| (world.vitals(id).unwrap().health, world.state(id).unwrap());
        let ticks = (blows - 1) * cooldown + 1;
        for number in 1..=ticks {
            assert!(!state(&world, victim.entity).1.contains(EntityState::DEAD), "tick {number}");
            world.input(attacker, number, Input { buttons: Buttons::ATTACK, ..Input::default() });
            world.tick();
        }
        let (health, flags) = state(&world, victim.entity);
        assert_eq!(health, 0);
        assert!(flags.contains(EntityState::DEAD) && flags.contains(EntityState::IN_COMBAT));
        assert_eq!(state(&world, bystander), (255, EntityState::NONE));
        assert_eq!(state(&world, attacker.entity), (255, EntityState::IN_COMBAT));
        // The dead do not walk.
        world.input(victim, 1, Input { forward: 127, ..Input::default() });
        (1..dead).for_each(|_| world.tick());
        assert_eq!(world.position_cm(victim.entity), Some([150.0, 0.0, 0.0]));
        world.tick();
        assert_eq!(state(&world, victim.entity), (255, EntityState::NONE));
        assert_ne!(world.position_cm(victim.entity), Some([150.0, 0.0, 0.0]));
    }

    #[test]
    fn a_blow_ends_even_if_its_striker_falls_silent() {
        let mut world = World::new(WorldConfig { npcs: 0, ..WorldConfig::default() });
        let striker = world.join().unwrap();
        let attack = Input { buttons: Buttons::ATTACK, forward: 127, ..Input::default() };
        world.input(striker, 1, attack);
        for tick in 0..=STRIKE_TICKS {
            world.tick();
            let expected = if tick < STRIKE_TICKS { STRIKE } else { 1 };
            assert_eq!(world.animation(striker.entity), Some(expected), "tick {tick}");
        }
    }

    #[test]
    fn blows_reach_far_out_on_the_largest_map() {
        let mut config = WorldConfig { npcs: 0, lattice_step_cm: 100.0, ..WorldConfig::default() };
        config.map.size_cm = 100.0 * f64::from(1 << 29);
        config.layers = sight::layers(|_| 100_000_000.0, 2.0);
        config.combat.reach_cm = 1.0;
        assert_eq!(config.check(), Ok(()));
        let edge = config.map.size_cm / 2.0;
        let mut world = World::new(config);
        for corner in [[edge, edge, 0.0], [-edge, -edge, 0.0]] {
            let (attacker, victim) = (world.join().unwrap(), world.join().unwrap());
            world.teleport(attacker.entity, corner);
            world.teleport(victim.entity, corner);
            world.input(attacker, 1, Input { buttons: Buttons::ATTACK, ..Input::default() });
            world.tick();
            assert!(world.vitals(victim.entity).unwrap().health < 255, "at {corner:?}");
        }
    }

    #[test]
    fn the_nearest_in_reach_is_found() {
        let mut columns = Columns::new(400, 0);
        let at = |n: u32| DVec3::new(f64::from(n * 37 % 1_000), f64::from(n * 91 % 1_000), 0.0);
        for n in 0..400 {
            columns.spawn(1, EntityType::Player, at(n)).unwrap();
        }
        let mut grid = Grid::new(60.0, columns.position.len());
        grid.fill(&columns, |_| true);
        let mut found = 0;
        for from in 0..400 {
            let distance = |index: usize| columns.position[index].distance_squared(columns.position[from]);
            let expected = (0..400)
                .filter(|&index| index != from && distance(index) < 3_600.0)
                .min_by(|&a, &b| distance(a).total_cmp(&distance(b)).then(a.cmp(&b)));
            assert_eq!(grid.nearest(&columns, from, 60.0, |_| true), expected, "from {from}");
            found += usize::from(expected.is_some());
        }
        assert!(found > 100, "{found}");
    }
}
