//! The randomness of one session: a chain of HKDF over 32 bytes that its owner drew at the start.
//!
//! A session needs little of it (a key per rekey, a challenge now and then), and a generator of its own would take
//! more memory than the rest of its keys. What was drawn cannot be computed from what is left.

use aws_lc_rs::hkdf::{HKDF_SHA256, Prk};
use rand::CryptoRng;
use zeroize::Zeroizing;

use super::key_schedule::expand;

const BYTES: usize = 32;

/// Draws random bytes, without the operating system.
pub(crate) struct Entropy(Zeroizing<[u8; BYTES]>);

impl Entropy {
    pub(crate) fn new(rng: &mut dyn CryptoRng) -> Self {
        let mut seed = Zeroizing::new([0; BYTES]);
        rng.fill_bytes(&mut *seed);
        Self(seed)
    }

    /// The next 32 bytes.
    pub(crate) fn draw(&mut self) -> Zeroizing<[u8; BYTES]> {
        let state = Prk::new_less_safe(HKDF_SHA256, &self.0[..]);
        let drawn = expand(&state, b"shadowland/1 drawn");
        self.0 = expand(&state, b"shadowland/1 next");
        drawn
    }

    /// Any number, each as likely as any other.
    pub(crate) fn draw_u64(&mut self) -> u64 {
        self.draw().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use std::collections::BTreeSet;

    #[test]
    fn draws_differ_and_depend_on_the_seed_alone() {
        let draws = |seed| {
            let mut entropy = Entropy::new(&mut StdRng::seed_from_u64(seed));
            (0..100).map(|_| entropy.draw().to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(draws(1), draws(1));
        let all: BTreeSet<_> = draws(1).into_iter().chain(draws(2)).collect();
        assert_eq!(all.len(), 200);
    }
}
