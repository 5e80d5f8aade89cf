//! A client's session from the first datagram to the last, sans-IO: bytes, time and randomness come in as
//! arguments.
//!
//! Change it: [`Session::handle`], [`Session::input`], [`Session::on_timeout`]. Then drain it:
//! [`Session::poll_transmit`] and [`Session::poll_event`] until they return `None`. Then sleep until the next
//! datagram, the next input, or [`Session::next_timeout`].
//!
//! A snapshot is applied to the [`Replica`] inside of [`Session::handle`], before its packet counts as received:
//! the server learns only of what was really applied. Handling a snapshot allocates nothing once the replica has
//! seen as many entities and pages as are there.

use std::collections::VecDeque;
use std::time::Duration;

use rand::CryptoRng;
use shadowland_proto::{
    Channel, CloseReason, ConnectConfig, ConnectError, Connecting, Connection, DisconnectReason, DropReason,
    Receiver, State, Time,
};
use shadowland_wire::block::PageId;
use shadowland_wire::codec::{DecodeError, Writer};
use shadowland_wire::handshake::Echo;
use shadowland_wire::limits::INPUTS_PER_MESSAGE;
use shadowland_wire::message::client::{Input, InputMessage, ResetPage};
use shadowland_wire::message::server::Welcome;
use shadowland_wire::message::{ClientType, ServerType};
use thiserror::Error;

use crate::replica::{Replica, Watcher};

/// Inputs that a message carries at least: each is sent four times, so that three lost packets in a row lose
/// none.
const REPEATED_INPUTS: usize = 4;
/// A page is not asked for again before this: the request is reliable, and until it arrives the server goes on
/// sending what cannot be applied.
const RESET_PAUSE: Duration = Duration::from_secs(1);
/// Pages whose requests are remembered for that.
const RESETS_REMEMBERED: usize = 16;

