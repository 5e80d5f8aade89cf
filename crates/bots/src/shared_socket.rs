//! A socket that several bots share, so that ten thousand bots do not need ten thousand sockets.
//!
//! A datagram of a session begins with its connection id. Before that is known, the server's answers repeat the
//! beginning of the client's ephemeral key.

use std::io;
use std::net::SocketAddr;

use rustc_hash::FxHashMap;
use shadowland_udp::{Options, UdpSocket};
use shadowland_wire::handshake::{Echo, peek_echo};

/// Kernel buffers asked for: some bursts of the server's for all bots of the socket must fit (a small datagram
/// takes about 1 KiB there), but what waits for longer than that is better lost than late.
const BUFFER_BYTES: usize = 512 << 10;

pub(crate) struct SharedSocket {
    pub(crate) socket: UdpSocket,
    /// There may be datagrams that were not received.
    pub(crate) readable: bool,
    by_id: FxHashMap<u32, u32>,
    by_echo: FxHashMap<Echo, u32>,
}

impl SharedSocket {
    /// A socket towards `server`.
    pub(crate) fn open(server: SocketAddr) -> io::Result<Self> {
        let any: SocketAddr =
            if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
        let options = Options {
            reuse_port: false,
            recv_buffer_bytes: Some(BUFFER_BYTES),
            send_buffer_bytes: Some(BUFFER_BYTES),
        };
        Ok(Self {
            socket: UdpSocket::bind(any, &options)?,
            readable: false,
            by_id: FxHashMap::default(),
            by_echo: FxHashMap::default(),
        })
    }

    /// The bot that a datagram is for.
    pub(crate) fn route(&self, datagram: &[u8]) -> Option<usize> {
        let id = u32::from_le_bytes(*datagram.first_chunk()?);
        let bot = match id {
            0 => self.by_echo.get(&peek_echo(datagram)?),
            id => self.by_id.get(&id),
        };
        bot.map(|&bot| bot as usize)
    }

    /// A bot starts to connect: the answers carry this echo.
    pub(crate) fn connecting(&mut self, bot: usize, echo: Echo) {
        self.by_echo.insert(echo, bot as u32);
    }

    /// A bot is connected: its packets carry this id.
    pub(crate) fn connected(&mut self, bot: usize, echo: Echo, id: u32) {
        self.by_echo.remove(&echo);
        self.by_id.insert(id, bot as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shadowland_wire::codec::Writer;
    use shadowland_wire::handshake::{DenyReason, ServerHandshake};

    #[test]
    fn answers_find_their_bot_by_echo_and_packets_by_id() {
        let mut socket = SharedSocket::open("127.0.0.1:1".parse().unwrap()).unwrap();
        socket.connecting(3, [7; 8]);
        socket.connecting(4, [8; 8]);
        let mut buffer = [0; 64];
        let mut writer = Writer::new(&mut buffer);
        let answer = ServerHandshake::ConnectionDenied { echo: [8; 8], reason: DenyReason::Full };
        answer.encode(&mut writer).unwrap();
        assert_eq!(socket.route(writer.written()), Some(4));

        let packet = [0x01, 0x02, 0x03, 0x04, 0, 3];
        assert_eq!(socket.route(&packet), None);
        socket.connected(4, [8; 8], 0x0403_0201);
        assert_eq!(socket.route(&packet), Some(4));
        assert_eq!(socket.route(writer.written()), None, "it has its answer");
        assert_eq!(socket.route(&[1, 2]), None);
    }
}
