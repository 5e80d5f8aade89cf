//! Pages: 24 stable slots of a cell each, the quantized state of who stands in them, and when each part of it
//! changed. Deltas, tombstones and baselines are per page.
//!
//! The parts of a page lie in three arrays, by how often they are read: headers, for every viewer in every
//! tick; rows, when a block is encoded; tombstones, when somebody left lately.

use shadowland_prefetch::prefetch;
use shadowland_wire::block::{CellId, EntityRecord, PageId, slots};
use shadowland_wire::entity::{EntityDelta, EntityId, EntityState, EntityType};
use shadowland_wire::lattice::LatticePosition;
use shadowland_wire::limits::{PAGE_SLOTS, PAGE_TOMBSTONES};
use shadowland_wire::quantize::{Rotation, Velocity, Vitals};

use super::{NO_PAGE, TOMBSTONE_TICKS};
use crate::Tick;

const ALL_SLOTS: u32 = (1 << PAGE_SLOTS) - 1;
/// The cell of pages that belong to none.
const NO_CELL: CellId = CellId(u32::MAX);

/// What viewers look at in every tick.
#[derive(Debug, Clone, Copy)]
pub struct PageHeader {
    /// Which page it is.
    pub id: PageId,
    /// Bit per slot in which somebody stands.
    pub occupied: u32,
    /// Index of the cell's next page, or [`NO_PAGE`].
    pub next: u32,
    /// The tick of its last change of any kind.
    pub last_change: Tick,
    /// The oldest tick that can be a baseline: tombstones before it are missing.
    pub floor: Tick,
    /// Entities in all pages of the cell. Kept at page 0.
    pub(super) cell_members: u32,
    stone_count: u8,
    /// Counts the pages that stood at this index before, modulo 256: who remembers where a page was knows by it whether
    /// it is still there. A page stays for [`TOMBSTONE_TICKS`] at least.
    pub generation: u8,
    /// Its cell is a crowd.
    pub crowded: bool,
}

/// The quantized state of the entity in a slot, and the ticks of its last changes.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The state.
    pub record: EntityRecord,
    /// When the entity came into the slot.
    pub entered: Tick,
    /// Last change, by field group in the order of the [`EntityDelta`] bits.
    pub changed: [Tick; EntityDelta::GROUPS],
    /// Last change of the height.
    pub height_changed: Tick,
    /// Last tick in which it moved farther than the greatest step, but not twice as far: it caught up.
    pub hurried: Tick,
    /// Last tick in which it moved farther than that.
    pub teleported: Tick,
}

/// RemoveEntity in memory: who left, when, and where to.
#[derive(Debug, Clone, Copy)]
pub struct Stone {
    /// Who left.
    pub id: EntityId,
    /// When.
    pub left: Tick,
    /// The page where it is now; `None` when it is in nobody's sight any more.
    pub destination: Option<PageId>,
}

const NOBODY: Row = Row {
    record: EntityRecord {
        id: EntityId::NONE,
        kind: EntityType::Player,
        position: LatticePosition { x: 0, y: 0, z: 0 },
        rotation: Rotation { yaw: 0, pitch: 0, roll: 0 },
        animation: 0,
        state: EntityState::NONE,
        velocity: Velocity { x: 0, y: 0, z: 0 },
        vitals: Vitals::FULL,
    },
    entered: 0,
    changed: [0; EntityDelta::GROUPS],
    height_changed: 0,
    hurried: 0,
    teleported: 0,
};

const FREE: PageHeader = PageHeader {
    id: PageId { cell: NO_CELL, number: 0 },
    occupied: 0,
    next: NO_PAGE,
    last_change: 0,
    floor: 0,
    cell_members: 0,
    stone_count: 0,
    generation: 0,
    crowded: false,
};

/// All pages of a world or of a frame, by index.
#[derive(Debug, Clone, Default)]
pub struct Pages {
    headers: Vec<PageHeader>,
    rows: Vec<[Row; PAGE_SLOTS]>,
    /// Oldest first.
    stones: Vec<[Stone; PAGE_TOMBSTONES]>,
}

/// One page.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    header: &'a PageHeader,
    rows: &'a [Row; PAGE_SLOTS],
    stones: &'a [Stone; PAGE_TOMBSTONES],
}

impl<'a> Page<'a> {
    /// Which page it is.
    #[must_use]
    pub fn id(self) -> PageId {
        self.header.id
    }

