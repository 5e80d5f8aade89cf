//! The hidden: entities that only some players may see.
//!
//! They stand in no page of a grid, so nothing of them is in what everybody else is sent, not even that something
//! changed. Who may see one has a **private cell**, whose number lies behind those of all grids: its pages are like any
//! others, with baselines and tombstones, and only this player subscribes to it. A hidden entity stands in the private
//! cell of each who may see it and is within the interest distance.

use shadowland_wire::block::EntityRecord;
use shadowland_wire::entity::EntityId;
use shadowland_wire::lattice::LatticePosition;

use super::{Interest, PageHeader, Place};
use crate::{PlayerHandle, Tick};

/// Who sees a hidden entity keeps seeing it until it is farther away than the interest distance by this part.
const HYSTERESIS: f64 = 1.0 / 16.0;

/// Who is hidden, and from whom not.
#[derive(Debug)]
pub(super) struct Hidden {
    /// By index of the entity.
    is_hidden: Vec<bool>,
    /// In the order of their hiding.
    entries: Vec<Entry>,
    /// By slot of the player: hidden entities that it may see.
    visible_to: Vec<u32>,
}

#[derive(Debug)]
struct Entry {
    entity: EntityId,
    seers: Vec<Seer>,
}

/// A player who may see it, and where in the player's private cell it stands.
#[derive(Debug, Clone, Copy)]
struct Seer {
    player: PlayerHandle,
    place: Option<Place>,
}

impl Hidden {
    pub(super) fn new(entity_indices: usize, players: usize) -> Self {
        Self { is_hidden: vec![false; entity_indices], entries: Vec::new(), visible_to: vec![0; players] }
    }
}

impl Interest {
    /// Whether an entity is hidden.
    #[must_use]
    pub fn is_hidden(&self, id: EntityId) -> bool {
        self.hidden.is_hidden[id.index()]
    }

    /// Whether there is a hidden entity that the player in this slot may see.
    #[must_use]
    pub fn sees_hidden(&self, player_slot: usize) -> bool {
        self.hidden.visible_to[player_slot] > 0
    }

    /// Takes an entity out of everybody's sight but that of `seers`; of one that is hidden already, `seers` take the
    /// place of those who could see it.
    pub(crate) fn hide(&mut self, now: Tick, id: EntityId, seers: &[PlayerHandle]) {
        self.remove_from_grid(now, id);
        let position = self.hidden.entries.iter().position(|entry| entry.entity == id);
        let at = position.unwrap_or_else(|| {
            self.hidden.is_hidden[id.index()] = true;
            self.hidden.entries.push(Entry { entity: id, seers: Vec::new() });
            self.hidden.entries.len() - 1
        });
        self.keep_seers(now, at, |player| seers.contains(&player));
        for &player in seers {
            let entry = &mut self.hidden.entries[at];
            if entry.seers.iter().all(|seer| seer.player != player) {
                entry.seers.push(Seer { player, place: None });
                self.hidden.visible_to[player.slot as usize] += 1;
            }
        }
    }

    /// Shows an entity to everybody again, from the next update on.
    pub(crate) fn reveal(&mut self, now: Tick, id: EntityId) {
        // Nearly nobody who goes was hidden.
        if self.is_hidden(id)
            && let Some(at) = self.hidden.entries.iter().position(|entry| entry.entity == id)
        {
            self.keep_seers(now, at, |_| false);
            self.hidden.entries.remove(at);
            self.hidden.is_hidden[id.index()] = false;
        }
    }

    /// A player has left: another may have its slot, and must not be told whom this one saw leave.
    pub(crate) fn forget_seer(&mut self, now: Tick, player: PlayerHandle) {
        if self.sees_hidden(player.slot as usize) {
            (0..self.hidden.entries.len()).for_each(|at| self.keep_seers(now, at, |seer| seer != player));
        }
        let mut page = self.cells.get(self.layers.private_cell(player.slot));
        while let Some(&PageHeader { next, .. }) = self.pages.header(page) {
            self.pages.forget_stones(page, now);
            page = next;
        }
    }

    /// Brings the private cells up to date at the end of a tick: who is hidden enters, changes, or leaves the sight of
    /// those who may see it.
    pub(crate) fn update_hidden(
        &mut self,
        now: Tick,
        record_of: impl Fn(EntityId) -> EntityRecord,
        position_of: impl Fn(EntityId) -> LatticePosition,
    ) {
        let mut entries = std::mem::take(&mut self.hidden.entries);
        for Entry { entity, seers } in &mut entries {
            let record = record_of(*entity);
            let layer = self.layers.of(record.kind);
            let (max_step, distance) = (layer.max_step(), f64::from(layer.distance()));
            for Seer { player, place } in seers {
                let reach = if place.is_some() { distance * (1.0 + HYSTERESIS) } else { distance };
                let squared = position_of(player.entity).squared_distance(record.position);
                let in_sight = squared <= reach * reach;
                match *place {
                    Some(held) if in_sight => {
                        self.pages.update(held.page, now, held.slot, &record, max_step);
                    }
                    Some(held) => {
                        self.pages.leave(held.page, now, held.slot, None);
                        *place = None;
                    }
                    None if in_sight => {
                        *place = self.free_place(now, self.layers.private_cell(player.slot));
                        if let Some(new) = *place {
                            self.pages.enter(new.page, now, new.slot, &record);
                        }
                    }
                    None => {}
                }
            }
        }
        self.hidden.entries = entries;
    }

    /// Takes from those who may see an entity all but some.
    fn keep_seers(&mut self, now: Tick, at: usize, keeps: impl Fn(PlayerHandle) -> bool) {
        let Self { hidden, pages, .. } = self;
        let Hidden { entries, visible_to, .. } = hidden;
        entries[at].seers.retain(|seer| {
            let stays = keeps(seer.player);
            if !stays {
                visible_to[seer.player.slot as usize] -= 1;
                if let Some(place) = seer.place {
                    pages.leave(place.page, now, place.slot, None);
                }
            }
            stays
        });
    }
}
