//! Layers: grids of cells over the map, each for the entity types that are seen equally far.

use shadowland_wire::block::CellId;
use shadowland_wire::entity::EntityType;
use shadowland_wire::lattice::LatticePosition;
use shadowland_wire::limits::PAGE_SLOTS;

use crate::config::{LayerConfig, MAX_LAYERS, MapConfig};
use crate::{Tick, WorldConfig};

/// Steps by which an entity may be outside of its cell before it goes to the next: who walks along a border
/// does not change cells all the time.
const HYSTERESIS_STEPS: i64 = 2;
/// Cells above each other, about.
const MOST_STOREYS: f64 = 4.0;

/// The grid of one layer.
#[derive(Debug, Clone)]
pub struct Layer {
    first_cell: u32,
    /// Lattice point at the low corner of the first cell.
    origin: [i32; 3],
    /// Edge lengths of a cell, in steps.
    side: [i32; 3],
    /// Cells per axis.
    dimensions: [u32; 3],
    distance: u32,
    max_step: u32,
    /// The most ticks from one look at one of its entities to the next.
    longest_look: Tick,
}

/// Height of a layer's cells, in centimetres. People spread over the ground, not over the sky: cells are as high as one
/// sees, and the map has a handful of storeys at most.
pub(crate) fn storey_cm(map: &MapConfig, layer: &LayerConfig) -> f64 {
    layer.distance_cm.max(map.height_cm / MOST_STOREYS)
}

/// Cells of a side of 1 that a disc of this radius can meet at most: all of them lie within a disc that is wider by
/// a diagonal.
fn cells_of_disc(radius: f64) -> f64 {
    std::f64::consts::PI * (radius + std::f64::consts::SQRT_2).powi(2)
}

/// All layers, by growing distance.
#[derive(Debug, Clone)]
pub struct Layers {
    layers: Vec<Layer>,
    of_kind: [usize; EntityType::ALL.len()],
    look_periods: [Tick; EntityType::ALL.len()],
    /// Behind the cells of all grids.
    first_private_cell: u32,
    /// Stands for the private cells, which hold entities of any type.
    private: Layer,
}

impl Layers {
    /// The layers of a configuration.
    ///
    /// # Panics
    /// When a type is in no layer or the layers are none or too many; configuration is checked before.
    #[must_use]
    pub fn new(config: &WorldConfig) -> Self {
        assert!((1..=MAX_LAYERS).contains(&config.layers.len()), "one to {MAX_LAYERS} layers");
        let lattice = config.lattice();
        // Rounding both ends of a step to the lattice makes it longer by less than one: an exact 15.0 becomes 15 or,
        // where the fractions allow, 16.
        let max_step_of = |kind: &EntityType| {
            let exact = config.top_speed_cm_per_s(*kind) * config.tick_seconds() / lattice.step_cm();
            (exact.floor() as u32).saturating_add(1)
        };
        let look_of = |kind: &EntityType| config.look_periods[*kind as usize];
        let map = [config.map.size_cm, config.map.size_cm, config.map.height_cm].map(|cm| lattice.steps(cm));
        let mut first_cell = 0;
        let mut layers = Vec::new();
        for layer in &config.layers {
            let distance = lattice.steps(layer.distance_cm);
            let edge = (f64::from(distance) / layer.cells_per_distance).ceil().max(1.0) as i32;
            let side = [edge, edge, lattice.steps(storey_cm(&config.map, layer)).max(1) as i32];
            let low = [-(map[0] as i32 / 2) - 1, -(map[1] as i32 / 2) - 1, -1];
            let dimensions = [0, 1, 2].map(|axis| (map[axis] + 2).div_ceil(side[axis] as u32).max(1));
            let max_step = layer.types.iter().map(max_step_of).max().unwrap_or(0);
            let longest_look = layer.types.iter().map(look_of).max().unwrap_or(1);
            layers.push(Layer {
                first_cell,
                origin: low,
                side,
                dimensions,
                distance,
                max_step,
                longest_look,
            });
            first_cell += dimensions.iter().product::<u32>();
        }
        let of_kind = EntityType::ALL.map(|kind| {
            let index = config.layers.iter().position(|layer| layer.types.contains(&kind));
            index.expect("every entity type is in a layer")
        });
        let farthest = layers.last().expect("there is a layer").clone();
        let private = Layer {
            first_cell,
            max_step: EntityType::ALL.iter().map(max_step_of).max().unwrap_or(0),
            longest_look: 1,
            ..farthest
        };
        Self { layers, of_kind, look_periods: config.look_periods, first_private_cell: first_cell, private }
    }

    /// Pages that as many entities need at most while none of the pages is left empty.
    pub(super) fn pages_for(&self, entities: usize) -> usize {
        let cells: usize = self.layers.iter().map(|layer| layer.cells().min(entities)).sum();
        cells + entities / PAGE_SLOTS
    }

