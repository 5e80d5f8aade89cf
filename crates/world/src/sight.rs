//! How far each entity type is seen, and the layers that follow from it.

use shadowland_wire::entity::EntityType;

use crate::config::{LayerConfig, MAX_LAYERS};

/// How far an entity of a type is seen when nobody says otherwise, in centimetres.
#[must_use]
pub const fn default_distance_cm(kind: EntityType) -> f64 {
    match kind {
        EntityType::Item => 10_000.0,
        EntityType::Environment => 25_000.0,
        EntityType::Npc | EntityType::Monster | EntityType::Effect => 50_000.0,
        EntityType::Player => 100_000.0,
        EntityType::Vehicle => 150_000.0,
        EntityType::Projectile => 200_000.0,
    }
}

/// The layers for these distances, by growing distance: types that are seen equally far share one. Where there are more
/// distances than layers, those that differ least become one, the longer of both: nobody is seen less far than asked.
#[must_use]
pub fn layers(distance_cm: impl Fn(EntityType) -> f64, cells_per_distance: f64) -> Vec<LayerConfig> {
    let mut layers: Vec<LayerConfig> = Vec::new();
    for kind in EntityType::ALL {
        let distance_cm = distance_cm(kind);
        match layers.iter_mut().find(|layer| layer.distance_cm == distance_cm) {
            Some(layer) => layer.types.push(kind),
            None => layers.push(LayerConfig { distance_cm, cells_per_distance, types: vec![kind] }),
        }
    }
    layers.sort_unstable_by(|a, b| a.distance_cm.total_cmp(&b.distance_cm));
    while layers.len() > MAX_LAYERS {
        let growth = |at: &usize| layers[*at + 1].distance_cm / layers[*at].distance_cm;
        let least = (0..layers.len() - 1).min_by(|a, b| growth(a).total_cmp(&growth(b))).unwrap_or(0);
        let shorter = layers.remove(least);
        layers[least].types.extend(shorter.types);
    }
    layers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_make_four_layers() {
        let layers = layers(default_distance_cm, 2.0);
        let metres: Vec<f64> = layers.iter().map(|layer| layer.distance_cm / 100.0).collect();
        assert_eq!(metres, [100.0, 500.0, 1_000.0, 2_000.0]);
        for kind in EntityType::ALL {
            let of_kind: Vec<_> = layers.iter().filter(|layer| layer.types.contains(&kind)).collect();
            assert_eq!(of_kind.len(), 1, "{kind:?}");
            assert!(of_kind[0].distance_cm >= default_distance_cm(kind), "{kind:?}");
        }
    }

    #[test]
    fn equal_distances_share_a_layer() {
        let all = layers(|_| 5_000.0, 2.0);
        assert_eq!((all.len(), all[0].types.len()), (1, EntityType::ALL.len()));
        let two = layers(|kind| if kind == EntityType::Item { 100.0 } else { 5_000.0 }, 2.0);
        assert_eq!(two.iter().map(|layer| layer.types.len()).collect::<Vec<_>>(), [1, 7]);
    }
}
