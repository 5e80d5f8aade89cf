//! What one player knows, and what goes into its next packets.

use std::mem::offset_of;

use shadowland_wire::block::{BlockHeader, CellId, PageId};
use shadowland_wire::codec::{Full, Writer};
use shadowland_wire::lattice::LatticePosition;
use shadowland_wire::limits::DATAGRAM_BYTES;
use shadowland_wire::message::server::{Brevity, OwnerRecord, SnapshotHeader};

use super::crowd::{CROWD_BYTES, CrowdDetail};
use super::ledger::Ledger;
use super::poses::Reach;
use super::subscriptions::{Due, Subscriptions};
use super::{Encoder, Frame};
use crate::interest::Layer;
use crate::{PlayerHandle, Tick};

/// Slack on a round trip before a block counts as unanswered, in ticks: packets wait for the next tick on
/// both sides, and a client may answer several at once.
const ANSWER_SLACK_TICKS: Tick = 6;
/// Answers that wait for the next snapshot at most.
const ANSWERS: usize = 16;
/// Blocks that are certain to fit a packet beside headers, acknowledgements and the owner's record.
const SURE_TO_FIT_BYTES: usize = DATAGRAM_BYTES - 200;

/// The per-viewer side of replication: subscriptions, baselines, and which ticks have arrived. Owned by the worker
/// that owns the player's connection.
///
/// What an acknowledgement changes comes first; what is looked at in few places is behind
/// [`Viewer::HEAD_BYTES`].
#[derive(Debug)]
#[repr(C)]
pub struct Viewer {
    /// Low bits of the sequences of answers since the last snapshot. They are looked at with the next one, which needs
    /// what they are about anyway: what a viewer knows is far too much for any cache to keep for everybody.
    answered: [u32; ANSWERS],
    answered_count: u8,
    /// How far poses reach around the player.
    reach: Reach,
    last_tick: Tick,
    player: PlayerHandle,
    own: OwnState,
    stats: ViewerStats,
    subscriptions: Subscriptions,
    /// Last, for most of it is rarely looked at.
    ledger: Ledger,
}

/// What a viewer was sent.
#[derive(Debug, Clone, Copy, Default)]
pub struct ViewerStats {
    /// Blocks.
    pub blocks: u64,
    /// Of those, blocks of pages that went in step with others of their group.
    pub in_step: u64,
    /// Blocks that were due and did not fit, counted every tick that they waited.
    pub deferred: u64,
    /// Pages that had their turn and were not shown, for the client holds as many as it can; counted at every turn.
    pub unseen: u64,
}

impl Viewer {
    /// How much of it [`Viewer::acked`] looks at, and [`Viewer::snapshot`], from its beginning on.
    pub const ACKED_BYTES: usize = offset_of!(Self, own);
    /// See [`Viewer::ACKED_BYTES`].
    pub const HEAD_BYTES: usize = offset_of!(Self, ledger) + Ledger::HEAD_BYTES;

    /// A player who has been told nothing yet.
    #[must_use]
    pub fn new(player: PlayerHandle) -> Self {
        Self {
            answered: [0; ANSWERS],
            answered_count: 0,
            reach: Reach::default(),
            last_tick: 0,
            player,
            own: OwnState::default(),
            stats: ViewerStats::default(),
            subscriptions: Subscriptions::new(),
            ledger: Ledger::new(),
        }
    }

    /// Whose viewer it is.
    #[must_use]
    pub fn player(&self) -> PlayerHandle {
        self.player
    }

    /// What it was sent so far.
    #[must_use]
    pub fn stats(&self) -> ViewerStats {
        self.stats
    }

    /// How finely the player sees crowds.
    #[must_use]
    pub fn crowd_detail(&self) -> CrowdDetail {
        self.subscriptions.crowd_detail()
    }

