//! A page: 24 stable slots of a cell, the quantized state of who stands in them, and when each part of it
//! changed. Deltas, tombstones and baselines are per page.

use shadowland_wire::block::{CellId, EntityRecord, PageId, slots};
use shadowland_wire::entity::{EntityDelta, EntityId, EntityState, EntityType};
use shadowland_wire::lattice::LatticePosition;
use shadowland_wire::limits::{PAGE_SLOTS, PAGE_TOMBSTONES};
use shadowland_wire::quantize::{Rotation, Velocity, Vitals};

use super::{NO_PAGE, TOMBSTONE_TICKS};
use crate::Tick;

const ALL_SLOTS: u32 = (1 << PAGE_SLOTS) - 1;

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

/// A page of a cell. See the module's documentation.
#[derive(Debug, Clone)]
pub struct Page {
    id: PageId,
    /// Bit per slot.
    occupied: u32,
    /// The next page of the cell.
    next: u32,
    last_change: Tick,
    /// A baseline before this tick is no baseline: tombstones since then are missing.
    floor: Tick,
    /// Oldest first.
    stones: [Stone; PAGE_TOMBSTONES],
    stone_count: usize,
    rows: [Row; PAGE_SLOTS],
}

/// The cell of pages that belong to none.
const NO_CELL: CellId = CellId(u32::MAX);

impl Default for Page {
    fn default() -> Self {
        Self {
            id: PageId { cell: NO_CELL, number: 0 },
            occupied: 0,
            next: NO_PAGE,
            last_change: 0,
            floor: 0,
            stones: [Stone { id: EntityId::NONE, left: 0, destination: None }; PAGE_TOMBSTONES],
            stone_count: 0,
            rows: [NOBODY; PAGE_SLOTS],
        }
    }
}

impl Page {
    /// Which page this is.
    #[must_use]
    #[inline]
    pub fn id(&self) -> PageId {
        self.id
    }

