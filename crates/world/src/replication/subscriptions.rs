//! Which pages a viewer gets, and what it has applied of them.

use std::ops::{Deref, Range};

use shadowland_prefetch::prefetch;
use shadowland_wire::block::{CellId, PageId};
use shadowland_wire::lattice::LatticePosition;
use shadowland_wire::limits::{CLIENT_ENTITIES, CLIENT_PAGES, CLOSES_PER_SNAPSHOT, PAGE_SLOTS};
use shadowland_wire::message::server::Close;

use super::crowd::{CrowdDetail, WAITING_PAGES};
use super::ledger::AppliedTicks;
use super::viewer::Due;
use super::{Encoder, Frame};
use crate::Tick;
use crate::config::DISTANT_PERIOD_MAX;
use crate::interest::{Layer, NO_PAGE, PageHeader, TOMBSTONE_TICKS};

/// A viewer may move by this part of a cell's edge before its subscriptions are computed again; they reach
/// farther by as much, so that they always cover the interest distance.
const SLACK_PER_EDGE: f64 = 1.0 / 32.0;
/// A cell is dropped only when it is farther away than one that would be added, by this part of its edge.
const HYSTERESIS_PER_EDGE: f64 = 1.0 / 16.0;
/// Pages that a client is shown together: of as many entities as it keeps. What is beyond is not seen.
pub(super) const OPEN_PAGES: usize = CLIENT_ENTITIES / PAGE_SLOTS;
/// Entries of pages behind others are added while there are fewer than this. A cell within sight has one in any case,
/// of which the shortest cells that a configuration can have make fewer than 15,500: indices have 16 bits.
const MAX_ENTRIES: usize = OPEN_PAGES;

const _: () = assert!(OPEN_PAGES < CLIENT_PAGES && MAX_ENTRIES + 15_500 < u16::MAX as usize);

/// What the viewer has of one page: the part that is looked at whenever the page has its turn, of ten thousand
/// viewers' entries from memory. Every cell that the viewer sees has at least the entry of page 0.
///
/// Which blocks have arrived is known by tick ([`AppliedTicks`]), and what an entry keeps is when it was sent:
///
/// ```text
///                       sent - 3  sent - 2  sent - 1   sent
/// blocks that were sent     R ◀────── b ◀────────────── b      chain = 0b1101; R relies on the baseline alone
/// ticks that were applied   x                           x      the one between is missing: the baseline is sent - 3
/// ```
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// Where the page was in the last frame.
    page_index: u32,
    /// The tick up to which the viewer is known to have applied the page; 0 = nothing.
    pub(super) baseline: Tick,
    /// The tick of the last block that was sent; 0 = none.
    pub(super) sent: Tick,
    /// Bit `i`: a block was sent `i` ticks before `sent` that relies on the one of the next higher bit. The
    /// highest one relies on none; 0 = there is no such block.
    chain: u16,
    /// A block that relied on none was sent so many ticks before `sent`, and is watched until it is known to have
    /// arrived: where answers take longer than `chain` reaches, it is what raises the baseline.
    probe_age: u8,
    /// That of the page at `page_index`, when it was found there.
    generation: u8,
    /// Where there was no page: at which version of the table of cells, modulo 65,536.
    absent_at: u16,
    /// Updates come every tick.
    near: bool,
    /// Nothing may be sent in the tick in which the cell was closed.
    held: bool,
    /// A block is due that did not fit.
    pub(super) waiting: bool,
    /// The last block, complete or after one that is missing, is none that others may rely on.
    pub(super) broken: bool,
    /// Its cell is a crowd: its turns are those of the crowds.
    crowded: bool,
    /// The cell has another page behind it.
    has_next: bool,
}

const _: () = assert!(size_of::<Entry>() == 24, "what all viewers hold of a page is looked at in every tick");

/// A probe that has not arrived when a tick so much later has is given up.
const PROBE_OVERTAKEN_TICKS: Tick = 16;
/// As an age: no block is watched.
const NO_PROBE: u8 = u8::MAX;

/// As the index of a page: it was not looked for yet. [`NO_PAGE`] tells that it was, and is not there.
const NOT_LOOKED_FOR: u32 = NO_PAGE - 1;

/// The part of an entry that is rarely looked at.
#[derive(Debug, Clone, Copy)]
struct Detail {
    page: PageId,
    /// Since when a block waits, if [`Entry::waiting`] says that one does.
    waiting_since: Tick,
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
}

