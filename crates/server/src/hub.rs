//! The sessions of one worker, without its socket, its thread and its clock.
//!
//! A round serves every session once with a frame of the world: its timeouts, its snapshot, its control
//! messages. It may be ended before everybody was served; the next round then goes on from there, with its newer frame.
//!
//! ```text
//! for every batch:     hub.receive_batch(now, inbox, outbox)
//! now and then:        hub.hear_world(now)
//! for every frame:     hub.start_round(now, frame, players)
//!                      while hub.has_unserved() { hub.serve_next(now, outbox) }     or for as long as there is time
//!                      hub.end_round(now)             when the last datagram of the round has left
//! at the end:          hub.goodbye(now, outbox)       three times
//! ```
//!
//! Whoever drives a hub decides when its outbox is emptied, and what waits for what.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use shadowland_proto::{
    Channel, CloseReason, DenyReason, DisconnectReason, Endpoint, Routed, Session, Slot, State, Time,
};
use shadowland_wire::Writer;
use shadowland_wire::entity::EntityType;
use shadowland_wire::handshake::HANDSHAKE_REPLY_BYTES;
use shadowland_wire::limits::DATAGRAM_BYTES;
use shadowland_wire::message::ServerType;
use shadowland_wire::message::server::Welcome;
use shadowland_world::{Encoder, Frame, PlayerHandle, Tick, Viewer, WorldConfig};

use crate::config::{Config, Consequence, TICK_HZ};
use crate::mail::{Letterbox, Mail, Recipient, WAITING_NEWS};
use crate::queue::{Completed, ToWorker, ToWorld, WorkerQueues};
use crate::rotation::Rotation;
use crate::session::{Inbound, Player, Stage};
use crate::stats::WorkerStats;
use crate::tokens::Accounts;

/// Bytes of a snapshot's packet beside blocks about others, about: header, tag, acknowledgements and the player's own
/// state. They always go out.
pub(crate) const OWN_BYTES: usize = 200;

/// Memory of a session is fetched when so many others have their turn before it, what it points to; and when there
/// are twice as many, the session itself.
const AHEAD: usize = 4;

/// A batch of datagrams that have arrived.
pub trait Inbox {
    /// Slots that may hold a datagram.
    fn slots(&self) -> usize;
    /// A datagram and where it came from; `None` if there is none with this index, or it is to be passed over.
    fn datagram(&mut self, index: usize) -> Option<(SocketAddr, &mut [u8])>;
}

/// Where a hub puts the datagrams that are to leave.
pub trait Outbox {
    /// The next free slot, with any bytes in it; `None` while there is no room.
    fn slot(&mut self) -> Option<&mut [u8; DATAGRAM_BYTES]>;
    /// The first `len` bytes of the slot that [`slot`](Self::slot) gave last are for `to`.
    fn commit(&mut self, len: usize, to: SocketAddr);
}

/// The sessions of one worker.
pub struct Hub {
    endpoint: Endpoint<Player>,
    queues: WorkerQueues,
    /// The worker's index, and what all workers share about accounts.
    worker: usize,
    accounts: Arc<Accounts>,
    encoder: Encoder,
    rules: Rules,
    /// Sessions whose client has confirmed the keys.
    listed: Rotation<Slot>,
    /// Players that are to leave the world as soon as its queue has room.
    leaving: Vec<PlayerHandle>,
    /// The frame of the round that is on.
    round: Option<Arc<Frame>>,
    last_tick: Tick,
    stats: WorkerStats,
    /// The last answer to a handshake.
    reply: [u8; HANDSHAKE_REPLY_BYTES],
    /// It was told that the game does not read its mailbox.
    mail_warned: bool,
}

/// What of the configuration matters here.
struct Rules {
    max_players: usize,
    ticks_per_snapshot: Tick,
    budget_bytes: usize,
    lattice_step_um: u32,
    interest_distance_cm: u32,
    integrity: Consequence,
}

