//! What a viewer sees of a crowd that comes and goes.

mod common;

use common::Scene;
use shadowland_wire::entity::EntityType;
use shadowland_world::WorldConfig;
use shadowland_world::interest::TOMBSTONE_TICKS;
use shadowland_world::replication::CrowdDetail;

/// Ticks without loss.
fn run(scene: &mut Scene, ticks: u32) {
    for _ in 0..ticks {
        scene.tick(1 << 16, false);
    }
}

#[test]
fn where_a_crowd_was_its_released_pages_leave_nothing_behind() {
    let mut scene = Scene::new(WorldConfig { npcs: 0, crowd_entities: 100, ..WorldConfig::default() });
    let mut vehicles: Vec<_> =
        (0..240).map(|_| scene.world.spawn(EntityType::Vehicle, [0.0; 3]).unwrap()).collect();
    run(&mut scene, 60);
    assert_eq!(scene.viewer.crowd_detail(), CrowdDetail::Dense);
    // Still a crowd, but its last pages stay empty and are released.
    vehicles.drain(100..).for_each(|vehicle| assert!(scene.world.despawn(vehicle)));
    run(&mut scene, 2 * TOMBSTONE_TICKS);
    assert_eq!(scene.viewer.crowd_detail(), CrowdDetail::Dense);
    vehicles.drain(40..).for_each(|vehicle| assert!(scene.world.despawn(vehicle)));
    run(&mut scene, 60);
    assert_eq!(scene.viewer.crowd_detail(), CrowdDetail::Full);
    for _ in 0..200 {
        scene.world.spawn(EntityType::Vehicle, [0.0; 3]).unwrap();
    }
    run(&mut scene, 60);
    assert_eq!(scene.viewer.crowd_detail(), CrowdDetail::Dense, "pages that come back are seen again");
}
