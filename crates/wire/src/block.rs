//! Replication blocks: what changed in one page of a cell since a baseline.
//!
//! A block is a short header (which page, how old the baseline is), written for each viewer, and a
//! bit-packed body, encoded once for all viewers who share page and baseline:
//!
//! ```text
//! header   age code 5 | page number follows 1 | next cell 1 | zero 1
//!          [cell: signed varint against the block before, unless it is the next one] [page number varint]
//! body     plain, 1 zero bit: slot mask, low bits 5, then per slot: UpdateEntityQuantized on level ground
//!          rich, 1 one bit: tombstones? 1 | enters? 1 | updates? 1 | wide positions? 1 | uniform? 1 | widths? 1
//!            [widths: animation 5, state 5, mana 1]
//!            [count-1 4, then per tombstone: RemoveEntity]
//!            [slot mask, then per slot: CreateEntity]
//!            [slot mask, low bits 5, the groups of all if uniform, then per slot: UpdateEntityQuantized]
//!          padding to a whole byte
//! ```
//!
//! A slot mask is its length (highest slot + 1, 5 bits) and as many bits. Everything is absolute: a block may
//! be applied to any state of the page between its baseline and its tick.

use crate::bits::{BitReader, BitWriter};
use crate::codec::{DecodeError, Full, Reader, Tiny, Writer, zigzag};
use crate::entity::{EntityDelta, EntityId, EntityState, EntityType};
use crate::fields::{
    ROTATION_MAX_BITS, VELOCITY_MAX_BITS, Widths, decode_rotation, decode_velocity, encode_rotation,
    encode_velocity,
};
use crate::lattice::{self, FULL_POSITION_BITS, LatticePosition, Quadrant, nearest_with_low_bits};
use crate::limits::{CELLS_PER_MAP, PAGE_SLOTS, PAGE_TOMBSTONES, PAGES_PER_CELL};
use crate::quantize::{COARSE_YAW_BITS, Rotation, Velocity, Vitals};

/// Number of an interest cell: unique on its map, over all layers, and never given to another cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct CellId(pub u32);

/// A page of a cell, the unit of replication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct PageId {
    /// The cell.
    pub cell: CellId,
    /// The page's number within the cell, below [`PAGES_PER_CELL`].
    pub number: u16,
}

/// The state of an entity as everybody sees it, quantized. Its complete form is CreateEntity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntityRecord {
    /// Which entity.
    pub id: EntityId,
    /// What it is.
    pub kind: EntityType,
    /// Where it is.
    pub position: LatticePosition,
    /// Where it looks.
    pub rotation: Rotation,
    /// What its body does.
    pub animation: u16,
    /// Its state flags.
    pub state: EntityState,
    /// How it moves.
    pub velocity: Velocity,
    /// Health and mana.
    pub vitals: Vitals,
}

/// RemoveEntity: an entity left the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tombstone {
    /// Which entity.
    pub id: EntityId,
    /// Ticks between its leaving and the block's tick.
    pub age: u16,
    /// The page that it went to; `None` when it left the world or everybody's sight.
    pub destination: Option<PageId>,
}

/// UpdateEntityQuantized: the changed field groups of the entity in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update {
    /// The slot of the page.
    pub slot: u8,
    /// The groups present in this update.
    pub delta: EntityDelta,
    /// The new position, if present.
    pub position: PositionUpdate,
    /// The new rotation, if present.
    pub rotation: Rotation,
    /// The new animation, if present.
    pub animation: u16,
    /// The new flags, if present.
    pub state: EntityState,
    /// The new velocity, if present.
    pub velocity: Velocity,
    /// The new vitals, if present.
    pub vitals: Vitals,
}

/// A position as it stands in an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PositionUpdate {
    /// The low `bits` bits per axis; height only when it changed.
    Low {
        /// Bits per axis.
        bits: u32,
        /// Low bits of X and Y.
        xy: [u32; 2],
        /// Low bits of Z; `None` = unchanged.
        z: Option<u32>,
    },
    /// The whole value.
    Full(LatticePosition),
}

