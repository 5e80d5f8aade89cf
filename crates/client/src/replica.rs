//! The client's copy of what it sees, built from snapshots. The seven rules of `docs/PROTOCOL.md`
//! ("Replication"), which make every copy converge to the server's truth under loss, duplication and
//! reordering, are implemented here and nowhere else.

use std::collections::VecDeque;
use std::mem::offset_of;

use rustc_hash::FxHashMap;
use shadowland_prefetch::prefetch_first;
use shadowland_wire::block::{AgeCode, Block, BlockHeader, CellId, EntityRecord, PageId, Tombstone, Update};
use shadowland_wire::codec::{DecodeError, Reader};
use shadowland_wire::entity::{EntityDelta, EntityId};
use shadowland_wire::limits::{CLIENT_CLOSES, CLIENT_ENTITIES, CLIENT_PAGES, PAGE_SLOTS};
use shadowland_wire::message::server::{Close, OwnerRecord, SnapshotHeader};
use shadowland_wire::pose::{Pose, PoseContext};

/// Ticks for which a closed cell is remembered, 17 s at 60 Hz. Whatever the idle timeout of the session is, no
/// packet that is older by so much is expected: the replay window drops what is 64 packets behind, and
/// networks do not hold packets back for so long.
const CLOSED_MEMORY_TICKS: u32 = 1024;

/// Pages and entities of a replica that are fetched into the cache together, from the first on: outside of crowds that
/// is nearly all.
const PREFETCHED: usize = 64;

/// Is told what a snapshot changes, while it is applied.
pub trait Watcher {
    /// An entity came into sight.
    fn appeared(&mut self, _tick: u32, _record: &EntityRecord) {}
    /// Something is known of a visible entity at a newer tick than before. `since`, always less than `tick`, is
    /// the tick up to which its page had been applied before; of a late block, the newest tick at which what it
    /// tells was known.
    fn updated(&mut self, _since: u32, _tick: u32, _record: &EntityRecord) {}
    /// An entity is out of sight.
    fn vanished(&mut self, _id: EntityId) {}
}

impl Watcher for () {}

/// An entity in sight.
#[derive(Debug, Clone, Copy)]
pub struct ReplicaEntity {
    /// Its quantized state.
    pub record: EntityRecord,
    /// Index of the page that owns it (rule 1).
    owner: u32,
    /// Its place among those whom that page owns.
    link: Link,
    /// The tick at which that was learnt.
    learnt: u32,
    /// The tick of what is known of each field group, in the order of the [`EntityDelta`] bits (rule 2).
    known: [u32; EntityDelta::GROUPS],
}

impl ReplicaEntity {
    /// Notes that a group is known at `tick`, and gives the tick at which it was before; `None` if what is known is
    /// not older.
    fn learn(&mut self, group: EntityDelta, tick: u32) -> Option<u32> {
        let known = &mut self.known[group.to_bits().trailing_zeros() as usize];
        (tick > *known).then(|| std::mem::replace(known, tick))
    }

    /// A complete record of an entity that is known already, without what is known more recently.
    fn merged(&self, complete: Self) -> Self {
        let mut merged = Self { link: self.link, ..complete };
        let newer = |group: EntityDelta| {
            let group = group.to_bits().trailing_zeros() as usize;
            self.known[group] > complete.known[group]
        };
        if newer(EntityDelta::POSITION) {
            merged.record.position = self.record.position;
        }
        if newer(EntityDelta::ROTATION) {
            merged.record.rotation = self.record.rotation;
        }
        if newer(EntityDelta::ANIMATION) {
            merged.record.animation = self.record.animation;
        }
        if newer(EntityDelta::FLAGS) {
            merged.record.state = self.record.state;
        }
        if newer(EntityDelta::VELOCITY) {
            merged.record.velocity = self.record.velocity;
        }
        if newer(EntityDelta::VITALS) {
            merged.record.vitals = self.record.vitals;
        }
        for (merged, mine) in merged.known.iter_mut().zip(self.known) {
            *merged = mine.max(*merged);
        }
        merged
    }
}

/// No item of a list.
const NONE: u32 = u32::MAX;

/// A place in a doubly linked list of items that lie in one array, named by their indices.
#[derive(Debug, Clone, Copy)]
struct Link {
    before: u32,
    after: u32,
}

impl Link {
    const ALONE: Self = Self { before: NONE, after: NONE };
}

/// Items that stand in such lists.
trait Linked {
    fn link(&mut self) -> &mut Link;
}

/// Puts an item at the beginning of a list.
fn link<T: Linked>(items: &mut [T], first: &mut u32, item: u32) {
    *items[item as usize].link() = Link { before: NONE, after: *first };
    if let Some(after) = items.get_mut(*first as usize) {
        after.link().before = item;
    }
    *first = item;
}

