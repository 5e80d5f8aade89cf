//! The server under virtual time: the parts of the real one, driven as its threads drive them, with all that a
//! busy machine does to them: workers that come late or have no time for all sessions, and sockets that take nothing for
//! a while.

use std::net::SocketAddr;
use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;
use shadowland_proto::{Identity, Slot, Time};
use shadowland_server::config::Config;
use shadowland_server::embed::{Assembly, Guards, Hub, Outbox, WorldSide, assemble_guarded};
use shadowland_wire::limits::DATAGRAM_BYTES;
use shadowland_world::{Frame, Tick};

/// What a busy machine does to its threads.
#[derive(Debug, Clone, Copy)]
pub struct Hiccups {
    /// Share of the rounds after which a worker gets no processor for up to 60 ms.
    pub late: f64,
    /// Share of the attempts to send that find the socket buffer full.
    pub blocked: f64,
    /// Share of the rounds that end when a few sessions were served.
    pub cut: f64,
    /// Datagrams that a worker hands to the kernel at once.
    pub batch: usize,
}

impl Hiccups {
    /// None at all, and batches as the server's.
    pub const NONE: Self = Self { late: 0.0, blocked: 0.0, cut: 0.0, batch: 64 };
}

/// Sessions that a round serves which ends early, at most.
const FEW: usize = 4;

/// The server.
pub struct Machine {
    world: WorldSide,
    stations: Vec<Station>,
    hiccups: Hiccups,
    random: Pcg32,
    /// For rounds that end early.
    cuts: Pcg32,
    latest: Option<Arc<Frame>>,
}

/// A worker.
struct Station {
    hub: Hub,
    outbox: Batch,
    /// The frame that waits for it: the latest wins.
    waiting: Option<Arc<Frame>>,
    /// It does nothing before this time, in microseconds.
    free_at_us: u64,
    /// The tick of the last round in which it served everybody.
    served: Tick,
    round: Tick,
    /// Sessions that the round may still serve.
    most: usize,
}

impl Machine {
    /// A server of so many workers with these guards, all whose randomness is the seed's.
    #[must_use]
    pub fn new(
        config: &Config,
        workers: usize,
        identity: &Identity,
        guards: &Guards,
        hiccups: Hiccups,
        seed: u64,
    ) -> Self {
        let mut crypto = rand::rngs::StdRng::seed_from_u64(seed);
        let Assembly { hubs, world, .. } = assemble_guarded(config, workers, identity, guards, &mut crypto);
        let station = |hub| Station {
            hub,
            outbox: Batch::new(hiccups.batch),
            waiting: None,
            free_at_us: 0,
            served: 0,
            round: 0,
            most: 0,
        };
        Self {
            world,
            stations: hubs.into_iter().map(station).collect(),
            hiccups,
            random: Pcg32::seed_from_u64(seed),
            cuts: Pcg32::seed_from_u64(seed.wrapping_add(1)),
            latest: None,
        }
    }

    /// The world and its queues.
    pub fn world(&mut self) -> &mut WorldSide {
        &mut self.world
    }

    /// From now on no round ends early.
    pub fn keep_up(&mut self) {
        self.hiccups.cut = 0.0;
    }

    /// The workers' hubs.
    pub fn hubs(&mut self) -> impl Iterator<Item = &mut Hub> {
        self.stations.iter_mut().map(|station| &mut station.hub)
    }

    /// The latest frame, and those hubs that have served everybody with it.
    pub fn served(&mut self) -> Option<(&Frame, impl Iterator<Item = &mut Hub>)> {
        let Self { latest, stations, .. } = self;
        let frame = latest.as_deref()?;
        let done = move |station: &&mut Station| station.served == frame.tick();
        Some((frame, stations.iter_mut().filter(done).map(|station| &mut station.hub)))
    }

    /// Takes a datagram, as steered by the kernel: by the worker in its connection id, or else by its sender.
    pub fn receive(&mut self, now_us: u64, from: SocketAddr, datagram: &mut [u8], deliver: &mut Deliver<'_>) {
        let worker = match Slot::claimed_by(datagram) {
            Some(slot) => usize::from(slot.worker()),
            None => usize::from(from.port()) % self.stations.len(),
        };
        let Some(station) = self.stations.get_mut(worker) else { return };
        if station.outbox.is_full() {
            station.outbox.drain(deliver);
        }
        station.hub.receive(Time::from_micros(now_us), from, datagram, &mut station.outbox);
        station.outbox.drain(deliver);
    }