    /// Whether it belongs to no cell.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.id.cell == NO_CELL
    }

    /// Bit per slot in which somebody stands.
    #[must_use]
    #[inline]
    pub fn occupied(&self) -> u32 {
        self.occupied
    }

    /// Index of the cell's next page, or [`NO_PAGE`].
    #[must_use]
    #[inline]
    pub fn next(&self) -> u32 {
        self.next
    }

    /// The tick of its last change of any kind.
    #[must_use]
    #[inline]
    pub fn last_change(&self) -> Tick {
        self.last_change
    }

    /// The oldest tick that can be a baseline.
    #[must_use]
    #[inline]
    pub fn floor(&self) -> Tick {
        self.floor
    }

    /// The row of an occupied slot.
    #[must_use]
    #[inline]
    pub fn row(&self, slot: usize) -> &Row {
        &self.rows[slot]
    }

    /// The rows of all occupied slots.
    pub fn rows(&self) -> impl Iterator<Item = &Row> + '_ {
        slots(self.occupied).map(|slot| &self.rows[slot])
    }

    /// Who left lately, oldest first.
    #[must_use]
    pub fn stones(&self) -> &[Stone] {
        &self.stones[..self.stone_count]
    }

    /// Becomes a copy of `other`, for free when nothing changed there since the last time.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        self.next = other.next;
        if self.id == other.id && self.last_change == other.last_change {
            // Only tombstones may have expired.
            self.floor = other.floor;
            self.stone_count = other.stone_count;
            self.stones = other.stones;
            return;
        }
        self.id = other.id;
        self.occupied = other.occupied;
        self.last_change = other.last_change;
        self.floor = other.floor;
        self.stone_count = other.stone_count;
        self.stones[..other.stone_count].copy_from_slice(other.stones());
        for slot in slots(other.occupied) {
            self.rows[slot] = other.rows[slot];
        }
    }

    pub(super) fn open(&mut self, now: Tick, id: PageId) {
        debug_assert!(self.is_free() && self.occupied == 0);
        self.id = id;
        self.next = NO_PAGE;
        self.last_change = now;
        self.floor = now;
        self.stone_count = 0;
    }

    pub(super) fn close(&mut self) {
        self.id = PageId { cell: NO_CELL, number: 0 };
    }

    pub(super) fn set_next(&mut self, next: u32) {
        self.next = next;
    }

    pub(super) fn free_slot(&self) -> Option<u8> {
        let slot = (!self.occupied & ALL_SLOTS).trailing_zeros();
        ((slot as usize) < PAGE_SLOTS).then_some(slot as u8)
    }

    /// Nobody is in it, and nobody has been for so long that no tombstone can be owed to anybody.
    pub(super) fn is_releasable(&self, now: Tick) -> bool {
        self.occupied == 0 && now - self.last_change > TOMBSTONE_TICKS
    }

    pub(super) fn enter(&mut self, now: Tick, slot: u8, record: &EntityRecord) {
        self.rows[usize::from(slot)] = Row {
            record: *record,
            entered: now,
            changed: [now; EntityDelta::GROUPS],
            height_changed: now,
            hurried: now,
            teleported: now,
        };
        self.occupied |= 1 << slot;
        self.last_change = now;
    }

    pub(super) fn leave(&mut self, now: Tick, slot: u8, destination: Option<PageId>) {
        let id = self.rows[usize::from(slot)].record.id;
        self.occupied &= !(1 << slot);
        self.last_change = now;
        if self.stone_count == PAGE_TOMBSTONES {
            self.evict_stones(1);
        }
        self.stones[self.stone_count] = Stone { id, left: now, destination };
        self.stone_count += 1;
    }

    pub(super) fn expire_tombstones(&mut self, now: Tick) {
        let old = self.stones().iter().take_while(|stone| now - stone.left > TOMBSTONE_TICKS).count();
        if old > 0 {
            self.evict_stones(old);
        }
    }

    /// Forgets the oldest tombstones: who has not applied them yet needs the page from scratch.
    fn evict_stones(&mut self, count: usize) {
        self.floor = self.floor.max(self.stones[count - 1].left);
        self.stones.copy_within(count..self.stone_count, 0);
        self.stone_count -= count;
    }

    /// Brings the row up to date and notes what changed.
    #[inline]
    pub(super) fn update(&mut self, now: Tick, slot: u8, record: &EntityRecord, max_step: u32) {
        let row = &mut self.rows[usize::from(slot)];
        let before = row.record;
        let after = record;
        if before == *after {
            return;
        }
        let mut note = |group: usize, differs: bool| {
            if differs {
                row.changed[group] = now;
            }
        };
        note(0, before.position != after.position);
        note(1, before.rotation != after.rotation);
        note(2, before.animation != after.animation);
        note(3, before.state != after.state);
        note(4, before.velocity != after.velocity);
        note(5, before.vitals != after.vitals);
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
        self.last_change = now;
    }
}

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

    fn open_page() -> Page {
        let mut page = Page::default();
        page.open(1, PageId { cell: CellId(3), number: 0 });
        page
    }

    #[test]
    fn changes_are_noted_by_group() {
        let mut page = open_page();
        page.enter(2, 0, &record(0, 10));
        page.update(3, 0, &record(0, 10), 5);
        assert_eq!(page.last_change(), 2, "nothing changed");
        page.update(4, 0, &record(0, 15), 5);
        assert_eq!((page.row(0).changed, page.row(0).hurried), ([4, 2, 2, 2, 2, 2], 2));
        page.update(5, 0, &record(0, 25), 5);
        assert_eq!((page.row(0).hurried, page.row(0).teleported), (5, 2));
        page.update(6, 0, &record(0, 36), 5);
        assert_eq!((page.row(0).teleported, page.last_change()), (6, 6));
    }

    #[test]
    fn an_evicted_tombstone_raises_the_floor() {
        let mut page = open_page();
        for index in 0..=PAGE_TOMBSTONES as u32 {
            page.enter(10 + index, 0, &record(index, 0));
            page.leave(10 + index, 0, None);
        }
        assert_eq!(page.stones().len(), PAGE_TOMBSTONES);
        assert_eq!(page.floor(), 10);
        page.expire_tombstones(12 + TOMBSTONE_TICKS);
        assert_eq!((page.floor(), page.stones().len()), (11, PAGE_TOMBSTONES - 1));
    }

    #[test]
    fn slots_are_stable_and_the_lowest_free_one_is_next() {
        let mut page = open_page();
        for slot in 0..PAGE_SLOTS as u8 {
            assert_eq!(page.free_slot(), Some(slot));
            page.enter(2, slot, &record(slot.into(), 0));
        }
        assert_eq!(page.free_slot(), None);
        page.leave(3, 7, None);
        assert_eq!(page.free_slot(), Some(7));
        assert_eq!(page.rows().count(), PAGE_SLOTS - 1);
    }

    #[test]
    fn copies_follow_every_change() {
        let mut page = open_page();
        let mut copy = Page::default();
        page.enter(2, 5, &record(5, 1));
        copy.copy_from(&page);
        assert_eq!(copy.row(5).record, page.row(5).record);
        page.update(3, 5, &record(5, 2), 9);
        copy.copy_from(&page);
        assert_eq!(copy.row(5).record.position.x, 2);
        page.leave(4, 5, None);
        copy.copy_from(&page);
        assert_eq!((copy.occupied(), copy.stones().len()), (0, 1));
    }
}
