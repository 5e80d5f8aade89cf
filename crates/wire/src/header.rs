//! The 14 bytes before every packet: clear, and authenticated as the associated data of a sealed packet.

use crate::codec::{DecodeError, Full, Reader, Writer};

/// Bytes of a [`Header`].
pub const HEADER_BYTES: usize = 14;

/// The header of a packet.
///
/// | offset | field |
/// |---|---|
/// | 0 | connection id, `u32`; 0 before the session exists |
/// | 4 | channel of the first message, `u8` |
/// | 5 | flags, `u8` |
/// | 6 | sequence, `u64`: one counter per direction for the whole session; 0 before it exists |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which session; 0 before it exists.
    pub connection_id: u32,
    /// The channel of the packet's first message.
    pub channel: Channel,
    /// What the packet is.
    pub flags: Flags,
    /// The packet's number in its direction; sealed packets count from 1.
    pub sequence: u64,
}

impl Header {
    /// The header of every packet before the session exists: all bytes zero.
    pub const HANDSHAKE: Self =
        Self { connection_id: 0, channel: Channel::Unreliable, flags: Flags::NONE, sequence: 0 };

    /// Writes the 14 bytes.
    pub fn encode(&self, writer: &mut Writer<'_>) -> Result<(), Full> {
        writer.bytes(&self.to_bytes())
    }

    /// The 14 bytes.
    #[must_use]
    #[inline]
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.connection_id.to_le_bytes());
        bytes[4] = self.channel as u8;
        bytes[5] = self.flags.bits();
        bytes[6..14].copy_from_slice(&self.sequence.to_le_bytes());
        bytes
    }

    /// Reads the 14 bytes.
    #[inline]
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        // Taken as a whole, so that the room is looked at once.
        let bytes = reader.array::<HEADER_BYTES>()?;
        let mut fields = Reader::new(&bytes);
        Ok(Self {
            connection_id: fields.u32()?,
            channel: Channel::from_byte(fields.u8()?).ok_or(DecodeError::BadValue("channel"))?,
            flags: Flags::from_bits(fields.u8()?),
            sequence: fields.u64()?,
        })
    }
}

/// How a message travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Channel {
    /// Sent once; may be lost or overtaken.
    Unreliable = 0,
    /// Delivered exactly once, in the order of its stream.
    ReliableOrdered = 1,
    /// Delivered exactly once, as soon as it arrives.
    ReliableUnordered = 2,
}

impl Channel {
    /// The channel with this number.
    #[must_use]
    #[inline]
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Unreliable),
            1 => Some(Self::ReliableOrdered),
            2 => Some(Self::ReliableUnordered),
            _ => None,
        }
    }
}

/// What a packet is: a set of the eight flags, all of which have a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(u8);

impl Flags {
    /// No flag: a packet before the session exists.
    pub const NONE: Self = Self(0);
    /// The payload is encrypted; set on every packet of a session.
    pub const ENCRYPTED: Self = Self(0x01);
    /// The payload is sealed with ChaCha20-Poly1305; set on every packet of a session.
    pub const CHACHA20_POLY1305: Self = Self(0x02);
    /// The packet carries a rekey message.
    pub const REKEY: Self = Self(0x04);
    /// The packet carries a fragment.
    pub const FRAGMENT: Self = Self(0x08);
    /// The fragment is one of a message that was compressed.
    pub const COMPRESSED: Self = Self(0x10);
    /// The packet carries nothing but acknowledgements, and asks for none.
    pub const ACKNOWLEDGMENT: Self = Self(0x20);
    /// The packet carries a ReliableHandshake message.
    pub const RELIABLE_HANDSHAKE: Self = Self(0x40);
    /// Which of two consecutive keys sealed the packet.
    pub const KEY_PHASE: Self = Self(0x80);
    /// The two flags that every packet of a session has.
    pub const SEALED: Self = Self(0x03);

    /// The set with these bits.
    #[must_use]
    #[inline]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The bits of the set.
    #[must_use]
    #[inline]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether all of `other` are set.
    #[must_use]
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    #[inline]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_layout_is_fixed() {
        let header = Header {
            connection_id: 0x0403_0201,
            channel: Channel::ReliableUnordered,
            flags: Flags::SEALED.with(Flags::KEY_PHASE),
            sequence: 0x0c0b_0a09_0807_0605,
        };
        assert_eq!(header.to_bytes(), [1, 2, 3, 4, 2, 0x83, 5, 6, 7, 8, 9, 10, 11, 12]);
    }

    #[test]
    fn an_unknown_channel_is_refused() {
        let mut bytes = Header::HANDSHAKE.to_bytes();
        bytes[4] = 3;
        assert_eq!(Header::decode(&mut Reader::new(&bytes)), Err(DecodeError::BadValue("channel")));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_a_header_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            if let Ok(header) = Header::decode(&mut Reader::new(&bytes)) {
                prop_assert!(bytes.starts_with(&header.to_bytes()));
            } else {
                prop_assert!(bytes.len() < HEADER_BYTES || bytes[4] > 2);
            }
        }
    }
}