impl Hub {
    pub(crate) fn new(
        config: &Config,
        endpoint: Endpoint<Player>,
        queues: WorkerQueues,
        worker: usize,
        accounts: Arc<Accounts>,
    ) -> Self {
        Self {
            endpoint,
            queues,
            worker,
            accounts,
            encoder: Encoder::new(),
            rules: Rules::new(config),
            listed: Rotation::with_capacity(config.session.max_players),
            leaving: Vec::with_capacity(config.session.max_players),
            round: None,
            last_tick: 0,
            stats: WorkerStats::default(),
            reply: [0; HANDSHAKE_REPLY_BYTES],
            mail_warned: false,
        }
    }

    /// Takes all datagrams of a batch, oldest first. Each may be answered with one datagram.
    pub fn receive_batch(&mut self, now: Time, inbox: &mut impl Inbox, outbox: &mut impl Outbox) {
        for index in 0..inbox.slots() + 2 * AHEAD {
            let mut claimed =
                |index| inbox.datagram(index).and_then(|(_, datagram)| Slot::claimed_by(datagram));
            if let Some(slot) = claimed(index) {
                self.endpoint.prefetch(slot, Player::RECEIVE_BYTES);
            }
            let before = index.checked_sub(AHEAD).and_then(&mut claimed);
            if let Some(session) = before.and_then(|slot| self.endpoint.in_place_of(slot)) {
                session.connection.prefetch_more();
            }
            if let Some((from, datagram)) =
                index.checked_sub(2 * AHEAD).and_then(|index| inbox.datagram(index))
            {
                self.receive(now, from, datagram, outbox);
            }
        }
    }

    /// Takes a datagram. It is decrypted in place.
    pub fn receive(&mut self, now: Time, from: SocketAddr, datagram: &mut [u8], outbox: &mut impl Outbox) {
        match self.endpoint.route(now, from, datagram, &mut self.reply) {
            Routed::Reply(len) => match outbox.slot() {
                Some(slot) => {
                    slot[..len].copy_from_slice(&self.reply[..len]);
                    outbox.commit(len, from);
                }
                None => self.stats.crowded_out += 1,
            },
            Routed::Session(slot) => self.receive_sealed(now, slot, from, datagram),
            Routed::Dropped(_) => {}
        }
    }

    /// Takes the world's answers to joins.
    pub fn hear_world(&mut self, now: Time) {
        while let Ok(answer) = self.queues.from_world.pop() {
            match answer {
                ToWorker::Joined { session, player, from } => self.joined(session, player, from),
                ToWorker::Refused { session } => {
                    if let Some(Session { connection, login, data, .. }) = self.endpoint.session_mut(session)
                        // The place of an account's older session is free as soon as its worker has heard of it.
                        && !data.as_mut().is_some_and(|player| login.is_some() && player.asks_again(now))
                    {
                        connection.close(now, DisconnectReason::Full);
                    }
                }
            }
        }
    }

    /// Starts a round with a frame; one that is still on is given up. `players` is how many play in the whole
    /// world.
    pub fn start_round(&mut self, now: Time, frame: Arc<Frame>, players: usize) {
        let tick = frame.tick();
        self.stats.frames_skipped += u64::from(tick.saturating_sub(self.last_tick + 1));
        self.last_tick = tick;
        let full = players >= self.rules.max_players || !self.mail_is_read();
        self.endpoint.refuse_new(full.then_some(DenyReason::Full));
        self.endpoint.on_timeout(now);
        self.sort_mail();
        for slot in self.accounts.take_replaced(self.worker) {
            if let Some(session) = self.endpoint.session_mut(slot) {
                session.connection.close(now, DisconnectReason::Replaced);
                // The newer session may need its place in the world.
                if let Some(handle) = session.data.as_mut().and_then(Player::leave) {
                    self.stats.players -= 1;
                    self.leaving.push(handle);
                }
            }
        }
        self.leaving.retain(|&player| !self.queues.push_control(ToWorld::Leave(player)));
        self.stop_round();
        self.round = Some(frame);
        self.listed.start();
        (0..2 * AHEAD).for_each(|others| self.prefetch(others));
        (0..AHEAD).for_each(|others| self.prefetch_more(others));
    }

