//! The contender: what servers usually do. Per viewer, every entity in sight is looked up, compared with what that
//! viewer was last sent, and written for it alone.
//!
//! It serves the same frames as the real server, in the same run: the same grid finds who could be in sight, the same
//! quantized rows with the ticks of their changes are compared, the same records are written in the same bits, near
//! entities in every tick and distant ones in every third. What differs is what is shared: the filter is exact, and
//! every viewer numbers what it sees for itself, with a baseline per entity. Like the server it relies on what is on
//! its way, and its packets are acknowledged after 1 to 8 ticks.
//!
//! Not in it, in its favour: what would have to be done after a loss. Nor is the session around the packets, which is
//! the same for both: [`super::alone`] has the server's own replication in the same surroundings.

use std::collections::VecDeque;

use shadowland_wire::block::{
    AgeCode, BODY_MAX_BYTES, BlockHeader, BodyPlan, CellId, Change, PageId, Tombstone, encode_body, slots,
};
use shadowland_wire::codec::{Full, Writer};
use shadowland_wire::entity::{EntityDelta, EntityId};
use shadowland_wire::lattice::low_bits_for;
use shadowland_wire::limits::{DATAGRAM_BYTES, PAGE_SLOTS, PAGE_TOMBSTONES};
use shadowland_wire::message::server::{Brevity, OwnerRecord, SnapshotHeader};
use shadowland_world::interest::{Layer, Row};
use shadowland_world::replication::OwnerRow;
use shadowland_world::{Frame, PlayerHandle, Tick};

use super::alone::{Link, snapshot_of};

/// Numbers of a viewer; who finds none free is not seen.
const NUMBERS: usize = 1 << 14;
/// A distant entity has its turn every so many ticks.
const DISTANT_PERIOD: Tick = 3;
/// The largest number of low bits that a block can announce.
const MAX_LOW_BITS: u32 = 31;

/// A server that works per viewer.
pub(super) struct PerViewer {
    /// By slot of the player.
    viewers: Vec<Option<Viewer>>,
    budget_bytes: usize,
    bytes_out: u64,
}

/// What one viewer was sent.
struct Viewer {
    link: Link,
    /// Who is in sight, by identifier, each with its number.
    in_sight: Vec<(EntityId, u16)>,
    /// By number.
    baselines: Vec<Baseline>,
    /// By number, [`PAGE_SLOTS`] each.
    groups: Vec<Group>,
    packets: VecDeque<Packet>,
    /// Lists of packets that were acknowledged, to be used again.
    spare: Vec<Vec<u16>>,
    /// Where the next tick's turn begins when the budget was too small.
    next_group: usize,
    own: Own,
}

/// What the viewer has of an entity.
#[derive(Clone, Copy, Default)]
struct Baseline {
    /// The tick of its last record; 0 = it has not appeared yet.
    sent: Tick,
    /// The newest tick whose record is known to have been applied; before that, the one in which it appeared.
    known: Tick,
}

/// Entities that are written together, with a bit each.
#[derive(Default)]
struct Group {
    used: u32,
    was_sent: bool,
    /// Who left the sight, to be told of: their numbers are in use until then.
    gone: Vec<(EntityId, u32)>,
}

/// What a packet carried: its acknowledgement raises these baselines.
#[derive(Default)]
struct Packet {
    tick: Tick,
    numbers: Vec<u16>,
}

/// What the viewer is known to hold of its own state.
#[derive(Default)]
struct Own {
    acknowledged: Tick,
    height: (i32, i8),
    level_since: Tick,
}

/// Somebody in sight.
#[derive(Clone, Copy)]
struct Visible<'f> {
    id: EntityId,
    row: &'f Row,
    layer: &'f Layer,
    is_near: bool,
}

/// Reused from viewer to viewer.
struct Scratch<'f> {
    /// By identifier.
    visible: Vec<Visible<'f>>,
    /// By the viewer's numbers.
    by_number: Vec<Option<Visible<'f>>>,
    in_sight: Vec<(EntityId, u16)>,
}

impl PerViewer {
    pub(super) fn new(players: usize, budget_bytes: usize) -> Self {
        Self { viewers: (0..players).map(|_| None).collect(), budget_bytes, bytes_out: 0 }
    }

    /// Bytes of all datagrams so far.
    pub(super) fn bytes_out(&self) -> u64 {
        self.bytes_out
    }

