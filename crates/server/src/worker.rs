//! An I/O worker: a thread with a socket of its own and all state of the sessions on it.
//!
//! Its loop takes turns, so that nothing waits for long: some batches of datagrams in, then some sessions of the
//! current round out. A round starts with a frame of the world and serves every session once: its timeouts,
//! its snapshot, its control messages. A frame that comes during a round waits until the round is over, and is
//! replaced if an even newer one comes: a worker that cannot keep up serves everybody less often.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token};
use shadowland_proto::{
    Channel, CloseReason, DenyReason, DisconnectReason, Endpoint, Routed, Session, Slot, State, Time,
};
use shadowland_udp::{RecvBatch, RecvStats, SendBatch, SendStats, UdpSocket};
use shadowland_wire::Writer;
use shadowland_wire::handshake::HANDSHAKE_REPLY_BYTES;
use shadowland_wire::message::ServerType;
use shadowland_wire::message::server::Welcome;
use shadowland_world::{Encoder, Frame, PlayerHandle, Tick, Viewer, WorldConfig};

use crate::config::{Config, TICK_HZ};
use crate::control::Control;
use crate::queue::{Completed, FrameSlot, ToWorker, ToWorld, WorkerQueues};
use crate::schedule::Clock;
use crate::session::{Inbound, Player, Stage};
use crate::stats::{Shared, WorkerStats, thread_cpu};

const _: () = assert!(shadowland_udp::DATAGRAM == shadowland_wire::limits::DATAGRAM_BYTES);

/// Token of the socket in the worker's poll.
pub(crate) const SOCKET: Token = Token(0);
/// Token of the waker in the worker's poll.
pub(crate) const WAKER: Token = Token(1);

/// Datagrams per system call: 256 were measured to be no cheaper each than 64.
const BATCH: usize = 64;
/// Batches that are received before sessions are served again.
const BATCHES_PER_TURN: usize = 8;
/// Sessions that are served before datagrams are received again.
const SESSIONS_PER_TURN: usize = 256;
/// Longest sleep: the world wakes its workers far more often.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);
/// How often, and at what distance, departing players are told goodbye: a Disconnect is never answered.
const GOODBYES: usize = 3;
const GOODBYE_PAUSE: Duration = Duration::from_millis(20);

/// What a worker is made of.
pub(crate) struct Parts {
    pub(crate) poll: Poll,
    pub(crate) socket: UdpSocket,
    pub(crate) endpoint: Endpoint<Player>,
    pub(crate) queues: WorkerQueues,
    pub(crate) frames: Arc<FrameSlot<Frame>>,
    pub(crate) clock: Clock,
    pub(crate) control: Arc<Control>,
    pub(crate) stats: Arc<Shared<WorkerStats>>,
}

/// A worker's state.
pub(crate) struct Worker {
    parts: Parts,
    outbox: SendBatch,
    encoder: Encoder,
    rules: Rules,
    /// Sessions whose client has confirmed the keys.
    listed: Vec<Slot>,
    /// Players that are to leave the world as soon as its queue has room.
    leaving: Vec<PlayerHandle>,
    round: Option<Round>,
    last_tick: Tick,
    /// The socket buffer was full: `poll` says when it is worth trying again.
    blocked: bool,
    stats: WorkerStats,
}

/// What of the configuration matters here.
struct Rules {
    max_players: usize,
    ticks_per_snapshot: Tick,
    budget_bytes: usize,
    lattice_step_um: u32,
    interest_distance_cm: u32,
}

/// A frame on its way to all sessions.
struct Round {
    frame: Arc<Frame>,
    /// Index of the next session in the list.
    next: usize,
}

impl Worker {
    pub(crate) fn new(config: &Config, parts: Parts) -> Self {
        Self {
            parts,
            outbox: SendBatch::new(BATCH),
            encoder: Encoder::new(),
            rules: Rules::new(config),
            listed: Vec::with_capacity(config.session.max_players),
            leaving: Vec::with_capacity(config.session.max_players),
            round: None,
            last_tick: 0,
            blocked: false,
            stats: WorkerStats::default(),
        }
    }

