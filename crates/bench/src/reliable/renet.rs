//! renet with netcode, encrypted. It is served at the pace of a game: what it sends leaves on ticks.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ::renet::{ConnectionConfig, DefaultChannel, RenetClient, RenetServer};
use renetcode::{
    ClientAuthentication, ConnectToken, NETCODE_KEY_BYTES, NetcodeClient, NetcodeServer,
    ServerAuthentication, ServerConfig, ServerResult,
};
use shadowland_proto::Time;

use super::course::{End, Session};

const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 4_000);
const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)), 5_000);
const ID: u64 = 1;
const PROTOCOL: u64 = 7;
const TIMEOUT_SECONDS: i32 = 15;
const TICK: Duration = Duration::from_micros(1_000_000 / 60);
const CHANNEL: DefaultChannel = DefaultChannel::ReliableOrdered;
/// What the channel holds at the most, as renet comes.
const CHANNEL_BYTES: usize = 5 * 1024 * 1024;
/// As much as a backlog needs: what is more waits no shorter.
const BACKLOG_BYTES: usize = 256 * 1024;

struct Renet {
    server: RenetServer,
    server_code: NetcodeServer,
    client: RenetClient,
    client_code: NetcodeClient,
    /// Datagrams that wait for the link, by end.
    out: [VecDeque<Vec<u8>>; 2],
    ticked_at: Option<Time>,
}

pub(super) fn start() -> anyhow::Result<impl Session> {
    let key = [9; NETCODE_KEY_BYTES];
    let config = ServerConfig {
        current_time: Duration::ZERO,
        max_clients: 1,
        protocol_id: PROTOCOL,
        public_addresses: vec![SERVER],
        authentication: ServerAuthentication::Secure { private_key: key },
    };
    let connect_token =
        ConnectToken::generate(Duration::ZERO, PROTOCOL, 300, ID, TIMEOUT_SECONDS, vec![SERVER], None, &key)?;
    let authentication = ClientAuthentication::Secure { connect_token };
    Ok(Renet {
        server: RenetServer::new(ConnectionConfig::default()),
        server_code: NetcodeServer::new(config),
        client: RenetClient::new(ConnectionConfig::default()),
        client_code: NetcodeClient::new(Duration::ZERO, authentication)?,
        out: Default::default(),
        ticked_at: None,
    })
}

impl Renet {
    /// What an answer of netcode's server leads to.
    fn apply(server: &mut RenetServer, out: &mut VecDeque<Vec<u8>>, result: ServerResult<'_, '_>) {
        match result {
            ServerResult::PacketToSend { payload, .. } => out.push_back(payload.to_vec()),
            ServerResult::Payload { client_id, payload } => {
                // A client that is gone has no use for it.
                let _ = server.process_packet_from(payload, client_id);
            }
            ServerResult::ClientConnected { client_id, payload, .. } => {
                server.add_connection(client_id);
                out.push_back(payload.to_vec());
            }
            ServerResult::ClientDisconnected { client_id, .. } => server.remove_connection(client_id),
            ServerResult::None => {}
        }
    }

    fn tick(&mut self, step: Duration) {
        let [to_server, to_client] = &mut self.out;
        if let Some((datagram, _)) = self.client_code.update(step) {
            to_server.push_back(datagram.to_vec());
        }
        if self.client_code.is_connected() {
            self.client.set_connected();
            self.client.update(step);
            for packet in self.client.get_packets_to_send() {
                if let Ok((_, datagram)) = self.client_code.generate_payload_packet(&packet) {
                    to_server.push_back(datagram.to_vec());
                }
            }
        }
        self.server_code.update(step);
        let result = self.server_code.update_client(ID);
        Self::apply(&mut self.server, to_client, result);
        self.server.update(step);
        for packet in self.server.get_packets_to_send(ID).unwrap_or_default() {
            if let Ok((_, datagram)) = self.server_code.generate_payload_packet(ID, &packet) {
                to_client.push_back(datagram.to_vec());
            }
        }
    }
}

impl Session for Renet {
    fn is_connected(&self) -> bool {
        self.client_code.is_connected() && self.server.is_connected(ID)
    }

    fn send(&mut self, message: &[u8]) -> bool {
        let free = self.server.channel_available_memory(ID, CHANNEL);
        let takes = free >= CHANNEL_BYTES - BACKLOG_BYTES;
        if takes {
            self.server.send_message(ID, CHANNEL, message.to_vec());
        }
        takes
    }

    fn delivered(&mut self) -> Option<Vec<u8>> {
        self.client.receive_message(CHANNEL).map(|message| message.to_vec())
    }

    fn transmit(&mut self, _now: Time, end: End) -> Option<Vec<u8>> {
        self.out[end as usize].pop_front()
    }

    fn receive(&mut self, _now: Time, end: End, mut datagram: Vec<u8>) {
        match end {
            End::Client => {
                if let Some(payload) = self.client_code.process_packet(&mut datagram) {
                    self.client.process_packet(payload);
                }
            }
            End::Server => {
                let result = self.server_code.process_packet(CLIENT, &mut datagram);
                Self::apply(&mut self.server, &mut self.out[End::Server as usize], result);
            }
        }
    }

    fn next_timeout(&mut self) -> Option<Time> {
        Some(self.ticked_at.map_or(Time::default(), |at| at + TICK))
    }

    fn on_timeout(&mut self, now: Time) {
        let step = self.ticked_at.map_or(TICK, |at| now - at);
        self.ticked_at = Some(now);
        self.tick(step);
    }
}
