//! A thread and its bots.
//!
//! The bots are served in turn, spread evenly over the interval in which each sends once, so that the thread
//! sends a small batch at a time instead of all at once. In between it takes what has arrived.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};
use rand::rngs::StdRng;
use shadowland_client::replica::Watcher;
use shadowland_client::session::{End, Event, Session};
use shadowland_prefetch::prefetch;
use shadowland_proto::Time;
use shadowland_udp::{DATAGRAM, RecvBatch, SendBatch};
use shadowland_wire::block::EntityRecord;

use crate::fleet::{BotsConfig, INPUT_HZ, Inspection, Shared, ThreadStats};
use crate::latency::Sample;
use crate::line::Line;
use crate::shared_socket::SharedSocket;
use crate::wander::{Pursuit, Wanderer};

/// Datagrams a system call.
const BATCH: usize = 64;
/// Batches that are taken from a socket before somebody else's turn.
const BATCHES_PER_TURN: usize = 8;
/// Bots whose memory is fetched ahead: more play than a cache holds.
const AHEAD: usize = 8;
/// Bots that are served before the sockets' turn. A thread with too much to do rather sends less than that it
/// shows what has long passed: what arrives waits for no more than these.
const BOTS_PER_TURN: u64 = 64;
/// So long the thread sleeps when nothing is due, whatever arrives meanwhile: datagrams then come and go in batches,
/// and a server on the same machine does not pay for waking it, as it does not for players elsewhere. It is the
/// resolution of latencies.
const PAUSE: Duration = Duration::from_millis(1);
/// How often the thread tells its counters.
const TELL_EVERY: Duration = Duration::from_millis(20);
/// Samples that wait for whoever drains them; further ones are dropped and counted.
const SAMPLES_WAITING: usize = 1 << 20;

/// The clock of all bots of a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(pub(crate) Instant);

impl Clock {
    pub(crate) fn now(self) -> Time {
        self.at(Instant::now())
    }

    /// What the clock showed then; zero for what was before it started.
    pub(crate) fn at(self, instant: Instant) -> Time {
        let passed = instant.saturating_duration_since(self.0).as_micros();
        Time::from_micros(u64::try_from(passed).unwrap_or(u64::MAX))
    }
}

struct Bot {
    index: usize,
    socket: usize,
    starts_at: Time,
    mind: Wanderer,
    /// `None` until it starts to connect.
    session: Option<Session>,
    plays: bool,
    samples: bool,
    /// `None` where nothing is between it and its socket.
    line: Option<Box<Line>>,
}

/// A thread's part of the fleet.
pub(crate) struct Driver {
    config: Arc<BotsConfig>,
    shared: Arc<Shared>,
    /// This thread's number.
    thread: usize,
    inspections: Receiver<Inspection>,
    clock: Clock,
    rng: StdRng,
    poll: Poll,
    sockets: Vec<SharedSocket>,
    bots: Vec<Bot>,
    outbox: SendBatch,
    /// The socket that the outbox is for.
    outbox_socket: usize,
    /// Turns that bots have had or missed, all together.
    turns: u64,
    /// Whose turn is next: one after the other, also when turns are missed.
    next: usize,
    samples: Vec<Sample>,
    stats: ThreadStats,
    told_at: Time,
}

impl Driver {
    /// Opens the sockets for the thread's bots. `rng` makes their keys.
    pub(crate) fn new(
        config: Arc<BotsConfig>,
        shared: Arc<Shared>,
        thread: usize,
        inspections: Receiver<Inspection>,
        clock: Clock,
        rng: StdRng,
    ) -> io::Result<Self> {
        let threads = config.threads();
        let (first, count) = config.share(thread);
        let per_socket = config.bots_per_socket;
        let poll = Poll::new()?;
        let mut sockets = Vec::new();
        for number in 0..config.sockets(thread) {
            let mut socket = SharedSocket::open(config.server)?;
            poll.registry().register(&mut socket.socket, Token(number), Interest::READABLE)?;
            sockets.push(socket);
        }
        let bots = (0..count).map(|number| Bot {
            index: first + number,
            socket: number / per_socket,
            starts_at: config.connect_at(number * threads + thread),
            mind: Wanderer::new(config.seed, first + number, Pursuit::Wander),
            session: None,
            plays: false,
            samples: config.is_sampled(first + number),
            line: config.net.map(|net| Box::new(Line::new(&net, config.seed, first + number))),
        });
        Ok(Self {
            bots: bots.collect(),
            config,
            shared,
            thread,
            inspections,
            clock,
            rng,
            poll,
            sockets,
            outbox: SendBatch::joining(BATCH),
            outbox_socket: 0,
            turns: 0,
            next: 0,
            samples: Vec::new(),
            stats: ThreadStats::default(),
            told_at: Time::default(),
        })
    }

