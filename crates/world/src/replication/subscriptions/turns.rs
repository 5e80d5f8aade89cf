//! Whose turn it is in a tick, and of which pages a block is due.

use std::ops::Range;

use shadowland_wire::block::{AgeCode, BlockHeader, PageId};

use super::{Entry, GROUPS, OPEN_PAGES, Subscriptions};
use crate::Tick;
use crate::interest::{NO_PAGE, PageHeader, TOMBSTONE_TICKS};
use crate::replication::crowd::{CrowdDetail, WAITING_PAGES};
use crate::replication::encoder::{Body, OPTIMISTIC_TICKS};
use crate::replication::ledger::AppliedTicks;
use crate::replication::{Encoder, Frame};

/// A block that a viewer is about to get.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Due {
    pub(in super::super) page: PageId,
    pub(in super::super) body: Body,
    pub(in super::super) age: AgeCode,
    /// The index of the entry.
    entry: u16,
    way: Way,
}

/// How a block leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// With its group.
    InStep,
    /// In its group's turn.
    Alone {
        /// It relies on the last one, which is still on its way.
        relies: bool,
    },
    /// When others have their turn.
    OutOfTurn {
        /// As above.
        relies: bool,
    },
}

/// Whose turn it is; scratch.
#[derive(Debug, Default)]
pub(in super::super) struct Turns {
    /// Entries that have their turn together, with their group if they can go in step.
    together: Vec<(Option<usize>, Range<u16>)>,
    /// Those that wait since an earlier turn.
    waiting: Vec<u16>,
    /// Those of a group that do not go in step.
    alone: Vec<u16>,
}

/// What all decisions of a turn need.
struct Moment<'a> {
    frame: &'a Frame,
    now: Tick,
    /// How long an answer takes.
    patience: Tick,
    applied: &'a AppliedTicks,
    /// Pages that the viewer may hold.
    open: usize,
    /// Pages that had their turn and were not shown, for the client holds as many as it can.
    unseen: u64,
}

/// A turn of a group.
#[derive(Debug, Clone, Copy)]
struct GroupTurn {
    /// What goes in step starts from its last turn, which is still on its way.
    relies: bool,
    /// `None`: its pages cannot go in step any longer, for answers take too long.
    step: Option<Step>,
}

/// Where the blocks of what goes in step start.
#[derive(Debug, Clone, Copy)]
struct Step {
    start: Tick,
    baseline: Tick,
    age: AgeCode,
}

impl Due {
    /// Bytes that it takes at most.
    pub(in super::super) fn bytes(&self) -> usize {
        BlockHeader::MAX_BYTES + self.body.len()
    }

    /// Whether its page goes in step with its group.
    #[inline]
    pub(in super::super) fn is_in_step(&self) -> bool {
        self.way == Way::InStep
    }
}

impl Turns {
    /// Makes the scratch large enough for a viewer with so many entries.
    pub(in super::super) fn reserve(&mut self, frame: &Frame, entries: usize) {
        let together = 1 + frame.distant_period() + CrowdDetail::Host.period();
        self.together.reserve((together as usize).saturating_sub(self.together.len()));
        self.waiting.reserve(entries.saturating_sub(self.waiting.len()));
        self.alone.reserve(entries.saturating_sub(self.alone.len()));
    }
}

impl Subscriptions {
    /// Finds the pages of which a block is due in this tick. `since` is the last tick in which it was asked; `patience`
    /// is how long an answer takes. Gives the number of pages that cannot be shown, for the client holds as many as it
    /// can.
    pub(in super::super) fn collect_due(
        &mut self,
        frame: &Frame,
        since: Tick,
        patience: Tick,
        applied: &AppliedTicks,
        encoder: &mut Encoder,
    ) -> u64 {
        encoder.due.clear();
        let mut turns = std::mem::take(&mut encoder.turns);
        self.find_turns(frame, since, &mut turns);
        let mut moment = Moment { frame, now: frame.tick(), patience, applied, open: self.opened, unseen: 0 };
        for (group, entries) in &turns.together {
            let turn = group.map(|group| self.set_out(group, &moment));
            turns.alone.clear();
            match turn.and_then(|turn| turn.step) {
                Some(step) => self.take_step(entries.clone(), &step, frame, encoder, &mut turns.alone),
                None => turns.alone.extend(entries.clone()),
            }
            for &index in &turns.alone {
                self.take_turn(index, turn, &mut moment, encoder);
            }
        }
        for &index in &turns.waiting {
            self.take_turn(index, None, &mut moment, encoder);
        }
        encoder.turns = turns;
        encoder.count_used();
        // What is due of cells that were closed meanwhile must not go out.
        if std::mem::take(&mut self.closed_in_turn) {
            encoder.due.retain(|due| !self.alone[usize::from(due.entry)].held);
        }
        moment.unseen
    }

