//! Where the players of the reference workload `town` are: as in `wander`, but 30 % stand in five hot spots (a market,
//! a bank), 5 square metres a head.

use std::f64::consts::{PI, TAU};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;

/// Of ten bots so many stand in a hot spot.
const OF_TEN: usize = 3;
/// The hot spots' centres, as shares of the map's edge from its middle.
const HOT_SPOTS: [[f64; 2]; 5] = [[0.0, 0.0], [0.25, 0.25], [0.25, -0.25], [-0.25, 0.25], [-0.25, -0.25]];
/// Area of a hot spot a head, in cm^2.
const CM2_A_HEAD: f64 = 50_000.0;

/// How many of so many players stand in each hot spot, on average.
#[must_use]
pub fn heads_of_a_hot_spot(players: usize) -> usize {
    players * OF_TEN / 10 / HOT_SPOTS.len()
}

/// Where the bot with this index stands all day, in centimetres from the middle of the map; `None` for one that
/// wanders. The same seed and index give the same place.
#[must_use]
pub fn hot_spot(seed: u64, index: usize, players: usize, map_size_cm: f64) -> Option<[f64; 2]> {
    if index % 10 >= OF_TEN {
        return None;
    }
    let mut random =
        Pcg32::seed_from_u64(seed ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x70_77_6e);
    let radius = (heads_of_a_hot_spot(players) as f64 * CM2_A_HEAD / PI).sqrt();
    // Evenly over the disc.
    let (far, around) = (radius * random.random::<f64>().sqrt(), TAU * random.random::<f64>());
    let [x, y] = HOT_SPOTS[random.random_range(0..HOT_SPOTS.len())];
    Some([x * map_size_cm + far * around.cos(), y * map_size_cm + far * around.sin()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_of_ten_stand_in_five_dense_places() {
        let (players, map) = (10_000, 2_500_000.0);
        let places: Vec<[f64; 2]> =
            (0..players).filter_map(|index| hot_spot(1, index, players, map)).collect();
        assert_eq!(places.len(), 3_000);
        for [x, y] in HOT_SPOTS {
            let near = |place: &&[f64; 2]| (place[0] - x * map).hypot(place[1] - y * map) < 3_100.0;
            let heads = places.iter().filter(near).count();
            assert!((500..700).contains(&heads), "{heads}");
        }
        assert_eq!(hot_spot(1, 12, players, map), hot_spot(1, 12, players, map));
    }
}
