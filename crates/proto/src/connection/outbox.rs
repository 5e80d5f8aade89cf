//! Reliable messages on their way to the peer: kept until a packet that carried them is acknowledged.

use std::collections::VecDeque;
use std::mem::offset_of;
use std::time::Duration;

use shadowland_wire::codec::Writer;
use shadowland_wire::header::Channel;
use shadowland_wire::limits::{ASSEMBLIES, RELIABLE_MESSAGE_BYTES, REORDER_BYTES, REORDER_WINDOW};
use shadowland_wire::message::fragment::Whole;
use shadowland_wire::message::{
    ControlType, FIRST_APPLICATION_TYPE, Frame, MessageId, RELIABLE_BIT, StreamId,
};
use thiserror::Error;

use super::compress::compress;
use super::config::TransportConfig;
use super::fragments::take_apart;
use super::rtt::Rtt;
use crate::Time;

/// Packets per message that are remembered: a message that was sent again is also acknowledged by a late
/// acknowledgement of its first packets.
const CARRIERS: usize = 4;
/// A message that was lost so often, timeouts not counted, waits for its timeout when it is lost again. So whatever the peer does not take, for
/// want of room or of will, is counted among the retries before long, and not sent with every round trip.
const LOST_AT_MOST: u32 = 8;
/// When no piece of a large message has left for so long, smaller messages leave it room in the peer's window.
const PIECE_PATIENCE: Duration = Duration::from_secs(1);
/// The id of the first message of every stream.
pub(super) const FIRST_ID: u64 = 0;

/// The way of a reliable message. Streams do not hold each other up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reliable {
    /// In the order of sending within the stream of this number, 0 to 7. The server's own messages are on stream 0.
    Ordered(u8),
    /// As soon as it is there.
    Unordered,
}

impl Reliable {
    /// The channel of the packet's header.
    #[must_use]
    pub fn channel(self) -> Channel {
        match self {
            Self::Ordered(_) => Channel::ReliableOrdered,
            Self::Unordered => Channel::ReliableUnordered,
        }
    }

    /// The stream of the channel.
    #[must_use]
    pub fn stream(self) -> u8 {
        match self {
            Self::Ordered(stream) => stream,
            Self::Unordered => 0,
        }
    }
}

/// Why a reliable message is not taken for sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SendError {
    /// As much is waiting as the connection holds; try again when the peer has acknowledged some of it.
    #[error("as many reliable messages are waiting as the connection holds")]
    Full,
    /// The message is larger than this side sends or the peer takes.
    #[error("the message is larger than this side sends or the peer takes")]
    TooLarge,
    /// The channel has no such stream, or is not a reliable one.
    #[error("there is no such reliable stream")]
    NoSuchStream,
    /// The type byte belongs to the protocol, not to the application.
    #[error("the type is not one of the application's")]
    BadType,
    /// The session is over.
    #[error("the session is over")]
    Closed,
}

/// The queue of one connection. Costs nothing until something reliable is sent.
///
/// The fields that are looked at while nothing reliable is sent come first.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Outbox {
    messages: VecDeque<Outgoing>,
    waiting: usize,
    in_flight_bytes: usize,
    /// The windows do not let any waiting message go until an acknowledgement arrives.
    blocked: bool,
    /// Of whole messages, and of pieces of large ones: so that neither fills the other's place.
    held: [Held; 2],
    /// Of messages that have left and that the peer, as far as is known, may have to hold for an earlier one.
    may_be_held_bytes: usize,
    /// At or before the first timeout of a message in flight.
    deadline: Option<Time>,
    resent: u64,
    next_id: [u64; StreamId::COUNT],
    oldest_id: [u64; StreamId::COUNT],
    window_messages: u64,
    window_bytes: usize,
    /// Largest message that the peer takes, once it has told.
    peer_message_bytes: Option<usize>,
    /// Messages that were taken apart and are not acknowledged as a whole.
    large: [Option<Large>; ASSEMBLIES],
    /// When a piece of a large message left last, or there was none.
    piece_left_at: Time,
}