    /// Of two blocks the one that is more urgent: what waits longest comes first, then what is nearest.
    pub(in super::super) fn urgency(&self, a: &Due, b: &Due) -> std::cmp::Ordering {
        let [a, b] = [a, b].map(|due| usize::from(due.entry));
        let since = |index: usize| match self.alone[index].waiting {
            true => self.details[index].waiting_since,
            false => Tick::MAX,
        };
        let [of_a, of_b] = [a, b].map(|index| &self.details[index]);
        let nearest = of_a.squared_distance.total_cmp(&of_b.squared_distance);
        since(a).cmp(&since(b)).then(nearest).then(of_a.page.cmp(&of_b.page))
    }

    /// Notes that a block was written.
    #[inline]
    pub(in super::super) fn note_sent(&mut self, due: &Due, now: Tick) {
        let (relies, in_turn) = match due.way {
            // Told for all of them at once by `end_turns`.
            Way::InStep => return,
            Way::Alone { relies } => (relies, true),
            Way::OutOfTurn { relies } => (relies, false),
        };
        let index = usize::from(due.entry);
        let is_first = !self.was_sent(index);
        let alone = &mut self.alone[index];
        alone.progress.note_sent(now, due.age == AgeCode::FULL, relies);
        alone.waiting = false;
        if !in_turn {
            alone.steady_since = 0;
        } else if !relies {
            alone.steady_since = now;
        }
        if is_first {
            self.opened += 1;
            if let Some(first) = self.find(PageId { number: 0, ..due.page }) {
                self.details[first].cell_was_sent = true;
            }
        }
    }

    /// Notes that a block that was written did not leave after all: its group may know nothing of this tick.
    pub(in super::super) fn note_unsent(&mut self, due: &Due) {
        self.alone[usize::from(due.entry)].steady_since = 0;
    }

    /// Notes that a block that is due did not fit. To be called for all of them before [`Self::end_turns`].
    pub(in super::super) fn note_deferred(&mut self, due: &Due, now: Tick) {
        let index = usize::from(due.entry);
        self.leave_step(index);
        self.waiting.push(due.entry);
        let alone = &mut self.alone[index];
        alone.steady_since = 0;
        if !alone.waiting {
            alone.waiting = true;
            self.details[index].waiting_since = now;
        }
    }

    /// Ends the turns of a tick. `sent` tells whether a packet with it left.
    pub(in super::super) fn end_turns(&mut self, now: Tick, sent: bool) {
        let (mut turning, relying) = (std::mem::take(&mut self.turning), std::mem::take(&mut self.relying));
        while sent && turning != 0 {
            let group = turning.trailing_zeros();
            turning &= turning - 1;
            self.groups[group as usize].note_sent(now, false, relying & 1 << group != 0);
        }
    }

    /// Finds the entries whose turn it is in one of the ticks after `since`: the near ones, the distant ones of the
    /// ticks' phases, and those that wait.
    fn find_turns(&mut self, frame: &Frame, since: Tick, turns: &mut Turns) {
        let now = frame.tick();
        let period = frame.distant_period();
        let skipped = (now - since).min(period);
        turns.together.clear();
        turns.together.push((Some(0), 0..self.near_end));
        // The phase whose turn it is now; before it was that of the next one.
        let mut phase = turning_phase(now, period);
        self.next_distant = self.distant(if phase == 0 { period - 1 } else { phase - 1 });
        for _ in 0..skipped {
            let group = Some(1 + phase as usize).filter(|group| *group < GROUPS);
            turns.together.push((group, self.distant(phase)));
            phase = if phase + 1 == period { 0 } else { phase + 1 };
        }
        turns.waiting.clear();
        if self.waiting.is_empty() && self.crowd_ends.is_empty() {
            (self.crowds_turned, self.next_of_crowds) = (now, 0..0);
            return;
        }
        let has_turn = |phase: Tick| (now + phase) % period < skipped;
        let crowds = self.ends.last().copied().unwrap_or(self.near_end);
        let has_crowd_turn = self.crowd_turns(now, crowds, turns);
        let (entries, alone, details) = (&self.entries, &self.alone, &self.details);
        turns.waiting.extend(self.waiting.drain(..).filter(|&index| {
            let index = usize::from(index);
            let page = details[index].page;
            let has_turn = if entries[index].crowded {
                has_crowd_turn(page)
            } else {
                alone[index].near || has_turn(frame.phase(page))
            };
            alone[index].waiting && !has_turn
        }));
    }