    /// The cells that it subscribes to, by number.
    pub fn subscribed_cells(&self) -> impl Iterator<Item = CellId> + '_ {
        self.subscriptions.cells()
    }

    /// Whether the player has not confirmed yet that it dropped all cells that it no longer subscribes to.
    #[must_use]
    pub fn has_unconfirmed_closes(&self) -> bool {
        self.subscriptions.closes(self.last_tick).len() > 0
    }

    /// A packet that was sent with [`Snapshot::sent`] has been applied by the player.
    pub fn acked(&mut self, sequence: u64) {
        if usize::from(self.answered_count) == ANSWERS {
            self.hear_answers();
        }
        self.answered[usize::from(self.answered_count)] = sequence as u32;
        self.answered_count += 1;
    }

    /// Fetches into the cache what the next snapshot needs, once the viewer itself is there.
    #[inline]
    pub fn prefetch(&self) {
        self.answered[..usize::from(self.answered_count)].iter().for_each(|&at| self.ledger.prefetch(at));
        self.subscriptions.prefetch();
    }

    fn hear_answers(&mut self) {
        for &sequence in &self.answered[..usize::from(self.answered_count)] {
            if let Some(tick) = self.ledger.acknowledge(sequence) {
                self.subscriptions.closes_applied(tick);
                self.own.applied(tick);
            }
        }
        self.answered_count = 0;
    }

    /// The player could not apply a block of this page and needs it from scratch.
    pub fn reset_page(&mut self, page: PageId) {
        self.subscriptions.reset(page, self.last_tick);
    }

    /// Decides what the player is told about a frame. `None` when the frame is not newer than the last one, or
    /// the player is not in it. `rtt_ticks` is the connection's round-trip time; `budget_bytes` is what the
    /// blocks may take together.
    pub fn snapshot<'a>(
        &'a mut self,
        frame: &'a Frame,
        encoder: &'a mut Encoder,
        rtt_ticks: Tick,
        budget_bytes: usize,
    ) -> Option<Snapshot<'a>> {
        let owner = frame.owner(self.player)?;
        if frame.tick() <= self.last_tick {
            return None;
        }
        let since = std::mem::replace(&mut self.last_tick, frame.tick());
        encoder.begin(frame);
        self.hear_answers();
        let record = owner.record(frame.lattice());
        let position = record.position;
        let private = owner.sees_hidden.then(|| frame.layers().private_cell(self.player.slot));
        self.subscriptions.follow(frame, position, private, encoder);
        let patience = rtt_ticks.saturating_add(ANSWER_SLACK_TICKS);
        self.stats.unseen +=
            self.subscriptions.collect_due(frame, since, patience, self.ledger.applied(), encoder);
        let needed: usize = encoder.due.iter().map(Due::bytes).sum();
        let sees_crowd = self.crowd_detail() != CrowdDetail::Full;
        // In a crowd, one packet has to do; pages get half of it if they need that, and poses the rest.
        let budget_bytes = if sees_crowd { budget_bytes.min(CROWD_BYTES) } else { budget_bytes };
        let half = if sees_crowd { budget_bytes / 2 } else { budget_bytes };
        if needed > half.min(SURE_TO_FIT_BYTES) {
            self.put_first_things_first(encoder);
        }
        // The first goes even if it needs more than half: nothing would ever come behind it.
        let first = encoder.due.first().map_or(0, Due::bytes);
        let page_bytes =
            if sees_crowd { needed.min(half.max(first)).min(budget_bytes) } else { budget_bytes };
        let crowd = sees_crowd.then_some((position, budget_bytes - page_bytes));
        let header = SnapshotHeader {
            owner: Some(record),
            brevity: self.own.tell(frame.tick(), &record),
            closes: self.subscriptions.closes(frame.tick()).len(),
            ..SnapshotHeader::new(frame.tick(), owner.last_input)
        };
        Some(Snapshot {
            viewer: self,
            frame,
            encoder,
            header,
            crowd,
            budget_bytes,
            used: 0,
            next: 0,
            first: true,
            unsent: 0,
        })
    }

    /// When not everything that is due fits, who waits longest comes first, then who is nearest.
    fn put_first_things_first(&self, encoder: &mut Encoder) {
        encoder.due.sort_unstable_by(|a, b| self.subscriptions.urgency(a, b));
    }
}

/// What the viewer is known to hold of its own state. Every position that it may hold is within
/// [`OwnState::RANGE`] of that of `known`, and so is every one that is sent in short form: they are never so far
/// apart that the short form could be read wrong. Ticks likewise.
#[derive(Debug, Default)]
struct OwnState {
    /// The position that all since were compared with, and the newest tick whose record the viewer is known to have
    /// applied.
    known: Option<(Tick, LatticePosition)>,
    /// A record that was sent in full, not yet known to be held; since then all were, and all were near it.
    told: Option<(Tick, LatticePosition)>,
    /// The last height, exactly, and the tick since when it is that.
    height: (i32, i8),
    level_since: Tick,
}

impl OwnState {
    /// In steps, and in ticks; the short form reaches 2^15.
    const RANGE: u32 = 1 << 14;

    /// How much of a record that is about to be sent can be left out.
    fn tell(&mut self, now: Tick, record: &OwnerRecord) -> Brevity {
        let near = |&(tick, position): &(Tick, LatticePosition)| {
            now - tick < Self::RANGE && position.max_axis_distance(record.position) < Self::RANGE
        };
        let height = (record.position.z, record.fraction[2]);
        if height != self.height {
            (self.height, self.level_since) = (height, now);
        }
        self.known = self.known.filter(near);
        if self.known.is_none() && !self.told.as_ref().is_some_and(near) {
            self.told = Some((now, record.position));
        }
        match self.known {
            None => Brevity::Full,
            // Whatever the viewer holds that is newer has the same height.
            Some((known, _)) if known >= self.level_since => Brevity::Level,
            Some(_) => Brevity::Short,
        }
    }