/// The subscriptions of one viewer.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Subscriptions {
    /// Those that are near, then the distant ones and last those of crowds by the phase of their turns, each by page:
    /// what has its turn in the same tick lies together.
    entries: Vec<Entry>,
    near_end: u16,
    /// The distant entries whose turn comes in the next tick.
    next_distant: Range<u16>,
    crowd_detail: CrowdDetail,
    /// A page was seen that has no entry yet.
    incomplete: bool,
    /// A cell was closed while turns were taken: what is already due of it must not go out.
    closed_in_turn: bool,
    /// Which layers had anybody in them when the cells were computed.
    used_layers: u8,
    /// Where the viewer was then.
    anchor: Option<LatticePosition>,
    /// The viewer's private cell, if it was among the cells.
    private: Option<CellId>,
    /// The tick up to which crowds had their turns.
    crowds_turned: Tick,
    /// Entries of which a block is due that did not fit.
    waiting: Vec<u16>,
    /// Entries of which a block was sent.
    opened: usize,
    closes: Vec<PendingClose>,
    /// Where the distant entries of each phase end; the first begin where the near ones end.
    ends: Ends,
    details: Vec<Detail>,
    /// As `ends`, for the entries of crowds, which begin where the distant ones end.
    crowd_ends: Vec<u16>,
    /// The cells of all entries, in order, and whether they are near.
    seen: Vec<(CellId, bool)>,
}

/// Where the entries of each phase end. In place: it is needed in every tick.
#[derive(Debug)]
struct Ends {
    phases: u8,
    ends: [u16; DISTANT_PERIOD_MAX as usize],
}

impl Ends {
    const NONE: Self = Self { phases: 0, ends: [0; DISTANT_PERIOD_MAX as usize] };

    fn set(&mut self, ends: impl Iterator<Item = u16>) {
        self.phases = 0;
        for (place, end) in self.ends.iter_mut().zip(ends) {
            *place = end;
            self.phases += 1;
        }
    }
}

impl Deref for Ends {
    type Target = [u16];

    fn deref(&self) -> &[u16] {
        &self.ends[..usize::from(self.phases)]
    }
}

/// Entries that a viewer has at most, as long as few cells have more than one page.
pub(super) fn most_entries(frame: &Frame) -> usize {
    let margin = SLACK_PER_EDGE + HYSTERESIS_PER_EDGE;
    let cells: usize = frame.used_layers().map(|layer| layer.most_cells_in_sight(margin)).sum();
    (cells + cells / 4).min(MAX_ENTRIES)
}

impl Entry {
    fn new(near: bool) -> Self {
        Self {
            page_index: NOT_LOOKED_FOR,
            baseline: 0,
            sent: 0,
            chain: 0,
            probe_age: NO_PROBE,
            generation: 0,
            absent_at: 0,
            near,
            held: false,
            waiting: false,
            broken: false,
            crowded: false,
            has_next: false,
        }
    }

    /// Raises the baseline to the newest block that is known to have arrived with all that it relies on.
    #[inline]
    pub(super) fn settle(&mut self, applied: &AppliedTicks) {
        if self.chain != 0 {
            let arrived = self.chain & applied.up_to(self.sent);
            // What is newer than the oldest missing one does not count.
            let newer_than_missing =
                u16::MAX.checked_shr((self.chain & !arrived).leading_zeros()).unwrap_or(0);
            let counts = arrived & !newer_than_missing;
            if counts != 0 {
                self.baseline = self.baseline.max(self.sent - counts.trailing_zeros());
            }
            self.broken |= arrived != counts;
        }
        if self.probe_age != NO_PROBE {
            let probe = self.sent - Tick::from(self.probe_age);
            let arrived = applied.contains(probe);
            if arrived {
                self.baseline = self.baseline.max(probe);
            }
            // One that many later ticks have overtaken is lost, and another one takes its place.
            if arrived || probe <= self.baseline || applied.newest() > probe + PROBE_OVERTAKEN_TICKS {
                self.probe_age = NO_PROBE;
            }
        }
    }