impl PositionUpdate {
    /// The new position, given the one that the receiver holds.
    #[must_use]
    pub fn resolve(self, held: LatticePosition) -> LatticePosition {
        match self {
            Self::Full(position) => position,
            Self::Low { bits, xy, z } => LatticePosition {
                x: nearest_with_low_bits(held.x, xy[0], bits),
                y: nearest_with_low_bits(held.y, xy[1], bits),
                z: z.map_or(held.z, |z| nearest_with_low_bits(held.z, z, bits)),
            },
        }
    }
}

/// The ages, in ticks, that a baseline can have on the wire; the code of an age is its index here plus one.
/// Code 0 means "no baseline": the block is the page's full membership.
pub const BASELINE_AGES: [u16; 31] = [
    1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096,
    6144, 8192, 12_288, 16_384, 24_576, 32_768, 49_152,
];

/// The age of a block's baseline, as its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgeCode(u8);

impl AgeCode {
    /// No baseline: the block is complete.
    pub const FULL: Self = Self(0);
    /// Number of codes.
    pub const COUNT: usize = BASELINE_AGES.len() + 1;

    /// The code of the lowest age on the ladder that is not below `age`; an older baseline is always a valid
    /// one. Full when the ladder does not reach so far.
    #[must_use]
    #[inline]
    pub fn covering(age: u64) -> Self {
        if age > 49_152 {
            return Self::FULL;
        }
        // The ladder's steps are 1, then 2^n and 3 * 2^(n-1) in turn.
        let age = (age as u32).max(1);
        let power = 31 - age.leading_zeros();
        let index = if age <= 2 {
            age - 1
        } else if age == 1 << power {
            2 * power - 1
        } else if age <= 3 << (power - 1) {
            2 * power
        } else {
            2 * power + 1
        };
        Self(index as u8 + 1)
    }

    /// The age in ticks; `None` for a complete block.
    #[must_use]
    #[inline]
    pub fn age(self) -> Option<u32> {
        Some(u32::from(*BASELINE_AGES.get(usize::from(self.0).checked_sub(1)?)?))
    }

    /// The code, below [`AgeCode::COUNT`].
    #[must_use]
    #[inline]
    pub fn index(self) -> usize {
        self.0.into()
    }
}

const AGE_MASK: u8 = 0x1f;
const PAGE_FOLLOWS: u8 = 0x20;
/// The cell's number is one more than that of the block before.
const NEXT_CELL: u8 = 0x40;

/// Which page a block is about, and against which baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHeader {
    /// The page.
    pub page: PageId,
    /// The baseline's age.
    pub age: AgeCode,
}

impl BlockHeader {
    /// Bytes of a header at most.
    pub const MAX_BYTES: usize = 1 + 5 + 2;
    const _FITS: () = assert!(Self::MAX_BYTES <= Tiny::MAX_BYTES);

    /// Writes the header; `previous` is the cell of the block before it in the message (0 at its start).
    #[inline]
    pub fn encode(self, writer: &mut Writer<'_>, previous: &mut CellId) -> Result<(), Full> {
        let mut bytes = Tiny::new();
        let follows = if self.page.number == 0 { 0 } else { PAGE_FOLLOWS };
        let difference = i64::from(self.page.cell.0) - i64::from(previous.0);
        if difference == 1 {
            bytes.u8(self.age.0 | follows | NEXT_CELL);
        } else {
            bytes.u8(self.age.0 | follows);
            bytes.varint(zigzag(difference));
        }
        *previous = self.page.cell;
        if self.page.number != 0 {
            bytes.varint(self.page.number.into());
        }
        writer.tiny(bytes)
    }

