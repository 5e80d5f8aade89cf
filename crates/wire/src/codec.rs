//! The bounded byte [`Reader`] and [`Writer`] that every message is made of.
//!
//! Both work on borrowed memory, never allocate, and can save and restore their position: the writer to
//! patch a length that is known only afterwards or to take back what did not fit, the reader to look ahead.

use thiserror::Error;

/// Why bytes from a peer are not a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The bytes end before the value does.
    #[error("the bytes end before the value does")]
    UnexpectedEnd,
    /// A varint has more bytes than its type allows, or is not in its shortest form.
    #[error("a varint is too long for its type or not in its shortest form")]
    BadVarint,
    /// A field holds a value that its type does not have.
    #[error("field `{0}` holds a value that it cannot have")]
    BadValue(&'static str),
    /// A count or length is above its limit.
    #[error("`{0}` is above its limit")]
    LimitExceeded(&'static str),
    /// Bytes are left after the value.
    #[error("bytes are left after the value")]
    TrailingBytes,
}

/// The value does not fit into the buffer; the writer's position is then unspecified, so restore it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the buffer is full")]
pub struct Full;

/// A place in a [`Writer`] or [`Reader`] to come back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(usize);

impl Position {
    /// Bytes before this place.
    #[must_use]
    pub fn offset(self) -> usize {
        self.0
    }
}

/// Longest varint of a `u64`, in bytes.
pub const VARINT_U64_MAX_BYTES: usize = 10;

/// Bytes that `value` takes as a varint.
#[must_use]
#[inline]
pub fn varint_len(value: u64) -> usize {
    // 7 payload bits a byte; zero still takes one byte.
    (63 - (value | 1).leading_zeros() as usize) / 7 + 1
}

/// Maps a signed number to an unsigned one so that small magnitudes stay small: 0, -1, 1, -2 -> 0, 1, 2, 3.
#[must_use]
#[inline]
pub fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// The inverse of [`zigzag`].
#[must_use]
#[inline]
pub fn unzigzag(value: u64) -> i64 {
    ((value >> 1) as i64) ^ -((value & 1) as i64)
}

/// Writes values into a byte slice.
#[derive(Debug)]
pub struct Writer<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl<'a> Writer<'a> {
    /// Starts at the beginning of `bytes`.
    #[inline]
    pub fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes written so far.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.at
    }

    /// Whether nothing has been written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.at == 0
    }

    /// Bytes that still fit.
    #[must_use]
    #[inline]
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// What has been written so far.
    #[must_use]
    #[inline]
    pub fn written(&self) -> &[u8] {
        &self.bytes[..self.at]
    }

    /// Remembers this place.
    #[must_use]
    #[inline]
    pub fn save(&self) -> Position {
        Position(self.at)
    }

    /// Goes back to a place that was saved earlier: what was written since is forgotten.
    #[inline]
    pub fn restore(&mut self, position: Position) {
        debug_assert!(position.0 <= self.at, "a writer can only be restored backwards");
        self.at = position.0.min(self.at);
    }

    /// Writes a length-prefixed body: `body` writes it, its length is put in front as a varint.
    #[inline]
    pub fn length_prefixed(&mut self, body: impl FnOnce(&mut Self) -> Result<(), Full>) -> Result<(), Full> {
        let start = self.at;
        self.u8(0)?;
        body(self)?;
        let length = self.at - start - 1;
        if length < 0x80 {
            self.bytes[start] = length as u8;
            return Ok(());
        }
        self.long_prefix(start, length)
    }

    /// Puts a length of 128 and more before the bytes that were written behind `start` and one byte.
    fn long_prefix(&mut self, start: usize, length: usize) -> Result<(), Full> {
        let body = start + 1..self.at;
        let prefix = varint_len(length as u64);
        // They are moved up to make room for it.
        self.take(prefix - 1)?;
        self.bytes.copy_within(body, start + prefix);
        let end = std::mem::replace(&mut self.at, start);
        let written = self.varint(length as u64);
        self.at = end;
        written
    }

    /// Appends `bytes` as they are.
    #[inline]
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Full> {
        self.take(bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    /// Appends one byte.
    #[inline]
    pub fn u8(&mut self, value: u8) -> Result<(), Full> {
        self.bytes(&[value])
    }

    /// Appends two bytes.
    #[inline]
    pub fn u16(&mut self, value: u16) -> Result<(), Full> {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends four bytes.
    #[inline]
    pub fn u32(&mut self, value: u32) -> Result<(), Full> {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends eight bytes.
    #[inline]
    pub fn u64(&mut self, value: u64) -> Result<(), Full> {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends `length` bytes of `source` from `start` on. The same as [`Writer::bytes`], but short strings are copied
    /// as one block of fixed size where both sides have room for it, which takes a few instructions instead of a call.
    ///
    /// # Panics
    /// When they are not in `source`.
    #[inline]
    pub fn short_bytes(&mut self, source: &[u8], start: usize, length: usize) -> Result<(), Full> {
        const BLOCK: usize = 32;
        let from = source[start..].first_chunk::<BLOCK>();
        let to = self.bytes[self.at..].first_chunk_mut::<BLOCK>();
        if let (Some(from), Some(to), true) = (from, to, length <= BLOCK) {
            *to = *from;
            self.at += length;
            return Ok(());
        }
        self.bytes(&source[start..start + length])
    }

    /// Appends a few bytes that were put together before.
    #[inline]
    pub fn tiny(&mut self, bytes: Tiny) -> Result<(), Full> {
        match self.bytes[self.at..].first_chunk_mut() {
            Some(room) => {
                *room = bytes.bits.to_le_bytes();
                self.at += bytes.length();
                Ok(())
            }
            None => self.bytes(&bytes.bits.to_le_bytes()[..bytes.length()]),
        }
    }

    /// Appends an unsigned number, seven bits a byte, low bits first.
    #[inline]
    pub fn varint(&mut self, value: u64) -> Result<(), Full> {
        if value < 0x80 { self.u8(value as u8) } else { self.long_varint(value) }
    }

    fn long_varint(&mut self, mut value: u64) -> Result<(), Full> {
        while value >= 0x80 {
            self.u8((value as u8) | 0x80)?;
            value >>= 7;
        }
        self.u8(value as u8)
    }

    /// Appends a signed number as the varint of its [`zigzag`] image.
    #[inline]
    pub fn varint_signed(&mut self, value: i64) -> Result<(), Full> {
        self.varint(zigzag(value))
    }

    #[inline]
    fn take(&mut self, count: usize) -> Result<&mut [u8], Full> {
        let end = self.at.checked_add(count).ok_or(Full)?;
        let taken = self.bytes.get_mut(self.at..end).ok_or(Full)?;
        self.at = end;
        Ok(taken)
    }
}

/// Up to eight bytes on their way to a [`Writer`], in a register: there they take one check for room, together.
#[derive(Debug, Clone, Copy)]
pub struct Tiny {
    bits: u64,
    /// How many of the bits are used.
    used: u32,
}

impl Tiny {
    /// The most that it holds.
    pub const MAX_BYTES: usize = 8;

    /// No bytes.
    #[must_use]
    #[inline]
    pub fn new() -> Self {
        Self { bits: 0, used: 0 }
    }

    /// Appends one byte.
    ///
    /// # Panics
    /// When it is the ninth, a bug of the caller.
    #[inline]
    pub fn u8(&mut self, value: u8) {
        self.bits |= u64::from(value) << self.used;
        self.used += 8;
    }

    /// Appends an unsigned number as [`Writer::varint`] does.
    ///
    /// # Panics
    /// When there are more than eight bytes then, a bug of the caller.
    #[inline]
    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.u8(value as u8);
    }

    fn length(self) -> usize {
        self.used as usize / 8
    }
}

impl Default for Tiny {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads values from a byte slice and never beyond it.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the beginning of `bytes`.
    #[must_use]
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes that are left.
    #[must_use]
    #[inline]
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Whether nothing is left.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.remaining() == 0
    }

    /// Remembers this place.
    #[must_use]
    pub fn save(&self) -> Position {
        Position(self.at)
    }

    /// Goes to a place that was saved earlier.
    pub fn restore(&mut self, position: Position) {
        self.at = position.0.min(self.bytes.len());
    }

    /// Fails when bytes are left: the last call of a decoder whose value fills its slice.
    #[inline]
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.is_empty() { Ok(()) } else { Err(DecodeError::TrailingBytes) }
    }

    /// Takes the next `count` bytes, borrowed.
    #[inline]
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let end = self.at.checked_add(count).ok_or(DecodeError::UnexpectedEnd)?;
        let taken = self.bytes.get(self.at..end).ok_or(DecodeError::UnexpectedEnd)?;
        self.at = end;
        Ok(taken)
    }

    /// Takes `N` bytes, copied.
    #[inline]
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    /// Takes everything that is left.
    #[inline]
    pub fn rest(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.at..];
        self.at = self.bytes.len();
        rest
    }

    /// Takes a length-prefixed body (see [`Writer::length_prefixed`]).
    #[inline]
    pub fn length_prefixed(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.varint()?;
        // A claimed length is compared with what is there before anything is done with it.
        let length = usize::try_from(length).map_err(|_| DecodeError::UnexpectedEnd)?;
        self.bytes(length)
    }

    /// Takes one byte.
    #[inline]
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    /// Takes two bytes.
    #[inline]
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Takes four bytes.
    #[inline]
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Takes eight bytes.
    #[inline]
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Takes a varint; a value that could have been written shorter is refused, so that each value has one
    /// encoding.
    #[inline]
    pub fn varint(&mut self) -> Result<u64, DecodeError> {
        match self.bytes.get(self.at) {
            Some(&byte) if byte < 0x80 => {
                self.at += 1;
                Ok(byte.into())
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for index in 0..VARINT_U64_MAX_BYTES {
            let byte = self.u8()?;
            let payload = u64::from(byte & 0x7f);
            if index == VARINT_U64_MAX_BYTES - 1 && payload > 1 {
                return Err(DecodeError::BadVarint);
            }
            value |= payload << (7 * index);
            if byte & 0x80 == 0 {
                let padded = byte == 0 && index > 0;
                return if padded { Err(DecodeError::BadVarint) } else { Ok(value) };
            }
        }
        Err(DecodeError::BadVarint)
    }

    /// Takes a varint that must fit 32 bits.
    #[inline]
    pub fn varint_u32(&mut self) -> Result<u32, DecodeError> {
        u32::try_from(self.varint()?).map_err(|_| DecodeError::BadVarint)
    }

    /// Takes a signed varint (see [`Writer::varint_signed`]).
    #[inline]
    pub fn varint_signed(&mut self) -> Result<i64, DecodeError> {
        Ok(unzigzag(self.varint()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_survive_the_round_trip(a: u64, b: i64, c: u32, d: u16) {
            let mut buffer = [0; 64];
            let mut writer = Writer::new(&mut buffer);
            writer.varint(a).unwrap();
            prop_assert_eq!(writer.len(), varint_len(a));
            writer.varint_signed(b).unwrap();
            writer.u32(c).unwrap();
            writer.u16(d).unwrap();
            let mut reader = Reader::new(writer.written());
            prop_assert_eq!(reader.varint(), Ok(a));
            prop_assert_eq!(reader.varint_signed(), Ok(b));
            prop_assert_eq!(reader.u32(), Ok(c));
            prop_assert_eq!(reader.u16(), Ok(d));
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        #[test]
        fn any_bytes_decode_to_a_value_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..32)) {
            let mut reader = Reader::new(&bytes);
            if let Ok(value) = reader.varint() {
                // One encoding per value: writing it again gives the bytes that were read.
                let mut again = [0; VARINT_U64_MAX_BYTES];
                let mut writer = Writer::new(&mut again);
                writer.varint(value).unwrap();
                prop_assert!(bytes.starts_with(writer.written()));
            }
            let _ = Reader::new(&bytes).length_prefixed();
        }

        #[test]
        fn short_bytes_are_bytes(source in proptest::collection::vec(any::<u8>(), 0..80), a: u8, b: u8, room in 0usize..80) {
            let place = |at: u8| usize::from(at) % (source.len() + 1);
            let (start, end) = (place(a).min(place(b)), place(a).max(place(b)));
            let (mut one, mut other) = (vec![0; room], vec![0; room]);
            let (mut short, mut plain) = (Writer::new(&mut one), Writer::new(&mut other));
            let result = short.short_bytes(&source, start, end - start);
            prop_assert_eq!(result, plain.bytes(&source[start..end]));
            prop_assert_eq!(short.written(), plain.written());
        }

        #[test]
        fn length_prefix_fits_bodies_of_any_size(body in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut buffer = [0; 512];
            let mut writer = Writer::new(&mut buffer);
            writer.u8(7).unwrap();
            writer.length_prefixed(|w| w.bytes(&body)).unwrap();
            writer.u8(9).unwrap();
            let mut reader = Reader::new(writer.written());
            prop_assert_eq!(reader.u8(), Ok(7));
            prop_assert_eq!(reader.length_prefixed(), Ok(&body[..]));
            prop_assert_eq!(reader.u8(), Ok(9));
        }
    }

    #[test]
    fn a_full_writer_says_so_and_can_go_back() {
        let mut buffer = [0; 4];
        let mut writer = Writer::new(&mut buffer);
        writer.u16(0x0102).unwrap();
        let before = writer.save();
        assert_eq!(writer.u32(5), Err(Full));
        writer.restore(before);
        assert_eq!(writer.written(), [2, 1]);
        assert_eq!(writer.length_prefixed(|w| w.bytes(&[1, 2, 3])), Err(Full));
    }

    #[test]
    fn padded_and_overlong_varints_are_refused() {
        assert_eq!(Reader::new(&[0x80, 0x00]).varint(), Err(DecodeError::BadVarint));
        assert_eq!(Reader::new(&[0xff; 10]).varint(), Err(DecodeError::BadVarint));
        assert_eq!(Reader::new(&[0xff; 3]).varint(), Err(DecodeError::UnexpectedEnd));
    }
}
