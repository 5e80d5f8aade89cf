//! However many there are to see, a client is shown as many pages as it can hold.

use shadowland_wire::codec::Writer;
use shadowland_wire::entity::EntityType;
use shadowland_wire::limits::{CLIENT_ENTITIES, PAGE_SLOTS};
use shadowland_world::replication::{Encoder, Frame, Viewer};
use shadowland_world::{PlayerHandle, World, WorldConfig, sight};

/// As far as by default, but for effects, which are seen as far as players.
fn distance_cm(kind: EntityType) -> f64 {
    sight::default_distance_cm(if kind == EntityType::Effect { EntityType::Player } else { kind })
}

/// A player in the middle of four layers of small cells, with somebody in each within sight.
fn crowded_world() -> (World, PlayerHandle) {
    let mut config = WorldConfig { npcs: 0, ..WorldConfig::default() };
    config.layers = sight::layers(distance_cm, 16.0);
    let mut world = World::new(config);
    let player = world.join().unwrap();
    world.teleport(player.entity, [0.0; 3]);
    for kind in [EntityType::Item, EntityType::Npc, EntityType::Effect, EntityType::Projectile] {
        let distance = distance_cm(kind);
        let edge = distance / 16.0;
        for (x, y) in (-16..=16).flat_map(|x| (-16..=16).map(move |y| (f64::from(x), f64::from(y)))) {
            if x.hypot(y) < 15.5 {
                world.spawn(kind, [x * edge, y * edge, 0.0]).unwrap();
            }
        }
    }
    (world, player)
}

#[test]
fn a_client_is_shown_as_many_pages_as_it_can_hold() {
    let (mut world, player) = crowded_world();
    let most = (CLIENT_ENTITIES / PAGE_SLOTS) as u64;
    assert!(world.entity_count() as u64 > most + 200);
    let mut frame = Frame::new(world.config());
    let (mut encoder, mut viewer) = (Encoder::new(), Viewer::new(player));
    let mut sequence = 0;
    for _ in 0..6 {
        world.tick();
        world.publish(&mut frame);
        let mut snapshot = viewer.snapshot(&frame, &mut encoder, 1_000, 1 << 20).unwrap();
        while snapshot.wants_packet() {
            let mut buffer = [0; 1_150];
            snapshot.write(&mut Writer::new(&mut buffer)).unwrap();
            sequence += 1;
            snapshot.sent(sequence);
        }
    }
    assert_eq!(viewer.stats().blocks, most);
    assert!(viewer.stats().unseen > 200, "{:?}", viewer.stats());
}
