//! The kernel alone: what nobody who uses these calls can be below.

use std::collections::HashSet;
use std::net::{SocketAddr, UdpSocket};

use shadowland_udp::{RecvBatch, SendBatch};

use super::lap::{Clients, Server, Traffic};
use super::{DOWN_BYTES, UP_BYTES, sockets};

/// Datagrams per system call, as in the server.
pub(super) const BATCH: usize = 64;

struct FloorServer {
    socket: shadowland_udp::UdpSocket,
    inbox: RecvBatch,
    outbox: SendBatch,
    /// How many clients there will be; until then every sender is looked up.
    expected: usize,
    known: HashSet<SocketAddr>,
    addresses: Vec<SocketAddr>,
}

struct FloorClients(Vec<UdpSocket>);

pub(super) fn start(clients: usize) -> anyhow::Result<(impl Server, impl Clients)> {
    let socket = sockets::batched_server()?;
    let address = socket.local_addr()?;
    let side = (0..clients).map(|_| sockets::connected_client(address)).collect::<anyhow::Result<_>>()?;
    let server = FloorServer {
        socket,
        inbox: RecvBatch::new(BATCH),
        outbox: SendBatch::new(BATCH),
        expected: clients,
        known: HashSet::new(),
        addresses: Vec::new(),
    };
    Ok((server, FloorClients(side)))
}

impl Server for FloorServer {
    fn tick(&mut self) -> anyhow::Result<()> {
        while self.socket.recv(&mut self.inbox)? > 0 {
            if self.addresses.len() < self.expected {
                for (from, _) in self.inbox.iter_mut() {
                    if self.known.insert(from) {
                        self.addresses.push(from);
                    }
                }
            }
        }
        for &address in &self.addresses {
            if self.outbox.is_full() {
                self.socket.send(&mut self.outbox)?;
            }
            if self.outbox.slot().is_some() {
                self.outbox.commit(DOWN_BYTES, address);
            }
        }
        self.socket.send(&mut self.outbox)?;
        Ok(())
    }

    fn connected(&self) -> usize {
        self.addresses.len()
    }

    fn traffic(&self) -> Traffic {
        let datagrams = self.inbox.stats().datagrams + self.outbox.stats().datagrams;
        Traffic { datagrams, messages: datagrams }
    }
}

impl Clients for FloorClients {
    fn tick(&mut self) -> anyhow::Result<()> {
        let mut buffer = [0; 2_048];
        for socket in &self.0 {
            while sockets::receive(socket, &mut buffer)?.is_some() {}
            sockets::send(socket, &[0; UP_BYTES])?;
        }
        Ok(())
    }

    fn connected(&self) -> usize {
        self.0.len()
    }
}
