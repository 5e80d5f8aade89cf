//! Interest: where everybody is, in layers of cells, and what everybody sees of it, in pages of stable slots.
//!
//! A **layer** groups the entity types that are seen equally far and has a grid of its own. A **cell** of the
//! grid holds **pages** of 24 slots; an entity keeps its slot for as long as it is in the cell. A page's rows
//! are the quantized truth: what viewers are compared with, and what is copied into frames.

mod cells;
mod layer;
mod page;

pub use cells::CellTable;
pub use layer::{Layer, Layers};
pub use page::{Page, Row, Stone};

use shadowland_wire::block::{EntityRecord, PageId};
use shadowland_wire::entity::EntityId;
use shadowland_wire::limits::{PAGE_SLOTS, PAGES_PER_CELL};

use crate::{Tick, WorldConfig};

/// How long a tombstone lives at most, in ticks: longer than a session without an answer does (15 s).
pub const TOMBSTONE_TICKS: Tick = 1024;
/// No page: the end of a chain.
pub const NO_PAGE: u32 = u32::MAX;

/// Where an entity stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    page: u32,
    slot: u8,
}

/// The pages of all layers, and the entities' places in them.
#[derive(Debug)]
pub struct Interest {
    layers: Layers,
    cells: CellTable,
    pages: Vec<Page>,
    free_pages: Vec<u32>,
    places: Vec<Option<Place>>,
    /// Where the search for pages to release goes on.
    sweep: usize,
}

impl Interest {
    /// An empty world.
    #[must_use]
    pub fn new(config: &WorldConfig) -> Self {
        Self {
            layers: Layers::new(config),
            cells: CellTable::default(),
            pages: Vec::new(),
            free_pages: Vec::new(),
            places: vec![None; config.entity_capacity],
            sweep: 0,
        }
    }

    /// The layers.
    #[must_use]
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// First page of every cell that has pages.
    #[must_use]
    pub fn cells(&self) -> &CellTable {
        &self.cells
    }

    /// All pages, those without a cell included.
    #[must_use]
    pub fn pages(&self) -> &[Page] {
        &self.pages
    }

    /// Brings an entity's row up to date at the end of a tick: it enters, changes, or goes to another cell.
    pub fn update(&mut self, now: Tick, record: &EntityRecord) {
        let index = record.id.index();
        if let Some(place) = self.places[index] {
            let layer = self.layers.of(record.kind);
            let page = &mut self.pages[place.page as usize];
            if layer.stays(page.id().cell, record.position) {
                page.update(now, place.slot, record, layer.max_step());
                return;
            }
            let cell = layer.cell_at(record.position);
            let (to, slot) = self.free_slot(now, cell);
            let destination = self.pages[to as usize].id();
            self.pages[place.page as usize].leave(now, place.slot, Some(destination));
            self.pages[to as usize].enter(now, slot, record);
            self.places[index] = Some(Place { page: to, slot });
        } else {
            let cell = self.layers.of(record.kind).cell_at(record.position);
            let (page, slot) = self.free_slot(now, cell);
            self.pages[page as usize].enter(now, slot, record);
            self.places[index] = Some(Place { page, slot });
        }
    }

    /// Takes an entity out of everybody's sight.
    pub fn remove(&mut self, now: Tick, id: EntityId) {
        if let Some(place) = self.places[id.index()].take() {
            self.pages[place.page as usize].leave(now, place.slot, None);
        }
    }

    /// Lets tombstones expire and releases pages that have been empty for long, a few pages a tick.
    pub fn maintain(&mut self, now: Tick) {
        // Every page comes by at least once in half of a tombstone's life.
        let count = self.pages.len().div_ceil(TOMBSTONE_TICKS as usize / 2);
        for _ in 0..count {
            self.sweep = (self.sweep + 1) % self.pages.len();
            let page = &mut self.pages[self.sweep];
            if page.is_free() {
                continue;
            }
            page.expire_tombstones(now);
            if page.is_releasable(now) {
                self.release_tail(now, self.pages[self.sweep].id().cell);
            }
        }
    }

    /// A free slot of the cell, in a new page if need be.
    fn free_slot(&mut self, now: Tick, cell: shadowland_wire::block::CellId) -> (u32, u8) {
        let mut last = NO_PAGE;
        let mut next = self.cells.get(cell);
        let mut number = 0;
        while next != NO_PAGE {
            let page = &self.pages[next as usize];
            if let Some(slot) = page.free_slot() {
                return (next, slot);
            }
            last = next;
            next = page.next();
            number += 1;
        }
        // An entity capacity of 2^20 and pages of 24 keep well below the limit in any but a degenerate map.
        assert!(
            number < PAGES_PER_CELL,
            "a cell holds at most {} entities",
            PAGES_PER_CELL as usize * PAGE_SLOTS
        );
        let id = PageId { cell, number: number as u16 };
        let new = match self.free_pages.pop() {
            Some(free) => free,
            None => {
                self.pages.push(Page::default());
                self.pages.len() as u32 - 1
            }
        };
        self.pages[new as usize].open(now, id);
        if last == NO_PAGE {
            self.cells.insert(cell, new);
        } else {
            self.pages[last as usize].set_next(new);
        }
        (new, 0)
    }

    /// Releases the last page of a cell if it has been empty for long. Only the last one goes, so that the
    /// pages of a cell are always numbered from 0 without gaps.
    fn release_tail(&mut self, now: Tick, cell: shadowland_wire::block::CellId) {
        let mut before = NO_PAGE;
        let mut last = self.cells.get(cell);
        while last != NO_PAGE && self.pages[last as usize].next() != NO_PAGE {
            before = last;
            last = self.pages[last as usize].next();
        }
        if last == NO_PAGE || !self.pages[last as usize].is_releasable(now) {
            return;
        }
        self.pages[last as usize].close();
        self.free_pages.push(last);
        if before == NO_PAGE {
            self.cells.remove(cell);
        } else {
            self.pages[before as usize].set_next(NO_PAGE);
        }
    }
}
