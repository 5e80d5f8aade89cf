//! What the server sends to a player: the welcome, and a snapshot per tick.

use crate::block::CellId;
use crate::codec::{DecodeError, Full, Reader, Writer};
use crate::entity::{EntityId, EntityState};
use crate::lattice::{Lattice, LatticePosition, nearest_with_low_bits};
use crate::limits::{CELLS_PER_MAP, CLOSES_PER_SNAPSHOT};
use crate::quantize::{Velocity, to_nearest};

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

/// The start of a Snapshot. Its closes follow, and then its blocks until the end of the message (see
/// [`crate::block`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// The tick that it shows, from 1 on.
    pub tick: u32,
    /// Number of the newest input that the server has processed; 0 = none yet.
    pub last_input: u32,
    /// The player's own entity; in the first packet of a tick only.
    pub owner: Option<OwnerRecord>,
    /// What is left out.
    pub brevity: Brevity,
    /// How many closes follow, at most [`CLOSES_PER_SNAPSHOT`].
    pub closes: usize,
}

/// What a header leaves out, because it is known of the newest header with an owner's record that the receiver
/// holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Brevity {
    /// Nothing.
    #[default]
    Full,
    /// All but the low 16 bits of the tick and of the owner's position: less than 2^15 ticks, and steps on every
    /// axis, are between that header and this one.
    Short,
    /// That, and the owner's height, which is the same as there.
    Level,
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

/// First byte of a snapshot: what follows, and which groups of the owner's record differ from rest.
mod contents {
    pub(super) const OWNER: u8 = 1 << 0;
    pub(super) const MOVING: u8 = 1 << 1;
    pub(super) const HAS_STATE: u8 = 1 << 2;
    pub(super) const NOT_FULL: u8 = 1 << 3;
    pub(super) const SHORT: u8 = 1 << 4;
    pub(super) const RISING: u8 = 1 << 5;
    pub(super) const CLOSES: u8 = 1 << 6;
    pub(super) const LEVEL: u8 = 1 << 7;
    /// What may be set without an owner's record.
    pub(super) const OF_ANY: u8 = SHORT | CLOSES;
}

/// Bits of a tick, or of a position's axis, in short form.
const SHORT_BITS: u32 = 16;

impl SnapshotHeader {
    /// A header in full, without an owner's record and closes.
    #[must_use]
    pub fn new(tick: u32, last_input: u32) -> Self {
        Self { tick, last_input, owner: None, brevity: Brevity::Full, closes: 0 }
    }

    /// Bytes of a header at most, and some more.
    const MAX_BYTES: usize = 64;

    /// Writes the header.
    pub fn encode(&self, writer: &mut Writer<'_>) -> Result<(), Full> {
        // Put together here, so that only once is looked whether there is room in a buffer that may end anywhere.
        let mut bytes = [0; Self::MAX_BYTES];
        let mut fields = Writer::new(&mut bytes);
        self.encode_fields(&mut fields)?;
        let len = fields.len();
        writer.short_bytes(&bytes, 0, len)
    }

    #[inline]
    fn encode_fields(&self, writer: &mut Writer<'_>) -> Result<(), Full> {
        let short = self.brevity >= Brevity::Short;
        let level = self.brevity == Brevity::Level && self.owner.is_some();
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        let groups = self.owner.as_ref().map_or(0, OwnerRecord::groups);
        let closes = bit(self.closes > 0, contents::CLOSES);
        writer.u8(groups | closes | bit(short, contents::SHORT) | bit(level, contents::LEVEL))?;
        if short {
            writer.u16(self.tick as u16)?
        } else {
            writer.u32(self.tick)?
        }
        writer.varint(self.last_input.into())?;
        if let Some(owner) = &self.owner {
            owner.encode(groups, self.brevity, writer)?;
        }
        if self.closes > 0 { writer.varint(self.closes as u64) } else { Ok(()) }
    }

