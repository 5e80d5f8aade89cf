//! What travels inside a sealed packet: the framing of messages, and the table of their types.
//!
//! After the acknowledgement block a payload is a sequence of frames up to its end. Every frame has its own
//! length, so that a message which the receiver does not know or cannot read never corrupts the next:
//!
//! ```text
//! unreliable   type u8 (top bit clear)                          length varint   body
//! reliable     type u8 (top bit set)    stream u8   id varint   length varint   body
//! ```
//!
//! The top bit of the type byte tells the two apart, so that one packet may carry both.

pub mod client;
pub mod control;
pub mod fragment;
pub mod server;

use crate::codec::{DecodeError, Full, Reader, Writer};
use crate::header::Channel;
use crate::limits::RELIABLE_STREAMS;

/// The bit of the type byte that tells a reliable frame; types are below it.
pub const RELIABLE_BIT: u8 = 0x80;
/// The first type that belongs to the application; those below are control messages.
pub const FIRST_APPLICATION_TYPE: u8 = 0x20;

/// Types of the game's own messages from a client; the protocol does not read them.
pub const GAME_TYPES_OF_CLIENT: std::ops::RangeInclusive<u8> = 0x30..=0x3f;
/// The same from a server.
pub const GAME_TYPES_OF_SERVER: std::ops::RangeInclusive<u8> = 0x60..=0x7f;

/// Whether a type is one of the game's own, whose messages are always reliable.
#[inline]
#[must_use]
pub fn is_of_game(kind: u8) -> bool {
    GAME_TYPES_OF_CLIENT.contains(&kind) || GAME_TYPES_OF_SERVER.contains(&kind)
}

/// Control messages, both directions: the session's own. None but Fragment is reliable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ControlType {
    /// Asks for a Pong.
    Ping = 0x01,
    /// Answers a Ping.
    Pong = 0x02,
    /// Reserved: acknowledgements ride in the block that every payload starts with.
    Ack = 0x03,
    /// Ends the session.
    Disconnect = 0x04,
    /// A piece of a large message ([`fragment`]); the only control message that is reliable.
    Fragment = 0x05,
    /// Confirms the keys; initial message ids and windows.
    ReliableHandshake = 0x06,
    /// Asks a client for a proof that it holds its version's table of keys.
    CheckIntegrity = 0x07,
    /// The proof.
    IntegrityAnswer = 0x08,
    /// The server's share of new keys.
    RekeyRequest = 0x09,
    /// The client's share of new keys.
    RekeyResponse = 0x0a,
    /// Asks a new address for a proof.
    PathChallenge = 0x0b,
    /// The proof.
    PathResponse = 0x0c,
}

/// Messages from a client to the server's world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ClientType {
    /// The newest inputs ([`client`]).
    Input = 0x20,
    /// Asks for a page from scratch ([`client`]).
    ResetPage = 0x21,
}

/// Messages from the server's world to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ServerType {
    /// The player is in the world ([`server`]); reliable, ordered stream 0.
    Welcome = 0x40,
    /// What changed in sight ([`server`]); unreliable.
    Snapshot = 0x41,
}

impl ControlType {
    /// Every control message.
    pub const ALL: [Self; 12] = [
        Self::Ping,
        Self::Pong,
        Self::Ack,
        Self::Disconnect,
        Self::Fragment,
        Self::ReliableHandshake,
        Self::CheckIntegrity,
        Self::IntegrityAnswer,
        Self::RekeyRequest,
        Self::RekeyResponse,
        Self::PathChallenge,
        Self::PathResponse,
    ];

    /// The message with this type byte.
    #[must_use]
    #[inline]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u8 == byte)
    }
}

impl ClientType {
    /// Every message of this direction.
    pub const ALL: [Self; 2] = [Self::Input, Self::ResetPage];

    /// The message with this type byte.
    #[must_use]
    #[inline]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u8 == byte)
    }
}

impl ServerType {
    /// Every message of this direction.
    pub const ALL: [Self; 2] = [Self::Welcome, Self::Snapshot];

