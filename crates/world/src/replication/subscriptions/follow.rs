//! Following a viewer: which cells it sees, and in which order their pages have their turns.

use shadowland_wire::block::{CellId, PageId};
use shadowland_wire::lattice::LatticePosition;

use super::turns::phase_in_crowds;
use super::{Alone, Detail, Entry, MAX_ENTRIES, Subscriptions};
use crate::interest::{Layer, NO_PAGE};
use crate::replication::crowd::CrowdDetail;
use crate::replication::{Encoder, Frame};

/// A viewer may move by this part of a cell's edge before its subscriptions are computed again; they reach
/// farther by as much, so that they always cover the interest distance.
const SLACK_PER_EDGE: f64 = 1.0 / 32.0;
/// A cell is dropped only when it is farther away than one that would be added, by this part of its edge.
const HYSTERESIS_PER_EDGE: f64 = 1.0 / 16.0;

/// A cell that could be seen; scratch.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Wanted {
    cell: CellId,
    squared_distance: f64,
}

/// An entry on its way to another place; scratch.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Moving {
    entry: Entry,
    alone: Alone,
    detail: Detail,
}

/// Entries that a viewer has at most, as long as few cells have more than one page.
pub(in super::super) fn most_entries(frame: &Frame) -> usize {
    let margin = SLACK_PER_EDGE + HYSTERESIS_PER_EDGE;
    let cells: usize = frame.used_layers().map(|layer| layer.most_cells_in_sight(margin)).sum();
    (cells + cells / 4).min(MAX_ENTRIES)
}

impl Subscriptions {
    /// Follows the viewer: adds the cells that came into its sight, closes those that left it, and adds the pages
    /// that were seen behind others. Entries change their places then.
    #[inline]
    pub(in super::super) fn follow(
        &mut self,
        frame: &Frame,
        position: LatticePosition,
        private: Option<CellId>,
        scratch: &mut Encoder,
    ) {
        let moved = |anchor: LatticePosition| anchor.max_axis_distance(position) > scratch.slack_steps;
        let used_layers = frame.used_layer_bits();
        let moved =
            self.anchor.is_none_or(moved) || used_layers != self.used_layers || private != self.private;
        if moved || self.incomplete {
            self.follow_to(frame, position, private, moved, scratch);
        }
    }

    fn follow_to(
        &mut self,
        frame: &Frame,
        position: LatticePosition,
        private: Option<CellId>,
        moved: bool,
        scratch: &mut Encoder,
    ) {
        let used_layers = frame.used_layer_bits();
        let Encoder { wanted, held, kept, .. } = scratch;
        if moved {
            wanted.clear();
            for layer in frame.used_layers() {
                let reach = f64::from(layer.distance()) + slack_of(layer);
                layer.cells_within(position, reach, |cell, squared_distance| {
                    wanted.push(Wanted { cell, squared_distance });
                });
            }
            // Behind those of all grids.
            wanted.extend(private.map(|cell| Wanted { cell, squared_distance: 0.0 }));
            // Few moves bring other cells into sight.
            if !self.incomplete && self.sees_the_same(frame, position, wanted) {
                self.anchor = Some(position);
                (self.used_layers, self.private) = (used_layers, private);
                return;
            }
        }
        held.clear();
        let all = self.entries.iter().zip(&self.alone).zip(&self.details);
        held.extend(all.map(|((&entry, &alone), &detail)| Moving { entry, alone, detail }));
        held.sort_unstable_by_key(|moving| moving.detail.page);
        if moved {
            (self.used_layers, self.private) = (used_layers, private);
            let complete = self.merge(frame, position, wanted, held, kept);
            // What could not be closed now is tried again in the next tick.
            self.anchor = complete.then_some(position);
        } else {
            std::mem::swap(held, kept);
        }
        drop_pages_behind(frame, kept);
        add_pages_behind(frame, kept);
        self.make_room(frame, kept.len());
        self.seen.clear();
        let first_pages = kept.iter().filter(|moving| moving.detail.page.number == 0);
        self.seen.extend(first_pages.map(|moving| (moving.detail.page.cell, moving.alone.near)));
        self.arrange(frame, kept);
    }

