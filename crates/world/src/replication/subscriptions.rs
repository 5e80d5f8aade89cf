//! Which pages a viewer gets, and what it has applied of them.

use shadowland_prefetch::prefetch;
use shadowland_wire::block::{AgeCode, CellId, PageId};
use shadowland_wire::lattice::LatticePosition;
use shadowland_wire::limits::{CLIENT_ENTITIES, CLIENT_PAGES, CLOSES_PER_SNAPSHOT, PAGE_SLOTS};
use shadowland_wire::message::server::Close;

use super::crowd::{AppliedTicks, CrowdDetail, WAITING_PAGES};
use super::ledger::{Ledger, Reference};
use super::viewer::Due;
use super::{Encoder, Frame};
use crate::Tick;
use crate::interest::{Layer, NO_PAGE, PageHeader, TOMBSTONE_TICKS};

/// A viewer may move by this part of a cell's edge before its subscriptions are computed again; they reach
/// farther by as much, so that they always cover the interest distance.
const SLACK_PER_EDGE: f64 = 1.0 / 32.0;
/// A cell is dropped only when it is farther away than one that would be added, by this part of its edge.
const HYSTERESIS_PER_EDGE: f64 = 1.0 / 16.0;
/// Entries that a viewer can have: pages of as many entities as a client keeps. What has no entry is not seen.
const MAX_ENTRIES: usize = CLIENT_ENTITIES / PAGE_SLOTS;

const _: () = assert!(MAX_ENTRIES < CLIENT_PAGES && MAX_ENTRIES < NEW as usize);

/// What the viewer has of one page: the part that is looked at whenever the page has its turn. Every cell that
/// the viewer sees has at least the entry of page 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) page: PageId,
    /// Where the page was in the last frame.
    page_index: u32,
    /// The tick up to which the viewer is known to have applied the page; 0 = nothing.
    pub(super) baseline: Tick,
    /// The tick of the last block that was sent; 0 = none.
    pub(super) sent: Tick,
    /// Counts what this entry was used for: packets that name another life of it are not about this page.
    life: u8,
    /// Updates come every tick.
    pub(super) near: bool,
    /// Nothing may be sent in the tick in which the cell was closed.
    held: bool,
    /// A block is due that did not fit.
    pub(super) waiting: bool,
    /// A block on which others relied is missing: the next one starts from the baseline.
    pub(super) broken: bool,
    /// Its cell is a crowd: its turns are those of the crowds.
    pub(super) crowded: bool,
    /// The last block was sent on such a turn, in the first packet of its tick, and relied on no other.
    sent_in_crowd: bool,
    /// The cell has another page behind it.
    has_next: bool,
}

/// The part of an entry that is rarely looked at.
#[derive(Debug, Clone, Copy, Default)]
struct Detail {
    /// Since when a block waits; 0 = none does.
    waiting_since: Tick,
    /// The tick of the last block that relied on no other.
    restarted: Tick,
    /// The tick in which it was held.
    held_at: Tick,
    /// The square of the cell's distance when subscriptions were computed, in steps.
    squared_distance: f32,
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

/// An entry on its way to another place; scratch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moving {
    entry: Entry,
    detail: Detail,
    /// Its index before; `NEW` if it had none.
    before: u16,
}

const NEW: u16 = u16::MAX;

/// The subscriptions of one viewer.
#[derive(Debug)]
pub(super) struct Subscriptions {
    /// Those that are near, then the distant ones and last those of crowds by the phase of their turns, each by page:
    /// what has its turn in the same tick lies together.
    entries: Vec<Entry>,
    details: Vec<Detail>,
    near_end: u16,
    /// Where the distant entries of each phase end; the first begin where the near ones end.
    ends: Vec<u16>,
    /// The same for the entries of crowds, which begin where the distant ones end.
    crowd_ends: Vec<u16>,
    crowd_detail: CrowdDetail,
    /// The tick up to which crowds had their turns.
    crowds_turned: Tick,
    /// The ticks whose first packet was applied.
    applied_ticks: AppliedTicks,
    /// The cells of all entries, in order, and whether they are near.
    seen: Vec<(CellId, bool)>,
    /// A page was seen that has no entry yet.
    incomplete: bool,
    /// A cell was closed while turns were taken: what is already due of it must not go out.
    closed_in_turn: bool,
    /// Entries of which a block is due that did not fit.
    waiting: Vec<u16>,
    closes: Vec<PendingClose>,
    /// Where the viewer was when the cells were computed.
    anchor: Option<LatticePosition>,
    /// Which layers had anybody in them then, and the viewer's private cell, if it was among the cells.
    used_layers: u8,
    private: Option<CellId>,
}