    /// The header of its page, if that is still where it was in the last frame.
    #[inline]
    fn header<'f>(&self, frame: &'f Frame) -> Option<&'f PageHeader> {
        frame.pages().header(self.page_index).filter(|header| header.generation == self.generation)
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

    /// Notes that a block is sent now, complete or not, which relies on the last one or on none.
    #[inline]
    fn note_sent(&mut self, now: Tick, complete: bool, relies: bool) {
        let since = now - self.sent;
        let aged = Tick::from(self.probe_age) + since;
        self.probe_age =
            if self.probe_age == NO_PROBE || aged >= NO_PROBE.into() { NO_PROBE } else { aged as u8 };
        if relies {
            self.chain = self.chain.checked_shl(since).unwrap_or(0) | 1;
        } else {
            self.chain = 1;
            if self.probe_age == NO_PROBE {
                self.probe_age = 0;
            }
            // A complete block that comes late is superseded by anything newer, so nothing may rely on it.
            self.broken = complete;
        }
        self.sent = now;
        self.waiting = false;
    }
}

impl Detail {
    fn new(page: PageId, squared_distance: f32) -> Self {
        Self { page, waiting_since: 0, held_at: 0, squared_distance, cell_was_sent: false }
    }
}

impl Subscriptions {
    /// Of somebody who sees nothing yet.
    pub(super) fn new() -> Self {
        Self {
            entries: Vec::new(),
            near_end: 0,
            next_distant: 0..0,
            crowd_detail: CrowdDetail::Full,
            incomplete: false,
            closed_in_turn: false,
            used_layers: 0,
            anchor: None,
            private: None,
            crowds_turned: 0,
            waiting: Vec::new(),
            opened: 0,
            closes: Vec::with_capacity(CLOSES_PER_SNAPSHOT),
            ends: Ends::NONE,
            details: Vec::new(),
            crowd_ends: Vec::new(),
            seen: Vec::new(),
        }
    }

    #[inline]
    pub(super) fn entry_mut(&mut self, index: u16) -> &mut Entry {
        &mut self.entries[usize::from(index)]
    }

    /// Whether the viewer was sent nothing yet of a page.
    pub(super) fn is_new(&self, index: u16) -> bool {
        self.entry(index).sent == 0
    }

    /// Pages that the viewer may hold.
    pub(super) fn opened(&self) -> usize {
        self.opened
    }

    /// How finely the viewer sees crowds.
    pub(super) fn crowd_detail(&self) -> CrowdDetail {
        self.crowd_detail
    }

    fn entry(&self, index: u16) -> &Entry {
        &self.entries[usize::from(index)]
    }

    fn detail_mut(&mut self, index: u16) -> &mut Detail {
        &mut self.details[usize::from(index)]
    }

