//! A running server: its threads, and the handle by which others watch and stop it.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use mio::{Interest, Poll, Waker};
use rand::SeedableRng;
use rand::rngs::{StdRng, SysRng};
use shadowland_proto::{Identity, KEY_LOG_VARIABLE, KeyLog, TokenVerifier};
use shadowland_udp::UdpSocket;
use shadowland_world::Frame;
use thiserror::Error;

use crate::config::{Auth, Config};
use crate::control::{Alive, Control};
use crate::cpus::{self, CpuList};
use crate::embed::{self, Assembly, Guards, Hub};
use crate::game::Game;
use crate::handover::{self, Handover};
use crate::integrity::{self, IntegrityError};
use crate::mail::Mailbox;
use crate::queue::{FrameSlot, FrameTaps};
use crate::schedule::Clock;
use crate::sockets::{self, SocketTruth, Steered};
use crate::stats::{Latencies, ServerStats, Shared, TickStats, WorkerStats};
use crate::tokens::{self, TokenKeyError};
use crate::worker::{self, RoundTime, Worker};
use crate::world_thread::{WorkerLink, WorldThread};

pub use crate::queue::Published;

/// A subscription to the frames of a server.
pub type FrameTap = crate::queue::FrameTap<Frame>;

/// Why a server did not start; every message is one line.
#[derive(Debug, Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address}: {source}; allowed: an address of this machine and a UDP port that no other \
         program uses (network.listen, --listen)"
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// Workers cannot be pinned as they are to be.
    #[error(
        "network.worker_cpus names CPUs that this process may not use: {forbidden:?}; allowed: some of {allowed}, or \
         nothing"
    )]
    Cpus {
        /// Those that are not allowed.
        forbidden: Vec<usize>,
        /// Those that are.
        allowed: CpuList,
    },
    /// A configuration that was not made of settings, which are checked when they are read, asks for what cannot be.
    #[error("the configuration cannot be: {0}")]
    Config(String),
    /// Login tokens cannot be checked.
    #[error(transparent)]
    TokenKeys(#[from] TokenKeyError),
    /// The integrity of clients cannot be checked.
    #[error(transparent)]
    Integrity(#[from] IntegrityError),
    /// Keys cannot be logged as asked for.
    #[error("{path}: cannot log keys there ({KEY_LOG_VARIABLE}): {source}")]
    KeyLog {
        /// The file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// The system lacks something else.
    #[error("cannot {what}: {source}")]
    System {
        /// What failed.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

/// A running server. Dropping it stops it as [`shutdown`](Server::shutdown) does.
#[derive(Debug)]
pub struct Server {
    local_addr: SocketAddr,
    public_key: [u8; 32],
    sockets: SocketTruth,
    cpus: CpuList,
    control: Arc<Control>,
    wakers: Vec<Arc<Waker>>,
    worker_stats: Vec<Arc<Shared<WorkerStats>>>,
    latencies: Vec<Arc<Shared<Latencies>>>,
    tick_stats: Arc<Shared<TickStats>>,
    taps: Arc<FrameTaps<Frame>>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Binds the sockets and starts all threads. Clients can connect when it returns.
    ///
    /// # Errors
    /// If an address or something else that it needs of the system is not to be had.
    pub fn start(config: Config, identity: Identity) -> Result<Self, StartError> {
        Self::start_with_game(config, identity, |_nobody_reads| ())
    }

    /// As [`Server::start`], with a [`Game`] that is called in every tick, on the thread of the world. `game` makes it,
    /// before anything runs, of its end of the messages that it has for its players, or they for it. It has to read the
    /// mailbox, there or elsewhere, or drop it: while nobody does, what players say is not taken, and after a while nobody
    /// is let in.
    ///
    /// # Errors
    /// As of [`Server::start`].
    pub fn start_with_game<G: Game + 'static>(
        config: Config,
        identity: Identity,
        game: impl FnOnce(Mailbox) -> G,
    ) -> Result<Self, StartError> {
        config.check().map_err(StartError::Config)?;
        let mut rng = StdRng::try_from_rng(&mut SysRng)
            .map_err(|error| system("get randomness", io::Error::other(error)))?;
        let keys = match &config.security.auth {
            Auth::Open => None,
            Auth::Token { keys } => Some(tokens::load_keys(keys)?),
        };
        let forbidden = config.network.worker_cpus.forbidden();
        if !forbidden.is_empty() {
            return Err(StartError::Cpus { forbidden, allowed: CpuList::allowed() });
        }
        let checks = config.security.integrity.as_ref();
        let integrity = checks.map(|checks| integrity::load_tables(&checks.tables)).transpose()?;
        let key_log = config.security.key_log.as_deref().map(start_key_log).transpose()?;
        let (sockets, truth) = sockets::bind(&config)?;
        let local_addr = sockets[0].local_addr().map_err(|error| system("tell the bound address", error))?;

        let clock = Clock::start();
        let mut server = Self {
            local_addr,
            public_key: identity.public_key(),
            sockets: truth,
            cpus: config.network.worker_cpus.clone(),
            control: Arc::default(),
            wakers: Vec::new(),
            worker_stats: Vec::new(),
            latencies: Vec::new(),
            tick_stats: Arc::new(Shared::new(TickStats::new())),
            taps: Arc::new(FrameTaps::new()),
            threads: Vec::new(),
        };
        let tokens = keys.map(|keys| Arc::new(TokenVerifier::new(keys)));
        let workers = sockets.len();
        let guards = Guards { tokens, integrity, key_log };
        let Assembly { hubs, mut world, mailbox } =
            embed::assemble_guarded(&config, workers, &identity, &guards, &mut rng);
        world.set_game(game(mailbox));
        let mut ears = Vec::new();
        for socket in sockets {
            let ear = Ear::new(socket).map_err(|error| system("wait for datagrams", error))?;
            server.wakers.push(Arc::clone(&ear.waker));
            ears.push(ear);
        }
        let mut handovers = match truth.steering {
            Steered::ByWorkers => handover::connect(&server.wakers),
            Steered::Alone | Steered::ByKernel => Vec::new(),
        }
        .into_iter();
        let mut links = Vec::new();
        for (index, (ear, hub)) in ears.into_iter().zip(hubs).enumerate() {
            links.push(server.start_worker(
                index,
                ear,
                hub,
                handovers.next(),
                clock,
                guards.tokens.clone(),
            )?);
        }
        let world = WorldThread::new(
            world,
            links,
            Arc::clone(&server.taps),
            clock,
            Arc::clone(&server.tick_stats),
            Arc::clone(&server.control),
        );
        server.spawn("world".to_owned(), move || world.run())?;
        tracing::info!(address = %server.local_addr, workers, "serving: {truth}");
        Ok(server)
    }

    /// The address that the server listens on, with the real port.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The public key that clients must know.
    #[must_use]
    pub fn public_key(&self) -> [u8; 32] {
        self.public_key
    }

    /// What the system gave the sockets.
    #[must_use]
    pub fn sockets(&self) -> &SocketTruth {
        &self.sockets
    }

    /// A copy of all counters, at most a tick old.
    #[must_use]
    pub fn stats(&self) -> ServerStats {
        let mut latencies = Latencies::new();
        for worker in &self.latencies {
            latencies.add(&worker.lock());
        }
        ServerStats { latencies, workers: self.worker_stats(), ticks: self.tick_stats.lock().clone() }
    }

    /// Of these the workers' counters alone, which cost little to copy.
    #[must_use]
    pub fn worker_stats(&self) -> Vec<WorkerStats> {
        self.worker_stats.iter().map(|stats| *stats.lock()).collect()
    }

    /// Subscribes to every frame that is published from now on. Up to `capacity` frames wait for the
    /// subscriber; those that find no room are missing and counted.
    #[must_use]
    pub fn frame_tap(&self, capacity: usize) -> FrameTap {
        self.taps.subscribe(capacity)
    }

    /// Stops or starts everything in the world that moves by itself, from the next tick on.
    pub fn pause_creatures(&self, paused: bool) {
        self.control.pause_creatures(paused);
    }

    /// Whether a thread has panicked; the others then end by themselves.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.control.has_failed()
    }

    /// Tells all players that the server stops, and returns when its threads have ended. Returns the final
    /// counters.
    pub fn shutdown(mut self) -> ServerStats {
        self.stop();
        self.stats()
    }

    fn start_worker(
        &mut self,
        index: usize,
        ear: Ear,
        hub: Hub,
        handover: Option<Handover>,
        clock: Clock,
        tokens: Option<Arc<TokenVerifier>>,
    ) -> Result<WorkerLink, StartError> {
        let Ear { poll, socket, waker } = ear;
        let frames = Arc::new(FrameSlot::new());
        let stats = Arc::new(Shared::new(WorkerStats::default()));
        let latencies = Arc::new(Shared::new(Latencies::new()));
        let parts = worker::Parts {
            poll,
            socket,
            hub,
            handover,
            frames: Arc::clone(&frames),
            round_time: RoundTime::SERVER,
            clock,
            tokens,
            control: Arc::clone(&self.control),
            stats: Arc::clone(&stats),
            latencies: Arc::clone(&latencies),
        };
        let worker = Worker::new(parts);
        self.worker_stats.push(stats);
        self.latencies.push(latencies);
        let cpu = self.cpus.of(index);
        self.spawn(format!("io-{index}"), move || {
            if let Some(cpu) = cpu
                && let Err(error) = cpus::pin(cpu)
            {
                tracing::warn!(%error, "worker {index} is not kept on CPU {cpu}, and runs anywhere");
            }
            worker.run();
        })?;
        Ok(WorkerLink { frames, waker })
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
        let control = Arc::clone(&self.control);
        let run = move || {
            let _alive = Alive(&control);
            run();
        };
        let thread = thread::Builder::new().name(name).spawn(run);
        self.threads.push(thread.map_err(|error| system("start a thread", error))?);
        Ok(())
    }

    fn stop(&mut self) {
        self.control.stop();
        for waker in &self.wakers {
            // A worker that cannot be woken looks up by itself after a while.
            let _ = waker.wake();
        }
        for thread in self.threads.drain(..) {
            // Its panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A worker's socket, and what it waits with.
pub(crate) struct Ear {
    pub(crate) poll: Poll,
    pub(crate) socket: UdpSocket,
    pub(crate) waker: Arc<Waker>,
}

impl Ear {
    pub(crate) fn new(mut socket: UdpSocket) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.registry().register(&mut socket, worker::SOCKET, Interest::READABLE)?;
        let waker = Arc::new(Waker::new(poll.registry(), worker::WAKER)?);
        Ok(Self { poll, socket, waker })
    }
}

/// Opens the key log, and says so: whoever has it reads along.
fn start_key_log(path: &Path) -> Result<Arc<KeyLog>, StartError> {
    let log = KeyLog::append(path)
        .map_err(|source| StartError::KeyLog { path: path.display().to_string(), source })?;
    tracing::warn!(
        file = %path.display(),
        "the keys of all sessions are logged ({KEY_LOG_VARIABLE}): whoever reads this file can decrypt them"
    );
    Ok(Arc::new(log))
}

fn system(what: &'static str, source: io::Error) -> StartError {
    StartError::System { what, source }
}
