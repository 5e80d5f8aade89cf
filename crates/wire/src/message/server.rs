//! What the server sends to a player: the welcome, and a snapshot per tick.

use crate::block::CellId;
use crate::codec::{DecodeError, Full, Reader, Writer};
use crate::entity::{EntityId, EntityState};
use crate::lattice::{Lattice, LatticePosition, nearest_with_low_bits};
use crate::limits::{CELLS_PER_MAP, CLOSES_PER_SNAPSHOT};
use crate::quantize::{Velocity, nearest};

/// Welcome: the player has an entity in the world. The first reliable message of every session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    /// The player's own entity.
    pub entity: EntityId,
    /// Length of a lattice step, in micrometres.
    pub lattice_step_um: u32,
    /// Ticks per second.
    pub tick_hz: u8,
    /// How far players see each other, in centimetres.
    pub interest_distance_cm: u32,
}

impl Welcome {
    /// Bytes of a body at most.
    pub const MAX_BYTES: usize = 16;

    /// The map's lattice.
    #[must_use]
    pub fn lattice(&self) -> Lattice {
        Lattice::new(f64::from(self.lattice_step_um) / 10_000.0)
    }

    /// Writes the message's body.
    pub fn encode(&self, writer: &mut Writer<'_>) -> Result<(), Full> {
        writer.u32(self.entity.to_bits())?;
        writer.u32(self.lattice_step_um)?;
        writer.u8(self.tick_hz)?;
        writer.u32(self.interest_distance_cm)
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let welcome = Self {
            entity: EntityId::from_bits(reader.u32()?),
            lattice_step_um: reader.u32()?,
            tick_hz: reader.u8()?,
            interest_distance_cm: reader.u32()?,
        };
        reader.finish()?;
        if welcome.lattice_step_um == 0 {
            return Err(DecodeError::BadValue("lattice step"));
        }
        if welcome.tick_hz == 0 {
            return Err(DecodeError::BadValue("tick rate"));
        }
        Ok(welcome)
    }
}

/// The start of a Snapshot; its blocks follow until the end of the message (see [`crate::block`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// The tick that it shows, from 1 on.
    pub tick: u32,
    /// Number of the newest input that the server has processed; 0 = none yet.
    pub last_input: u32,
    /// The player's own entity, if it has one.
    pub owner: Option<OwnerRecord>,
}

/// Close: the viewer no longer subscribes to a cell. Removes everything that the cell's pages own and that
/// was learnt up to `tick - age`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Close {
    /// The cell.
    pub cell: CellId,
    /// Ticks between the closing and the snapshot's tick.
    pub age: u32,
}

impl SnapshotHeader {
    /// Writes tick, input number and the owner's record.
    pub fn encode(&self, writer: &mut Writer<'_>) -> Result<(), Full> {
        writer.u32(self.tick)?;
        writer.varint(self.last_input.into())?;
        match &self.owner {
            Some(owner) => owner.encode(writer),
            None => writer.u8(0),
        }
    }

    /// Reads what [`SnapshotHeader::encode`] wrote. `held` is the position of the newest owner's record that the
    /// receiver holds.
    pub fn decode(reader: &mut Reader<'_>, held: Option<LatticePosition>) -> Result<Self, DecodeError> {
        let tick = reader.u32()?;
        if tick == 0 {
            return Err(DecodeError::BadValue("tick"));
        }
        Ok(Self { tick, last_input: reader.varint_u32()?, owner: OwnerRecord::decode(reader, held)? })
    }
}

impl Close {
    /// Writes all closes of a snapshot.
    pub fn encode_all(
        closes: impl ExactSizeIterator<Item = Self>,
        writer: &mut Writer<'_>,
    ) -> Result<(), Full> {
        writer.varint(closes.len() as u64)?;
        for close in closes {
            writer.varint(close.cell.0.into())?;
            writer.varint(close.age.into())?;
        }
        Ok(())
    }

    /// Reads the number of closes that follow.
    pub fn decode_count(reader: &mut Reader<'_>) -> Result<usize, DecodeError> {
        let count = reader.varint()?;
        if count > CLOSES_PER_SNAPSHOT as u64 {
            return Err(DecodeError::LimitExceeded("closes per snapshot"));
        }
        Ok(count as usize)
    }

    /// Reads one close.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let cell = reader.varint_u32()?;
        if cell >= CELLS_PER_MAP {
            return Err(DecodeError::LimitExceeded("cell"));
        }
        Ok(Self { cell: CellId(cell), age: reader.varint_u32()? })
    }
}

