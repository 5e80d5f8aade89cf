//! Which pages a viewer gets, and what it has applied of them.
//!
//! Most pages that a viewer sees go **in step**: those that have their turns together (the near ones, and the distant
//! ones of a phase) leave in the same packets, so that how far the viewer is with all of them is known once for the
//! group, and a page's turn is a look at its header. A page that is new, was asked for again, did not fit or has moved to
//! another group goes **alone**, with a progress of its own, until it is as far as its group:
//!
//! 1. In one of its group's turns, a block of it leaves that relies on nothing that is still on its way, or there is
//!    nothing to tell that the viewer does not have. From then on it is steady: it takes every turn of its group.
//! 2. When the group's baseline has reached that tick, the viewer has applied all turns up to the baseline, and with
//!    them what the page was then. What holds for the group holds for the page.

mod follow;
mod turns;

use std::ops::{Deref, Range};

use shadowland_prefetch::prefetch;
use shadowland_wire::block::{CellId, PageId};
use shadowland_wire::lattice::LatticePosition;
use shadowland_wire::limits::{CLIENT_ENTITIES, CLIENT_PAGES, CLOSES_PER_SNAPSHOT, PAGE_SLOTS};
use shadowland_wire::message::server::Close;

pub(super) use follow::{Moving, Wanted, most_entries, slack_steps};
pub(super) use turns::{Due, Turns};

use super::Frame;
use super::crowd::CrowdDetail;
use super::progress::Progress;
use crate::Tick;
use crate::config::DISTANT_PERIOD_MAX;
use crate::interest::{NO_PAGE, PageHeader};

/// Pages that a client is shown together: of as many entities as it keeps. What is beyond is not seen.
const OPEN_PAGES: usize = CLIENT_ENTITIES / PAGE_SLOTS;
/// Entries of pages behind others are added while there are fewer than this. A cell within sight has one in any case,
/// of which the shortest cells that a configuration can have make fewer than 15,500: indices have 16 bits.
const MAX_ENTRIES: usize = OPEN_PAGES;
/// Groups of pages that can go in step: the near ones, then the distant ones of the first phases. With more phases
/// than that, pages of the others go alone.
const GROUPS: usize = 8;

const _: () = assert!(OPEN_PAGES < CLIENT_PAGES && MAX_ENTRIES + 15_500 < u16::MAX as usize);

/// What the viewer has of one page: the part that is looked at whenever the page has its turn, of ten thousand
/// viewers' entries from memory. Every cell that the viewer sees has at least the entry of page 0.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Where the page was in the last frame, or that there was none: see [`Entry::absent`].
    page_index: u32,
    /// That of the page at `page_index`, when it was found there.
    generation: u8,
    /// How far the viewer is with the page is what its group's progress says, and not that of [`Alone`].
    in_step: bool,
    /// Its cell is a crowd: its turns are those of the crowds, and it goes alone.
    crowded: bool,
    /// The cell has another page behind it.
    has_next: bool,
}

const _: () = assert!(size_of::<Entry>() == 8, "what all viewers hold of a page is looked at in every tick");

/// As the index of a page: it was not looked for yet.
const NOT_LOOKED_FOR: u32 = NO_PAGE - 1;
/// As the index of a page, with the version of the table of cells in the low bits: there was no page then.
const ABSENT: u32 = 0xfffe_0000;

/// The part of an entry that matters while it goes alone.
#[derive(Debug, Clone, Copy)]
struct Alone {
    progress: Progress,
    /// Since this tick the page has taken every turn of its group, beginning with a block that relied on nothing; 0 =
    /// it has not.
    steady_since: Tick,
    /// Updates come every tick.
    near: bool,
    /// Nothing may be sent in the tick in which the cell was closed.
    held: bool,
    /// A block is due that did not fit.
    waiting: bool,
    /// The world had released the page, empty, and the viewer still has it open: somebody who goes there may be handed over to
    /// it before a block is sent, so that it has to be told even if nobody is there any more.
    lingers: bool,
}

/// The part of an entry that is rarely looked at.
#[derive(Debug, Clone, Copy)]
struct Detail {
    page: PageId,
    /// Since when a block waits, if [`Alone::waiting`] says that one does.
    waiting_since: Tick,
    /// The tick in which it was held.
    held_at: Tick,
    /// The square of the cell's distance when subscriptions were computed, in steps.
    squared_distance: f32,
    /// A block of the cell was sent, so that it has to be closed. Kept at page 0.
    cell_was_sent: bool,
}

#[derive(Debug, Clone, Copy)]
struct PendingClose {
    cell: CellId,
    tick: Tick,
}

/// The subscriptions of one viewer.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Subscriptions {
    /// Those that are near, then the distant ones and last those of crowds by the phase of their turns, each by page:
    /// what has its turn in the same tick lies together.
    entries: Vec<Entry>,
    near_end: u16,
    /// The distant entries whose turn comes in the next tick, and those of crowds.
    next_distant: Range<u16>,
    next_of_crowds: Range<u16>,
    crowd_detail: CrowdDetail,
    /// A page was seen that has no entry yet.
    incomplete: bool,
    /// A cell was closed while turns were taken: what is already due of it must not go out.
    closed_in_turn: bool,
    /// Which layers had anybody in them when the cells were computed.
    used_layers: u8,
    /// Bit by group: it has its turn in this tick, and relies on its last one then.
    turning: u8,
    relying: u8,
    /// Where the viewer was when the cells were computed.
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
    /// How far the viewer is with the pages that go in step, by group.
    groups: [Progress; GROUPS],
    /// Where the distant entries of each phase end; the first begin where the near ones end.
    ends: Ends,
    /// By entry.
    alone: Vec<Alone>,
    /// By entry.
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