    /// Sends everybody a snapshot of a frame. `message` is shown the body of each before it is sealed.
    pub(super) fn serve(&mut self, frame: &Frame, mut message: impl FnMut(PlayerHandle, &[u8])) {
        let mut scratch = Scratch { visible: Vec::new(), by_number: Vec::new(), in_sight: Vec::new() };
        for (player, owner) in frame.owners() {
            let viewer = &mut self.viewers[player.slot as usize];
            if viewer.as_ref().is_none_or(|viewer| viewer.link.player != player) {
                *viewer = Some(Viewer::new(player));
            }
            let Some(viewer) = viewer else { continue };
            viewer.hear_answers(frame.tick());
            scratch.look_around(frame, player, owner);
            viewer.follow(&mut scratch);
            self.bytes_out += viewer.send(frame, owner, &mut scratch, self.budget_bytes, &mut message) as u64;
        }
    }
}

impl<'f> Scratch<'f> {
    /// Finds everybody within the interest distance, but the player itself.
    fn look_around(&mut self, frame: &'f Frame, player: PlayerHandle, owner: &OwnerRow) {
        self.visible.clear();
        let here = frame.lattice().quantize(owner.position_cm);
        for layer in frame.layers().all() {
            let reach = f64::from(layer.distance());
            let near = reach / 2.0;
            // Entities may be a few steps outside of their cell.
            layer.cells_within(here, reach + 4.0, |cell, _| {
                for row in frame.pages_of(cell).flat_map(|page| page.rows()) {
                    let squared = here.squared_distance(row.record.position);
                    if squared <= reach * reach && row.record.id != player.entity {
                        let is_near = squared <= near * near;
                        self.visible.push(Visible { id: row.record.id, row, layer, is_near });
                    }
                }
            });
        }
        self.visible.sort_unstable_by_key(|visible| visible.id);
    }
}

impl Viewer {
    fn new(player: PlayerHandle) -> Self {
        Self {
            link: Link::new(player),
            in_sight: Vec::new(),
            baselines: Vec::new(),
            groups: Vec::new(),
            packets: VecDeque::new(),
            spare: Vec::new(),
            next_group: 0,
            own: Own::default(),
        }
    }

    fn hear_answers(&mut self, now: Tick) {
        while let Some(packet) = self.packets.pop_front_if(|packet| packet.tick + self.link.round_trip <= now)
        {
            self.own.acknowledged = packet.tick;
            let mut numbers = packet.numbers;
            for number in numbers.drain(..) {
                let known = &mut self.baselines[usize::from(number)].known;
                *known = packet.tick.max(*known);
            }
            self.spare.push(numbers);
        }
    }

    /// Gives numbers to those who came into sight, and takes them from those who left it.
    fn follow(&mut self, scratch: &mut Scratch<'_>) {
        let Scratch { visible, by_number, in_sight } = scratch;
        by_number.clear();
        by_number.resize(self.baselines.len(), None);
        in_sight.clear();
        let held = std::mem::take(&mut self.in_sight);
        let mut held_ids = held.iter().copied().peekable();
        for &visible in visible.iter() {
            while let Some((id, number)) = held_ids.next_if(|(id, _)| *id < visible.id) {
                self.lose(id, number);
            }
            let number = match held_ids.next_if(|(id, _)| *id == visible.id) {
                Some((_, number)) => number,
                None => match self.free_number() {
                    Some(number) => number,
                    None => continue,
                },
            };
            in_sight.push((visible.id, number));
            by_number.resize(self.baselines.len(), None);
            by_number[usize::from(number)] = Some(visible);
        }
        held_ids.for_each(|(id, number)| self.lose(id, number));
        self.in_sight = std::mem::replace(in_sight, held);
    }

    fn lose(&mut self, id: EntityId, number: u16) {
        let (group, slot) = place(number);
        if self.baselines[usize::from(number)].sent == 0 {
            // Nobody has told of it yet.
            self.groups[group].used &= !(1 << slot);
        } else {
            self.groups[group].gone.push((id, slot));
        }
    }

    fn free_number(&mut self) -> Option<u16> {
        let full = (1 << PAGE_SLOTS) - 1;
        let group = match self.groups.iter().position(|group| group.used != full) {
            Some(group) => group,
            None if self.baselines.len() + PAGE_SLOTS > NUMBERS => return None,
            None => {
                self.groups.push(Group::default());
                self.baselines.resize(self.baselines.len() + PAGE_SLOTS, Baseline::default());
                self.groups.len() - 1
            }
        };
        let slot = self.groups[group].used.trailing_ones();
        self.groups[group].used |= 1 << slot;
        let number = group * PAGE_SLOTS + slot as usize;
        self.baselines[number] = Baseline::default();
        Some(number as u16)
    }