    /// Drives the bots until they are to stop.
    pub(crate) fn run(mut self) {
        lower_priority(self.config.nice);
        let mut events = Events::with_capacity(256);
        let mut inbox = RecvBatch::new(BATCH);
        while !self.shared.stops() {
            if !self.is_behind() {
                thread::sleep(PAUSE);
            }
            if let Err(error) = self.poll.poll(&mut events, Some(Duration::ZERO))
                && error.kind() != io::ErrorKind::Interrupted
            {
                self.stats.errors += 1;
                thread::sleep(PAUSE);
            }
            for event in &events {
                self.sockets[event.token().0].readable = true;
            }
            for socket in 0..self.sockets.len() {
                if self.sockets[socket].readable {
                    self.receive(socket, &mut inbox);
                }
            }
            if self.config.net.is_some() {
                self.move_lines();
            }
            self.serve_due();
            self.flush();
            self.tell(&inbox);
            while let Ok(inspection) = self.inspections.try_recv() {
                let mut sessions =
                    self.bots.iter().filter_map(|bot| Some((bot.index, bot.session.as_ref()?)));
                inspection(&mut sessions);
            }
        }
        self.leave();
        self.told_at = Time::default();
        self.tell(&inbox);
    }

    /// Whether there is more to do than fits into a batch.
    fn is_behind(&self) -> bool {
        let overdue = self.turns_due(self.clock.now()).saturating_sub(self.turns);
        overdue >= BATCH as u64 || self.sockets.iter().any(|socket| socket.readable)
    }

    /// Turns that all bots together should have had by now.
    fn turns_due(&self, now: Time) -> u64 {
        now.as_micros() * 1_000 / self.turn_ns()
    }

    /// From one bot's turn to the next one's.
    fn turn_ns(&self) -> u64 {
        1_000_000_000 / (u64::from(self.config.send_hz) * self.bots.len() as u64)
    }

    /// Takes what has arrived at a socket, as far as its turn goes.
    fn receive(&mut self, socket: usize, inbox: &mut RecvBatch) {
        for _ in 0..BATCHES_PER_TURN {
            let received = match self.sockets[socket].socket.recv(inbox) {
                Ok(received) => received,
                Err(_) => {
                    self.stats.errors += 1;
                    0
                }
            };
            let now = self.clock.now();
            let recipients = self.route(socket, inbox);
            for slot in 0..received {
                if let Some(&Some(bot)) = recipients.get(slot + AHEAD) {
                    self.prefetch_session(bot);
                }
                if let Some(&Some(bot)) = recipients.get(slot + AHEAD / 2)
                    && let Bot { session: Some(session), line: None, .. } = &self.bots[bot]
                {
                    session.prefetch_more();
                }
                let Some((_, datagram)) = inbox.datagram(slot) else { continue };
                let Some(bot) = recipients[slot] else {
                    // Such as a second answer to a request that was repeated.
                    self.stats.strays += 1;
                    continue;
                };
                match &mut self.bots[bot].line {
                    Some(line) => line.arrive(now, datagram),
                    None => self.hand_over(now, bot, datagram),
                }
            }
            if received < BATCH {
                self.sockets[socket].readable = false;
                return;
            }
        }
    }

    /// The bots that the datagrams of a batch are for, whose memory is on its way from here on.
    fn route(&self, socket: usize, inbox: &mut RecvBatch) -> [Option<usize>; BATCH] {
        let mut recipients = [None; BATCH];
        for (slot, recipient) in recipients.iter_mut().enumerate().take(inbox.filled()) {
            let Some((from, datagram)) = inbox.datagram(slot) else { continue };
            if from == self.config.server {
                *recipient = self.sockets[socket].route(datagram);
            }
            if let Some(bot) = *recipient {
                prefetch(&self.bots[bot]);
            }
        }
        recipients
    }