    /// Whether [`Subscriptions::merge`] would change nothing but distances.
    fn sees_the_same(&self, frame: &Frame, position: LatticePosition, wanted: &[Wanted]) -> bool {
        let mut wanted = wanted.iter().peekable();
        let same = |&(cell, near): &(CellId, bool)| {
            let layer = frame.layers().of_cell(cell);
            let want = wanted.next_if(|want| want.cell == cell);
            let squared =
                want.map_or_else(|| layer.squared_distance_to(cell, position), |want| want.squared_distance);
            (want.is_some() || is_kept(frame, cell, squared)) && near == is_near(frame, layer, squared)
        };
        self.seen.iter().all(same) && wanted.next().is_none()
    }

    /// Makes `kept` the entries of the wanted cells, and of those that are not far enough to be dropped. `false` when
    /// some had to stay because too many closes are unconfirmed. `wanted`, `held` and `kept` are ordered by cell.
    fn merge(
        &mut self,
        frame: &Frame,
        position: LatticePosition,
        wanted: &[Wanted],
        held: &mut [Moving],
        kept: &mut Vec<Moving>,
    ) -> bool {
        kept.clear();
        let mut complete = true;
        let mut wanted = wanted.iter().peekable();
        let mut rest = held;
        loop {
            let first = rest.first().map(|moving| moving.detail.page.cell);
            let cell = match (first, wanted.peek().map(|want| want.cell)) {
                (None, None) => return complete,
                (Some(held), Some(want)) => held.min(want),
                (Some(cell), None) | (None, Some(cell)) => cell,
            };
            let count = rest.iter().take_while(|moving| moving.detail.page.cell == cell).count();
            let (pages, behind) = rest.split_at_mut(count);
            rest = behind;
            let layer = frame.layers().of_cell(cell);
            let want = wanted.next_if(|want| want.cell == cell);
            let squared =
                want.map_or_else(|| layer.squared_distance_to(cell, position), |want| want.squared_distance);
            let stays = want.is_some() || is_kept(frame, cell, squared);
            if !stays && self.close(cell, pages[0].detail.cell_was_sent, frame.tick()) {
                continue;
            }
            complete &= stays;
            let near = is_near(frame, layer, squared);
            if pages.is_empty() {
                let detail = Detail::new(PageId { cell, number: 0 }, squared as f32);
                kept.push(Moving { entry: Entry::NEW, alone: Alone::new(near), detail });
            }
            for moving in pages {
                if moving.alone.near != near {
                    self.leave_group(moving, frame);
                    moving.alone.near = near;
                }
                moving.detail.squared_distance = squared as f32;
                kept.push(*moving);
            }
        }
    }

    /// Makes room for so many entries: once and for all, where no crowd is.
    fn make_room(&mut self, frame: &Frame, entries: usize) {
        fn room<T>(of: &mut Vec<T>, entries: usize) {
            of.reserve_exact(entries.saturating_sub(of.len()));
        }
        if self.entries.capacity() < entries {
            let most = most_entries(frame).max(entries + entries / 4);
            room(&mut self.entries, most);
            room(&mut self.alone, most);
            room(&mut self.details, most);
            room(&mut self.waiting, most);
            room(&mut self.seen, most);
        }
    }

    /// The page goes alone: it will be of another group, or of none.
    fn leave_group(&self, moving: &mut Moving, frame: &Frame) {
        if moving.entry.in_step {
            moving.entry.in_step = false;
            let group = if moving.alone.near { 0 } else { 1 + frame.phase(moving.detail.page) as usize };
            moving.alone.progress = self.groups[group];
        }
        moving.alone.steady_since = 0;
    }

