//! Which cells a viewer sees, and what it has applied of their pages.

use shadowland_wire::block::{CellId, PageId};
use shadowland_wire::lattice::LatticePosition;
use shadowland_wire::limits::CLOSES_PER_SNAPSHOT;
use shadowland_wire::message::server::Close;

use super::Frame;
use crate::Tick;
use crate::interest::{Layer, TOMBSTONE_TICKS};

/// A viewer may move by this part of a cell's edge before its subscriptions are computed again; they reach
/// farther by as much, so that they always cover the interest distance.
const SLACK_PER_EDGE: f64 = 1.0 / 16.0;
/// A cell is dropped only when it is farther away than one that would be added, by this part of its edge.
const HYSTERESIS_PER_EDGE: f64 = 1.0 / 8.0;

const NO_ENTRY: u16 = u16::MAX;

/// A cell that the viewer sees.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cell {
    pub(super) id: CellId,
    /// Updates come every tick.
    pub(super) near: bool,
    squared_distance: f64,
    /// Entries of its pages, by number.
    first_entry: u16,
    /// A block of it was sent, so that it has to be closed.
    sent: bool,
}

/// What the viewer has of one page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    next: u16,
    /// Packets that show an earlier tick were about another page.
    opened: Tick,
    /// The tick up to which the viewer is known to have applied the page; 0 = nothing.
    pub(super) baseline: Tick,
    /// The tick of the last block that was sent; 0 = none.
    pub(super) sent: Tick,
    /// Since when a block is due that did not fit; 0 = none is.
    pub(super) waiting_since: Tick,
}

/// A cell that could be seen; scratch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    cell: CellId,
    squared_distance: f64,
}

#[derive(Debug, Clone, Copy)]
struct PendingClose {
    cell: CellId,
    tick: Tick,
}

/// The subscriptions of one viewer.
#[derive(Debug)]
pub(super) struct Subscriptions {
    /// Nearest first.
    cells: Vec<Cell>,
    entries: Vec<Entry>,
    free_entry: u16,
    closes: Vec<PendingClose>,
    /// Where the viewer was when the cells were computed.
    anchor: Option<LatticePosition>,
}

impl Subscriptions {
    pub(super) fn new() -> Self {
        Self {
            cells: Vec::new(),
            entries: Vec::new(),
            free_entry: NO_ENTRY,
            closes: Vec::with_capacity(CLOSES_PER_SNAPSHOT),
            anchor: None,
        }
    }

    /// The cells, nearest first.
    pub(super) fn cells(&self) -> &[Cell] {
        &self.cells
    }

    pub(super) fn entry_mut(&mut self, entry: u16) -> &mut Entry {
        &mut self.entries[usize::from(entry)]
    }