    /// The rows of all occupied slots.
    pub fn rows(self) -> impl Iterator<Item = &'a Row> {
        slots(self.header.occupied).map(move |slot| &self.rows[slot])
    }

    /// The row of an occupied slot.
    #[must_use]
    #[inline]
    pub fn row(self, slot: usize) -> &'a Row {
        &self.rows[slot]
    }

    /// Bit per slot in which somebody stands.
    #[must_use]
    pub fn occupied(self) -> u32 {
        self.header.occupied
    }

    /// Who left lately, oldest first.
    #[must_use]
    pub fn stones(self) -> &'a [Stone] {
        &self.stones[..usize::from(self.header.stone_count)]
    }
}

impl PageHeader {
    /// Whether it belongs to no cell.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.id.cell == NO_CELL
    }

    /// Nobody is in it, and nobody has been for so long that no tombstone can be owed to anybody.
    pub(super) fn is_releasable(&self, now: Tick) -> bool {
        self.occupied == 0 && now - self.last_change > TOMBSTONE_TICKS
    }
}

impl Pages {
    pub(super) fn with_capacity(pages: usize) -> Self {
        Self {
            headers: Vec::with_capacity(pages),
            rows: Vec::with_capacity(pages),
            stones: Vec::with_capacity(pages),
        }
    }

