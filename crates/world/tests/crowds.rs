//! What a viewer sees of a crowd that comes and goes.

use std::collections::VecDeque;

use shadowland_wire::codec::Writer;
use shadowland_wire::entity::EntityType;
use shadowland_world::interest::TOMBSTONE_TICKS;
use shadowland_world::replication::{CrowdDetail, Encoder, Frame, Viewer};
use shadowland_world::{World, WorldConfig};

/// Ticks from a packet to its answer.
const ROUND_TRIP: u32 = 4;

/// A viewer on a link that loses nothing.
struct Scene {
    world: World,
    frame: Frame,
    encoder: Encoder,
    viewer: Viewer,
    sequence: u64,
    answers: VecDeque<(u32, u64)>,
}

impl Scene {
    fn new(config: WorldConfig) -> Self {
        let mut world = World::new(config);
        let player = world.join().unwrap();
        world.teleport(player.entity, [0.0; 3]);
        let frame = Frame::new(world.config());
        let (encoder, viewer) = (Encoder::new(), Viewer::new(player));
        Self { world, frame, encoder, viewer, sequence: 0, answers: VecDeque::new() }
    }

    fn run(&mut self, ticks: u32) {
        for _ in 0..ticks {
            self.world.tick();
            self.world.publish(&mut self.frame);
            let now = self.frame.tick();
            while let Some((_, sequence)) = self.answers.pop_front_if(|(due, _)| *due <= now) {
                self.viewer.acked(sequence);
            }
            let snapshot = self.viewer.snapshot(&self.frame, &mut self.encoder, ROUND_TRIP, 1 << 16);
            let mut snapshot = snapshot.unwrap();
            while snapshot.wants_packet() {
                snapshot.write(&mut Writer::new(&mut [0; 1_150])).unwrap();
                self.sequence += 1;
                snapshot.sent(self.sequence);
                self.answers.push_back((now + ROUND_TRIP, self.sequence));
            }
        }
    }
}

#[test]
fn where_a_crowd_was_its_released_pages_leave_nothing_behind() {
    let mut scene = Scene::new(WorldConfig { npcs: 0, crowd_entities: 100, ..WorldConfig::default() });
    let mut vehicles: Vec<_> =
        (0..240).map(|_| scene.world.spawn(EntityType::Vehicle, [0.0; 3]).unwrap()).collect();
    scene.run(60);
    assert_eq!(scene.viewer.crowd_detail(), CrowdDetail::Dense);
    // Still a crowd, but its last pages stay empty and are released.
    vehicles.drain(100..).for_each(|vehicle| scene.world.despawn(vehicle));
    scene.run(2 * TOMBSTONE_TICKS);
    assert_eq!(scene.viewer.crowd_detail(), CrowdDetail::Dense);
    vehicles.drain(40..).for_each(|vehicle| scene.world.despawn(vehicle));
    scene.run(60);
    assert_eq!(scene.viewer.crowd_detail(), CrowdDetail::Full);
    for _ in 0..200 {
        scene.world.spawn(EntityType::Vehicle, [0.0; 3]).unwrap();
    }
    scene.run(60);
    assert_eq!(scene.viewer.crowd_detail(), CrowdDetail::Dense, "pages that come back are seen again");
}
