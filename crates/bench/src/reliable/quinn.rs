//! QUIC without its sockets and its runtime.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::BytesMut;
use quinn_proto::congestion::{BbrConfig, ControllerFactory, CubicConfig, NewRenoConfig};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig, ServerConfig,
    StreamId, Transmit, TransportConfig,
};
use rustls::RootCertStore;
use rustls::pki_types::PrivatePkcs8KeyDer;
use shadowland_proto::Time;

use super::course::{End, Session};

const NAME: &str = "localhost";
const ADDRESSES: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 4_000),
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)), 5_000),
];
/// Bytes of the length before each message.
const LENGTH: usize = 2;

/// How the sending rate is found.
#[derive(Debug, Clone, Copy)]
pub(super) enum Controller {
    Cubic,
    NewReno,
    Bbr,
}

struct Quinn {
    /// When virtual time began.
    start: Instant,
    /// By end.
    sides: [Side; 2],
    stream: Option<StreamId>,
    /// The rest of a message that the stream had no room for.
    unsent: Vec<u8>,
    arrived: Vec<u8>,
    delivered: VecDeque<Vec<u8>>,
}

struct Side {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    out: VecDeque<Vec<u8>>,
}

pub(super) fn start(controller: Controller) -> anyhow::Result<impl Session> {
    let certified = rcgen::generate_simple_self_signed(vec![NAME.to_owned()])?;
    let certificate = certified.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let mut transport = TransportConfig::default();
    // As large as the others' datagrams: how far a network goes beyond is another question.
    transport.mtu_discovery_config(None);
    let factory: Arc<dyn ControllerFactory + Send + Sync> = match controller {
        Controller::Cubic => Arc::new(CubicConfig::default()),
        Controller::NewReno => Arc::new(NewRenoConfig::default()),
        Controller::Bbr => Arc::new(BbrConfig::default()),
    };
    transport.congestion_controller_factory(factory);
    let transport = Arc::new(transport);
    let mut server = ServerConfig::with_single_cert(vec![certificate.clone()], key.into())?;
    server.transport_config(Arc::clone(&transport));
    let mut roots = RootCertStore::empty();
    roots.add(certificate)?;
    let mut client = ClientConfig::with_root_certificates(Arc::new(roots))?;
    client.transport_config(transport);

    let start = Instant::now();
    let mut sides = [(1, None), (2, Some(Arc::new(server)))].map(|(seed, config)| {
        let mut endpoint = EndpointConfig::default();
        endpoint.rng_seed(Some([seed; 32]));
        let endpoint = Endpoint::new(Arc::new(endpoint), config, false, None);
        Side { endpoint, connection: None, out: VecDeque::new() }
    });
    let connection = sides[0].endpoint.connect(start, client, ADDRESSES[1], NAME).context("QUIC")?;
    sides[0].connection = Some(connection);
    let (unsent, arrived, delivered) = (Vec::new(), Vec::new(), VecDeque::new());
    Ok(Quinn { start, sides, stream: None, unsent, arrived, delivered })
}

impl Quinn {
    fn at(&self, now: Time) -> Instant {
        self.start + (now - Time::default())
    }

    /// Reads what of the stream has arrived in order.
    fn read(&mut self) {
        let Some((_, client)) = &mut self.sides[End::Client as usize].connection else { return };
        if self.stream.is_none() {
            self.stream = client.streams().accept(Dir::Uni);
        }
        let Some(stream) = self.stream else { return };
        let mut stream = client.recv_stream(stream);
        let Ok(mut chunks) = stream.read(true) else { return };
        while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
            self.arrived.extend_from_slice(&chunk.bytes);
        }
        // What is to be sent for it leaves with the next datagram.
        let _ = chunks.finalize();
        while let Some(length) = self.arrived.first_chunk::<LENGTH>() {
            let end = LENGTH + usize::from(u16::from_le_bytes(*length));
            if self.arrived.len() < end {
                break;
            }
            self.delivered.push_back(self.arrived[LENGTH..end].to_vec());
            self.arrived.drain(..end);
        }
    }

    /// Writes as much of the unsent bytes as the stream takes.
    fn write(&mut self) {
        let Some((_, server)) = &mut self.sides[End::Server as usize].connection else { return };
        if self.stream.is_none() {
            self.stream = server.streams().open(Dir::Uni);
        }
        let Some(stream) = self.stream else { return };
        if let Ok(written) = server.send_stream(stream).write(&self.unsent) {
            self.unsent.drain(..written);
        }
    }
}

