//! Which pages a viewer gets, and what it has applied of them.

use shadowland_wire::block::{CellId, PageId};
use shadowland_wire::lattice::LatticePosition;
use shadowland_wire::limits::CLOSES_PER_SNAPSHOT;
use shadowland_wire::message::server::Close;

use super::{Encoder, Frame};
use crate::Tick;
use crate::interest::{Layer, NO_PAGE, PageHeader, TOMBSTONE_TICKS};

/// A viewer may move by this part of a cell's edge before its subscriptions are computed again; they reach
/// farther by as much, so that they always cover the interest distance.
const SLACK_PER_EDGE: f64 = 1.0 / 16.0;
/// A cell is dropped only when it is farther away than one that would be added, by this part of its edge.
const HYSTERESIS_PER_EDGE: f64 = 1.0 / 8.0;
/// Entries that a viewer can have.
const MAX_ENTRIES: usize = u16::MAX as usize;

/// What the viewer has of one page. Every cell that it sees has at least the entry of page 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) page: PageId,
    /// Where the page was in the last frame.
    page_index: u32,
    /// Packets that show an earlier tick were about another page.
    pub(super) opened: Tick,
    /// The tick up to which the viewer is known to have applied the page; 0 = nothing.
    pub(super) baseline: Tick,
    /// The tick of the last block that was sent; 0 = none.
    pub(super) sent: Tick,
    /// The tick of the last block that relied on no other.
    restarted: Tick,
    /// Since when a block is due that did not fit; 0 = none is.
    pub(super) waiting_since: Tick,
    /// The square of the cell's distance when subscriptions were computed, in steps.
    pub(super) squared_distance: f32,
    /// Updates come every tick.
    pub(super) near: bool,
    /// A block on which others relied is missing: the next one starts from the baseline.
    broken: bool,
    /// A block of the cell was sent, so that it has to be closed. Kept at page 0.
    cell_was_sent: bool,
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
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    /// Entries keep their index, by which packets refer to them.
    entries: Vec<Entry>,
    free: Vec<u16>,
    /// Entries in use, by page.
    order: Vec<u16>,
    closes: Vec<PendingClose>,
    /// Where the viewer was when the cells were computed.
    anchor: Option<LatticePosition>,
}

impl Entry {
    fn new(page: PageId, now: Tick, squared_distance: f32, near: bool) -> Self {
        Self {
            page,
            page_index: NO_PAGE,
            opened: now,
            baseline: 0,
            sent: 0,
            restarted: 0,
            waiting_since: 0,
            squared_distance,
            near,
            broken: false,
            cell_was_sent: false,
        }
    }

    /// Forgets what the viewer has of the page; nothing is sent of it before the next tick.
    fn reset(&mut self, now: Tick) {
        let cell_was_sent = self.cell_was_sent;
        *self = Self::new(self.page, now + 1, self.squared_distance, self.near);
        self.cell_was_sent = cell_was_sent;
    }

    /// The tick from which the next block can start: the last one that was sent, if it may be relied on though
    /// it is still on its way, else the baseline. `patience` is how long an answer takes.
    #[inline]
    pub(super) fn start(&self, now: Tick, patience: Tick, floor: Tick) -> Tick {
        let confirmed = if self.baseline < floor { 0 } else { self.baseline };
        let optimistic = confirmed != 0
            && self.sent > confirmed
            && !self.broken
            && now - confirmed <= patience.min(super::encoder::OPTIMISTIC_TICKS);
        if optimistic { self.sent } else { confirmed }
    }
}

impl Subscriptions {
    pub(super) fn order(&self) -> &[u16] {
        &self.order
    }

    #[inline]
    pub(super) fn entry(&self, entry: u16) -> &Entry {
        &self.entries[usize::from(entry)]
    }

    #[inline]
    pub(super) fn entry_mut(&mut self, entry: u16) -> &mut Entry {
        &mut self.entries[usize::from(entry)]
    }