    /// The layer of an entity type.
    #[must_use]
    pub fn of(&self, kind: EntityType) -> &Layer {
        &self.layers[self.of_kind[kind as usize]]
    }

    /// Ticks from one look at an entity of a type to the next.
    #[must_use]
    #[inline]
    pub fn look_period(&self, kind: EntityType) -> Tick {
        self.look_periods[kind as usize]
    }

    /// All layers, by number.
    #[must_use]
    pub fn all(&self) -> &[Layer] {
        &self.layers
    }

    /// The cell that only the player in this slot can see.
    #[must_use]
    pub fn private_cell(&self, player_slot: u32) -> CellId {
        CellId(self.first_private_cell + player_slot)
    }

    /// Whether it is a cell of one player, and of no grid.
    #[must_use]
    pub fn is_private(&self, cell: CellId) -> bool {
        cell.0 >= self.first_private_cell
    }

    /// The number of the layer whose grid a cell is in; `None` for a private one.
    pub(super) fn number_of(&self, cell: CellId) -> Option<usize> {
        let behind = self.layers.partition_point(|layer| layer.first_cell <= cell.0);
        (!self.is_private(cell)).then(|| behind - 1)
    }

    /// The layer that a cell belongs to; for a private cell, one that is as far and whose entities are as fast as any.
    #[must_use]
    pub fn of_cell(&self, cell: CellId) -> &Layer {
        if self.is_private(cell) {
            return &self.private;
        }
        let after = self.layers.partition_point(|layer| layer.first_cell <= cell.0);
        &self.layers[after - 1]
    }
}

impl Layer {
    /// How far its entities are seen, in steps.
    #[must_use]
    pub fn distance(&self) -> u32 {
        self.distance
    }

    /// The greatest distance per axis that its entities move in a tick, in steps; what moves farther has hurried or
    /// teleported.
    #[must_use]
    #[inline]
    pub fn max_step(&self) -> u32 {
        self.max_step
    }

    /// The greatest distance per axis by which its entities are seen to move in so many ticks without hurrying, in steps:
    /// the first look may tell of what happened before.
    #[must_use]
    #[inline]
    pub fn reach(&self, ticks: Tick) -> u32 {
        ticks.saturating_add(self.longest_look - 1).saturating_mul(self.max_step)
    }

    /// Length of a cell's diagonal, in steps.
    #[must_use]
    pub fn cell_diagonal(&self) -> f64 {
        self.side.iter().map(|side| f64::from(*side).powi(2)).sum::<f64>().sqrt()
    }

    /// Length of a cell's shortest edge, in steps.
    #[must_use]
    pub fn cell_edge(&self) -> u32 {
        self.side[0].min(self.side[2]) as u32
    }

    fn cells(&self) -> usize {
        self.dimensions.iter().map(|count| *count as usize).product()
    }

    /// Cells that can be within `margin` times an edge of somebody's interest distance.
    pub(crate) fn most_cells_in_sight(&self, margin: f64) -> usize {
        let [edge, _, height] = self.side.map(f64::from);
        let reach = f64::from(self.distance) + margin * f64::from(self.cell_edge());
        let across = cells_of_disc(reach / edge) as usize;
        let ground = self.dimensions[0] as usize * self.dimensions[1] as usize;
        let storeys = (2.0 * reach / height) as usize + 2;
        across.min(ground) * storeys.min(self.dimensions[2] as usize)
    }

    /// The cell at a position; positions beyond the map belong to the cells at its edge.
    #[must_use]
    pub fn cell_at(&self, position: LatticePosition) -> CellId {
        let values = position.to_array();
        let at = [0, 1, 2].map(|axis| self.coordinate(axis, i64::from(values[axis])));
        self.cell_id(at)
    }

    /// Whether an entity of this cell may remain in it.
    #[must_use]
    #[inline]
    pub(super) fn stays(&self, cell: CellId, position: LatticePosition) -> bool {
        let at = self.coordinates(cell);
        let values = position.to_array();
        (0..3).all(|axis| {
            let low = i64::from(self.origin[axis]) + i64::from(at[axis]) * i64::from(self.side[axis]);
            let value = i64::from(values[axis]);
            let beyond_low = value < low - HYSTERESIS_STEPS && at[axis] > 0;
            let beyond_high = value >= low + i64::from(self.side[axis]) + HYSTERESIS_STEPS
                && at[axis] + 1 < self.dimensions[axis];
            !beyond_low && !beyond_high
        })
    }