    /// Writes, seals and counts the snapshot of a tick; gives its bytes.
    fn send(
        &mut self,
        frame: &Frame,
        owner: &OwnerRow,
        scratch: &mut Scratch<'_>,
        budget_bytes: usize,
        message: &mut impl FnMut(PlayerHandle, &[u8]),
    ) -> usize {
        let now = frame.tick();
        let record = owner.record(frame.lattice());
        let mut header = SnapshotHeader {
            owner: Some(record),
            brevity: self.own.brevity(now, &record),
            ..SnapshotHeader::new(now, owner.last_input)
        };
        let (mut bytes, mut used, mut visited) = (0, 0, 0);
        let first = self.next_group;
        loop {
            let mut packet = Packet { tick: now, numbers: self.spare.pop().unwrap_or_default() };
            let mut buffer = [0; DATAGRAM_BYTES];
            let mut writer = snapshot_of(&mut buffer);
            header.encode(&mut writer).expect("there is room for a header");
            let mut previous = CellId(0);
            while visited < self.groups.len() && used < budget_bytes {
                let group = (first + visited) % self.groups.len();
                match self.write_group(group, now, scratch, &mut writer, &mut previous, &mut packet.numbers) {
                    Ok(written) => used += written,
                    Err(Full) => break,
                }
                visited += 1;
            }
            let written = writer.len();
            message(self.link.player, writer.written());
            bytes += self.link.seal(&mut buffer, written);
            self.packets.push_back(packet);
            if visited == self.groups.len() || used >= budget_bytes {
                break;
            }
            header = SnapshotHeader { owner: None, ..header };
        }
        // Who had no turn is first in the next tick.
        self.next_group = if visited < self.groups.len() { (first + visited) % self.groups.len() } else { 0 };
        bytes
    }

    /// Writes the block of a group, if anything is to be said; gives its length. When it does not fit, nothing is
    /// written.
    fn write_group(
        &mut self,
        index: usize,
        now: Tick,
        scratch: &Scratch<'_>,
        writer: &mut Writer<'_>,
        previous: &mut CellId,
        numbers: &mut Vec<u16>,
    ) -> Result<usize, Full> {
        let Self { baselines, groups, .. } = self;
        let group = &mut groups[index];
        let in_sight = &scratch.by_number[index * PAGE_SLOTS..][..PAGE_SLOTS];
        let baselines = &mut baselines[index * PAGE_SLOTS..][..PAGE_SLOTS];
        let plan = Plan::new(group, in_sight, baselines, now, index);
        if plan.is_empty() {
            return Ok(0);
        }
        let age = if group.was_sent { AgeCode::covering(1) } else { AgeCode::FULL };
        let page = PageId { cell: CellId(index as u32), number: 0 };
        let mut body = [0; BODY_MAX_BYTES];
        let row = |slot: usize| &in_sight[slot].expect("it has a row").row.record;
        let length = encode_body(&plan.body(), row, &mut body)?;
        if BlockHeader::MAX_BYTES + length > writer.remaining() {
            return Err(Full);
        }
        let before = writer.len();
        BlockHeader { page, age }.encode(writer, previous)?;
        writer.bytes(&body[..length])?;
        group.was_sent = true;
        for (_, slot) in group.gone.drain(..plan.stone_count) {
            group.used &= !(1 << slot);
        }
        for slot in slots(plan.enters | plan.updates) {
            let baseline = &mut baselines[slot];
            baseline.known = if baseline.sent == 0 { now } else { baseline.known };
            baseline.sent = now;
            numbers.push((index * PAGE_SLOTS + slot) as u16);
        }
        Ok(writer.len() - before)
    }
}

/// The group of a number, and the bit in it.
fn place(number: u16) -> (usize, u32) {
    (usize::from(number) / PAGE_SLOTS, (usize::from(number) % PAGE_SLOTS) as u32)
}

impl Own {
    fn brevity(&mut self, now: Tick, record: &OwnerRecord) -> Brevity {
        let height = (record.position.z, record.fraction[2]);
        if height != self.height {
            (self.height, self.level_since) = (height, now);
        }
        match self.acknowledged {
            0 => Brevity::Full,
            known if known >= self.level_since => Brevity::Level,
            _ => Brevity::Short,
        }
    }
}

/// What has to be said about a group.
struct Plan {
    stones: [Tombstone; PAGE_TOMBSTONES],
    stone_count: usize,
    enters: u32,
    updates: u32,
    changes: [Change; PAGE_SLOTS],
    low_bits: u32,
}