/// UpdateEntity: the exact state of the player's own entity, for reconciling its prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerRecord {
    /// The nearest lattice point.
    pub position: LatticePosition,
    /// Whether its low 16 bits are enough, because the receiver is known to hold a position that is less than
    /// 2^15 steps away on every axis.
    pub receiver_is_near: bool,
    /// What is beyond it, in 1/256 of a step per axis.
    pub fraction: [i8; 3],
    /// View direction, 65,536 to the full turn.
    pub yaw: u16,
    /// Velocity.
    pub velocity: Velocity,
    /// State flags.
    pub state: EntityState,
    /// Health as a share of its maximum, 65,535 = full.
    pub health: u16,
    /// Mana as a share of its maximum, 65,535 = full.
    pub mana: u16,
}

/// First byte of an owner's record: bit 0 says that it is there, the others which groups differ from rest.
const PRESENT: u8 = 1 << 0;
const MOVING: u8 = 1 << 1;
const HAS_STATE: u8 = 1 << 2;
const NOT_FULL: u8 = 1 << 3;
const LOW_POSITION: u8 = 1 << 4;
const RISING: u8 = 1 << 5;
const GROUPS: u8 = PRESENT | MOVING | HAS_STATE | NOT_FULL | LOW_POSITION | RISING;
/// Bits of a low position per axis.
const LOW_POSITION_BITS: u32 = 16;

impl OwnerRecord {
    /// Bytes of a record at most.
    pub const MAX_BYTES: usize = 1 + 15 + 2 + 6 + 2 + 4;

    /// The exact position in centimetres.
    #[must_use]
    pub fn position_cm(&self, lattice: Lattice) -> [f64; 3] {
        let mut position = lattice.dequantize(self.position);
        for (value, fraction) in position.iter_mut().zip(self.fraction) {
            *value += f64::from(fraction) / 256.0 * lattice.step_cm();
        }
        position
    }

    /// Splits an exact position into lattice point and fraction; the error is at most 1/256 of a step.
    #[must_use]
    pub fn split_position(position_cm: [f64; 3], lattice: Lattice) -> (LatticePosition, [i8; 3]) {
        let point = lattice.quantize(position_cm);
        let centre = lattice.dequantize(point);
        let mut fraction = [0; 3];
        for axis in 0..3 {
            let beyond = (position_cm[axis] - centre[axis]) / lattice.step_cm();
            // The cast saturates: exactly half a step up becomes 127/256.
            fraction[axis] = nearest(beyond * 256.0) as i8;
        }
        (point, fraction)
    }

    fn encode(&self, writer: &mut Writer<'_>) -> Result<(), Full> {
        let rising = self.velocity.z != 0;
        let moving = self.velocity != Velocity::default();
        let has_state = self.state != EntityState::NONE;
        let not_full = self.health != u16::MAX || self.mana != u16::MAX;
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        writer.u8(PRESENT
            | bit(moving, MOVING)
            | bit(has_state, HAS_STATE)
            | bit(not_full, NOT_FULL)
            | bit(self.receiver_is_near, LOW_POSITION)
            | bit(rising, RISING))?;
        for (value, fraction) in self.position.to_array().into_iter().zip(self.fraction) {
            if self.receiver_is_near {
                writer.u16(value as u16)?;
            } else {
                writer.u32(value as u32)?;
            }
            writer.u8(fraction as u8)?;
        }
        writer.u16(self.yaw)?;
        if moving {
            writer.u16(self.velocity.x as u16)?;
            writer.u16(self.velocity.y as u16)?;
        }
        if rising {
            writer.u16(self.velocity.z as u16)?;
        }
        if has_state {
            writer.u16(self.state.to_bits() as u16)?;
        }
        if not_full {
            writer.u16(self.health)?;
            writer.u16(self.mana)?;
        }
        Ok(())
    }

