//! The invariants of replication, checked against the server's own frame.

use std::collections::BTreeMap;

use shadowland_client::replica::Replica;
use shadowland_wire::block::{CellId, EntityRecord};
use shadowland_wire::entity::EntityId;
use shadowland_wire::lattice::LatticePosition;
use shadowland_world::replication::Frame;
use shadowland_world::{PlayerHandle, Viewer, World};

use crate::Violation;

/// Invariant 1: in stillness the replica holds exactly the entities of the subscribed cells, with the same
/// values. Tells the first difference.
pub fn difference(frame: &Frame, player: PlayerHandle, viewer: &Viewer, replica: &Replica) -> Option<String> {
    let mut expected: BTreeMap<EntityId, EntityRecord> = BTreeMap::new();
    for cell in viewer.subscribed_cells() {
        for page in frame.pages_of(cell) {
            expected.extend(page.rows().map(|row| (row.record.id, row.record)));
        }
    }
    for record in replica.entities() {
        match expected.remove(&record.id) {
            Some(truth) if truth == *record => {}
            truth => {
                let truth = describe(truth.as_ref());
                return Some(format!("player {player:?} sees {record:?}, the truth is {truth}"));
            }
        }
    }
    expected.values().next().map(|missing| {
        format!("player {player:?} does not see {missing:?} (and {} more)", expected.len() - 1)
    })
}

/// The pages are the world: everybody in it who is not hidden stands in exactly one page of a grid, at its place on the
/// lattice, and nobody else stands in any.
pub fn check_pages(frame: &Frame, world: &World) -> Result<(), Violation> {
    let mut shown = BTreeMap::new();
    let of_grids = frame.all_pages().filter(|page| !frame.layers().is_private(page.id().cell));
    for record in of_grids.flat_map(|page| page.rows().map(|row| row.record)) {
        if shown.insert(record.id, record.position).is_some() {
            return Err(Violation(format!("{:?} stands in two pages", record.id)));
        }
    }
    for (id, position_cm) in world.entities().filter(|(id, _)| !world.is_hidden(*id)) {
        let expected = frame.lattice().quantize(position_cm);
        if shown.remove(&id) != Some(expected) {
            return Err(Violation(format!("{id:?} is at {expected:?} and in no page there")));
        }
    }
    match shown.into_iter().next() {
        Some((id, _)) => Err(Violation(format!("{id:?} is in a page and not in the world"))),
        None => Ok(()),
    }
}

/// Invariant 3, in stillness: of the hidden a replica shows those whom its player may see, at their places, and no
/// others. `may_see` tells whom; between the interest distance and its hysteresis either is right.
pub fn check_hidden(
    frame: &Frame,
    world: &World,
    player: PlayerHandle,
    replica: &Replica,
    may_see: impl Fn(EntityId) -> bool,
) -> Result<(), Violation> {
    let Some(here) = position_of(frame, player) else {
        return Err(Violation(format!("player {player:?} is not in the frame")));
    };
    for (id, position_cm) in world.entities().filter(|(id, _)| world.is_hidden(*id)) {
        let position = frame.lattice().quantize(position_cm);
        let kind = world.kind(id).expect("it lives");
        let distance = f64::from(frame.layers().of(kind).distance());
        let far = here.squared_distance(position).sqrt();
        let shown = replica.entity(id).map(|record| record.position);
        let in_order = match shown {
            Some(shown) => may_see(id) && shown == position && far <= distance * 1.07,
            None => !may_see(id) || far > distance,
        };
        if !in_order {
            return Err(Violation(format!("player {player:?} is shown the hidden {id:?} at {shown:?}")));
        }
    }
    Ok(())
}

/// Invariant 2: subscriptions cover the interest distance and reach beyond it by at most a cell's diagonal and
/// the hysteresis.
pub fn check_coverage(frame: &Frame, player: PlayerHandle, viewer: &Viewer) -> Result<(), Violation> {
    let Some(position) = position_of(frame, player) else {
        return Err(Violation(format!("player {player:?} is not in the frame")));
    };
    let subscribed: Vec<CellId> = viewer.subscribed_cells().collect();
    for layer in frame.used_layers() {
        let mut missing = None;
        layer.cells_within(position, f64::from(layer.distance()), |cell, _| {
            if !subscribed.contains(&cell) {
                missing = Some(cell);
            }
        });
        if let Some(cell) = missing {
            return Err(Violation(format!(
                "player {player:?} at {position:?} does not subscribe to {cell:?}"
            )));
        }
    }
    if viewer.has_unconfirmed_closes() {
        // Cells that could not be closed yet, because too many closes are on their way.
        return Ok(());
    }
    for cell in subscribed.into_iter().filter(|cell| !frame.layers().is_private(*cell)) {
        let layer = frame.layers().of_cell(cell);
        // From the nearest point of a cell its farthest is one diagonal away.
        let limit = f64::from(layer.distance()) + f64::from(layer.cell_edge()) / 8.0 + 2.0;
        if layer.squared_distance_to(cell, position) > limit * limit {
            return Err(Violation(format!("player {player:?} at {position:?} still subscribes to {cell:?}")));
        }
    }
    Ok(())
}

fn position_of(frame: &Frame, player: PlayerHandle) -> Option<LatticePosition> {
    frame.owner(player).map(|owner| frame.lattice().quantize(owner.position_cm))
}

fn describe(record: Option<&EntityRecord>) -> String {
    record.map_or_else(|| "nothing".to_owned(), |record| format!("{record:?}"))
}
