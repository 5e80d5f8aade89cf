//! Large messages: taken apart for sending, put together on arrival.
//!
//! A piece is a reliable message like any other, so that loss, order and back-pressure are not told twice. A
//! receiver holds no more than what has arrived, of at most [`ASSEMBLIES`] messages at a time, which a sender
//! keeps to. When pieces stop coming, while the peer is heard, the session ends: the rest of the stream could never be
//! delivered.

use std::collections::BTreeMap;
use std::time::Duration;

use shadowland_wire::codec::Writer;
use shadowland_wire::limits::{ASSEMBLIES, FRAGMENT_BYTES};
use shadowland_wire::message::MessageId;
use shadowland_wire::message::fragment::{Fragment, Whole};

use super::Receiver;
use super::compress::decompress;
use super::config::TransportConfig;
use super::held::{ASSEMBLY_OVERHEAD, MESSAGE_OVERHEAD};
use crate::Time;

/// A pause between packets of the peer that counts as silence.
const SILENCE: Duration = Duration::from_secs(1);

/// The bodies of the fragments of a message.
pub(super) fn take_apart(whole: Whole, bytes: &[u8]) -> impl Iterator<Item = Box<[u8]>> + '_ {
    bytes.chunks(FRAGMENT_BYTES).enumerate().map(move |(index, piece)| {
        let mut body = [0; FRAGMENT_BYTES + Fragment::HEADER_BYTES_MAX];
        let mut writer = Writer::new(&mut body);
        let fragment = Fragment { whole, index: index as u32, piece };
        fragment.encode(&mut writer).expect("the buffer is made for it");
        writer.written().into()
    })
}

/// What taking a piece leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prospect {
    /// Bytes of memory that it takes.
    pub(super) cost: usize,
    /// Pieces of its message that are missing then.
    pub(super) missing: u32,
}

/// Why a fragment is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// No fragment, or one that contradicts others, or more messages at a time than may be.
    Malformed,
    /// The message is complete and cannot be unpacked.
    Unpackable,
}

/// The messages of which some pieces have arrived.
#[derive(Debug)]
pub(super) struct Assemblies {
    /// At most [`ASSEMBLIES`].
    open: Vec<Assembly>,
    /// Of memory that all pieces take.
    bytes: usize,
    message_bytes: usize,
    expiry: Duration,
    /// Time of the last piece, silence taken off.
    progress_at: Time,
    /// Silence of the peer, all together.
    silence: Duration,
    heard_at: Time,
}

#[derive(Debug)]
struct Assembly {
    /// The place of the first piece.
    first: MessageId,
    whole: Whole,
    pieces: BTreeMap<u32, Box<[u8]>>,
}

impl Assemblies {
    pub(super) fn new(config: &TransportConfig) -> Self {
        Self {
            open: Vec::new(),
            bytes: 0,
            message_bytes: config.message_bytes,
            expiry: config.assembly_expiry,
            progress_at: Time::default(),
            silence: Duration::ZERO,
            heard_at: Time::default(),
        }
    }

    /// A packet of the peer has arrived. Need not be told while no message is open, but of those that end a pause.
    pub(super) fn heard(&mut self, now: Time) {
        let pause = now - self.heard_at;
        if pause > SILENCE {
            self.silence += pause;
        }
        self.heard_at = now;
    }

    /// Whether a message has arrived in part.
    pub(super) fn are_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Whether a message has failed.
    pub(super) fn has_expired(&self) -> bool {
        !self.open.is_empty() && self.audible() - self.progress_at > self.expiry
    }

    /// Bytes of memory that pieces take.
    pub(super) fn cost(&self) -> usize {
        self.bytes + self.open.len() * ASSEMBLY_OVERHEAD
    }

    /// A piece has come, be it for the second time or ahead of a gap: if it is of an open message, the peer is at work.
    pub(super) fn touch(&mut self, place: MessageId, piece: &Fragment<'_>) {
        if self.open_for(place, piece).is_some() {
            self.progress_at = self.audible();
        }
    }

