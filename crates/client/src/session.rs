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
use rustc_hash::FxHashMap;
use shadowland_proto::{
    Channel, CloseReason, ConnectConfig, ConnectError, Connecting, Connection, DisconnectReason, DropReason,
    Receiver, Reliable, SendError, State, Time,
};
use shadowland_wire::block::PageId;
use shadowland_wire::codec::{DecodeError, Writer};
use shadowland_wire::handshake::Echo;
use shadowland_wire::limits::INPUTS_PER_MESSAGE;
use shadowland_wire::message::client::{Input, InputMessage, ResetPage};
use shadowland_wire::message::server::Welcome;
use shadowland_wire::message::{ClientType, GAME_TYPES_OF_CLIENT, GAME_TYPES_OF_SERVER, ServerType};
use thiserror::Error;

use crate::replica::{Replica, Watcher};

/// Inputs that a message carries at least: each is sent four times, so that three lost packets in a row lose
/// none.
const REPEATED_INPUTS: usize = 4;
/// A page is not asked for again before this: the request is reliable, and until it arrives the server goes on
/// sending what cannot be applied.
const RESET_PAUSE: Duration = Duration::from_secs(1);
/// Pages that are asked for together, and the pause until the next ones: a server ignores more in a tick.
const RESETS_AT_ONCE: u64 = 8;
const RESETS_INTERVAL: Duration = Duration::from_millis(20);

/// Messages of the game's own that wait for [`Session::poll_event`], and their bytes; then the server has to wait.
const UNREAD_MESSAGES: usize = 1_024;
const UNREAD_BYTES: usize = 1 << 20;

/// What happened to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The server has proved who it is; packets are sealed from here on.
    Connected,
    /// The player has an entity in the world.
    Welcomed(Welcome),
    /// A message of the game's own (types 0x60 to 0x7f) has arrived.
    Message {
        /// Its type.
        kind: u8,
        /// The rest.
        body: Box<[u8]>,
    },
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
    /// Nobody looks at what is around the player.
    blind: bool,
    welcome: Option<Welcome>,
    inputs: Inputs,
    resets: Resets,
    events: VecDeque<Event>,
    /// Bytes of messages among the events.
    unread_bytes: usize,
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
            blind: false,
            welcome: None,
            inputs: Inputs::default(),
            resets: Resets::default(),
            events: VecDeque::with_capacity(4),
            unread_bytes: 0,
            stats: SessionStats::default(),
        })
    }

    /// Reads no more of snapshots than the tick and the player's own state from here on, for load generators with many
    /// players whom nobody watches. Everything else is done as ever, and snapshots are acknowledged like applied ones:
    /// the server cannot tell. The [`Replica`] stays as it is, so call this before the first snapshot.
    pub fn close_eyes(&mut self) {
        self.blind = true;
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
                    blind: self.blind,
                    stats: &mut self.stats,
                    welcome: &mut self.welcome,
                    unreadable: None,
                    watcher,
                    events: &mut self.events,
                    unread_bytes: &mut self.unread_bytes,
                };
                let result = connection.handle(now, datagram, &mut inbound);
                let Inbound { unreadable, .. } = inbound;
                self.stats.resets += self.resets.send(now, &self.replica, |page| ask_for(connection, page));
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
        let event = self.events.pop_front();
        if let Some(Event::Message { body, .. }) = &event {
            self.unread_bytes -= body.len();
        }
        event
    }

    /// Sends a message of the game's own: it arrives exactly once, on an ordered stream in the order of sending, unless
    /// the session ends before. It leaves with the next datagrams.
    ///
    /// # Errors
    /// Why it was not taken. When as much waits as may it is [`SendError::Full`]: try again later. Before
    /// [`Event::Connected`] and after [`Event::Disconnected`] it is [`SendError::Closed`]. Types are 0x30 to 0x3f.
    pub fn send(&mut self, way: Reliable, kind: u8, body: &[u8]) -> Result<(), SendError> {
        match &mut self.phase {
            Phase::Connected(_) if !GAME_TYPES_OF_CLIENT.contains(&kind) => Err(SendError::BadType),
            Phase::Connected(connection) => connection.send(way.channel(), way.stream(), kind, body),
            Phase::Connecting(_) | Phase::Over(_) => Err(SendError::Closed),
        }
    }

    /// When to call [`Session::on_timeout`] at the latest; `None` once the session is over.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Time> {
        match &self.phase {
            Phase::Connecting(connecting) => connecting.next_timeout(),
            Phase::Connected(connection) => {
                let times = [connection.next_timeout(), self.resets.next];
                times.into_iter().flatten().min()
            }
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
                self.stats.resets += self.resets.send(now, &self.replica, |page| ask_for(connection, page));
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

    /// Fetches into the cache what the next datagram of this session needs, whichever way it goes, for those who
    /// drive more sessions than a cache holds. To be called some microseconds before.
    pub fn prefetch(&self) {
        if let Phase::Connected(connection) = &self.phase {
            connection.prefetch();
        }
    }

    /// What can only be fetched when [`Session::prefetch`] is through.
    pub fn prefetch_more(&self) {
        self.replica.prefetch();
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

/// Asks the server for a page from scratch; `false` when there is no room for the request now.
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
    blind: bool,
    stats: &'a mut SessionStats,
    welcome: &'a mut Option<Welcome>,
    unreadable: Option<DecodeError>,
    watcher: &'a mut W,
    events: &'a mut VecDeque<Event>,
    unread_bytes: &'a mut usize,
}

impl<W: Watcher> Receiver for Inbound<'_, W> {
    fn message(&mut self, kind: u8, body: &[u8]) {
        let read = match ServerType::from_byte(kind) {
            Some(ServerType::Snapshot) => self.snapshot(body),
            Some(ServerType::Welcome) => self.welcome(body),
            None if GAME_TYPES_OF_SERVER.contains(&kind) => {
                *self.unread_bytes += body.len();
                self.events.push_back(Event::Message { kind, body: body.into() });
                Ok(())
            }
            // A newer server may say more than this client understands.
            None => Ok(()),
        };
        if let Err(error) = read {
            self.unreadable.get_or_insert(error);
        }
    }

    fn has_room(&self, _kind: u8, _bytes: usize) -> bool {
        self.events.len() < UNREAD_MESSAGES && *self.unread_bytes < UNREAD_BYTES
    }

    fn acked(&mut self, _sequence: u64) {}
}

