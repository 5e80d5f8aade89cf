//! Pages whose viewer is equally far with them go in step: their blocks start from the last turn of their group.

use std::collections::VecDeque;

use shadowland_wire::codec::Writer;
use shadowland_wire::entity::{EntityId, EntityType};
use shadowland_world::replication::{Encoder, Frame, Viewer, ViewerStats};
use shadowland_world::{World, WorldConfig};

/// Ticks from a packet to its answer.
const ROUND_TRIP: u64 = 4;

/// A viewer among vehicles that drive to and fro, and the answers that are on their way to it.
struct Scene {
    world: World,
    vehicles: Vec<EntityId>,
    frame: Frame,
    encoder: Encoder,
    viewer: Viewer,
    sequence: u64,
    answers: VecDeque<(u64, u64)>,
}

impl Scene {
    fn new() -> Self {
        let mut world = World::new(WorldConfig { npcs: 0, ..WorldConfig::default() });
        let player = world.join().unwrap();
        world.teleport(player.entity, [0.0; 3]);
        let places = (-4..=4).flat_map(|x| (-4..=4).map(move |y| (f64::from(x), f64::from(y))));
        let vehicles = places
            .map(|(x, y)| world.spawn(EntityType::Vehicle, [x * 15_000.0, y * 15_000.0, 0.0]).unwrap())
            .collect();
        let frame = Frame::new(world.config());
        let (encoder, viewer) = (Encoder::new(), Viewer::new(player));
        Self { world, vehicles, frame, encoder, viewer, sequence: 0, answers: VecDeque::new() }
    }

    /// One tick; `budget_bytes` is for blocks, and of what is sent nothing arrives if `lost`. Gives what was sent.
    fn tick(&mut self, budget_bytes: usize, lost: bool) -> ViewerStats {
        let direction = if (self.world.now() / 8).is_multiple_of(2) { 1.0 } else { -1.0 };
        for &vehicle in &self.vehicles {
            assert!(self.world.steer(vehicle, [direction * 500.0, 0.0, 0.0], [0.0; 3]));
        }
        self.world.tick();
        self.world.publish(&mut self.frame);
        let now = u64::from(self.frame.tick());
        while let Some((_, sequence)) = self.answers.pop_front_if(|(due, _)| *due <= now) {
            self.viewer.acked(sequence);
        }
        let before = self.viewer.stats();
        let rtt = ROUND_TRIP as u32;
        let mut snapshot = self.viewer.snapshot(&self.frame, &mut self.encoder, rtt, budget_bytes).unwrap();
        while snapshot.wants_packet() {
            let mut buffer = [0; 1_150];
            snapshot.write(&mut Writer::new(&mut buffer)).unwrap();
            self.sequence += 1;
            snapshot.sent(self.sequence);
            if !lost {
                self.answers.push_back((now + ROUND_TRIP, self.sequence));
            }
        }
        drop(snapshot);
        let after = self.viewer.stats();
        ViewerStats {
            blocks: after.blocks - before.blocks,
            in_step: after.in_step - before.in_step,
            deferred: after.deferred - before.deferred,
            ..after
        }
    }

    /// Ticks without loss; gives blocks, and of those the ones in step.
    fn run(&mut self, ticks: usize) -> (u64, u64) {
        (0..ticks)
            .map(|_| self.tick(1 << 16, false))
            .fold((0, 0), |sum, stats| (sum.0 + stats.blocks, sum.1 + stats.in_step))
    }
}

#[test]
fn what_a_viewer_has_seen_for_a_while_goes_in_step() {
    let mut scene = Scene::new();
    let (blocks, in_step) = scene.run(4);
    assert!(blocks > 0 && in_step == 0, "{in_step} of {blocks} before the first answer");
    scene.run(40);
    let (blocks, in_step) = scene.run(60);
    assert!(blocks > 100 && in_step * 10 > blocks * 9, "{in_step} of {blocks}");
}

#[test]
fn a_loss_keeps_pages_in_step_and_an_outage_does_not() {
    let mut scene = Scene::new();
    scene.run(60);
    scene.tick(1 << 16, true);
    let (blocks, in_step) = scene.run(30);
    assert!(in_step * 10 > blocks * 9, "{in_step} of {blocks} after a lost packet");
    let outage: Vec<_> = (0..40).map(|_| scene.tick(1 << 16, true).in_step).collect();
    assert_eq!(outage[39], 0, "nothing was answered for long");
    scene.run(60);
    let (blocks, in_step) = scene.run(30);
    assert!(in_step * 10 > blocks * 9, "{in_step} of {blocks} when all is well again");
}

#[test]
fn a_block_that_does_not_fit_leaves_the_step() {
    let mut scene = Scene::new();
    scene.run(60);
    let stats = scene.tick(40, false);
    assert!(stats.deferred > 0 && stats.blocks > 0, "{stats:?}");
    let stats = scene.tick(1 << 16, false);
    assert!(stats.blocks - stats.in_step > 0, "{stats:?}");
    scene.run(40);
    let (blocks, in_step) = scene.run(30);
    assert!(in_step * 10 > blocks * 9, "{in_step} of {blocks}");
}