    /// Bytes of memory that this piece would take, which has not arrived before, and how many more are missing then.
    pub(super) fn prospect(&self, place: MessageId, piece: &Fragment<'_>) -> Prospect {
        let open = self.open_for(place, piece);
        let arrived = open.map_or(0, |assembly| assembly.pieces.len() as u32);
        Prospect {
            cost: cost_of(piece.piece) + if open.is_none() { ASSEMBLY_OVERHEAD } else { 0 },
            missing: piece.whole.pieces().saturating_sub(arrived + 1),
        }
    }

    fn open_for(&self, place: MessageId, piece: &Fragment<'_>) -> Option<&Assembly> {
        let id = place.id.checked_sub(u64::from(piece.index))?;
        self.open.iter().find(|assembly| assembly.first == MessageId { id, ..place })
    }

    /// Takes the piece at `place`, which has not arrived before; gives the message to `receiver` if it was the
    /// last one.
    pub(super) fn take(
        &mut self,
        place: MessageId,
        body: &[u8],
        receiver: &mut impl Receiver,
    ) -> Result<(), Refused> {
        let Fragment { whole, index, piece } = Fragment::decode(body).map_err(|_| Refused::Malformed)?;
        let id = place.id.checked_sub(u64::from(index)).ok_or(Refused::Malformed)?;
        let first = MessageId { id, ..place };
        if !self.takes(&whole) {
            return Err(Refused::Malformed);
        }
        if whole.pieces() == 1 {
            return finish(whole, piece, receiver);
        }
        let known = self.open.iter().position(|assembly| assembly.first == first);
        if known.is_none() && self.open.len() >= ASSEMBLIES {
            return Err(Refused::Malformed);
        }
        let number = known.unwrap_or_else(|| {
            self.progress_at = self.audible();
            self.open.push(Assembly { first, whole, pieces: BTreeMap::new() });
            self.open.len() - 1
        });
        let assembly = &mut self.open[number];
        if assembly.whole != whole {
            return Err(Refused::Malformed);
        }
        if assembly.pieces.insert(index, piece.into()).is_none() {
            self.bytes += cost_of(piece);
        }
        if assembly.pieces.len() < whole.pieces() as usize {
            return Ok(());
        }
        let pieces = self.open.swap_remove(number).pieces;
        if self.open.is_empty() {
            self.open = Vec::new();
        }
        self.bytes -= pieces.values().map(|piece| cost_of(piece)).sum::<usize>();
        let mut bytes = Vec::with_capacity(whole.size as usize);
        pieces.values().for_each(|piece| bytes.extend_from_slice(piece));
        finish(whole, &bytes, receiver)
    }

    /// Whether a message is no larger than this side takes.
    pub(super) fn takes(&self, whole: &Whole) -> bool {
        whole.size.max(whole.plain()) as usize <= self.message_bytes
    }

    /// The last moment at which the peer was heard, on a clock that stands still while it is silent.
    fn audible(&self) -> Time {
        Time::from_micros(self.heard_at.as_micros().saturating_sub(self.silence.as_micros() as u64))
    }
}

fn cost_of(piece: &[u8]) -> usize {
    piece.len() + MESSAGE_OVERHEAD
}

