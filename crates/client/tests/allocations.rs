//! A client in a running game allocates nothing.

mod common;

use common::{Blocks, Lab};
use shadowland_client::View;

#[test]
fn snapshots_inputs_and_the_view_allocate_nothing() {
    let mut lab = Lab::playing();
    let mut view = View::new();
    view.welcomed(lab.session.welcome().unwrap());
    lab.heard.quiet = true;
    lab.step(Some(Blocks::Full), &mut view);
    let mut steps = |count| {
        for _ in 0..count {
            lab.step(Some(Blocks::Since(1)), &mut view);
            view.snapshot_arrived(lab.now, lab.session.replica());
            view.advance(lab.now);
            assert_eq!(view.entities().count(), lab.walkers.len());
        }
    };
    // The scratch of the decoder grows once.
    steps(10);
    let allocated = allocation_counter::measure(|| steps(1_000));
    assert_eq!(allocated.count_total, 0);
}

#[test]
fn who_comes_and_goes_allocates_nothing() {
    let mut lab = Lab::playing();
    let mut view = View::new();
    view.welcomed(lab.session.welcome().unwrap());
    lab.heard.quiet = true;
    let mut away = Vec::with_capacity(lab.walkers.len());
    let mut rounds = |count| {
        for round in 0..count {
            // In every round some others are out of sight; the last page was complete.
            away.extend(lab.walkers.drain(2 + round % 3..6));
            lab.step(Some(Blocks::Full), &mut view);
            assert_eq!(view.entities().count(), lab.walkers.len());
            lab.walkers.append(&mut away);
            lab.step(Some(Blocks::Full), &mut view);
            view.snapshot_arrived(lab.now, lab.session.replica());
            view.advance(lab.now);
            assert_eq!(view.entities().count(), lab.walkers.len());
        }
    };
    rounds(20);
    let allocated = allocation_counter::measure(|| rounds(1_000));
    assert_eq!(allocated.count_total, 0);
}