    /// How many pages there are, free ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.headers.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.headers.is_empty()
    }

    /// The header of a page, if the index is one.
    #[must_use]
    #[inline]
    pub fn header(&self, index: u32) -> Option<&PageHeader> {
        self.headers.get(index as usize)
    }

    /// The page at an index.
    ///
    /// # Panics
    /// When the index is not that of a page.
    #[must_use]
    #[inline]
    pub fn page(&self, index: u32) -> Page<'_> {
        let index = index as usize;
        Page { header: &self.headers[index], rows: &self.rows[index], stones: &self.stones[index] }
    }

    /// Fetches the header of a page and one of its rows into the cache.
    #[inline]
    pub(super) fn prefetch(&self, index: u32, slot: u8) {
        prefetch(&self.headers[index as usize]);
        prefetch(&self.rows[index as usize][usize::from(slot)]);
    }

    /// Every page of every cell, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = Page<'_>> + '_ {
        let used = (0u32..).zip(&self.headers).filter(|(_, header)| !header.is_free());
        used.map(|(index, _)| self.page(index))
    }

    /// Becomes a copy of `other`; what did not change since the last time is not copied.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        // Room for as many as the other has room for: a world that grows does not make its frames allocate.
        self.headers.reserve(other.headers.capacity().saturating_sub(self.headers.len()));
        self.rows.reserve(other.rows.capacity().saturating_sub(self.rows.len()));
        self.stones.reserve(other.stones.capacity().saturating_sub(self.stones.len()));
        self.headers.resize(other.len(), FREE);
        self.rows.resize(other.len(), [NOBODY; PAGE_SLOTS]);
        self.stones.resize(other.len(), [NO_STONE; PAGE_TOMBSTONES]);
        for (index, (mine, theirs)) in self.headers.iter_mut().zip(&other.headers).enumerate() {
            let same = mine.id == theirs.id && mine.last_change == theirs.last_change;
            if !same {
                for slot in slots(theirs.occupied) {
                    self.rows[index][slot] = other.rows[index][slot];
                }
            }
            // Tombstones expire without being a change.
            if !same || mine.floor != theirs.floor || mine.stone_count != theirs.stone_count {
                self.stones[index] = other.stones[index];
            }
            *mine = *theirs;
        }
    }

    /// A page for a cell: a free one, or a new one.
    pub(super) fn open(&mut self, free: Option<u32>, now: Tick, id: PageId) -> u32 {
        let index = free.unwrap_or_else(|| {
            self.headers.push(FREE);
            self.rows.push([NOBODY; PAGE_SLOTS]);
            self.stones.push([NO_STONE; PAGE_TOMBSTONES]);
            self.headers.len() as u32 - 1
        });
        debug_assert!(self.headers[index as usize].is_free());
        let header = &mut self.headers[index as usize];
        *header = PageHeader { id, last_change: now, floor: now, generation: header.generation, ..FREE };
        index
    }

    pub(super) fn close(&mut self, index: u32) {
        let header = &mut self.headers[index as usize];
        *header = PageHeader { generation: header.generation.wrapping_add(1), ..FREE };
    }

    pub(super) fn set_crowded(&mut self, index: u32, crowded: bool) {
        self.headers[index as usize].crowded = crowded;
    }

    /// Counts a member of the cell whose first page this is, and tells how many there are and whether that was a crowd.
    pub(super) fn count_member(&mut self, first: u32, by: i32) -> (u32, bool) {
        let header = &mut self.headers[first as usize];
        header.cell_members = header.cell_members.saturating_add_signed(by);
        (header.cell_members, header.crowded)
    }

    pub(super) fn set_next(&mut self, index: u32, next: u32) {
        self.headers[index as usize].next = next;
    }

    /// The lowest free slot.
    pub(super) fn free_slot(&self, index: u32) -> Option<u8> {
        let slot = (!self.headers[index as usize].occupied & ALL_SLOTS).trailing_zeros();
        ((slot as usize) < PAGE_SLOTS).then_some(slot as u8)
    }

    pub(super) fn enter(&mut self, index: u32, now: Tick, slot: u8, record: &EntityRecord) {
        self.rows[index as usize][usize::from(slot)] = Row {
            record: *record,
            entered: now,
            changed: [now; EntityDelta::GROUPS],
            height_changed: now,
            hurried: now,
            teleported: now,
        };
        let header = &mut self.headers[index as usize];
        header.occupied |= 1 << slot;
        header.last_change = now;
    }

    pub(super) fn leave(&mut self, index: u32, now: Tick, slot: u8, destination: Option<PageId>) {
        let id = self.rows[index as usize][usize::from(slot)].record.id;
        if usize::from(self.headers[index as usize].stone_count) == PAGE_TOMBSTONES {
            self.evict_stones(index, 1);
        }
        let header = &mut self.headers[index as usize];
        header.occupied &= !(1 << slot);
        header.last_change = now;
        self.stones[index as usize][usize::from(header.stone_count)] = Stone { id, left: now, destination };
        header.stone_count += 1;
    }

    pub(super) fn expire_tombstones(&mut self, index: u32, now: Tick) {
        let stones = self.page(index).stones();
        let old = stones.iter().take_while(|stone| now - stone.left > TOMBSTONE_TICKS).count();
        if old > 0 {
            self.evict_stones(index, old);
        }
    }

    /// Forgets all tombstones: what was a baseline before is none any more.
    pub(super) fn forget_stones(&mut self, index: u32, now: Tick) {
        let header = &mut self.headers[index as usize];
        header.floor = now;
        header.stone_count = 0;
    }

    /// Forgets the oldest tombstones: who has not applied them yet needs the page from scratch.
    fn evict_stones(&mut self, index: u32, count: usize) {
        let header = &mut self.headers[index as usize];
        let stones = &mut self.stones[index as usize];
        header.floor = header.floor.max(stones[count - 1].left);
        stones.copy_within(count..usize::from(header.stone_count), 0);
        header.stone_count -= count as u8;
    }

    /// Brings a row up to date and notes what changed. `max_step` is the greatest step since the last look per axis.
    #[inline]
    pub(super) fn update(&mut self, index: u32, now: Tick, slot: u8, record: &EntityRecord, max_step: u32) {
        let row = &mut self.rows[index as usize][usize::from(slot)];
        let before = row.record;
        let after = record;
        if before == *after {
            return;
        }
        let differs = [
            before.position != after.position,
            before.rotation != after.rotation,
            before.animation != after.animation,
            before.state != after.state,
            before.velocity != after.velocity,
            before.vitals != after.vitals,
        ];
        for (changed, differs) in row.changed.iter_mut().zip(differs) {
            *changed = if differs { now } else { *changed };
        }
        if before.position.z != after.position.z {
            row.height_changed = now;
        }
        let distance = before.position.max_axis_distance(after.position);
        if distance > 2 * max_step {
            row.teleported = now;
        } else if distance > max_step {
            row.hurried = now;
        }
        row.record = *after;
        self.headers[index as usize].last_change = now;
    }
}

const NO_STONE: Stone = Stone { id: EntityId::NONE, left: 0, destination: None };

#[cfg(test)]
mod tests {
    use super::*;