/// Gives a complete message to `receiver`.
fn finish(whole: Whole, bytes: &[u8], receiver: &mut impl Receiver) -> Result<(), Refused> {
    match whole.plain_size {
        None => receiver.message(whole.kind, bytes),
        Some(plain_size) => {
            let plain = decompress(bytes, plain_size as usize).ok_or(Refused::Unpackable)?;
            receiver.message(whole.kind, &plain);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use shadowland_wire::header::Channel;
    use shadowland_wire::message::StreamId;

    #[derive(Default)]
    struct Log(Vec<Vec<u8>>);

    impl Receiver for Log {
        fn message(&mut self, _kind: u8, body: &[u8]) {
            self.0.push(body.to_vec());
        }
        fn acked(&mut self, _sequence: u64) {}
    }

    fn place(id: u64) -> MessageId {
        MessageId { stream: StreamId::new(Channel::ReliableUnordered, 0).unwrap(), id }
    }

    fn assemblies_of(message_bytes: usize) -> Assemblies {
        Assemblies::new(&TransportConfig { message_bytes, ..TransportConfig::default() })
    }

    fn at(seconds: u64) -> Time {
        Time::from_micros(seconds * 1_000_000)
    }

    fn fragments(size: u32) -> (Vec<u8>, Vec<Box<[u8]>>) {
        let bytes: Vec<u8> = (0..size).map(|index| (index * 7 / 5) as u8).collect();
        let fragments = take_apart(Whole { kind: 0x40, size, plain_size: None }, &bytes).collect();
        (bytes, fragments)
    }

    #[test]
    fn pieces_in_any_order_make_the_message() {
        for size in [1, 999, 1_000, 1_001, 5_000, 65_537] {
            let (bytes, fragments) = fragments(size);
            let (mut assemblies, mut log) = (assemblies_of(100_000), Log::default());
            for (index, fragment) in fragments.iter().enumerate().rev() {
                assert!(log.0.is_empty());
                assemblies.take(place(50 + index as u64), fragment, &mut log).unwrap();
            }
            assert_eq!(log.0, [bytes]);
            assert!(assemblies.open.is_empty());
        }
    }

    #[test]
    fn a_hoarder_gets_no_more_than_its_assemblies() {
        let (_, fragments) = fragments(2_000);
        let (mut assemblies, mut log) = (assemblies_of(100_000), Log::default());
        for number in 0..ASSEMBLIES as u64 {
            assemblies.take(place(10 * number), &fragments[0], &mut log).unwrap();
        }
        assert_eq!(assemblies.take(place(1_000), &fragments[0], &mut log), Err(Refused::Malformed));
        assemblies.take(place(11), &fragments[1], &mut log).unwrap();
        assert_eq!(log.0.len(), 1);
        assert_eq!(assemblies.take(place(1_000), &fragments[0], &mut log), Ok(()));
    }

    #[test]
    fn contradictions_and_messages_above_the_limit_are_refused() {
        let (mut assemblies, mut log) = (assemblies_of(5_000), Log::default());
        assert_eq!(assemblies.take(place(0), &fragments(5_001).1[0], &mut log), Err(Refused::Malformed));
        assemblies.take(place(0), &fragments(4_000).1[0], &mut log).unwrap();
        assert_eq!(assemblies.take(place(1), &fragments(3_000).1[1], &mut log), Err(Refused::Malformed));
        assert_eq!(assemblies.take(place(0), &fragments(4_000).1[1], &mut log), Err(Refused::Malformed));
    }

    #[test]
    fn a_message_that_gets_no_further_expires_but_silence_does_not_count() {
        let (mut assemblies, mut log) = (assemblies_of(5_000), Log::default());
        assemblies.heard(at(100));
        assemblies.take(place(0), &fragments(4_000).1[0], &mut log).unwrap();
        assemblies.heard(at(112));
        assert!(!assemblies.has_expired(), "nothing was heard meanwhile");
        for second in 113..=120 {
            assemblies.heard(at(second));
        }
        // One that is there already shows that the peer is at work; one of a message that is not open does not.
        assemblies.touch(place(0), &Fragment::decode(&fragments(4_000).1[0]).unwrap());
        for second in 121..=130 {
            assemblies.heard(at(second));
            assert!(!assemblies.has_expired(), "after {second} s");
            assemblies.touch(place(50), &Fragment::decode(&fragments(4_000).1[0]).unwrap());
        }
        assemblies.heard(at(131));
        assert!(assemblies.has_expired());
    }

    #[test]
    fn a_message_that_begins_late_has_as_long_as_the_first() {
        let (mut assemblies, mut log) = (assemblies_of(5_000), Log::default());
        (1..=40).for_each(|second| assemblies.heard(at(second)));
        assemblies.take(place(0), &fragments(4_000).1[0], &mut log).unwrap();
        (41..=50).for_each(|second| assemblies.heard(at(second)));
        assert!(!assemblies.has_expired());
        assemblies.heard(at(51));
        assert!(assemblies.has_expired());
    }
}
