//! The acknowledgement block that every sealed payload starts with: which of the peer's packets were applied.

use crate::codec::{DecodeError, Full, Reader, Writer};

/// Most bytes that an acknowledgement block takes.
pub const ACK_BLOCK_BYTES: usize = 13;

/// One step of the delay field, in microseconds.
pub const ACK_DELAY_UNIT_US: u32 = 500;

const PRESENT: u8 = 0x80;
const MASKED: u8 = 0x40;
const DELAY: u8 = 0x3f;

/// Which packets were applied: the largest sequence and the 64 before it.
///
/// On the wire: one byte `present 0x80 | masked 0x40 | delay 0x3f`; then, if present, the low 32 bits of the
/// largest sequence; then, if masked, the mask as `u64`. Without gaps the mask is left out. A packet that
/// acknowledges nothing starts with one zero byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AckBlock {
    /// Low 32 bits of the largest sequence that was applied.
    pub largest_low: u32,
    /// Bit `i` says that the packet `largest - 1 - i` was applied. Sequences below 1 count as applied.
    pub mask: u64,
    /// How long the largest packet has waited for this acknowledgement.
    pub delay: AckDelay,
}

impl AckBlock {
    /// Writes `block`, or that there is none.
    #[inline]
    pub fn encode(block: Option<&Self>, writer: &mut Writer<'_>) -> Result<(), Full> {
        let Some(block) = block else { return writer.u8(0) };
        let masked = block.mask != u64::MAX;
        let mut bytes = [0; ACK_BLOCK_BYTES];
        bytes[0] = PRESENT | if masked { MASKED } else { 0 } | block.delay.0;
        bytes[1..5].copy_from_slice(&block.largest_low.to_le_bytes());
        bytes[5..].copy_from_slice(&block.mask.to_le_bytes());
        if masked { writer.bytes(&bytes) } else { writer.bytes(&bytes[..5]) }
    }

    /// Reads a block, or that there is none.
    #[inline]
    pub fn decode(reader: &mut Reader<'_>) -> Result<Option<Self>, DecodeError> {
        let first = reader.u8()?;
        if first & PRESENT == 0 {
            return if first == 0 { Ok(None) } else { Err(DecodeError::BadValue("acknowledgement")) };
        }
        let largest_low = reader.u32()?;
        let mask = if first & MASKED == 0 { u64::MAX } else { reader.u64()? };
        if first & MASKED != 0 && mask == u64::MAX {
            return Err(DecodeError::BadValue("acknowledgement mask"));
        }
        Ok(Some(Self { largest_low, mask, delay: AckDelay(first & DELAY) }))
    }
}

/// How long an acknowledgement was held back, in steps of [`ACK_DELAY_UNIT_US`]; the largest value stands for
/// anything longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AckDelay(u8);

impl AckDelay {
    /// The nearest step at or below `us` microseconds.
    #[must_use]
    #[inline]
    pub fn from_micros(us: u64) -> Self {
        let steps = us / u64::from(ACK_DELAY_UNIT_US);
        Self(steps.min(u64::from(DELAY)) as u8)
    }

    /// The delay in microseconds; `None` when it was too long to say, and of no use for measuring.
    #[must_use]
    #[inline]
    pub fn as_micros(self) -> Option<u64> {
        (self.0 < DELAY).then(|| u64::from(self.0) * u64::from(ACK_DELAY_UNIT_US))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes_of(block: Option<&AckBlock>) -> Vec<u8> {
        let mut buffer = [0; ACK_BLOCK_BYTES];
        let mut writer = Writer::new(&mut buffer);
        AckBlock::encode(block, &mut writer).unwrap();
        writer.written().to_vec()
    }

    #[test]
    fn the_layout_is_fixed() {
        let block = AckBlock { largest_low: 0x0403_0201, mask: 0x0e, delay: AckDelay::from_micros(1_000) };
        assert_eq!(bytes_of(Some(&block)), [0xc2, 1, 2, 3, 4, 0x0e, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes_of(Some(&AckBlock { mask: u64::MAX, ..block })), [0x82, 1, 2, 3, 4]);
        assert_eq!(bytes_of(None), [0]);
    }

    #[test]
    fn a_delay_above_the_field_is_told_from_a_short_one() {
        assert_eq!(AckDelay::from_micros(499).as_micros(), Some(0));
        assert_eq!(AckDelay::from_micros(31_499).as_micros(), Some(31_000));
        assert_eq!(AckDelay::from_micros(31_500).as_micros(), None);
        assert_eq!(AckDelay::from_micros(u64::MAX).as_micros(), None);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_a_block_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..16)) {
            if let Ok(block) = AckBlock::decode(&mut Reader::new(&bytes)) {
                prop_assert!(bytes.starts_with(&bytes_of(block.as_ref())));
            }
        }

        #[test]
        fn blocks_survive_the_round_trip(largest_low: u32, mask: u64, us in 0u64..100_000) {
            let block = AckBlock { largest_low, mask, delay: AckDelay::from_micros(us) };
            let bytes = bytes_of(Some(&block));
            prop_assert_eq!(AckBlock::decode(&mut Reader::new(&bytes)), Ok(Some(block)));
        }
    }
}