#[derive(Debug, Clone, Copy, Default)]
struct Held {
    messages: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Outgoing {
    place: MessageId,
    kind: u8,
    /// Whether it is one of several pieces of a large message.
    is_piece_of_several: bool,
    progress: Progress,
    timeouts: u8,
    times_sent: u32,
    sent_at: Time,
    /// The last packets that carried it; 0 for none.
    carriers: [u64; CARRIERS],
    body: Box<[u8]>,
    /// Of the body, which is not kept once it was acknowledged.
    bytes: usize,
}

/// How far a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// For a packet.
    Waits,
    InFlight,
    /// Acknowledged; the peer cannot deliver it before an earlier one of its stream.
    HeldByPeer,
}

/// How far filling a packet went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    Done,
    /// A message would have fitted the packet, but not the peer's window of bytes.
    WindowFull,
    PacketFull,
}

/// The packet that messages leave with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Departure<'a> {
    pub(super) now: Time,
    pub(super) sequence: u64,
    /// Messages that it may still have.
    pub(super) room: usize,
    pub(super) timeouts: Timeouts<'a>,
}

/// What was written into a packet.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Filled {
    /// The channel of the first message.
    pub(super) channel: Option<Channel>,
    pub(super) messages: usize,
    pub(super) fragments: bool,
    /// Pieces of messages that have several.
    pieces: bool,
    pub(super) compressed: bool,
    /// Bytes of bodies: of ordered and of unordered streams.
    pub(super) bytes: [u64; 2],
}

impl Filled {
    fn note(&mut self, message: &Outgoing) {
        let channel = message.place.stream.channel();
        self.channel.get_or_insert(channel);
        self.messages += 1;
        self.bytes[usize::from(channel == Channel::ReliableUnordered)] += message.body.len() as u64;
        self.pieces |= message.is_piece_of_several;
        if message.kind == ControlType::Fragment as u8 {
            self.fragments = true;
            // The top bit of a fragment's first byte.
            self.compressed |= message.body.first().is_some_and(|byte| byte & RELIABLE_BIT != 0);
        }
    }
}

/// A message that was taken apart.
#[derive(Debug, Clone, Copy)]
struct Large {
    first: MessageId,
    pieces: u32,
    unacknowledged: u32,
}

impl Large {
    /// A piece, if it is one, has been acknowledged.
    fn acked(all: &mut [Option<Self>; ASSEMBLIES], place: MessageId) {
        for slot in all.iter_mut() {
            let Some(large) = slot else { continue };
            let is_piece = large.first.stream == place.stream
                && (large.first.id..large.first.id + u64::from(large.pieces)).contains(&place.id);
            if is_piece {
                large.unacknowledged -= 1;
                if large.unacknowledged == 0 {
                    *slot = None;
                }
                return;
            }
        }
    }
}

/// When messages time out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts<'a> {
    pub(super) config: &'a TransportConfig,
    pub(super) rtt: &'a Rtt,
}

impl Timeouts<'_> {
    fn after(self, timeouts: u8) -> Duration {
        self.rtt.timeout(self.config, timeouts)
    }
}

/// A message has timed out too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Undeliverable;

impl Outbox {
    /// What is looked at while nothing reliable is sent comes first, in one line of the cache.
    pub(super) const HEAD_BYTES: usize = offset_of!(Self, held);

    pub(super) fn new() -> Self {
        Self {
            messages: VecDeque::new(),
            held: [Held::default(); 2],
            in_flight_bytes: 0,
            may_be_held_bytes: 0,
            waiting: 0,
            blocked: false,
            next_id: [FIRST_ID; StreamId::COUNT],
            oldest_id: [FIRST_ID; StreamId::COUNT],
            window_messages: REORDER_WINDOW as u64,
            window_bytes: REORDER_BYTES,
            peer_message_bytes: None,
            large: [None; ASSEMBLIES],
            piece_left_at: Time::default(),
            deadline: None,
            resent: 0,
        }
    }

