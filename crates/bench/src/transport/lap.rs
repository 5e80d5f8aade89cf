//! One lap of a contender: connect everybody, warm up, measure.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::TICK_HZ;
use crate::clock::thread_cpu;

/// Clients have so long to connect.
const CONNECT_PATIENCE: Duration = Duration::from_secs(60);
/// Pause between the ticks in which clients connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(2);
/// Ticks between the last client's connecting and the measurement.
const WARM_UP_TICKS: u32 = 30;
/// How nice the clients are to others, as bots are: on a busy machine more would stop them.
const NICE: i32 = 5;

/// The server's side of a contender, on a thread of its own.
pub(super) trait Server: Send {
    /// Receives what has arrived, and sends each client that is connected its message.
    fn tick(&mut self) -> anyhow::Result<()>;
    /// Clients that it takes for connected.
    fn connected(&self) -> usize;
    /// What it has sent and received so far.
    fn traffic(&self) -> Traffic;
}

/// The clients of a contender, all on one thread.
pub(super) trait Clients: Send {
    /// Receives what has arrived, goes on connecting, and sends the message of each client that is connected.
    fn tick(&mut self) -> anyhow::Result<()>;
    /// Clients that are connected.
    fn connected(&self) -> usize;
    /// Datagrams that they have sent and received, where the library does not tell the server's.
    fn datagrams(&self) -> u64 {
        0
    }
}

/// What went through a server, both directions together.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Traffic {
    /// Datagrams, with those that a library sends on its own account; 0 where it does not tell.
    pub(super) datagrams: u64,
    /// Messages of the game.
    pub(super) messages: u64,
}

/// What a lap took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) cpu: Duration,
    pub(super) wall: Duration,
    pub(super) packets: u64,
    pub(super) messages: u64,
}

impl Cost {
    pub(super) fn ns_per_packet(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.packets as f64
    }

    pub(super) fn ns_per_message(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.messages as f64
    }
}

/// What the server's thread is to tell after a tick: summing up traffic takes time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Traffic,
    Nothing,
}

/// What the server's thread tells after a tick.
#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    cpu: Duration,
    traffic: Traffic,
    connected: usize,
}

/// Runs a contender: `ticks` of them are measured.
pub(super) fn run(
    clients: usize,
    ticks: u32,
    (server, side): (impl Server, impl Clients),
) -> anyhow::Result<Cost> {
    let (start_tick, started_ticks) = channel();
    let (tell, told) = channel();
    thread::scope(|scope| {
        // Named, for profilers.
        let thread = thread::Builder::new().name("server".to_owned());
        thread.spawn_scoped(scope, move || serve(server, &started_ticks, &tell))?;
        let orchestrate = move || Lap { side, start_tick, told }.run(clients, ticks);
        scope.spawn(orchestrate).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn serve(mut server: impl Server, start: &Receiver<Ask>, tell: &Sender<anyhow::Result<Reading>>) {
    for ask in start {
        let reading = server.tick().map(|()| Reading {
            cpu: thread_cpu(),
            traffic: if ask == Ask::Traffic { server.traffic() } else { Traffic::default() },
            connected: server.connected(),
        });
        if tell.send(reading).is_err() {
            return;
        }
    }
}

/// The clients' thread, which sets the pace.
struct Lap<C> {
    side: C,
    start_tick: Sender<Ask>,
    told: Receiver<anyhow::Result<Reading>>,
}

impl<C: Clients> Lap<C> {
    fn run(mut self, clients: usize, ticks: u32) -> anyhow::Result<Cost> {
        // Of the calling thread; to be nicer is always allowed.
        let _ = rustix::process::setpriority_process(None, NICE);
        self.connect(clients)?;
        self.ticks(WARM_UP_TICKS)?;
        let (before, before_us) = (self.tick(Ask::Traffic)?, self.side.datagrams());
        let started = Instant::now();
        self.ticks(ticks - 1)?;
        let (after, after_us) = (self.tick(Ask::Traffic)?, self.side.datagrams());
        if after.connected < clients {
            bail!("{} of {clients} clients are still connected", after.connected);
        }
        Ok(Cost {
            cpu: after.cpu - before.cpu,
            wall: started.elapsed(),
            packets: (after.traffic.datagrams - before.traffic.datagrams) + (after_us - before_us),
            messages: after.traffic.messages - before.traffic.messages,
        })
    }

    fn connect(&mut self, clients: usize) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let reading = self.tick(Ask::Nothing)?;
            let connected = reading.connected.min(self.side.connected());
            if connected >= clients {
                return Ok(());
            }
            if started.elapsed() > CONNECT_PATIENCE {
                bail!("only {connected} of {clients} clients have connected");
            }
            thread::sleep(CONNECT_PAUSE);
        }
    }

    /// Ticks at the game's pace, or slower where the machine does not keep it.
    fn ticks(&mut self, ticks: u32) -> anyhow::Result<()> {
        let started = Instant::now();
        for tick in 0..ticks {
            let due = Duration::from_secs(1) * tick / TICK_HZ;
            thread::sleep(due.saturating_sub(started.elapsed()));
            self.tick(Ask::Nothing)?;
        }
        Ok(())
    }

    fn tick(&mut self, ask: Ask) -> anyhow::Result<Reading> {
        self.side.tick()?;
        self.start_tick.send(ask).ok().context("the server's thread has ended")?;
        self.told.recv().context("the server's thread has ended")?
    }
}
