//! renet with netcode, encrypted. Its server does not tell how many datagrams it moves, so that the clients are
//! put together from its parts, and count.

use std::net::UdpSocket;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ::renet::{Bytes, ConnectionConfig, DefaultChannel, RenetClient, RenetServer};
use renet_netcode::{
    ClientAuthentication, ConnectToken, NETCODE_KEY_BYTES, NetcodeServerTransport, ServerAuthentication,
    ServerConfig,
};
use renetcode::{NETCODE_MAX_PACKET_BYTES, NetcodeClient};

use super::lap::{Clients, Server, Traffic};
use super::{DOWN_BYTES, UP_BYTES, sockets};

/// What netcode takes.
pub(super) const MOST_CLIENTS: u32 = 1_024;
const PROTOCOL: u64 = 7;
/// Long enough for connecting on a busy machine.
const TIMEOUT_SECONDS: i32 = 60;

struct NetcodeServer {
    at: Instant,
    server: RenetServer,
    transport: NetcodeServerTransport,
    messages: u64,
}

struct NetcodeClients {
    at: Instant,
    clients: Vec<Client>,
    datagrams: u64,
}

struct Client {
    socket: UdpSocket,
    netcode: NetcodeClient,
    renet: RenetClient,
}

pub(super) fn start(clients: usize) -> anyhow::Result<(impl Server, impl Clients)> {
    let socket = sockets::server()?;
    let address = socket.local_addr()?;
    let unix = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let private_key = renet_netcode::generate_random_bytes::<NETCODE_KEY_BYTES>();
    let config = ServerConfig {
        current_time: unix,
        max_clients: clients,
        protocol_id: PROTOCOL,
        public_addresses: vec![address],
        authentication: ServerAuthentication::Secure { private_key },
    };
    let client = |id| {
        let connect_token = ConnectToken::generate(
            unix,
            PROTOCOL,
            300,
            id,
            TIMEOUT_SECONDS,
            vec![address],
            None,
            &private_key,
        )?;
        Ok(Client {
            socket: sockets::connected_client(address)?,
            netcode: NetcodeClient::new(unix, ClientAuthentication::Secure { connect_token })?,
            renet: RenetClient::new(ConnectionConfig::default()),
        })
    };
    let side = (0..clients as u64).map(client).collect::<anyhow::Result<_>>()?;
    let server = NetcodeServer {
        at: Instant::now(),
        server: RenetServer::new(ConnectionConfig::default()),
        transport: NetcodeServerTransport::new(config, socket)?,
        messages: 0,
    };
    Ok((server, NetcodeClients { at: Instant::now(), clients: side, datagrams: 0 }))
}

/// Time since the last call.
fn step(at: &mut Instant) -> Duration {
    let before = std::mem::replace(at, Instant::now());
    *at - before
}

impl Server for NetcodeServer {
    fn tick(&mut self) -> anyhow::Result<()> {
        let Self { at, server, transport, messages } = self;
        let step = step(at);
        server.update(step);
        transport.update(step, server)?;
        while server.get_event().is_some() {}
        for client in server.clients_id() {
            while server.receive_message(client, DefaultChannel::Unreliable).is_some() {
                *messages += 1;
            }
            server.send_message(client, DefaultChannel::Unreliable, Bytes::from_static(&[1; DOWN_BYTES]));
            *messages += 1;
        }
        transport.send_packets(server);
        Ok(())
    }

    fn connected(&self) -> usize {
        self.server.connected_clients()
    }

    fn traffic(&self) -> Traffic {
        Traffic { datagrams: 0, messages: self.messages }
    }
}

impl Client {
    /// Returns how many datagrams came and went.
    fn tick(&mut self, step: Duration) -> anyhow::Result<u64> {
        let Self { socket, netcode, renet } = self;
        let mut moved = 0;
        let mut buffer = [0; NETCODE_MAX_PACKET_BYTES];
        while let Some(datagram) = sockets::receive(socket, &mut buffer)? {
            moved += 1;
            if let Some(payload) = netcode.process_packet(datagram) {
                renet.process_packet(payload);
            }
        }
        if let Some((datagram, _)) = netcode.update(step) {
            sockets::send(socket, datagram)?;
            moved += 1;
        }
        if !netcode.is_connected() {
            return Ok(moved);
        }
        renet.set_connected();
        renet.update(step);
        while renet.receive_message(DefaultChannel::Unreliable).is_some() {}
        renet.send_message(DefaultChannel::Unreliable, Bytes::from_static(&[1; UP_BYTES]));
        for packet in renet.get_packets_to_send() {
            let (_, datagram) = netcode.generate_payload_packet(&packet)?;
            sockets::send(socket, datagram)?;
            moved += 1;
        }
        Ok(moved)
    }
}

impl Clients for NetcodeClients {
    fn tick(&mut self) -> anyhow::Result<()> {
        let step = step(&mut self.at);
        for client in &mut self.clients {
            self.datagrams += client.tick(step)?;
        }
        Ok(())
    }

    fn connected(&self) -> usize {
        self.clients.iter().filter(|client| client.netcode.is_connected()).count()
    }

    fn datagrams(&self) -> u64 {
        self.datagrams
    }
}
