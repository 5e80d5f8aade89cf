//! A real client on a socket of its own.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use rand::CryptoRng;
use shadowland_client::session::Session;
use shadowland_client::{ConnectConfig, Input};
use shadowland_proto::Time;
use shadowland_wire::limits::DATAGRAM_BYTES;

/// A client's session and its socket.
pub(super) struct Guest {
    pub(super) session: Session,
    socket: UdpSocket,
    buffer: [u8; DATAGRAM_BYTES],
}

impl Guest {
    /// Starts to connect from this address.
    pub(super) fn new(
        from: Ipv4Addr,
        server: SocketAddr,
        server_key: [u8; 32],
        config: ConnectConfig,
        rng: &mut dyn CryptoRng,
        now: Time,
    ) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind((from, 0))?;
        socket.set_nonblocking(true)?;
        socket.connect(server)?;
        let session = Session::new(config, server_key, rng, now)?;
        Ok(Self { session, socket, buffer: [0; DATAGRAM_BYTES] })
    }

    /// Receives what is there and sends what is due; `sent` sees every datagram that leaves.
    pub(super) fn step(&mut self, now: Time, input: Option<Input>, mut sent: impl FnMut(&[u8])) {
        while let Ok(len) = self.socket.recv(&mut self.buffer) {
            // What is not for the session is counted there.
            let _ = self.session.handle(now, &mut self.buffer[..len]);
        }
        if self.session.next_timeout().is_some_and(|at| now >= at) {
            self.session.on_timeout(now);
        }
        if let Some(input) = input {
            self.session.input(input);
        }
        while let Some(len) = self.session.poll_transmit(now, &mut self.buffer) {
            sent(&self.buffer[..len]);
            // What finds no room is lost, as on any network.
            let _ = self.socket.send(&self.buffer[..len]);
        }
    }

    /// Whether the player is in the world.
    pub(super) fn plays(&self) -> bool {
        self.session.welcome().is_some() && !self.session.is_over()
    }
}