/// What happened to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The server has proved who it is; packets are sealed from here on.
    Connected,
    /// The player has an entity in the world.
    Welcomed(Welcome),
    /// The session is over.
    Disconnected(End),
}

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum End {
    /// It never began.
    #[error(transparent)]
    NotConnected(#[from] ConnectError),
    /// This side ended it: the player left, or the server was not heard of for too long.
    #[error("the session was ended here: {0:?}")]
    Here(DisconnectReason),
    /// The server ended it.
    #[error("the server ended the session: {0:?}")]
    ByServer(DisconnectReason),
    /// A message of the server could not be read: its version is another one, or it has a bug.
    #[error("the server sent a message that cannot be read: {0}")]
    Unreadable(#[from] DecodeError),
}

/// What a session has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SessionStats {
    /// Snapshot messages that were applied.
    pub snapshots: u64,
    /// Blocks in them that were applied.
    pub blocks: u64,
    /// Blocks that were superseded already or lacked their baseline.
    pub blocks_skipped: u64,
    /// Pages that had to be asked for again.
    pub resets: u64,
}

/// A client's session.
pub struct Session {
    phase: Phase,
    replica: Replica,
    welcome: Option<Welcome>,
    inputs: Inputs,
    resets: Resets,
    events: VecDeque<Event>,
    stats: SessionStats,
}

// Boxed: a fresh one is as large as an old one, and they are moved around.
enum Phase {
    Connecting(Box<Connecting>),
    Connected(Box<Connection>),
    /// Nothing is sent or looked at any more. The connection, if there was one, may still say goodbye.
    Over(Option<Box<Connection>>),
}

impl Session {
    /// Starts to connect to the server that holds the private key of `server_key`.
    ///
    /// # Errors
    /// When the key or the login token cannot be ones.
    pub fn new(
        config: ConnectConfig,
        server_key: [u8; 32],
        rng: &mut dyn CryptoRng,
        now: Time,
    ) -> Result<Self, ConnectError> {
        Ok(Self {
            phase: Phase::Connecting(Box::new(Connecting::new(config, server_key, rng, now)?)),
            replica: Replica::new(),
            welcome: None,
            inputs: Inputs::default(),
            resets: Resets::default(),
            events: VecDeque::with_capacity(4),
            stats: SessionStats::default(),
        })
    }

    /// Takes a datagram. It is decrypted in place.
    ///
    /// # Errors
    /// Why the datagram was dropped; the session goes on.
    pub fn handle(&mut self, now: Time, datagram: &mut [u8]) -> Result<(), DropReason> {
        self.handle_watched(now, datagram, &mut ())
    }

    /// As [`Session::handle`], and tells `watcher` what changes in the replica.
    ///
    /// # Errors
    /// Why the datagram was dropped; the session goes on.
    pub fn handle_watched(
        &mut self,
        now: Time,
        datagram: &mut [u8],
        watcher: &mut impl Watcher,
    ) -> Result<(), DropReason> {
        match &mut self.phase {
            Phase::Connecting(connecting) => {
                if let Some(connection) = connecting.handle(now, datagram)? {
                    self.phase = Phase::Connected(Box::new(connection));
                    self.events.push_back(Event::Connected);
                }
                Ok(())
            }
            Phase::Connected(connection) => {
                let mut inbound = Inbound {
                    replica: &mut self.replica,
                    stats: &mut self.stats,
                    welcome: None,
                    unreadable: None,
                    watcher,
                };
                let result = connection.handle(now, datagram, &mut inbound);
                let Inbound { welcome, unreadable, .. } = inbound;
                for page in self.replica.take_resets() {
                    if self.resets.is_wanted(now, page) && ask_for(connection, page) {
                        self.stats.resets += 1;
                    }
                }
                if let Some(welcome) = welcome {
                    self.welcome = Some(welcome);
                    self.events.push_back(Event::Welcomed(welcome));
                }
                if let Some(error) = unreadable {
                    connection.close(now, DisconnectReason::Leaving);
                    self.end(End::Unreadable(error));
                }
                self.notice_close();
                result
            }
            Phase::Over(_) => Err(DropReason::Closed),
        }
    }

    /// What the player wants in the next tick of 60 a second. Ignored until the player is in the world.
    pub fn input(&mut self, input: Input) {
        if self.welcome.is_some() {
            self.inputs.push(input);
        }
    }

    /// Writes a datagram that must leave now into `buffer`, which must hold 1200 bytes, and returns its length.
    pub fn poll_transmit(&mut self, now: Time, buffer: &mut [u8]) -> Option<usize> {
        match &mut self.phase {
            Phase::Connecting(connecting) => connecting.poll_transmit(now, buffer),
            Phase::Connected(connection) => {
                if let Some(message) = self.inputs.message()
                    && let Some(mut packet) = connection.packet(now, buffer)
                {
                    // An empty packet has room for it.
                    if packet.message(ClientType::Input as u8, |writer| message.encode(writer)).is_ok() {
                        self.inputs.unsent = 0;
                        return Some(packet.finish().len);
                    }
                }
                connection.poll_transmit(now, buffer)
            }
            Phase::Over(connection) => connection.as_mut()?.poll_transmit(now, buffer),
        }
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`Session::on_timeout`] at the latest; `None` once the session is over.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Time> {
        match &self.phase {
            Phase::Connecting(connecting) => connecting.next_timeout(),
            Phase::Connected(connection) => connection.next_timeout(),
            Phase::Over(_) => None,
        }
    }

    /// Does what is due.
    pub fn on_timeout(&mut self, now: Time) {
        match &mut self.phase {
            Phase::Connecting(connecting) => {
                if let Err(error) = connecting.on_timeout(now) {
                    self.end(End::NotConnected(error));
                }
            }
            Phase::Connected(connection) => {
                connection.on_timeout(now);
                self.notice_close();
            }
            Phase::Over(_) => {}
        }
    }

    /// Ends the session; the next calls of [`Session::poll_transmit`] tell the server, three times.
    pub fn disconnect(&mut self, now: Time) {
        match &mut self.phase {
            Phase::Connecting(_) => self.end(End::Here(DisconnectReason::Leaving)),
            Phase::Connected(connection) => {
                connection.close(now, DisconnectReason::Leaving);
                self.notice_close();
            }
            Phase::Over(_) => {}
        }
    }

    /// What the client sees.
    #[must_use]
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// What the server said about the world and the player's entity, once the player is in the world.
    #[must_use]
    pub fn welcome(&self) -> Option<&Welcome> {
        self.welcome.as_ref()
    }

    /// Number of the newest input that was made; the first is 1.
    #[must_use]
    pub fn newest_input(&self) -> u32 {
        self.inputs.newest
    }

    /// What every answer to this client repeats until it is connected, for sockets that several clients share.
    #[must_use]
    pub fn echo(&self) -> Option<Echo> {
        match &self.phase {
            Phase::Connecting(connecting) => Some(connecting.echo()),
            _ => None,
        }
    }

    /// What every packet to this client begins with once it is connected.
    #[must_use]
    pub fn connection_id(&self) -> Option<u32> {
        match &self.phase {
            Phase::Connected(connection) => Some(connection.id()),
            _ => None,
        }
    }

    /// The connection, for its counters and the round-trip time; also of a session that is over.
    #[must_use]
    pub fn connection(&self) -> Option<&Connection> {
        match &self.phase {
            Phase::Connecting(_) => None,
            Phase::Connected(connection) => Some(connection),
            Phase::Over(connection) => connection.as_deref(),
        }
    }

    /// Whether the session is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over(_))
    }

    /// What the session has counted.
    #[must_use]
    pub fn stats(&self) -> &SessionStats {
        &self.stats
    }

    fn notice_close(&mut self) {
        if let Phase::Connected(connection) = &self.phase
            && let State::Closed(reason) = connection.state()
        {
            self.end(match reason {
                CloseReason::Local(reason) => End::Here(reason),
                CloseReason::Peer(reason) => End::ByServer(reason),
            });
        }
    }

    fn end(&mut self, end: End) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Over(None)) {
            Phase::Connected(connection) => Phase::Over(Some(connection)),
            over @ Phase::Over(_) => over,
            Phase::Connecting(_) => Phase::Over(None),
        };
        self.events.push_back(Event::Disconnected(end));
    }
}