    /// Keeps to the windows that the peer has told. However wide they are, no more is kept than `send` takes.
    pub(super) fn set_windows(&mut self, messages: u16, bytes: u32, message_bytes: u32) {
        self.peer_message_bytes = Some(message_bytes as usize);
        self.window_messages = u64::from(messages).clamp(1, REORDER_WINDOW as u64);
        self.window_bytes = (bytes as usize).max(RELIABLE_MESSAGE_BYTES);
    }

    /// Takes a message for sending.
    pub(super) fn push(
        &mut self,
        config: &TransportConfig,
        channel: Channel,
        stream: u8,
        kind: u8,
        body: &[u8],
    ) -> Result<(), SendError> {
        let stream = StreamId::new(channel, stream).ok_or(SendError::NoSuchStream)?;
        if !(FIRST_APPLICATION_TYPE..RELIABLE_BIT).contains(&kind) {
            return Err(SendError::BadType);
        }
        if body.len() > config.message_bytes {
            return Err(SendError::TooLarge);
        }
        // Whoever is told to come again does: a message is packed only when it is sure to be taken.
        let is_large = body.len() > RELIABLE_MESSAGE_BYTES;
        if is_large { self.check_large(config, body.len()) } else { self.check_whole(config, body.len()) }?;
        // It may become one that leaves in one piece.
        let has_room = !is_large || self.check_whole(config, RELIABLE_MESSAGE_BYTES).is_ok();
        let may_pack =
            config.compress && has_room && self.peer_message_bytes.is_some_and(|most| body.len() <= most);
        let packed = if may_pack { compress(body) } else { None };
        if packed.is_none() && !is_large {
            self.queue(stream, kind, false, body.into());
            return Ok(());
        }
        let plain_size = packed.is_some().then_some(body.len() as u32);
        let bytes = packed.as_deref().unwrap_or(body);
        let whole = Whole { kind, size: bytes.len() as u32, plain_size };
        let of_several = whole.pieces() > 1;
        if of_several {
            let first = MessageId { stream, id: self.next_id[stream.index()] };
            let free = self.large.iter_mut().find(|large| large.is_none()).ok_or(SendError::Full)?;
            *free = Some(Large { first, pieces: whole.pieces(), unacknowledged: whole.pieces() });
        }
        for piece in take_apart(whole, bytes) {
            self.queue(stream, ControlType::Fragment as u8, of_several, piece);
        }
        Ok(())
    }

    /// Whether a message is taken that leaves in one piece.
    fn check_whole(&self, config: &TransportConfig, bytes: usize) -> Result<(), SendError> {
        let held = self.held[0];
        let is_full = held.messages >= config.send_messages || held.bytes + bytes > config.send_bytes;
        if is_full { Err(SendError::Full) } else { Ok(()) }
    }

    /// Whether a message is taken that fits no packet: whenever the other large ones are within the limit.
    fn check_large(&self, config: &TransportConfig, bytes: usize) -> Result<(), SendError> {
        let most = self.peer_message_bytes.ok_or(SendError::Full)?;
        if bytes > most {
            return Err(SendError::TooLarge);
        }
        let is_full = self.held[1].bytes > config.send_bytes || self.large.iter().all(Option::is_some);
        if is_full { Err(SendError::Full) } else { Ok(()) }
    }

    fn queue(&mut self, stream: StreamId, kind: u8, is_piece_of_several: bool, body: Box<[u8]>) {
        let held = &mut self.held[usize::from(is_piece_of_several)];
        held.messages += 1;
        held.bytes += body.len();
        let next_id = &mut self.next_id[stream.index()];
        self.messages.push_back(Outgoing {
            place: MessageId { stream, id: *next_id },
            kind,
            is_piece_of_several,
            progress: Progress::Waits,
            timeouts: 0,
            times_sent: 0,
            sent_at: Time::default(),
            carriers: [0; CARRIERS],
            bytes: body.len(),
            body,
        });
        *next_id += 1;
        self.waiting += 1;
        self.blocked = false;
    }

    /// Whether a message may leave now.
    #[inline]
    pub(super) fn is_ready(&self) -> bool {
        self.waiting > 0 && !self.blocked
    }

    /// Whether it has forgotten all messages, for they are delivered.
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Messages that are not acknowledged yet.
    pub(super) fn len(&self) -> usize {
        self.held.iter().map(|held| held.messages).sum()
    }