    fn prefetch_session(&self, bot: usize) {
        if let Some(session) = &self.bots[bot].session {
            session.prefetch();
        }
    }

    /// Takes what has got through the bots' bad networks, both ways.
    fn move_lines(&mut self) {
        let now = self.clock.now();
        for number in 0..self.bots.len() {
            while let Some(mut datagram) = self.bots[number].line.as_mut().and_then(|line| line.arrived(now))
            {
                self.hand_over(now, number, &mut datagram);
            }
            while let Some(datagram) = self.bots[number].line.as_mut().and_then(|line| line.sent(now)) {
                self.open_outbox(number);
                if let Some(slot) = self.outbox.slot() {
                    slot[..datagram.len()].copy_from_slice(&datagram);
                    self.outbox.commit(datagram.len(), self.config.server);
                }
            }
        }
    }

    fn hand_over(&mut self, now: Time, number: usize, datagram: &mut [u8]) {
        let bot = &mut self.bots[number];
        let Some(session) = &mut bot.session else { return };
        let echo = session.echo();
        let handled = if bot.samples {
            let start = self.samples.len();
            let handled = session.handle_watched(now, datagram, &mut Sampler(&mut self.samples));
            let applied_at = self.clock.now();
            for sample in &mut self.samples[start..] {
                sample.applied_at = applied_at;
            }
            handled
        } else {
            session.handle(now, datagram)
        };
        self.stats.dropped += u64::from(handled.is_err());
        if let (Some(echo), Some(id)) = (echo, session.connection_id()) {
            self.sockets[bot.socket].connected(number, echo, id);
        }
        // Who plays answers when it is its turn; who wants to play does not wait.
        if !bot.plays {
            self.transmit(now, number);
        }
        self.hear(number);
    }

    /// Serves the bots whose turn has come.
    fn serve_due(&mut self) {
        let now = self.clock.now();
        let due = self.turns_due(now);
        let bots = self.bots.len() as u64;
        if due.saturating_sub(self.turns) > bots {
            // A bot that missed a whole turn does not make up for it.
            self.stats.turns_missed += due - self.turns - bots;
            self.turns = due - bots;
        }
        for _ in 0..due.saturating_sub(self.turns).min(BOTS_PER_TURN) {
            self.turns += 1;
            let number = self.next;
            prefetch(&self.bots[(number + 2 * AHEAD) % self.bots.len()]);
            self.prefetch_session((number + AHEAD) % self.bots.len());
            self.next = (number + 1) % self.bots.len();
            self.serve(now, number);
        }
    }

    fn serve(&mut self, now: Time, number: usize) {
        let bot = &mut self.bots[number];
        let Some(session) = &mut bot.session else {
            if now >= bot.starts_at {
                self.connect(now, number);
            }
            return;
        };
        if session.is_over() {
            return;
        }
        if session.next_timeout().is_some_and(|due| now >= due) {
            session.on_timeout(now);
        }
        let frozen = self.shared.is_frozen();
        for _ in 0..INPUT_HZ / self.config.send_hz {
            let input = if frozen { bot.mind.still() } else { bot.mind.next_input() };
            session.input(input);
        }
        self.transmit(now, number);
        self.hear(number);
    }

    fn connect(&mut self, now: Time, number: usize) {
        let bot = &mut self.bots[number];
        let config = self.config.login(bot.index, &mut self.rng);
        match Session::new(config, self.config.server_key, &mut self.rng, now) {
            Ok(session) => {
                if let Some(echo) = session.echo() {
                    self.sockets[bot.socket].connecting(number, echo);
                }
                bot.session = Some(session);
                self.transmit(now, number);
            }
            Err(error) => {
                self.stats.failed += 1;
                self.shared.note_end(End::NotConnected(error));
                bot.starts_at = Time::from_micros(u64::MAX);
            }
        }
    }

    /// Sends everything that a bot has to send now.
    fn transmit(&mut self, now: Time, number: usize) {
        if self.bots[number].line.is_some() {
            return self.transmit_by_line(now, number);
        }
        loop {
            self.open_outbox(number);
            let (Some(session), Some(slot)) = (&mut self.bots[number].session, self.outbox.slot()) else {
                return;
            };
            let Some(length) = session.poll_transmit(now, slot) else { return };
            self.outbox.commit(length, self.config.server);
        }
    }