    /// The message with this type byte.
    #[must_use]
    #[inline]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u8 == byte)
    }
}

/// One message in a payload, its body borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The message type, below [`RELIABLE_BIT`].
    pub kind: u8,
    /// Its place in a reliable stream; `None` for an unreliable message.
    pub reliable: Option<MessageId>,
    /// The message itself.
    pub body: &'a [u8],
}

/// A reliable message's place: its stream and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId {
    /// The stream.
    pub stream: StreamId,
    /// Its number; each stream counts on its own.
    pub id: u64,
}

/// A reliable stream: one of the ordered ones, or the unordered one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u8);

impl StreamId {
    /// Streams of a direction: the ordered ones and the unordered one.
    pub const COUNT: usize = RELIABLE_STREAMS + 1;
    /// The stream byte of the unordered stream.
    const UNORDERED_BYTE: u8 = 0x80;

    /// The stream with this number on this channel; `None` when there is no such stream. The unordered channel
    /// has one stream, number 0: streams exist to keep orders apart.
    #[must_use]
    pub fn new(channel: Channel, stream: u8) -> Option<Self> {
        match channel {
            Channel::ReliableOrdered if usize::from(stream) < RELIABLE_STREAMS => Some(Self(stream)),
            Channel::ReliableUnordered if stream == 0 => Some(Self(Self::UNORDERED_BYTE)),
            _ => None,
        }
    }

    /// The channel that the stream belongs to.
    #[must_use]
    #[inline]
    pub fn channel(self) -> Channel {
        if self.0 == Self::UNORDERED_BYTE { Channel::ReliableUnordered } else { Channel::ReliableOrdered }
    }

    /// A number below [`StreamId::COUNT`], to index an array with.
    #[must_use]
    #[inline]
    pub fn index(self) -> usize {
        if self.0 == Self::UNORDERED_BYTE { RELIABLE_STREAMS } else { usize::from(self.0) }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        (usize::from(byte) < RELIABLE_STREAMS || byte == Self::UNORDERED_BYTE).then_some(Self(byte))
    }
}

impl<'a> Frame<'a> {
    /// Writes the frame of a message whose body is there already.
    pub fn encode(&self, writer: &mut Writer<'_>) -> Result<(), Full> {
        encode_frame(writer, self.kind, self.reliable, |writer| writer.bytes(self.body))
    }

    /// Reads the next frame.
    #[inline]
    pub fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let kind = reader.u8()?;
        let reliable = if kind & RELIABLE_BIT == 0 {
            None
        } else {
            let stream = StreamId::from_byte(reader.u8()?).ok_or(DecodeError::BadValue("stream"))?;
            Some(MessageId { stream, id: reader.varint()? })
        };
        let kind = kind & !RELIABLE_BIT;
        if reliable.is_some() && kind < FIRST_APPLICATION_TYPE && kind != ControlType::Fragment as u8 {
            return Err(DecodeError::BadValue("type of a reliable message"));
        }
        Ok(Self { kind, reliable, body: reader.length_prefixed()? })
    }
}