    /// Receives and sends until told to stop.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(8);
        let mut inbox = RecvBatch::new(BATCH);
        let mut readable = true;
        while !self.parts.control.stops() {
            let busy = readable || (self.round.is_some() && !self.blocked);
            let sleep = if busy { Duration::ZERO } else { LONGEST_SLEEP };
            if let Err(error) = self.parts.poll.poll(&mut events, Some(sleep))
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "cannot wait for datagrams");
                std::thread::sleep(GOODBYE_PAUSE);
            }
            for event in events.iter().filter(|event| event.token() == SOCKET) {
                readable |= event.is_readable();
                if self.blocked && event.is_writable() {
                    self.set_blocked(false);
                }
            }
            if readable {
                readable = self.receive(&mut inbox);
            }
            self.hear_world();
            if self.round.is_none() {
                self.start_round();
            }
            self.continue_round();
            self.flush();
        }
        self.say_goodbye();
    }

    /// Takes some batches off the socket; returns whether there may be more.
    fn receive(&mut self, inbox: &mut RecvBatch) -> bool {
        for _ in 0..BATCHES_PER_TURN {
            let received = match self.parts.socket.recv(inbox) {
                Ok(received) => received,
                Err(error) => {
                    tracing::error!(%error, "cannot receive");
                    return false;
                }
            };
            let now = self.parts.clock.now();
            for (from, datagram) in inbox.iter_mut() {
                self.accept(now, from, datagram);
            }
            let RecvStats { datagrams, bytes, oversized, .. } = *inbox.stats();
            (self.stats.datagrams_in, self.stats.bytes_in, self.stats.oversized) =
                (datagrams, bytes, oversized);
            // A batch that is not full has seen the socket empty: what arrives now is told by the poll.
            if received < BATCH {
                return false;
            }
        }
        true
    }

    fn accept(&mut self, now: Time, from: std::net::SocketAddr, datagram: &mut [u8]) {
        if self.outbox.is_full() {
            self.flush();
        }
        let mut nowhere = [0; HANDSHAKE_REPLY_BYTES];
        let reply = self.outbox.slot().map_or(&mut nowhere[..], |slot| &mut slot[..]);
        match self.parts.endpoint.route(now, from, datagram, reply) {
            Routed::Reply(_) if self.outbox.is_full() => self.stats.crowded_out += 1,
            Routed::Reply(len) => self.outbox.commit(len, from),
            Routed::Session(slot) => self.accept_sealed(now, slot, datagram),
            Routed::Dropped(_) => {}
        }
    }

    fn accept_sealed(&mut self, now: Time, slot: Slot, datagram: &mut [u8]) {
        let Some(session) = self.parts.endpoint.session_mut(slot) else { return };
        let player = session.data.get_or_insert_default();
        let mut inbound = Inbound {
            player: &mut *player,
            queues: &mut self.parts.queues,
            stats: &mut self.stats,
            tick: self.last_tick,
        };
        let handled = session.connection.handle(now, datagram, &mut inbound);
        if session.connection.is_confirmed() && !player.listed {
            player.listed = true;
            self.listed.push(slot);
        }
        if let Err(reason) = handled {
            self.parts.endpoint.count_drop(reason);
        }
    }

    /// Takes the world's answers to joins.
    fn hear_world(&mut self) {
        let now = self.parts.clock.now();
        while let Ok(answer) = self.parts.queues.from_world.pop() {
            match answer {
                ToWorker::Joined { session, player, from } => self.joined(session, player, from),
                ToWorker::Refused { session } => {
                    if let Some(session) = self.parts.endpoint.session_mut(session) {
                        session.connection.close(now, DisconnectReason::Full);
                    }
                }
            }
        }
    }

    fn joined(&mut self, slot: Slot, handle: PlayerHandle, from: Tick) {
        let session = self.parts.endpoint.session_mut(slot);
        let Some(Session { connection, data: Some(player), .. }) = session else {
            // It ended meanwhile.
            return self.leaving.push(handle);
        };
        let mut body = [0; Welcome::MAX_BYTES];
        let mut writer = Writer::new(&mut body);
        self.rules.welcome(handle).encode(&mut writer).expect("the buffer is made for it");
        let sent = connection.send(Channel::ReliableOrdered, 0, ServerType::Welcome as u8, writer.written());
        if sent.is_err() {
            // Only a closed connection refuses its first message; the next round removes it.
            return self.leaving.push(handle);
        }
        player.stage = Stage::Playing { viewer: Box::new(Viewer::new(handle)), from };
        // Spread over the ticks, so that no tick sends more than its share.
        player.next_turn = from + handle.slot % self.rules.ticks_per_snapshot;
        self.stats.players += 1;
    }

    fn start_round(&mut self) {
        let Some(frame) = self.parts.frames.take() else { return };
        let now = self.parts.clock.now();
        let tick = frame.tick();
        self.stats.frames_skipped += u64::from(tick.saturating_sub(self.last_tick + 1));
        self.last_tick = tick;
        self.leaving.retain(|&player| !self.parts.queues.push_control(ToWorld::Leave(player)));
        let full = self.parts.control.players() >= self.rules.max_players;
        self.parts.endpoint.refuse_new(full.then_some(DenyReason::Full));
        self.parts.endpoint.on_timeout(now);
        self.round = Some(Round { frame, next: 0 });
    }

    /// Serves some sessions of the round, and ends it when all are served and everything has left.
    fn continue_round(&mut self) {
        let Some(mut round) = self.round.take() else { return };
        let mut now = self.parts.clock.now();
        let mut left = SESSIONS_PER_TURN;
        while round.next < self.listed.len() && left > 0 {
            // Half a batch: room for a snapshot of several packets and control messages without a second look.
            if self.outbox.len() >= BATCH / 2 {
                self.flush();
                now = self.parts.clock.now();
            }
            if self.outbox.is_full() {
                break;
            }
            match self.serve(self.listed[round.next], &round.frame, now) {
                Served::Stays => round.next += 1,
                // The last one takes its place in the list, and is next.
                Served::Gone => drop(self.listed.swap_remove(round.next)),
            }
            left -= 1;
        }
        if round.next < self.listed.len() {
            self.round = Some(round);
            return;
        }
        self.flush();
        if self.outbox.is_empty() {
            let completed = Completed { tick: round.frame.tick(), at: self.parts.clock.now() };
            // A full queue holds older ones, and the next completion stands for this one too.
            let _ = self.parts.queues.completed.push(completed);
            self.publish_stats();
        } else {
            self.round = Some(round);
        }
    }

    /// One session's share of a round.
    fn serve(&mut self, slot: Slot, frame: &Frame, now: Time) -> Served {
        let Self { parts, outbox, encoder, rules, stats, .. } = self;
        let Some(session) = parts.endpoint.session_mut(slot) else { return Served::Gone };
        let Session { connection, address, data, .. } = session;
        let player = data.as_mut().expect("a listed session has a player");
        if connection.next_timeout().is_some_and(|at| now >= at) {
            connection.on_timeout(now);
        }
        if connection.state() == State::Established {
            player.ask(slot, &mut parts.queues);
        }
        if let Stage::Playing { viewer, from } = &mut player.stage
            && frame.tick() >= player.next_turn.max(*from)
        {
            player.next_turn = frame.tick() + rules.ticks_per_snapshot;
            let rtt_ticks = rtt_ticks(connection.rtt());
            let mut snapshot = viewer.snapshot(frame, encoder, rtt_ticks, rules.budget_bytes);
            while let Some(snapshot) = snapshot.as_mut().filter(|snapshot| snapshot.wants_packet()) {
                let Some(mut packet) = outbox.slot().and_then(|slot| connection.packet(now, slot)) else {
                    break;
                };
                if packet.message(ServerType::Snapshot as u8, |writer| snapshot.write(writer)).is_err() {
                    break;
                }
                let sent = packet.finish();
                snapshot.sent(sent.sequence);
                outbox.commit(sent.len, *address);
                stats.snapshots += 1;
            }
        }
        // What finds no room now is due again in the next round.
        while let Some(len) = outbox.slot().and_then(|slot| connection.poll_transmit(now, slot)) {
            outbox.commit(len, *address);
        }
        let State::Closed(reason) = connection.state() else { return Served::Stays };
        let handle = player.handle();
        self.part(slot, handle, reason);
        Served::Gone
    }

    /// Forgets a session that is over.
    fn part(&mut self, slot: Slot, player: Option<PlayerHandle>, reason: CloseReason) {
        self.parts.endpoint.remove(slot);
        if let Some(player) = player {
            self.stats.players -= 1;
            self.leaving.push(player);
        }
        match reason {
            CloseReason::Peer(DisconnectReason::Leaving) => self.stats.left += 1,
            _ => self.stats.lost += 1,
        }
        tracing::debug!(id = slot.connection_id(), ?reason, "session ended");
    }

    /// Hands the kernel what it takes of the waiting datagrams.
    fn flush(&mut self) {
        if self.outbox.is_empty() || self.blocked {
            return;
        }
        if let Err(error) = self.parts.socket.send(&mut self.outbox) {
            tracing::error!(%error, lost = self.outbox.len(), "cannot send");
            self.outbox.clear();
        }
        if !self.outbox.is_empty() {
            self.set_blocked(true);
        }
    }

    /// Asks the poll for writability only while it is missed: every datagram that leaves would report it.
    fn set_blocked(&mut self, blocked: bool) {
        self.blocked = blocked;
        let interest = if blocked { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        if let Err(error) = self.parts.poll.registry().reregister(&mut self.parts.socket, SOCKET, interest) {
            // Without the event the next frame is the time to try again.
            self.blocked = false;
            tracing::error!(%error, "cannot wait for room to send");
        }
    }

    fn publish_stats(&mut self) {
        let SendStats { datagrams, bytes, refused, blocked, .. } = *self.outbox.stats();
        let stats = &mut self.stats;
        (stats.datagrams_out, stats.bytes_out, stats.refused, stats.blocked) =
            (datagrams, bytes, refused, blocked);
        stats.sessions = self.listed.len() as u64;
        stats.dropped = self.parts.endpoint.counters().dropped;
        stats.cpu = thread_cpu();
        *self.parts.stats.lock() = *stats;
    }

    /// Tells every player that the server stops.
    fn say_goodbye(&mut self) {
        let now = self.parts.clock.now();
        for (_, session) in self.parts.endpoint.sessions_mut() {
            session.connection.close(now, DisconnectReason::ShuttingDown);
        }
        for pass in 0..GOODBYES {
            if pass > 0 {
                std::thread::sleep(GOODBYE_PAUSE);
            }
            // Whatever blocked before, now is the last time to try.
            self.blocked = false;
            self.flush();
            let Self { parts, outbox, .. } = self;
            for (_, Session { connection, address, .. }) in parts.endpoint.sessions_mut() {
                if outbox.is_full() && parts.socket.send(outbox).is_err() {
                    outbox.clear();
                }
                if let Some(len) = outbox.slot().and_then(|slot| connection.poll_transmit(now, slot)) {
                    outbox.commit(len, *address);
                }
            }
            self.flush();
        }
        self.publish_stats();
    }
}

/// What became of a session in its round.
enum Served {
    Stays,
    Gone,
}

impl Rules {
    fn new(config: &Config) -> Self {
        let world: &WorldConfig = &config.world;
        let farthest = world.layers.iter().map(|layer| layer.distance_cm).fold(0.0, f64::max);
        Self {
            max_players: config.session.max_players,
            ticks_per_snapshot: TICK_HZ / config.session.send_hz,
            budget_bytes: config.session.budget_bytes,
            lattice_step_um: (world.lattice_step_cm * 10_000.0).round() as u32,
            interest_distance_cm: farthest.round() as u32,
        }
    }

    fn welcome(&self, player: PlayerHandle) -> Welcome {
        Welcome {
            entity: player.entity,
            lattice_step_um: self.lattice_step_um,
            tick_hz: TICK_HZ as u8,
            interest_distance_cm: self.interest_distance_cm,
        }
    }
}

/// A round trip in ticks, rounded up.
fn rtt_ticks(rtt: Duration) -> Tick {
    let ticks = (rtt.as_micros() * u128::from(TICK_HZ)).div_ceil(1_000_000);
    Tick::try_from(ticks).unwrap_or(Tick::MAX)
}