    /// Puts the entries in the order of their turns.
    fn arrange(&mut self, frame: &Frame, kept: &mut [Moving]) {
        for moving in kept.iter_mut() {
            let header = moving.entry.header(frame).filter(|header| header.id == moving.detail.page);
            if let Some(header) = header
                && header.crowded != moving.entry.crowded
            {
                self.leave_group(moving, frame);
                moving.entry.crowded = header.crowded;
            }
        }
        self.crowd_detail = CrowdDetail::of(kept.iter().filter(|moving| moving.entry.crowded).count());
        let (distant, crowds) = (frame.distant_period(), self.crowd_detail.period());
        let group = |moving: &Moving| match (moving.entry.crowded, moving.alone.near) {
            (true, _) => 1 + distant + phase_in_crowds(moving.detail.page, crowds),
            (false, true) => 0,
            (false, false) => 1 + frame.phase(moving.detail.page),
        };
        kept.sort_unstable_by_key(|moving| (group(moving), moving.detail.page));
        let end_of = |last: u32| kept.partition_point(|moving| group(moving) <= last) as u16;
        self.near_end = end_of(0);
        self.ends.set((0..distant).map(|phase| end_of(1 + phase)));
        self.crowd_ends.clear();
        self.crowd_ends.extend((0..crowds).map(|phase| end_of(1 + distant + phase)));
        self.entries.clear();
        self.alone.clear();
        self.details.clear();
        self.waiting.clear();
        for (index, moving) in (0..).zip(kept.iter()) {
            self.entries.push(moving.entry);
            self.alone.push(moving.alone);
            self.details.push(moving.detail);
            if moving.alone.waiting {
                self.waiting.push(index);
            }
        }
        self.opened = (0..self.entries.len()).filter(|&index| self.was_sent(index)).count();
        self.incomplete = false;
    }
}

/// Drops the entries of pages behind others that the world has released, the last first. Needs the order by page.
fn drop_pages_behind(frame: &Frame, kept: &mut Vec<Moving>) {
    for at in (1..kept.len()).rev() {
        let Moving { entry, alone, detail } = kept[at];
        let may_go = detail.page.number > 0 && !entry.in_step && alone.is_unheard_of() && !alone.lingers;
        if may_go && frame.index_of(detail.page) == NO_PAGE {
            kept.remove(at);
            kept[at - 1].entry.has_next = false;
        }
    }
}

/// Adds the entries of all pages behind others that were seen. Needs the order by page, and leaves it.
fn add_pages_behind(frame: &Frame, kept: &mut Vec<Moving>) {
    let mut at = 0;
    while let Some(&Moving { entry, alone, detail }) = kept.get(at) {
        at += 1;
        let behind = PageId { number: detail.page.number + 1, ..detail.page };
        let is_there = kept.get(at).is_some_and(|next| next.detail.page == behind);
        if entry.has_next && !is_there && kept.len() < MAX_ENTRIES {
            let found = entry.header(frame).and_then(|first| {
                let header = frame.pages().header(first.next)?;
                Some((first.next, header.generation, header.next != NO_PAGE))
            });
            let mut entry = Entry::NEW;
            if let Some((page_index, generation, has_next)) = found {
                entry = Entry { page_index, generation, has_next, ..entry };
            }
            let alone = Alone::new(alone.near);
            kept.insert(at, Moving { entry, alone, detail: Detail::new(behind, detail.squared_distance) });
        }
    }
}

/// Whether a cell at this distance stays in sight once it is.
fn is_kept(frame: &Frame, cell: CellId, squared_distance: f64) -> bool {
    let layer = frame.layers().of_cell(cell);
    let hysteresis = f64::from(layer.cell_edge()) * HYSTERESIS_PER_EDGE;
    let limit = f64::from(layer.distance()) + slack_of(layer) + hysteresis;
    squared_distance <= limit * limit && !frame.layers().is_private(cell)
}

fn is_near(frame: &Frame, layer: &Layer, squared_distance: f64) -> bool {
    let near = f64::from(layer.distance()) * frame.near_share();
    squared_distance <= near * near
}

/// How far a viewer may move along an axis before its subscriptions have to follow, in steps.
pub(in super::super) fn slack_steps(frame: &Frame) -> u32 {
    let slack = frame.layers().all().iter().map(slack_of).fold(f64::INFINITY, f64::min);
    // The largest difference on an axis is at least 1 / sqrt(3) of the distance.
    (slack / 1.8) as u32
}

fn slack_of(layer: &Layer) -> f64 {
    f64::from(layer.cell_edge()) * SLACK_PER_EDGE
}
