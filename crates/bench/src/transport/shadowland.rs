//! This project: the endpoint and its connections, driven as the server's workers drive them.

use std::net::UdpSocket;
use std::time::Instant;

use anyhow::anyhow;
use rand::SeedableRng;
use rand::rngs::StdRng;
use shadowland_proto::{
    ConnectConfig, Connecting, Connection, Endpoint, EndpointConfig, Identity, Rate, Receiver, Routed, Slot,
    State, Time,
};
use shadowland_udp::{RecvBatch, SendBatch};
use shadowland_wire::limits::DATAGRAM_BYTES;

use super::floor::BATCH;
use super::lap::{Clients, Server, Traffic};
use super::{DOWN_BYTES, UP_BYTES, sockets};

/// Sessions that memory is fetched ahead for, as in the server.
const AHEAD: usize = 4;
/// A type that belongs to the application.
const MESSAGE: u8 = 0x41;

struct ShadowlandServer {
    clock: Instant,
    socket: shadowland_udp::UdpSocket,
    inbox: RecvBatch,
    outbox: SendBatch,
    endpoint: Endpoint<Listed>,
    /// Sessions whose client has confirmed the keys.
    listed: Vec<Slot>,
    messages: Count,
}

/// What hangs on a session that is listed.
struct Listed;

struct ShadowlandClients {
    clock: Instant,
    clients: Vec<Client>,
}

struct Client {
    socket: UdpSocket,
    stage: Stage,
}

enum Stage {
    Connecting(Box<Connecting>),
    Connected(Box<Connection>),
}

/// Counts messages.
#[derive(Default)]
struct Count(u64);

impl Receiver for Count {
    fn message(&mut self, _kind: u8, body: &[u8]) {
        self.0 += u64::from(!body.is_empty());
    }

    fn acked(&mut self, _sequence: u64) {}
}

pub(super) fn start(clients: usize) -> anyhow::Result<(impl Server, impl Clients)> {
    let clock = Instant::now();
    let mut rng = StdRng::seed_from_u64(1);
    let identity = Identity::generate(&mut rng);
    let server_key = identity.public_key();
    // All of them connect at once.
    let config = EndpointConfig {
        max_sessions: clients,
        max_half_open: clients,
        handshake_rate: Rate { per_second: 100_000, burst: 100_000 },
        ..EndpointConfig::default()
    };
    let socket = sockets::batched_server()?;
    let address = socket.local_addr()?;
    let client = |_| {
        let connecting = Connecting::new(ConnectConfig::default(), server_key, &mut rng, now(clock))?;
        let socket = sockets::connected_client(address)?;
        Ok(Client { socket, stage: Stage::Connecting(Box::new(connecting)) })
    };
    let side = (0..clients).map(client).collect::<anyhow::Result<_>>()?;
    let server = ShadowlandServer {
        clock,
        socket,
        inbox: RecvBatch::new(BATCH),
        outbox: SendBatch::new(BATCH),
        endpoint: Endpoint::new(config, identity, &[7; 32], &mut rng),
        listed: Vec::with_capacity(clients),
        messages: Count::default(),
    };
    Ok((server, ShadowlandClients { clock, clients: side }))
}

fn now(clock: Instant) -> Time {
    Time::default() + clock.elapsed()
}

impl ShadowlandServer {
    fn receive(&mut self) -> anyhow::Result<()> {
        while self.socket.recv(&mut self.inbox)? > 0 {
            let now = now(self.clock);
            for index in 0..self.inbox.filled() + 2 * AHEAD {
                self.receive_next(now, index)?;
            }
        }
        Ok(())
    }

    /// Takes a datagram some places before this one, and asks for the memory of those between.
    fn receive_next(&mut self, now: Time, index: usize) -> anyhow::Result<()> {
        let Self { socket, inbox, outbox, endpoint, listed, messages, .. } = self;
        let mut claimed = |index| inbox.datagram(index).and_then(|(_, datagram)| Slot::claimed_by(datagram));
        if let Some(slot) = claimed(index) {
            endpoint.prefetch(slot, size_of::<Listed>());
        }
        let before = index.checked_sub(AHEAD).and_then(&mut claimed);
        if let Some(session) = before.and_then(|slot| endpoint.in_place_of(slot)) {
            session.connection.prefetch_more();
        }
        let arrived = index.checked_sub(2 * AHEAD).and_then(|index| inbox.datagram(index));
        let Some((from, datagram)) = arrived else { return Ok(()) };
        let mut reply = [0; 128];
        match endpoint.route(now, from, datagram, &mut reply) {
            Routed::Reply(len) => {
                if outbox.is_full() {
                    socket.send(outbox)?;
                }
                if let Some(slot) = outbox.slot() {
                    slot[..len].copy_from_slice(&reply[..len]);
                    outbox.commit(len, from);
                }
            }
            Routed::Session(slot) => {
                let Some(session) = endpoint.session_mut(slot) else { return Ok(()) };
                let handled = session.connection.handle_from(now, from, datagram, messages);
                if session.connection.is_confirmed() && session.data.replace(Listed).is_none() {
                    listed.push(slot);
                }
                if let Err(reason) = handled {
                    endpoint.count_drop(reason);
                }
            }
            Routed::Dropped(_) => {}
        }
        Ok(())
    }

