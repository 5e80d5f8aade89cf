//! Whether a bot sees exactly what is there.
//!
//! When the world stands still and everything has arrived, a client's view must hold everybody within the
//! interest distance, nobody who does not exist or stands beyond what its cells can cover, and of everybody
//! exactly the server's quantized values.

use rustc_hash::FxHashMap;
use shadowland_client::replica::Replica;
use shadowland_wire::block::EntityRecord;
use shadowland_wire::entity::{EntityId, EntityType};
use shadowland_wire::lattice::LatticePosition;
use thiserror::Error;

/// Everything that is in the world, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Truth {
    by_id: FxHashMap<EntityId, EntityRecord>,
    /// By X, so that only a strip of the map is searched for who must be in sight.
    by_x: Vec<EntityRecord>,
}

/// How far entities of a type are seen, in lattice steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sight {
    /// Within this distance they must be seen.
    pub distance: f64,
    /// So much beyond it they may be seen: a cell's diagonal and hysteresis.
    pub allowance: f64,
}

/// The first difference between a view and the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Mismatch {
    /// The bot's own entity is not in the world, so that nothing can be said.
    #[error("the bot's own entity {0:?} is not in the world")]
    NotInTheWorld(EntityId),
    /// The bot does not know where it is itself, or is elsewhere.
    #[error("the bot believes to be at {believed:?} and is at {truth:?}")]
    Lost {
        /// The position of the owner's record.
        believed: Option<LatticePosition>,
        /// The position in the truth.
        truth: LatticePosition,
    },
    /// Somebody within the interest distance is not seen.
    #[error("not seen, although in sight: {0:?}")]
    Missing(EntityRecord),
    /// Somebody is seen who does not exist.
    #[error("seen, although not in the world: {0:?}")]
    Ghost(EntityRecord),
    /// Somebody is seen otherwise than he is.
    #[error("seen as {seen:?}, but is {truth:?}")]
    Differs {
        /// What the bot sees.
        seen: EntityRecord,
        /// What is there.
        truth: EntityRecord,
    },
    /// Somebody is seen who is too far away.
    #[error("seen, although out of sight: {0:?}")]
    TooFar(EntityRecord),
}

impl Truth {
    /// The truth about these entities.
    #[must_use]
    pub fn new(records: impl IntoIterator<Item = EntityRecord>) -> Self {
        let mut by_x: Vec<_> = records.into_iter().collect();
        by_x.sort_unstable_by_key(|record| (record.position.x, record.id));
        Self { by_id: by_x.iter().map(|record| (record.id, *record)).collect(), by_x }
    }

    /// Entities in the world.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_x.len()
    }

    /// Whether nobody is in the world.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_x.is_empty()
    }

    /// An entity as it is.
    #[must_use]
    pub fn get(&self, id: EntityId) -> Option<&EntityRecord> {
        self.by_id.get(&id)
    }
}

/// Compares the view of the bot whose own entity is `own` with the truth.
///
/// # Errors
/// The first difference.
pub fn check(
    replica: &Replica,
    own: EntityId,
    truth: &Truth,
    sight: impl Fn(EntityType) -> Sight,
) -> Result<(), Mismatch> {
    let at = truth.get(own).ok_or(Mismatch::NotInTheWorld(own))?.position;
    let believed = replica.owner().map(|owner| owner.position);
    if believed != Some(at) {
        return Err(Mismatch::Lost { believed, truth: at });
    }
    for seen in replica.entities() {
        let Some(record) = truth.get(seen.id) else { return Err(Mismatch::Ghost(*seen)) };
        if record != seen {
            return Err(Mismatch::Differs { seen: *seen, truth: *record });
        }
        let Sight { distance, allowance } = sight(seen.kind);
        if apart(at, seen.position) > distance + allowance {
            return Err(Mismatch::TooFar(*seen));
        }
    }
    let farthest = EntityType::ALL.into_iter().map(|kind| sight(kind).distance).fold(0.0, f64::max);
    let first =
        truth.by_x.partition_point(|record| f64::from(record.position.x) < f64::from(at.x) - farthest);
    let strip = truth.by_x[first..]
        .iter()
        .take_while(|record| f64::from(record.position.x) <= f64::from(at.x) + farthest);
    for record in strip {
        if apart(at, record.position) <= sight(record.kind).distance && replica.entity(record.id).is_none() {
            return Err(Mismatch::Missing(*record));
        }
    }
    Ok(())
}