    /// Reads what [`SnapshotHeader::encode`] wrote. `held` is the newest header with an owner's record that the
    /// receiver holds.
    pub fn decode(reader: &mut Reader<'_>, held: Option<&Self>) -> Result<Self, DecodeError> {
        let contents = reader.u8()?;
        let has = |bit| contents & bit != 0;
        let brevity = match (has(contents::SHORT), has(contents::LEVEL)) {
            (false, false) => Brevity::Full,
            (true, false) => Brevity::Short,
            (true, true) => Brevity::Level,
            (false, true) => return Err(DecodeError::BadValue("height left out")),
        };
        if !has(contents::OWNER) && contents & !contents::OF_ANY != 0 {
            return Err(DecodeError::BadValue("contents of a snapshot"));
        }
        let held = held.and_then(|held| Some((held.tick, held.owner.as_ref()?)));
        if held.is_none() && brevity != Brevity::Full {
            return Err(DecodeError::BadValue("short snapshot"));
        }
        let tick = match held {
            Some((held, _)) if brevity != Brevity::Full => {
                nearest_with_low_bits(held as i32, reader.u16()?.into(), SHORT_BITS) as u32
            }
            _ => reader.u32()?,
        };
        if tick == 0 {
            return Err(DecodeError::BadValue("tick"));
        }
        let last_input = reader.varint_u32()?;
        let owner = if has(contents::OWNER) {
            Some(OwnerRecord::decode(reader, contents, brevity, held.map(|(_, owner)| owner))?)
        } else {
            None
        };
        let closes = if has(contents::CLOSES) { reader.varint()? } else { 0 };
        if closes > CLOSES_PER_SNAPSHOT as u64 {
            return Err(DecodeError::LimitExceeded("closes per snapshot"));
        }
        Ok(Self { tick, last_input, owner, brevity, closes: closes as usize })
    }
}

