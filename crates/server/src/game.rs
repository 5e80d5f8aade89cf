//! The game: code that runs in the world once a tick, and decides what is in it besides its players.
//!
//! ```
//! use shadowland_server::game::{EntityId, EntityType, Game, GameWorld};
//!
//! /// A vehicle that drives round and round.
//! #[derive(Default)]
//! struct Roundabout(Option<EntityId>);
//!
//! impl Game for Roundabout {
//!     fn tick(&mut self, world: &mut GameWorld<'_>) {
//!         let Some(car) = self.0 else {
//!             self.0 = world.spawn(EntityType::Vehicle, [0.0, 0.0, 0.0]).ok();
//!             return;
//!         };
//!         // A turn takes 10 s.
//!         let degrees = f64::from(world.now() % 600) * 0.6;
//!         let (sin, cos) = degrees.to_radians().sin_cos();
//!         world.steer(car, [1_000.0 * cos, 1_000.0 * sin, 0.0], [degrees, 0.0, 0.0]);
//!     }
//! }
//! ```
//!
//! [`Server::start_with_game`](crate::server::Server::start_with_game) starts a server with it, and
//! [`WorldSide::set_game`](crate::embed::WorldSide::set_game) a simulation. A game has the world thread's time: what it
//! takes is missing from the 16.7 ms of a tick ([`TickStats`](crate::stats::TickStats) counts it as simulation), and it must
//! not wait for anything. Its panic is that of the server. For the same inputs to give the same world, bit for bit, it has to
//! keep to what it gets: [`now`](World::now) for a clock, a seed of its own for randomness, no map whose order is not
//! defined, and sines of `libm` where machines differ.

use std::ops::Deref;

use shadowland_world::World;

pub use shadowland_wire::entity::{EntityId, EntityState, EntityType};
pub use shadowland_wire::message::client::{Buttons, Input};
pub use shadowland_world::{PlayerHandle, SpawnError};

/// A game; `()` is one that does nothing.
pub trait Game: Send {
    /// Called once a tick, before anybody moves, when all who join or leave in this tick have done so. What it does is seen
    /// in the tick after [`now`](World::now), which is 0 in the first call.
    fn tick(&mut self, world: &mut GameWorld<'_>);

    /// Somebody has joined, and nobody has seen it yet: the place to say where it starts.
    fn joined(&mut self, world: &mut GameWorld<'_>, player: PlayerHandle) {
        let _ = (world, player);
    }

    /// Somebody is about to leave, and still there.
    fn left(&mut self, world: &mut GameWorld<'_>, player: PlayerHandle) {
        let _ = (world, player);
    }
}

impl Game for () {
    fn tick(&mut self, _world: &mut GameWorld<'_>) {}
}

/// The world as a game may change it: it reads as the [`World`], whose ticks, players and inputs are the server's. What it
/// cannot do it refuses and changes nothing.
#[derive(Debug)]
pub struct GameWorld<'a>(pub(crate) &'a mut World);

impl Deref for GameWorld<'_> {
    type Target = World;

    fn deref(&self) -> &World {
        self.0
    }
}

impl GameWorld<'_> {
    /// [`World::spawn`].
    ///
    /// # Errors
    /// When there is no room, for players, and for positions that are not finite.
    pub fn spawn(&mut self, kind: EntityType, position_cm: [f64; 3]) -> Result<EntityId, SpawnError> {
        self.0.spawn(kind, position_cm)
    }

    /// [`World::despawn`].
    pub fn despawn(&mut self, id: EntityId) -> bool {
        self.0.despawn(id)
    }

    /// [`World::hide`].
    pub fn hide(&mut self, id: EntityId, seers: &[PlayerHandle]) -> bool {
        self.0.hide(id, seers)
    }

    /// [`World::reveal`].
    pub fn reveal(&mut self, id: EntityId) -> bool {
        self.0.reveal(id)
    }

    /// [`World::teleport`].
    pub fn teleport(&mut self, id: EntityId, position_cm: [f64; 3]) -> bool {
        self.0.teleport(id, position_cm)
    }

    /// [`World::steer`], for vehicles and projectiles.
    pub fn steer(
        &mut self,
        id: EntityId,
        velocity_cm_per_s: [f64; 3],
        yaw_pitch_roll_degrees: [f64; 3],
    ) -> bool {
        self.0.steer(id, velocity_cm_per_s, yaw_pitch_roll_degrees)
    }

    /// [`World::walk`], for npcs and monsters.
    pub fn walk(&mut self, id: EntityId, input: Input) -> bool {
        self.0.walk(id, input)
    }

    /// [`World::damage`].
    pub fn damage(&mut self, id: EntityId, points: u16) -> bool {
        self.0.damage(id, points)
    }

    /// [`World::heal`].
    pub fn heal(&mut self, id: EntityId, points: u16) -> bool {
        self.0.heal(id, points)
    }
}