impl<W: Watcher> Inbound<'_, W> {
    /// Its event stands where it came among the game's own messages, which share its stream.
    fn welcome(&mut self, body: &[u8]) -> Result<(), DecodeError> {
        let welcome = Welcome::decode(body)?;
        *self.welcome = Some(welcome);
        self.events.push_back(Event::Welcomed(welcome));
        Ok(())
    }

    fn snapshot(&mut self, body: &[u8]) -> Result<(), DecodeError> {
        if self.blind {
            self.stats.snapshots += 1;
            return self.replica.apply_header_only(body);
        }
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

/// The pages that were asked for within the last [`RESET_PAUSE`].
#[derive(Debug, Default)]
struct Resets {
    asked: FxHashMap<PageId, Time>,
    /// No page is asked for before this.
    resume: Time,
    /// When the next page that has to wait may be asked for.
    next: Option<Time>,
}

impl Resets {
    /// Sends a request by `ask` for the pages that the replica lacks and that were not asked for lately, and
    /// returns how many were sent. What `ask` refuses is tried again after [`RESETS_INTERVAL`].
    fn send(&mut self, now: Time, replica: &Replica, mut ask: impl FnMut(PageId) -> bool) -> u64 {
        self.next = None;
        if replica.resets().len() == 0 {
            return 0;
        }
        if now < self.resume {
            self.next = Some(self.resume);
            return 0;
        }
        self.asked.retain(|_, &mut at| now - at < RESET_PAUSE);
        let mut sent = 0;
        for page in replica.resets() {
            let due = match self.asked.get(&page) {
                Some(&at) => at + RESET_PAUSE,
                None if sent == RESETS_AT_ONCE => now + RESETS_INTERVAL,
                None if ask(page) => {
                    sent += 1;
                    self.asked.insert(page, now);
                    now + RESET_PAUSE
                }
                // Room is made by acknowledgements.
                None => now + RESETS_INTERVAL,
            };
            self.next = Some(self.next.map_or(due, |next| next.min(due)));
            if due == now + RESETS_INTERVAL {
                break;
            }
        }
        // However many pages a server has its clients lack, they are not gone through for every datagram.
        self.resume = now + RESETS_INTERVAL;
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shadowland_wire::block::{AgeCode, BlockHeader, CellId};
    use shadowland_wire::limits::CLIENT_PAGES;
    use shadowland_wire::message::server::{Close, SnapshotHeader};

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

    fn page(cell: u32) -> PageId {
        PageId { cell: CellId(cell), number: 0 }
    }

    fn at(ms: u64) -> Time {
        Time::from_micros(ms * 1_000)
    }

    /// Applies what cannot be applied: a block with a baseline of each of these cells.
    fn lack(replica: &mut Replica, tick: u32, cells: std::ops::Range<u32>) {
        for cell in cells {
            let mut body = [0; 64];
            let mut writer = Writer::new(&mut body);
            SnapshotHeader::new(tick, 0).encode(&mut writer).unwrap();
            let header = BlockHeader { page: page(cell), age: AgeCode::covering(1) };
            header.encode(&mut writer, &mut CellId(0)).unwrap();
            // Rich, without tombstones, enters and updates.
            writer.bytes(&[1]).unwrap();
            assert_eq!(replica.apply_snapshot(writer.written(), &mut ()).unwrap().skipped, 1);
        }
    }

    #[test]
    fn a_page_is_asked_for_once_a_second_until_it_is_there() {
        let (mut resets, mut replica) = (Resets::default(), Replica::new());
        lack(&mut replica, 1, 1..2);
        assert_eq!(resets.send(at(0), &replica, |_| true), 1);
        assert_eq!(resets.next, Some(at(1_000)));
        lack(&mut replica, 2, 1..3);
        assert_eq!(resets.send(at(10), &replica, |_| true), 0);
        assert_eq!(resets.next, Some(at(20)));
        assert_eq!(resets.send(at(900), &replica, |page| page.cell == CellId(2)), 1);
        // Nothing more comes of the first page, and the request may have been ignored.
        assert_eq!(resets.send(at(920), &replica, |_| true), 0);
        assert_eq!(resets.next, Some(at(1_000)));
        assert_eq!(resets.send(at(1_000), &replica, |page| page.cell == CellId(1)), 1);
        assert_eq!(replica.resets().len(), 2);
    }

    #[test]
    fn requests_without_room_wait_however_many_they_are() {
        let (mut resets, mut replica) = (Resets::default(), Replica::new());
        lack(&mut replica, 1, 0..300);
        assert_eq!(resets.send(at(0), &replica, |_| false), 0);
        let mut asked = std::collections::HashSet::new();
        for call in 1..=38 {
            let sent = resets.send(at(call * 20), &replica, |page| asked.insert(page));
            assert_eq!(sent, if call < 38 { 8 } else { 4 }, "call {call}");
        }
        assert_eq!(asked.len(), 300);
    }

    #[test]
    fn who_lacks_more_pages_than_there_can_be_has_a_faulty_server() {
        let mut replica = Replica::new();
        lack(&mut replica, 1, 0..CLIENT_PAGES as u32);
        let mut body = [0; 64];
        let mut writer = Writer::new(&mut body);
        SnapshotHeader { closes: 2, ..SnapshotHeader::new(2, 0) }.encode(&mut writer).unwrap();
        // A close takes back what its cell's pages were to be asked for, unless a newer block lacked them.
        let closes = [Close { cell: CellId(7), age: 1 }, Close { cell: CellId(8), age: 2 }];
        closes.iter().for_each(|close| close.encode(&mut writer).unwrap());
        replica.apply_snapshot(writer.written(), &mut ()).unwrap();
        assert_eq!(replica.resets().len(), CLIENT_PAGES - 1);
        lack(&mut replica, 3, 7..8);
        let mut writer = Writer::new(&mut body);
        SnapshotHeader::new(3, 0).encode(&mut writer).unwrap();
        let header = BlockHeader { page: page(CLIENT_PAGES as u32), age: AgeCode::covering(1) };
        header.encode(&mut writer, &mut CellId(0)).unwrap();
        writer.bytes(&[1]).unwrap();
        let refused = replica.apply_snapshot(writer.written(), &mut ());
        assert_eq!(refused, Err(DecodeError::LimitExceeded("pages to be asked for")));
    }
}