/// The distance between two positions, in steps.
fn apart(a: LatticePosition, b: LatticePosition) -> f64 {
    let [a, b] = [a.to_array(), b.to_array()];
    (0..3).map(|axis| (f64::from(a[axis]) - f64::from(b[axis])).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use shadowland_wire::block::{
        AgeCode, BODY_MAX_BYTES, BlockHeader, BodyPlan, CellId, Change, PageId, encode_body,
    };
    use shadowland_wire::codec::Writer;
    use shadowland_wire::entity::{EntityDelta, EntityState};
    use shadowland_wire::limits::PAGE_SLOTS;
    use shadowland_wire::message::server::{OwnerRecord, SnapshotHeader};
    use shadowland_wire::quantize::{Rotation, Velocity, Vitals};

    const OWN: u32 = 0;

    fn record(index: u32, x: i32) -> EntityRecord {
        EntityRecord {
            id: EntityId::new(index, 0),
            kind: EntityType::Player,
            position: LatticePosition { x, y: 0, z: 0 },
            rotation: Rotation::default(),
            animation: 0,
            state: EntityState::NONE,
            velocity: Velocity::default(),
            vitals: Vitals::FULL,
        }
    }

    /// The view of a bot at X = `own_x` that has been told of `records`.
    fn view(own_x: i32, records: &[EntityRecord]) -> Replica {
        let mut body = [0; BODY_MAX_BYTES];
        let unchanged = Change { delta: EntityDelta::NONE, height: false, wide: false };
        let plan = BodyPlan {
            tombstones: &[],
            enters: (1 << records.len()) - 1,
            updates: 0,
            changes: &[unchanged; PAGE_SLOTS],
            low_bits: 1,
        };
        let length = encode_body(&plan, |slot| &records[slot], &mut body).unwrap();
        let owner = OwnerRecord::at_rest(LatticePosition { x: own_x, y: 0, z: 0 });
        let mut buffer = [0; 2_048];
        let mut writer = Writer::new(&mut buffer);
        SnapshotHeader { owner: Some(owner), ..SnapshotHeader::new(9, 0) }.encode(&mut writer).unwrap();
        let page = PageId { cell: CellId(3), number: 0 };
        BlockHeader { page, age: AgeCode::FULL }.encode(&mut writer, &mut CellId(0)).unwrap();
        writer.bytes(&body[..length]).unwrap();
        let mut replica = Replica::new();
        replica.apply_snapshot(writer.written(), &mut ()).unwrap();
        replica
    }

    fn compare(replica: &Replica, truth: &[EntityRecord]) -> Result<(), Mismatch> {
        let sight = |_| Sight { distance: 1_000.0, allowance: 500.0 };
        check(replica, EntityId::new(OWN, 0), &Truth::new(truth.iter().copied()), sight)
    }

    #[test]
    fn equal_views_match_and_the_far_may_be_seen_or_not() {
        let truth =
            [record(OWN, 5), record(1, 1_005), record(2, 1_400), record(3, -1_450), record(4, 90_000)];
        assert_eq!(compare(&view(5, &truth[..2]), &truth), Ok(()));
        assert_eq!(compare(&view(5, &truth[..4]), &truth), Ok(()));
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        let truth = [record(OWN, 5), record(1, 1_005), record(2, -900), record(3, 2_000)];
        let seen = &truth[..3];
        assert_eq!(compare(&view(5, seen), &truth), Ok(()));
        assert_eq!(compare(&view(5, &truth[..2]), &truth), Err(Mismatch::Missing(truth[2])));
        assert_eq!(compare(&view(5, &[truth[0], truth[2]]), &truth), Err(Mismatch::Missing(truth[1])));
        assert_eq!(compare(&view(5, &truth), &truth), Err(Mismatch::TooFar(truth[3])));

        let ghost = record(7, 10);
        assert_eq!(
            compare(&view(5, &[truth[0], truth[1], truth[2], ghost]), &truth),
            Err(Mismatch::Ghost(ghost))
        );
        // The same index, but another entity.
        let other = EntityRecord { id: EntityId::new(2, 1), ..truth[2] };
        assert_eq!(compare(&view(5, &[truth[0], truth[1], other]), &truth), Err(Mismatch::Ghost(other)));

        for wrong in [
            record(2, -901),
            EntityRecord { rotation: Rotation { yaw: 1, ..Rotation::default() }, ..truth[2] },
            EntityRecord { animation: 1, ..truth[2] },
            EntityRecord { state: EntityState::DEAD, ..truth[2] },
            EntityRecord { velocity: Velocity { x: 1, y: 0, z: 0 }, ..truth[2] },
            EntityRecord { vitals: Vitals { health: 1, mana: 255 }, ..truth[2] },
            EntityRecord { kind: EntityType::Npc, ..truth[2] },
        ] {
            let differs = Mismatch::Differs { seen: wrong, truth: truth[2] };
            assert_eq!(compare(&view(5, &[truth[0], truth[1], wrong]), &truth), Err(differs));
        }
    }

    #[test]
    fn a_bot_must_be_somewhere_and_know_where() {
        let truth = [record(OWN, 5), record(1, 10)];
        assert!(matches!(compare(&view(6, &truth), &truth), Err(Mismatch::Lost { .. })));
        assert!(matches!(compare(&Replica::new(), &truth), Err(Mismatch::Lost { believed: None, .. })));
        assert_eq!(
            compare(&view(5, &truth), &truth[1..]),
            Err(Mismatch::NotInTheWorld(EntityId::new(OWN, 0)))
        );
    }
}