    /// Bytes of messages under way.
    pub(super) fn in_flight_bytes(&self) -> usize {
        self.in_flight_bytes
    }

    /// Bytes of messages that wait.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.held[0].bytes + self.held[1].bytes - self.in_flight_bytes
    }

    /// Messages that were sent again so far.
    pub(super) fn resent(&self) -> u64 {
        self.resent
    }

    /// Writes waiting messages, into a packet that is sure to be sent: oldest first, but whole ones of a stream before
    /// pieces of another stream's large ones in three of four packets.
    pub(super) fn fill(&mut self, departure: Departure<'_>, writer: &mut Writer<'_>) -> Filled {
        let mut filled = Filled::default();
        let mut lack_of_room = false;
        // In turns, so that neither starves; what is left of a packet is for the other.
        let has_large = self.large.iter().any(Option::is_some);
        let starved = has_large && departure.now - self.piece_left_at > PIECE_PATIENCE;
        let fragments_first = has_large && (starved || departure.sequence.is_multiple_of(4));
        let mut leaves_room = false;
        for of_fragments in [fragments_first, !fragments_first] {
            if has_large || !of_fragments {
                let pass = self.fill_with(of_fragments, leaves_room, departure, writer, &mut filled);
                lack_of_room |= pass == Pass::PacketFull;
                leaves_room = starved && pass == Pass::WindowFull;
            }
        }
        if filled.pieces || !has_large {
            self.piece_left_at = departure.now;
        }
        self.blocked = !lack_of_room && self.waiting > 0;
        filled
    }

    /// With `leaves_room`, nothing that the peer may have to hold leaves for the first time.
    fn fill_with(
        &mut self,
        of_fragments: bool,
        leaves_room: bool,
        departure: Departure<'_>,
        writer: &mut Writer<'_>,
        filled: &mut Filled,
    ) -> Pass {
        let mut pass = Pass::Done;
        // Of an ordered stream, nothing leaves for the first time before what is in front of it has left.
        let mut held_up = [false; StreamId::COUNT];
        for message in self.messages.iter_mut().filter(|message| message.progress == Progress::Waits) {
            let stream = message.place.stream.index();
            let is_new = message.times_sent == 0;
            if message.is_piece_of_several != of_fragments {
                held_up[stream] |= is_new && message.is_ordered();
                continue;
            }
            let ahead = message.place.id - self.oldest_id[stream];
            if is_new && held_up[stream] || ahead >= self.window_messages {
                continue;
            }
            // The peer never has to hold what it waits for, and what has left before is counted already.
            let has_room = self.may_be_held_bytes + message.bytes <= self.window_bytes && !leaves_room;
            if is_new && ahead > 0 && !has_room {
                held_up[stream] = message.is_ordered();
                pass = Pass::WindowFull;
                continue;
            }
            let frame = Frame { kind: message.kind, reliable: Some(message.place), body: &message.body };
            if filled.messages == departure.room || frame.encode(writer).is_err() {
                return Pass::PacketFull;
            }
            filled.note(message);
            self.resent += u64::from(!is_new);
            self.may_be_held_bytes += if is_new { message.bytes } else { 0 };
            message.leave(departure.now, departure.sequence);
            self.waiting -= 1;
            self.in_flight_bytes += message.bytes;
            let deadline = departure.now + departure.timeouts.after(message.timeouts);
            self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
        }
        pass
    }

    /// The peer has applied the packet `sequence`: what it carried needs no keeping.
    pub(super) fn acked(&mut self, sequence: u64) {
        let carried = |message: &&mut Outgoing| message.carriers.contains(&sequence);
        for message in self.messages.iter_mut().filter(carried) {
            match message.progress {
                Progress::HeldByPeer => continue,
                Progress::InFlight => self.in_flight_bytes -= message.bytes,
                Progress::Waits => self.waiting -= 1,
            }
            Large::acked(&mut self.large, message.place);
            let held = &mut self.held[usize::from(message.is_piece_of_several)];
            held.messages -= 1;
            held.bytes -= message.bytes;
            message.progress = Progress::HeldByPeer;
            message.body = Box::default();
        }
        self.forget_delivered();
        self.blocked = false;
    }

    /// Forgets the acknowledged messages that the peer need not hold.
    fn forget_delivered(&mut self) {
        let Self { messages, oldest_id, may_be_held_bytes, .. } = self;
        *oldest_id = self.next_id;
        for message in messages.iter().rev().filter(|message| message.progress != Progress::HeldByPeer) {
            oldest_id[message.place.stream.index()] = message.place.id;
        }
        messages.retain(|message| {
            let MessageId { stream, id } = message.place;
            let waits = message.is_ordered() && id > oldest_id[stream.index()];
            let forget = message.progress == Progress::HeldByPeer && !waits;
            *may_be_held_bytes -= if forget { message.bytes } else { 0 };
            !forget
        });
    }

    /// Packets up to `sequence` are lost unless acknowledged: what only they carried goes out again.
    pub(super) fn lost_up_to(&mut self, sequence: u64) {
        if self.in_flight_bytes == 0 && self.len() == self.waiting {
            return;
        }
        for message in self.messages.iter_mut().filter(|message| message.progress == Progress::InFlight) {
            let lost_before = message.times_sent - 1 - u32::from(message.timeouts);
            if message.carriers[0] <= sequence && lost_before < LOST_AT_MOST {
                message.progress = Progress::Waits;
                self.waiting += 1;
                self.in_flight_bytes -= message.bytes;
                self.blocked = false;
            }
        }
    }

    /// When to call [`Outbox::on_timeout`].
    pub(super) fn deadline(&self) -> Option<Time> {
        self.deadline
    }

    /// Lets messages go out again that were not acknowledged in time; returns how many.
    pub(super) fn on_timeout(&mut self, now: Time, timeouts: Timeouts<'_>) -> Result<u64, Undeliverable> {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return Ok(0);
        }
        self.deadline = None;
        let mut timed_out = 0;
        for message in self.messages.iter_mut().filter(|message| message.progress == Progress::InFlight) {
            let deadline = message.sent_at + timeouts.after(message.timeouts);
            if now < deadline {
                self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
                continue;
            }
            if message.timeouts >= timeouts.config.retries {
                return Err(Undeliverable);
            }
            timed_out += 1;
            message.timeouts += 1;
            message.progress = Progress::Waits;
            self.waiting += 1;
            self.in_flight_bytes -= message.bytes;
            self.blocked = false;
        }
        Ok(timed_out)
    }

    /// Forgets everything but what was counted: the session is over.
    pub(super) fn clear(&mut self) {
        *self = Self { resent: self.resent, ..Self::new() };
    }
}

