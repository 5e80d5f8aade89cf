//! Datagrams in batches: one system call receives or sends many of them, into and out of buffers that are
//! allocated once.
//!
//! | part | what it is |
//! |---|---|
//! | [`UdpSocket`] | a non-blocking socket, registered with `mio` for readiness |
//! | [`RecvBatch`] | slots that one `recvmmsg` fills; the bytes are opened in place |
//! | [`SendBatch`] | slots that the caller fills in place; `sendmmsg` empties as many as the kernel takes |
//! | [`SendBatch::joining`] | the same for one destination: the kernel gets many datagrams as one, which is cheaper |
//! | [`UdpSocket::steer_by_connection_id`] | sends each datagram to the worker that owns its connection |
//! | [`room_for_sockets`] | how many sockets the process may open, after raising the limit |
//!
//! ```
//! use shadowland_udp::{Options, RecvBatch, SendBatch, UdpSocket};
//!
//! let socket = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &Options::default())?;
//! let (mut arrived, mut answers) = (RecvBatch::new(64), SendBatch::new(64));
//! while socket.recv(&mut arrived)? > 0 {
//!     for (from, datagram) in arrived.iter_mut() {
//!         let Some(slot) = answers.slot() else { break };
//!         slot[..datagram.len()].copy_from_slice(datagram);
//!         answers.commit(datagram.len(), from);
//!     }
//!     socket.send(&mut answers)?;
//! }
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! On Linux these are the real batched calls. Elsewhere the same types loop over single sends and receives.
//! This crate and the C interface are the only ones with `unsafe` code, and here it is all in `linux.rs`.

mod batch;
mod limit;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(any(not(target_os = "linux"), test))]
#[cfg_attr(target_os = "linux", allow(dead_code, reason = "compiled here so that its tests run"))]
mod portable;
mod socket;

pub use batch::{RecvBatch, RecvStats, SendBatch, SendStats};
pub use limit::room_for_sockets;
pub use socket::{Options, UdpSocket};

#[cfg(target_os = "linux")]
use linux as sys;
#[cfg(not(target_os = "linux"))]
use portable as sys;

/// Bytes of a slot: the largest datagram that is sent or accepted, without UDP and IP headers.
pub const DATAGRAM: usize = 1200;

/// Most slots of a batch: the kernel takes no more in one call (`UIO_MAXIOV`).
pub const MAX_SLOTS: usize = 1024;
