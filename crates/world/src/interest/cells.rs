//! Which cells have pages: an open-addressing table from cell number to first page.
//!
//! A frame carries a copy, so the table is one flat array that is copied only when it changed. Lookups take
//! one or two probes: the table is at most half full.

use shadowland_wire::block::CellId;

use super::NO_PAGE;

/// Cell number to the index of the cell's first page.
#[derive(Debug, Clone)]
pub struct CellTable {
    /// Key (cell number + 1, 0 = empty) and page; a power of two of them.
    slots: Vec<(u32, u32)>,
    used: usize,
    /// Counts the changes.
    version: u64,
}

impl Default for CellTable {
    fn default() -> Self {
        Self { slots: vec![(0, NO_PAGE); 64], used: 0, version: 0 }
    }
}

impl CellTable {
    /// The first page of a cell, or [`NO_PAGE`].
    #[must_use]
    #[inline]
    pub fn get(&self, cell: CellId) -> u32 {
        let (key, page) = self.slots[self.find(cell.0 + 1)];
        if key == 0 { NO_PAGE } else { page }
    }

    /// Counts the changes.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Every cell that has pages, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (CellId, u32)> + '_ {
        self.slots.iter().filter(|slot| slot.0 != 0).map(|&(key, page)| (CellId(key - 1), page))
    }

    pub(super) fn insert(&mut self, cell: CellId, page: u32) {
        if (self.used + 1) * 2 > self.slots.len() {
            self.grow();
        }
        let at = self.find(cell.0 + 1);
        self.used += usize::from(self.slots[at].0 == 0);
        self.slots[at] = (cell.0 + 1, page);
        self.version += 1;
    }

    pub(super) fn remove(&mut self, cell: CellId) {
        let mut hole = self.find(cell.0 + 1);
        if self.slots[hole].0 == 0 {
            return;
        }
        self.version += 1;
        self.used -= 1;
        // Those behind the hole that could stand in it move up, so that no search ends too early.
        let mask = self.slots.len() - 1;
        let mut at = hole;
        loop {
            self.slots[hole] = (0, NO_PAGE);
            loop {
                at = (at + 1) & mask;
                let key = self.slots[at].0;
                if key == 0 {
                    return;
                }
                let home = self.home(key);
                let distance_from_home = at.wrapping_sub(home) & mask;
                let distance_from_hole = at.wrapping_sub(hole) & mask;
                if distance_from_home >= distance_from_hole {
                    break;
                }
            }
            self.slots[hole] = self.slots[at];
            hole = at;
        }
    }

    /// Becomes a copy of `other`, for free when nothing changed there since the last time.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        if self.version != other.version || self.slots.len() != other.slots.len() {
            self.slots.clone_from(&other.slots);
            self.used = other.used;
            self.version = other.version;
        }
    }

    fn grow(&mut self) {
        let bigger = vec![(0, NO_PAGE); self.slots.len() * 2];
        let old = std::mem::replace(&mut self.slots, bigger);
        for (key, page) in old.into_iter().filter(|slot| slot.0 != 0) {
            let at = self.find(key);
            self.slots[at] = (key, page);
        }
    }

    /// The slot of a key, or the empty one where it would stand.
    #[inline]
    fn find(&self, key: u32) -> usize {
        let mut at = self.home(key);
        while self.slots[at].0 != key && self.slots[at].0 != 0 {
            at = (at + 1) & (self.slots.len() - 1);
        }
        at
    }

    /// Fibonacci hashing: neighbouring cells are spread over the table.
    #[inline]
    fn home(&self, key: u32) -> usize {
        let bits = self.slots.len().trailing_zeros();
        (key.wrapping_mul(0x9e37_79b9) >> (32 - bits)) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_table_is_a_map(steps in proptest::collection::vec((any::<bool>(), 0u32..200, 0u32..1000), 0..600)) {
            let mut table = CellTable::default();
            let mut copy = CellTable::default();
            let mut model = BTreeMap::new();
            for (add, cell, page) in steps {
                if add {
                    table.insert(CellId(cell), page);
                    model.insert(cell, page);
                } else {
                    table.remove(CellId(cell));
                    model.remove(&cell);
                }
                copy.copy_from(&table);
            }
            for cell in 0..200 {
                let expected = model.get(&cell).copied().unwrap_or(NO_PAGE);
                prop_assert_eq!(table.get(CellId(cell)), expected);
                prop_assert_eq!(copy.get(CellId(cell)), expected);
            }
            let mut all: Vec<_> = table.iter().map(|(cell, page)| (cell.0, page)).collect();
            all.sort_unstable();
            prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
        }
    }
}