    pub(super) fn closes(&self, now: Tick) -> impl ExactSizeIterator<Item = Close> + '_ {
        self.closes.iter().map(move |close| Close { cell: close.cell, age: now - close.tick })
    }

    /// Follows the viewer: adds the cells that came into its sight and closes those that left it.
    pub(super) fn follow(&mut self, frame: &Frame, position: LatticePosition, wanted: &mut Vec<Wanted>) {
        let layers = frame.layers().all();
        let slack = layers.iter().map(slack_of).fold(f64::INFINITY, f64::min);
        let moved = |anchor: LatticePosition| f64::from(anchor.max_axis_distance(position)) * 1.8 > slack;
        if !self.anchor.is_none_or(moved) {
            return;
        }
        wanted.clear();
        for layer in layers {
            let reach = f64::from(layer.distance()) + slack_of(layer);
            layer.cells_within(position, reach, |cell, squared_distance| {
                wanted.push(Wanted { cell, squared_distance });
            });
        }
        let complete = self.drop_far(frame, position);
        for want in wanted.iter() {
            if !self.cells.iter().any(|cell| cell.id == want.cell) {
                self.cells.push(Cell {
                    id: want.cell,
                    near: false,
                    squared_distance: want.squared_distance,
                    first_entry: NO_ENTRY,
                    sent: false,
                });
            }
        }
        for cell in &mut self.cells {
            let near = f64::from(frame.layers().of_cell(cell.id).distance()) * frame.near_share();
            cell.near = cell.squared_distance <= near * near;
        }
        self.cells
            .sort_unstable_by(|a, b| a.squared_distance.total_cmp(&b.squared_distance).then(a.id.cmp(&b.id)));
        // What could not be closed now is tried again in the next tick.
        self.anchor = complete.then_some(position);
    }

    /// Drops the cells that are out of sight; `false` when some had to stay because too many closes are
    /// unconfirmed.
    fn drop_far(&mut self, frame: &Frame, position: LatticePosition) -> bool {
        let now = frame.tick();
        let mut complete = true;
        let mut index = 0;
        while index < self.cells.len() {
            let cell = &mut self.cells[index];
            let layer = frame.layers().of_cell(cell.id);
            cell.squared_distance = layer.squared_distance_to(cell.id, position);
            let edge = f64::from(layer.cell_edge());
            let limit = f64::from(layer.distance()) + slack_of(layer) + edge * HYSTERESIS_PER_EDGE;
            if cell.squared_distance <= limit * limit {
                index += 1;
            } else if self.close(index, now) {
                self.cells.swap_remove(index);
            } else {
                complete = false;
                index += 1;
            }
        }
        complete
    }

    /// Gives up what is known of a cell; `false` when it must be closed and there is no room for it.
    fn close(&mut self, index: usize, now: Tick) -> bool {
        let Cell { id, first_entry, sent, .. } = self.cells[index];
        if sent {
            self.closes.retain(|close| close.cell != id);
            if self.closes.len() == CLOSES_PER_SNAPSHOT {
                return false;
            }
            self.closes.push(PendingClose { cell: id, tick: now });
        }
        self.free_chain(first_entry);
        self.cells[index].first_entry = NO_ENTRY;
        self.cells[index].sent = false;
        true
    }

    /// The entry of a cell's page, made if it is new. `before` is the entry of the page before it.
    pub(super) fn entry_of(&mut self, cell: usize, before: Option<u16>, now: Tick) -> u16 {
        let found = match before {
            None => self.cells[cell].first_entry,
            Some(before) => self.entries[usize::from(before)].next,
        };
        if found != NO_ENTRY {
            return found;
        }
        let fresh = Entry { next: NO_ENTRY, opened: now, baseline: 0, sent: 0, waiting_since: 0 };
        let new = self.free_entry;
        let new = if new != NO_ENTRY {
            self.free_entry = self.entries[usize::from(new)].next;
            self.entries[usize::from(new)] = fresh;
            new
        } else {
            self.entries.push(fresh);
            (self.entries.len() - 1) as u16
        };
        match before {
            None => self.cells[cell].first_entry = new,
            Some(before) => self.entries[usize::from(before)].next = new,
        }
        new
    }

    /// Whether another entry fits the numbers of entries.
    pub(super) fn has_room(&self) -> bool {
        self.free_entry != NO_ENTRY || self.entries.len() < usize::from(NO_ENTRY)
    }

    /// Forgets the entries behind `last`, whose pages the world has released. A page is released when it has
    /// been empty for as long as a tombstone lives; a viewer whose baseline is younger knows that already, and
    /// for any other the cell starts from scratch.
    pub(super) fn truncate(&mut self, cell: usize, last: Option<u16>, now: Tick) {
        let rest = match last {
            None => self.cells[cell].first_entry,
            Some(last) => self.entries[usize::from(last)].next,
        };
        if rest == NO_ENTRY {
            return;
        }
        let mut at = rest;
        while at != NO_ENTRY {
            let entry = self.entries[usize::from(at)];
            let knows = entry.baseline != 0 && now - entry.baseline < TOMBSTONE_TICKS;
            if entry.sent != 0 && !knows {
                self.close(cell, now);
                return;
            }
            at = entry.next;
        }
        match last {
            None => self.cells[cell].first_entry = NO_ENTRY,
            Some(last) => self.entries[usize::from(last)].next = NO_ENTRY,
        }
        self.free_chain(rest);
    }

    /// Notes that a block of this entry was written.
    pub(super) fn note_sent(&mut self, cell: usize, entry: u16, now: Tick) {
        self.cells[cell].sent = true;
        let entry = self.entry_mut(entry);
        entry.sent = now;
        entry.waiting_since = 0;
    }

    /// The viewer has applied a packet that showed `tick` and carried this entry's page.
    pub(super) fn applied(&mut self, entry: u16, tick: Tick) {
        let entry = self.entry_mut(entry);
        if tick >= entry.opened {
            entry.baseline = entry.baseline.max(tick);
        }
    }

    /// The viewer has applied all closes up to a tick.
    pub(super) fn closes_applied(&mut self, tick: Tick) {
        self.closes.retain(|close| close.tick > tick);
    }

    /// The viewer could not apply a page: what was sent so far counts for nothing.
    pub(super) fn reset(&mut self, page: PageId, now: Tick) {
        let Some(cell) = self.cells.iter().find(|cell| cell.id == page.cell) else { return };
        let mut at = cell.first_entry;
        for _ in 0..page.number {
            if at == NO_ENTRY {
                return;
            }
            at = self.entries[usize::from(at)].next;
        }
        if at != NO_ENTRY {
            let entry = self.entry_mut(at);
            *entry = Entry { opened: now + 1, baseline: 0, sent: 0, ..*entry };
        }
    }

    fn free_chain(&mut self, first: u16) {
        let mut at = first;
        while at != NO_ENTRY {
            let next = self.entries[usize::from(at)].next;
            // No packet is later than this, so nothing will be acknowledged for a free entry.
            self.entries[usize::from(at)].opened = Tick::MAX;
            self.entries[usize::from(at)].next = self.free_entry;
            self.free_entry = at;
            at = next;
        }
    }
}

fn slack_of(layer: &Layer) -> f64 {
    f64::from(layer.cell_edge()) * SLACK_PER_EDGE
}
