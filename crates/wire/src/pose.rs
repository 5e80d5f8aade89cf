//! Pose blocks: where those are who stand near in a crowd.
//!
//! In a crowd a player sees hundreds of pages, far too many for every tick. So its surroundings come another way
//! besides: the map is divided into **leaves**, squares of 256 steps, and a pose block carries a run of leaves of one
//! row. A **pose** is the place, the rotation and the animation of an entity in this tick, and its state and vitals
//! if they changed lately. Poses are absolute and rely on nothing: they neither open nor close pages, and tell
//! nothing about who came or left.
//!
//! ```text
//! header   frame follows 1 | next row 1 | zeros 5 | one 1
//!          [frame: 8 bytes, in the first pose block of a message]
//!          [row: signed varint against the block before, unless it is the next one]
//!          column of the first leaf: signed varint against that of the block before; number of bodies: a byte
//! body     columns since the body before 4 (15: 24 bits follow) | poses - 1, 4
//!          per pose: id | X 8 | Y 8 | above the floor 1 [height] | rotation | animation | condition 1 [state, vitals]
//!          padding to a whole byte
//! ```
//!
//! The frame says how many bits these fields take. Bodies are encoded once for all viewers, in the order of their
//! rows and columns, so that a run of them is copied as it is; the column of a block's first body is in the header.

use crate::bits::{BitReader, BitWriter};
use crate::block::EntityRecord;
use crate::codec::{DecodeError, Full, Reader, Tiny, Writer, zigzag};
use crate::entity::{ENTITY_INDEX_BITS, EntityId, EntityState};
use crate::fields::{ROTATION_MAX_BITS, Widths, decode_rotation, encode_rotation};
use crate::lattice::LatticePosition;
use crate::quantize::{Rotation, Vitals};

/// The edge of a leaf is 2 to the power of this, in steps.
pub const LEAF_BITS: u32 = 8;
/// Poses in a body; a leaf of more has several bodies.
pub const POSES_PER_BODY: usize = 1 << COUNT_BITS;
/// Bodies in a block.
pub const BODIES_PER_BLOCK: usize = u8::MAX as usize;

const COUNT_BITS: u32 = 4;
const SKIP_BITS: u32 = 4;
/// Stands for a skip that does not fit.
const FAR: u32 = (1 << SKIP_BITS) - 1;
const COLUMN_BITS: u32 = 32 - LEAF_BITS;

const GENERATION_BITS: u32 = 32 - ENTITY_INDEX_BITS;
/// Bytes of a body at most.
pub const BODY_MAX_BYTES: usize =
    (SKIP_BITS + COLUMN_BITS + COUNT_BITS + POSES_PER_BODY as u32 * POSE_MAX_BITS).div_ceil(8) as usize;
const POSE_MAX_BITS: u32 = 32 + 2 * LEAF_BITS + 1 + 32 + ROTATION_MAX_BITS + 16 + 1 + EntityState::BITS + 16;

/// The first byte of a pose block; that of any other block is below it.
const POSE_BLOCK: u8 = 0x80;
const FRAME_FOLLOWS: u8 = 0x01;
const NEXT_ROW: u8 = 0x02;

/// A leaf of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Leaf {
    /// Along Y.
    pub row: i32,
    /// Along X.
    pub column: i32,
}

impl Leaf {
    /// The leaf at a position.
    #[must_use]
    #[inline]
    pub fn at(position: LatticePosition) -> Self {
        Self { row: position.y >> LEAF_BITS, column: position.x >> LEAF_BITS }
    }
}

/// How many bits the fields of all poses of a tick take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoseFrame {
    index_bits: u32,
    generation_bits: u32,
    height_bits: u32,
    /// Steps from which heights are counted: nobody is lower.
    floor: i32,
    widths: Widths,
}

