//! The sockets of the contenders: all servers get the same, and so do all clients.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::Context;
use shadowland_udp::Options;
use socket2::SockRef;

/// Kernel buffers of a server's socket: what all clients send in a tick must fit.
const SERVER_BUFFER_BYTES: usize = 4 << 20;

/// The same of a client's socket, which may be that of many clients.
const CLIENT_BUFFER_BYTES: usize = 1 << 20;

/// Any port of the loopback interface.
pub(super) fn anywhere() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// The server's socket of a contender that brings its own calls.
pub(super) fn server() -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind(anywhere())?;
    SockRef::from(&socket).set_recv_buffer_size(SERVER_BUFFER_BYTES)?;
    SockRef::from(&socket).set_send_buffer_size(SERVER_BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The same for batched calls.
pub(super) fn batched_server() -> anyhow::Result<shadowland_udp::UdpSocket> {
    let options = Options {
        reuse_port: false,
        recv_buffer_bytes: Some(SERVER_BUFFER_BYTES),
        send_buffer_bytes: Some(SERVER_BUFFER_BYTES),
    };
    Ok(shadowland_udp::UdpSocket::bind(anywhere(), &options)?)
}

/// A client's socket.
pub(super) fn client() -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind(anywhere()).context(
        "cannot open a socket for each client; the limit of open files may be too low (ulimit -n)",
    )?;
    SockRef::from(&socket).set_recv_buffer_size(CLIENT_BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A client's socket that is connected to the server.
pub(super) fn connected_client(server: SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = client()?;
    socket.connect(server)?;
    Ok(socket)
}

/// Receives a datagram, if there is one.
pub(super) fn receive<'b>(socket: &UdpSocket, buffer: &'b mut [u8]) -> io::Result<Option<&'b mut [u8]>> {
    match socket.recv(buffer) {
        Ok(len) => Ok(Some(&mut buffer[..len])),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sends a datagram; what finds no room is lost, as on a network.
pub(super) fn send(socket: &UdpSocket, datagram: &[u8]) -> io::Result<()> {
    match socket.send(datagram) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}
