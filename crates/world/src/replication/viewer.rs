//! What one player knows, and what goes into its next packets.

use shadowland_wire::block::{AgeCode, BlockHeader, CellId, PageId};
use shadowland_wire::codec::{Full, Writer};
use shadowland_wire::message::server::{Close, SnapshotHeader};

use super::ledger::Ledger;
use super::subscriptions::Subscriptions;
use super::{Encoder, Frame};
use crate::interest::{NO_PAGE, Page};
use crate::{PlayerHandle, Tick};

/// Slack on a round trip before a block counts as unanswered, in ticks: packets wait for the next tick on
/// both sides.
const ANSWER_SLACK_TICKS: Tick = 3;

/// The per-viewer side of replication: subscriptions, baselines, and what the last packets carried. Owned by
/// the worker that owns the player's connection.
#[derive(Debug)]
pub struct Viewer {
    player: PlayerHandle,
    subscriptions: Subscriptions,
    ledger: Ledger,
    last_tick: Tick,
    stats: ViewerStats,
}

/// What a viewer was sent.
#[derive(Debug, Clone, Copy, Default)]
pub struct ViewerStats {
    /// Blocks.
    pub blocks: u64,
    /// Blocks that were due and did not fit, counted every tick that they waited.
    pub deferred: u64,
}

/// A block that a viewer is about to get.
#[derive(Debug, Clone, Copy)]
pub(super) struct Due {
    cell: u16,
    entry: u16,
    page_index: u32,
    page: PageId,
    age: AgeCode,
    waiting_since: Tick,
}

impl Viewer {
    /// A player who has been told nothing yet.
    #[must_use]
    pub fn new(player: PlayerHandle) -> Self {
        Self {
            player,
            subscriptions: Subscriptions::new(),
            ledger: Ledger::new(),
            last_tick: 0,
            stats: ViewerStats::default(),
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

    /// The cells that it subscribes to, nearest first.
    pub fn subscribed_cells(&self) -> impl Iterator<Item = CellId> + '_ {
        self.subscriptions.cells().iter().map(|cell| cell.id)
    }

    /// Whether the player has not confirmed yet that it dropped all cells that it no longer subscribes to.
    #[must_use]
    pub fn has_unconfirmed_closes(&self) -> bool {
        self.subscriptions.closes(self.last_tick).len() > 0
    }

    /// A packet that was sent with [`Snapshot::sent`] has been applied by the player.
    pub fn acked(&mut self, sequence: u64) {
        let Some(packet) = self.ledger.take(sequence) else { return };
        for entry in self.ledger.entries(packet) {
            self.subscriptions.applied(entry, packet.tick);
        }
        if packet.closes {
            self.subscriptions.closes_applied(packet.tick);
        }
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
        let position = frame.lattice().quantize(owner.position_cm);
        self.subscriptions.follow(frame, position, &mut encoder.wanted);
        encoder.due.clear();
        for cell in 0..self.subscriptions.cells().len() {
            self.collect_due(frame, cell, since, rtt_ticks, &mut encoder.due);
        }
        if encoder.due.iter().any(|due| due.waiting_since != frame.tick()) {
            // Who waits longest comes first, then who is nearest: entries of one tick keep their order because
            // cells are visited from near to far.
            encoder.due.sort_unstable_by_key(|due| (due.waiting_since, due.cell, due.page.number));
        }
        let header = SnapshotHeader {
            tick: frame.tick(),
            last_input: owner.last_input,
            owner: Some(owner.record(frame.lattice())),
        };
        Some(Snapshot { viewer: self, frame, encoder, header, budget_bytes, used: 0, next: 0, first: true })
    }

    fn collect_due(&mut self, frame: &Frame, cell: usize, since: Tick, rtt_ticks: Tick, due: &mut Vec<Due>) {
        let now = frame.tick();
        let subscribed = self.subscriptions.cells()[cell];
        let mut page_index = frame.first_page(subscribed.id);
        let mut before = None;
        while page_index != NO_PAGE && self.subscriptions.has_room() {
            let page = frame.page_at(page_index);
            let entry = self.subscriptions.entry_of(cell, before, now);
            before = Some(entry);
            let state = self.subscriptions.entry_mut(entry);
            // Nothing changed since what was applied: it is as good as applied now.
            if state.baseline >= page.last_change() {
                state.baseline = now;
                state.waiting_since = 0;
            } else if state.sent == 0 && page.occupied() == 0 {
                // Never heard of, and nobody in it.
            } else if state.waiting_since != 0
                || subscribed.near
                || state.sent == 0
                || frame.distant_page_is_due(page.id(), since)
            {
                let baseline = if state.baseline < page.floor() { 0 } else { state.baseline };
                // What was sent may still be on its way: wait for the answer if nothing changed since, and
                // with complete pages in any case.
                let unanswered = state.sent != 0 && now - state.sent < rtt_ticks + ANSWER_SLACK_TICKS;
                let nothing_new = page.last_change() <= state.sent || baseline == 0;
                if !(unanswered && nothing_new) {
                    if state.waiting_since == 0 {
                        state.waiting_since = now;
                    }
                    due.push(Due {
                        cell: cell as u16,
                        entry,
                        page_index,
                        page: page.id(),
                        age: age_code(baseline, page, now),
                        waiting_since: state.waiting_since,
                    });
                }
            }
            page_index = page.next();
        }
        self.subscriptions.truncate(cell, before, now);
    }
}

fn age_code(baseline: Tick, page: &Page, now: Tick) -> AgeCode {
    debug_assert!(baseline == 0 || baseline >= page.floor());
    if baseline == 0 { AgeCode::FULL } else { AgeCode::covering(u64::from(now - baseline)) }
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
    budget_bytes: usize,
    used: usize,
    /// Index of the next due block.
    next: usize,
    first: bool,
}

impl Snapshot<'_> {
    /// Whether another packet is needed: the first one always is, for the player's own state.
    #[must_use]
    pub fn wants_packet(&self) -> bool {
        self.first || (self.next < self.encoder.due.len() && self.used < self.budget_bytes)
    }

