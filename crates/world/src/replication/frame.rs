//! The immutable picture of a tick that the world hands to the workers.

use std::sync::Arc;

use shadowland_wire::block::{CellId, PageId};
use shadowland_wire::entity::{EntityId, EntityState};
use shadowland_wire::lattice::Lattice;
use shadowland_wire::message::server::OwnerRecord;
use shadowland_wire::quantize::{Velocity, Vitals};

use crate::config::WorldConfig;
use crate::interest::{CellTable, Interest, Layer, Layers, NO_PAGE, Page, Pages};
use crate::{PlayerHandle, Tick};

/// A copy of everything that workers need of a tick. Recycled: after the first few ticks, filling one
/// allocates nothing, and what did not change since its last use is not copied.
#[derive(Debug, Clone)]
pub struct Frame {
    pub(crate) tick: Tick,
    lattice: Lattice,
    near_share: f64,
    distant_period: Tick,
    layers: Arc<Layers>,
    used_layers: u8,
    cells: CellTable,
    pages: Pages,
    crowds: Vec<CellId>,
    owners: Vec<OwnerRow>,
}

/// What only the player itself is told of its entity, in world units.
#[derive(Debug, Clone, Copy, Default)]
pub struct OwnerRow {
    /// The entity; `None` when nobody plays at this slot.
    pub entity: Option<EntityId>,
    /// Number of the newest input that was simulated.
    pub last_input: u32,
    /// Centimetres.
    pub position_cm: [f64; 3],
    /// Quantized.
    pub velocity: Velocity,
    /// 65,536 to the full turn.
    pub yaw: u16,
    /// State flags.
    pub state: EntityState,
    /// Health and mana.
    pub vitals: Vitals,
    /// There is somebody hidden whom the player may see.
    pub sees_hidden: bool,
}

impl Frame {
    /// An empty frame for worlds of this configuration.
    #[must_use]
    pub fn new(config: &WorldConfig) -> Self {
        Self {
            tick: 0,
            lattice: config.lattice(),
            near_share: config.near_share,
            distant_period: config.distant_period,
            layers: Arc::new(Layers::new(config)),
            used_layers: 0,
            cells: CellTable::default(),
            pages: Pages::default(),
            crowds: Vec::new(),
            owners: vec![OwnerRow::default(); config.player_capacity],
        }
    }

    /// The tick that it shows; 0 = none yet.
    #[must_use]
    pub fn tick(&self) -> Tick {
        self.tick
    }

    /// The map's lattice.
    #[must_use]
    pub fn lattice(&self) -> Lattice {
        self.lattice
    }

    /// The layers of interest.
    #[must_use]
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// The layers in which there is somebody, or was until lately: only their cells are subscribed to.
    pub fn used_layers(&self) -> impl Iterator<Item = &Layer> + '_ {
        let is_used = |number: &usize| self.used_layers & 1 << number != 0;
        (0..).zip(self.layers.all()).filter(move |(number, _)| is_used(number)).map(|(_, layer)| layer)
    }

    /// Bit per used layer.
    pub(super) fn used_layer_bits(&self) -> u8 {
        self.used_layers
    }

    /// The pages of a cell, by number.
    pub fn pages_of(&self, cell: CellId) -> impl Iterator<Item = Page<'_>> + '_ {
        let mut next = self.first_page(cell);
        std::iter::from_fn(move || {
            let index = next;
            next = self.pages.header(index)?.next;
            Some(self.pages.page(index))
        })
    }

    /// A page by its name.
    #[must_use]
    pub fn page(&self, id: PageId) -> Option<Page<'_>> {
        self.pages_of(id.cell).nth(id.number.into())
    }

    /// Every page of every cell, in no particular order.
    pub fn all_pages(&self) -> impl Iterator<Item = Page<'_>> + '_ {
        self.pages.iter()
    }

    /// What a player is told of its own entity.
    #[must_use]
    pub fn owner(&self, player: PlayerHandle) -> Option<&OwnerRow> {
        self.owners.get(player.slot as usize).filter(|row| row.entity == Some(player.entity))
    }

    /// Everybody who plays, with what they are told of themselves.
    pub fn owners(&self) -> impl Iterator<Item = (PlayerHandle, &OwnerRow)> + '_ {
        let rows = (0..).zip(&self.owners);
        rows.filter_map(|(slot, row)| Some((PlayerHandle { slot, entity: row.entity? }, row)))
    }

    #[inline]
    pub(super) fn first_page(&self, cell: CellId) -> u32 {
        self.cells.get(cell)
    }

    /// Changes, modulo 65,536, when a cell gets its first page or loses its last one.
    #[inline]
    pub(super) fn cells_version(&self) -> u16 {
        self.cells.version() as u16
    }

    #[inline]
    pub(super) fn pages(&self) -> &Pages {
        &self.pages
    }

    /// The pages of all crowds, by index.
    pub(super) fn crowd_pages(&self) -> impl Iterator<Item = (u32, Page<'_>)> + '_ {
        self.crowds.iter().flat_map(move |&cell| {
            let mut next = self.first_page(cell);
            std::iter::from_fn(move || {
                let index = next;
                next = self.pages.header(index)?.next;
                Some((index, self.pages.page(index)))
            })
        })
    }

    /// How far a layer's entities are near, as a share of its distance.
    pub(super) fn near_share(&self) -> f64 {
        self.near_share
    }

    /// Ticks between the turns of what is distant.
    pub(super) fn distant_period(&self) -> Tick {
        self.distant_period
    }

    /// Which of the ticks of a period are a distant page's turns, the same for all viewers: those with
    /// `(tick + phase) % period == 0`.
    #[inline]
    pub(super) fn phase(&self, page: PageId) -> Tick {
        page.cell.0.wrapping_add(page.number.into()) % self.distant_period
    }

    /// The index of a page, or [`NO_PAGE`].
    pub(super) fn index_of(&self, id: PageId) -> u32 {
        let mut index = self.first_page(id.cell);
        for _ in 0..id.number {
            index = self.pages.header(index).map_or(NO_PAGE, |header| header.next);
        }
        index
    }

    /// Takes a picture of `interest`. `owners` gives the row of every player slot, in order.
    pub(crate) fn fill(&mut self, tick: Tick, interest: &Interest, owners: impl Iterator<Item = OwnerRow>) {
        self.tick = tick;
        self.used_layers = interest.used_layers();
        self.cells.copy_from(interest.cells());
        self.pages.copy_from(interest.pages());
        self.crowds.clear();
        self.crowds.extend_from_slice(interest.crowds());
        for (row, owner) in self.owners.iter_mut().zip(owners) {
            *row = owner;
        }
    }
}

impl OwnerRow {
    /// The record as it is sent, its position in full.
    #[must_use]
    pub fn record(&self, lattice: Lattice) -> OwnerRecord {
        let (position, fraction) = OwnerRecord::split_position(self.position_cm, lattice);
        // 255 becomes 65,535, so that full stays full.
        let widen = |share: u8| u16::from(share) * 257;
        OwnerRecord {
            position,
            fraction,
            yaw: self.yaw,
            velocity: self.velocity,
            state: self.state,
            health: widen(self.vitals.health),
            mana: widen(self.vitals.mana),
        }
    }
}

const _: () = assert!(NO_PAGE == u32::MAX, "walking a chain relies on NO_PAGE being no index");