    pub(super) fn cells(&self) -> impl Iterator<Item = CellId> + '_ {
        self.order
            .iter()
            .map(|&entry| self.entry(entry).page)
            .filter(|page| page.number == 0)
            .map(|page| page.cell)
    }

    pub(super) fn closes(&self, now: Tick) -> impl ExactSizeIterator<Item = Close> + '_ {
        self.closes.iter().map(move |close| Close { cell: close.cell, age: now - close.tick })
    }

    /// Follows the viewer: adds the cells that came into its sight and closes those that left it.
    pub(super) fn follow(&mut self, frame: &Frame, position: LatticePosition, scratch: &mut Encoder) {
        let layers = frame.layers().all();
        let slack = layers.iter().map(slack_of).fold(f64::INFINITY, f64::min);
        // The largest difference on an axis is at least 1 / sqrt(3) of the distance.
        let moved = |anchor: LatticePosition| f64::from(anchor.max_axis_distance(position)) * 1.8 > slack;
        if !self.anchor.is_none_or(moved) {
            return;
        }
        scratch.wanted.clear();
        for layer in layers {
            let reach = f64::from(layer.distance()) + slack_of(layer);
            layer.cells_within(position, reach, |cell, squared_distance| {
                scratch.wanted.push(Wanted { cell, squared_distance });
            });
        }
        let complete = self.merge(frame, position, &scratch.wanted, &mut scratch.order);
        // What could not be closed now is tried again in the next tick.
        self.anchor = complete.then_some(position);
    }

    /// Makes `order` the entries of the wanted cells, and of those that are not far enough to be dropped.
    /// `false` when some had to stay because too many closes are unconfirmed.
    fn merge(
        &mut self,
        frame: &Frame,
        position: LatticePosition,
        wanted: &[Wanted],
        order: &mut Vec<u16>,
    ) -> bool {
        let now = frame.tick();
        let mut complete = true;
        let mut wanted = wanted.iter().peekable();
        order.clear();
        let mut at = 0;
        // Both sides are ordered by cell.
        loop {
            let held = self.order.get(at).map(|&entry| self.entry(entry).page.cell);
            let want = wanted.peek().map(|want| want.cell);
            let cell = match (held, want) {
                (None, None) => break,
                (Some(held), Some(want)) => held.min(want),
                (Some(cell), None) | (None, Some(cell)) => cell,
            };
            let layer = frame.layers().of_cell(cell);
            let end = at
                + self.order[at..].iter().take_while(|&&entry| self.entry(entry).page.cell == cell).count();
            let want = wanted.next_if(|want| want.cell == cell);
            let squared =
                want.map_or_else(|| layer.squared_distance_to(cell, position), |want| want.squared_distance);
            let near = f64::from(layer.distance()) * frame.near_share();
            let near = squared <= near * near;
            if at == end {
                if let Some(new) = self.add(Entry::new(PageId { cell, number: 0 }, now, squared as f32, near))
                {
                    order.push(new);
                }
                continue;
            }
            let limit = f64::from(layer.distance())
                + slack_of(layer)
                + f64::from(layer.cell_edge()) * HYSTERESIS_PER_EDGE;
            let stays = want.is_some() || squared <= limit * limit;
            if !stays && self.close(at, now) {
                for index in at..end {
                    self.free_entry(self.order[index]);
                }
            } else {
                complete &= stays;
                for index in at..end {
                    let entry = self.order[index];
                    order.push(entry);
                    let entry = self.entry_mut(entry);
                    (entry.near, entry.squared_distance) = (near, squared as f32);
                }
            }
            at = end;
        }
        std::mem::swap(&mut self.order, order);
        complete
    }

    /// Finds the page of the entry at a place in the order. `before` is the header of the page before it, if that
    /// belongs to the same cell. Forgets the entry when the world has released the page, and adds one when the
    /// cell has another page behind it.
    #[inline]
    pub(super) fn locate<'f>(
        &mut self,
        at: usize,
        before: Option<&PageHeader>,
        frame: &'f Frame,
    ) -> Option<(u32, &'f PageHeader)> {
        let index = self.order[at];
        let Entry { page, page_index, near, squared_distance, .. } = *self.entry(index);
        let (page_index, header) = match frame.pages().header(page_index).filter(|header| header.id == page) {
            Some(header) => (page_index, header),
            None => {
                let found = match before {
                    _ if page.number == 0 => frame.first_page(page.cell),
                    Some(before) => before.next,
                    None => NO_PAGE,
                };
                let Some(header) = frame.pages().header(found) else {
                    self.released(at, frame.tick());
                    return None;
                };
                self.entry_mut(index).page_index = found;
                (found, header)
            }
        };
        if header.next != NO_PAGE {
            let behind = PageId { cell: page.cell, number: page.number + 1 };
            if self.order.get(at + 1).is_none_or(|&entry| self.entry(entry).page != behind)
                && let Some(new) = self.add(Entry::new(behind, frame.tick(), squared_distance, near))
            {
                self.order.insert(at + 1, new);
            }
        }
        Some((page_index, header))
    }

    /// The world has released the page. It had been empty for as long as a tombstone lives: a viewer whose
    /// baseline is younger knows that already, and for any other the cell starts from scratch.
    fn released(&mut self, at: usize, now: Tick) {
        let index = self.order[at];
        let entry = *self.entry(index);
        let knows = entry.baseline != 0 && now - entry.baseline < TOMBSTONE_TICKS;
        if entry.sent == 0 || knows {
            if entry.page.number == 0 {
                self.entry_mut(index).reset(now);
            } else {
                self.order.remove(at);
                self.free_entry(index);
            }
            return;
        }
        let cell = entry.page.cell;
        let first = self.order.partition_point(|&entry| self.entry(entry).page.cell < cell);
        if self.close(first, now) {
            for index in first..self.order.len() {
                let entry = self.order[index];
                if self.entry(entry).page.cell == cell {
                    self.entry_mut(entry).reset(now);
                }
            }
        }
    }

    /// Has the viewer drop the cell whose page 0 is at this place; `false` when there is no room for that.
    fn close(&mut self, at: usize, now: Tick) -> bool {
        let entry = self.entry_mut(self.order[at]);
        let cell = entry.page.cell;
        if entry.cell_was_sent {
            entry.cell_was_sent = false;
            self.closes.retain(|close| close.cell != cell);
            if self.closes.len() == CLOSES_PER_SNAPSHOT {
                self.entry_mut(self.order[at]).cell_was_sent = true;
                return false;
            }
            self.closes.push(PendingClose { cell, tick: now });
        }
        true
    }

    /// Notes that a block was written; `relied_on` is the tick of an earlier one that it needs, or 0.
    #[inline]
    pub(super) fn note_sent(&mut self, index: u16, relied: bool, now: Tick) {
        let entry = self.entry_mut(index);
        entry.sent = now;
        entry.waiting_since = 0;
        if !relied {
            entry.broken = false;
            entry.restarted = now;
        }
        if entry.page.number == 0 {
            entry.cell_was_sent = true;
            return;
        }
        let first = PageId { number: 0, ..entry.page };
        let at = self.order.partition_point(|&entry| self.entry(entry).page < first);
        self.entry_mut(self.order[at]).cell_was_sent = true;
    }

    /// The viewer has applied a packet that showed `tick` and carried this entry's page. `relies_on` is the tick
    /// of the block before it, if that was not known to be applied when the packet was sent.
    #[inline]
    pub(super) fn applied(&mut self, entry: u16, tick: Tick, relies_on: Option<Tick>) {
        let entry = self.entry_mut(entry);
        if tick < entry.opened {
            return;
        }
        if relies_on.is_none_or(|block| block <= entry.baseline) {
            entry.baseline = entry.baseline.max(tick);
        } else if tick > entry.restarted {
            entry.broken = true;
        }
    }

    /// The viewer has applied all closes up to a tick.
    pub(super) fn closes_applied(&mut self, tick: Tick) {
        self.closes.retain(|close| close.tick > tick);
    }

    /// The viewer could not apply a page: what was sent so far counts for nothing.
    pub(super) fn reset(&mut self, page: PageId, now: Tick) {
        if let Ok(at) = self.order.binary_search_by(|&entry| self.entry(entry).page.cmp(&page)) {
            self.entry_mut(self.order[at]).reset(now);
        }
    }

    fn add(&mut self, entry: Entry) -> Option<u16> {
        if let Some(free) = self.free.pop() {
            self.entries[usize::from(free)] = entry;
            return Some(free);
        }
        if self.entries.len() == MAX_ENTRIES {
            return None;
        }
        self.entries.push(entry);
        Some(self.entries.len() as u16 - 1)
    }

    fn free_entry(&mut self, entry: u16) {
        // No packet shows a later tick, so nothing will be acknowledged for it.
        self.entry_mut(entry).opened = Tick::MAX;
        self.free.push(entry);
    }
}

fn slack_of(layer: &Layer) -> f64 {
    f64::from(layer.cell_edge()) * SLACK_PER_EDGE
}