/// Entries that a viewer has at most, as long as few cells have more than one page.
pub(super) fn most_entries(frame: &Frame) -> usize {
    let margin = SLACK_PER_EDGE + HYSTERESIS_PER_EDGE;
    let cells: usize = frame.used_layers().map(|layer| layer.most_cells_in_sight(margin)).sum();
    (cells + cells / 4).min(MAX_ENTRIES)
}

impl Entry {
    fn new(page: PageId, near: bool) -> Self {
        Self {
            page,
            page_index: NO_PAGE,
            baseline: 0,
            sent: 0,
            life: 0,
            near,
            held: false,
            waiting: false,
            broken: false,
            crowded: false,
            sent_in_crowd: false,
            has_next: false,
        }
    }

    /// Raises the baseline if what was sent on a crowd's turn has been applied.
    #[inline]
    pub(super) fn settle(&mut self, applied: &AppliedTicks) {
        if self.sent_in_crowd && applied.contains(self.sent) {
            self.baseline = self.baseline.max(self.sent);
        }
    }

    /// The tick from which the next block can start: the last one that was sent, if it may be relied on though
    /// it is still on its way, else the baseline. `patience` is how long an answer takes.
    #[inline]
    pub(super) fn start(&self, now: Tick, patience: Tick, floor: Tick) -> Tick {
        let confirmed = if self.baseline < floor { 0 } else { self.baseline };
        let optimistic = confirmed != 0
            && !self.crowded
            && self.sent > confirmed
            && !self.broken
            && now - confirmed <= patience.min(super::encoder::OPTIMISTIC_TICKS);
        if optimistic { self.sent } else { confirmed }
    }
}

impl Subscriptions {
    /// Of somebody who sees nothing yet.
    pub(super) fn new() -> Self {
        Self {
            entries: Vec::new(),
            details: Vec::new(),
            near_end: 0,
            ends: Vec::new(),
            crowd_ends: Vec::new(),
            crowd_detail: CrowdDetail::Full,
            crowds_turned: 0,
            applied_ticks: AppliedTicks::default(),
            seen: Vec::new(),
            incomplete: false,
            closed_in_turn: false,
            waiting: Vec::new(),
            closes: Vec::with_capacity(CLOSES_PER_SNAPSHOT),
            anchor: None,
            used_layers: 0,
            private: None,
        }
    }

    #[inline]
    pub(super) fn entry_mut(&mut self, index: u16) -> &mut Entry {
        &mut self.entries[usize::from(index)]
    }

    /// How finely the viewer sees crowds.
    pub(super) fn crowd_detail(&self) -> CrowdDetail {
        self.crowd_detail
    }

    /// The first packet of a tick has been applied.
    pub(super) fn tick_applied(&mut self, tick: Tick) {
        if self.crowd_detail != CrowdDetail::Full {
            self.applied_ticks.insert(tick);
        }
    }

    fn entry(&self, index: u16) -> &Entry {
        &self.entries[usize::from(index)]
    }

    fn detail_mut(&mut self, index: u16) -> &mut Detail {
        &mut self.details[usize::from(index)]
    }