    /// As [`Driver::transmit`], onto the bot's bad network.
    fn transmit_by_line(&mut self, now: Time, number: usize) {
        let Bot { session: Some(session), line: Some(line), .. } = &mut self.bots[number] else { return };
        let mut buffer = [0; DATAGRAM];
        while let Some(length) = session.poll_transmit(now, &mut buffer) {
            line.send(now, &buffer[..length]);
        }
    }

    /// Makes room for a datagram of a bot.
    fn open_outbox(&mut self, number: usize) {
        if self.bots[number].socket != self.outbox_socket {
            self.flush();
            self.outbox_socket = self.bots[number].socket;
        }
        if self.outbox.is_full() {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.outbox.is_empty() {
            return;
        }
        if self.sockets[self.outbox_socket].socket.send(&mut self.outbox).is_err() {
            self.stats.errors += 1;
        }
        // What the kernel does not take is lost, as on any network: bots do not wait for room.
        self.stats.unsent += self.outbox.len() as u64;
        self.outbox.clear();
    }

    /// Notes what happened to a bot.
    fn hear(&mut self, number: usize) {
        let bot = &mut self.bots[number];
        let Some(session) = &mut bot.session else { return };
        while let Some(event) = session.poll_event() {
            match event {
                Event::Connected | Event::Message { .. } => {}
                Event::Welcomed(_) => {
                    if !std::mem::replace(&mut bot.plays, true) {
                        self.stats.playing += 1;
                    }
                }
                Event::Disconnected(end) => {
                    if std::mem::take(&mut bot.plays) {
                        self.stats.playing -= 1;
                    }
                    match end {
                        End::NotConnected(_) => self.stats.failed += 1,
                        End::Unreadable(_) => {
                            self.stats.lost += 1;
                            self.stats.errors += 1;
                        }
                        End::Here(_) | End::ByServer(_) => self.stats.lost += 1,
                    }
                    self.shared.note_end(end);
                }
            }
        }
    }

    /// Leaves the counters and samples where others find them.
    fn tell(&mut self, inbox: &RecvBatch) {
        if !self.samples.is_empty() {
            let room = self.shared.add_samples(&self.samples, SAMPLES_WAITING);
            self.stats.samples_dropped += self.samples.len().saturating_sub(room) as u64;
            self.samples.clear();
        }
        let now = self.clock.now();
        if now - self.told_at < TELL_EVERY {
            return;
        }
        self.told_at = now;
        let (arrived, left) = (inbox.stats(), self.outbox.stats());
        self.stats.packets_in = arrived.datagrams;
        self.stats.bytes_in = arrived.bytes;
        self.stats.packets_out = left.datagrams;
        self.stats.bytes_out = left.bytes;
        self.stats.cpu = thread_cpu();
        self.shared.tell(self.thread, self.stats);
    }

    fn leave(&mut self) {
        let now = self.clock.now();
        for number in 0..self.bots.len() {
            // Nobody would carry the goodbye over it any more.
            self.bots[number].line = None;
            if let Some(session) = &mut self.bots[number].session {
                session.disconnect(now);
                self.transmit(now, number);
            }
        }
        self.flush();
    }
}

/// Notes what a bot has applied.
struct Sampler<'a>(&'a mut Vec<Sample>);

impl Watcher for Sampler<'_> {
    fn updated(&mut self, since: u32, tick: u32, record: &EntityRecord) {
        self.0.push(Sample { entity: record.id, since, tick, applied_at: Time::default() });
    }
}

/// Makes room for others on the machine; without effect where the system cannot.
fn lower_priority(nice: i32) {
    #[cfg(target_os = "linux")]
    {
        // Without a process it is the calling thread's own; to be nicer is always allowed.
        let _ = rustix::process::setpriority_process(None, nice);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = nice;
}

/// CPU time that the calling thread has used; zero where the system does not tell.
fn thread_cpu() -> Duration {
    #[cfg(target_os = "linux")]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
    }
    #[cfg(not(target_os = "linux"))]
    Duration::ZERO
}