/// Takes an item out of the list that begins with `first`.
fn unlink<T: Linked>(items: &mut [T], first: &mut u32, item: u32) {
    let Link { before, after } = std::mem::replace(items[item as usize].link(), Link::ALONE);
    point(items, first, before, after, after, before);
}

/// Has the neighbours of an item name it by the index to which it has moved.
fn relink<T: Linked>(items: &mut [T], first: &mut u32, item: u32) {
    let Link { before, after } = *items[item as usize].link();
    point(items, first, before, item, after, item);
}

/// Sets what comes after `before`, or first, and what comes before `after`.
fn point<T: Linked>(items: &mut [T], first: &mut u32, before: u32, next: u32, after: u32, previous: u32) {
    match items.get_mut(before as usize) {
        Some(before) => before.link().after = next,
        None => *first = next,
    }
    if let Some(after) = items.get_mut(after as usize) {
        after.link().before = previous;
    }
}

impl Linked for ReplicaEntity {
    fn link(&mut self) -> &mut Link {
        &mut self.link
    }
}

impl Linked for PageState {
    fn link(&mut self) -> &mut Link {
        &mut self.link
    }
}

/// A page of which there was a block: it is open once a complete one was applied, and until then it is lacking.
#[derive(Debug, Clone, Copy)]
struct PageState {
    id: PageId,
    /// The tick of the newest block that was applied; 0 = none, it is lacking.
    applied: u32,
    /// The tick of the newest complete block that was applied.
    complete: u32,
    /// While it is lacking: the tick of the newest block that could not be applied, and where it stands among those
    /// that are.
    lacking_since: u32,
    lacking_at: u32,
    /// The first of those whom it owns.
    members: u32,
    /// Its place among the pages of its cell.
    link: Link,
    slots: [Place; PAGE_SLOTS],
}

/// Who stands in a slot of a page.
#[derive(Debug, Clone, Copy)]
struct Place {
    id: EntityId,
    /// The tick of that.
    tick: u32,
    /// Where the entity was found last. Mostly it is still there, which is cheaper to see than to look it up.
    index: u32,
}

impl Place {
    fn empty(tick: u32) -> Self {
        Self { id: EntityId::NONE, tick, index: 0 }
    }
}

/// The closes of the last [`CLOSED_MEMORY_TICKS`].
#[derive(Debug, Default)]
struct Closed {
    /// The newest close of each cell.
    ticks: FxHashMap<CellId, u32>,
    /// The same and those that are superseded, in the order in which they are forgotten.
    order: VecDeque<HeardClose>,
}

#[derive(Debug, Clone, Copy)]
struct HeardClose {
    heard: u32,
    cell: CellId,
    at: u32,
}

impl Closed {
    /// When the cell was closed last; 0 = not lately.
    fn tick_of(&self, cell: CellId) -> u32 {
        self.ticks.get(&cell).copied().unwrap_or(0)
    }

    /// Remembers that a cell was closed, unless a close as new is known: then `false`. `now` is the newest tick
    /// that was heard of.
    fn remember(&mut self, cell: CellId, at: u32, now: u32) -> Result<bool, DecodeError> {
        if self.tick_of(cell) >= at {
            return Ok(false);
        }
        while let Some(&oldest) = self.order.front()
            && now.saturating_sub(oldest.heard) >= CLOSED_MEMORY_TICKS
        {
            self.order.pop_front();
            if self.tick_of(oldest.cell) == oldest.at {
                self.ticks.remove(&oldest.cell);
            }
        }
        if self.order.len() == CLIENT_CLOSES {
            return Err(DecodeError::LimitExceeded("closes that are remembered"));
        }
        self.ticks.insert(cell, at);
        self.order.push_back(HeardClose { heard: now, cell, at });
        Ok(true)
    }
}

/// What a snapshot was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// The tick that it showed.
    pub tick: u32,
    /// Blocks of pages that were applied.
    pub blocks: u32,
    /// Those that were superseded already, or could not be applied.
    pub skipped: u32,
    /// Poses that told something new of somebody in sight.
    pub poses: u32,
}

/// The client's copy of what it sees.
#[derive(Debug, Default)]
pub struct Replica {
    tick: u32,
    /// The newest header that had an owner's record.
    own: Option<SnapshotHeader>,
    entities: Vec<ReplicaEntity>,
    by_id: FxHashMap<EntityId, u32>,
    pages: Vec<PageState>,
    free_pages: Vec<u32>,
    by_page: FxHashMap<PageId, u32>,
    /// The first page of every cell of which there are some.
    by_cell: FxHashMap<CellId, u32>,
    /// When cells were closed, so that a late block does not open them again (rule 5).
    closed: Closed,
    /// Pages that have to be asked for (rule 6).
    lacking: Vec<u32>,
    /// Scratch of the decoder.
    block: Block,
    poses: Vec<Pose>,
}