    /// The distant entries of a phase.
    fn distant(&self, phase: Tick) -> Range<u16> {
        in_phase(&self.ends, self.near_end, phase)
    }

    /// The turns of crowds, from where they were left: whoever cannot take as much as has its turn gets it later. Their
    /// entries begin at `start`. Tells which pages have their turn.
    fn crowd_turns(&mut self, now: Tick, start: u16, turns: &mut Turns) -> impl Fn(PageId) -> bool + use<> {
        let period = self.crowd_detail.period();
        let before = turned_before(self.crowds_turned, now, period);
        let mut turned = before;
        let crowded = |index: &&u16| self.entries[usize::from(**index)].crowded;
        let mut waiting = self.waiting.iter().filter(crowded).count();
        while period > 0 && turned < now && waiting < WAITING_PAGES {
            turned += 1;
            let entries = in_phase(&self.crowd_ends, start, turning_phase(turned, period));
            waiting += entries.len();
            turns.together.push((None, entries));
        }
        self.crowds_turned = turned;
        self.next_of_crowds = match period {
            0 => 0..0,
            _ => in_phase(&self.crowd_ends, start, turning_phase(turned + 1, period)),
        };
        move |page| period > 0 && (turned + phase_in_crowds(page, period)) % period < turned - before
    }

    /// Has a group take its turn.
    fn set_out(&mut self, group: usize, moment: &Moment<'_>) -> GroupTurn {
        let Moment { now, patience, applied, .. } = *moment;
        let progress = &mut self.groups[group];
        progress.settle(applied);
        let (start, baseline) = (progress.start(now, patience), progress.baseline);
        let relies = start != baseline;
        self.turning |= 1 << group;
        self.relying |= u8::from(relies) << group;
        let holds = baseline != 0 && now - baseline <= OPTIMISTIC_TICKS;
        let step = Step { start, baseline, age: AgeCode::covering(u64::from(now - start)) };
        GroupTurn { relies, step: holds.then_some(step) }
    }

    /// Has those entries of a group take their turn that go in step; the others become `alone`.
    #[inline]
    fn take_step(
        &self,
        entries: Range<u16>,
        step: &Step,
        frame: &Frame,
        encoder: &mut Encoder,
        alone: &mut Vec<u16>,
    ) {
        let all = &self.entries[usize::from(entries.start)..usize::from(entries.end)];
        let absent = Entry::absent(frame);
        for (index, entry) in entries.zip(all) {
            match entry.header(frame).filter(|header| entry.in_step && entry.is_as_before(header, step)) {
                Some(header) if header.last_change > step.start => {
                    let body = encoder.body(frame, entry.page_index, step.age);
                    let Step { age, .. } = *step;
                    encoder.due.push(Due { page: header.id, body, age, entry: index, way: Way::InStep });
                }
                Some(_unchanged) => {}
                None if entry.page_index == absent => {}
                None => alone.push(index),
            }
        }
    }

    /// Has the page of an entry take a turn that is not in step yet, or not any longer. `turn` is that of its group, if it
    /// has one now.
    fn take_turn(
        &mut self,
        index: u16,
        turn: Option<GroupTurn>,
        moment: &mut Moment<'_>,
        encoder: &mut Encoder,
    ) {
        let at = usize::from(index);
        if self.entries[at].page_index == Entry::absent(moment.frame) {
            return;
        }
        self.leave_step(at);
        if let Some(step) = turn.and_then(|turn| turn.step)
            && self.joins(at, &step, moment)
        {
            return self.take_step(index..index + 1, &step, moment.frame, encoder, &mut Vec::new());
        }
        let Some((page_index, header)) = self.locate(at, moment) else {
            self.alone[at].steady_since = 0;
            return;
        };
        let Some((age, relies)) = self.due_alone(at, header, turn, moment) else { return };
        if !self.was_sent(at) {
            if moment.open >= OPEN_PAGES {
                moment.unseen += 1;
                self.alone[at].steady_since = 0;
                return;
            }
            moment.open += 1;
        }
        let body = encoder.body(moment.frame, page_index, age);
        let way = if turn.is_some() { Way::Alone { relies } } else { Way::OutOfTurn { relies } };
        encoder.due.push(Due { page: header.id, body, age, entry: index, way });
    }

