//! Blocks, encoded once: the cache of a worker, valid for one tick.

use shadowland_wire::block::{AgeCode, BODY_MAX_BYTES, BodyPlan, Change, Tombstone, encode_body, slots};
use shadowland_wire::codec::{Full, Writer};
use shadowland_wire::entity::{EntityDelta, EntityId};
use shadowland_wire::lattice::low_bits_for;
use shadowland_wire::limits::{PAGE_SLOTS, PAGE_TOMBSTONES};

use super::Frame;
use super::poses::Poses;
use super::subscriptions::{Due, Moving, Turns, Wanted, most_entries, slack_steps};
use crate::Tick;
use crate::interest::{Layer, Page, Row};

/// A block may rely on blocks that are still on their way, as far as this many ticks back. Every block tells all
/// comings and goings of as many ticks, and its low-bits positions cover as much movement: so a viewer who missed
/// some of those blocks, or gets them late, never takes one entity for another and reads every position right.
pub(super) const OPTIMISTIC_TICKS: Tick = 15;
/// Most bits of a low-bits position that a block can announce.
const MAX_LOW_BITS: u32 = 31;

/// Encodes pages of the current frame and keeps the blocks until the next tick. One per worker, so that
/// nothing is shared between threads but the frame.
#[derive(Debug, Default)]
pub struct Encoder {
    tick: Tick,
    pages: usize,
    /// By age code, then page index: few codes are in use at a time, so this keeps their entries together.
    entries: Vec<Entry>,
    bytes: Vec<u8>,
    used: usize,
    pub(super) poses: Poses,
    /// Pages that a viewer is about to get; scratch of [`super::Viewer::snapshot`], kept to be reused.
    pub(super) due: Vec<Due>,
    /// How far a viewer may move before its subscriptions have to follow, in steps.
    pub(super) slack_steps: u32,
    /// Scratch of a viewer whose subscriptions change: the cells in its sight, its entries before and after.
    pub(super) wanted: Vec<Wanted>,
    pub(super) held: Vec<Moving>,
    pub(super) kept: Vec<Moving>,
    /// Whose turn it is of a viewer's entries; scratch.
    pub(super) turns: Turns,
    stats: EncoderStats,
}

/// What an encoder did since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncoderStats {
    /// Blocks that had to be encoded.
    pub encoded: u64,
    /// Blocks that were handed out.
    pub used: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    tick: Tick,
    body: Body,
}

/// Where the body of a block stands.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Body {
    start: u32,
    length: u16,
}

impl Body {
    pub(super) fn len(self) -> usize {
        self.length.into()
    }
}

impl Encoder {
    /// An empty cache.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many blocks were encoded, and how many times they were used.
    #[must_use]
    pub fn stats(&self) -> EncoderStats {
        self.stats
    }

    /// Forgets the blocks of the tick before. Called for every frame before its first block.
    pub(super) fn begin(&mut self, frame: &Frame) {
        if self.tick != frame.tick() {
            self.tick = frame.tick();
            self.used = 0;
            self.poses.clear();
            let pages = frame.pages().len();
            if pages > self.pages {
                self.pages = pages.next_power_of_two();
                self.entries.resize(self.pages * AgeCode::COUNT, Entry::default());
            }
            self.slack_steps = slack_steps(frame);
            self.reserve(most_entries(frame));
            self.turns.reserve(frame, most_entries(frame));
        }
    }

    /// Makes the scratch large enough for a viewer with so many entries.
    fn reserve(&mut self, entries: usize) {
        fn room<T>(scratch: &mut Vec<T>, entries: usize) {
            scratch.reserve(entries.saturating_sub(scratch.len()));
        }
        room(&mut self.due, entries);
        room(&mut self.wanted, entries);
        room(&mut self.held, entries);
        room(&mut self.kept, entries);
    }

    /// The body of a block: a page as it is now, against the baseline of this age.
    #[inline]
    pub(super) fn body(&mut self, frame: &Frame, page_index: u32, age: AgeCode) -> Body {
        let at = age.index() * self.pages + page_index as usize;
        let Entry { tick, body } = self.entries[at];
        if tick == self.tick { body } else { self.encode(frame, page_index, age, at) }
    }

    /// Counts the blocks of a viewer's turns.
    pub(super) fn count_used(&mut self) {
        self.stats.used += self.due.len() as u64;
    }