/// A pose as it stands in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pose {
    /// Whose.
    pub id: EntityId,
    /// Where it is.
    pub position: LatticePosition,
    /// Where it looks.
    pub rotation: Rotation,
    /// What its body does.
    pub animation: u16,
    /// Its flags and vitals, if they changed lately.
    pub condition: Option<(EntityState, Vitals)>,
}

impl PoseFrame {
    /// Bytes of a frame.
    pub const BYTES: usize = 8;

    /// A frame for poses of these records.
    pub fn covering<'r>(records: impl Iterator<Item = &'r EntityRecord>) -> Self {
        let (mut index, mut generation, mut low, mut high) = (0, 0, i32::MAX, i32::MIN);
        let mut widths = Widths::NONE;
        for record in records {
            index |= record.id.index() as u32;
            generation |= record.id.generation();
            low = low.min(record.position.z);
            high = high.max(record.position.z);
            widths.cover(record);
        }
        Self {
            index_bits: 32 - index.leading_zeros(),
            generation_bits: 32 - generation.leading_zeros(),
            height_bits: 32 - (high.wrapping_sub(low) as u32).leading_zeros(),
            floor: low,
            widths,
        }
    }

    fn encode(&self, writer: &mut Writer<'_>) -> Result<(), Full> {
        let mut bytes = [0; Self::BYTES];
        let mut bits = BitWriter::new(&mut bytes);
        bits.write(self.floor as u32, 32)?;
        bits.write(self.index_bits, 5)?;
        bits.write(self.generation_bits, 4)?;
        bits.write(self.height_bits, 6)?;
        self.widths.write(&mut bits)?;
        bits.finish()?;
        writer.bytes(&bytes)
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let bytes = reader.bytes(Self::BYTES)?;
        let mut bits = BitReader::new(bytes);
        let floor = bits.read(32)? as i32;
        let (index_bits, generation_bits, height_bits) = (bits.read(5)?, bits.read(4)?, bits.read(6)?);
        let frame =
            Self { index_bits, generation_bits, height_bits, floor, widths: Widths::read(&mut bits)? };
        let too_wide =
            index_bits > ENTITY_INDEX_BITS || generation_bits > GENERATION_BITS || height_bits > 32;
        if too_wide { Err(DecodeError::LimitExceeded("bits of a field")) } else { Ok(frame) }
    }

    /// Writes a body into `out` and gives its length: at most [`POSES_PER_BODY`] records of a leaf, each with whether
    /// its condition is told. `skip` is how many columns the leaf is behind that of the body before; 0: the same leaf.
    pub fn encode_body<'r>(
        &self,
        skip: u32,
        poses: impl ExactSizeIterator<Item = (&'r EntityRecord, bool)>,
        out: &mut [u8],
    ) -> Result<usize, Full> {
        debug_assert!((1..=POSES_PER_BODY).contains(&poses.len()));
        let mut writer = BitWriter::new(out);
        writer.write(skip.min(FAR), SKIP_BITS)?;
        if skip >= FAR {
            writer.write(skip, COLUMN_BITS)?;
        }
        writer.write(poses.len() as u32 - 1, COUNT_BITS)?;
        for (record, tells_condition) in poses {
            self.encode_pose(&mut writer, record, tells_condition)?;
        }
        writer.finish()
    }

    fn encode_pose(
        &self,
        writer: &mut BitWriter<'_>,
        record: &EntityRecord,
        tells_condition: bool,
    ) -> Result<(), Full> {
        writer.write(record.id.index() as u32, self.index_bits)?;
        writer.write(record.id.generation(), self.generation_bits)?;
        writer.write(record.position.x as u32, LEAF_BITS)?;
        writer.write(record.position.y as u32, LEAF_BITS)?;
        let height = record.position.z.wrapping_sub(self.floor) as u32;
        writer.flag(height != 0)?;
        if height != 0 {
            writer.write(height, self.height_bits)?;
        }
        encode_rotation(writer, record.rotation)?;
        self.widths.write_animation(writer, record.animation)?;
        writer.flag(tells_condition)?;
        if tells_condition {
            self.widths.write_state(writer, record.state)?;
            self.widths.write_vitals(writer, record.vitals)?;
        }
        Ok(())
    }

    fn decode_pose(&self, reader: &mut BitReader<'_>, leaf: Leaf) -> Result<Pose, DecodeError> {
        let index = reader.read(self.index_bits)?;
        let id = EntityId::new(index, reader.read(self.generation_bits)?);
        let x = leaf.column << LEAF_BITS | reader.read(LEAF_BITS)? as i32;
        let y = leaf.row << LEAF_BITS | reader.read(LEAF_BITS)? as i32;
        let height = if reader.flag()? { reader.read(self.height_bits)? } else { 0 };
        let position = LatticePosition { x, y, z: self.floor.wrapping_add(height as i32) };
        let rotation = decode_rotation(reader)?;
        let animation = self.widths.read_animation(reader)?;
        let condition = if reader.flag()? {
            Some((self.widths.read_state(reader)?, self.widths.read_vitals(reader)?))
        } else {
            None
        };
        Ok(Pose { id, position, rotation, animation, condition })
    }
}