    /// Reads what [`BlockHeader::encode`] wrote.
    pub fn decode(reader: &mut Reader<'_>, previous: &mut CellId) -> Result<Self, DecodeError> {
        let first = reader.u8()?;
        if first & !(AGE_MASK | PAGE_FOLLOWS | NEXT_CELL) != 0 {
            return Err(DecodeError::BadValue("block header"));
        }
        let difference = if first & NEXT_CELL != 0 { 1 } else { reader.varint_signed()? };
        let cell = i64::from(previous.0)
            .checked_add(difference)
            .and_then(|cell| u32::try_from(cell).ok())
            .filter(|cell| *cell < CELLS_PER_MAP)
            .ok_or(DecodeError::LimitExceeded("cell"))?;
        *previous = CellId(cell);
        let number = if first & PAGE_FOLLOWS == 0 { 0 } else { reader.varint_u32()? };
        if number >= PAGES_PER_CELL {
            return Err(DecodeError::LimitExceeded("page number"));
        }
        let page = PageId { cell: CellId(cell), number: number as u16 };
        Ok(Self { page, age: AgeCode(first & AGE_MASK) })
    }
}

/// The bit that says so, and what a rich body has.
const RICH_BITS: u32 = 1 + 6;
const SLOT_COUNT_BITS: u32 = 5;
const TOMBSTONE_COUNT_BITS: u32 = 4;
const LOW_BITS_BITS: u32 = 5;
const TOMBSTONE_AGE_BITS: u32 = 16;
const CELL_BITS: u32 = CELLS_PER_MAP.ilog2();
const PAGE_BITS: u32 = PAGES_PER_CELL.ilog2();

const RECORD_MAX_BITS: u32 = 32 // id
    + EntityType::BITS
    + FULL_POSITION_BITS
    + ROTATION_MAX_BITS
    + 16 // animation
    + EntityState::BITS
    + VELOCITY_MAX_BITS
    + 16; // vitals
/// An update's prefix (2 bits and the delta) and the "wide" flag stand where a record has id and type.
const SLOT_MAX_BITS: u32 = RECORD_MAX_BITS;
const TOMBSTONE_MAX_BITS: u32 = 32 + TOMBSTONE_AGE_BITS + 1 + CELL_BITS + PAGE_BITS;

/// Bytes of a body at most: every slot a complete record, and every tombstone. It fits a datagram beside
/// headers, acknowledgements and the owner's record.
pub const BODY_MAX_BYTES: usize = (RICH_BITS
    + Widths::BITS
    + TOMBSTONE_COUNT_BITS
    + EntityDelta::BITS
    + 2 * (SLOT_COUNT_BITS + PAGE_SLOTS as u32)
    + LOW_BITS_BITS
    + PAGE_SLOTS as u32 * SLOT_MAX_BITS
    + PAGE_TOMBSTONES as u32 * TOMBSTONE_MAX_BITS)
    .div_ceil(8) as usize;

const _: () = assert!(PAGE_SLOTS < 1 << SLOT_COUNT_BITS && PAGE_TOMBSTONES == 1 << TOMBSTONE_COUNT_BITS);
const _: () = assert!(BlockHeader::MAX_BYTES + BODY_MAX_BYTES <= 1080, "a page must fit one datagram");

/// What the encoder needs to know of a slot that has an update.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    /// The groups that changed since the baseline; never empty.
    pub delta: EntityDelta,
    /// The height changed since the baseline.
    pub height: bool,
    /// It moved farther since the baseline than `low_bits` can tell.
    pub wide: bool,
}

/// What goes into a body.
#[derive(Debug, Clone, Copy)]
pub struct BodyPlan<'a> {
    /// Who left since the baseline, at most [`PAGE_TOMBSTONES`].
    pub tombstones: &'a [Tombstone],
    /// Slots whose entity entered since the baseline.
    pub enters: u32,
    /// Slots with an entry in `changes`.
    pub updates: u32,
    /// By slot.
    pub changes: &'a [Change; PAGE_SLOTS],
    /// Low bits per axis of a position that is not wide.
    pub low_bits: u32,
}

