//! What an input does to a body: pure functions of body, input and map.

use glam::DVec3;
use shadowland_wire::entity::EntityState;
use shadowland_wire::message::client::{Buttons, Input};

use crate::config::{MapConfig, MovementConfig};

/// The part of an entity that movement changes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Body {
    /// Centimetres.
    pub(crate) position: DVec3,
    /// cm/s.
    pub(crate) velocity: DVec3,
    /// 65,536 to the full turn.
    pub(crate) yaw: u16,
    pub(crate) state: EntityState,
}

impl Body {
    pub(crate) fn is_grounded(&self) -> bool {
        self.position.z <= GROUND_CM
    }
}

/// Height of the ground, in centimetres.
const GROUND_CM: f64 = 0.0;

/// Moves a body by one tick of `seconds`.
pub(crate) fn step(
    body: Body,
    input: Input,
    movement: &MovementConfig,
    map: &MapConfig,
    seconds: f64,
) -> Body {
    let held = |button| input.buttons.contains(button);
    let speed = if held(Buttons::CROUCH) {
        movement.crouch_cm_per_s
    } else if held(Buttons::SPRINT) {
        movement.sprint_cm_per_s
    } else {
        movement.walk_cm_per_s
    };
    let mut velocity = wish(input) * speed;
    velocity.z = if !body.is_grounded() {
        (body.velocity.z - movement.gravity_cm_per_s2 * seconds).max(-movement.fall_cm_per_s)
    } else if held(Buttons::JUMP) {
        movement.jump_cm_per_s
    } else {
        0.0
    };

    let wanted = body.position + velocity * seconds;
    let position = within(map, wanted);
    // What runs into the map's edge stands there.
    let stopped = position.cmpne(wanted);
    velocity = DVec3::select(stopped, DVec3::ZERO, velocity);

    let moving = velocity.truncate() != glam::DVec2::ZERO;
    let state = body
        .state
        .with(EntityState::AIRBORNE, position.z > GROUND_CM)
        .with(EntityState::CROUCHING, held(Buttons::CROUCH))
        .with(EntityState::SPRINTING, moving && held(Buttons::SPRINT) && !held(Buttons::CROUCH));
    Body { position, velocity, yaw: input.yaw, state }
}

/// Moves what flies or drives by one tick of `seconds`; what gets to the map's edge stops there.
pub(crate) fn glide(position: &mut DVec3, velocity: &mut DVec3, map: &MapConfig, seconds: f64) {
    let wanted = *position + *velocity * seconds;
    *position = within(map, wanted);
    *velocity = DVec3::select(position.cmpne(wanted), DVec3::ZERO, *velocity);
}

/// A point, or the nearest one of the map where it lies outside.
pub(crate) fn within(map: &MapConfig, position: DVec3) -> DVec3 {
    let half = map.size_cm / 2.0;
    position.clamp(DVec3::new(-half, -half, GROUND_CM), DVec3::new(half, half, map.height_cm))
}

/// The wanted direction on the ground, at most one long: running diagonally is not faster.
fn wish(input: Input) -> DVec3 {
    let forward = f64::from(input.forward.max(-127)) / 127.0;
    let right = f64::from(input.right.max(-127)) / 127.0;
    // libm instead of the platform's: the same bits on every machine.
    let (sin, cos) = libm::sincos(f64::from(input.yaw) * (std::f64::consts::TAU / 65_536.0));
    // X is forward and Y is right at yaw 0; a growing yaw turns X towards Y.
    DVec3::new(forward * cos - right * sin, forward * sin + right * cos, 0.0).clamp_length_max(1.0)
}

/// What a body looks like it does.
pub(crate) fn animation(velocity: DVec3, state: EntityState) -> u16 {
    const IDLE: u16 = 0;
    const WALK: u16 = 1;
    const RUN: u16 = 2;
    const FALL: u16 = 3;
    if state.contains(EntityState::AIRBORNE) {
        FALL
    } else if velocity == DVec3::ZERO {
        IDLE
    } else if state.contains(EntityState::SPRINTING) {
        RUN
    } else {
        WALK
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WorldConfig;

    fn run(input: Input, ticks: usize, from: DVec3) -> Body {
        let config = WorldConfig::default();
        let body = Body { position: from, velocity: DVec3::ZERO, yaw: 0, state: EntityState::NONE };
        (0..ticks)
            .fold(body, |body, _| step(body, input, &config.movement, &config.map, config.tick_seconds()))
    }

    #[test]
    fn a_second_of_walking_is_the_walking_speed() {
        let input = Input { forward: 127, yaw: 16_384, ..Input::default() };
        let body = run(input, 60, DVec3::ZERO);
        assert!((body.position - DVec3::new(0.0, 600.0, 0.0)).length() < 1e-6, "{}", body.position);
        assert_eq!(animation(body.velocity, body.state), 1);
    }

    #[test]
    fn diagonals_and_extremes_are_not_faster() {
        for (forward, right) in [(127, 127), (-128, -128), (-128, 127)] {
            let body = run(Input { forward, right, ..Input::default() }, 60, DVec3::ZERO);
            assert!(body.position.length() <= 600.0 + 1e-6);
        }
    }

    #[test]
    fn the_map_ends_where_it_ends() {
        let edge = WorldConfig::default().map.size_cm / 2.0;
        let body = run(Input { forward: 127, ..Input::default() }, 60, DVec3::new(edge - 10.0, 0.0, 0.0));
        assert_eq!(body.position.x, edge);
        assert_eq!(body.velocity, DVec3::ZERO);
    }

    #[test]
    fn who_jumps_comes_down_again() {
        let jump = Input { buttons: Buttons::JUMP, ..Input::default() };
        let up = run(jump, 10, DVec3::ZERO);
        assert!(up.position.z > 30.0 && up.state.contains(EntityState::AIRBORNE));
        let config = WorldConfig::default();
        let down = (0..120).fold(up, |body, _| {
            step(body, Input::default(), &config.movement, &config.map, config.tick_seconds())
        });
        assert_eq!(down.position.z, 0.0);
        assert!(!down.state.contains(EntityState::AIRBORNE));
    }

    #[test]
    fn who_cannot_run_falls_all_the_same() {
        let mut config = WorldConfig::default();
        config.movement.sprint_cm_per_s = 0.0;
        assert_eq!(config.check(), Ok(()));
        let high = DVec3::new(0.0, 0.0, 1_000.0);
        let body = Body { position: high, velocity: DVec3::ZERO, yaw: 0, state: EntityState::NONE };
        let down = (0..120).fold(body, |body, _| {
            step(body, Input::default(), &config.movement, &config.map, config.tick_seconds())
        });
        assert_eq!(down.position.z, 0.0);
    }
}
