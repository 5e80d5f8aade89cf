//! QUIC datagrams with quinn, on a runtime of one thread. It runs only during the ticks, and every tick lasts until
//! all that has arrived is read and all that was sent has left. Clients share sockets: each takes 3 MiB of buffers here.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ::quinn::rustls::RootCertStore;
use ::quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, Incoming, ServerConfig, TokioRuntime};
use bytes::Bytes;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;

use super::lap::{Clients, Server, Traffic};
use super::{DOWN_BYTES, UP_BYTES, sockets};

const NAME: &str = "localhost";
/// Sockets that the clients share.
const CLIENT_SOCKETS: usize = 16;
/// Looks without anything new after which a tick is over although something is missing: it was lost, or waits for
/// a timer.
const IDLE_LOOKS: u32 = 32;
/// Looks in which what was queued leaves.
const SEND_LOOKS: u32 = 4;

/// One side: its runtime and its connections.
struct Side {
    runtime: Runtime,
    shared: Arc<Shared>,
    /// Messages read when all were last read.
    read: u64,
    sent: u64,
    message: Bytes,
}

/// What the tasks of a side leave.
#[derive(Default)]
struct Shared {
    connections: Mutex<Vec<Connection>>,
    read: AtomicU64,
}

struct QuinnServer(Side);

struct QuinnClients(Side);

pub(super) fn start(clients: usize) -> anyhow::Result<(impl Server, impl Clients)> {
    let certified = rcgen::generate_simple_self_signed(vec![NAME.to_owned()])?;
    let certificate = certified.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let server_config = ServerConfig::with_single_cert(vec![certificate.clone()], key.into())?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate)?;
    let client_config = ClientConfig::with_root_certificates(Arc::new(roots))?;

    let server = Side::new(&[1; DOWN_BYTES])?;
    let address = server.listen(server_config)?;
    let side = Side::new(&[1; UP_BYTES])?;
    for socket in 0..CLIENT_SOCKETS.min(clients) {
        let of_socket = (socket..clients).step_by(CLIENT_SOCKETS).len();
        side.connect(address, &client_config, of_socket)?;
    }
    Ok((QuinnServer(server), QuinnClients(side)))
}

impl Side {
    fn new(message: &'static [u8]) -> anyhow::Result<Self> {
        Ok(Self {
            runtime: Builder::new_current_thread().enable_all().build()?,
            shared: Arc::default(),
            read: 0,
            sent: 0,
            message: Bytes::from_static(message),
        })
    }

    fn listen(&self, config: ServerConfig) -> anyhow::Result<SocketAddr> {
        let _inside = self.runtime.enter();
        let socket = sockets::server()?;
        let endpoint =
            Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(TokioRuntime))?;
        let address = endpoint.local_addr()?;
        let shared = Arc::clone(&self.shared);
        self.runtime.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                tokio::spawn(accept(incoming, Arc::clone(&shared)));
            }
        });
        Ok(address)
    }

    /// Connects so many clients from one socket.
    fn connect(&self, server: SocketAddr, config: &ClientConfig, clients: usize) -> anyhow::Result<()> {
        let _inside = self.runtime.enter();
        let endpoint =
            Endpoint::new(EndpointConfig::default(), None, sockets::client()?, Arc::new(TokioRuntime))?;
        for _ in 0..clients {
            let connecting = endpoint.connect_with(config.clone(), server, NAME)?;
            let shared = Arc::clone(&self.shared);
            self.runtime.spawn(async move {
                // Who does not come in is missing in the count of connections.
                if let Ok(connection) = connecting.await {
                    shared.read_all(connection).await;
                }
            });
        }
        Ok(())
    }

    /// Reads a message of each connection, and sends one on each.
    fn tick(&mut self) -> anyhow::Result<()> {
        let Self { runtime, shared, read, sent, message } = self;
        runtime.block_on(async {
            let expected = *read + shared.connections().len() as u64;
            let mut idle = 0;
            while shared.read() < expected && idle < IDLE_LOOKS {
                let before = shared.read();
                yield_now().await;
                idle = if shared.read() == before { idle + 1 } else { 0 };
            }
            *read = shared.read();
            for connection in shared.connections().iter() {
                connection.send_datagram(message.clone())?;
                *sent += 1;
            }
            for _ in 0..SEND_LOOKS {
                yield_now().await;
            }
            Ok(())
        })
    }
}

impl Shared {
    async fn read_all(&self, connection: Connection) {
        self.connections().push(connection.clone());
        while connection.read_datagram().await.is_ok() {
            self.read.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn connections(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

async fn accept(incoming: Incoming, shared: Arc<Shared>) {
    if let Ok(connection) = incoming.await {
        shared.read_all(connection).await;
    }
}

impl Server for QuinnServer {
    fn tick(&mut self) -> anyhow::Result<()> {
        self.0.tick()
    }

    fn connected(&self) -> usize {
        self.0.shared.connections().len()
    }

    fn traffic(&self) -> Traffic {
        let stats = self.0.shared.connections();
        let stats = stats.iter().map(Connection::stats);
        let datagrams = stats.map(|stats| stats.udp_tx.datagrams + stats.udp_rx.datagrams).sum();
        Traffic { datagrams, messages: self.0.shared.read() + self.0.sent }
    }
}

impl Clients for QuinnClients {
    fn tick(&mut self) -> anyhow::Result<()> {
        self.0.tick()
    }

    fn connected(&self) -> usize {
        self.0.shared.connections().len()
    }
}