    pub(super) fn cells(&self) -> impl Iterator<Item = CellId> + '_ {
        self.entries.iter().map(|entry| entry.page).filter(|page| page.number == 0).map(|page| page.cell)
    }

    pub(super) fn closes(&self, now: Tick) -> impl ExactSizeIterator<Item = Close> + '_ {
        self.closes.iter().map(move |close| Close { cell: close.cell, age: now - close.tick })
    }

    /// Of two entries the one whose block is more urgent: who waits longest comes first, then who is nearest.
    pub(super) fn urgency(&self, a: u16, b: u16) -> std::cmp::Ordering {
        let since = |index| match self.entry(index).waiting {
            true => self.details[usize::from(index)].waiting_since,
            false => Tick::MAX,
        };
        let distance = |index: u16| self.details[usize::from(index)].squared_distance;
        let nearest = distance(a).total_cmp(&distance(b));
        since(a).cmp(&since(b)).then(nearest).then(self.entry(a).page.cmp(&self.entry(b).page))
    }

    /// Follows the viewer: adds the cells that came into its sight, closes those that left it, and adds the pages
    /// that were seen behind others. Entries change their places then, and the ledger follows.
    pub(super) fn follow(
        &mut self,
        frame: &Frame,
        position: LatticePosition,
        private: Option<CellId>,
        scratch: &mut Encoder,
        ledger: &mut Ledger,
    ) {
        let layers = frame.layers().all();
        let slack = layers.iter().map(slack_of).fold(f64::INFINITY, f64::min);
        // The largest difference on an axis is at least 1 / sqrt(3) of the distance.
        let moved = |anchor: LatticePosition| f64::from(anchor.max_axis_distance(position)) * 1.8 > slack;
        let used_layers = frame.used_layer_bits();
        let moved =
            self.anchor.is_none_or(moved) || used_layers != self.used_layers || private != self.private;
        if !moved && !self.incomplete {
            return;
        }
        let Encoder { wanted, held, kept, map, .. } = scratch;
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
            // A crowd's pages are many, and few of its viewers' moves take them to other cells.
            if !self.incomplete
                && self.crowd_detail != CrowdDetail::Full
                && self.sees_the_same(frame, position, wanted)
            {
                self.anchor = Some(position);
                (self.used_layers, self.private) = (used_layers, private);
                return;
            }
        }
        held.clear();
        held.extend(
            (0..).zip(self.entries.iter().zip(&self.details)).map(|(before, (&entry, &detail))| Moving {
                entry,
                detail,
                before,
            }),
        );
        held.sort_unstable_by_key(|moving| moving.entry.page);
        if moved {
            (self.used_layers, self.private) = (used_layers, private);
            let complete = self.merge(frame, position, wanted, held, kept);
            // What could not be closed now is tried again in the next tick.
            self.anchor = complete.then_some(position);
        } else {
            std::mem::swap(held, kept);
        }
        add_pages_behind(frame, kept);
        self.seen.clear();
        let first_pages = kept.iter().map(|moving| &moving.entry).filter(|entry| entry.page.number == 0);
        self.seen.extend(first_pages.map(|entry| (entry.page.cell, entry.near)));
        map.clear();
        map.resize(self.entries.len(), NEW);
        self.arrange(frame, kept, map);
        ledger.follow(|entry| map.get(usize::from(entry)).copied().unwrap_or(NEW));
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
            let first = rest.first().map(|moving| moving.entry.page.cell);
            let cell = match (first, wanted.peek().map(|want| want.cell)) {
                (None, None) => return complete,
                (Some(held), Some(want)) => held.min(want),
                (Some(cell), None) | (None, Some(cell)) => cell,
            };
            let count = rest.iter().take_while(|moving| moving.entry.page.cell == cell).count();
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
            if pages.is_empty() && kept.len() < MAX_ENTRIES {
                let detail = Detail { squared_distance: squared as f32, ..Detail::default() };
                let entry = Entry::new(PageId { cell, number: 0 }, near);
                kept.push(Moving { entry, detail, before: NEW });
            }
            for moving in pages {
                moving.entry.near = near;
                moving.detail.squared_distance = squared as f32;
                kept.push(*moving);
            }
        }
    }

    /// Puts the entries in the order of their turns, and notes in `map` where each went.
    fn arrange(&mut self, frame: &Frame, kept: &mut [Moving], map: &mut [u16]) {
        for Moving { entry, .. } in kept.iter_mut() {
            entry.settle(&self.applied_ticks);
            let header = frame.pages().header(entry.page_index).filter(|header| header.id == entry.page);
            entry.crowded = header.map_or(entry.crowded, |header| header.crowded);
        }
        self.crowd_detail = CrowdDetail::of(kept.iter().filter(|moving| moving.entry.crowded).count());
        let (distant, crowds) = (frame.distant_period(), self.crowd_detail.period());
        let group = |moving: &Moving| match moving.entry {
            Entry { crowded: true, page, .. } => 1 + distant + phase_in_crowds(page, crowds),
            Entry { near: true, .. } => 0,
            Entry { page, .. } => 1 + frame.phase(page),
        };
        kept.sort_unstable_by_key(|moving| (group(moving), moving.entry.page));
        let end_of = |last: u32| kept.partition_point(|moving| group(moving) <= last) as u16;
        self.near_end = end_of(0);
        self.ends.clear();
        self.ends.extend((0..distant).map(|phase| end_of(1 + phase)));
        self.crowd_ends.clear();
        self.crowd_ends.extend((0..crowds).map(|phase| end_of(1 + distant + phase)));
        self.entries.clear();
        self.details.clear();
        self.waiting.clear();
        if self.entries.capacity() < kept.len() {
            // Once and for all, where no crowd is.
            let room = most_entries(frame).max(kept.len() + kept.len() / 4);
            self.entries.reserve_exact(room);
            self.details.reserve_exact(room);
            self.waiting.reserve_exact(room);
        }
        for (index, moving) in (0..).zip(kept.iter()) {
            self.entries.push(moving.entry);
            self.details.push(moving.detail);
            if moving.before != NEW {
                map[usize::from(moving.before)] = index;
            }
            if moving.entry.waiting {
                self.waiting.push(index);
            }
        }
        self.incomplete = false;
    }

    /// Fetches into the cache the entries that have their turn in a tick.
    #[inline]
    pub(super) fn prefetch(&self, tick: Tick) {
        prefetch(&self.entries[..usize::from(self.near_end)]);
        prefetch(self.in_phase(&self.ends, self.near_end, tick));
        let crowds = self.ends.last().copied().unwrap_or(self.near_end);
        prefetch(self.in_phase(&self.crowd_ends, crowds, self.crowds_turned + 1));
    }

    /// The entries that have their turn in a tick, of those from `start` on whose phases end at `ends`.
    fn in_phase(&self, ends: &[u16], start: u16, tick: Tick) -> &[Entry] {
        if ends.is_empty() {
            return &[];
        }
        // The phase whose turn it is: `(tick + phase) % period == 0`.
        let phase = (ends.len() - tick as usize % ends.len()) % ends.len();
        let start = phase.checked_sub(1).map_or(start, |before| ends[before]);
        &self.entries[usize::from(start)..usize::from(ends[phase])]
    }

    /// Collects the entries whose turn it is in one of the ticks after `since`: the near ones, the distant ones of
    /// the ticks' phases, and those that wait.
    pub(super) fn turns(&mut self, frame: &Frame, since: Tick, turns: &mut Vec<u16>) {
        let now = frame.tick();
        let period = frame.distant_period();
        let skipped = (now - since).min(period);
        let has_turn = |phase: u32| (now + phase) % period < skipped;
        turns.clear();
        turns.extend(0..self.near_end);
        let mut start = self.near_end;
        for (phase, &end) in (0..).zip(&self.ends) {
            if has_turn(phase) {
                turns.extend(start..end);
            }
            start = end;
        }
        let has_crowd_turn = self.crowd_turns(now, start, turns);
        let entries = &self.entries;
        turns.extend(self.waiting.drain(..).filter(|&index| {
            let entry = &entries[usize::from(index)];
            let has_turn = match entry {
                Entry { crowded: true, .. } => has_crowd_turn(entry.page),
                Entry { near, page, .. } => *near || has_turn(frame.phase(*page)),
            };
            entry.waiting && !has_turn
        }));
    }

    /// The turns of crowds, from where they were left: whoever cannot take as much as has its turn gets it later. Their
    /// entries begin at `start`. Tells which pages have their turn.
    fn crowd_turns(
        &mut self,
        now: Tick,
        start: u16,
        turns: &mut Vec<u16>,
    ) -> impl Fn(PageId) -> bool + use<> {
        let period = self.crowd_detail.period();
        let before = self.crowds_turned.max(now.saturating_sub(period));
        let mut turned = before;
        let crowded = |index: &&u16| self.entries[usize::from(**index)].crowded;
        let mut waiting = self.waiting.iter().filter(crowded).count();
        while period > 0 && turned < now && waiting < WAITING_PAGES {
            turned += 1;
            let phase = ((period - turned % period) % period) as usize;
            let first = if phase == 0 { start } else { self.crowd_ends[phase - 1] };
            let end = self.crowd_ends[phase];
            turns.extend(first..end);
            waiting += usize::from(end - first);
        }
        self.crowds_turned = turned;
        move |page| period > 0 && (turned + phase_in_crowds(page, period)) % period < turned - before
    }

    /// Finds the page of an entry in the frame; `None` while the cell has no such page.
    #[inline]
    pub(super) fn locate<'f>(&mut self, index: u16, frame: &'f Frame) -> Option<(u32, &'f PageHeader)> {
        let entry = &mut self.entries[usize::from(index)];
        entry.settle(&self.applied_ticks);
        let mut page_index = entry.page_index;
        let header = match frame.pages().header(page_index) {
            Some(header) if header.id == entry.page => header,
            _ => {
                page_index = frame.index_of(entry.page);
                let Some(header) = frame.pages().header(page_index) else {
                    self.forget_released(index, frame.tick());
                    return None;
                };
                entry.page_index = page_index;
                header
            }
        };
        if (header.next != NO_PAGE && !entry.has_next) || header.crowded != entry.crowded {
            entry.has_next |= header.next != NO_PAGE;
            self.incomplete = true;
        }
        if self.entry(index).held {
            let held_at = self.detail_mut(index).held_at;
            self.entry_mut(index).held = held_at == frame.tick();
            return (held_at != frame.tick()).then_some((page_index, header));
        }
        Some((page_index, header))
    }

    /// The world has released the page. It had been empty for as long as a tombstone lives: a viewer whose
    /// baseline is younger knows that already, and for any other the cell starts from scratch.
    fn forget_released(&mut self, index: u16, now: Tick) {
        let entry = *self.entry(index);
        if entry.sent == 0 && entry.baseline == 0 {
            return;
        }
        let knows = entry.baseline != 0 && now - entry.baseline < TOMBSTONE_TICKS;
        if knows {
            self.reset_entry(index, now);
            return;
        }
        let cell = entry.page.cell;
        let was_sent =
            self.find(PageId { cell, number: 0 }).is_some_and(|first| self.details[first].cell_was_sent);
        if self.close(cell, was_sent, now) {
            self.closed_in_turn = true;
            for index in 0..self.entries.len() {
                if self.entries[index].page.cell == cell {
                    self.reset_entry(index as u16, now);
                    self.details[index].cell_was_sent = false;
                }
            }
        }
    }

    /// Takes out what is due of cells that were closed while turns were taken.
    pub(super) fn drop_closed(&mut self, due: &mut Vec<Due>) {
        if std::mem::take(&mut self.closed_in_turn) {
            due.retain(|due| !self.entry(due.entry).held);
        }
    }

    /// Forgets what the viewer has of a page; nothing is sent of it before the next tick.
    fn reset_entry(&mut self, index: u16, now: Tick) {
        let entry = self.entry_mut(index);
        *entry = Entry {
            life: entry.life.wrapping_add(1),
            page_index: entry.page_index,
            crowded: entry.crowded,
            held: true,
            ..Entry::new(entry.page, entry.near)
        };
        let detail = self.detail_mut(index);
        (detail.held_at, detail.waiting_since, detail.restarted) = (now, 0, 0);
    }

    /// Has the viewer drop a cell, if a block of it was sent; `false` when there is no room for that.
    fn close(&mut self, cell: CellId, was_sent: bool, now: Tick) -> bool {
        if was_sent {
            self.closes.retain(|close| close.cell != cell);
            if self.closes.len() == CLOSES_PER_SNAPSHOT {
                return false;
            }
            self.closes.push(PendingClose { cell, tick: now });
        }
        true
    }

    /// Notes that a block that is due did not fit.
    pub(super) fn note_deferred(&mut self, index: u16, now: Tick) {
        self.waiting.push(index);
        let entry = self.entry_mut(index);
        if !entry.waiting {
            entry.waiting = true;
            self.detail_mut(index).waiting_since = now;
        }
    }

    /// Notes that a block was written, against a baseline of this age; `relies_on_age` is that of an earlier one on
    /// its way that it needs, or 0. Tells how its packet refers to it; a crowd's page is known by the tick.
    #[inline]
    pub(super) fn note_sent(
        &mut self,
        index: u16,
        age: AgeCode,
        relies_on_age: u8,
        now: Tick,
    ) -> Option<Reference> {
        let entry = self.entry_mut(index);
        let first_of_entry = entry.sent == 0;
        entry.sent = now;
        entry.sent_in_crowd = entry.crowded;
        entry.waiting = false;
        let page = entry.page;
        if relies_on_age == 0 {
            // A complete block that comes late is superseded by anything newer, so nothing may rely on it.
            entry.broken = age == AgeCode::FULL;
            self.detail_mut(index).restarted = now;
        }
        if first_of_entry && let Some(first) = self.find(PageId { number: 0, ..page }) {
            self.details[first].cell_was_sent = true;
        }
        let Entry { life, crowded, .. } = *self.entry(index);
        (!crowded).then_some(Reference { entry: index, life, relies_on_age })
    }

    /// The viewer has applied a packet that showed `tick` and carried this page.
    #[inline]
    pub(super) fn applied(&mut self, reference: Reference, tick: Tick) {
        // The page may be out of sight since.
        let Some(entry) = self.entries.get_mut(usize::from(reference.entry)) else { return };
        if entry.life != reference.life {
            return;
        }
        let relies_on = tick - Tick::from(reference.relies_on_age);
        if reference.relies_on_age == 0 || relies_on <= entry.baseline {
            entry.baseline = entry.baseline.max(tick);
        } else if tick > self.details[usize::from(reference.entry)].restarted {
            entry.broken = true;
        }
    }

    /// The viewer has applied all closes up to a tick.
    pub(super) fn closes_applied(&mut self, tick: Tick) {
        self.closes.retain(|close| close.tick > tick);
    }

    /// The viewer could not apply a page: what was sent so far counts for nothing.
    pub(super) fn reset(&mut self, page: PageId, now: Tick) {
        if let Some(index) = self.find(page) {
            let was_sent = self.entries[index].sent != 0;
            self.reset_entry(index as u16, now);
            // It may show somebody there: if nobody is, it has to be told.
            self.entries[index].sent = Tick::from(was_sent);
        }
    }

    fn find(&self, page: PageId) -> Option<usize> {
        self.entries.iter().position(|entry| entry.page == page)
    }
}

