//! Who plays, and the inputs that wait to be simulated.
//!
//! Inputs are consumed on the server's clock: one a tick. A tick without an input earns a credit, and a credit
//! lets a later tick consume a second one, so that a late packet is caught up with; but nobody ever moves for
//! more ticks than have passed.

use shadowland_wire::entity::EntityId;
use shadowland_wire::message::client::Input;

use crate::columns::WorldFull;

/// Inputs that wait at most; more of them push the oldest out.
const QUEUE: usize = 16;
/// Ticks without an input that can be caught up with.
const MAX_CREDIT: u32 = 15;

/// A player's place in the world, as its worker knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PlayerHandle {
    /// Index of the player's row in a frame.
    pub slot: u32,
    /// The player's entity.
    pub entity: EntityId,
}

#[derive(Debug, Clone)]
pub(crate) struct Player {
    pub(crate) entity: EntityId,
    pub(crate) inputs: InputQueue,
}

/// The players, each at a slot that it keeps.
#[derive(Debug)]
pub(crate) struct Players {
    rows: Vec<Option<Player>>,
    /// Free slots, lowest last.
    free: Vec<u32>,
}

impl Players {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { rows: vec![None; capacity], free: (0..capacity as u32).rev().collect() }
    }

    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    pub(crate) fn count(&self) -> usize {
        self.rows.len() - self.free.len()
    }

    pub(crate) fn add(&mut self, entity: EntityId) -> Result<PlayerHandle, WorldFull> {
        let slot = self.free.pop().ok_or(WorldFull)?;
        self.rows[slot as usize] = Some(Player { entity, inputs: InputQueue::default() });
        Ok(PlayerHandle { slot, entity })
    }

    pub(crate) fn remove(&mut self, player: PlayerHandle) -> bool {
        if !self.contains(player) {
            return false;
        }
        self.rows[player.slot as usize] = None;
        self.free.push(player.slot);
        true
    }

    pub(crate) fn get_mut(&mut self, handle: PlayerHandle) -> Option<&mut Player> {
        let player = self.rows.get_mut(handle.slot as usize)?.as_mut()?;
        (player.entity == handle.entity).then_some(player)
    }

    pub(crate) fn contains(&self, handle: PlayerHandle) -> bool {
        let row = self.rows.get(handle.slot as usize);
        row.is_some_and(|row| row.as_ref().is_some_and(|player| player.entity == handle.entity))
    }

    /// Every slot, in order.
    pub(crate) fn rows(&self) -> &[Option<Player>] {
        &self.rows
    }

    /// Everybody who plays, by slot.
    pub(crate) fn iter(&self) -> impl Iterator<Item = PlayerHandle> + '_ {
        let handle = |(slot, row): (u32, &Option<Player>)| {
            row.as_ref().map(|player| PlayerHandle { slot, entity: player.entity })
        };
        (0..).zip(&self.rows).filter_map(handle)
    }

    /// Everybody who plays, by slot.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Player> {
        self.rows.iter_mut().flatten()
    }
}

/// The inputs of a player that wait to be simulated.
#[derive(Debug, Clone, Default)]
pub(crate) struct InputQueue {
    ring: [Input; QUEUE],
    /// Number of the newest input that was accepted.
    newest: u32,
    /// Number of the newest input that was simulated.
    processed: u32,
    credit: u32,
}

impl InputQueue {
    /// Accepts an input that is newer than all before; older ones are the repetitions that make loss harmless.
    /// A gap in the numbers is filled with the input itself, as far as the queue reaches.
    pub(crate) fn push(&mut self, number: u32, input: Input) {
        if number <= self.newest {
            return;
        }
        let missing = (number - self.newest).min(QUEUE as u32);
        for back in 0..missing {
            self.ring[(number - back) as usize % QUEUE] = input;
        }
        self.newest = number;
        let oldest_kept = number.saturating_sub(QUEUE as u32);
        self.processed = self.processed.max(oldest_kept);
    }

    /// The inputs of this tick: none, one, or two where a credit allows to catch up.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = Input> + use<> {
        let waiting = self.newest - self.processed;
        let count = match waiting {
            0 => {
                self.credit = (self.credit + 1).min(MAX_CREDIT);
                0
            }
            1 => 1,
            _ if self.credit > 0 => {
                self.credit -= 1;
                2
            }
            _ => 1,
        };
        let mut taken = [Input::default(); 2];
        for input in &mut taken[..count] {
            self.processed += 1;
            *input = self.ring[self.processed as usize % QUEUE];
        }
        taken.into_iter().take(count)
    }

    /// A tick without an input was simulated all the same: it earns no credit.
    pub(crate) fn forfeit_tick(&mut self) {
        self.credit = self.credit.saturating_sub(1);
    }

    /// Number of the newest input that was simulated; 0 = none yet.
    pub(crate) fn processed(&self) -> u32 {
        self.processed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(forward: i8) -> Input {
        Input { forward, ..Input::default() }
    }

    #[test]
    fn one_input_a_tick_and_two_to_catch_up() {
        let mut queue = InputQueue::default();
        assert_eq!(queue.take().count(), 0);
        for number in 1..=4 {
            queue.push(number, input(number as i8));
        }
        let taken: Vec<i8> = queue.take().map(|input| input.forward).collect();
        assert_eq!(taken, [1, 2], "one tick without input earned one credit");
        assert_eq!(queue.take().count(), 1);
        assert_eq!((queue.take().count(), queue.processed()), (1, 4));
        assert_eq!(queue.take().count(), 0);
    }

    #[test]
    fn nobody_moves_for_more_ticks_than_have_passed() {
        let mut queue = InputQueue::default();
        let mut number = 0;
        let mut moved = 0;
        for _ in 0..1000 {
            // A cheater sends ten inputs a tick.
            for _ in 0..10 {
                number += 1;
                queue.push(number, input(127));
            }
            moved += queue.take().count();
        }
        assert_eq!(moved, 1000);
    }

    #[test]
    fn repetitions_are_ignored_and_gaps_are_filled() {
        let mut queue = InputQueue::default();
        queue.push(1, input(1));
        queue.push(1, input(9));
        queue.push(3, input(3));
        let mut taken = Vec::new();
        for _ in 0..3 {
            taken.extend(queue.take().map(|input| input.forward));
        }
        assert_eq!(taken, [1, 3, 3]);
        queue.push(u32::MAX, input(5));
        assert_eq!(queue.take().count(), 1);
        assert_eq!(queue.processed(), u32::MAX - QUEUE as u32 + 1);
    }
}