/// Encodes a body into `out` and gives its length. `record` gives the state of the entity in a slot.
pub fn encode_body<'r>(
    plan: &BodyPlan<'_>,
    record: impl Fn(usize) -> &'r EntityRecord,
    out: &mut [u8],
) -> Result<usize, Full> {
    let mut writer = BitWriter::new(out);
    let layout = Layout::of(plan, &record);
    layout.write(plan, &mut writer)?;
    if !plan.tombstones.is_empty() {
        writer.write(plan.tombstones.len() as u32 - 1, TOMBSTONE_COUNT_BITS)?;
        for tombstone in plan.tombstones {
            encode_tombstone(&mut writer, tombstone)?;
        }
    }
    let mut quadrant = Quadrant::default();
    if plan.enters != 0 {
        encode_slot_mask(&mut writer, plan.enters)?;
        for slot in slots(plan.enters) {
            encode_record(&mut writer, record(slot), layout.widths, &mut quadrant)?;
        }
    }
    if plan.updates != 0 || !layout.rich {
        encode_slot_mask(&mut writer, plan.updates)?;
        writer.write(plan.low_bits, LOW_BITS_BITS)?;
        if let Some(groups) = layout.uniform {
            writer.write(groups.to_bits().into(), EntityDelta::BITS)?;
        }
        for slot in slots(plan.updates) {
            let change = plan.changes[slot];
            if layout.any_wide {
                writer.flag(change.wide)?;
            }
            encode_update(&mut writer, record(slot), change, plan.low_bits, &layout, &mut quadrant)?;
        }
    }
    writer.finish()
}

/// How a body says what it says.
#[derive(Debug, Clone, Copy)]
struct Layout {
    rich: bool,
    any_wide: bool,
    /// The groups of every update, where telling all of everybody takes less than telling who has which.
    uniform: Option<EntityDelta>,
    widths: Widths,
}

/// The groups whose widths a rich body tells.
const WITH_WIDTHS: EntityDelta = EntityDelta::ANIMATION.union(EntityDelta::FLAGS).union(EntityDelta::VITALS);

impl Layout {
    const PLAIN: Self = Self { rich: false, any_wide: false, uniform: None, widths: Widths::FULL };

    fn of<'r>(plan: &BodyPlan<'_>, record: &impl Fn(usize) -> &'r EntityRecord) -> Self {
        let (mut any_wide, mut any_height, mut groups) = (false, false, EntityDelta::NONE);
        for change in slots(plan.updates).map(|slot| &plan.changes[slot]) {
            any_wide |= change.wide;
            any_height |= change.height;
            groups = groups.union(change.delta);
        }
        let told = groups.intersection(WITH_WIDTHS);
        let rich =
            !plan.tombstones.is_empty() || plan.enters != 0 || any_wide || any_height || !told.is_empty();
        if !rich {
            return Self::PLAIN;
        }
        let mut widths = Widths::FULL;
        if plan.enters != 0 || !told.is_empty() {
            widths = Widths::NONE;
            slots(plan.enters | plan.updates).for_each(|slot| widths.cover(record(slot)));
        }
        Self { rich, any_wide, uniform: uniform_groups(plan, groups, widths), widths }
    }

    fn write(&self, plan: &BodyPlan<'_>, writer: &mut BitWriter<'_>) -> Result<(), Full> {
        writer.flag(self.rich)?;
        if self.rich {
            writer.flag(!plan.tombstones.is_empty())?;
            writer.flag(plan.enters != 0)?;
            writer.flag(plan.updates != 0)?;
            writer.flag(self.any_wide)?;
            writer.flag(self.uniform.is_some())?;
            writer.flag(self.widths != Widths::FULL)?;
            if self.widths != Widths::FULL {
                self.widths.write(writer)?;
            }
        }
        Ok(())
    }
}

/// All `groups` for all updates, if that is shorter.
fn uniform_groups(plan: &BodyPlan<'_>, groups: EntityDelta, widths: Widths) -> Option<EntityDelta> {
    let bits = |group| match group {
        EntityDelta::POSITION => 2 * plan.low_bits + 1,
        EntityDelta::ROTATION => 1 + COARSE_YAW_BITS,
        EntityDelta::ANIMATION => widths.animation,
        EntityDelta::FLAGS => widths.state,
        EntityDelta::VITALS => widths.vitals(),
        _ => VELOCITY_MAX_BITS,
    };
    let (mut one_by_one, mut uniform) = (0, EntityDelta::BITS);
    for slot in slots(plan.updates) {
        let delta = plan.changes[slot].delta;
        one_by_one += prefix_of(delta).1;
        uniform += groups.without(delta).iter().map(bits).sum::<u32>();
    }
    (uniform < one_by_one).then_some(groups)
}

