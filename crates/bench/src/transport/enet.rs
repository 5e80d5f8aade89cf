//! ENet, in clear. Messages are of the kind that its throttle does not drop.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use rusty_enet::{Event, Host, HostSettings, MTU_MAX, Packet, PacketReceived, Socket, SocketOptions};

use super::lap::{Clients, Server, Traffic};
use super::{DOWN_BYTES, UP_BYTES, sockets};

/// What ENet takes.
pub(super) const MOST_CLIENTS: u32 = 4_095;

/// A socket that counts.
struct Counting {
    socket: UdpSocket,
    datagrams: u64,
}

struct EnetServer {
    host: Host<Counting>,
    connected: usize,
    messages: u64,
}

struct EnetClients(Vec<Host<UdpSocket>>);

impl Socket for Counting {
    type Address = SocketAddr;
    type Error = io::Error;

    fn init(&mut self, options: SocketOptions) -> io::Result<()> {
        self.socket.init(options)
    }

    fn send(&mut self, address: SocketAddr, buffer: &[u8]) -> io::Result<usize> {
        self.datagrams += 1;
        Socket::send(&mut self.socket, address, buffer)
    }

    fn receive(&mut self, buffer: &mut [u8; MTU_MAX]) -> io::Result<Option<(SocketAddr, PacketReceived)>> {
        let received = Socket::receive(&mut self.socket, buffer)?;
        self.datagrams += u64::from(received.is_some());
        Ok(received)
    }
}

pub(super) fn start(clients: usize) -> anyhow::Result<(impl Server, impl Clients)> {
    let socket = sockets::server()?;
    let address = socket.local_addr()?;
    let settings = |peer_limit| HostSettings { peer_limit, channel_limit: 1, ..HostSettings::default() };
    let client = |_| {
        let mut host =
            Host::new(sockets::client()?, settings(1)).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        host.connect(address, 1, 0).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        Ok(host)
    };
    let side = (0..clients).map(client).collect::<anyhow::Result<_>>()?;
    let host = Host::new(Counting { socket, datagrams: 0 }, settings(clients))
        .map_err(|error| anyhow::anyhow!("{error:?}"))?;
    Ok((EnetServer { host, connected: 0, messages: 0 }, EnetClients(side)))
}

impl Server for EnetServer {
    fn tick(&mut self) -> anyhow::Result<()> {
        while let Some(event) = self.host.service()? {
            self.messages += u64::from(matches!(event, Event::Receive { .. }));
        }
        self.connected = 0;
        let message = Packet::always_unreliable(&[1; DOWN_BYTES]);
        for peer in self.host.connected_peers_mut() {
            peer.send(0, &message)?;
            self.connected += 1;
            self.messages += 1;
        }
        self.host.flush();
        Ok(())
    }

    fn connected(&self) -> usize {
        self.connected
    }

    fn traffic(&self) -> Traffic {
        Traffic { datagrams: self.host.socket().datagrams, messages: self.messages }
    }
}

impl Clients for EnetClients {
    fn tick(&mut self) -> anyhow::Result<()> {
        let message = Packet::always_unreliable(&[1; UP_BYTES]);
        for host in &mut self.0 {
            while host.service()?.is_some() {}
            for peer in host.connected_peers_mut() {
                peer.send(0, &message)?;
            }
            host.flush();
        }
        Ok(())
    }

    fn connected(&self) -> usize {
        self.0.iter().filter(|host| host.peer(rusty_enet::PeerID(0)).connected()).count()
    }
}
