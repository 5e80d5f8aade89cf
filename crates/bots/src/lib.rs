//! The load generator: simulated players over real sockets, and the means to judge what they see.
//!
//! ```text
//!   Bots::start ──▶ threads ──▶ sockets, each shared by several bots ──▶ client::Session per bot
//!                      │                                                    │
//!        freeze, stop ─┤                                                    ├─ Replica  ──▶ converged
//!               stats ◀┘                                                    └─ samples  ──▶ latency
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`fleet`] | [`Bots`]: start, watch, freeze and stop them |
//! | `driver` | a thread and its bots |
//! | `line` | a bad network between a bot and its socket |
//! | `shared_socket` | a socket that several bots share |
//! | [`wander`] | what a bot does all day |
//! | [`town`] | where the players of the workload `town` are |
//! | [`converged`] | whether a bot sees exactly what is there |
//! | [`latency`] | how long a change takes until those who should see it do |

#![forbid(unsafe_code)]

pub mod converged;
mod driver;
pub mod fleet;
pub mod latency;
mod line;
mod shared_socket;
pub mod town;
pub mod wander;

pub use shadowland_client::NetProfile;

pub use fleet::{Bots, BotsConfig, BotsError, BotsStats};