impl Close {
    /// Writes one close.
    pub fn encode(&self, writer: &mut Writer<'_>) -> Result<(), Full> {
        writer.varint(self.cell.0.into())?;
        writer.varint(self.age.into())
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

impl OwnerRecord {
    /// Bytes of a record at most.
    pub const MAX_BYTES: usize = 15 + 2 + 6 + 2 + 4;

    /// Of somebody who stands on a lattice point, unhurt, and looks along X: the groups that are told only where they
    /// differ from this are left out.
    #[must_use]
    pub fn at_rest(position: LatticePosition) -> Self {
        Self {
            position,
            fraction: [0; 3],
            yaw: 0,
            velocity: Velocity::default(),
            state: EntityState::NONE,
            health: u16::MAX,
            mana: u16::MAX,
        }
    }

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
        let beyond = |cm: f64, steps: i32| {
            // The cast saturates: exactly half a step up becomes 127/256.
            to_nearest((cm / lattice.step_cm() - f64::from(steps)) * 256.0) as i8
        };
        let [x, y, z] = position_cm;
        (point, [beyond(x, point.x), beyond(y, point.y), beyond(z, point.z)])
    }

    /// The bits of the contents byte that say what of it is written.
    fn groups(&self) -> u8 {
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        contents::OWNER
            | bit(self.velocity != Velocity::default(), contents::MOVING)
            | bit(self.state != EntityState::NONE, contents::HAS_STATE)
            | bit(self.health != u16::MAX || self.mana != u16::MAX, contents::NOT_FULL)
            | bit(self.velocity.z != 0, contents::RISING)
    }

    #[inline]
    fn encode(&self, groups: u8, brevity: Brevity, writer: &mut Writer<'_>) -> Result<(), Full> {
        let has = |group| groups & group != 0;
        let mut axis = |steps: i32, fraction: i8| {
            match brevity {
                Brevity::Full => writer.u32(steps as u32)?,
                Brevity::Short | Brevity::Level => writer.u16(steps as u16)?,
            }
            writer.u8(fraction as u8)
        };
        axis(self.position.x, self.fraction[0])?;
        axis(self.position.y, self.fraction[1])?;
        if brevity != Brevity::Level {
            axis(self.position.z, self.fraction[2])?;
        }
        writer.u16(self.yaw)?;
        if has(contents::MOVING) {
            writer.u16(self.velocity.x as u16)?;
            writer.u16(self.velocity.y as u16)?;
        }
        if has(contents::RISING) {
            writer.u16(self.velocity.z as u16)?;
        }
        if has(contents::HAS_STATE) {
            writer.u16(self.state.to_bits() as u16)?;
        }
        if has(contents::NOT_FULL) {
            writer.u16(self.health)?;
            writer.u16(self.mana)?;
        }
        Ok(())
    }

    /// `held` is there unless the form is full.
    fn decode(
        reader: &mut Reader<'_>,
        contents: u8,
        brevity: Brevity,
        held: Option<&Self>,
    ) -> Result<Self, DecodeError> {
        let has = |group| contents & group != 0;
        let (mut position, mut fraction) =
            held.map_or(([0; 3], [0; 3]), |held| (held.position.to_array(), held.fraction));
        for axis in 0..if brevity == Brevity::Level { 2 } else { 3 } {
            position[axis] = if brevity == Brevity::Full {
                reader.u32()? as i32
            } else {
                nearest_with_low_bits(position[axis], reader.u16()?.into(), SHORT_BITS)
            };
            fraction[axis] = reader.u8()? as i8;
        }
        let yaw = reader.u16()?;
        let mut axis = |there: bool| Ok(if there { reader.u16()? as i16 } else { 0 });
        let (moves, rises) = (has(contents::MOVING), has(contents::RISING));
        let velocity = Velocity { x: axis(moves)?, y: axis(moves)?, z: axis(rises)? };
        let state = EntityState::from_bits(if has(contents::HAS_STATE) { reader.u16()?.into() } else { 0 })?;
        let (health, mana) =
            if has(contents::NOT_FULL) { (reader.u16()?, reader.u16()?) } else { (u16::MAX, u16::MAX) };
        let position = LatticePosition::from_array(position);
        Ok(Self { position, fraction, yaw, velocity, state, health, mana })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_owner() -> impl Strategy<Value = OwnerRecord> {
        let motion = (any::<[i32; 3]>(), any::<[i8; 3]>(), any::<u16>(), any::<[i16; 3]>(), any::<bool>());
        (motion, 0u32..1 << 16, any::<[u16; 2]>(), any::<bool>()).prop_map(
            |((position, fraction, yaw, velocity, still), state, vitals, full)| OwnerRecord {
                position: LatticePosition::from_array(position),
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
            closes in proptest::collection::vec((0..CELLS_PER_MAP, any::<u32>()), 0..=CLOSES_PER_SNAPSHOT),
            held in any_owner(),
            drift in any::<[i16; 3]>(),
            elapsed: i16,
            brevity in prop_oneof![Just(Brevity::Full), Just(Brevity::Short), Just(Brevity::Level)],
        ) {
            let brevity = if owner.is_none() { brevity.min(Brevity::Short) } else { brevity };
            let header = SnapshotHeader { tick, last_input, owner, brevity, closes: closes.len() };
            let closes: Vec<Close> =
                closes.into_iter().map(|(cell, age)| Close { cell: CellId(cell), age }).collect();
            let mut buffer = [0; 1024];
            let mut writer = Writer::new(&mut buffer);
            header.encode(&mut writer).unwrap();
            closes.iter().try_for_each(|close| close.encode(&mut writer)).unwrap();
            // The receiver holds something that is less than 2^15 ticks and steps away.
            let mut held = held;
            if let Some(owner) = owner {
                let near = owner.position.to_array();
                let near = [0, 1, 2].map(|axis| near[axis].wrapping_sub(drift[axis].into()));
                held.position = LatticePosition::from_array(near);
                if brevity == Brevity::Level {
                    (held.position.z, held.fraction[2]) = (owner.position.z, owner.fraction[2]);
                }
            }
            let held = SnapshotHeader { tick: tick.wrapping_sub(elapsed as u32), owner: Some(held), ..header };
            let mut reader = Reader::new(writer.written());
            prop_assert_eq!(SnapshotHeader::decode(&mut reader, Some(&held)), Ok(header));
            let decoded: Vec<Close> =
                (0..header.closes).map(|_| Close::decode(&mut reader).unwrap()).collect();
            prop_assert_eq!(decoded, closes);
            prop_assert!(reader.is_empty());
            let without = SnapshotHeader::decode(&mut Reader::new(writer.written()), None);
            prop_assert_eq!(without.is_ok(), brevity == Brevity::Full);
        }

        #[test]
        fn exact_positions_keep_their_bound(cm in -1.0e7..1.0e7f64, step in 0.1..20.0f64) {
            let lattice = Lattice::new(step);
            let (position, fraction) = OwnerRecord::split_position([cm, -cm, 0.0], lattice);
            prop_assert_eq!(position, lattice.quantize([cm, -cm, 0.0]));
            let owner = OwnerRecord { fraction, ..OwnerRecord::at_rest(position) };
            let back = owner.position_cm(lattice);
            prop_assert!((back[0] - cm).abs() <= step / 256.0 + 1e-8);
            prop_assert!((back[1] + cm).abs() <= step / 256.0 + 1e-8);
        }

        #[test]
        fn any_bytes_decode_to_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Welcome::decode(&bytes);
            let mut reader = Reader::new(&bytes);
            if let Ok(held) = SnapshotHeader::decode(&mut reader, None) {
                let _ = Close::decode(&mut reader);
                let _ = SnapshotHeader::decode(&mut Reader::new(&bytes), Some(&held));
            }
        }
    }

    #[test]
    fn contents_that_make_no_sense_are_refused() {
        let decode = |contents| SnapshotHeader::decode(&mut Reader::new(&[contents, 1, 0, 0, 0, 0, 0]), None);
        assert!(decode(0).is_ok());
        // Groups of an owner's record that is not there, and a height that is left out of a full one.
        for contents in
            [contents::MOVING, contents::NOT_FULL, contents::LEVEL, contents::OWNER | contents::LEVEL]
        {
            assert!(matches!(decode(contents), Err(DecodeError::BadValue(_))), "{contents:#x}");
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