    /// Writes the body of one Snapshot message, with as many blocks as fit. On an error nothing may be sent of
    /// what was written.
    pub fn write(&mut self, writer: &mut Writer<'_>) -> Result<(), Full> {
        let now = self.frame.tick();
        self.viewer.ledger.forget_open();
        if self.first {
            self.header.encode(writer)?;
            Close::encode_all(self.viewer.subscriptions.closes(now), writer)?;
        } else {
            SnapshotHeader { owner: None, ..self.header }.encode(writer)?;
            Close::encode_all(std::iter::empty(), writer)?;
        }
        let mut previous = CellId(0);
        while let Some(&due) = self.encoder.due.get(self.next) {
            let body = self.encoder.body(self.frame, due.page_index, due.age);
            let need = BlockHeader::MAX_BYTES + body.len();
            if need > writer.remaining() {
                break;
            }
            if self.used + need > self.budget_bytes && self.used > 0 {
                self.used = self.budget_bytes;
                break;
            }
            BlockHeader { page: due.page, age: due.age }.encode(writer, &mut previous)?;
            writer.bytes(body)?;
            self.used += need;
            self.next += 1;
            self.viewer.ledger.note(due.entry);
            self.viewer.subscriptions.note_sent(due.cell.into(), due.entry, now);
            self.viewer.stats.blocks += 1;
        }
        Ok(())
    }

    /// The packet with what was written last went out under this sequence number.
    pub fn sent(&mut self, sequence: u64) {
        self.viewer.ledger.seal(sequence, self.frame.tick(), self.first);
        self.first = false;
    }
}

impl Drop for Snapshot<'_> {
    fn drop(&mut self) {
        self.viewer.stats.deferred += (self.encoder.due.len() - self.next) as u64;
    }
}