impl Outgoing {
    fn is_ordered(&self) -> bool {
        self.place.stream.channel() == Channel::ReliableOrdered
    }

    fn leave(&mut self, now: Time, sequence: u64) {
        self.progress = Progress::InFlight;
        self.sent_at = now;
        self.times_sent = self.times_sent.saturating_add(1);
        self.carriers.rotate_right(1);
        self.carriers[0] = sequence;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::LazyLock;

    const KIND: u8 = FIRST_APPLICATION_TYPE;
    static CONFIG: LazyLock<TransportConfig> = LazyLock::new(TransportConfig::default);
    static RTT: LazyLock<Rtt> = LazyLock::new(Rtt::default);

    fn timeouts() -> Timeouts<'static> {
        Timeouts { config: &CONFIG, rtt: &RTT }
    }

    fn push(outbox: &mut Outbox, channel: Channel, stream: u8, body: &[u8]) -> Result<(), SendError> {
        outbox.push(&CONFIG, channel, stream, KIND, body)
    }

    fn fill(outbox: &mut Outbox, now: Time, sequence: u64) -> usize {
        let mut buffer = [0; 2_000];
        let mut writer = Writer::new(&mut buffer);
        let departure = Departure { now, sequence, room: 1_000, timeouts: timeouts() };
        outbox.fill(departure, &mut writer).messages
    }

