//! The same face with one system call a datagram, for systems other than Linux. It is built for development
//! there; a server that carries load runs on Linux.

use std::io;

use mio::net::UdpSocket;
use socket2::Socket;

use crate::DATAGRAM;
use crate::batch::{Arrival, Departure};

/// `WSAEMSGSIZE`: how Windows says that a datagram was longer than the buffer.
const WINDOWS_MESSAGE_TOO_LONG: i32 = 10_040;

/// One byte longer than a slot: an oversized datagram shows by using it.
#[derive(Debug)]
pub(crate) struct RecvScratch(Box<[u8; DATAGRAM + 1]>);

#[derive(Debug)]
pub(crate) struct SendScratch;

impl RecvScratch {
    pub(crate) fn new(_slots: usize) -> Self {
        Self(Box::new([0; DATAGRAM + 1]))
    }
}

impl SendScratch {
    pub(crate) fn new(_slots: usize) -> Self {
        Self
    }

    /// Nothing is joined here.
    pub(crate) fn joining(_slots: usize) -> Self {
        Self
    }
}

/// Only Linux tells.
pub(crate) fn kernel_drops(_socket: &UdpSocket) -> io::Result<u64> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Receives until the socket is empty or the slots are full.
pub(crate) fn recv(
    socket: &UdpSocket,
    buffers: &mut [[u8; DATAGRAM]],
    arrivals: &mut [Arrival],
    scratch: &mut RecvScratch,
) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffers.len() {
        match socket.recv_from(&mut scratch.0[..]) {
            Ok((len, from)) => {
                let kept = len.min(DATAGRAM);
                buffers[filled][..kept].copy_from_slice(&scratch.0[..kept]);
                arrivals[filled] = Arrival { from, len: kept, passed_over: len > DATAGRAM };
                filled += 1;
            }
            Err(error) if error.raw_os_error() == Some(WINDOWS_MESSAGE_TOO_LONG) && cfg!(windows) => {
                arrivals[filled] = Arrival { passed_over: true, len: 0, ..arrivals[filled] };
                filled += 1;
            }
            Err(error) if filled == 0 => return Err(error),
            // Reported again, or gone, at the next call.
            Err(_) => break,
        }
    }
    Ok(filled)
}

/// Sends the first datagram.
pub(crate) fn send(
    socket: &UdpSocket,
    buffers: &[[u8; DATAGRAM]],
    departures: &[Departure],
    _scratch: &mut SendScratch,
) -> io::Result<usize> {
    socket.send_to(&buffers[0][..departures[0].len], departures[0].to)?;
    Ok(1)
}

/// Whether a send error would meet every datagram, whatever its destination.
pub(crate) fn is_about_the_socket(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::Unsupported)
}

pub(crate) fn set_reuse_port(_socket: &Socket) -> io::Result<()> {
    // Where other systems have the option they do not spread datagrams by it.
    Err(io::Error::new(io::ErrorKind::Unsupported, "several workers on one address need Linux"))
}

pub(crate) fn set_recv_buffer(socket: &Socket, bytes: usize) -> io::Result<()> {
    socket.set_recv_buffer_size(bytes)
}

pub(crate) fn set_send_buffer(socket: &Socket, bytes: usize) -> io::Result<()> {
    socket.set_send_buffer_size(bytes)
}

#[allow(clippy::unnecessary_wraps, reason = "the face is the same on every system")]
pub(crate) fn granted(told: usize) -> io::Result<usize> {
    Ok(told)
}

pub(crate) fn steer_by_connection_id(_socket: &UdpSocket) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_calls_carry_a_batch_too() {
        let local = "127.0.0.1:0".parse().unwrap();
        let (here, there) = (UdpSocket::bind(local).unwrap(), UdpSocket::bind(local).unwrap());
        let to = there.local_addr().unwrap();

        let departures = [3, DATAGRAM].map(|len| Departure { to, len });
        let buffers = [[1; DATAGRAM], [2; DATAGRAM]];
        for index in 0..2 {
            assert_eq!(send(&here, &buffers[index..], &departures[index..], &mut SendScratch).unwrap(), 1);
        }
        here.send_to(&[3; DATAGRAM + 1], to).unwrap();

        let mut slots = [[0; DATAGRAM]; 8];
        let mut arrivals = [Arrival { from: local, len: 0, passed_over: false }; 8];
        let mut scratch = RecvScratch::new(8);
        let mut filled = 0;
        while filled < 3 {
            match recv(&there, &mut slots[filled..], &mut arrivals[filled..], &mut scratch) {
                Ok(more) => filled += more,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert_eq!(filled, 3);
        let seen: Vec<_> = arrivals[..3]
            .iter()
            .zip(&slots)
            .map(|(arrival, slot)| (arrival.len, slot[0], arrival.passed_over))
            .collect();
        assert_eq!(seen, [(3, 1, false), (DATAGRAM, 2, false), (DATAGRAM, 3, true)]);
        assert_eq!(arrivals[0].from, here.local_addr().unwrap());
    }
}
