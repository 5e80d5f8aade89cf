//! This project: a connection of an endpoint, and a client's.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rand::SeedableRng;
use rand::rngs::StdRng;
use shadowland_proto::{
    Channel, Congestion, ConnectConfig, Connecting, Connection, Endpoint, EndpointConfig, Identity, Receiver,
    Routed, State, Time, TransportConfig,
};
use shadowland_wire::limits::DATAGRAM_BYTES;

use super::course::{End, START, Session};

const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 4_000);
/// A type that belongs to the application.
const MESSAGE: u8 = 0x30;

struct Shadowland {
    endpoint: Endpoint<()>,
    client: Client,
    /// The endpoint's answers to a client that connects.
    replies: VecDeque<Vec<u8>>,
    inbox: Inbox,
}

enum Client {
    Connecting(Box<Connecting>),
    Connected(Box<Connection>),
}

#[derive(Default)]
struct Inbox(VecDeque<Vec<u8>>);

impl Receiver for Inbox {
    fn message(&mut self, _kind: u8, body: &[u8]) {
        self.0.push_back(body.to_vec());
    }
    fn acked(&mut self, _sequence: u64) {}
}

pub(super) fn start(congestion: Congestion) -> anyhow::Result<impl Session> {
    let mut rng = StdRng::seed_from_u64(1);
    let identity = Identity::generate(&mut rng);
    let server_key = identity.public_key();
    let transport = TransportConfig { congestion, ..TransportConfig::default() };
    let config =
        EndpointConfig { max_sessions: 1, transport: transport.clone(), ..EndpointConfig::default() };
    let connect = ConnectConfig { transport, ..ConnectConfig::default() };
    let connecting = Connecting::new(connect, server_key, &mut rng, START)?;
    Ok(Shadowland {
        endpoint: Endpoint::new(config, identity, &[7; 32], &mut rng),
        client: Client::Connecting(Box::new(connecting)),
        replies: VecDeque::new(),
        inbox: Inbox::default(),
    })
}

impl Shadowland {
    fn server(&mut self) -> Option<&mut Connection> {
        self.endpoint.sessions_mut().next().map(|(_, session)| &mut session.connection)
    }
}

impl Session for Shadowland {
    fn is_connected(&self) -> bool {
        matches!(&self.client, Client::Connected(client) if client.state() == State::Established)
    }

    fn send(&mut self, message: &[u8]) -> bool {
        self.server().is_some_and(|server| server.send(Channel::ReliableOrdered, 0, MESSAGE, message).is_ok())
    }

    fn delivered(&mut self) -> Option<Vec<u8>> {
        self.inbox.0.pop_front()
    }

    fn transmit(&mut self, now: Time, end: End) -> Option<Vec<u8>> {
        let mut buffer = [0; DATAGRAM_BYTES];
        let len = match (end, &mut self.client) {
            (End::Client, Client::Connecting(client)) => client.poll_transmit(now, &mut buffer),
            (End::Client, Client::Connected(client)) => client.poll_transmit(now, &mut buffer),
            (End::Server, _) => {
                if let Some(reply) = self.replies.pop_front() {
                    return Some(reply);
                }
                self.server()?.poll_transmit(now, &mut buffer)
            }
        };
        len.map(|len| buffer[..len].to_vec())
    }

    fn receive(&mut self, now: Time, end: End, mut datagram: Vec<u8>) {
        match (end, &mut self.client) {
            (End::Server, _) => {
                let mut reply = [0; DATAGRAM_BYTES];
                match self.endpoint.route(now, CLIENT, &datagram, &mut reply) {
                    Routed::Reply(len) => self.replies.push_back(reply[..len].to_vec()),
                    Routed::Session(slot) => {
                        let Some(session) = self.endpoint.session_mut(slot) else { return };
                        // What is dropped is sent again.
                        let _ = session.connection.handle(now, &mut datagram, &mut Inbox::default());
                    }
                    Routed::Dropped(_) => {}
                }
            }
            (End::Client, Client::Connecting(connecting)) => {
                if let Ok(Some(connection)) = connecting.handle(now, &datagram) {
                    self.client = Client::Connected(Box::new(connection));
                }
            }
            (End::Client, Client::Connected(client)) => {
                let _ = client.handle(now, &mut datagram, &mut self.inbox);
            }
        }
    }

    fn next_timeout(&mut self) -> Option<Time> {
        let client = match &self.client {
            Client::Connecting(client) => client.next_timeout(),
            Client::Connected(client) => client.next_timeout(),
        };
        let server = self.server().and_then(|server| server.next_timeout());
        client.into_iter().chain(server).min()
    }

    fn on_timeout(&mut self, now: Time) {
        match &mut self.client {
            // Whether it gives up, the course will see.
            Client::Connecting(client) => drop(client.on_timeout(now)),
            Client::Connected(client) => client.on_timeout(now),
        }
        if let Some(server) = self.server() {
            server.on_timeout(now);
        }
    }
}
