//! Positions, quantized once onto one global integer lattice.
//!
//! A world position (centimetres, Unreal axes: X forward, Y right, Z up) becomes three integers, multiples of
//! the map's step. World-origin rebasing is only a way to look at those integers: the high bits are the
//! *quadrant*, the low 16, signed, the place inside it. Crossing a quadrant border therefore changes no value,
//! and the error is at most half a step anywhere on the map.

use crate::bits::{BitReader, BitWriter};
use crate::codec::{DecodeError, Full};
use crate::quantize::to_nearest;

/// Bits of the place within a quadrant, per axis.
pub const QUADRANT_BITS: u32 = 16;
/// Bits of a quadrant's number on the wire, per axis (`i32` values have 16 bits above the low 16).
const QUADRANT_NUMBER_BITS: u32 = 32 - QUADRANT_BITS;

/// A position in lattice steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LatticePosition {
    /// Forward, in steps.
    pub x: i32,
    /// Right, in steps.
    pub y: i32,
    /// Up, in steps.
    pub z: i32,
}

/// The number of a quadrant per axis; its edge is 65,536 steps, its centre at `number * 65,536`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Quadrant {
    /// Forward.
    pub x: i16,
    /// Right.
    pub y: i16,
    /// Up.
    pub z: i16,
}

/// The quadrant of one coordinate: the nearest centre. Coordinates within 32,768 steps of `i32::MAX` wrap
/// to the lowest quadrant number, and back.
fn quadrant_of(value: i32) -> i16 {
    (value.wrapping_add(1 << (QUADRANT_BITS - 1)) >> QUADRANT_BITS) as i16
}

impl LatticePosition {
    /// The coordinates in axis order.
    #[must_use]
    pub fn to_array(self) -> [i32; 3] {
        [self.x, self.y, self.z]
    }

    /// The inverse of [`LatticePosition::to_array`].
    #[must_use]
    pub fn from_array([x, y, z]: [i32; 3]) -> Self {
        Self { x, y, z }
    }

    /// The quadrant whose centre is nearest.
    #[must_use]
    pub fn quadrant(self) -> Quadrant {
        Quadrant { x: quadrant_of(self.x), y: quadrant_of(self.y), z: quadrant_of(self.z) }
    }

    /// The place relative to the quadrant's centre.
    #[must_use]
    pub fn offset(self) -> [i16; 3] {
        self.to_array().map(|value| value as i16)
    }

    /// Puts quadrant and offset together again.
    #[must_use]
    pub fn from_quadrant(quadrant: Quadrant, offset: [i16; 3]) -> Self {
        let join =
            |number: i16, offset: i16| (i32::from(number) << QUADRANT_BITS).wrapping_add(offset.into());
        Self {
            x: join(quadrant.x, offset[0]),
            y: join(quadrant.y, offset[1]),
            z: join(quadrant.z, offset[2]),
        }
    }

    /// The square of the distance, in steps.
    #[must_use]
    #[inline]
    pub fn squared_distance(self, other: Self) -> f64 {
        let axis = |a: i32, b: i32| (f64::from(a) - f64::from(b)).powi(2);
        axis(self.x, other.x) + axis(self.y, other.y) + axis(self.z, other.z)
    }

    /// The largest difference on any axis, in steps.
    #[must_use]
    #[inline]
    pub fn max_axis_distance(self, other: Self) -> u32 {
        let axis = |a: i32, b: i32| a.abs_diff(b);
        axis(self.x, other.x).max(axis(self.y, other.y)).max(axis(self.z, other.z))
    }
}

/// The lattice of a map: how long a step is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lattice {
    step_cm: f64,
}

impl Lattice {
    /// A lattice with steps of `step_cm` centimetres.
    ///
    /// # Panics
    /// When the step is not a positive, finite number; configuration is checked before.
    #[must_use]
    pub fn new(step_cm: f64) -> Self {
        assert!(step_cm.is_finite() && step_cm > 0.0, "a lattice step is a positive length");
        Self { step_cm }
    }

    /// Length of a step in centimetres.
    #[must_use]
    pub fn step_cm(self) -> f64 {
        self.step_cm
    }

    /// The nearest lattice point; coordinates beyond the lattice stop at its ends, and NaN becomes 0.
    #[must_use]
    #[inline]
    pub fn quantize(self, position_cm: [f64; 3]) -> LatticePosition {
        // A float-to-int cast saturates and maps NaN to 0.
        let axis = |cm: f64| to_nearest(cm / self.step_cm) as i32;
        let [x, y, z] = position_cm;
        LatticePosition { x: axis(x), y: axis(y), z: axis(z) }
    }

    /// The world position of a lattice point, in centimetres.
    #[must_use]
    pub fn dequantize(self, position: LatticePosition) -> [f64; 3] {
        position.to_array().map(|value| f64::from(value) * self.step_cm)
    }

    /// A length in steps, rounded up; lengths beyond the lattice stop at its end.
    #[must_use]
    pub fn steps(self, length_cm: f64) -> u32 {
        (length_cm / self.step_cm).ceil() as u32
    }
}