    /// Whether an entry goes in step from now on: the viewer has of it what it has of the group, and it has taken all
    /// turns that are on their way.
    fn joins(&mut self, at: usize, step: &Step, moment: &Moment<'_>) -> bool {
        let entry = &mut self.entries[at];
        let alone = &mut self.alone[at];
        if alone.steady_since == 0 || alone.steady_since > step.baseline || alone.held || alone.waiting {
            return false;
        }
        let header = entry.header(moment.frame);
        alone.progress.settle(moment.applied);
        entry.in_step = alone.progress.baseline >= step.baseline
            && header.is_some_and(|header| entry.is_as_before(header, step));
        entry.in_step
    }

    /// Whether a block of a page is due whose turn it is: the age of its baseline, and whether that is a block which
    /// is still on its way.
    fn due_alone(
        &mut self,
        at: usize,
        header: &PageHeader,
        turn: Option<GroupTurn>,
        moment: &Moment<'_>,
    ) -> Option<(AgeCode, bool)> {
        let Moment { now, patience, .. } = *moment;
        let alone = &mut self.alone[at];
        let progress = &mut alone.progress;
        // Nothing changed since what was applied: it is as good as applied now.
        if progress.baseline >= header.last_change {
            progress.baseline = now;
            alone.waiting = false;
            if alone.steady_since == 0 && turn.is_some() {
                alone.steady_since = now;
            }
            return None;
        }
        let unheard_of = progress.sent == 0;
        if unheard_of && header.occupied == 0 && !alone.lingers {
            alone.steady_since = 0;
            return None;
        }
        let baseline = if progress.baseline < header.floor { 0 } else { progress.baseline };
        let start =
            if baseline == 0 || self.entries[at].crowded { baseline } else { progress.start(now, patience) };
        // What was sent may still be on its way: wait for the answer if nothing changed since, and with
        // complete pages in any case.
        let unanswered = !unheard_of && now - progress.sent <= patience;
        if unanswered && (header.last_change <= progress.sent || start == 0) {
            // What the group sends now would not bring the viewer what it may have lost of this page.
            if header.last_change > progress.sent || !turn.is_some_and(|turn| turn.relies) {
                alone.steady_since = 0;
            }
            return None;
        }
        // An answer that is overdue is not relied on; and a page that is to go in step begins with a block that relies on
        // nothing, and relies on nothing whenever its group does not.
        let may_rely = turn.is_none_or(|turn| turn.relies && alone.steady_since != 0);
        let relies = start != baseline && start < header.last_change && may_rely;
        let start = if relies { start } else { baseline };
        if start == 0 || start < header.floor {
            return Some((AgeCode::FULL, false));
        }
        Some((AgeCode::covering(u64::from(now - start)), relies))
    }

