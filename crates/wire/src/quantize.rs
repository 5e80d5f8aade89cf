//! Quantized angles, velocities and vitals, with their error bounds.

/// What a cast to an integer makes the nearest one of, halves away from zero: with it `f64::round`, which is a function
/// call of some 50 instructions on processors without a guaranteed rounding instruction, as a few.
#[must_use]
#[inline]
pub(crate) fn to_nearest(value: f64) -> f64 {
    // Adding the largest number below one half keeps what is just below a half on its side.
    value + (0.5 - f64::EPSILON / 4.0).copysign(value)
}

/// Bits of an angle on the wire.
pub const ANGLE_BITS: u32 = 12;
/// Largest error of a quantized angle, in degrees: half of 360 / 4096.
pub const ANGLE_ERROR_DEGREES: f64 = 360.0 / (1 << ANGLE_BITS) as f64 / 2.0;

/// Bits of the yaw of who turns around the vertical axis only.
pub const COARSE_YAW_BITS: u32 = 8;
/// Largest error of a coarse yaw, in degrees: half of 360 / 256.
pub const COARSE_YAW_ERROR_DEGREES: f64 = 360.0 / (1 << COARSE_YAW_BITS) as f64 / 2.0;

/// An orientation as Unreal's rotator: 12 bits an angle, 4096 to the full turn.
///
/// Who walks only turns around the vertical axis, and where it looks need not be known to a hair: such a **coarse
/// yaw** is one of 256 and takes eight bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Rotation {
    /// Around Z, 0 = along X, growing towards Y.
    pub yaw: u16,
    /// Around Y, up is positive.
    pub pitch: u16,
    /// Around X.
    pub roll: u16,
}

impl Rotation {
    const COARSE_SHIFT: u32 = ANGLE_BITS - COARSE_YAW_BITS;

    /// The nearest rotation to the angles in degrees; any finite angle is brought into one turn.
    #[must_use]
    pub fn from_degrees(yaw: f64, pitch: f64, roll: f64) -> Self {
        Self { yaw: angle(yaw), pitch: angle(pitch), roll: angle(roll) }
    }

    /// The nearest coarse yaw to one of 65,536 to the full turn.
    #[must_use]
    #[inline]
    pub fn nearest_coarse_yaw(yaw: u16) -> Self {
        let half = 1 << (15 - COARSE_YAW_BITS);
        Self::from_coarse_yaw((yaw.wrapping_add(half) >> (16 - COARSE_YAW_BITS)) as u8)
    }

    /// From 256 to the full turn.
    #[must_use]
    #[inline]
    pub fn from_coarse_yaw(yaw: u8) -> Self {
        Self { yaw: u16::from(yaw) << Self::COARSE_SHIFT, pitch: 0, roll: 0 }
    }

    /// The yaw, 256 to the full turn, if that is all there is.
    #[must_use]
    #[inline]
    pub fn coarse_yaw(self) -> Option<u8> {
        let is_coarse = self.yaw.is_multiple_of(1 << Self::COARSE_SHIFT) && self.pitch == 0 && self.roll == 0;
        is_coarse.then_some((self.yaw >> Self::COARSE_SHIFT) as u8)
    }

    /// Yaw, pitch and roll, 4096 to the full turn.
    #[must_use]
    #[inline]
    pub fn to_array(self) -> [u16; 3] {
        [self.yaw, self.pitch, self.roll]
    }

    /// Yaw, pitch and roll in degrees, 0 up to but not including 360.
    #[must_use]
    pub fn to_degrees(self) -> [f64; 3] {
        self.to_array().map(|angle| f64::from(angle) * 360.0 / f64::from(1 << ANGLE_BITS))
    }

    /// Yaw in degrees, 0 up to but not including 360.
    #[must_use]
    pub fn yaw_degrees(self) -> f64 {
        self.to_degrees()[0]
    }
}

#[inline]
fn angle(degrees: f64) -> u16 {
    let steps = (degrees / 360.0 * f64::from(1 << ANGLE_BITS)).round();
    (steps as i64 & ((1 << ANGLE_BITS) - 1)) as u16
}

/// A velocity in cm/s per axis, rounded to whole numbers and limited to +-32,767: an error of at most
/// 0.5 cm/s within the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Velocity {
    /// Forward.
    pub x: i16,
    /// Right.
    pub y: i16,
    /// Up.
    pub z: i16,
}