    /// Whether a round is on: it was started, and not ended.
    #[must_use]
    pub fn is_in_round(&self) -> bool {
        self.round.is_some()
    }

    /// Whether the round has sessions that were not served.
    #[must_use]
    pub fn has_unserved(&self) -> bool {
        self.listed.left() > 0
    }

    /// Sessions whose client has confirmed the keys.
    pub(crate) fn listed(&self) -> usize {
        self.listed.len()
    }

    /// Serves one session of the round. What finds no room in the outbox is not lost: state comes with the next
    /// snapshot, control messages with the next round.
    pub fn serve_next(&mut self, now: Time, outbox: &mut impl Outbox) {
        let Some(frame) = self.round.take() else { return };
        // Of one session that follows itself, of one before it what that points to: one at a time, so that memory works
        // while this thread does.
        self.prefetch(2 * AHEAD);
        self.prefetch_more(AHEAD);
        if let Some(slot) = self.listed.ahead(0) {
            match self.serve(slot, &frame, now, outbox) {
                Served::Stays => self.listed.advance(),
                Served::Gone => self.listed.remove_next(),
            }
        }
        self.round = Some(frame);
    }

    /// Ends the round, and tells the world that its last datagram left at `at`. Those who were not served are the first
    /// in the next round.
    pub fn end_round(&mut self, at: Time) {
        self.stop_round();
        let Some(frame) = self.round.take() else { return };
        // A full queue holds older ones, and the next completion stands for this one too.
        let _ = self.queues.completed.push(Completed { tick: frame.tick(), at });
    }

    /// Tells every player once that the server stops. It is never answered, so it is to be said three times,
    /// with pauses.
    pub fn goodbye(&mut self, now: Time, outbox: &mut impl Outbox) {
        for (_, Session { connection, .. }) in self.endpoint.sessions_mut() {
            connection.close(now, DisconnectReason::ShuttingDown);
            let Some(address) = connection.address() else { continue };
            if let Some(len) = outbox.slot().and_then(|slot| connection.poll_transmit(now, slot)) {
                outbox.commit(len, address);
            }
        }
    }

    /// What the hub has counted. What only a socket or a thread knows is zero.
    #[must_use]
    pub fn stats(&self) -> WorkerStats {
        WorkerStats {
            sessions: self.listed.len() as u64,
            denied: self.endpoint.counters().denied,
            dropped: self.endpoint.counters().dropped,
            ..self.stats
        }
    }

    /// Handshakes that were computed.
    pub(crate) fn handshakes(&self) -> u64 {
        self.endpoint.counters().handshakes
    }

    /// Whether the game hears of its players, and others may come. Tells once when it does not.
    fn mail_is_read(&mut self) -> bool {
        let is_read = self.queues.mail.has_room_for_players();
        if !is_read && !self.mail_warned {
            tracing::warn!(
                "the game has not read of the last {WAITING_NEWS} players who came or went: nobody else is let in until it \
                 reads its mailbox (Mailbox::try_next)"
            );
        }
        self.mail_warned = !is_read;
        is_read
    }

    fn stop_round(&mut self) {
        self.stats.sessions_deferred += self.listed.stop() as u64;
    }

    /// Fetches into the cache the session that will be served when so many others have been.
    fn prefetch(&self, others: usize) {
        if let Some(slot) = self.listed.ahead(others) {
            self.endpoint.prefetch(slot, Player::SERVE_BYTES);
        }
    }