impl Plan {
    fn new(
        group: &Group,
        in_sight: &[Option<Visible<'_>>],
        baselines: &[Baseline],
        now: Tick,
        index: usize,
    ) -> Self {
        let mut plan = Self {
            stones: [Tombstone { id: EntityId::NONE, age: 0, destination: None }; PAGE_TOMBSTONES],
            stone_count: group.gone.len().min(PAGE_TOMBSTONES),
            enters: 0,
            updates: 0,
            changes: [Change { delta: EntityDelta::NONE, height: false, wide: false }; PAGE_SLOTS],
            low_bits: 0,
        };
        for (stone, &(id, _)) in plan.stones.iter_mut().zip(&group.gone) {
            stone.id = id;
        }
        let mut reach = 0;
        for (slot, visible) in in_sight.iter().enumerate() {
            let Some(visible) = visible else { continue };
            let baseline = baselines[slot];
            if baseline.sent == 0 {
                plan.enters |= 1 << slot;
                continue;
            }
            let has_turn = visible.is_near || (now + index as Tick).is_multiple_of(DISTANT_PERIOD);
            let delta = if has_turn { changes_since(visible.row, baseline.sent) } else { EntityDelta::NONE };
            if !delta.is_empty() {
                let row = visible.row;
                plan.updates |= 1 << slot;
                plan.changes[slot] = Change {
                    delta,
                    height: row.height_changed > baseline.known,
                    wide: row.teleported > baseline.known,
                };
                let hurry = if row.hurried > baseline.known { 2 } else { 1 };
                reach = reach.max(visible.layer.reach(now - baseline.known) * hurry);
            }
        }
        if plan.updates != 0 {
            plan.low_bits = low_bits_for(reach).min(MAX_LOW_BITS);
        }
        plan
    }

    fn is_empty(&self) -> bool {
        self.stone_count == 0 && self.enters == 0 && self.updates == 0
    }

    fn body(&self) -> BodyPlan<'_> {
        BodyPlan {
            tombstones: &self.stones[..self.stone_count],
            enters: self.enters,
            updates: self.updates,
            changes: &self.changes,
            low_bits: self.low_bits,
        }
    }
}

fn changes_since(row: &Row, baseline: Tick) -> EntityDelta {
    let changed = |group: usize| u8::from(row.changed[group] > baseline) << group;
    EntityDelta::from_bits((0..EntityDelta::GROUPS).map(changed).sum())
}

#[cfg(test)]
mod tests {
    use shadowland_client::replica::Replica;
    use shadowland_wire::message::client::Input;
    use shadowland_world::{World, WorldConfig, sight};

    use super::*;

    /// What it writes is read by the client's own replica: everybody within the distance, and nobody else, with the
    /// values of the server's lattice.
    #[test]
    fn viewers_see_exactly_who_is_in_sight() {
        let mut config = WorldConfig { npcs: 60, player_capacity: 40, ..WorldConfig::default() };
        config.layers = sight::layers(|_| 5_000.0, 2.0);
        config.set_density(100, 30.0, 5_000.0);
        let mut world = World::new(config.clone());
        let players: Vec<PlayerHandle> = (0..40).map(|_| world.join().unwrap()).collect();
        let mut server = PerViewer::new(40, 600);
        let mut replicas: Vec<Replica> = (0..40).map(|_| Replica::new()).collect();
        let mut frame = Frame::new(&config);
        let mut changed_sight = 0;
        for tick in 1..=900 {
            world.pause_creatures(tick > 880);
            for player in &players {
                let forward = if tick > 880 { 0 } else { 127 };
                let yaw = (player.slot * 7_919 + tick / 200 * 20_000) as u16;
                world.input(*player, tick, Input { forward, yaw, ..Input::default() });
            }
            world.tick();
            world.publish(&mut frame);
            server.serve(&frame, |player, body| {
                let replica = &mut replicas[player.slot as usize];
                let before = replica.entities().len();
                assert_eq!(replica.apply_snapshot(body, &mut ()).unwrap().skipped, 0);
                changed_sight += usize::from(replica.entities().len() != before);
            });
        }
        assert!(changed_sight > 500, "{changed_sight}");
        for (player, replica) in players.iter().zip(&replicas) {
            let owner = frame.owner(*player).unwrap();
            assert_eq!(replica.owner(), Some(&owner.record(frame.lattice())));
            let mut scratch = Scratch { visible: Vec::new(), by_number: Vec::new(), in_sight: Vec::new() };
            scratch.look_around(&frame, *player, owner);
            assert_eq!(replica.entities().len(), scratch.visible.len());
            for visible in scratch.visible {
                assert_eq!(replica.entity(visible.id), Some(&visible.row.record));
            }
        }
        assert!(server.bytes_out() > 0);
    }
}