    /// The viewer has applied what was sent in a tick.
    fn applied(&mut self, tick: Tick) {
        if let Some((known, _)) = &mut self.known {
            *known = tick.max(*known);
        } else if let Some((_, told)) = self.told.take_if(|(since, _)| tick >= *since) {
            self.known = Some((tick, told));
        }
    }
}

/// The snapshot of one tick for one viewer, written into as many packets as it needs and the budget allows.
///
/// ```text
/// while snapshot.wants_packet() {
///     open a packet; packet.message(Snapshot, |writer| snapshot.write(writer)); seal it
///     snapshot.sent(sequence)
/// }
/// ```
#[derive(Debug)]
pub struct Snapshot<'a> {
    viewer: &'a mut Viewer,
    frame: &'a Frame,
    encoder: &'a mut Encoder,
    header: SnapshotHeader,
    /// Where the player is and how many bytes poses may take, if it sees a crowd.
    crowd: Option<(LatticePosition, usize)>,
    budget_bytes: usize,
    used: usize,
    /// Index of the next due block.
    next: usize,
    first: bool,
    /// How much of what was written was not sent.
    unsent: u32,
}

impl Snapshot<'_> {
    /// Whether another packet is needed: the first one always is, for the player's own state. Who sees a crowd gets
    /// one, and what does not fit comes later.
    #[must_use]
    pub fn wants_packet(&self) -> bool {
        let more = self.next < self.encoder.due.len() && self.used < self.budget_bytes;
        self.first || (more && self.crowd.is_none())
    }

    /// Writes the body of one Snapshot message, with as many blocks as fit. On an error nothing may be sent of
    /// what was written.
    pub fn write(&mut self, writer: &mut Writer<'_>) -> Result<(), Full> {
        let now = self.frame.tick();
        self.unsent += 1;
        if self.first {
            self.header.encode(writer)?;
            self.viewer.subscriptions.closes(now).try_for_each(|close| close.encode(writer))?;
            self.write_poses(writer)?;
        } else {
            SnapshotHeader { owner: None, closes: 0, ..self.header }.encode(writer)?;
        }
        let mut previous = CellId(0);
        let before = self.next;
        while let Some(&due) = self.encoder.due.get(self.next) {
            let need = due.bytes();
            if need > writer.remaining() {
                break;
            }
            // However small the budget is, one block goes.
            if self.used + need > self.budget_bytes && (self.next > 0 || self.budget_bytes == 0) {
                self.used = self.budget_bytes;
                break;
            }
            BlockHeader { page: due.page, age: due.age }.encode(writer, &mut previous)?;
            self.encoder.write(due.body, writer)?;
            self.used += need;
            self.next += 1;
            self.viewer.subscriptions.note_sent(&due, now);
            self.viewer.stats.in_step += u64::from(due.is_in_step());
        }
        self.viewer.stats.blocks += (self.next - before) as u64;
        Ok(())
    }

    /// Writes where those are who stand near, if that is in a crowd.
    fn write_poses(&mut self, writer: &mut Writer<'_>) -> Result<(), Full> {
        let Some((position, room)) = self.crowd else { return Ok(()) };
        let shortest = self.frame.layers().all().iter().map(Layer::distance).min().unwrap_or(0);
        // What comes before may take more than the budget leaves beside it.
        let room = room.min(writer.remaining().saturating_sub(self.budget_bytes - room));
        self.used +=
            self.encoder.poses.write(self.frame, position, &mut self.viewer.reach, shortest, room, writer)?;
        Ok(())
    }

    /// The packet with what was written last went out under this sequence number.
    pub fn sent(&mut self, sequence: u64) {
        self.viewer.ledger.sent(sequence, self.frame.tick());
        self.first = false;
        self.unsent -= 1;
    }
}

impl Drop for Snapshot<'_> {
    fn drop(&mut self) {
        let now = self.frame.tick();
        if self.unsent > 0 {
            self.viewer.ledger.abandon(now);
            self.encoder.due[..self.next].iter().for_each(|due| self.viewer.subscriptions.note_unsent(due));
        }
        for due in &self.encoder.due[self.next..] {
            self.viewer.subscriptions.note_deferred(due, now);
            self.viewer.stats.deferred += 1;
        }
        self.viewer.subscriptions.end_turns(now, !self.first);
    }
}
