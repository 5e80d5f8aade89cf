//! Who has a turn next: a list that is gone through in rounds, from where the last round stopped.
//!
//! ```text
//!          next          next + left
//!    ┌───────┬───────────────┬────────┐
//!    │ had   │ to come       │ had    │   turns of this round; "to come" goes on at the front
//!    └───────┴───────────────┴────────┘   where it reaches the end
//! ```
//!
//! Nobody has two turns in a round. Who comes has its turn when the end of the list has it. Who goes leaves its place to
//! another, who comes forward by that: everybody else waits for one turn longer at the most, and nobody for a whole round.

/// Those who take turns.
#[derive(Debug)]
pub(crate) struct Rotation<T> {
    list: Vec<T>,
    /// Index of who is next; 0 in an empty list.
    next: usize,
    /// Turns of this round that are to come.
    left: usize,
}

impl<T: Copy> Rotation<T> {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { list: Vec::with_capacity(capacity), next: 0, left: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// One more. It has its turn in this round if the end of the list has not had its own.
    pub(crate) fn push(&mut self, one: T) {
        if self.left > 0 && self.next + self.left >= self.list.len() {
            self.left += 1;
        }
        self.list.push(one);
    }

    /// Starts a round: everybody is to have a turn, first of all those who had none in the last one.
    pub(crate) fn start(&mut self) {
        self.left = self.list.len();
    }

    /// Ends the round; returns how many had no turn in it.
    pub(crate) fn stop(&mut self) -> usize {
        std::mem::take(&mut self.left)
    }

    /// Turns of this round that are to come.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Whose turn it is when so many others have had theirs; `None` if that is not in this round.
    pub(crate) fn ahead(&self, others: usize) -> Option<T> {
        (others < self.left).then(|| {
            let index = self.next + others;
            self.list[if index < self.list.len() { index } else { index - self.list.len() }]
        })
    }

    /// The next one has had its turn.
    pub(crate) fn advance(&mut self) {
        if self.left > 0 {
            self.left -= 1;
            self.next += 1;
            self.wrap();
        }
    }

    /// The next one has had its last turn.
    pub(crate) fn remove_next(&mut self) {
        if self.left > 0 {
            // The last one of the round is next instead. In its own place is then who was last in the list, and
            // comes first when the next round starts there.
            let last = (self.next + self.left).min(self.list.len()) - 1;
            self.list.swap(self.next, last);
            self.list.swap_remove(last);
            self.left -= 1;
            self.wrap();
        }
    }

    fn wrap(&mut self) {
        if self.next >= self.list.len() {
            self.next = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use std::collections::HashMap;

    fn of(names: std::ops::Range<u32>) -> Rotation<u32> {
        let mut rotation = Rotation::with_capacity(names.len());
        names.for_each(|name| rotation.push(name));
        rotation
    }

    /// Gives so many turns at most; returns who had one.
    fn turns(rotation: &mut Rotation<u32>, most: usize) -> Vec<u32> {
        let mut had = Vec::new();
        while let Some(name) = rotation.ahead(0).filter(|_| had.len() < most) {
            had.push(name);
            rotation.advance();
        }
        had
    }

    #[test]
    fn a_round_goes_on_where_the_last_one_stopped() {
        let mut rotation = of(0..7);
        let rounds = [3, 3, 9, 2].map(|most| {
            rotation.start();
            (turns(&mut rotation, most), rotation.stop())
        });
        assert_eq!(
            rounds,
            [(vec![0, 1, 2], 4), (vec![3, 4, 5], 4), (vec![6, 0, 1, 2, 3, 4, 5], 0), (vec![6, 0], 5),]
        );
        assert_eq!(rotation.ahead(0), None, "no round is on");
    }

    #[test]
    fn who_is_ahead_is_found_beyond_the_end_of_the_list() {
        let mut rotation = of(0..5);
        rotation.start();
        turns(&mut rotation, 3);
        rotation.stop();
        rotation.start();
        let ahead: Vec<_> = (0..7).map_while(|others| rotation.ahead(others)).collect();
        assert_eq!(ahead, [3, 4, 0, 1, 2]);
    }

    #[test]
    fn who_comes_has_its_turn_with_the_end_of_the_list() {
        let mut rotation = of(0..4);
        rotation.start();
        turns(&mut rotation, 2);
        rotation.push(4);
        assert_eq!(turns(&mut rotation, 9), [2, 3, 4]);
        rotation.push(5);
        assert_eq!(rotation.left(), 0, "the round is over");

        rotation.stop();
        rotation.start();
        assert_eq!(turns(&mut rotation, 3), [0, 1, 2], "the last round came round to the front");
        rotation.stop();
        rotation.start();
        assert_eq!(turns(&mut rotation, 4), [3, 4, 5, 0]);
        rotation.push(6);
        assert_eq!(turns(&mut rotation, 9), [1, 2], "the end has had its turn");
    }

    #[test]
    fn everybody_may_go_at_once() {
        let mut rotation = of(0..5);
        rotation.start();
        turns(&mut rotation, 3);
        rotation.stop();
        rotation.start();
        let mut gone = Vec::new();
        while let Some(name) = rotation.ahead(0) {
            gone.push(name);
            rotation.remove_next();
        }
        gone.sort_unstable();
        assert_eq!((gone, rotation.len(), rotation.left()), ((0..5).collect(), 0, 0));
        rotation.push(9);
        rotation.start();
        assert_eq!(turns(&mut rotation, 9), [9]);
    }

    /// Rounds of any length, with others that come and go at any time. In a round nobody has two turns, and a round that is
    /// not stopped gives one to everybody who was there. Nobody waits for more turns than there were others when it had
    /// its own, and have come or gone since.
    #[test]
    fn who_comes_or_goes_costs_others_a_turn_and_no_more() {
        let mut random = StdRng::seed_from_u64(1);
        for _ in 0..300 {
            let (come, go) = (random.random_range(0.0..0.3), random.random_range(0.0..0.3));
            let mut names = random.random_range(0..40);
            let mut rotation = of(0..names);
            // By name: the turns of others that it waits for at most.
            let mut patience: HashMap<u32, usize> =
                (0..names).map(|name| (name, names as usize - 1)).collect();
            for _ in 0..60 {
                let there: Vec<u32> = patience.keys().copied().collect();
                let mut had = Vec::new();
                rotation.start();
                let most = if random.random_bool(0.5) { usize::MAX } else { random.random_range(0..60) };
                while let Some(name) = rotation.ahead(0).filter(|_| had.len() < most) {
                    had.push(name);
                    patience.remove(&name);
                    for (waiting, turns) in &mut patience {
                        assert!(*turns > 0, "{waiting} waits too long");
                        *turns -= 1;
                    }
                    if random.random_bool(go) {
                        rotation.remove_next();
                        patience.values_mut().for_each(|turns| *turns += 1);
                    } else {
                        rotation.advance();
                        patience.insert(name, rotation.len() - 1);
                    }
                    if rotation.len() < 60 && random.random_bool(come) {
                        rotation.push(names);
                        patience.values_mut().for_each(|turns| *turns += 1);
                        patience.insert(names, rotation.len() - 1);
                        names += 1;
                    }
                }
                assert!(most < usize::MAX || there.iter().all(|name| had.contains(name)));
                let turns = had.len();
                had.sort_unstable();
                had.dedup();
                assert_eq!(had.len(), turns, "two turns in a round");
                assert!(rotation.stop() == 0 || turns == most);
            }
            assert_eq!(patience.len(), rotation.len());
        }
    }
}