    /// Fetches what it points to.
    fn prefetch_more(&self, others: usize) {
        let session = self.listed.ahead(others).and_then(|slot| self.endpoint.in_place_of(slot));
        if let Some(session) = session {
            session.connection.prefetch_more();
            session.data.iter().for_each(Player::prefetch);
        }
    }

    /// What every player in the world is known to have been told, with the id of its connection.
    pub fn viewers(&mut self) -> impl Iterator<Item = (u32, &Viewer)> {
        self.endpoint.sessions_mut().filter_map(|(slot, session)| match &session.data.as_ref()?.stage {
            Stage::Playing { viewer, .. } => Some((slot.connection_id(), viewer)),
            _ => None,
        })
    }

    fn receive_sealed(&mut self, now: Time, slot: Slot, from: SocketAddr, datagram: &mut [u8]) {
        let Some(session) = self.endpoint.session_mut(slot) else { return };
        let player = session.data.get_or_insert_default();
        let mut inbound = Inbound {
            player: &mut *player,
            queues: &mut self.queues,
            stats: &mut self.stats,
            tick: self.last_tick,
        };
        let handled = session.connection.handle_from(now, from, datagram, &mut inbound);
        if session.connection.is_confirmed() && !player.listed {
            player.listed = true;
            self.listed.push(slot);
            if let Some(login) = &session.login {
                self.accounts.begin(login.account, slot);
            }
        }
        if let Err(reason) = handled {
            self.endpoint.count_drop(reason);
        }
    }

    /// Puts what the game sends into the players' letterboxes.
    fn sort_mail(&mut self) {
        while let Some(mail) = self.queues.mail.next() {
            let player = self.endpoint.session_mut(mail.session()).and_then(|session| session.data.as_mut());
            match player.and_then(|player| player.letterbox.as_mut()) {
                Some(letterbox) if letterbox.recipient == mail.to => letterbox.put(mail),
                _ => self.stats.mail_lost += 1,
            }
        }
    }

    fn joined(&mut self, slot: Slot, handle: PlayerHandle, from: Tick) {
        let session = self.endpoint.session_mut(slot);
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
        player.stage = Stage::Playing { viewer: Viewer::new(handle), from };
        // Spread over the ticks, so that no tick sends more than its share.
        player.next_turn = from + handle.slot % self.rules.ticks_per_snapshot;
        if self.queues.mail.is_read() {
            let recipient = Recipient::new(slot, handle);
            player.letterbox = Some(Box::new(Letterbox::new(recipient.clone())));
            self.queues.mail.tell(Mail::Joined(recipient));
        }
        self.stats.players += 1;
        self.stats.joined += 1;
    }