/// Writes a frame whose body is written by `body`. When it does not fit, the writer is where it was.
#[inline]
pub fn encode_frame(
    writer: &mut Writer<'_>,
    kind: u8,
    reliable: Option<MessageId>,
    body: impl FnOnce(&mut Writer<'_>) -> Result<(), Full>,
) -> Result<(), Full> {
    debug_assert!(kind & RELIABLE_BIT == 0, "types are below the reliable bit");
    let start = writer.save();
    let result = encode_place(writer, kind, reliable).and_then(|()| writer.length_prefixed(body));
    if result.is_err() {
        writer.restore(start);
    }
    result
}

#[inline]
fn encode_place(writer: &mut Writer<'_>, kind: u8, reliable: Option<MessageId>) -> Result<(), Full> {
    match reliable {
        None => writer.u8(kind),
        Some(MessageId { stream, id }) => {
            writer.u8(kind | RELIABLE_BIT)?;
            writer.u8(stream.0)?;
            writer.varint(id)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_place() -> impl Strategy<Value = Option<MessageId>> {
        let stream = prop_oneof![
            (0..RELIABLE_STREAMS as u8).prop_map(|number| (Channel::ReliableOrdered, number)),
            Just((Channel::ReliableUnordered, 0)),
        ];
        proptest::option::of((stream, any::<u64>()).prop_map(|((channel, number), id)| MessageId {
            stream: StreamId::new(channel, number).unwrap(),
            id,
        }))
    }

    #[test]
    fn every_type_has_one_number_in_its_range() {
        for kind in ControlType::ALL {
            assert!((1..FIRST_APPLICATION_TYPE).contains(&(kind as u8)));
            assert_eq!(ControlType::from_byte(kind as u8), Some(kind));
        }
        for kind in ClientType::ALL {
            assert!((FIRST_APPLICATION_TYPE..0x40).contains(&(kind as u8)));
            assert_eq!(ClientType::from_byte(kind as u8), Some(kind));
        }
        for kind in ServerType::ALL {
            assert!((0x40..RELIABLE_BIT).contains(&(kind as u8)));
            assert_eq!(ServerType::from_byte(kind as u8), Some(kind));
        }
    }

    #[test]
    fn the_layout_is_fixed() {
        let mut buffer = [0; 32];
        let mut writer = Writer::new(&mut buffer);
        Frame { kind: 0x41, reliable: None, body: &[9, 8] }.encode(&mut writer).unwrap();
        let stream = StreamId::new(Channel::ReliableOrdered, 3).unwrap();
        Frame { kind: 0x40, reliable: Some(MessageId { stream, id: 300 }), body: &[7] }
            .encode(&mut writer)
            .unwrap();
        assert_eq!(writer.written(), [0x41, 2, 9, 8, 0xc0, 3, 0xac, 0x02, 1, 7]);
    }

    #[test]
    fn streams_that_do_not_exist_are_refused() {
        assert_eq!(StreamId::new(Channel::Unreliable, 0), None);
        assert_eq!(StreamId::new(Channel::ReliableOrdered, RELIABLE_STREAMS as u8), None);
        assert_eq!(StreamId::new(Channel::ReliableUnordered, 1), None);
        let bytes = [0xc0, RELIABLE_STREAMS as u8, 0, 0];
        assert_eq!(Frame::decode(&mut Reader::new(&bytes)), Err(DecodeError::BadValue("stream")));
    }

    #[test]
    fn control_messages_are_never_reliable() {
        let bytes = [RELIABLE_BIT | ControlType::Disconnect as u8, 0, 0, 0];
        assert!(Frame::decode(&mut Reader::new(&bytes)).is_err());
    }

    #[test]
    fn a_frame_that_does_not_fit_leaves_nothing_behind() {
        let mut buffer = [0; 6];
        let mut writer = Writer::new(&mut buffer);
        writer.u8(1).unwrap();
        assert_eq!(encode_frame(&mut writer, 0x41, None, |writer| writer.u64(5)), Err(Full));
        assert_eq!(writer.written(), [1]);
    }

    proptest! {
        #[test]
        fn frames_survive_the_round_trip(
            kind in FIRST_APPLICATION_TYPE..RELIABLE_BIT,
            reliable in any_place(),
            body in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let frame = Frame { kind, reliable, body: &body };
            let mut buffer = [0; 400];
            let mut writer = Writer::new(&mut buffer);
            frame.encode(&mut writer).unwrap();
            let mut reader = Reader::new(writer.written());
            prop_assert_eq!(Frame::decode(&mut reader), Ok(frame));
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn any_bytes_decode_to_frames_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut reader = Reader::new(&bytes);
            while !reader.is_empty() {
                let start = bytes.len() - reader.remaining();
                let Ok(frame) = Frame::decode(&mut reader) else { break };
                let end = bytes.len() - reader.remaining();
                let mut buffer = [0; 80];
                let mut writer = Writer::new(&mut buffer);
                frame.encode(&mut writer).unwrap();
                prop_assert_eq!(writer.written(), &bytes[start..end]);
            }
        }
    }
}