    #[test]
    fn it_says_full_and_has_room_again_after_an_acknowledgement() {
        let mut outbox = Outbox::new();
        let body = [0; RELIABLE_MESSAGE_BYTES];
        let mut sent = 0;
        while push(&mut outbox, Channel::ReliableOrdered, 0, &body).is_ok() {
            sent += 1;
        }
        assert_eq!(sent * RELIABLE_MESSAGE_BYTES, CONFIG.send_bytes);
        assert_eq!(push(&mut outbox, Channel::ReliableOrdered, 0, &body), Err(SendError::Full));
        assert_eq!(fill(&mut outbox, Time::default(), 1), 1);
        outbox.acked(1);
        assert_eq!(push(&mut outbox, Channel::ReliableOrdered, 0, &body), Ok(()));
    }

    /// Whatever becomes of it when it is packed.
    #[test]
    fn what_is_packed_counts_as_it_leaves() {
        let text = |length| vec![b'a'; length];
        for length in [600, RELIABLE_MESSAGE_BYTES, 60_000] {
            let mut outbox = Outbox::new();
            outbox.set_windows(1, 65_536, 262_144);
            let push = |outbox: &mut Outbox| push(outbox, Channel::ReliableOrdered, 0, &text(length));
            let taken = (0..10_000).take_while(|_| push(&mut outbox).is_ok()).count();
            assert_eq!(push(&mut outbox), Err(SendError::Full), "{length} bytes");
            assert!((1..=CONFIG.send_messages).contains(&taken), "{taken} of {length} bytes");
            assert!(outbox.held[0].bytes <= CONFIG.send_bytes);
        }
        // And large ones under way are nothing to it that leaves in one packet.
        let config = TransportConfig { compress: false, ..TransportConfig::default() };
        let mut outbox = Outbox::new();
        outbox.set_windows(256, 65_536, 262_144);
        let large =
            |outbox: &mut Outbox| outbox.push(&config, Channel::ReliableOrdered, 1, KIND, &[7; 2_000]);
        (0..ASSEMBLIES).for_each(|_| large(&mut outbox).unwrap());
        assert_eq!(large(&mut outbox), Err(SendError::Full));
        assert_eq!(push(&mut outbox, Channel::ReliableOrdered, 0, &text(600)), Ok(()));
    }

