//! What an entity is on the wire: identifier, type, state flags, and the field groups of a delta.

use crate::codec::DecodeError;

/// Bits of an identifier that hold the index; the rest is the generation.
pub const ENTITY_INDEX_BITS: u32 = 20;

/// Identifies an entity for its whole life: the index of its columns and the generation of that index, in 32 bits.
/// An identifier comes back after 4,096 lives of its index, each with a rest of 17 s: after 19 hours at the earliest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntityId(u32);

impl EntityId {
    /// No entity: the highest index of the highest generation, which is never given out.
    pub const NONE: Self = Self(u32::MAX);
    /// Highest index.
    pub const MAX_INDEX: u32 = (1 << ENTITY_INDEX_BITS) - 1;
    /// Highest generation; the lowest is 0.
    pub const MAX_GENERATION: u32 = u32::MAX >> ENTITY_INDEX_BITS;

    /// Puts index and generation together.
    ///
    /// # Panics
    /// When one of them is above its maximum.
    #[must_use]
    pub fn new(index: u32, generation: u32) -> Self {
        assert!(index <= Self::MAX_INDEX && generation <= Self::MAX_GENERATION);
        Self(generation << ENTITY_INDEX_BITS | index)
    }

    /// As sent.
    #[must_use]
    pub fn to_bits(self) -> u32 {
        self.0
    }

    /// From the wire; every value is a possible identifier.
    #[must_use]
    pub fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The index of the entity's columns.
    #[must_use]
    pub fn index(self) -> usize {
        (self.0 & Self::MAX_INDEX) as usize
    }

    /// How many entities had this index before.
    #[must_use]
    pub fn generation(self) -> u32 {
        self.0 >> ENTITY_INDEX_BITS
    }
}

/// What kind of thing an entity is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntityType {
    /// Somebody who plays.
    Player = 0,
    /// A peaceful creature of the world.
    Npc = 1,
    /// A hostile creature of the world.
    Monster = 2,
    /// Something that flies towards a target.
    Projectile = 3,
    /// Scenery that has state: doors, chests, trees.
    Environment = 4,
    /// Something to pick up.
    Item = 5,
    /// A visible, short-lived effect.
    Effect = 6,
    /// Something to ride.
    Vehicle = 7,
}

impl EntityType {
    /// Bits of the type on the wire.
    pub const BITS: u32 = 4;
    /// All types, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Player,
        Self::Npc,
        Self::Monster,
        Self::Projectile,
        Self::Environment,
        Self::Item,
        Self::Effect,
        Self::Vehicle,
    ];

    /// The type with this number.
    pub fn from_number(number: u32) -> Result<Self, DecodeError> {
        Self::ALL.get(number as usize).copied().ok_or(DecodeError::BadValue("entity type"))
    }
}

/// State flags of an entity, replicated to everybody who sees it. Bits without a name are reserved: a sender
/// clears them, a receiver refuses them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct EntityState(u32);

impl EntityState {
    /// No flag set.
    pub const NONE: Self = Self(0);
    /// Health is gone.
    pub const DEAD: Self = Self(1 << 0);
    /// Has attacked or been attacked lately.
    pub const IN_COMBAT: Self = Self(1 << 1);
    /// Runs faster than it walks.
    pub const SPRINTING: Self = Self(1 << 2);
    /// Crouches.
    pub const CROUCHING: Self = Self(1 << 3);
    /// Is not on the ground.
    pub const AIRBORNE: Self = Self(1 << 4);
    /// Sits on something that moves it.
    pub const MOUNTED: Self = Self(1 << 5);
    /// Prepares an action that takes time.
    pub const CASTING: Self = Self(1 << 6);
    /// Cannot do anything.
    pub const STUNNED: Self = Self(1 << 7);
    /// Cannot move.
    pub const ROOTED: Self = Self(1 << 8);
    /// Cannot use abilities.
    pub const SILENCED: Self = Self(1 << 9);
    /// Moves more slowly than usual.
    pub const SLOWED: Self = Self(1 << 10);
    /// Moves faster than usual.
    pub const HASTED: Self = Self(1 << 11);
    /// Loses health over time.
    pub const POISONED: Self = Self(1 << 12);
    /// Gains health over time.
    pub const REGENERATING: Self = Self(1 << 13);
    /// Takes no damage.
    pub const INVULNERABLE: Self = Self(1 << 14);
    /// Damage is absorbed first.
    pub const SHIELDED: Self = Self(1 << 15);

