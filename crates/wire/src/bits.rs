//! Bit packing for records that are smaller than their bytes: a [`BitWriter`] and a total [`BitReader`].
//!
//! Bits fill each byte from the least significant end; the last byte is padded with zeros.

use crate::codec::{DecodeError, Full};

/// Most bits that one call reads or writes.
pub const MAX_BITS: u32 = 32;

/// Writes bit fields into a byte slice.
#[derive(Debug)]
pub struct BitWriter<'a> {
    bytes: &'a mut [u8],
    at: usize,
    pending: u64,
    pending_bits: u32,
}

impl<'a> BitWriter<'a> {
    /// Starts at the beginning of `bytes`.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, at: 0, pending: 0, pending_bits: 0 }
    }

    /// Appends the low `bits` (at most 32) bits of `value`; higher bits are ignored.
    #[inline]
    pub fn write(&mut self, value: u32, bits: u32) -> Result<(), Full> {
        debug_assert!(bits <= MAX_BITS);
        let value = u64::from(value) & ((1u64 << bits) - 1);
        self.pending |= value << self.pending_bits;
        self.pending_bits += bits;
        if self.pending_bits >= 32 {
            let end = self.at + 4;
            let target = self.bytes.get_mut(self.at..end).ok_or(Full)?;
            target.copy_from_slice(&(self.pending as u32).to_le_bytes());
            self.at = end;
            self.pending >>= 32;
            self.pending_bits -= 32;
        }
        Ok(())
    }

    /// Appends one bit.
    #[inline]
    pub fn flag(&mut self, value: bool) -> Result<(), Full> {
        self.write(u32::from(value), 1)
    }

    /// Pads the last byte and gives the number of bytes written.
    #[inline]
    pub fn finish(self) -> Result<usize, Full> {
        let tail = self.pending_bits.div_ceil(8) as usize;
        let target = self.bytes.get_mut(self.at..self.at + tail).ok_or(Full)?;
        target.copy_from_slice(&self.pending.to_le_bytes()[..tail]);
        Ok(self.at + tail)
    }
}

/// Reads bit fields from a byte slice and never beyond it.
#[derive(Debug)]
pub struct BitReader<'a> {
    bytes: &'a [u8],
    bit: usize,
}

impl<'a> BitReader<'a> {
    /// Starts at the beginning of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, bit: 0 }
    }

    /// Takes the next `bits` (at most 32) bits.
    #[inline]
    pub fn read(&mut self, bits: u32) -> Result<u32, DecodeError> {
        debug_assert!(bits <= MAX_BITS);
        let end = self.bit + bits as usize;
        if end > self.bytes.len() * 8 {
            return Err(DecodeError::UnexpectedEnd);
        }
        let first = self.bit / 8;
        // 32 bits at any bit offset lie within five bytes; eight are loaded where they exist.
        let available = &self.bytes[first..];
        let mut window = [0; 8];
        if let Some(eight) = available.first_chunk::<8>() {
            window = *eight;
        } else {
            window[..available.len()].copy_from_slice(available);
        }
        let value = u64::from_le_bytes(window) >> (self.bit % 8);
        self.bit = end;
        Ok((value & ((1u64 << bits) - 1)) as u32)
    }

    /// Takes one bit.
    #[inline]
    pub fn flag(&mut self) -> Result<bool, DecodeError> {
        Ok(self.read(1)? != 0)
    }

    /// Skips the padding and gives the number of bytes consumed.
    #[must_use]
    pub fn finish(self) -> usize {
        self.bit.div_ceil(8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fields_survive_the_round_trip(fields in proptest::collection::vec((any::<u32>(), 0u32..=32), 0..60)) {
            let mut buffer = [0; 256];
            let mut writer = BitWriter::new(&mut buffer);
            for &(value, bits) in &fields {
                writer.write(value, bits).unwrap();
            }
            let length = writer.finish().unwrap();
            let total: u32 = fields.iter().map(|field| field.1).sum();
            prop_assert_eq!(length, total.div_ceil(8) as usize);
            let mut reader = BitReader::new(&buffer[..length]);
            for &(value, bits) in &fields {
                let mask = ((1u64 << bits) - 1) as u32;
                prop_assert_eq!(reader.read(bits), Ok(value & mask));
            }
            prop_assert_eq!(reader.finish(), length);
        }
    }

    #[test]
    fn the_ends_are_respected() {
        let mut buffer = [0; 3];
        let mut writer = BitWriter::new(&mut buffer);
        writer.write(1, 20).unwrap();
        assert_eq!(writer.write(1, 20), Err(Full));
        let mut reader = BitReader::new(&[0xff]);
        assert_eq!(reader.read(9), Err(DecodeError::UnexpectedEnd));
        assert_eq!(reader.read(8), Ok(0xff));
        assert_eq!(reader.flag(), Err(DecodeError::UnexpectedEnd));
    }
}
