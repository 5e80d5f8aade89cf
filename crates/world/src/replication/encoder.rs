//! Blocks, encoded once: the cache of a worker, valid for one tick.

use shadowland_wire::block::{AgeCode, BODY_MAX_BYTES, BodyPlan, Change, Tombstone, encode_body, slots};
use shadowland_wire::entity::{EntityDelta, EntityId};
use shadowland_wire::lattice::low_bits_for;
use shadowland_wire::limits::{PAGE_SLOTS, PAGE_TOMBSTONES};

use super::Frame;
use crate::Tick;
use crate::interest::{Page, Row};

/// Most bits of a low-bits position that a block can announce.
const MAX_LOW_BITS: u32 = 31;

/// Encodes pages of the current frame and keeps the blocks until the next tick. One per worker, so that
/// nothing is shared between threads but the frame.
#[derive(Debug)]
pub struct Encoder {
    tick: Tick,
    /// By page index and age code: where the body stands in `bytes`; valid if `tick` is the current one.
    entries: Vec<Entry>,
    bytes: Vec<u8>,
    used: usize,
    /// Pages that a viewer is about to get; scratch of [`super::Viewer::snapshot`], kept to be reused.
    pub(super) due: Vec<super::viewer::Due>,
    pub(super) wanted: Vec<super::subscriptions::Wanted>,
    stats: EncoderStats,
}

/// What an encoder did since it was made.
#[derive(Debug, Clone, Copy, Default)]
pub struct EncoderStats {
    /// Blocks that had to be encoded.
    pub encoded: u64,
    /// Blocks that were handed out.
    pub used: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    tick: Tick,
    start: u32,
    length: u16,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// An empty cache.
    #[must_use]
    pub fn new() -> Self {
        Self {
            tick: 0,
            entries: Vec::new(),
            bytes: Vec::new(),
            used: 0,
            due: Vec::new(),
            wanted: Vec::new(),
            stats: EncoderStats::default(),
        }
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
            self.entries.resize(frame.page_count() * AgeCode::COUNT, Entry::default());
        }
    }

    /// The body of a block: a page as it is now, against the baseline of this age.
    #[inline]
    pub(super) fn body(&mut self, frame: &Frame, page_index: u32, age: AgeCode) -> &[u8] {
        self.stats.used += 1;
        let at = page_index as usize * AgeCode::COUNT + age.index();
        if self.entries[at].tick != self.tick {
            self.entries[at] = self.encode(frame, page_index, age);
        }
        let Entry { start, length, .. } = self.entries[at];
        &self.bytes[start as usize..start as usize + usize::from(length)]
    }

    fn encode(&mut self, frame: &Frame, page_index: u32, age: AgeCode) -> Entry {
        self.stats.encoded += 1;
        let start = self.used;
        if self.bytes.len() < start + BODY_MAX_BYTES {
            self.bytes.resize((start + BODY_MAX_BYTES).next_power_of_two(), 0);
        }
        let page = frame.page_at(page_index);
        let max_step = frame.layers().of_cell(page.id().cell).max_step();
        let plan = Plan::new(page, frame.tick(), age, max_step);
        let body = plan.body();
        let out = &mut self.bytes[start..start + BODY_MAX_BYTES];
        let length = encode_body(&body, |slot| &page.row(slot).record, out)
            .expect("BODY_MAX_BYTES is computed from the largest possible body");
        self.used += length;
        Entry { tick: self.tick, start: start as u32, length: length as u16 }
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
    fn new(page: &Page, now: Tick, age: AgeCode, max_step: u32) -> Self {
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
            Some(age) => plan.since(page, now, now.saturating_sub(age), max_step),
        }
        plan
    }

    fn since(&mut self, page: &Page, now: Tick, baseline: Tick, max_step: u32) {
        for stone in page.stones().iter().filter(|stone| stone.left > baseline) {
            let age = u16::try_from(now - stone.left).unwrap_or(u16::MAX);
            self.tombstones[self.tombstone_count] =
                Tombstone { id: stone.id, age, destination: stone.destination };
            self.tombstone_count += 1;
        }
        // Whoever caught up moved two steps in some of the ticks.
        let age = now - baseline;
        let hurried = page.rows().any(|row| row.hurried > baseline);
        let reach = age.saturating_mul(max_step).saturating_mul(if hurried { 2 } else { 1 });
        self.low_bits = low_bits_for(reach).min(MAX_LOW_BITS);
        let told_apart = low_bits_for(reach) <= MAX_LOW_BITS;
        for slot in slots(page.occupied()) {
            let row = page.row(slot);
            if row.entered > baseline {
                self.enters |= 1 << slot;
                continue;
            }
            let delta = changes_since(row, baseline);
            if !delta.is_empty() {
                self.updates |= 1 << slot;
                let wide = row.teleported > baseline || !told_apart;
                self.changes[slot] = Change { delta, height: row.height_changed > baseline, wide };
            }
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