/// What pose blocks take from those before them in the same message.
#[derive(Debug, Clone, Copy, Default)]
pub struct PoseContext {
    frame: Option<PoseFrame>,
    first: Leaf,
}

impl PoseContext {
    /// Bytes of a header at most.
    pub const HEADER_MAX_BYTES: usize = 1 + PoseFrame::BYTES + 2 * 5 + 1;

    /// Writes the header of a block; `first` is the leaf of its first body.
    pub fn encode_header(
        &mut self,
        frame: &PoseFrame,
        first: Leaf,
        bodies: u8,
        writer: &mut Writer<'_>,
    ) -> Result<(), Full> {
        let is_first = self.frame.is_none();
        let next_row = !is_first && first.row.wrapping_sub(self.first.row) == 1;
        let column = zigzag(i64::from(first.column) - i64::from(self.first.column));
        if next_row {
            let mut bytes = Tiny::new();
            bytes.u8(POSE_BLOCK | NEXT_ROW);
            bytes.varint(column);
            bytes.u8(bodies);
            self.first = first;
            return writer.tiny(bytes);
        }
        writer.u8(POSE_BLOCK | if is_first { FRAME_FOLLOWS } else { 0 })?;
        if is_first {
            frame.encode(writer)?;
        }
        writer.varint_signed(i64::from(first.row) - i64::from(self.first.row))?;
        writer.varint(column)?;
        *self = Self { frame: Some(*frame), first };
        writer.u8(bodies)
    }

    /// Whether what follows is a pose block, and not one of a page.
    #[must_use]
    pub fn is_next(reader: &Reader<'_>) -> bool {
        let mut ahead = *reader;
        ahead.u8().is_ok_and(|first| first & POSE_BLOCK != 0)
    }

    /// Reads a block, replacing what was in `poses`. After the first few, that allocates nothing.
    pub fn decode(&mut self, reader: &mut Reader<'_>, poses: &mut Vec<Pose>) -> Result<(), DecodeError> {
        poses.clear();
        let first = reader.u8()?;
        if first & !(FRAME_FOLLOWS | NEXT_ROW) != POSE_BLOCK {
            return Err(DecodeError::BadValue("pose block"));
        }
        if first & FRAME_FOLLOWS != 0 {
            self.frame = Some(PoseFrame::decode(reader)?);
        }
        let frame = self.frame.ok_or(DecodeError::BadValue("pose block without a frame"))?;
        let row = if first & NEXT_ROW != 0 { 1 } else { reader.varint_signed()? };
        self.first.row = moved(self.first.row, row)?;
        self.first.column = moved(self.first.column, reader.varint_signed()?)?;
        let mut leaf = self.first;
        for body in 0..reader.u8()? {
            let start = reader.save();
            let mut bits = BitReader::new(reader.rest());
            reader.restore(start);
            let mut skip = bits.read(SKIP_BITS)?;
            if skip == FAR {
                skip = bits.read(COLUMN_BITS)?;
            }
            if body > 0 {
                leaf.column = moved(leaf.column, skip.into())?;
            }
            for _ in 0..=bits.read(COUNT_BITS)? {
                poses.push(frame.decode_pose(&mut bits, leaf)?);
            }
            reader.bytes(bits.finish())?;
        }
        Ok(())
    }
}

