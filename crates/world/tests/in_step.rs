//! Pages whose viewer is equally far with them go in step: their blocks start from the last turn of their group.

mod common;

use common::Scene;
use shadowland_wire::entity::{EntityId, EntityType};
use shadowland_world::WorldConfig;
use shadowland_world::replication::ViewerStats;

/// A viewer among vehicles that drive to and fro.
struct Road {
    scene: Scene,
    vehicles: Vec<EntityId>,
}

impl Road {
    fn new() -> Self {
        let mut scene = Scene::new(WorldConfig { npcs: 0, ..WorldConfig::default() });
        let places = (-4..=4).flat_map(|x| (-4..=4).map(move |y| (f64::from(x), f64::from(y))));
        let vehicles = places
            .map(|(x, y)| scene.world.spawn(EntityType::Vehicle, [x * 15_000.0, y * 15_000.0, 0.0]).unwrap())
            .collect();
        Self { scene, vehicles }
    }

    /// As [`Scene::tick`].
    fn tick(&mut self, budget_bytes: usize, lost: bool) -> ViewerStats {
        let world = &mut self.scene.world;
        let direction = if (world.now() / 8).is_multiple_of(2) { 1.0 } else { -1.0 };
        for &vehicle in &self.vehicles {
            assert!(world.steer(vehicle, [direction * 500.0, 0.0, 0.0], [0.0; 3]));
        }
        self.scene.tick(budget_bytes, lost)
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
    let mut road = Road::new();
    let (blocks, in_step) = road.run(4);
    assert!(blocks > 0 && in_step == 0, "{in_step} of {blocks} before the first answer");
    road.run(40);
    let (blocks, in_step) = road.run(60);
    assert!(blocks > 100 && in_step * 10 > blocks * 9, "{in_step} of {blocks}");
}

#[test]
fn a_loss_keeps_pages_in_step_and_an_outage_does_not() {
    let mut road = Road::new();
    road.run(60);
    road.tick(1 << 16, true);
    let (blocks, in_step) = road.run(30);
    assert!(in_step * 10 > blocks * 9, "{in_step} of {blocks} after a lost packet");
    let outage: Vec<_> = (0..40).map(|_| road.tick(1 << 16, true).in_step).collect();
    assert_eq!(outage[39], 0, "nothing was answered for long");
    road.run(60);
    let (blocks, in_step) = road.run(30);
    assert!(in_step * 10 > blocks * 9, "{in_step} of {blocks} when all is well again");
}

#[test]
fn a_block_that_does_not_fit_leaves_the_step() {
    let mut road = Road::new();
    road.run(60);
    let stats = road.tick(40, false);
    assert!(stats.deferred > 0 && stats.blocks > 0, "{stats:?}");
    let stats = road.tick(1 << 16, false);
    assert!(stats.blocks - stats.in_step > 0, "{stats:?}");
    road.run(40);
    let (blocks, in_step) = road.run(30);
    assert!(in_step * 10 > blocks * 9, "{in_step} of {blocks}");
}