/// The slots of a mask, lowest first.
#[inline]
pub fn slots(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let slot = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (slot < 32).then_some(slot as usize)
    })
}

fn encode_slot_mask(writer: &mut BitWriter<'_>, mask: u32) -> Result<(), Full> {
    let count = 32 - mask.leading_zeros();
    writer.write(count, SLOT_COUNT_BITS)?;
    writer.write(mask, count)
}

fn decode_slot_mask(reader: &mut BitReader<'_>) -> Result<u32, DecodeError> {
    let count = reader.read(SLOT_COUNT_BITS)?;
    if count as usize > PAGE_SLOTS {
        return Err(DecodeError::LimitExceeded("slots of a page"));
    }
    reader.read(count)
}

fn encode_tombstone(writer: &mut BitWriter<'_>, tombstone: &Tombstone) -> Result<(), Full> {
    writer.write(tombstone.id.to_bits(), 32)?;
    writer.write(tombstone.age.into(), TOMBSTONE_AGE_BITS)?;
    writer.flag(tombstone.destination.is_some())?;
    if let Some(page) = tombstone.destination {
        writer.write(page.cell.0, CELL_BITS)?;
        writer.write(page.number.into(), PAGE_BITS)?;
    }
    Ok(())
}

fn decode_tombstone(reader: &mut BitReader<'_>) -> Result<Tombstone, DecodeError> {
    let id = EntityId::from_bits(reader.read(32)?);
    let age = reader.read(TOMBSTONE_AGE_BITS)? as u16;
    let destination = if reader.flag()? {
        let cell = CellId(reader.read(CELL_BITS)?);
        Some(PageId { cell, number: reader.read(PAGE_BITS)? as u16 })
    } else {
        None
    };
    Ok(Tombstone { id, age, destination })
}

fn encode_record(
    writer: &mut BitWriter<'_>,
    record: &EntityRecord,
    widths: Widths,
    quadrant: &mut Quadrant,
) -> Result<(), Full> {
    writer.write(record.id.to_bits(), 32)?;
    writer.write(record.kind as u32, EntityType::BITS)?;
    lattice::write_full(writer, record.position, quadrant)?;
    encode_rotation(writer, record.rotation)?;
    widths.write_animation(writer, record.animation)?;
    widths.write_state(writer, record.state)?;
    encode_velocity(writer, record.velocity)?;
    widths.write_vitals(writer, record.vitals)
}

fn decode_record(
    reader: &mut BitReader<'_>,
    widths: Widths,
    quadrant: &mut Quadrant,
) -> Result<EntityRecord, DecodeError> {
    Ok(EntityRecord {
        id: EntityId::from_bits(reader.read(32)?),
        kind: EntityType::from_number(reader.read(EntityType::BITS)?)?,
        position: lattice::read_full(reader, quadrant)?,
        rotation: decode_rotation(reader)?,
        animation: widths.read_animation(reader)?,
        state: widths.read_state(reader)?,
        velocity: decode_velocity(reader)?,
        vitals: widths.read_vitals(reader)?,
    })
}

/// Prefix of an update: position alone (0), position and rotation (10), or any groups (11 and the delta).
const POSE: EntityDelta = EntityDelta::from_bits(0b11);

/// The prefix of an update that is not uniform, and its bits.
#[inline]
fn prefix_of(delta: EntityDelta) -> (u32, u32) {
    match delta {
        EntityDelta::POSITION => (0, 1),
        POSE => (0b01, 2),
        _ => (0b11 | u32::from(delta.to_bits()) << 2, 2 + EntityDelta::BITS),
    }
}