    /// Calls `visit` with every cell of which some point is within `reach` steps of the position, and with the
    /// square of that distance.
    pub fn cells_within(&self, position: LatticePosition, reach: f64, mut visit: impl FnMut(CellId, f64)) {
        let values = position.to_array();
        let range = [0, 1, 2].map(|axis| {
            let low = self.coordinate(axis, i64::from(values[axis]) - reach as i64 - 1);
            let high = self.coordinate(axis, i64::from(values[axis]) + reach as i64 + 1);
            low..=high
        });
        for z in range[2].clone() {
            for y in range[1].clone() {
                for x in range[0].clone() {
                    let squared = self.squared_distance([x, y, z], values);
                    if squared <= reach * reach {
                        visit(self.cell_id([x, y, z]), squared);
                    }
                }
            }
        }
    }

    /// The square of the distance between a position and the nearest point of a cell, in steps.
    #[must_use]
    pub fn squared_distance_to(&self, cell: CellId, position: LatticePosition) -> f64 {
        self.squared_distance(self.coordinates(cell), position.to_array())
    }

    fn squared_distance(&self, at: [u32; 3], values: [i32; 3]) -> f64 {
        (0..3)
            .map(|axis| {
                let low = f64::from(self.origin[axis]) + f64::from(at[axis]) * f64::from(self.side[axis]);
                let high = low + f64::from(self.side[axis]);
                let value = f64::from(values[axis]);
                (low - value).max(value - high).max(0.0).powi(2)
            })
            .sum()
    }

    fn coordinate(&self, axis: usize, value: i64) -> u32 {
        let cell = (value - i64::from(self.origin[axis])).div_euclid(i64::from(self.side[axis]));
        cell.clamp(0, i64::from(self.dimensions[axis]) - 1) as u32
    }

    fn cell_id(&self, [x, y, z]: [u32; 3]) -> CellId {
        CellId(self.first_cell + (z * self.dimensions[1] + y) * self.dimensions[0] + x)
    }

    #[inline]
    fn coordinates(&self, cell: CellId) -> [u32; 3] {
        let index = cell.0 - self.first_cell;
        let [columns, rows, _] = self.dimensions;
        [index % columns, index / columns % rows, index / columns / rows]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sight;

    fn layers() -> Layers {
        Layers::new(&WorldConfig::default())
    }

    #[test]
    fn every_position_has_a_cell_and_the_cell_contains_it() {
        let layers = layers();
        let layer = layers.of(EntityType::Player);
        for x in (-420_000..420_000).step_by(7_919) {
            for z in [-10, 0, 5_000, 199_999, 300_000] {
                let position = LatticePosition { x, y: -x / 2, z };
                let cell = layer.cell_at(position);
                assert!(layer.stays(cell, position));
                assert!(std::ptr::eq(layers.of_cell(cell), layer));
                let inside = x.abs() <= 400_000 && (0..200_000).contains(&z);
                assert!(!inside || layer.squared_distance_to(cell, position) == 0.0);
            }
        }
    }

    #[test]
    fn borders_have_hysteresis() {
        let layers = layers();
        let layer = layers.of(EntityType::Player);
        let border = layer.origin[0] + 3 * layer.side[0];
        let at = |x| LatticePosition { x, y: 0, z: 0 };
        let before = layer.cell_at(at(border - 1));
        assert_ne!(before, layer.cell_at(at(border)));
        assert!(layer.stays(before, at(border)) && layer.stays(before, at(border + 1)));
        assert!(!layer.stays(before, at(border + 2)));
    }

    #[test]
    fn nobody_sees_more_cells_than_the_most() {
        let mut config = WorldConfig::default();
        for cells_per_distance in [0.3, 1.0, 2.5, 7.0] {
            config.layers = sight::layers(sight::default_distance_cm, cells_per_distance);
            let layers = Layers::new(&config);
            let layer = layers.of(EntityType::Player);
            let most = layer.most_cells_in_sight(0.1);
            let reach = f64::from(layer.distance) + 0.1 * f64::from(layer.cell_edge());
            for x in (-400_000..400_000).step_by(39_119) {
                for z in [0, 100_000, 150_000] {
                    let mut seen = 0;
                    layer.cells_within(LatticePosition { x, y: x / 3, z }, reach, |_, _| seen += 1);
                    assert!(seen <= most, "{seen} of {most}");
                }
            }
        }
    }

    #[test]
    fn cells_within_reach_are_all_and_only_those() {
        let layers = layers();
        let layer = layers.of(EntityType::Player);
        let centre = LatticePosition { x: 12_345, y: -54_321, z: 100 };
        let mut found = Vec::new();
        layer.cells_within(centre, 100_000.0, |cell, _| found.push(cell));
        for x in (-120_000..120_000).step_by(1_009) {
            for y in (-120_000..120_000).step_by(1_009) {
                let point = LatticePosition { x: centre.x + x, y: centre.y + y, z: 100 };
                let inside = f64::from(x).hypot(f64::from(y)) <= 100_000.0;
                assert!(!inside || found.contains(&layer.cell_at(point)));
            }
        }
        for cell in found {
            assert!(layer.squared_distance_to(cell, centre) <= 100_000.0f64.powi(2));
        }
    }
}
