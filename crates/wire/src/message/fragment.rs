//! The body of a Fragment: a piece of a message that is too large for one packet, or that was compressed.
//!
//! ```text
//! type u8 (top bit: compressed)   index varint   size varint   [plain size varint, if compressed]   piece
//! ```
//!
//! Fragments travel as reliable messages of the stream that the whole message belongs to, under ids that follow
//! each other, so that `id - index` names the message. Every piece but the last has [`FRAGMENT_BYTES`].

use super::{FIRST_APPLICATION_TYPE, RELIABLE_BIT};
use crate::codec::{DecodeError, Full, Reader, Writer};
use crate::limits::{FRAGMENT_BYTES, MESSAGE_BYTES_MAX};

const COMPRESSED_BIT: u8 = 0x80;

/// A piece of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment<'a> {
    /// What the pieces are of.
    pub whole: Whole,
    /// The piece's number, from 0.
    pub index: u32,
    /// The piece.
    pub piece: &'a [u8],
}

/// What all pieces of a message say about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whole {
    /// The message's type.
    pub kind: u8,
    /// Bytes of all pieces together.
    pub size: u32,
    /// Bytes of the message once it is unpacked; `None` if it is not compressed (LZ4 block format).
    pub plain_size: Option<u32>,
}

impl Whole {
    /// How many pieces there are.
    #[must_use]
    pub fn pieces(&self) -> u32 {
        self.size.div_ceil(FRAGMENT_BYTES as u32)
    }

    /// Bytes of the message once it is whole.
    #[must_use]
    pub fn plain(&self) -> u32 {
        self.plain_size.unwrap_or(self.size)
    }
}

impl<'a> Fragment<'a> {
    /// Most bytes before the piece.
    pub const HEADER_BYTES_MAX: usize = 1 + 3 + 3 + 3;

    /// Writes the body of the frame.
    pub fn encode(&self, writer: &mut Writer<'_>) -> Result<(), Full> {
        let compressed = if self.whole.plain_size.is_some() { COMPRESSED_BIT } else { 0 };
        writer.u8(self.whole.kind | compressed)?;
        writer.varint(u64::from(self.index))?;
        writer.varint(u64::from(self.whole.size))?;
        if let Some(plain_size) = self.whole.plain_size {
            writer.varint(u64::from(plain_size))?;
        }
        writer.bytes(self.piece)
    }

    /// Reads the body of a frame. The piece has the length that its index and the size demand.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let kind = reader.u8()?;
        let index = reader.varint_u32()?;
        let size = reader.varint_u32()?;
        let plain_size = (kind & COMPRESSED_BIT != 0).then(|| reader.varint_u32()).transpose()?;
        let whole = Whole { kind: kind & !COMPRESSED_BIT, size, plain_size };
        let piece = reader.rest();
        let is_right = (FIRST_APPLICATION_TYPE..RELIABLE_BIT).contains(&whole.kind)
            && whole.size as usize <= MESSAGE_BYTES_MAX
            && whole.plain() as usize <= MESSAGE_BYTES_MAX
            && index < whole.pieces()
            && piece.len() == FRAGMENT_BYTES.min(size as usize - index as usize * FRAGMENT_BYTES);
        is_right.then_some(Self { whole, index, piece }).ok_or(DecodeError::BadValue("fragment"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_layout_is_fixed() {
        let mut buffer = [0; 16];
        let mut writer = Writer::new(&mut buffer);
        let whole = Whole { kind: 0x40, size: 2_003, plain_size: Some(70_000) };
        Fragment { whole, index: 2, piece: &[7, 8, 9] }.encode(&mut writer).unwrap();
        assert_eq!(writer.written(), [0xc0, 2, 0xd3, 0x0f, 0xf0, 0xa2, 0x04, 7, 8, 9]);
        assert_eq!(Fragment::decode(writer.written()).unwrap().whole, whole);
    }

    #[test]
    fn pieces_that_cannot_be_are_refused() {
        for bytes in [
            &[0x40, 0, 0][..],          // nothing at all
            &[0x40, 1, 3, 7, 8, 9],     // a second piece of a message with one
            &[0x40, 0, 3, 7, 8],        // too short
            &[0x40, 0, 3, 7, 8, 9, 10], // too long
            &[0x04, 0, 3, 7, 8, 9],     // a control message
            &[0x40, 0, 0xff, 0xff, 0xff, 0xff, 0x0f, 7],
        ] {
            assert!(Fragment::decode(bytes).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_a_fragment_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(fragment) = Fragment::decode(&bytes) {
                let mut buffer = [0; 80];
                let mut writer = Writer::new(&mut buffer);
                fragment.encode(&mut writer).unwrap();
                prop_assert_eq!(writer.written(), &bytes[..]);
            }
        }
    }
}