#[inline]
fn encode_update(
    writer: &mut BitWriter<'_>,
    record: &EntityRecord,
    change: Change,
    low_bits: u32,
    layout: &Layout,
    quadrant: &mut Quadrant,
) -> Result<(), Full> {
    let delta = layout.uniform.unwrap_or(change.delta);
    if layout.uniform.is_none() {
        let (prefix, bits) = prefix_of(delta);
        writer.write(prefix, bits)?;
    }
    if delta.contains(EntityDelta::POSITION) {
        if change.wide {
            lattice::write_full(writer, record.position, quadrant)?;
        } else {
            writer.write(record.position.x as u32, low_bits)?;
            writer.write(record.position.y as u32, low_bits)?;
            if layout.rich {
                writer.flag(change.height)?;
            }
            if change.height {
                writer.write(record.position.z as u32, low_bits)?;
            }
        }
    }
    if delta.contains(EntityDelta::ROTATION) {
        encode_rotation(writer, record.rotation)?;
    }
    if delta.contains(EntityDelta::ANIMATION) {
        layout.widths.write_animation(writer, record.animation)?;
    }
    if delta.contains(EntityDelta::FLAGS) {
        layout.widths.write_state(writer, record.state)?;
    }
    if delta.contains(EntityDelta::VELOCITY) {
        encode_velocity(writer, record.velocity)?;
    }
    if delta.contains(EntityDelta::VITALS) {
        layout.widths.write_vitals(writer, record.vitals)?;
    }
    Ok(())
}

/// How a position stands in an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Low bits of X and Y.
    Level,
    /// Low bits, and whether Z changed.
    Low,
    /// The full value.
    Wide,
}

fn decode_update(
    reader: &mut BitReader<'_>,
    slot: usize,
    form: Form,
    low_bits: u32,
    layout: &Layout,
    quadrant: &mut Quadrant,
) -> Result<Update, DecodeError> {
    let delta = if let Some(groups) = layout.uniform {
        groups
    } else if !reader.flag()? {
        EntityDelta::POSITION
    } else if !reader.flag()? {
        POSE
    } else {
        EntityDelta::from_bits(reader.read(EntityDelta::BITS)? as u8)
    };
    let mut update = Update {
        slot: slot as u8,
        delta,
        position: PositionUpdate::Low { bits: 0, xy: [0; 2], z: None },
        rotation: Rotation::default(),
        animation: 0,
        state: EntityState::NONE,
        velocity: Velocity::default(),
        vitals: Vitals::default(),
    };
    if delta.contains(EntityDelta::POSITION) {
        update.position = if form == Form::Wide {
            PositionUpdate::Full(lattice::read_full(reader, quadrant)?)
        } else {
            let xy = [reader.read(low_bits)?, reader.read(low_bits)?];
            let has_z = form != Form::Level && reader.flag()?;
            let z = if has_z { Some(reader.read(low_bits)?) } else { None };
            PositionUpdate::Low { bits: low_bits, xy, z }
        };
    }
    if delta.contains(EntityDelta::ROTATION) {
        update.rotation = decode_rotation(reader)?;
    }
    if delta.contains(EntityDelta::ANIMATION) {
        update.animation = layout.widths.read_animation(reader)?;
    }
    if delta.contains(EntityDelta::FLAGS) {
        update.state = layout.widths.read_state(reader)?;
    }
    if delta.contains(EntityDelta::VELOCITY) {
        update.velocity = decode_velocity(reader)?;
    }
    if delta.contains(EntityDelta::VITALS) {
        update.vitals = layout.widths.read_vitals(reader)?;
    }
    Ok(update)
}

/// A decoded block (DeltaSync). Reuse one for many blocks: after the first few, decoding allocates nothing.
#[derive(Debug, Clone, Default)]
pub struct Block {
    /// Who left since the baseline.
    pub tombstones: Vec<Tombstone>,
    /// Who entered since the baseline, by slot.
    pub enters: Vec<(u8, EntityRecord)>,
    /// Who changed since the baseline.
    pub updates: Vec<Update>,
}

