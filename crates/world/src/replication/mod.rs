//! How players see each other: the world publishes an immutable [`Frame`] a tick; each worker's [`Encoder`]
//! turns pages of it into blocks, once for all who share page and baseline; and each player's [`Viewer`] knows
//! what its player has applied and picks the blocks that go into its next packets.
//!
//! ```text
//! World::publish -> Frame --+--> Viewer::snapshot (which pages are due, against which baseline)
//!                           +--> Encoder (page, baseline) -> block, encoded once a tick
//!                                Snapshot::write -> one message, Snapshot::sent -> ledger
//!                                Viewer::acked   -> baselines rise
//! ```

mod crowd;
mod encoder;
mod frame;
mod ledger;
mod poses;
mod progress;
mod subscriptions;
mod viewer;

pub use crowd::CrowdDetail;
pub use encoder::{Encoder, EncoderStats};
pub use frame::{Frame, OwnerRow};
pub use viewer::{Snapshot, Viewer, ViewerStats};