    pub(super) fn cells(&self) -> impl Iterator<Item = CellId> + '_ {
        self.details.iter().map(|detail| detail.page).filter(|page| page.number == 0).map(|page| page.cell)
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
        let [of_a, of_b] = [a, b].map(|index| &self.details[usize::from(index)]);
        let nearest = of_a.squared_distance.total_cmp(&of_b.squared_distance);
        since(a).cmp(&since(b)).then(nearest).then(of_a.page.cmp(&of_b.page))
    }

    /// Follows the viewer: adds the cells that came into its sight, closes those that left it, and adds the pages
    /// that were seen behind others. Entries change their places then.
    pub(super) fn follow(
        &mut self,
        frame: &Frame,
        position: LatticePosition,
        private: Option<CellId>,
        applied: &AppliedTicks,
        scratch: &mut Encoder,
    ) {
        let moved = |anchor: LatticePosition| anchor.max_axis_distance(position) > scratch.slack_steps;
        let used_layers = frame.used_layer_bits();
        let moved =
            self.anchor.is_none_or(moved) || used_layers != self.used_layers || private != self.private;
        if !moved && !self.incomplete {
            return;
        }
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
        let both = self.entries.iter().zip(&self.details);
        held.extend(both.map(|(&entry, &detail)| Moving { entry, detail }));
        held.sort_unstable_by_key(|moving| moving.detail.page);
        if moved {
            (self.used_layers, self.private) = (used_layers, private);
            let complete = self.merge(frame, position, wanted, held, kept);
            // What could not be closed now is tried again in the next tick.
            self.anchor = complete.then_some(position);
        } else {
            std::mem::swap(held, kept);
        }
        add_pages_behind(frame, kept);
        self.make_room(frame, kept.len());
        self.seen.clear();
        let first_pages = kept.iter().filter(|moving| moving.detail.page.number == 0);
        self.seen.extend(first_pages.map(|moving| (moving.detail.page.cell, moving.entry.near)));
        self.arrange(frame, kept, applied);
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
                kept.push(Moving { entry: Entry::new(near), detail });
            }
            for moving in pages {
                moving.entry.near = near;
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
            room(&mut self.details, most);
            room(&mut self.waiting, most);
            room(&mut self.seen, most);
        }
    }

    /// Puts the entries in the order of their turns.
    fn arrange(&mut self, frame: &Frame, kept: &mut [Moving], applied: &AppliedTicks) {
        for Moving { entry, detail } in kept.iter_mut() {
            entry.settle(applied);
            entry.crowded = entry
                .header(frame)
                .filter(|header| header.id == detail.page)
                .map_or(entry.crowded, |header| header.crowded);
        }
        self.crowd_detail = CrowdDetail::of(kept.iter().filter(|moving| moving.entry.crowded).count());
        let (distant, crowds) = (frame.distant_period(), self.crowd_detail.period());
        let group = |moving: &Moving| match moving.entry {
            Entry { crowded: true, .. } => 1 + distant + phase_in_crowds(moving.detail.page, crowds),
            Entry { near: true, .. } => 0,
            Entry { .. } => 1 + frame.phase(moving.detail.page),
        };
        kept.sort_unstable_by_key(|moving| (group(moving), moving.detail.page));
        let end_of = |last: u32| kept.partition_point(|moving| group(moving) <= last) as u16;
        self.near_end = end_of(0);
        self.ends.set((0..distant).map(|phase| end_of(1 + phase)));
        self.crowd_ends.clear();
        self.crowd_ends.extend((0..crowds).map(|phase| end_of(1 + distant + phase)));
        self.entries.clear();
        self.details.clear();
        self.waiting.clear();
        self.opened = kept.iter().filter(|moving| moving.entry.sent != 0).count();
        for (index, moving) in (0..).zip(kept.iter()) {
            self.entries.push(moving.entry);
            self.details.push(moving.detail);
            if moving.entry.waiting {
                self.waiting.push(index);
            }
        }
        self.incomplete = false;
    }

    /// Fetches into the cache the entries that have their turn in the next tick.
    #[inline]
    pub(super) fn prefetch(&self) {
        prefetch(&self.entries[..usize::from(self.near_end)]);
        prefetch(&self.entries[usize::from(self.next_distant.start)..usize::from(self.next_distant.end)]);
        if self.crowd_detail != CrowdDetail::Full {
            let crowds = self.ends.last().copied().unwrap_or(self.near_end);
            let next = in_phase(&self.crowd_ends, crowds, self.crowds_turned + 1);
            prefetch(&self.entries[usize::from(next.start)..usize::from(next.end)]);
        }
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
        for (phase, &end) in (0..).zip(&*self.ends) {
            if has_turn(phase) {
                turns.extend(start..end);
            }
            start = end;
        }
        self.next_distant = in_phase(&self.ends, self.near_end, now + 1);
        let has_crowd_turn = self.crowd_turns(now, start, turns);
        let (entries, details) = (&self.entries, &self.details);
        turns.extend(self.waiting.drain(..).filter(|&index| {
            let (entry, page) = (&entries[usize::from(index)], details[usize::from(index)].page);
            let has_turn =
                if entry.crowded { has_crowd_turn(page) } else { entry.near || has_turn(frame.phase(page)) };
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
    pub(super) fn locate<'f>(
        &mut self,
        index: u16,
        frame: &'f Frame,
        applied: &AppliedTicks,
    ) -> Option<(u32, &'f PageHeader)> {
        let entry = &mut self.entries[usize::from(index)];
        entry.settle(applied);
        let header = match entry.header(frame) {
            Some(header) => header,
            None if entry.page_index == NO_PAGE && entry.absent_at == frame.cells_version() => return None,
            None => self.find_again(index, frame)?,
        };
        let entry = &mut self.entries[usize::from(index)];
        let page_index = entry.page_index;
        if (header.next != NO_PAGE && !entry.has_next) || header.crowded != entry.crowded {
            entry.has_next |= header.next != NO_PAGE;
            self.incomplete = true;
        }
        if entry.held {
            let held_at = self.details[usize::from(index)].held_at;
            entry.held = held_at == frame.tick();
            return (held_at != frame.tick()).then_some((page_index, header));
        }
        Some((page_index, header))
    }

    /// Finds the page of an entry that is not where it was.
    fn find_again<'f>(&mut self, index: u16, frame: &'f Frame) -> Option<&'f PageHeader> {
        let page = self.details[usize::from(index)].page;
        let page_index = frame.index_of(page);
        let Some(header) = frame.pages().header(page_index) else {
            self.forget_released(index, frame.tick());
            let entry = self.entry_mut(index);
            // The table tells of cells, and so of their first pages.
            if page.number == 0 && entry.sent == 0 && entry.baseline == 0 {
                (entry.page_index, entry.absent_at) = (NO_PAGE, frame.cells_version());
            }
            return None;
        };
        let entry = self.entry_mut(index);
        (entry.page_index, entry.generation) = (page_index, header.generation);
        Some(header)
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
        let cell = self.details[usize::from(index)].page.cell;
        let was_sent =
            self.find(PageId { cell, number: 0 }).is_some_and(|first| self.details[first].cell_was_sent);
        if self.close(cell, was_sent, now) {
            self.closed_in_turn = true;
            for index in 0..self.entries.len() {
                if self.details[index].page.cell == cell {
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
        self.opened -= usize::from(self.entry(index).sent != 0);
        let entry = self.entry_mut(index);
        let Entry { page_index, generation, near, crowded, .. } = *entry;
        *entry = Entry { page_index, generation, crowded, held: true, ..Entry::new(near) };
        let detail = self.detail_mut(index);
        (detail.held_at, detail.waiting_since) = (now, 0);
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

    /// Notes that a block was written, complete or not, which relies on an earlier one on its way or on none.
    #[inline]
    pub(super) fn note_sent(&mut self, index: u16, complete: bool, relies: bool, now: Tick) {
        let entry = self.entry_mut(index);
        let is_first = entry.sent == 0;
        entry.note_sent(now, complete, relies);
        if is_first {
            self.opened += 1;
            let page = self.details[usize::from(index)].page;
            if let Some(first) = self.find(PageId { number: 0, ..page }) {
                self.details[first].cell_was_sent = true;
            }
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
            self.opened += usize::from(was_sent);
        }
    }

    fn find(&self, page: PageId) -> Option<usize> {
        self.details.iter().position(|detail| detail.page == page)
    }
}

/// Adds the entries of all pages behind others that were seen. Needs the order by page, and leaves it.
fn add_pages_behind(frame: &Frame, kept: &mut Vec<Moving>) {
    let mut at = 0;
    while let Some(&Moving { entry, detail }) = kept.get(at) {
        at += 1;
        let behind = PageId { number: detail.page.number + 1, ..detail.page };
        let is_there = kept.get(at).is_some_and(|next| next.detail.page == behind);
        if entry.has_next && !is_there && kept.len() < MAX_ENTRIES {
            let found = entry.header(frame).and_then(|first| {
                let header = frame.pages().header(first.next)?;
                Some((first.next, header.generation, header.next != NO_PAGE))
            });
            let mut entry = Entry::new(entry.near);
            if let Some((page_index, generation, has_next)) = found {
                entry = Entry { page_index, generation, has_next, ..entry };
            }
            kept.insert(at, Moving { entry, detail: Detail::new(behind, detail.squared_distance) });
        }
    }
}

/// The entries that have their turn in a tick, of those from `start` on whose phases end at `ends`.
fn in_phase(ends: &[u16], start: u16, tick: Tick) -> Range<u16> {
    if ends.is_empty() {
        return 0..0;
    }
    // The phase whose turn it is: `(tick + phase) % period == 0`.
    let phase = (ends.len() - tick as usize % ends.len()) % ends.len();
    phase.checked_sub(1).map_or(start, |before| ends[before])..ends[phase]
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

/// How far a viewer may move along an axis before its subscriptions have to follow, in steps.
pub(super) fn slack_steps(frame: &Frame) -> u32 {
    let slack = frame.layers().all().iter().map(slack_of).fold(f64::INFINITY, f64::min);
    // The largest difference on an axis is at least 1 / sqrt(3) of the distance.
    (slack / 1.8) as u32
}

fn slack_of(layer: &Layer) -> f64 {
    f64::from(layer.cell_edge()) * SLACK_PER_EDGE
}