impl Side {
    fn receive(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        let mut buffer = Vec::new();
        match self.endpoint.handle(now, from, None, None, BytesMut::from(datagram), &mut buffer) {
            Some(DatagramEvent::NewConnection(incoming)) => {
                // Who cannot be accepted does not connect.
                self.connection = self.endpoint.accept(incoming, now, &mut buffer, None).ok();
            }
            Some(DatagramEvent::ConnectionEvent(_, event)) => {
                if let Some((_, connection)) = &mut self.connection {
                    connection.handle_event(event);
                }
            }
            Some(DatagramEvent::Response(transmit)) => self.out.extend(datagrams(&transmit, &buffer)),
            None => {}
        }
        self.exchange_events();
    }

    /// What a connection and its endpoint have to tell each other.
    fn exchange_events(&mut self) {
        let Some((handle, connection)) = &mut self.connection else { return };
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        while connection.poll().is_some() {}
    }

    fn transmit(&mut self, now: Instant) {
        let Some((_, connection)) = &mut self.connection else { return };
        let mut buffer = Vec::new();
        while let Some(transmit) = connection.poll_transmit(now, 1, &mut buffer) {
            self.out.extend(datagrams(&transmit, &buffer));
            buffer.clear();
        }
    }
}

/// A transmission as datagrams.
fn datagrams(transmit: &Transmit, buffer: &[u8]) -> Vec<Vec<u8>> {
    buffer[..transmit.size]
        .chunks(transmit.segment_size.unwrap_or(transmit.size))
        .map(<[u8]>::to_vec)
        .collect()
}

impl Session for Quinn {
    fn is_connected(&self) -> bool {
        self.sides
            .iter()
            .all(|side| side.connection.as_ref().is_some_and(|(_, connection)| !connection.is_handshaking()))
    }

    fn send(&mut self, message: &[u8]) -> bool {
        self.write();
        if !self.unsent.is_empty() {
            return false;
        }
        self.unsent.extend_from_slice(&(message.len() as u16).to_le_bytes());
        self.unsent.extend_from_slice(message);
        self.write();
        true
    }

    fn delivered(&mut self) -> Option<Vec<u8>> {
        self.read();
        self.delivered.pop_front()
    }

    fn transmit(&mut self, now: Time, end: End) -> Option<Vec<u8>> {
        let now = self.at(now);
        let side = &mut self.sides[end as usize];
        if side.out.is_empty() {
            side.transmit(now);
        }
        side.out.pop_front()
    }

    fn receive(&mut self, now: Time, end: End, datagram: Vec<u8>) {
        let (now, from) = (self.at(now), ADDRESSES[1 - end as usize]);
        self.sides[end as usize].receive(now, from, &datagram);
    }

    fn next_timeout(&mut self) -> Option<Time> {
        let connections = self.sides.iter_mut().filter_map(|side| side.connection.as_mut());
        let next = connections.filter_map(|(_, connection)| connection.poll_timeout()).min()?;
        // Rounded up, so that it is over then.
        Some(Time::default() + next.saturating_duration_since(self.start) + Duration::from_micros(1))
    }

    fn on_timeout(&mut self, now: Time) {
        let now = self.at(now);
        for side in &mut self.sides {
            if let Some((_, connection)) = &mut side.connection {
                connection.handle_timeout(now);
            }
            side.exchange_events();
        }
    }
}
