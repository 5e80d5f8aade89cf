//! Reliable messages over bad links: a short matrix, and a few random links. The long forms are
//! `shadowland-simtest --profile matrix` and `--profile reliable`.

use shadowland_simtest::reliable;

#[test]
fn a_short_matrix() {
    // Every loss, round-trip time, reordering and share of duplicates, though not all with all.
    for seed in (0..reliable::MATRIX).step_by(7) {
        reliable::run_matrix(seed).unwrap_or_else(|violation| panic!("seed {seed}: {}", violation.0));
    }
}

#[test]
fn some_random_links() {
    for seed in 1..=8 {
        reliable::run(seed).unwrap_or_else(|violation| panic!("seed {seed}: {}", violation.0));
    }
}

#[test]
fn the_same_seed_runs_the_same() {
    assert_eq!(reliable::run(3), reliable::run(3));
}