    /// One tick of the world; its frame waits for the workers.
    pub fn tick(&mut self) {
        self.world.hear_completions(|_, _, _| {});
        self.world.tick();
        self.latest = None;
        let frame = self.world.publish();
        for station in &mut self.stations {
            station.waiting = Some(Arc::clone(&frame));
        }
        self.latest = Some(frame);
    }

    /// When a worker has something to do.
    #[must_use]
    pub fn next_work_us(&self) -> Option<u64> {
        let busy = |station: &&Station| station.waiting.is_some() || station.hub.is_in_round();
        self.stations.iter().filter(busy).map(|station| station.free_at_us).min()
    }

    /// Lets the workers do what they can do now.
    pub fn work(&mut self, now_us: u64, deliver: &mut Deliver<'_>) {
        let players = self.world.world().player_count();
        for station in self.stations.iter_mut().filter(|station| station.free_at_us <= now_us) {
            station.turn(now_us, players, self.hiccups, (&mut self.random, &mut self.cuts), deliver);
        }
    }
}

/// Takes a datagram that leaves the server.
pub type Deliver<'a> = dyn FnMut(SocketAddr, &[u8]) + 'a;

impl Station {
    /// As a worker's loop does it.
    fn turn(
        &mut self,
        now_us: u64,
        players: usize,
        hiccups: Hiccups,
        (random, cuts): (&mut Pcg32, &mut Pcg32),
        deliver: &mut Deliver<'_>,
    ) {
        let now = Time::from_micros(now_us);
        self.hub.hear_world(now);
        if !self.hub.is_in_round() {
            let Some(frame) = self.waiting.take() else { return };
            self.round = frame.tick();
            self.hub.start_round(now, frame, players);
            self.most = if cuts.random_bool(hiccups.cut) { cuts.random_range(1..=FEW) } else { usize::MAX };
        }
        let blocked = random.random_bool(hiccups.blocked);
        while self.hub.has_unserved() && self.most > 0 {
            if self.outbox.len() >= self.outbox.slots() / 2 && !blocked {
                self.outbox.drain(deliver);
            }
            if self.outbox.is_full() {
                break;
            }
            self.hub.serve_next(now, &mut self.outbox);
            self.most -= 1;
        }
        if blocked {
            self.free_at_us = now_us + random.random_range(100..5_000);
            return;
        }
        self.outbox.drain(deliver);
        if !self.hub.has_unserved() {
            self.served = self.round;
        }
        self.hub.end_round(now);
        if random.random_bool(hiccups.late) {
            self.free_at_us = now_us + random.random_range(0..60_000);
        }
    }
}

/// Datagrams that wait to leave, in slots that are allocated once.
struct Batch {
    buffers: Box<[[u8; DATAGRAM_BYTES]]>,
    departures: Vec<(SocketAddr, usize)>,
}

impl Batch {
    fn new(slots: usize) -> Self {
        let buffers = vec![[0; DATAGRAM_BYTES]; slots].into_boxed_slice();
        Self { buffers, departures: Vec::with_capacity(slots) }
    }

    fn slots(&self) -> usize {
        self.buffers.len()
    }

    fn len(&self) -> usize {
        self.departures.len()
    }

    fn is_full(&self) -> bool {
        self.len() == self.slots()
    }

    fn drain(&mut self, deliver: &mut Deliver<'_>) {
        for ((to, len), buffer) in self.departures.drain(..).zip(&self.buffers) {
            deliver(to, &buffer[..len]);
        }
    }
}

impl Outbox for Batch {
    fn slot(&mut self) -> Option<&mut [u8; DATAGRAM_BYTES]> {
        self.buffers.get_mut(self.departures.len())
    }

    fn commit(&mut self, len: usize, to: SocketAddr) {
        assert!(!self.is_full(), "commit without a slot");
        self.departures.push((to, len));
    }
}
