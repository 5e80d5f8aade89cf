//! A viewer, and the answers that are on their way to it.

use std::collections::VecDeque;

use shadowland_wire::codec::Writer;
use shadowland_world::replication::{Encoder, Frame, Viewer, ViewerStats};
use shadowland_world::{World, WorldConfig};

/// Ticks from a packet to its answer.
const ROUND_TRIP: u32 = 4;

/// A world with one player, in its middle, and what that player is sent.
pub(crate) struct Scene {
    pub(crate) world: World,
    pub(crate) viewer: Viewer,
    frame: Frame,
    encoder: Encoder,
    sequence: u64,
    answers: VecDeque<(u32, u64)>,
}

impl Scene {
    pub(crate) fn new(config: WorldConfig) -> Self {
        let mut world = World::new(config);
        let player = world.join().unwrap();
        world.teleport(player.entity, [0.0; 3]);
        let frame = Frame::new(world.config());
        let (encoder, viewer) = (Encoder::new(), Viewer::new(player));
        Self { world, viewer, frame, encoder, sequence: 0, answers: VecDeque::new() }
    }

    /// One tick; `budget_bytes` is for blocks, and of what is sent nothing arrives if `lost`. Gives what was sent.
    pub(crate) fn tick(&mut self, budget_bytes: usize, lost: bool) -> ViewerStats {
        self.world.tick();
        self.world.publish(&mut self.frame);
        let now = self.frame.tick();
        while let Some((_, sequence)) = self.answers.pop_front_if(|(due, _)| *due <= now) {
            self.viewer.acked(sequence);
        }
        let before = self.viewer.stats();
        let snapshot = self.viewer.snapshot(&self.frame, &mut self.encoder, ROUND_TRIP, budget_bytes);
        let mut snapshot = snapshot.unwrap();
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
}
