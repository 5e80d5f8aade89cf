//! The world, its game, and what it hears from its workers, without its thread and its clock.

use std::sync::Arc;

use shadowland_proto::Time;
use shadowland_wire::entity::EntityId;
use shadowland_world::{Frame, Tick, World, WorldConfig};

use crate::game::{Game, GameWorld};
use crate::queue::{FramePool, ToWorker, ToWorld, WorldQueues};

/// The world, between the queues from its workers and the frames to them.
pub struct WorldSide {
    world: World,
    game: Box<dyn Game>,
    config: WorldConfig,
    /// By worker.
    queues: Vec<WorldQueues>,
    pool: FramePool<Frame>,
}

impl WorldSide {
    pub(crate) fn new(config: WorldConfig, queues: Vec<WorldQueues>) -> Self {
        Self {
            world: World::new(config.clone()),
            game: Box::new(()),
            pool: FramePool::new(2 * queues.len() + 1, || Frame::new(&config)),
            config,
            queues,
        }
    }

    /// The world as it is.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// From now on this game is called; to be set before the first tick, or it does not hear of those who have joined.
    pub fn set_game(&mut self, game: impl Game + 'static) {
        self.game = Box::new(game);
    }

    /// Stops or starts everything in the world that moves by itself.
    pub fn pause_creatures(&mut self, paused: bool) {
        self.world.pause_creatures(paused);
    }

    /// [`World::teleport`].
    pub fn teleport(&mut self, id: EntityId, position_cm: [f64; 3]) -> bool {
        self.world.teleport(id, position_cm)
    }

    /// Tells for every tick that a worker has completed since the last call: the worker, the tick, and when its
    /// last datagram left.
    pub fn hear_completions(&mut self, mut completed: impl FnMut(usize, Tick, Time)) {
        for (worker, queues) in self.queues.iter_mut().enumerate() {
            while let Ok(done) = queues.completed.pop() {
                completed(worker, done.tick, done.at);
            }
        }
    }

    /// Takes what the workers queued before this tick, calls the game, and simulates the tick; what comes meanwhile waits
    /// for the next one.
    pub fn tick(&mut self) {
        self.hear_workers();
        self.game.tick(&mut GameWorld(&mut self.world));
        self.world.tick();
    }

    /// The picture of the last tick, for all workers.
    pub fn publish(&mut self) -> Arc<Frame> {
        let Self { world, config, pool, .. } = self;
        pool.fill(|| Frame::new(config), |frame| world.publish(frame))
    }

    /// Frames that memory is set aside for.
    #[must_use]
    pub fn frame_count(&self) -> usize {
        self.pool.len()
    }

    fn hear_workers(&mut self) {
        let Self { world, game, queues, .. } = self;
        let from = world.now() + 1;
        for queues in queues {
            for _ in 0..queues.from_worker.slots() {
                // No room to answer a join: it waits where it is, and with it what stands behind it.
                if queues.to_worker.is_full() {
                    break;
                }
                match queues.from_worker.pop() {
                    Ok(ToWorld::Input { player, number, input }) => world.input(player, number, input),
                    Ok(ToWorld::Leave(player)) => {
                        if world.is_playing(player) {
                            game.left(&mut GameWorld(world), player);
                            world.leave(player);
                        }
                    }
                    Ok(ToWorld::Join { session }) => {
                        let answer = match world.join() {
                            Ok(player) => {
                                game.joined(&mut GameWorld(world), player);
                                ToWorker::Joined { session, player, from }
                            }
                            Err(_full) => ToWorker::Refused { session },
                        };
                        queues.to_worker.push(answer).expect("there is room: this is the only producer");
                    }
                    Err(_empty) => break,
                }
            }
        }
    }
}