/// Asks the server for a page from scratch; `false` when there is no room, and then a later block will ask anew.
fn ask_for(connection: &mut Connection, page: PageId) -> bool {
    let mut body = [0; 16];
    let mut writer = Writer::new(&mut body);
    let request = ResetPage { page };
    if request.encode(&mut writer).is_err() {
        return false;
    }
    let kind = ClientType::ResetPage as u8;
    connection.send(Channel::ReliableUnordered, 0, kind, writer.written()).is_ok()
}

/// Takes a packet apart while the connection opens it.
struct Inbound<'a, W> {
    replica: &'a mut Replica,
    stats: &'a mut SessionStats,
    welcome: Option<Welcome>,
    unreadable: Option<DecodeError>,
    watcher: &'a mut W,
}

impl<W: Watcher> Receiver for Inbound<'_, W> {
    fn message(&mut self, kind: u8, body: &[u8]) {
        let read = match ServerType::from_byte(kind) {
            Some(ServerType::Snapshot) => self.snapshot(body),
            Some(ServerType::Welcome) => Welcome::decode(body).map(|welcome| self.welcome = Some(welcome)),
            // A newer server may say more than this client understands.
            None => Ok(()),
        };
        if let Err(error) = read {
            self.unreadable.get_or_insert(error);
        }
    }

    fn acked(&mut self, _sequence: u64) {}
}

impl<W: Watcher> Inbound<'_, W> {
    fn snapshot(&mut self, body: &[u8]) -> Result<(), DecodeError> {
        let applied = self.replica.apply_snapshot(body, self.watcher)?;
        self.stats.snapshots += 1;
        self.stats.blocks += u64::from(applied.blocks);
        self.stats.blocks_skipped += u64::from(applied.skipped);
        Ok(())
    }
}

