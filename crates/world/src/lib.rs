//! The deterministic simulation: entities, movement, interest and replication.
//!
//! The same configuration and the same inputs in the same ticks give the same world, bit for bit: there is no
//! clock, no I/O, no randomness but the seed's, and no iteration whose order is not defined.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | everything about a world that can be set |
//! | [`tick`] | [`World`] and the phases of a tick: start reading here |
//! | `columns` | the entities, as plain typed columns with generational identifiers |
//! | `players` | who plays, and the inputs that wait to be simulated |
//! | `movement` | what an input does to a body |
//! | `combat` | what an attack does to others |
//! | `creatures` | what walks without a player |
//! | [`interest`] | layers of cells, their pages and stable slots |
//! | [`sight`] | how far each entity type is seen, and the layers that follow |
//! | [`replication`] | frames, viewers and the blocks that they share |

#![forbid(unsafe_code)]

mod columns;
mod combat;
pub mod config;
mod creatures;
pub mod interest;
mod movement;
mod players;
pub mod replication;
pub mod sight;
pub mod tick;

pub use columns::{SpawnError, WorldFull};
pub use config::WorldConfig;
pub use players::PlayerHandle;
pub use replication::{Encoder, Frame, Viewer};
pub use tick::World;

/// Number of a tick, from 1 on. 32 bits last 2.2 years at 60 Hz; a world ends before they do.
pub type Tick = u32;