    fn record(index: u32, x: i32) -> EntityRecord {
        EntityRecord {
            id: EntityId::new(index, 0),
            position: LatticePosition { x, y: 0, z: 0 },
            ..NOBODY.record
        }
    }

    fn open_page() -> Pages {
        let mut pages = Pages::default();
        assert_eq!(pages.open(None, 1, PageId { cell: CellId(3), number: 0 }), 0);
        pages
    }

    #[test]
    fn changes_are_noted_by_group() {
        let mut pages = open_page();
        let last_change = |pages: &Pages| pages.header(0).unwrap().last_change;
        pages.enter(0, 2, 0, &record(0, 10));
        pages.update(0, 3, 0, &record(0, 10), 5);
        assert_eq!(last_change(&pages), 2, "nothing changed");
        pages.update(0, 4, 0, &record(0, 15), 5);
        let row = *pages.page(0).row(0);
        assert_eq!((row.changed, row.hurried), ([4, 2, 2, 2, 2, 2], 2));
        pages.update(0, 5, 0, &record(0, 25), 5);
        let row = *pages.page(0).row(0);
        assert_eq!((row.hurried, row.teleported), (5, 2));
        pages.update(0, 6, 0, &record(0, 36), 5);
        assert_eq!((pages.page(0).row(0).teleported, last_change(&pages)), (6, 6));
    }

    #[test]
    fn an_evicted_tombstone_raises_the_floor() {
        let mut pages = open_page();
        for index in 0..=PAGE_TOMBSTONES as u32 {
            pages.enter(0, 10 + index, 0, &record(index, 0));
            pages.leave(0, 10 + index, 0, None);
        }
        let floor = |pages: &Pages| (pages.header(0).unwrap().floor, pages.page(0).stones().len());
        assert_eq!(floor(&pages), (10, PAGE_TOMBSTONES));
        pages.expire_tombstones(0, 12 + TOMBSTONE_TICKS);
        assert_eq!(floor(&pages), (11, PAGE_TOMBSTONES - 1));
    }

    #[test]
    fn slots_are_stable_and_the_lowest_free_one_is_next() {
        let mut pages = open_page();
        for slot in 0..PAGE_SLOTS as u8 {
            assert_eq!(pages.free_slot(0), Some(slot));
            pages.enter(0, 2, slot, &record(slot.into(), 0));
        }
        assert_eq!(pages.free_slot(0), None);
        pages.leave(0, 3, 9, None);
        pages.leave(0, 4, 7, None);
        assert_eq!(pages.free_slot(0), Some(7));
        assert_eq!(pages.page(0).rows().count(), PAGE_SLOTS - 2);
    }

    #[test]
    fn copies_follow_every_change() {
        let mut pages = open_page();
        let mut copy = Pages::default();
        pages.enter(0, 2, 5, &record(5, 1));
        copy.copy_from(&pages);
        assert_eq!(copy.page(0).row(5).record, pages.page(0).row(5).record);
        pages.update(0, 3, 5, &record(5, 2), 9);
        copy.copy_from(&pages);
        assert_eq!(copy.page(0).row(5).record.position.x, 2);
        pages.leave(0, 4, 5, None);
        copy.copy_from(&pages);
        assert_eq!((copy.page(0).occupied(), copy.page(0).stones().len()), (0, 1));
        pages.expire_tombstones(0, 5 + TOMBSTONE_TICKS);
        copy.copy_from(&pages);
        assert_eq!((copy.header(0).unwrap().floor, copy.page(0).stones().len()), (4, 0));
        // Two that left in the same tick and expire one after the other leave the floor as it is.
        pages.enter(0, 2_000, 1, &record(6, 1));
        pages.enter(0, 2_000, 2, &record(7, 1));
        pages.leave(0, 2_001, 1, None);
        pages.leave(0, 2_001, 2, None);
        pages.enter(0, 2_002, 1, &record(8, 1));
        pages.leave(0, 2_003, 1, None);
        pages.evict_stones(0, 1);
        copy.copy_from(&pages);
        pages.evict_stones(0, 1);
        copy.copy_from(&pages);
        let left = |pages: &Pages| pages.page(0).stones().iter().map(|stone| stone.id).collect::<Vec<_>>();
        assert_eq!(left(&copy), left(&pages));
        pages.close(0);
        copy.copy_from(&pages);
        assert_eq!(copy.iter().count(), 0);
    }
}
