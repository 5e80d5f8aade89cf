//! The client SDK: connect, send inputs, and see the world.
//!
//! ```no_run
//! use shadowland_client::{Client, Event, ServerKey};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let key: ServerKey = "the 64 hexadecimal digits that the server prints".parse()?;
//! let mut client = Client::connect("127.0.0.1:3565", key)?;
//! loop {
//!     for event in client.update() {
//!         if let Event::Disconnected(end) = event {
//!             return Err(end.into());
//!         }
//!     }
//!     for entity in client.view().entities() {
//!         println!("{:?} at {:?}", entity.kind, entity.position_cm);
//!     }
//!     std::thread::sleep(std::time::Duration::from_millis(16));
//! }
//! # }
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`client`] | a session over a real socket: what a game uses |
//! | [`session`] | the same without a socket or a clock: what simulations and load generators use |
//! | [`replica`] | what was received, quantized: converges to the server's truth |
//! | [`conditioner`] | a bad network to try a game on |
//! | [`view`] | what is shown: smooth motion between what was received |

#![forbid(unsafe_code)]

pub mod client;
pub mod conditioner;
pub mod replica;
pub mod session;
pub mod view;

pub use client::{Client, ClientError, ServerKey};
pub use conditioner::NetProfile;
pub use replica::Replica;
pub use session::{End, Event, Session};
pub use view::View;

pub use shadowland_proto::{
    ConnectConfig, ConnectError, Identity, IntegrityTable, Reliable, SendError, Time,
};
pub use shadowland_wire::entity::{EntityId, EntityState, EntityType};
pub use shadowland_wire::message::client::{Buttons, Input};