impl Velocity {
    /// The nearest velocity; what is faster than the limit stops there, NaN becomes 0.
    #[must_use]
    #[inline]
    pub fn from_cm_per_s([x, y, z]: [f64; 3]) -> Self {
        let axis = |value: f64| to_nearest(value) as i16;
        Self { x: axis(x), y: axis(y), z: axis(z) }
    }

    /// In cm/s.
    #[must_use]
    pub fn to_cm_per_s(self) -> [f64; 3] {
        [self.x.into(), self.y.into(), self.z.into()]
    }
}

/// Health and mana as shares of their maximum, a byte each: an error of at most 1/510 of the maximum (1/255 where less
/// than that is left), and 0 only for exactly nothing, so that the living never look dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Vitals {
    /// Health, 0 = none, 255 = full.
    pub health: u8,
    /// Mana, 0 = none, 255 = full.
    pub mana: u8,
}

impl Vitals {
    /// Everything full.
    pub const FULL: Self = Self { health: u8::MAX, mana: u8::MAX };

    /// Quantizes shares between 0 and 1; what lies outside is limited.
    #[must_use]
    pub fn from_shares(health: f64, mana: f64) -> Self {
        Self { health: share(health), mana: share(mana) }
    }
}

impl Default for Vitals {
    fn default() -> Self {
        Self::FULL
    }
}

fn share(value: f64) -> u8 {
    let rounded = (value.clamp(0.0, 1.0) * 255.0).round() as u8;
    if rounded == 0 && value > 0.0 { 1 } else { rounded }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn angles_keep_their_bound(angles in proptest::array::uniform3(-10_000.0..10_000.0f64)) {
            let rotation = Rotation::from_degrees(angles[0], angles[1], angles[2]);
            for (back, degrees) in rotation.to_degrees().into_iter().zip(angles) {
                let off = (back - degrees).rem_euclid(360.0);
                prop_assert!(off.min(360.0 - off) <= ANGLE_ERROR_DEGREES + 1e-9);
            }
        }

        #[test]
        fn coarse_yaws_keep_their_bound(yaw: u16) {
            let rotation = Rotation::nearest_coarse_yaw(yaw);
            let off = (rotation.yaw_degrees() - f64::from(yaw) * 360.0 / 65_536.0).rem_euclid(360.0);
            prop_assert!(off.min(360.0 - off) <= COARSE_YAW_ERROR_DEGREES + 1e-9);
            prop_assert_eq!(rotation.coarse_yaw().map(Rotation::from_coarse_yaw), Some(rotation));
        }

        #[test]
        fn velocities_keep_their_bound(x in -32_767.0..32_767.0f64) {
            let back = Velocity::from_cm_per_s([x, 0.0, -x]).to_cm_per_s();
            prop_assert!((back[0] - x).abs() <= 0.5 && (back[2] + x).abs() <= 0.5);
        }

        #[test]
        fn vitals_keep_their_bound(health in 0.0..=1.0f64, mana in 0.0..=1.0f64) {
            let vitals = Vitals::from_shares(health, mana);
            for (byte, share) in [(vitals.health, health), (vitals.mana, mana)] {
                // What is almost nothing is shown as the least there is.
                let bound = if byte == 1 { 1.0 / 255.0 } else { 1.0 / 510.0 };
                prop_assert!((f64::from(byte) / 255.0 - share).abs() <= bound + 1e-12);
            }
        }

        #[test]
        fn the_living_never_look_dead(health in 1e-9..=1.0f64) {
            prop_assert!(Vitals::from_shares(health, 0.0).health > 0);
        }
    }

    proptest! {
        #[test]
        fn the_cast_is_rounding(value in -1.0e12..1.0e12f64) {
            let half = value.trunc() + 0.5;
            for value in [value, half, half.next_down(), half.next_up()] {
                prop_assert_eq!(to_nearest(value) as i64, value.round() as i64);
                prop_assert_eq!(to_nearest(value) as i32, value.round() as i32);
            }
        }
    }

    #[test]
    fn extremes_are_limited() {
        let fast = Velocity::from_cm_per_s([1e9, -1e9, f64::NAN]);
        assert_eq!(fast, Velocity { x: i16::MAX, y: i16::MIN, z: 0 });
        assert_eq!(Vitals::from_shares(7.0, -1.0), Vitals { health: 255, mana: 0 });
        assert_eq!(Rotation::from_degrees(360.0, 0.0, 0.0).yaw, 0);
        assert_eq!(Rotation::nearest_coarse_yaw(u16::MAX).yaw, 0);
    }
}