    fn decode(reader: &mut Reader<'_>, held: Option<LatticePosition>) -> Result<Option<Self>, DecodeError> {
        let groups = reader.u8()?;
        if groups == 0 {
            return Ok(None);
        }
        if groups & PRESENT == 0 || groups & !GROUPS != 0 {
            return Err(DecodeError::BadValue("owner's record"));
        }
        let has = |group| groups & group != 0;
        let receiver_is_near = has(LOW_POSITION);
        let held = match (receiver_is_near, held) {
            (true, None) => return Err(DecodeError::BadValue("owner's low position")),
            (_, held) => held.unwrap_or_default().to_array(),
        };
        let mut position = [0; 3];
        let mut fraction = [0; 3];
        for axis in 0..3 {
            position[axis] = if receiver_is_near {
                nearest_with_low_bits(held[axis], reader.u16()?.into(), LOW_POSITION_BITS)
            } else {
                reader.u32()? as i32
            };
            fraction[axis] = reader.u8()? as i8;
        }
        let yaw = reader.u16()?;
        let mut axis = |there: bool| Ok(if there { reader.u16()? as i16 } else { 0 });
        let velocity = Velocity { x: axis(has(MOVING))?, y: axis(has(MOVING))?, z: axis(has(RISING))? };
        let state = EntityState::from_bits(if has(HAS_STATE) { reader.u16()?.into() } else { 0 })?;
        let (health, mana) =
            if has(NOT_FULL) { (reader.u16()?, reader.u16()?) } else { (u16::MAX, u16::MAX) };
        let position = LatticePosition::from_array(position);
        Ok(Some(Self { position, receiver_is_near, fraction, yaw, velocity, state, health, mana }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_owner() -> impl Strategy<Value = OwnerRecord> {
        let motion = (any::<[i32; 3]>(), any::<[i8; 3]>(), any::<u16>(), any::<[i16; 3]>(), any::<bool>());
        (motion, 0u32..1 << 16, any::<[u16; 2]>(), any::<[bool; 2]>()).prop_map(
            |((position, fraction, yaw, velocity, still), state, vitals, [full, near])| OwnerRecord {
                position: LatticePosition::from_array(position),
                receiver_is_near: near,
                fraction,
                yaw,
                velocity: if still {
                    Velocity::default()
                } else {
                    Velocity { x: velocity[0], y: velocity[1], z: velocity[2] }
                },
                state: EntityState::from_bits(state).unwrap(),
                health: if full { u16::MAX } else { vitals[0] },
                mana: if full { u16::MAX } else { vitals[1] },
            },
        )
    }

    proptest! {
        #[test]
        fn snapshot_headers_survive_the_round_trip(
            tick in 1u32..,
            last_input: u32,
            owner in proptest::option::of(any_owner()),
            closes in proptest::collection::vec((0..CELLS_PER_MAP, any::<u32>()), 0..CLOSES_PER_SNAPSHOT),
            drift in any::<[i16; 3]>(),
        ) {
            let header = SnapshotHeader { tick, last_input, owner };
            let closes: Vec<Close> =
                closes.into_iter().map(|(cell, age)| Close { cell: CellId(cell), age }).collect();
            let mut buffer = [0; 1024];
            let mut writer = Writer::new(&mut buffer);
            header.encode(&mut writer).unwrap();
            Close::encode_all(closes.iter().copied(), &mut writer).unwrap();
            let mut reader = Reader::new(writer.written());
            let held = owner.map_or([0; 3], |owner| owner.position.to_array());
            let held = [0, 1, 2].map(|axis| held[axis].wrapping_sub(drift[axis].into()));
            let held = Some(LatticePosition::from_array(held));
            prop_assert_eq!(SnapshotHeader::decode(&mut reader, held), Ok(header));
            let count = Close::decode_count(&mut reader).unwrap();
            let decoded: Vec<Close> = (0..count).map(|_| Close::decode(&mut reader).unwrap()).collect();
            prop_assert_eq!(decoded, closes);
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn exact_positions_keep_their_bound(cm in -1.0e7..1.0e7f64) {
            let lattice = Lattice::new(1.0);
            let (position, fraction) = OwnerRecord::split_position([cm, -cm, 0.0], lattice);
            let owner = OwnerRecord {
                position, receiver_is_near: false, fraction, yaw: 0, velocity: Velocity::default(), state: EntityState::NONE,
                health: u16::MAX, mana: u16::MAX,
            };
            let back = owner.position_cm(lattice);
            prop_assert!((back[0] - cm).abs() <= 1.0 / 256.0 + 1e-9);
            prop_assert!((back[1] + cm).abs() <= 1.0 / 256.0 + 1e-9);
        }

        #[test]
        fn any_bytes_decode_to_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Welcome::decode(&bytes);
            let mut reader = Reader::new(&bytes);
            let _ = SnapshotHeader::decode(&mut reader, None);
            let _ = Close::decode_count(&mut reader);
            let _ = Close::decode(&mut reader);
        }
    }

    #[test]
    fn a_welcome_survives_the_round_trip() {
        let welcome = Welcome {
            entity: EntityId::new(9, 2),
            lattice_step_um: 10_000,
            tick_hz: 60,
            interest_distance_cm: 100_000,
        };
        let mut buffer = [0; Welcome::MAX_BYTES];
        let mut writer = Writer::new(&mut buffer);
        welcome.encode(&mut writer).unwrap();
        assert_eq!(Welcome::decode(writer.written()), Ok(welcome));
        assert!((welcome.lattice().step_cm() - 1.0).abs() < f64::EPSILON);
    }
}
