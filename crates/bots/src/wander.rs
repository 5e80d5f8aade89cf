//! What a bot does all day: the behaviour of the reference workload `wander`.
//!
//! Of all bots 80 % move on random walks and 20 % stand. Who moves walks at 150 to 600 cm/s, takes a new
//! direction every 1 to 4 s, looks a little to the side on 25 % of the ticks, and in 1 % of the seconds
//! crouches for a moment, so that state flags change too.

use std::ops::{Range, RangeInclusive};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;
use shadowland_wire::message::client::{Buttons, Input};

/// Ticks on one course: 1 to 4 s.
const COURSE_TICKS: RangeInclusive<u32> = 60..=240;
/// Shares of the greatest walking speed, 600 cm/s, of which 127 is the whole: 150 cm/s are a quarter.
const SPEED_SHARE: RangeInclusive<i8> = 32..=127;
/// One bot in so many stands.
const ONE_STANDS_IN: u32 = 5;
/// How far a glance turns at most: 4 degrees.
const GLANCE: Range<i32> = -728..729;
/// Ticks that a bot stays down.
const CROUCH_TICKS: u32 = 30;

/// What a bot does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pursuit {
    /// It wanders, or stands.
    #[default]
    Wander,
    /// It runs about and strikes at whoever is near, as often as it can: the workload `siege`.
    Fight,
}

/// The mind of a bot. The same seed and index do the same.
#[derive(Debug, Clone)]
pub struct Wanderer {
    random: Pcg32,
    pursuit: Pursuit,
    stands: bool,
    input: Input,
    course_ticks: u32,
    crouch_ticks: u32,
}

impl Wanderer {
    /// The bot with this index.
    #[must_use]
    pub fn new(seed: u64, index: usize, pursuit: Pursuit) -> Self {
        let mut random = Pcg32::seed_from_u64(seed ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let stands = random.random_ratio(1, ONE_STANDS_IN) && pursuit == Pursuit::Wander;
        let input = Input { yaw: random.random(), ..Input::default() };
        Self { random, pursuit, stands, input, course_ticks: 0, crouch_ticks: 0 }
    }

    /// What it wants in the next tick.
    pub fn next_input(&mut self) -> Input {
        if self.stands {
            return self.input;
        }
        if self.course_ticks == 0 {
            self.course_ticks = self.random.random_range(COURSE_TICKS);
            self.input.yaw = self.random.random();
            self.input.forward = self.random.random_range(SPEED_SHARE);
        }
        self.course_ticks -= 1;
        if self.random.random_ratio(1, 4) {
            self.input.yaw = self.input.yaw.wrapping_add(self.random.random_range(GLANCE) as u16);
        }
        self.crouch_ticks = match self.crouch_ticks {
            0 if self.random.random_ratio(1, 6_000) => CROUCH_TICKS,
            ticks => ticks.saturating_sub(1),
        };
        self.input.buttons = if self.crouch_ticks > 0 { Buttons::CROUCH } else { Buttons::default() };
        if self.pursuit == Pursuit::Fight {
            self.input.buttons = self.input.buttons.with(Buttons::ATTACK);
        }
        self.input
    }

    /// What it does when it is told to freeze: nothing, looking where it looked.
    #[must_use]
    pub fn still(&self) -> Input {
        Input { yaw: self.input.yaw, ..Input::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_of_wanderers_is_the_workload() {
        let (mut moving, mut turned, mut crouched, mut slowest, mut fastest) = (0, 0, 0, i8::MAX, 0);
        let ticks = 3_000;
        for index in 0..100 {
            let mut bot = Wanderer::new(1, index, Pursuit::Wander);
            let mut before = bot.next_input();
            moving += usize::from(before.forward > 0);
            for _ in 0..ticks {
                let input = bot.next_input();
                turned += usize::from(input.yaw != before.yaw);
                crouched += usize::from(input.buttons != before.buttons);
                if input.forward > 0 {
                    (slowest, fastest) = (slowest.min(input.forward), fastest.max(input.forward));
                }
                before = input;
            }
            assert_eq!(bot.still(), Input { yaw: before.yaw, ..Input::default() });
        }
        assert!((70..=90).contains(&moving), "{moving}");
        let turned = turned as f64 / (moving * ticks) as f64;
        assert!((0.24..0.27).contains(&turned), "{turned}");
        assert!(crouched > 10, "{crouched}");
        assert!(slowest >= 32 && fastest == 127, "{slowest} {fastest}");
    }

    #[test]
    fn the_same_seed_does_the_same() {
        let walk = |seed| {
            let mut bot = Wanderer::new(seed, 3, Pursuit::Wander);
            (0..500).map(|_| bot.next_input()).collect::<Vec<_>>()
        };
        assert_eq!(walk(7), walk(7));
        assert_ne!(walk(7), walk(8));
    }
}
