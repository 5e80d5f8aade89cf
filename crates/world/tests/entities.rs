//! The pool of entities: a fixed capacity, a clear refusal, and nothing allocated for anybody who comes or goes.

use shadowland_wire::entity::{EntityId, EntityType};
use shadowland_world::replication::Frame;
use shadowland_world::{SpawnError, World, WorldConfig, WorldFull};

const CAPACITY: usize = 200;

/// The types of what nobody plays.
const LOOSE: [EntityType; 7] = [
    EntityType::Npc,
    EntityType::Monster,
    EntityType::Projectile,
    EntityType::Environment,
    EntityType::Item,
    EntityType::Effect,
    EntityType::Vehicle,
];

fn config() -> WorldConfig {
    let mut config =
        WorldConfig { npcs: 0, player_capacity: 1, entity_capacity: CAPACITY, ..WorldConfig::default() };
    config.map.size_cm = 50_000.0;
    config
}

#[test]
fn a_full_world_says_so_until_somebody_leaves() {
    let mut world = World::new(config());
    let kinds = LOOSE.into_iter().cycle();
    let all: Vec<_> = kinds.take(CAPACITY - 1).map(|kind| world.spawn(kind, [0.0; 3]).unwrap()).collect();
    let refused = world.spawn(EntityType::Item, [0.0; 3]).unwrap_err();
    assert_eq!(refused, SpawnError::Full);
    assert!(refused.to_string().contains("raise `entity_capacity`"), "{refused}");
    // The player's place was kept.
    assert!(world.join().is_ok());
    assert_eq!((world.join(), world.entity_count()), (Err(WorldFull), CAPACITY));
    assert_eq!(world.spawn(EntityType::Item, [0.0; 3]), Err(SpawnError::Full));
    assert!(world.despawn(all[7]));
    assert!(world.spawn(EntityType::Item, [0.0; 3]).is_ok());
    assert_eq!(world.spawn(EntityType::Item, [0.0; 3]), Err(SpawnError::Full));
}

/// However fast others come and go, so that indices run out: players find room.
#[test]
fn nobody_takes_the_places_of_players() {
    let mut world = World::new(config());
    for _ in 0..10 {
        while let Ok(id) = world.spawn(EntityType::Projectile, [0.0; 3]) {
            assert!(world.despawn(id));
        }
        let player = world.join().unwrap();
        world.leave(player);
        // Longer than an index rests.
        (0..1_100).for_each(|_| world.tick());
    }
}

#[test]
fn all_players_can_come_back_at_once() {
    let full = WorldConfig { player_capacity: CAPACITY, ..config() };
    let mut world = World::new(full);
    let all: Vec<_> = (0..CAPACITY).map(|_| world.join().unwrap()).collect();
    world.tick();
    all.into_iter().for_each(|player| world.leave(player));
    let back = (0..CAPACITY).filter(|_| world.join().is_ok()).count();
    assert_eq!((back, world.entity_count()), (CAPACITY, CAPACITY));
}

/// Others have come and gone so fast that indices ran out, and do so all the time: it makes no difference to players.
#[test]
fn all_players_can_come_back_at_once_whatever_others_do() {
    let mut world = World::new(WorldConfig { player_capacity: CAPACITY / 2, ..config() });
    let churn = |world: &mut World| {
        while let Ok(id) = world.spawn(EntityType::Projectile, [0.0; 3]) {
            assert!(world.despawn(id));
        }
    };
    churn(&mut world);
    let mut all: Vec<_> = (0..CAPACITY / 2).map(|_| world.join().unwrap()).collect();
    for _ in 0..3 {
        churn(&mut world);
        for player in &mut all {
            world.leave(*player);
            churn(&mut world);
            *player = world.join().unwrap();
        }
        // Until what they left has rested.
        for _ in 0..1_100 {
            world.tick();
            churn(&mut world);
        }
        all.iter().for_each(|player| world.leave(*player));
        churn(&mut world);
        all.iter_mut().for_each(|player| *player = world.join().unwrap());
        (0..1_100).for_each(|_| world.tick());
    }
}

/// Some of each type come, everybody is moved, and every few ticks some go.
fn turn(world: &mut World, frame: &mut Frame, living: &mut Vec<EntityId>, tick: u32) {
    for (nth, kind) in (0..).zip(LOOSE) {
        let point = [f64::from(tick % 97) * 250.0, f64::from(nth) * 900.0 - 4_000.0, 0.0];
        living.extend(world.spawn(kind, point));
    }
    if living.len() > CAPACITY / 2 {
        living.drain(..40).for_each(|id| assert!(world.despawn(id)));
    }
    for id in living {
        let [x, y, z] = world.position_cm(*id).expect("it lives");
        world.teleport(*id, [-x, y, z]);
    }
    world.tick();
    world.publish(frame);
}

#[test]
fn coming_moving_and_going_allocate_nothing() {
    let mut world = World::new(config());
    let mut frame = Frame::new(world.config());
    let mut living = Vec::with_capacity(CAPACITY);
    // Longer than an index rests, and pages stay.
    (0..4_000).for_each(|tick| turn(&mut world, &mut frame, &mut living, tick));
    let allocated = allocation_counter::measure(|| {
        (4_000..5_000).for_each(|tick| turn(&mut world, &mut frame, &mut living, tick));
    });
    assert_eq!(allocated.count_total, 0);
    assert!(living.len() > 50, "{}: the indices rest for too long for this test", living.len());
}
