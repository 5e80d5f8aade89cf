//! The socket: made once, then only received from and sent on.

use std::io;
use std::net::SocketAddr;

use mio::event::Source;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{RecvBatch, SendBatch, sys};

/// What to ask of the kernel when a socket is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Several sockets share the address and the kernel spreads the datagrams (`SO_REUSEPORT`); an error
    /// where the system has no such thing.
    pub reuse_port: bool,
    /// Bytes of kernel buffer for arrived datagrams; `None` leaves the system's default.
    pub recv_buffer_bytes: Option<usize>,
    /// Bytes of kernel buffer for departing datagrams; `None` leaves the system's default.
    pub send_buffer_bytes: Option<usize>,
}

/// A bound, non-blocking UDP socket.
#[derive(Debug)]
pub struct UdpSocket {
    socket: mio::net::UdpSocket,
}

impl UdpSocket {
    /// Binds to `address`. An IPv6 socket takes IPv4 peers too where the system allows it; they show up as
    /// mapped addresses (`::ffff:a.b.c.d`).
    ///
    /// A kernel that grants less buffer than asked for is no error: see
    /// [`granted_recv_buffer_bytes`](Self::granted_recv_buffer_bytes).
    ///
    /// # Errors
    /// What the system says: `AddrInUse`, `AddrNotAvailable`, `PermissionDenied` and the like.
    pub fn bind(address: SocketAddr, options: &Options) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        if address.is_ipv6() {
            // Systems without dual-stack sockets refuse this; they still serve IPv6.
            let _ = socket.set_only_v6(false);
        }
        if options.reuse_port {
            sys::set_reuse_port(&socket)?;
        }
        if let Some(bytes) = options.recv_buffer_bytes {
            sys::set_recv_buffer(&socket, bytes)?;
        }
        if let Some(bytes) = options.send_buffer_bytes {
            sys::set_send_buffer(&socket, bytes)?;
        }
        socket.bind(&address.into())?;
        Ok(Self { socket: mio::net::UdpSocket::from_std(socket.into()) })
    }

    /// The address that the socket is bound to, with the real port.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Bytes of receive buffer that the kernel granted, to compare with what was asked for.
    ///
    /// # Errors
    /// What the system says.
    pub fn granted_recv_buffer_bytes(&self) -> io::Result<usize> {
        sys::granted(socket2::SockRef::from(&self.socket).recv_buffer_size()?)
    }

    /// Bytes of send buffer that the kernel granted, to compare with what was asked for.
    ///
    /// # Errors
    /// What the system says.
    pub fn granted_send_buffer_bytes(&self) -> io::Result<usize> {
        sys::granted(socket2::SockRef::from(&self.socket).send_buffer_size()?)
    }

    /// Datagrams that arrived and that the kernel dropped at this socket, most often because its receive buffer
    /// was full. The count is one of 32 bits, and starts again at 0.
    ///
    /// # Errors
    /// `Unsupported` where the system does not tell (anything but Linux); otherwise what it says.
    pub fn kernel_drops(&self) -> io::Result<u64> {
        sys::kernel_drops(&self.socket)
    }

    /// Receives what is there, up to the slots of `batch`, by one system call, and forgets what the batch
    /// held before. Returns how many slots were filled, datagrams that are dropped as oversized included;
    /// 0 means that the socket is empty and readiness will be reported anew.
    ///
    /// # Errors
    /// What the system says about this socket. Reports about peers that an earlier send met are counted and
    /// passed over.
    pub fn recv(&self, batch: &mut RecvBatch) -> io::Result<usize> {
        batch.fill_with(|buffers, arrivals, scratch| sys::recv(&self.socket, buffers, arrivals, scratch))
    }

    /// Sends what `batch` holds, in order, and returns how many datagrams the kernel took. When its buffer is
    /// full the rest stays in the batch: call again when the socket is writable. A datagram whose destination
    /// makes an error is counted ([`SendStats::refused`](crate::SendStats::refused)) and given up, and the
    /// others go on.
    ///
    /// # Errors
    /// What the system says about this socket; the unsent datagrams stay.
    pub fn send(&self, batch: &mut SendBatch) -> io::Result<usize> {
        batch.drain_with(|buffers, departures, scratch| sys::send(&self.socket, buffers, departures, scratch))
    }

    /// Makes the kernel hand each datagram to the socket whose index is in the lowest byte of the
    /// ConnectionId (the first byte of the datagram), among all sockets that share this one's address by
    /// [`Options::reuse_port`], counted in the order in which they were bound. Datagrams without a session
    /// (ConnectionId 0), too short ones and indices without a socket are spread by the hash of the addresses.
    /// Calling it on one socket is enough for all; sockets bound later take part.
    ///
    /// # Errors
    /// `Unsupported` where the system has no such thing (anything but Linux); otherwise why the kernel
    /// refused, for example in a sandbox. Datagrams are then spread by hash alone.
    pub fn steer_by_connection_id(&self) -> io::Result<()> {
        sys::steer_by_connection_id(&self.socket)
    }
}

impl Source for UdpSocket {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.socket.register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.socket.reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.socket.deregister(registry)
    }
}