impl Replica {
    /// Sees nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The newest tick that was heard of; 0 = none.
    #[must_use]
    pub fn tick(&self) -> u32 {
        self.tick
    }

    /// Number of the newest input that the server had simulated in the owner's record.
    #[must_use]
    pub fn last_input(&self) -> u32 {
        self.own.map_or(0, |own| own.last_input)
    }

    /// The newest exact state of the player's own entity.
    #[must_use]
    pub fn owner(&self) -> Option<&OwnerRecord> {
        self.own.as_ref()?.owner.as_ref()
    }

    /// Everybody in sight, the player itself included, in no particular order.
    pub fn entities(&self) -> impl ExactSizeIterator<Item = &EntityRecord> + '_ {
        self.entities.iter().map(|entity| &entity.record)
    }

    /// One of those in sight.
    #[must_use]
    pub fn entity(&self, id: EntityId) -> Option<&EntityRecord> {
        self.by_id.get(&id).map(|&index| &self.entities[index as usize].record)
    }

    /// The pages that are open, with the tick up to which each was applied.
    pub fn pages(&self) -> impl Iterator<Item = (PageId, u32)> + '_ {
        let pages = self.by_page.values().map(|&index| &self.pages[index as usize]);
        pages.filter(|page| page.applied != 0).map(|page| (page.id, page.applied))
    }

    /// The pages that could not be applied and have to be asked for, in no particular order; each until it came
    /// complete or its cell was closed, for the server may have no further block that would tell of it.
    pub fn resets(&self) -> impl ExactSizeIterator<Item = PageId> + '_ {
        self.lacking.iter().map(|&page| self.pages[page as usize].id)
    }

    /// Applies the body of a Snapshot message.
    ///
    /// An error means that the server broke the protocol; the view is then not to be trusted any more.
    pub fn apply_snapshot(
        &mut self,
        body: &[u8],
        watcher: &mut impl Watcher,
    ) -> Result<Applied, DecodeError> {
        let mut reader = Reader::new(body);
        let header = self.apply_header(&mut reader)?;
        for _ in 0..header.closes {
            let close = Close::decode(&mut reader)?;
            let at = header.tick.checked_sub(close.age).ok_or(DecodeError::BadValue("age of a close"))?;
            self.close(close.cell, at, watcher)?;
        }
        let mut applied = Applied { tick: header.tick, blocks: 0, skipped: 0, poses: 0 };
        let mut previous = CellId(0);
        let mut context = PoseContext::default();
        while !reader.is_empty() {
            if PoseContext::is_next(&reader) {
                let mut poses = std::mem::take(&mut self.poses);
                let decoded = context.decode(&mut reader, &mut poses);
                for pose in &poses {
                    applied.poses += u32::from(self.apply_pose(header.tick, pose, watcher));
                }
                self.poses = poses;
                decoded?;
                continue;
            }
            let block = BlockHeader::decode(&mut reader, &mut previous)?;
            // The scratch leaves `self` while it is applied.
            let mut body = std::mem::take(&mut self.block);
            let decoded = body.decode_body(&mut reader);
            let done = decoded.and_then(|()| self.apply_block(header.tick, block, &body, watcher));
            self.block = body;
            if done? {
                applied.blocks += 1;
            } else {
                applied.skipped += 1;
            }
        }
        Ok(applied)
    }

    /// Fetches into the cache what the next snapshot is likely to change, for those who drive more replicas than a cache
    /// holds. To be called some microseconds before.
    pub fn prefetch(&self) {
        for page in self.pages.iter().take(PREFETCHED) {
            prefetch_first(page, offset_of!(PageState, slots) + 2 * size_of::<Place>());
        }
        prefetch_first(&self.entities[..], PREFETCHED * size_of::<ReplicaEntity>());
    }

    /// Takes of a Snapshot message only what it tells of time and of the player itself: of a client that shows nothing.
    pub(crate) fn apply_header_only(&mut self, body: &[u8]) -> Result<(), DecodeError> {
        self.apply_header(&mut Reader::new(body)).map(drop)
    }

    fn apply_header(&mut self, reader: &mut Reader<'_>) -> Result<SnapshotHeader, DecodeError> {
        let header = SnapshotHeader::decode(reader, self.own.as_ref())?;
        self.tick = self.tick.max(header.tick);
        // The first of a tick's packets tells of the player itself, and the second may overtake it.
        if header.owner.is_some() && self.own.is_none_or(|own| header.tick > own.tick) {
            self.own = Some(header);
        }
        Ok(header)
    }

    /// Applies a block; `false` when it is superseded or lacks its baseline.
    fn apply_block(
        &mut self,
        tick: u32,
        header: BlockHeader,
        block: &Block,
        watcher: &mut impl Watcher,
    ) -> Result<bool, DecodeError> {
        let known = self.open_page(header.page);
        let before = known.map_or(0, |page| self.pages[page as usize].applied);
        let late = tick < before;
        let closed = self.closed.tick_of(header.page.cell);
        let complete = known.map_or(0, |page| self.pages[page as usize].complete);
        // A complete block supersedes what is older (rule 2), and so does a close (rule 5).
        let superseded = tick <= complete || tick <= closed || (late && header.age == AgeCode::FULL);
        if superseded || tick == before {
            return Ok(false);
        }
        if header.age == AgeCode::FULL {
            let page = match known {
                Some(page) => page,
                None => self.find_or_add(header.page, "open pages")?,
            };
            self.apply_complete(tick, page, block, watcher)?;
            return Ok(true);
        }
        // The server raises the baseline of a page in which nothing changes without a word, so it may be newer
        // than the last block that was applied; but there must have been one.
        let Some(page) = known else {
            self.note_lacking(header.page, tick)?;
            return Ok(false);
        };
        for tombstone in &block.tombstones {
            self.apply_tombstone(tick, page, tombstone, watcher)?;
        }
        for (slot, record) in &block.enters {
            if !late || self.owns(page, record.id) {
                self.apply_enter(tick, page, *slot, record, watcher)?;
            }
        }
        // All are found before the first is changed: their memory is then on its way together.
        for updates in block.updates.chunks(PAGE_SLOTS) {
            let mut found = [None; PAGE_SLOTS];
            for (update, found) in updates.iter().zip(&mut found) {
                *found = self.in_slot(page, update.slot);
            }
            for (update, found) in updates.iter().zip(found) {
                if let Some(index) = found {
                    self.apply_update(tick, page, before, index, update, watcher);
                }
            }
        }
        self.pages[page as usize].applied = tick.max(before);
        Ok(true)
    }

    /// Rule 6. The packet is acknowledged all the same, so nobody else remembers that the page is missing.
    fn note_lacking(&mut self, id: PageId, tick: u32) -> Result<(), DecodeError> {
        let page = self.find_or_add(id, "pages to be asked for")?;
        let state = &mut self.pages[page as usize];
        if state.lacking_since == 0 {
            state.lacking_at = self.lacking.len() as u32;
            self.lacking.push(page);
        }
        state.lacking_since = tick.max(state.lacking_since);
        Ok(())
    }

    /// It is there, or need not be any more.
    fn note_not_lacking(&mut self, page: u32) {
        let state = &mut self.pages[page as usize];
        if std::mem::take(&mut state.lacking_since) == 0 {
            return;
        }
        let at = state.lacking_at;
        self.lacking.swap_remove(at as usize);
        if let Some(&moved) = self.lacking.get(at as usize) {
            self.pages[moved as usize].lacking_at = at;
        }
    }

    /// The index of a page of which a complete block was applied.
    fn open_page(&self, id: PageId) -> Option<u32> {
        self.by_page.get(&id).copied().filter(|&page| self.pages[page as usize].applied != 0)
    }

    /// Index of the entity that stands in a slot.
    fn in_slot(&mut self, page: u32, slot: u8) -> Option<u32> {
        let place = &mut self.pages[page as usize].slots[usize::from(slot)];
        let is_still_there =
            self.entities.get(place.index as usize).is_some_and(|entity| entity.record.id == place.id);
        if !is_still_there {
            place.index = *self.by_id.get(&place.id)?;
        }
        Some(place.index)
    }

    fn owns(&self, page: u32, id: EntityId) -> bool {
        self.by_id.get(&id).is_some_and(|&index| self.entities[index as usize].owner == page)
    }

    /// The block is the page's whole membership: who is not in it is not in the page.
    fn apply_complete(
        &mut self,
        tick: u32,
        page: u32,
        block: &Block,
        watcher: &mut impl Watcher,
    ) -> Result<(), DecodeError> {
        self.note_not_lacking(page);
        self.pages[page as usize].slots = [Place::empty(tick); PAGE_SLOTS];
        for (slot, record) in &block.enters {
            self.apply_enter(tick, page, *slot, record, watcher)?;
        }
        let listed = |id| block.enters.iter().any(|(_, record)| record.id == id);
        self.remove_members(page, listed, watcher);
        let state = &mut self.pages[page as usize];
        state.complete = tick;
        state.applied = tick;
        Ok(())
    }

    /// Rule 3: a complete record takes ownership unless what is known is newer. Equal ticks are no conflict: at
    /// any tick an entity is in one page, and a tombstone may have handed it over to this one already.
    fn apply_enter(
        &mut self,
        tick: u32,
        page: u32,
        slot: u8,
        record: &EntityRecord,
        watcher: &mut impl Watcher,
    ) -> Result<(), DecodeError> {
        let state = &mut self.pages[page as usize];
        let place = &mut state.slots[usize::from(slot)];
        if place.tick <= tick {
            *place = Place { id: record.id, tick, ..*place };
        }
        let since = state.applied;
        let new = ReplicaEntity {
            record: *record,
            owner: page,
            link: Link::ALONE,
            learnt: tick,
            known: [tick; EntityDelta::GROUPS],
        };
        if let Some(&index) = self.by_id.get(&record.id) {
            if tick >= self.entities[index as usize].learnt {
                self.hand_over(index, page, tick);
                let entity = &mut self.entities[index as usize];
                let known = entity.known.into_iter().filter(|&known| known < tick).max();
                *entity = entity.merged(new);
                if let Some(known) = known {
                    let record = entity.record;
                    watcher.updated(if since < tick { since } else { known }, tick, &record);
                }
            }
            return Ok(());
        }
        if self.entities.len() == CLIENT_ENTITIES {
            return Err(DecodeError::LimitExceeded("entities in sight"));
        }
        let index = self.entities.len() as u32;
        self.by_id.insert(record.id, index);
        self.entities.push(new);
        link(&mut self.entities, &mut self.pages[page as usize].members, index);
        watcher.appeared(tick, record);
        Ok(())
    }

    /// Rule 3: an update acts only if the page owns the entity; rule 2: only on what is not known more recently.
    fn apply_update(
        &mut self,
        tick: u32,
        page: u32,
        since: u32,
        index: u32,
        update: &Update,
        watcher: &mut impl Watcher,
    ) {
        let entity = &mut self.entities[index as usize];
        if entity.owner != page || entity.learnt > tick {
            return;
        }
        let mut known_before = None;
        let mut learn = |entity: &mut ReplicaEntity, group| {
            let before = if update.delta.contains(group) { entity.learn(group, tick) } else { None };
            known_before = known_before.max(before);
            before.is_some()
        };
        if learn(entity, EntityDelta::POSITION) {
            entity.record.position = update.position.resolve(entity.record.position);
        }
        if learn(entity, EntityDelta::ROTATION) {
            entity.record.rotation = update.rotation;
        }
        if learn(entity, EntityDelta::ANIMATION) {
            entity.record.animation = update.animation;
        }
        if learn(entity, EntityDelta::FLAGS) {
            entity.record.state = update.state;
        }
        if learn(entity, EntityDelta::VELOCITY) {
            entity.record.velocity = update.velocity;
        }
        if learn(entity, EntityDelta::VITALS) {
            entity.record.vitals = update.vitals;
        }
        if let Some(known) = known_before {
            watcher.updated(if since < tick { since } else { known }, tick, &entity.record);
        }
    }

    /// Rule 7: a pose acts on whoever is in sight, and only where nothing more recent is known. Tells whether it did.
    fn apply_pose(&mut self, tick: u32, pose: &Pose, watcher: &mut impl Watcher) -> bool {
        let Some(&index) = self.by_id.get(&pose.id) else { return false };
        let entity = &mut self.entities[index as usize];
        let mut known_before = None;
        let mut learn = |entity: &mut ReplicaEntity, group| {
            let before = entity.learn(group, tick);
            known_before = known_before.max(before);
            before.is_some()
        };
        if learn(entity, EntityDelta::POSITION) {
            entity.record.position = pose.position;
        }
        if learn(entity, EntityDelta::ROTATION) {
            entity.record.rotation = pose.rotation;
        }
        if learn(entity, EntityDelta::ANIMATION) {
            entity.record.animation = pose.animation;
        }
        if let Some((state, vitals)) = pose.condition {
            if learn(entity, EntityDelta::FLAGS) {
                entity.record.state = state;
            }
            if learn(entity, EntityDelta::VITALS) {
                entity.record.vitals = vitals;
            }
        }
        if let Some(known) = known_before {
            watcher.updated(known, tick, &entity.record);
        }
        known_before.is_some()
    }

    /// Rule 4: hands the entity over to where it went, or removes it.
    fn apply_tombstone(
        &mut self,
        tick: u32,
        page: u32,
        tombstone: &Tombstone,
        watcher: &mut impl Watcher,
    ) -> Result<(), DecodeError> {
        let left =
            tick.checked_sub(tombstone.age.into()).ok_or(DecodeError::BadValue("age of a tombstone"))?;
        let Some(&index) = self.by_id.get(&tombstone.id) else { return Ok(()) };
        let entity = &self.entities[index as usize];
        if entity.owner != page || entity.learnt >= left {
            return Ok(());
        }
        let destination = tombstone
            .destination
            .and_then(|destination| self.open_page(destination))
            .filter(|&destination| self.pages[destination as usize].applied < left);
        match destination {
            Some(destination) => self.hand_over(index, destination, left),
            None => self.remove(index, watcher),
        }
        Ok(())
    }

    fn hand_over(&mut self, index: u32, to: u32, learnt: u32) {
        let entity = &mut self.entities[index as usize];
        entity.learnt = learnt;
        let from = std::mem::replace(&mut entity.owner, to);
        if from != to {
            unlink(&mut self.entities, &mut self.pages[from as usize].members, index);
            link(&mut self.entities, &mut self.pages[to as usize].members, index);
        }
    }

    /// Rule 5: removes everything that the cell's pages own, unless a newer block was applied.
    fn close(&mut self, cell: CellId, at: u32, watcher: &mut impl Watcher) -> Result<(), DecodeError> {
        if !self.closed.remember(cell, at, self.tick)? {
            return Ok(());
        }
        let mut next = self.by_cell.get(&cell).copied().unwrap_or(NONE);
        while let Some(&PageState { applied, lacking_since, link, .. }) = self.pages.get(next as usize) {
            if applied.max(lacking_since) <= at {
                self.remove_members(next, |_| false, watcher);
                self.close_page(next);
            }
            next = link.after;
        }
        Ok(())
    }

    /// The index of a page, which is new when there was no block of it yet, or none since it was closed.
    fn find_or_add(&mut self, id: PageId, what: &'static str) -> Result<u32, DecodeError> {
        if let Some(&page) = self.by_page.get(&id) {
            return Ok(page);
        }
        let state = PageState {
            id,
            applied: 0,
            complete: 0,
            lacking_since: 0,
            lacking_at: 0,
            members: NONE,
            link: Link::ALONE,
            slots: [Place::empty(0); PAGE_SLOTS],
        };
        let page = match self.free_pages.pop() {
            Some(page) => {
                self.pages[page as usize] = state;
                page
            }
            None if self.pages.len() == CLIENT_PAGES => return Err(DecodeError::LimitExceeded(what)),
            None => {
                self.pages.push(state);
                self.pages.len() as u32 - 1
            }
        };
        self.by_page.insert(id, page);
        link(&mut self.pages, self.by_cell.entry(id.cell).or_insert(NONE), page);
        Ok(page)
    }

    /// Forgets a page that owns nobody.
    fn close_page(&mut self, page: u32) {
        self.note_not_lacking(page);
        let id = self.pages[page as usize].id;
        self.by_page.remove(&id);
        self.free_pages.push(page);
        if let Some(first) = self.by_cell.get_mut(&id.cell) {
            unlink(&mut self.pages, first, page);
            if *first == NONE {
                self.by_cell.remove(&id.cell);
            }
        }
    }

    /// Removes those whom a page owns, but for some.
    fn remove_members(&mut self, page: u32, stays: impl Fn(EntityId) -> bool, watcher: &mut impl Watcher) {
        let mut next = self.pages[page as usize].members;
        while let Some(entity) = self.entities.get(next as usize) {
            let (index, after) = (next, entity.link.after);
            next = after;
            if !stays(entity.record.id) {
                // The last one takes the place of whoever is removed.
                if after as usize + 1 == self.entities.len() {
                    next = index;
                }
                self.remove(index, watcher);
            }
        }
    }

    fn remove(&mut self, index: u32, watcher: &mut impl Watcher) {
        let owner = self.entities[index as usize].owner;
        unlink(&mut self.entities, &mut self.pages[owner as usize].members, index);
        let removed = self.entities.swap_remove(index as usize);
        self.by_id.remove(&removed.record.id);
        if let Some(&moved) = self.entities.get(index as usize) {
            self.by_id.insert(moved.record.id, index);
            relink(&mut self.entities, &mut self.pages[moved.owner as usize].members, index);
        }
        watcher.vanished(removed.record.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::seq::SliceRandom;
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg32;
    use shadowland_wire::block::{BODY_MAX_BYTES, BodyPlan, Change, encode_body};
    use shadowland_wire::codec::Writer;
    use shadowland_wire::entity::{EntityState, EntityType};
    use shadowland_wire::lattice::LatticePosition;
    use shadowland_wire::quantize::{Rotation, Velocity, Vitals};

    fn snapshot(tick: u32, closes: impl ExactSizeIterator<Item = Close>) -> Vec<u8> {
        let mut body = [0; 1_150];
        let mut writer = Writer::new(&mut body);
        SnapshotHeader { closes: closes.len(), ..SnapshotHeader::new(tick, 0) }.encode(&mut writer).unwrap();
        closes.for_each(|close| close.encode(&mut writer).unwrap());
        writer.written().to_vec()
    }

    fn apply_closes(
        replica: &mut Replica,
        tick: u32,
        cells: std::ops::Range<u32>,
    ) -> Result<(), DecodeError> {
        let closes = cells.map(|cell| Close { cell: CellId(cell), age: 0 });
        replica.apply_snapshot(&snapshot(tick, closes), &mut ()).map(|_| ())
    }

    const PAGE: PageId = PageId { cell: CellId(5), number: 0 };

    fn record(x: i32) -> EntityRecord {
        EntityRecord {
            id: EntityId::new(7, 0),
            kind: EntityType::Player,
            position: LatticePosition { x, y: 0, z: 0 },
            rotation: Rotation::default(),
            animation: 1,
            state: EntityState::NONE,
            velocity: Velocity::default(),
            vitals: Vitals::FULL,
        }
    }

    /// A snapshot of a page with one entity: complete, or with an update of these groups.
    fn block(tick: u32, age: AgeCode, delta: EntityDelta, record: &EntityRecord) -> Vec<u8> {
        let mut bytes = snapshot(tick, [].into_iter());
        let mut body = [0; BODY_MAX_BYTES];
        let full = age == AgeCode::FULL;
        let change = Change { delta, height: false, wide: false };
        let (enters, updates) = if full { (1, 0) } else { (0, 1) };
        let changes = &[change; PAGE_SLOTS];
        let plan = BodyPlan { tombstones: &[], enters, updates, changes, low_bits: 12 };
        let length = encode_body(&plan, |_| record, &mut body).unwrap();
        let mut header = [0; 16];
        let mut writer = Writer::new(&mut header);
        BlockHeader { page: PAGE, age }.encode(&mut writer, &mut CellId(0)).unwrap();
        bytes.extend_from_slice(writer.written());
        bytes.extend_from_slice(&body[..length]);
        bytes
    }

    #[derive(Default)]
    struct Heard(Vec<(u32, u32, i32)>);

    impl Watcher for Heard {
        fn updated(&mut self, since: u32, tick: u32, record: &EntityRecord) {
            self.0.push((since, tick, record.position.x));
        }
    }

    #[test]
    fn only_news_is_told_and_late_blocks_reach_back_to_what_was_known() {
        let (mut replica, mut heard) = (Replica::new(), Heard::default());
        let since = AgeCode::covering(8);
        let vitals = EntityRecord { vitals: Vitals { health: 9, mana: 9 }, ..record(10) };
        for (tick, age, delta, record) in [
            (100, AgeCode::FULL, EntityDelta::NONE, record(10)),
            (102, since, EntityDelta::VITALS, vitals),
            (105, since, EntityDelta::POSITION, record(50)),
            // Late: its position is old, its vitals are as well.
            (101, since, EntityDelta::POSITION.union(EntityDelta::VITALS), record(20)),
            // Late: its position is old, its vitals are not.
            (103, since, EntityDelta::POSITION.union(EntityDelta::VITALS), record(30)),
        ] {
            let bytes = block(tick, age, delta, &record);
            replica.apply_snapshot(&bytes, &mut heard).unwrap();
        }
        assert_eq!(heard.0, [(100, 102, 10), (102, 105, 50), (102, 103, 50)]);
        assert_eq!(replica.entity(EntityId::new(7, 0)), Some(&record(50)));
    }

    /// A block of a page with these tombstones and complete records.
    fn membership(
        tick: u32,
        page: PageId,
        age: AgeCode,
        tombstones: &[Tombstone],
        records: &[EntityRecord],
    ) -> Vec<u8> {
        let mut bytes = snapshot(tick, [].into_iter());
        let mut body = [0; BODY_MAX_BYTES];
        let changes = &[Change { delta: EntityDelta::NONE, height: false, wide: false }; PAGE_SLOTS];
        let enters = (1 << records.len()) - 1;
        let plan = BodyPlan { tombstones, enters, updates: 0, changes, low_bits: 12 };
        let length = encode_body(&plan, |slot| &records[slot], &mut body).unwrap();
        let mut header = [0; 16];
        let mut writer = Writer::new(&mut header);
        BlockHeader { page, age }.encode(&mut writer, &mut CellId(0)).unwrap();
        bytes.extend_from_slice(writer.written());
        bytes.extend_from_slice(&body[..length]);
        bytes
    }

    /// Walks a list, and checks that it is linked both ways.
    fn list<T: Linked + Copy>(items: &[T], first: u32) -> Vec<u32> {
        let (mut found, mut before, mut next) = (Vec::new(), NONE, first);
        while let Some(item) = items.get(next as usize) {
            let link = *item.clone().link();
            assert_eq!(link.before, before, "{found:?} {next}");
            found.push(next);
            (before, next) = (next, link.after);
            assert!(found.len() <= items.len(), "a circle");
        }
        found
    }

    fn check_lists(replica: &Replica) {
        let mut members = Vec::new();
        for &page in replica.by_page.values() {
            let of_page = list(&replica.entities, replica.pages[page as usize].members);
            assert!(of_page.iter().all(|&index| replica.entities[index as usize].owner == page));
            members.extend(of_page);
        }
        members.sort_unstable();
        assert_eq!(members, (0..replica.entities.len() as u32).collect::<Vec<_>>());
        let mut pages = Vec::new();
        for (&cell, &first) in &replica.by_cell {
            let of_cell = list(&replica.pages, first);
            assert!(!of_cell.is_empty());
            assert!(of_cell.iter().all(|&page| replica.pages[page as usize].id.cell == cell));
            pages.extend(of_cell);
        }
        pages.sort_unstable();
        let mut known: Vec<u32> = replica.by_page.values().copied().collect();
        known.sort_unstable();
        assert_eq!(pages, known);
        let mut lacking: Vec<u32> =
            known.iter().copied().filter(|&page| replica.pages[page as usize].lacking_since != 0).collect();
        assert!(lacking.iter().all(|&page| replica.pages[page as usize].applied == 0));
        let mut listed = replica.lacking.clone();
        listed.sort_unstable();
        lacking.sort_unstable();
        assert_eq!(lacking, listed);
    }

    #[test]
    fn lists_hold_whoever_comes_goes_and_is_handed_over() {
        let mut random = Pcg32::seed_from_u64(5);
        let mut replica = Replica::new();
        let (mut most, mut handed_over, mut lacked) = (0, 0, 0);
        for tick in 10..6_000 {
            let mut page =
                || PageId { cell: CellId(random.random_range(0..4)), number: random.random_range(0..3) };
            let (here, there) = (page(), page());
            if random.random_ratio(1, 40) {
                let close = Close { cell: here.cell, age: random.random_range(0..3) };
                replica.apply_snapshot(&snapshot(tick, [close].into_iter()), &mut ()).unwrap();
                check_lists(&replica);
                continue;
            }
            let mut somebody: Vec<u32> = (0..60).collect();
            somebody.shuffle(&mut random);
            let records: Vec<EntityRecord> = somebody[..random.random_range(0..12)]
                .iter()
                .map(|&index| EntityRecord { id: EntityId::new(index, 0), ..record(tick as i32) })
                .collect();
            let tombstones: Vec<Tombstone> = somebody[20..random.random_range(20..26)]
                .iter()
                .map(|&index| Tombstone {
                    id: EntityId::new(index, 0),
                    age: random.random_range(0..2),
                    destination: random.random_ratio(2, 3).then_some(there),
                })
                .collect();
            let owners = |replica: &Replica| {
                replica.entities.iter().map(|entity| (entity.record.id, entity.owner)).collect::<Vec<_>>()
            };
            let before = owners(&replica);
            let age = if random.random_ratio(1, 6) { AgeCode::FULL } else { AgeCode::covering(4) };
            let stones = if age == AgeCode::FULL { &[] } else { &tombstones[..] };
            replica.apply_snapshot(&membership(tick, here, age, stones, &records), &mut ()).unwrap();
            check_lists(&replica);
            let moved = |(id, owner): &(EntityId, u32)| {
                records.iter().all(|record| record.id != *id)
                    && before.iter().any(|(same, before)| same == id && before != owner)
            };
            handed_over += owners(&replica).iter().filter(|owner| moved(owner)).count();
            lacked += replica.resets().len();
            most = most.max(replica.entities.len());
        }
        assert!(most > 30 && handed_over > 100 && lacked > 100, "{most} {handed_over} {lacked}");
    }

    #[test]
    fn closes_are_remembered_up_to_a_limit() {
        let mut replica = Replica::new();
        for first in (0..CLIENT_CLOSES as u32).step_by(32) {
            apply_closes(&mut replica, 5_000, first..first + 32).unwrap();
        }
        apply_closes(&mut replica, 5_000, 0..32).expect("a close that is repeated is nothing new");
        let too_many = apply_closes(&mut replica, 5_000, u32::from(u16::MAX)..u32::from(u16::MAX) + 1);
        assert_eq!(too_many, Err(DecodeError::LimitExceeded("closes that are remembered")));
    }

    #[test]
    fn a_cell_that_is_closed_again_and_again_fills_nothing() {
        let mut replica = Replica::new();
        let ticks = CLOSED_MEMORY_TICKS * 64;
        for tick in 1..=ticks {
            apply_closes(&mut replica, tick, 0..8).unwrap();
        }
        assert_eq!(replica.closed.ticks.len(), 8);
        assert_eq!(replica.closed.order.len(), CLOSED_MEMORY_TICKS as usize * 8);
        assert_eq!(replica.closed.tick_of(CellId(3)), ticks);
        apply_closes(&mut replica, ticks + CLOSED_MEMORY_TICKS - 1, 9..10).unwrap();
        assert_eq!(replica.closed.tick_of(CellId(3)), ticks, "not yet");
        apply_closes(&mut replica, ticks + CLOSED_MEMORY_TICKS, 10..11).unwrap();
        assert_eq!((replica.closed.tick_of(CellId(3)), replica.closed.ticks.len()), (0, 2));
    }
}