    /// Finds the page of an entry in the frame; `None` while the cell has no such page.
    fn locate<'f>(&mut self, at: usize, moment: &Moment<'f>) -> Option<(u32, &'f PageHeader)> {
        let Moment { frame, now, applied, .. } = *moment;
        self.alone[at].progress.settle(applied);
        let header = match self.entries[at].header(frame) {
            Some(header) => header,
            None => self.find_again(at, frame)?,
        };
        let entry = &mut self.entries[at];
        if (header.next != NO_PAGE && !entry.has_next) || header.crowded != entry.crowded {
            entry.has_next |= header.next != NO_PAGE;
            self.incomplete = true;
        }
        if self.alone[at].held {
            self.alone[at].held = self.details[at].held_at == now;
            if self.alone[at].held {
                return None;
            }
        }
        Some((self.entries[at].page_index, header))
    }

    /// Finds the page of an entry that is not where it was.
    fn find_again<'f>(&mut self, at: usize, frame: &'f Frame) -> Option<&'f PageHeader> {
        let page = self.details[at].page;
        let page_index = frame.index_of(page);
        let Some(header) = frame.pages().header(page_index) else {
            self.forget_released(at, frame.tick());
            // Where nobody is there is no crowd, and a page behind others goes with its entry.
            self.incomplete |= std::mem::take(&mut self.entries[at].crowded);
            if self.alone[at].is_unheard_of() {
                match page.number {
                    // The table tells of cells, and so of their first pages.
                    0 => self.entries[at].page_index = Entry::absent(frame),
                    _ => self.incomplete |= !self.alone[at].lingers,
                }
            }
            return None;
        };
        let entry = &mut self.entries[at];
        (entry.page_index, entry.generation) = (page_index, header.generation);
        Some(header)
    }

    /// The world has released the page. It had been empty for as long as a tombstone lives: a viewer whose
    /// baseline is younger knows that already, and for any other the cell starts from scratch.
    fn forget_released(&mut self, at: usize, now: Tick) {
        if self.alone[at].is_unheard_of() {
            return;
        }
        let progress = self.alone[at].progress;
        let knows = progress.baseline != 0 && now - progress.baseline < TOMBSTONE_TICKS;
        if knows {
            let was_sent = self.was_sent(at);
            self.reset_entry(at, now);
            self.alone[at].lingers = was_sent;
            return;
        }
        let cell = self.details[at].page.cell;
        let was_sent =
            self.find(PageId { cell, number: 0 }).is_some_and(|first| self.details[first].cell_was_sent);
        if self.close(cell, was_sent, now) {
            self.closed_in_turn = true;
            for other in 0..self.entries.len() {
                if self.details[other].page.cell == cell {
                    self.reset_entry(other, now);
                    self.details[other].cell_was_sent = false;
                }
            }
        }
    }
}

impl Entry {
    /// Whether nothing about its page is new but what is in it, and no tombstone is missing.
    #[inline]
    fn is_as_before(&self, header: &PageHeader, step: &Step) -> bool {
        header.floor <= step.baseline && !header.crowded && (header.next == NO_PAGE || self.has_next)
    }
}

/// The entries of a phase, of those from `start` on whose phases end at `ends`; none before there are any.
fn in_phase(ends: &[u16], start: u16, phase: Tick) -> Range<u16> {
    let Some(&end) = ends.get(phase as usize) else { return 0..0 };
    phase.checked_sub(1).map_or(start, |before| ends[before as usize])..end
}

/// The phase whose turn it is in a tick: `(now + phase) % period == 0`.
pub(super) fn turning_phase(now: Tick, period: Tick) -> Tick {
    match now % period {
        0 => 0,
        since => period - since,
    }
}

/// The tick from which the turns of crowds go on. Who is behind by a period and more leaves out whole periods, so that the
/// phases go on in their order and none is passed over again and again.
fn turned_before(turned: Tick, now: Tick, period: Tick) -> Tick {
    match (turned, period) {
        (_, 0) => now,
        (0, _) => now.saturating_sub(period),
        _ => turned + now.saturating_sub(turned + 1) / period * period,
    }
}

/// The phase of a page of a crowd: its turns are the ticks with `(tick + phase) % period == 0`.
pub(super) fn phase_in_crowds(page: PageId, period: Tick) -> Tick {
    page.cell.0.wrapping_add(page.number.into()) % period
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_behind_goes_on_where_it_was() {
        assert_eq!(turned_before(0, 100, 48), 52, "the first time, as many as a period has");
        assert_eq!(turned_before(0, 20, 48), 0);
        assert_eq!(turned_before(99, 100, 48), 99);
        assert_eq!(turned_before(100, 100, 48), 100);
        assert_eq!(turned_before(70, 100, 0), 100);
        for (turned, now) in (1..300).flat_map(|turned| (turned..turned + 300).map(move |now| (turned, now)))
        {
            let before = turned_before(turned, now, 48);
            assert_eq!(before % 48, turned % 48, "none is left out: {turned} {now}");
            assert!(before <= now && now - before <= 48, "{turned} {now}");
        }
    }

    /// Every phase has as many pages as are served in two ticks.
    #[test]
    fn where_half_of_it_fits_every_phase_has_its_turn_in_two_periods() {
        let (mut turned, mut last) = (1_000, [1_000; 168]);
        for now in 1_001..10_000 {
            let before = turned_before(turned, now, 168);
            // In every other tick as much waits as may.
            turned = if now % 2 == 0 { (before + 1).min(now) } else { before };
            if turned > before {
                let phase = turning_phase(turned, 168) as usize;
                assert!(now - last[phase] <= 2 * 168, "{phase} waits since {} at {now}", last[phase]);
                last[phase] = now;
            }
        }
    }
}