impl Entry {
    const NEW: Self =
        Self { page_index: NOT_LOOKED_FOR, generation: 0, in_step: false, crowded: false, has_next: false };

    /// What [`Entry::page_index`] is while the cell has no page: a cell without one is one look in each of its turns.
    #[inline]
    fn absent(frame: &Frame) -> u32 {
        ABSENT | u32::from(frame.cells_version())
    }

    /// The header of its page, if that is still where it was in the last frame.
    #[inline]
    fn header<'f>(&self, frame: &'f Frame) -> Option<&'f PageHeader> {
        frame.pages().header(self.page_index).filter(|header| header.generation == self.generation)
    }
}

impl Alone {
    fn new(near: bool) -> Self {
        Self { progress: Progress::NONE, steady_since: 0, near, held: false, waiting: false, lingers: false }
    }

    /// Nothing was sent of the page, and nothing is known of it.
    fn is_unheard_of(&self) -> bool {
        self.progress.sent == 0 && self.progress.baseline == 0
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
            next_of_crowds: 0..0,
            crowd_detail: CrowdDetail::Full,
            incomplete: false,
            closed_in_turn: false,
            used_layers: 0,
            turning: 0,
            relying: 0,
            anchor: None,
            private: None,
            crowds_turned: 0,
            waiting: Vec::new(),
            opened: 0,
            closes: Vec::with_capacity(CLOSES_PER_SNAPSHOT),
            groups: [Progress::NONE; GROUPS],
            ends: Ends::NONE,
            alone: Vec::new(),
            details: Vec::new(),
            crowd_ends: Vec::new(),
            seen: Vec::new(),
        }
    }

    /// How finely the viewer sees crowds.
    pub(super) fn crowd_detail(&self) -> CrowdDetail {
        self.crowd_detail
    }

    pub(super) fn cells(&self) -> impl Iterator<Item = CellId> + '_ {
        self.details.iter().map(|detail| detail.page).filter(|page| page.number == 0).map(|page| page.cell)
    }

    pub(super) fn closes(&self, now: Tick) -> impl ExactSizeIterator<Item = Close> + '_ {
        self.closes.iter().map(move |close| Close { cell: close.cell, age: now - close.tick })
    }

    /// The viewer has applied all closes up to a tick.
    pub(super) fn closes_applied(&mut self, tick: Tick) {
        self.closes.retain(|close| close.tick > tick);
    }

    /// The viewer could not apply a page: what was sent so far counts for nothing.
    pub(super) fn reset(&mut self, page: PageId, now: Tick) {
        if let Some(index) = self.find(page) {
            let was_sent = self.was_sent(index);
            self.reset_entry(index, now);
            // It may show somebody there: if nobody is, it has to be told.
            self.alone[index].progress.sent = Tick::from(was_sent);
            self.opened += usize::from(was_sent);
        }
    }

    /// Fetches into the cache the entries that have their turn in the next tick.
    #[inline]
    pub(super) fn prefetch(&self) {
        let indices = |range: &Range<u16>| usize::from(range.start)..usize::from(range.end);
        prefetch(&self.entries[..usize::from(self.near_end)]);
        prefetch(&self.entries[indices(&self.next_distant)]);
        if self.crowd_detail != CrowdDetail::Full {
            let next = indices(&self.next_of_crowds);
            prefetch(&self.entries[next.clone()]);
            prefetch(&self.alone[next]);
            // In the turn after that it is found out who comes next.
            let phase = turns::turning_phase(self.crowds_turned + 2, self.crowd_detail.period());
            self.crowd_ends.get(phase as usize).into_iter().for_each(prefetch);
        }
    }

    /// Whether a block of the entry's page was sent since it counts.
    #[inline]
    fn was_sent(&self, index: usize) -> bool {
        self.entries[index].in_step || self.alone[index].progress.sent != 0
    }

    /// From now on the page goes alone, from where its group is.
    fn leave_step(&mut self, index: usize) {
        if self.entries[index].in_step {
            let group = self.group_of(index);
            self.entries[index].in_step = false;
            self.alone[index].progress = self.groups[group];
            self.alone[index].steady_since = 0;
        }
    }

    /// The group of an entry, by its place.
    fn group_of(&self, index: usize) -> usize {
        match index < usize::from(self.near_end) {
            true => 0,
            false => 1 + self.ends.partition_point(|end| usize::from(*end) <= index),
        }
    }

    /// Forgets what the viewer has of a page; nothing is sent of it before the next tick.
    fn reset_entry(&mut self, index: usize, now: Tick) {
        self.opened -= usize::from(self.was_sent(index));
        let Entry { page_index, generation, crowded, .. } = self.entries[index];
        self.entries[index] = Entry { page_index, generation, crowded, ..Entry::NEW };
        self.alone[index] = Alone { held: true, ..Alone::new(self.alone[index].near) };
        let detail = &mut self.details[index];
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

    fn find(&self, page: PageId) -> Option<usize> {
        self.details.iter().position(|detail| detail.page == page)
    }
}