/// Bits that tell a coordinate apart from every other within `reach` steps of it.
///
/// A receiver that holds any value at most `reach` away from the sent one finds it again with
/// [`nearest_with_low_bits`].
#[must_use]
#[inline]
pub fn low_bits_for(reach: u32) -> u32 {
    // Differences -reach ..= reach need 2 * reach + 1 distinct values.
    33 - reach.leading_zeros()
}

/// The value nearest to `held` whose low `bits` bits are those of `low`.
#[must_use]
#[inline]
pub fn nearest_with_low_bits(held: i32, low: u32, bits: u32) -> i32 {
    if bits == 0 {
        return held;
    }
    let unused = 32 - bits.min(32);
    let difference = (low.wrapping_sub(held as u32) << unused) as i32 >> unused;
    held.wrapping_add(difference)
}

/// Writes the full form: a flag when the quadrant is that of the previous record, else the quadrant, then
/// 16 bits per axis. `previous` carries the quadrant from record to record.
pub(crate) fn write_full(
    writer: &mut BitWriter<'_>,
    position: LatticePosition,
    previous: &mut Quadrant,
) -> Result<(), Full> {
    let quadrant = position.quadrant();
    let same = quadrant == *previous;
    writer.flag(same)?;
    if !same {
        for number in [quadrant.x, quadrant.y, quadrant.z] {
            writer.write(number as u16 as u32, QUADRANT_NUMBER_BITS)?;
        }
        *previous = quadrant;
    }
    for offset in position.offset() {
        writer.write(offset as u16 as u32, QUADRANT_BITS)?;
    }
    Ok(())
}

/// Reads what [`write_full`] wrote.
pub(crate) fn read_full(
    reader: &mut BitReader<'_>,
    previous: &mut Quadrant,
) -> Result<LatticePosition, DecodeError> {
    if !reader.flag()? {
        let mut number = || Ok(reader.read(QUADRANT_NUMBER_BITS)? as u16 as i16);
        *previous = Quadrant { x: number()?, y: number()?, z: number()? };
    }
    let mut offset = [0; 3];
    for value in &mut offset {
        *value = reader.read(QUADRANT_BITS)? as u16 as i16;
    }
    Ok(LatticePosition::from_quadrant(*previous, offset))
}

/// Bits of the full form at most.
pub(crate) const FULL_POSITION_BITS: u32 = 1 + 3 * (QUADRANT_NUMBER_BITS + QUADRANT_BITS);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_error_is_at_most_half_a_step(cm in -2.0e7..2.0e7f64, step in 0.1..10.0f64) {
            let lattice = Lattice::new(step);
            let [x, _, z] = lattice.dequantize(lattice.quantize([cm, 0.0, -cm]));
            prop_assert!((x - cm).abs() <= step * 0.5 + 1e-6);
            prop_assert!((z + cm).abs() <= step * 0.5 + 1e-6);
        }

        #[test]
        fn quadrant_and_offset_give_the_value_back(x: i32, y: i32, z: i32) {
            let position = LatticePosition { x, y, z };
            prop_assert_eq!(LatticePosition::from_quadrant(position.quadrant(), position.offset()), position);
        }

        #[test]
        fn low_bits_find_the_value_within_reach(value: i32, reach in 0u32..1_000_000, part in -1.0..=1.0f64) {
            let bits = low_bits_for(reach);
            let held = value.wrapping_add((f64::from(reach) * part) as i32);
            let low = value as u32 & (((1u64 << bits) - 1) as u32);
            prop_assert_eq!(nearest_with_low_bits(held, low, bits), value);
        }

        #[test]
        fn full_positions_survive_the_round_trip(values in proptest::collection::vec(any::<[i32; 3]>(), 1..6)) {
            let mut buffer = [0; 128];
            let mut writer = BitWriter::new(&mut buffer);
            let mut previous = Quadrant::default();
            for &value in &values {
                write_full(&mut writer, LatticePosition::from_array(value), &mut previous).unwrap();
            }
            let length = writer.finish().unwrap();
            let mut reader = BitReader::new(&buffer[..length]);
            let mut previous = Quadrant::default();
            for &value in &values {
                prop_assert_eq!(read_full(&mut reader, &mut previous), Ok(LatticePosition::from_array(value)));
            }
        }
    }

    #[test]
    fn crossing_a_quadrant_border_is_one_step() {
        let before = LatticePosition { x: 32_767, y: 0, z: 0 };
        let after = LatticePosition { x: 32_768, y: 0, z: 0 };
        assert_eq!((before.quadrant().x, before.offset()[0]), (0, 32_767));
        assert_eq!((after.quadrant().x, after.offset()[0]), (1, -32_768));
        assert_eq!(before.max_axis_distance(after), 1);
    }

    #[test]
    fn positions_beyond_the_lattice_stop_at_its_ends() {
        let far = Lattice::new(1.0).quantize([1.0e300, f64::NEG_INFINITY, f64::NAN]);
        assert_eq!(far, LatticePosition { x: i32::MAX, y: i32::MIN, z: 0 });
    }
}