    /// Bits on the wire.
    pub const BITS: u32 = 16;
    const KNOWN: u32 = (1 << Self::BITS) - 1;

    /// As sent.
    #[must_use]
    pub fn to_bits(self) -> u32 {
        self.0
    }

    /// From the wire.
    pub fn from_bits(bits: u32) -> Result<Self, DecodeError> {
        if bits & !Self::KNOWN == 0 { Ok(Self(bits)) } else { Err(DecodeError::BadValue("entity state")) }
    }

    /// Whether all flags of `other` are set.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// With the flags of `other` set or cleared.
    #[must_use]
    pub fn with(self, other: Self, set: bool) -> Self {
        if set { Self(self.0 | other.0) } else { Self(self.0 & !other.0) }
    }
}

/// Which field groups of an entity a record carries, and for which a tick of last change is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct EntityDelta(u8);

impl EntityDelta {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Where it is.
    pub const POSITION: Self = Self(1 << 0);
    /// Where it looks.
    pub const ROTATION: Self = Self(1 << 1);
    /// What its body does.
    pub const ANIMATION: Self = Self(1 << 2);
    /// Its [`EntityState`].
    pub const FLAGS: Self = Self(1 << 3);
    /// How it moves.
    pub const VELOCITY: Self = Self(1 << 4);
    /// Health and mana.
    pub const VITALS: Self = Self(1 << 5);

    /// Number of field groups.
    pub const GROUPS: usize = 6;
    /// Bits on the wire.
    pub const BITS: u32 = Self::GROUPS as u32;

    /// As sent.
    #[must_use]
    #[inline]
    pub fn to_bits(self) -> u8 {
        self.0
    }

    /// The low six bits.
    #[must_use]
    #[inline]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & ((1 << Self::BITS) - 1))
    }

    /// Whether all groups of `other` are in it.
    #[must_use]
    #[inline]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The groups of both.
    #[must_use]
    #[inline]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The groups that are in both.
    #[must_use]
    #[inline]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Its groups that are not in `other`.
    #[must_use]
    #[inline]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Its groups, one by one.
    pub fn iter(self) -> impl Iterator<Item = Self> {
        (0..Self::BITS).map(|bit| Self(1 << bit)).filter(move |group| self.contains(*group))
    }

    /// Whether no group is in it.
    #[must_use]
    #[inline]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_keep_index_and_generation() {
        let id = EntityId::new(EntityId::MAX_INDEX, EntityId::MAX_GENERATION);
        assert_eq!(id.to_bits(), u32::MAX);
        let id = EntityId::new(5, 3);
        assert_eq!((id.index(), id.generation()), (5, 3));
        assert_eq!(EntityId::from_bits(id.to_bits()), id);
    }

    #[test]
    fn types_are_numbered_in_order() {
        for (number, kind) in EntityType::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number);
            assert_eq!(EntityType::from_number(number as u32), Ok(kind));
        }
        assert!(EntityType::from_number(8).is_err());
    }

    #[test]
    fn reserved_state_bits_are_refused() {
        assert!(EntityState::from_bits(1 << 16).is_err());
        let state = EntityState::NONE.with(EntityState::DEAD, true);
        assert!(state.contains(EntityState::DEAD) && !state.contains(EntityState::STUNNED));
        assert_eq!(state.with(EntityState::DEAD, false), EntityState::NONE);
    }
}