    fn send(&mut self) -> anyhow::Result<()> {
        let mut now = now(self.clock);
        self.endpoint.on_timeout(now);
        for index in 0..self.listed.len() {
            if self.outbox.len() >= BATCH / 2 {
                self.socket.send(&mut self.outbox)?;
                now = self::now(self.clock);
            }
            self.prefetch_ahead(index);
            self.serve(now, self.listed[index])?;
        }
        self.socket.send(&mut self.outbox)?;
        Ok(())
    }

    fn prefetch_ahead(&self, next: usize) {
        if let Some(&slot) = self.listed.get(next + 2 * AHEAD) {
            self.endpoint.prefetch(slot, size_of::<Listed>());
        }
        let session = self.listed.get(next + AHEAD).and_then(|&slot| self.endpoint.in_place_of(slot));
        if let Some(session) = session {
            session.connection.prefetch_more();
        }
    }

    fn serve(&mut self, now: Time, slot: Slot) -> anyhow::Result<()> {
        let Self { outbox, endpoint, messages, .. } = self;
        let Some(session) = endpoint.session_mut(slot) else { return Ok(()) };
        let connection = &mut session.connection;
        let Some(address) = connection.address() else { return Ok(()) };
        if connection.is_due(now) {
            connection.on_timeout(now);
        }
        if let Some(mut packet) = outbox.slot().and_then(|slot| connection.packet(now, slot)) {
            packet
                .message(MESSAGE, |writer| writer.bytes(&[1; DOWN_BYTES]))
                .map_err(|full| anyhow!("{full:?}"))?;
            let sent = packet.finish();
            outbox.commit(sent.len, address);
            messages.0 += 1;
        }
        while let Some(len) = outbox.slot().and_then(|slot| connection.poll_transmit(now, slot)) {
            outbox.commit(len, address);
        }
        Ok(())
    }
}

impl Server for ShadowlandServer {
    fn tick(&mut self) -> anyhow::Result<()> {
        self.receive()?;
        self.send()
    }

    fn connected(&self) -> usize {
        self.listed.len()
    }

    fn traffic(&self) -> Traffic {
        let datagrams = self.inbox.stats().datagrams + self.outbox.stats().datagrams;
        Traffic { datagrams, messages: self.messages.0 }
    }
}

impl Client {
    fn tick(&mut self, now: Time) -> anyhow::Result<()> {
        let mut buffer = [0; DATAGRAM_BYTES];
        while let Some(datagram) = sockets::receive(&self.socket, &mut buffer)? {
            match &mut self.stage {
                // What is not for it is dropped.
                Stage::Connecting(connecting) => {
                    if let Ok(Some(connection)) = connecting.handle(now, datagram) {
                        self.stage = Stage::Connected(Box::new(connection));
                    }
                }
                Stage::Connected(connection) => drop(connection.handle(now, datagram, &mut Count::default())),
            }
        }
        match &mut self.stage {
            Stage::Connecting(connecting) => {
                connecting.on_timeout(now)?;
                while let Some(len) = connecting.poll_transmit(now, &mut buffer) {
                    sockets::send(&self.socket, &buffer[..len])?;
                }
            }
            Stage::Connected(connection) => {
                connection.on_timeout(now);
                if let Some(mut packet) = connection.packet(now, &mut buffer) {
                    packet
                        .message(MESSAGE, |writer| writer.bytes(&[1; UP_BYTES]))
                        .map_err(|full| anyhow!("{full:?}"))?;
                    let sent = packet.finish();
                    sockets::send(&self.socket, &buffer[..sent.len])?;
                }
                while let Some(len) = connection.poll_transmit(now, &mut buffer) {
                    sockets::send(&self.socket, &buffer[..len])?;
                }
            }
        }
        Ok(())
    }

    fn is_connected(&self) -> bool {
        matches!(&self.stage, Stage::Connected(connection) if connection.state() == State::Established)
    }
}

impl Clients for ShadowlandClients {
    fn tick(&mut self) -> anyhow::Result<()> {
        self.clients.iter_mut().try_for_each(|client| client.tick(now(self.clock)))
    }

    fn connected(&self) -> usize {
        self.clients.iter().filter(|client| client.is_connected()).count()
    }
}