impl Block {
    /// Reads a body, replacing what was in here.
    pub fn decode_body(&mut self, reader: &mut Reader<'_>) -> Result<(), DecodeError> {
        self.tombstones.clear();
        self.enters.clear();
        self.updates.clear();
        let start = reader.save();
        let mut bits = BitReader::new(reader.rest());
        let mut layout = Layout { rich: bits.flag()?, ..Layout::PLAIN };
        let (mut has_tombstones, mut has_enters, mut has_updates, mut is_uniform) =
            (false, false, true, false);
        if layout.rich {
            (has_tombstones, has_enters, has_updates) = (bits.flag()?, bits.flag()?, bits.flag()?);
            (layout.any_wide, is_uniform) = (bits.flag()?, bits.flag()?);
            if bits.flag()? {
                layout.widths = Widths::read(&mut bits)?;
            }
        }
        if has_tombstones {
            for _ in 0..=bits.read(TOMBSTONE_COUNT_BITS)? {
                self.tombstones.push(decode_tombstone(&mut bits)?);
            }
        }
        let mut quadrant = Quadrant::default();
        if has_enters {
            for slot in slots(decode_slot_mask(&mut bits)?) {
                self.enters.push((slot as u8, decode_record(&mut bits, layout.widths, &mut quadrant)?));
            }
        }
        if has_updates {
            let mask = decode_slot_mask(&mut bits)?;
            let low_bits = bits.read(LOW_BITS_BITS)?;
            if is_uniform {
                layout.uniform = Some(EntityDelta::from_bits(bits.read(EntityDelta::BITS)? as u8));
            }
            for slot in slots(mask) {
                let form = match (layout.rich, layout.any_wide && bits.flag()?) {
                    (false, _) => Form::Level,
                    (true, false) => Form::Low,
                    (true, true) => Form::Wide,
                };
                self.updates.push(decode_update(&mut bits, slot, form, low_bits, &layout, &mut quadrant)?);
            }
        }
        let consumed = bits.finish();
        reader.restore(start);
        reader.bytes(consumed)?;
        Ok(())
    }
}