    /// One session's share of a round.
    fn serve(&mut self, slot: Slot, frame: &Frame, now: Time, outbox: &mut impl Outbox) -> Served {
        let Self { endpoint, queues, encoder, rules, stats, .. } = self;
        let Some(session) = endpoint.session_mut(slot) else { return Served::Gone };
        let Session { connection, data, login, .. } = session;
        let address = connection.address().expect("a server's session has one from the start");
        let player = data.as_mut().expect("a listed session has a player");
        if connection.is_due(now) {
            connection.on_timeout(now);
            if let Some(failure) = connection.take_integrity_failure() {
                stats.integrity_failed += 1;
                let account = login.map(|login| login.account);
                player.tell_integrity(slot, address, account, failure);
                if rules.integrity == Consequence::Disconnect {
                    connection.close(now, DisconnectReason::Integrity);
                }
            }
        }
        if connection.state() == State::Established {
            player.ask(now, slot, queues);
        }
        if let Some(letterbox) = &mut player.letterbox {
            stats.mail_lost += letterbox.empty_into(connection);
            // Once a second, not everybody in the same tick, and in the next one where a session missed its own.
            letterbox.report(connection, frame.tick().wrapping_add(slot.connection_id() % TICK_HZ) / TICK_HZ);
        }
        if let Stage::Playing { viewer, from } = &mut player.stage
            && frame.tick() >= player.next_turn.max(*from)
        {
            player.next_turn = rules.turn_after(frame.tick(), player.next_turn);
            let rtt_ticks = rtt_ticks(connection.rtt());
            // What congestion control allows, the setting at most; the floor of it is the player's own state.
            let allowed = connection.budget_bytes(now, rules.budget_bytes + OWN_BYTES);
            let budget_bytes = allowed.saturating_sub(OWN_BYTES);
            stats.snapshots_reduced += u64::from(budget_bytes < rules.budget_bytes);
            stats.crowd_details[viewer.crowd_detail() as usize] += 1;
            let mut snapshot = viewer.snapshot(frame, encoder, rtt_ticks, budget_bytes);
            while let Some(snapshot) = snapshot.as_mut().filter(|snapshot| snapshot.wants_packet()) {
                let Some(mut packet) = outbox.slot().and_then(|slot| connection.packet(now, slot)) else {
                    break;
                };
                if packet.message(ServerType::Snapshot as u8, |writer| snapshot.write(writer)).is_err() {
                    break;
                }
                let sent = packet.finish();
                snapshot.sent(sent.sequence);
                outbox.commit(sent.len, address);
                stats.snapshots += 1;
                if !connection.has_room_for_more() {
                    break;
                }
            }
        }
        if let State::Closed(reason) = connection.state() {
            // A Disconnect is never answered. It leaves once in each of three rounds: what loses one does not lose
            // all of them.
            let Some(buffer) = outbox.slot() else { return Served::Stays };
            if let Some(len) = connection.poll_transmit(now, buffer) {
                outbox.commit(len, address);
                return Served::Stays;
            }
            let handle = player.handle();
            if let Some(letterbox) = player.letterbox.take() {
                queues.mail.tell(Mail::Left(letterbox.recipient.clone()));
            }
            self.part(slot, handle, reason);
            return Served::Gone;
        }
        // What finds no room now is due again in the next round.
        while let Some(len) = outbox.slot().and_then(|slot| connection.poll_transmit(now, slot)) {
            outbox.commit(len, address);
        }
        if let Some((len, candidate)) = outbox.slot().and_then(|slot| connection.poll_probe(now, slot)) {
            outbox.commit(len, candidate);
        }
        Served::Stays
    }

    /// Forgets a session that is over.
    fn part(&mut self, slot: Slot, player: Option<PlayerHandle>, reason: CloseReason) {
        if let Some(login) = self.endpoint.session_mut(slot).and_then(|session| session.login) {
            self.accounts.end(login.account, slot);
        }
        self.endpoint.remove(slot);
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
}

/// What became of a session in its round.
enum Served {
    Stays,
    Gone,
}

impl Rules {
    fn new(config: &Config) -> Self {
        let world: &WorldConfig = &config.world;
        Self {
            max_players: config.session.max_players,
            ticks_per_snapshot: TICK_HZ / config.session.send_hz,
            budget_bytes: config.session.budget_bytes,
            lattice_step_um: (world.lattice_step_cm * 10_000.0).round() as u32,
            interest_distance_cm: world.distance_cm(EntityType::Player).round() as u32,
            integrity: config
                .security
                .integrity
                .as_ref()
                .map_or(Consequence::Log, |integrity| integrity.consequence),
        }
    }

    /// The tick of the next snapshot, when one is sent in `tick` that was due in `due` or since then: as late as that one is,
    /// the next ones keep their places among the ticks.
    fn turn_after(&self, tick: Tick, due: Tick) -> Tick {
        tick + self.ticks_per_snapshot - (tick - due) % self.ticks_per_snapshot
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
    let us = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
    let ticks = us.saturating_mul(TICK_HZ.into()).div_ceil(1_000_000);
    Tick::try_from(ticks).unwrap_or(Tick::MAX)
}