/// Adds the entries of all pages behind others that were seen. Needs the order by page, and leaves it.
fn add_pages_behind(frame: &Frame, kept: &mut Vec<Moving>) {
    let mut at = 0;
    while let Some(&Moving { entry, detail, .. }) = kept.get(at) {
        at += 1;
        let behind = PageId { number: entry.page.number + 1, ..entry.page };
        let is_there = kept.get(at).is_some_and(|next| next.entry.page == behind);
        if entry.has_next && !is_there && kept.len() < MAX_ENTRIES {
            let header = frame.pages().header(entry.page_index).filter(|header| header.id == entry.page);
            let page_index = header.map_or(NO_PAGE, |header| header.next);
            let has_next = frame.pages().header(page_index).is_some_and(|header| header.next != NO_PAGE);
            let entry = Entry { page_index, has_next, ..Entry::new(behind, entry.near) };
            let detail = Detail { squared_distance: detail.squared_distance, ..Detail::default() };
            kept.insert(at, Moving { entry, detail, before: NEW });
        }
    }
}

/// The phase of a page of a crowd: its turns are the ticks with `(tick + phase) % period == 0`.
fn phase_in_crowds(page: PageId, period: Tick) -> Tick {
    page.cell.0.wrapping_add(page.number.into()) % period
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

fn slack_of(layer: &Layer) -> f64 {
    f64::from(layer.cell_edge()) * SLACK_PER_EDGE
}