    /// Writes a body that was asked for in this tick.
    #[inline]
    pub(super) fn write(&self, body: Body, writer: &mut Writer<'_>) -> Result<(), Full> {
        writer.short_bytes(&self.bytes, body.start as usize, body.len())
    }

    #[inline(never)]
    fn encode(&mut self, frame: &Frame, page_index: u32, age: AgeCode, at: usize) -> Body {
        self.stats.encoded += 1;
        let start = self.used;
        if self.bytes.len() < start + BODY_MAX_BYTES {
            // With room for a tick in which more happens than in those before.
            self.bytes.resize(2 * (start + BODY_MAX_BYTES).next_power_of_two(), 0);
        }
        let page = frame.pages().page(page_index);
        let layer = frame.layers().of_cell(page.id().cell);
        let plan = Plan::new(page, frame.tick(), age, layer);
        let out = &mut self.bytes[start..start + BODY_MAX_BYTES];
        let length = encode_body(&plan.body(), |slot| &page.row(slot).record, out)
            .expect("BODY_MAX_BYTES is computed from the largest possible body");
        self.used += length;
        let body = Body { start: start as u32, length: length as u16 };
        self.entries[at] = Entry { tick: self.tick, body };
        body
    }
}

/// What has to be said about a page.
struct Plan {
    tombstones: [Tombstone; PAGE_TOMBSTONES],
    tombstone_count: usize,
    enters: u32,
    updates: u32,
    changes: [Change; PAGE_SLOTS],
    low_bits: u32,
}

impl Plan {
    fn new(page: Page<'_>, now: Tick, age: AgeCode, layer: &Layer) -> Self {
        let mut plan = Self {
            tombstones: [Tombstone { id: EntityId::NONE, age: 0, destination: None }; PAGE_TOMBSTONES],
            tombstone_count: 0,
            enters: 0,
            updates: 0,
            changes: [Change { delta: EntityDelta::NONE, height: false, wide: false }; PAGE_SLOTS],
            low_bits: 0,
        };
        match age.age() {
            None => plan.enters = page.occupied(),
            Some(age) => plan.since(page, now, age, layer),
        }
        plan
    }

    fn since(&mut self, page: Page<'_>, now: Tick, age: Tick, layer: &Layer) {
        let baseline = now.saturating_sub(age);
        // What the viewer holds may be as old as this.
        let window = age.max(OPTIMISTIC_TICKS);
        let held = now.saturating_sub(window);
        for stone in page.stones().iter().filter(|stone| stone.left > held) {
            // Who is removed between two ticks leaves in the next one.
            let age = u16::try_from(now.saturating_sub(stone.left)).unwrap_or(u16::MAX);
            self.tombstones[self.tombstone_count] =
                Tombstone { id: stone.id, age, destination: stone.destination };
            self.tombstone_count += 1;
        }
        let mut hurried = false;
        for slot in slots(page.occupied()) {
            let row = page.row(slot);
            if row.entered > held {
                self.enters |= 1 << slot;
                continue;
            }
            let delta = changes_since(row, baseline);
            if !delta.is_empty() {
                self.updates |= 1 << slot;
                hurried |= row.hurried > held;
                self.changes[slot] =
                    Change { delta, height: row.height_changed > held, wide: row.teleported > held };
            }
        }
        // Whoever caught up moved two steps in some of the ticks.
        let reach = layer.reach(window).saturating_mul(if hurried { 2 } else { 1 });
        let bits = low_bits_for(reach);
        self.low_bits = bits.min(MAX_LOW_BITS);
        if bits > MAX_LOW_BITS {
            self.changes.iter_mut().for_each(|change| change.wide = true);
        }
    }

    fn body(&self) -> BodyPlan<'_> {
        BodyPlan {
            tombstones: &self.tombstones[..self.tombstone_count],
            enters: self.enters,
            updates: self.updates,
            changes: &self.changes,
            low_bits: self.low_bits,
        }
    }
}

#[inline]
fn changes_since(row: &Row, baseline: Tick) -> EntityDelta {
    let mut bits = 0;
    for (group, changed) in row.changed.iter().enumerate() {
        bits |= u8::from(*changed > baseline) << group;
    }
    EntityDelta::from_bits(bits)
}