/// The last inputs, numbered from 1.
#[derive(Debug, Default)]
struct Inputs {
    newest: u32,
    unsent: usize,
    ring: [Input; INPUTS_PER_MESSAGE],
}

impl Inputs {
    fn push(&mut self, input: Input) {
        self.newest += 1;
        self.ring[self.newest as usize % INPUTS_PER_MESSAGE] = input;
        self.unsent += 1;
    }

    /// The message that brings all unsent inputs and repeats some before them; `None` when all were sent.
    fn message(&self) -> Option<InputMessage> {
        if self.unsent == 0 {
            return None;
        }
        let known = (self.newest as usize).min(INPUTS_PER_MESSAGE);
        let count = self.unsent.max(REPEATED_INPUTS).min(known);
        let mut last = [Input::default(); INPUTS_PER_MESSAGE];
        for (back, slot) in last[..count].iter_mut().rev().enumerate() {
            *slot = self.ring[(self.newest as usize - back) % INPUTS_PER_MESSAGE];
        }
        Some(InputMessage::new(self.newest, &last[..count]))
    }
}

/// The pages that were asked for lately; the oldest request gives way.
#[derive(Debug, Default)]
struct Resets {
    asked: [Option<(PageId, Time)>; RESETS_REMEMBERED],
    next: usize,
}

impl Resets {
    /// Whether the page is to be asked for now; if so, remembers it.
    fn is_wanted(&mut self, now: Time, page: PageId) -> bool {
        let recent = |&(asked, at): &(PageId, Time)| asked == page && now - at < RESET_PAUSE;
        if self.asked.iter().flatten().any(recent) {
            return false;
        }
        self.asked[self.next] = Some((page, now));
        self.next = (self.next + 1) % RESETS_REMEMBERED;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shadowland_wire::block::CellId;

    fn sent(inputs: &mut Inputs) -> Vec<(u32, i8)> {
        let message = inputs.message().expect("there are unsent inputs");
        inputs.unsent = 0;
        message.iter().map(|(number, input)| (number, input.forward)).collect()
    }

    fn push(inputs: &mut Inputs, count: u32) {
        for _ in 0..count {
            let forward = (inputs.newest + 1) as i8;
            inputs.push(Input { forward, ..Input::default() });
        }
    }

    #[test]
    fn inputs_are_numbered_and_repeated() {
        let mut inputs = Inputs::default();
        assert_eq!(inputs.message(), None);
        push(&mut inputs, 1);
        assert_eq!(sent(&mut inputs), [(1, 1)]);
        assert_eq!(inputs.message(), None, "nothing new");
        push(&mut inputs, 1);
        assert_eq!(sent(&mut inputs), [(1, 1), (2, 2)]);
        push(&mut inputs, 5);
        assert_eq!(sent(&mut inputs), [(3, 3), (4, 4), (5, 5), (6, 6), (7, 7)], "all that is new");
        push(&mut inputs, 1);
        assert_eq!(sent(&mut inputs), [(5, 5), (6, 6), (7, 7), (8, 8)], "the newest and three before it");
        push(&mut inputs, 20);
        let numbers: Vec<_> = sent(&mut inputs).iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (21..=28).collect::<Vec<_>>(), "as many as a message carries");
    }

    #[test]
    fn a_page_is_asked_for_once_a_second() {
        let mut resets = Resets::default();
        let page = |cell| PageId { cell: CellId(cell), number: 0 };
        let at = |ms: u64| Time::from_micros(ms * 1_000);
        assert!(resets.is_wanted(at(0), page(1)));
        assert!(!resets.is_wanted(at(900), page(1)));
        assert!(resets.is_wanted(at(900), page(2)));
        assert!(resets.is_wanted(at(1_000), page(1)));
    }
}
