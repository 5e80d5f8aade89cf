//! Bytes to values and back, and nothing else: no state, no cryptography, no clock.
//!
//! Every decoder here is total: any byte string gives a value or a named [`DecodeError`], allocates nothing
//! proportional to a claimed length, and never panics. Every encoder writes into a buffer that the caller
//! owns and reports [`Full`] when it does not fit. Everything is little endian.
//!
//! | module | holds |
//! |---|---|
//! | [`codec`] | the bounded byte reader and writer, varint and zigzag |
//! | [`bits`] | the bit reader and writer, for records below a byte |
//! | [`limits`] | every bound of the protocol, by name |
//! | [`header`] | the 14 clear, authenticated bytes before every packet |
//! | [`handshake`] | the messages before a session exists |
//! | [`ack`] | the acknowledgement block |
//! | [`message`] | what travels inside a sealed packet, by direction |
//! | [`lattice`] | quantized positions, quadrants, low-bits positions |
//! | [`quantize`] | angles, velocities, vitals |
//! | [`entity`] | entity identifiers, types, state and delta flags |
//! | [`block`] | replication blocks: what changed in a page of a cell since a baseline |
//! | [`pose`] | pose blocks: where those are who stand near in a crowd |

#![forbid(unsafe_code)]

pub mod ack;
pub mod bits;
pub mod block;
pub mod codec;
pub mod entity;
mod fields;
pub mod handshake;
pub mod header;
pub mod lattice;
pub mod limits;
pub mod message;
pub mod pose;
pub mod quantize;

pub use codec::{DecodeError, Full, Reader, Writer};

/// Name and version of the protocol, the prologue of the handshake.
pub const PROTOCOL_NAME: &[u8] = b"shadowland/1";
/// The version number that Connect and ConnectRequest carry.
pub const PROTOCOL_VERSION: u16 = 1;
