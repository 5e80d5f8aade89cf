//! Interest: where everybody is, in layers of cells, and what everybody sees of it, in pages of stable slots.
//!
//! A **layer** groups the entity types that are seen equally far and has a grid of its own. A **cell** of the
//! grid holds **pages** of 24 slots; an entity keeps its slot for as long as it is in the cell. A page's rows
//! are the quantized truth: what viewers are compared with, and what is copied into frames.

mod cells;
mod layer;
mod page;
mod private;

pub use cells::CellTable;
pub(crate) use layer::storey_cm;
pub use layer::{Layer, Layers};
pub use page::{Page, PageHeader, Pages, Row, Stone};

use shadowland_wire::block::{CellId, EntityRecord, PageId};
use shadowland_wire::entity::{EntityId, EntityType};
use shadowland_wire::limits::PAGES_PER_CELL;

use crate::columns::indices_for;
use crate::config::MAX_LAYERS;
use crate::{Tick, WorldConfig};

/// How long a tombstone is kept at least, in ticks: 17 s, longer than a client is usually waited for.
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
    pages: Pages,
    free_pages: Vec<u32>,
    /// Pages of each layer.
    pages_of_layer: [u32; MAX_LAYERS],
    places: Vec<Option<Place>>,
    hidden: private::Hidden,
    /// The cells that are crowds, in the order in which they became so.
    crowds: Vec<CellId>,
    crowd_entities: u32,
    /// Where the search for pages to release goes on.
    sweep: u32,
}

impl Interest {
    /// An empty world.
    #[must_use]
    pub fn new(config: &WorldConfig) -> Self {
        let layers = Layers::new(config);
        let (entities, players) = (config.entity_capacity, config.player_capacity);
        let places = indices_for(entities, players);
        // Memory that is not used is not touched. More is needed only where many cells were left lately.
        let pages = layers.pages_for(entities + entities / 4);
        Self {
            layers,
            cells: CellTable::default(),
            pages: Pages::with_capacity(pages),
            free_pages: Vec::with_capacity(pages),
            pages_of_layer: [0; MAX_LAYERS],
            places: vec![None; places],
            hidden: private::Hidden::new(places, players),
            crowds: Vec::new(),
            crowd_entities: config.crowd_entities as u32,
            sweep: 0,
        }
    }

    /// The layers.
    #[must_use]
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// Bit per layer that has pages: what nobody is in need not be looked at.
    #[must_use]
    pub fn used_layers(&self) -> u8 {
        let used = (0..).zip(&self.pages_of_layer).map(|(number, pages)| u8::from(*pages > 0) << number);
        used.fold(0, |all, layer| all | layer)
    }

    /// First page of every cell that has pages.
    #[must_use]
    pub fn cells(&self) -> &CellTable {
        &self.cells
    }

    /// All pages.
    #[must_use]
    pub fn pages(&self) -> &Pages {
        &self.pages
    }

    /// The cells that are crowds.
    #[must_use]
    pub fn crowds(&self) -> &[CellId] {
        &self.crowds
    }

    /// Fetches into the cache what [`Interest::update`] needs of the entity at an index, if there is one.
    #[inline]
    pub(crate) fn prefetch(&self, index: usize) {
        if let Some(&Some(Place { page, slot })) = self.places.get(index) {
            self.pages.prefetch(page, slot);
        }
    }

    /// Whether an entity is looked at in this tick: those in one cell all at the same time.
    #[inline]
    pub(crate) fn has_turn(&self, now: Tick, id: EntityId, kind: EntityType) -> bool {
        let period = self.layers.look_period(kind);
        if period == 1 {
            return true;
        }
        let Some(place) = self.places[id.index()] else { return true };
        let cell = self.pages.page(place.page).id().cell;
        now.wrapping_add(cell.0).is_multiple_of(period)
    }

    /// Brings an entity's row up to date at the end of a tick: it enters, changes, or goes to another cell. A cell in
    /// which a hundred thousand stand already shows no more of them.
    pub fn update(&mut self, now: Tick, record: &EntityRecord) {
        let index = record.id.index();
        let layer = self.layers.of(record.kind);
        if let Some(place) = self.places[index] {
            let from = self.pages.page(place.page).id();
            if layer.stays(from.cell, record.position) {
                let max_step = layer.max_step() * self.layers.look_period(record.kind);
                self.pages.update(place.page, now, place.slot, record, max_step);
                return;
            }
            let to = self.free_place(now, layer.cell_at(record.position));
            let destination = to.map(|to| self.pages.page(to.page).id());
            self.pages.leave(place.page, now, place.slot, destination);
            self.count(from.cell, -1);
            self.places[index] = to;
        } else {
            self.places[index] = self.free_place(now, layer.cell_at(record.position));
        }
        if let Some(place) = self.places[index] {
            self.pages.enter(place.page, now, place.slot, record);
            self.count(self.pages.page(place.page).id().cell, 1);
        }
    }