    /// Else a flood of them would keep a large one from ever getting its room in the window.
    #[test]
    fn a_message_that_is_packed_into_one_fragment_is_no_piece_of_a_large_one() {
        let mut outbox = Outbox::new();
        outbox.set_windows(256, 65_536, 262_144);
        let noise: Vec<u8> = (0..2_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        push(&mut outbox, Channel::ReliableUnordered, 0, &noise).unwrap();
        let at = |seconds: u64| Time::from_micros(seconds * 1_000_000);
        while outbox.waiting > 0 {
            fill(&mut outbox, at(1), 4);
        }
        push(&mut outbox, Channel::ReliableUnordered, 0, &[b'a'; 600]).unwrap();
        assert_eq!(fill(&mut outbox, at(2), 5), 1);
        assert_eq!(outbox.piece_left_at, at(1));
    }

    #[test]
    fn who_takes_no_large_messages_is_sent_none() {
        let mut outbox = Outbox::new();
        let large = [7; RELIABLE_MESSAGE_BYTES + 1];
        assert_eq!(
            push(&mut outbox, Channel::ReliableOrdered, 0, &large),
            Err(SendError::Full),
            "not known yet"
        );
        outbox.set_windows(256, 65_536, 0);
        assert_eq!(push(&mut outbox, Channel::ReliableOrdered, 0, &large), Err(SendError::TooLarge));
        assert_eq!(push(&mut outbox, Channel::ReliableOrdered, 0, &large[1..]), Ok(()));
    }

    #[test]
    fn the_window_of_a_stream_holds_back_only_that_stream() {
        let mut outbox = Outbox::new();
        for _ in 0..REORDER_WINDOW + 5 {
            push(&mut outbox, Channel::ReliableOrdered, 0, &[]).unwrap();
        }
        push(&mut outbox, Channel::ReliableOrdered, 1, &[]).unwrap();
        push(&mut outbox, Channel::ReliableUnordered, 0, &[]).unwrap();
        let mut left = (1..4).map(|sequence| fill(&mut outbox, Time::default(), sequence));
        assert_eq!(left.by_ref().sum::<usize>(), REORDER_WINDOW + 2);
        assert!(!outbox.is_ready());
        outbox.acked(1);
        assert!(outbox.is_ready());
        assert_eq!(fill(&mut outbox, Time::default(), 4), 5);
    }

    #[test]
    fn what_the_peer_holds_ahead_of_a_gap_counts_in_its_window() {
        let config = TransportConfig { compress: false, ..TransportConfig::default() };
        let mut outbox = Outbox::new();
        outbox.set_windows(256, 10 * 1_000, 65_536);
        for _ in 0..30 {
            outbox.push(&config, Channel::ReliableOrdered, 0, KIND, &[0; 1_000]).unwrap();
        }
        // One a packet; all but the first are acknowledged.
        let fill_all = |outbox: &mut Outbox, first: u64| {
            (first..).take_while(|&sequence| fill(outbox, Time::default(), sequence) > 0).count() as u64
        };
        let packets = fill_all(&mut outbox, 1);
        (2..=packets).for_each(|sequence| outbox.acked(sequence));
        assert_eq!((packets, outbox.may_be_held_bytes, outbox.in_flight_bytes), (10, 10_000, 1_000));
        assert_eq!(fill_all(&mut outbox, 20), 0, "the peer could not hold more");
        // What it waits for goes again all the same, and makes room.
        outbox.lost_up_to(1);
        assert_eq!(fill_all(&mut outbox, 30), 1);
        assert!(!outbox.is_ready());
        outbox.acked(30);
        assert_eq!((outbox.may_be_held_bytes, outbox.in_flight_bytes, outbox.len()), (0, 0, 20));
        assert_eq!(fill_all(&mut outbox, 40), 10);
    }

    #[test]
    fn what_is_lost_again_and_again_waits_for_its_timeout() {
        let mut outbox = Outbox::new();
        push(&mut outbox, Channel::ReliableOrdered, 0, &[1]).unwrap();
        for sequence in 1..=u64::from(LOST_AT_MOST) + 1 {
            assert_eq!(fill(&mut outbox, Time::default(), sequence), 1);
            outbox.lost_up_to(sequence);
        }
        assert_eq!(fill(&mut outbox, Time::default(), 100), 0);
        let deadline = outbox.deadline().unwrap();
        assert_eq!(outbox.on_timeout(deadline, timeouts()), Ok(1));
        assert_eq!(fill(&mut outbox, deadline, 101), 1);
    }

    #[test]
    fn a_late_acknowledgement_of_the_first_packet_still_counts() {
        let mut outbox = Outbox::new();
        push(&mut outbox, Channel::ReliableOrdered, 0, &[1]).unwrap();
        assert_eq!(fill(&mut outbox, Time::default(), 1), 1);
        outbox.lost_up_to(1);
        assert_eq!(fill(&mut outbox, Time::default(), 5), 1);
        assert_eq!(outbox.resent(), 1);
        outbox.acked(1);
        assert_eq!(outbox.len(), 0);
        assert_eq!((outbox.held[0].bytes, outbox.in_flight_bytes, outbox.waiting), (0, 0, 0));
    }

    #[test]
    fn ten_retries_are_made_and_then_it_is_given_up() {
        let mut outbox = Outbox::new();
        push(&mut outbox, Channel::ReliableOrdered, 0, &[1]).unwrap();
        let (mut now, mut sequence) = (Time::default(), 0);
        let result = loop {
            sequence += 1;
            assert_eq!(fill(&mut outbox, now, sequence), 1);
            now = outbox.deadline().unwrap();
            if let Err(error) = outbox.on_timeout(now, timeouts()) {
                break error;
            }
        };
        assert_eq!(result, Undeliverable);
        assert_eq!(sequence, u64::from(CONFIG.retries) + 1);
        let patience = (0..=CONFIG.retries).map(|count| timeouts().after(count)).sum::<Duration>();
        assert_eq!(now - Time::default(), patience);
    }
}