/// A row or column so far from another.
fn moved(from: i32, by: i64) -> Result<i32, DecodeError> {
    const REACH: i64 = 1 << (COLUMN_BITS - 1);
    let to = i64::from(from).checked_add(by).filter(|to| (-REACH..REACH).contains(to));
    to.map(|to| to as i32).ok_or(DecodeError::LimitExceeded("leaf"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::any_record;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn poses_survive_the_round_trip(
            mut records in proptest::collection::vec((any_record(), any::<bool>()), 1..60),
            spread in 0u32..24,
        ) {
            // Close together or far apart.
            for (record, _) in &mut records {
                record.position.x >>= spread;
                record.position.y >>= spread;
            }
            records.sort_by_key(|(record, _)| Leaf::at(record.position));
            let frame = PoseFrame::covering(records.iter().map(|(record, _)| record));
            let mut bytes = vec![0; records.len() * (PoseContext::HEADER_MAX_BYTES + BODY_MAX_BYTES)];
            let mut writer = Writer::new(&mut bytes);
            let mut context = PoseContext::default();
            for row in records.chunk_by(|a, b| Leaf::at(a.0.position).row == Leaf::at(b.0.position).row) {
                let bodies: Vec<&[_]> = row
                    .chunk_by(|a, b| Leaf::at(a.0.position) == Leaf::at(b.0.position))
                    .flat_map(|leaf| leaf.chunks(POSES_PER_BODY))
                    .collect();
                let first = Leaf::at(row[0].0.position);
                context.encode_header(&frame, first, bodies.len() as u8, &mut writer).unwrap();
                let mut before = first.column;
                for body in bodies {
                    let column = Leaf::at(body[0].0.position).column;
                    let mut out = [0; BODY_MAX_BYTES];
                    let poses = body.iter().map(|(record, told)| (record, *told));
                    let len = frame.encode_body(column.abs_diff(before), poses, &mut out).unwrap();
                    writer.bytes(&out[..len]).unwrap();
                    before = column;
                }
            }
            let mut reader = Reader::new(writer.written());
            let (mut context, mut poses, mut all) = (PoseContext::default(), Vec::new(), Vec::new());
            while !reader.is_empty() {
                prop_assert!(PoseContext::is_next(&reader));
                context.decode(&mut reader, &mut poses).unwrap();
                all.append(&mut poses);
            }
            let expected: Vec<_> = records
                .iter()
                .map(|(record, told)| Pose {
                    id: record.id,
                    position: record.position,
                    rotation: record.rotation,
                    animation: record.animation,
                    condition: told.then_some((record.state, record.vitals)),
                })
                .collect();
            prop_assert_eq!(all, expected);
        }

        #[test]
        fn any_bytes_decode_to_poses_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (mut context, mut poses) = (PoseContext::default(), Vec::new());
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = POSE_BLOCK | FRAME_FOLLOWS;
            }
            let _ = context.decode(&mut Reader::new(&bytes), &mut poses);
            prop_assert!(poses.len() <= bytes.len());
        }
    }

    #[test]
    fn the_first_block_has_a_frame() {
        let (mut context, mut poses) = (PoseContext::default(), Vec::new());
        let refused = context.decode(&mut Reader::new(&[POSE_BLOCK, 0, 0, 0]), &mut poses);
        assert_eq!(refused, Err(DecodeError::BadValue("pose block without a frame")));
    }
}
