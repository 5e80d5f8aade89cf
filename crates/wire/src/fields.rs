//! Groups of fields as bits: the parts that records, updates and poses have in common.

use crate::bits::{BitReader, BitWriter};
use crate::block::EntityRecord;
use crate::codec::{DecodeError, Full};
use crate::entity::EntityState;
use crate::quantize::{ANGLE_BITS, COARSE_YAW_BITS, Rotation, Velocity, Vitals};

pub(crate) const ROTATION_MAX_BITS: u32 = 1 + 3 * ANGLE_BITS;
pub(crate) const VELOCITY_MAX_BITS: u32 = 1 + 1 + 3 * 16;

/// How many bits some fields take, told once for many records: animations and state flags have 16, and few are in
/// use in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Widths {
    pub(crate) animation: u32,
    pub(crate) state: u32,
    /// Mana is told; if not, everybody's is full.
    pub(crate) mana: bool,
}

impl Widths {
    /// Everything in full.
    pub(crate) const FULL: Self = Self { animation: 16, state: EntityState::BITS, mana: true };
    /// Enough for nothing yet.
    pub(crate) const NONE: Self = Self { animation: 0, state: 0, mana: false };
    /// Bits of the widths themselves.
    pub(crate) const BITS: u32 = 5 + 5 + 1;

    /// Makes room for the fields of a record.
    pub(crate) fn cover(&mut self, record: &EntityRecord) {
        self.animation = self.animation.max(16 - record.animation.leading_zeros());
        self.state = self.state.max(32 - record.state.to_bits().leading_zeros());
        self.mana |= record.vitals.mana != u8::MAX;
    }

    pub(crate) fn write(self, writer: &mut BitWriter<'_>) -> Result<(), Full> {
        writer.write(self.animation, 5)?;
        writer.write(self.state, 5)?;
        writer.flag(self.mana)
    }

    pub(crate) fn read(reader: &mut BitReader<'_>) -> Result<Self, DecodeError> {
        let widths = Self { animation: reader.read(5)?, state: reader.read(5)?, mana: reader.flag()? };
        if widths.animation > Self::FULL.animation || widths.state > Self::FULL.state {
            return Err(DecodeError::LimitExceeded("bits of a field"));
        }
        Ok(widths)
    }

    /// Bits of the vitals.
    pub(crate) fn vitals(self) -> u32 {
        if self.mana { 16 } else { 8 }
    }

    #[inline]
    pub(crate) fn write_animation(self, writer: &mut BitWriter<'_>, animation: u16) -> Result<(), Full> {
        writer.write(animation.into(), self.animation)
    }

    pub(crate) fn read_animation(self, reader: &mut BitReader<'_>) -> Result<u16, DecodeError> {
        Ok(reader.read(self.animation)? as u16)
    }

    #[inline]
    pub(crate) fn write_state(self, writer: &mut BitWriter<'_>, state: EntityState) -> Result<(), Full> {
        writer.write(state.to_bits(), self.state)
    }

    pub(crate) fn read_state(self, reader: &mut BitReader<'_>) -> Result<EntityState, DecodeError> {
        EntityState::from_bits(reader.read(self.state)?)
    }

    #[inline]
    pub(crate) fn write_vitals(self, writer: &mut BitWriter<'_>, vitals: Vitals) -> Result<(), Full> {
        writer.write(u32::from(vitals.health) | u32::from(vitals.mana) << 8, self.vitals())
    }

    pub(crate) fn read_vitals(self, reader: &mut BitReader<'_>) -> Result<Vitals, DecodeError> {
        let both = reader.read(self.vitals())?;
        Ok(Vitals { health: both as u8, mana: if self.mana { (both >> 8) as u8 } else { u8::MAX } })
    }
}

/// A coarse yaw takes eight bits, anything finer three full angles.
pub(crate) fn encode_rotation(writer: &mut BitWriter<'_>, rotation: Rotation) -> Result<(), Full> {
    if let Some(yaw) = rotation.coarse_yaw() {
        return writer.write(u32::from(yaw) << 1, 1 + COARSE_YAW_BITS);
    }
    writer.flag(true)?;
    for angle in [rotation.yaw, rotation.pitch, rotation.roll] {
        writer.write(angle.into(), ANGLE_BITS)?;
    }
    Ok(())
}

pub(crate) fn decode_rotation(reader: &mut BitReader<'_>) -> Result<Rotation, DecodeError> {
    if !reader.flag()? {
        return Ok(Rotation::from_coarse_yaw(reader.read(COARSE_YAW_BITS)? as u8));
    }
    let mut angle = || Ok(reader.read(ANGLE_BITS)? as u16);
    Ok(Rotation { yaw: angle()?, pitch: angle()?, roll: angle()? })
}

/// Standing still takes one bit, moving on level ground leaves the vertical part out.
pub(crate) fn encode_velocity(writer: &mut BitWriter<'_>, velocity: Velocity) -> Result<(), Full> {
    let moving = velocity != Velocity::default();
    writer.flag(moving)?;
    if moving {
        writer.write(velocity.x as u16 as u32, 16)?;
        writer.write(velocity.y as u16 as u32, 16)?;
        writer.flag(velocity.z != 0)?;
        if velocity.z != 0 {
            writer.write(velocity.z as u16 as u32, 16)?;
        }
    }
    Ok(())
}

pub(crate) fn decode_velocity(reader: &mut BitReader<'_>) -> Result<Velocity, DecodeError> {
    if !reader.flag()? {
        return Ok(Velocity::default());
    }
    let x = reader.read(16)? as u16 as i16;
    let y = reader.read(16)? as u16 as i16;
    let z = if reader.flag()? { reader.read(16)? as u16 as i16 } else { 0 };
    Ok(Velocity { x, y, z })
}
