//! The session protocol of Tales of Shadowland, sans-IO: bytes, time and randomness come in as arguments.
//! `docs/PROTOCOL.md` is the normative text.
//!
//! ```text
//!   server                                                        client
//!   Endpoint::route   <- Connect, ConnectRequest ---------------  Connecting::poll_transmit
//!                     -- Cookie, ConnectionAccepted/Denied ---->  Connecting::handle -> Connection
//!   Session.connection <---------- sealed packets ------------->  Connection
//! ```
//!
//! Every state machine here is driven alike. Change it: [`Connection::handle`], [`Connection::send`],
//! [`Connection::on_timeout`]. Then drain it: `poll_transmit` until it returns `None`. Then sleep until the
//! next datagram or `next_timeout`. Nothing here touches a socket, the clock or the randomness of the operating
//! system; clippy refuses it.
//!
//! What a peer sends never panics, is never logged, and is counted by [`DropReason`]. Handling a packet with
//! unreliable messages and building one allocate nothing.

#![forbid(unsafe_code)]

mod connecting;
mod connection;
mod crypto;
mod drop_reason;
mod endpoint;
mod key_log;
mod time;
#[cfg(test)]
mod vectors;

pub use connecting::{ConnectConfig, ConnectError, Connecting};
pub use connection::{
    CloseReason, Congestion, Connection, HeldLimit, IntegrityChecks, IntegrityFailure, PacketBuilder, Path,
    Receiver, RekeyLimits, Reliable, SendError, Sent, State, Stats, TransportConfig,
};
pub use crypto::identity::Identity;
pub use crypto::integrity::{INTEGRITY_TABLE_BYTES, IntegrityTable, IntegrityTables, NotATable};
pub use crypto::token::{LOGIN_TOKEN_BYTES, LoginToken, TokenError, TokenSigner, TokenVerifier};
pub use drop_reason::{DropReason, Dropped};
pub use endpoint::{
    AddressLimit, Counters, Endpoint, EndpointConfig, Playing, Rate, Routed, SESSIONS_MAX, Session, Slot,
};
pub use key_log::{KEY_LOG_VARIABLE, KeyLog};
pub use time::Time;

pub use shadowland_wire::handshake::{DenyReason, SessionParameters};
pub use shadowland_wire::header::Channel;
pub use shadowland_wire::message::control::DisconnectReason;