    /// Takes an entity out of everybody's sight.
    pub fn remove(&mut self, now: Tick, id: EntityId) {
        self.remove_from_grid(now, id);
        self.reveal(now, id);
    }

    fn remove_from_grid(&mut self, now: Tick, id: EntityId) {
        if let Some(place) = self.places[id.index()].take() {
            self.pages.leave(place.page, now, place.slot, None);
            self.count(self.pages.page(place.page).id().cell, -1);
        }
    }

    /// Lets tombstones expire and releases pages that have been empty for long, a few pages a tick.
    pub fn maintain(&mut self, now: Tick) {
        // Every page comes by at least once in half of a tombstone's life.
        let count = self.pages.len().div_ceil(TOMBSTONE_TICKS as usize / 2);
        for _ in 0..count {
            self.sweep = (self.sweep + 1) % self.pages.len() as u32;
            let Some(&header) = self.pages.header(self.sweep).filter(|header| !header.is_free()) else {
                continue;
            };
            self.pages.expire_tombstones(self.sweep, now);
            if header.is_releasable(now) {
                self.release_tail(now, header.id.cell);
            }
        }
    }

    /// Notes that somebody came into a cell or left it. A cell becomes a crowd when it has so many members as the
    /// configuration says, and is one until it has less than three quarters of that.
    fn count(&mut self, cell: CellId, by: i32) {
        let first = self.cells.get(cell);
        let (members, crowded) = self.pages.count_member(first, by);
        let limit = self.crowd_entities;
        let is_crowd = if crowded { members >= limit - limit / 4 } else { members >= limit };
        if is_crowd == crowded {
            return;
        }
        if is_crowd {
            self.crowds.push(cell);
        } else {
            self.crowds.retain(|crowd| *crowd != cell);
        }
        let mut page = first;
        while let Some(&PageHeader { next, .. }) = self.pages.header(page) {
            self.pages.set_crowded(page, is_crowd);
            page = next;
        }
    }

    /// A free slot of the cell, in a new page if need be; `None` when it has all the pages that it can have.
    fn free_place(&mut self, now: Tick, cell: CellId) -> Option<Place> {
        let mut last = NO_PAGE;
        let mut number = 0;
        let mut next = self.cells.get(cell);
        while let Some(header) = self.pages.header(next) {
            if let Some(slot) = self.pages.free_slot(next) {
                return Some(Place { page: next, slot });
            }
            last = next;
            next = header.next;
            number += 1;
        }
        if number == PAGES_PER_CELL {
            return None;
        }
        let id = PageId { cell, number: number as u16 };
        let new = self.pages.open(self.free_pages.pop(), now, id);
        if let Some(layer) = self.layers.number_of(cell) {
            self.pages_of_layer[layer] += 1;
        }
        if let Some(&PageHeader { crowded, .. }) = self.pages.header(last) {
            self.pages.set_next(last, new);
            self.pages.set_crowded(new, crowded);
        } else {
            self.cells.insert(cell, new);
        }
        Some(Place { page: new, slot: 0 })
    }

    /// Releases the last page of a cell if it has been empty for long. Only the last one goes, so that the
    /// pages of a cell are always numbered from 0 without gaps.
    fn release_tail(&mut self, now: Tick, cell: CellId) {
        let mut before = NO_PAGE;
        let mut last = self.cells.get(cell);
        while let Some(header) = self.pages.header(last).filter(|header| header.next != NO_PAGE) {
            before = last;
            last = header.next;
        }
        if !self.pages.header(last).is_some_and(|header| header.is_releasable(now)) {
            return;
        }
        self.pages.close(last);
        if let Some(layer) = self.layers.number_of(cell) {
            self.pages_of_layer[layer] -= 1;
        }
        self.free_pages.push(last);
        if before == NO_PAGE {
            self.cells.remove(cell);
        } else {
            self.pages.set_next(before, NO_PAGE);
        }
    }
}