#[cfg(test)]
pub(crate) use tests::any_record;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn any_record() -> impl Strategy<Value = EntityRecord> {
        let motion = (any::<[i32; 3]>(), any::<[i16; 3]>(), any::<[u16; 3]>(), any::<bool>());
        (any::<u32>(), 0u32..8, motion, any::<u16>(), 0u32..1 << 16, any::<[u8; 2]>()).prop_map(
            |(id, kind, (position, velocity, angles, level), animation, state, vitals)| {
                let [yaw, pitch, roll] = angles.map(|angle| angle & 0xfff);
                EntityRecord {
                    id: EntityId::from_bits(id),
                    kind: EntityType::from_number(kind).unwrap(),
                    position: LatticePosition::from_array(position),
                    rotation: if level {
                        Rotation::from_coarse_yaw(yaw as u8)
                    } else {
                        Rotation { yaw, pitch, roll }
                    },
                    animation,
                    state: EntityState::from_bits(state).unwrap(),
                    velocity: Velocity {
                        x: velocity[0],
                        y: velocity[1],
                        z: if level { 0 } else { velocity[2] },
                    },
                    vitals: Vitals { health: vitals[0], mana: vitals[1] },
                }
            },
        )
    }

    fn any_tombstone() -> impl Strategy<Value = Tombstone> {
        let page = (0..CELLS_PER_MAP, 0..PAGES_PER_CELL)
            .prop_map(|(cell, number)| PageId { cell: CellId(cell), number: number as u16 });
        (any::<u32>(), any::<u16>(), proptest::option::of(page))
            .prop_map(|(id, age, destination)| Tombstone { id: EntityId::from_bits(id), age, destination })
    }

    fn any_change() -> impl Strategy<Value = Change> {
        (1u8..64, any::<bool>(), any::<bool>()).prop_map(|(delta, height, wide)| Change {
            delta: EntityDelta::from_bits(delta),
            height,
            wide,
        })
    }

    fn check_update(update: &Update, record: &EntityRecord, change: Change, held: LatticePosition) {
        // More may be told than changed.
        assert!(update.delta.contains(change.delta));
        if update.delta.contains(EntityDelta::POSITION) {
            assert_eq!(update.position.resolve(held), record.position);
        }
        let has = |group| update.delta.contains(group);
        assert!(!has(EntityDelta::ROTATION) || update.rotation == record.rotation);
        assert!(!has(EntityDelta::ANIMATION) || update.animation == record.animation);
        assert!(!has(EntityDelta::FLAGS) || update.state == record.state);
        assert!(!has(EntityDelta::VELOCITY) || update.velocity == record.velocity);
        assert!(!has(EntityDelta::VITALS) || update.vitals == record.vitals);
    }

    proptest! {
        #[test]
        fn blocks_survive_the_round_trip(
            records in proptest::collection::vec(any_record(), PAGE_SLOTS),
            tombstones in proptest::collection::vec(any_tombstone(), 0..=PAGE_TOMBSTONES),
            changes in proptest::collection::vec(any_change(), PAGE_SLOTS),
            enters in 0u32..1 << PAGE_SLOTS,
            updates in 0u32..1 << PAGE_SLOTS,
            low_bits in 1u32..=31,
            drift in -1.0..1.0f64,
        ) {
            let updates = updates & !enters;
            let changes: [Change; PAGE_SLOTS] = changes.try_into().unwrap();
            let plan = BodyPlan { tombstones: &tombstones, enters, updates, changes: &changes, low_bits };
            let mut out = [0; BODY_MAX_BYTES];
            let length = encode_body(&plan, |slot| &records[slot], &mut out).unwrap();
            let mut block = Block::default();
            let mut reader = Reader::new(&out[..length]);
            block.decode_body(&mut reader).unwrap();
            prop_assert!(reader.is_empty());
            prop_assert_eq!(&block.tombstones, &tombstones);
            let expected: Vec<_> = slots(enters).map(|slot| (slot as u8, records[slot])).collect();
            prop_assert_eq!(&block.enters, &expected);
            prop_assert_eq!(block.updates.len(), updates.count_ones() as usize);
            let reach = (1u32 << (low_bits - 1)) - 1;
            for update in &block.updates {
                let slot = usize::from(update.slot);
                let record = &records[slot];
                let off = (f64::from(reach) * drift) as i32;
                let held = LatticePosition {
                    x: record.position.x.wrapping_add(off),
                    y: record.position.y.wrapping_sub(off),
                    z: if changes[slot].height { record.position.z.wrapping_add(off) } else { record.position.z },
                };
                check_update(update, record, changes[slot], held);
            }
        }

        #[test]
        fn any_bytes_decode_to_a_block_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut block = Block::default();
            let mut reader = Reader::new(&bytes);
            let _ = BlockHeader::decode(&mut reader, &mut CellId(7));
            let _ = block.decode_body(&mut reader);
            prop_assert!(block.tombstones.len() <= PAGE_TOMBSTONES);
            prop_assert!(block.enters.len() <= PAGE_SLOTS && block.updates.len() <= PAGE_SLOTS);
        }

        #[test]
        fn headers_survive_the_round_trip(cell in 0..CELLS_PER_MAP, number in 0..PAGES_PER_CELL as u16,
                                          age in 0u64..60_000, before in 0..CELLS_PER_MAP, next: bool) {
            let before = if next { cell.saturating_sub(1) } else { before };
            let page = PageId { cell: CellId(cell), number };
            let header = BlockHeader { page, age: AgeCode::covering(age) };
            let mut buffer = [0; BlockHeader::MAX_BYTES];
            let mut writer = Writer::new(&mut buffer);
            header.encode(&mut writer, &mut CellId(before)).unwrap();
            let mut reader = Reader::new(writer.written());
            prop_assert_eq!(BlockHeader::decode(&mut reader, &mut CellId(before)), Ok(header));
        }
    }

    #[test]
    fn the_ladder_covers_every_age_with_the_next_step() {
        for age in 0..=49_152u64 {
            let covered = AgeCode::covering(age).age().unwrap();
            let expected = BASELINE_AGES.iter().copied().find(|step| u64::from(*step) >= age).unwrap();
            assert_eq!(covered, u32::from(expected), "age {age}");
        }
        assert_eq!(AgeCode::covering(49_153), AgeCode::FULL);
        assert_eq!(AgeCode::FULL.age(), None);
    }
}
