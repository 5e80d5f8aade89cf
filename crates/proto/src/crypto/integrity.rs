//! Tables of integrity keys: what a client of a certain version carries, and its server knows.
//!
//! A table is 8202 bytes: `"SLINTEG1"`, the client's version `u16`, and 256 keys of 32 bytes. The same bytes go into
//! the client's build and to the server. They slow somebody down who writes a client of his own, since he has to find
//! them first; they prove nothing about a client that has them (`docs/SECURITY.md`).

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use rand::CryptoRng;
use shadowland_wire::codec::Reader;
use shadowland_wire::limits::{INTEGRITY_KEYS, INTEGRITY_NONCE_BYTES, INTEGRITY_PROOF_BYTES};
use thiserror::Error;

/// Bytes of a table, as a file or embedded in a client.
pub const INTEGRITY_TABLE_BYTES: usize = MAGIC.len() + 2 + INTEGRITY_KEYS * KEY_BYTES;

const MAGIC: &[u8; 8] = b"SLINTEG1";
const KEY_BYTES: usize = 32;

/// The keys of one client version.
#[derive(Clone, PartialEq, Eq)]
pub struct IntegrityTable {
    version: NonZeroU16,
    keys: Box<[[u8; KEY_BYTES]]>,
}

/// Bytes that are no table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "not a table of integrity keys; allowed: {INTEGRITY_TABLE_BYTES} bytes as `shadowland integrity generate` makes them"
)]
pub struct NotATable;

impl IntegrityTable {
    /// New keys for the clients of `version`.
    #[must_use]
    pub fn generate(version: NonZeroU16, rng: &mut dyn CryptoRng) -> Self {
        let mut keys = vec![[0; KEY_BYTES]; INTEGRITY_KEYS].into_boxed_slice();
        keys.iter_mut().for_each(|key| rng.fill_bytes(key));
        Self { version, keys }
    }

    /// The table that a client embeds or a server reads.
    ///
    /// # Errors
    /// If the bytes are something else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NotATable> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(NotATable)?;
        let mut reader = Reader::new(rest);
        let version = reader.u16().ok().and_then(NonZeroU16::new).ok_or(NotATable)?;
        let (keys, []) = reader.rest().as_chunks() else { return Err(NotATable) };
        let keys: Box<[_]> = keys.into();
        if keys.len() == INTEGRITY_KEYS { Ok(Self { version, keys }) } else { Err(NotATable) }
    }

    /// The bytes to keep and to embed.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [&MAGIC[..], &self.version.get().to_le_bytes(), self.keys.as_flattened()].concat()
    }

    /// The version of the clients that carry it.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.version.get()
    }

    /// The answer to a challenge: the first half of HMAC-SHA256 over the nonce, under the key with this index.
    pub(crate) fn prove(
        &self,
        index: u8,
        nonce: &[u8; INTEGRITY_NONCE_BYTES],
    ) -> [u8; INTEGRITY_PROOF_BYTES] {
        let tag = hmac::sign(&hmac::Key::new(HMAC_SHA256, &self.keys[usize::from(index)]), nonce);
        *tag.as_ref().first_chunk().expect("an HMAC-SHA256 has 32 bytes")
    }
}

impl fmt::Debug for IntegrityTable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("IntegrityTable").field("version", &self.version).finish_non_exhaustive()
    }
}

/// The tables of all client versions that a server lets play; there is at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntegrityTables(BTreeMap<u16, Arc<IntegrityTable>>);

impl IntegrityTables {
    /// The tables by their versions; of two with the same version the later one stays. `None` without any.
    #[must_use]
    pub fn new(tables: impl IntoIterator<Item = IntegrityTable>) -> Option<Self> {
        let tables: BTreeMap<_, _> =
            tables.into_iter().map(|table| (table.version(), Arc::new(table))).collect();
        (!tables.is_empty()).then_some(Self(tables))
    }

    /// The table of the newest version.
    ///
    /// # Panics
    /// Never: there is at least one.
    #[must_use]
    pub fn newest(&self) -> &Arc<IntegrityTable> {
        self.0.last_key_value().expect("there is at least one table").1
    }

    /// The table of a version.
    #[must_use]
    pub fn of(&self, version: u16) -> Option<&IntegrityTable> {
        self.0.get(&version).map(|table| &**table)
    }

    /// The versions, ascending.
    pub fn versions(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hmac::Mac as _;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    /// Another implementation of HMAC-SHA256.
    mod hmac {
        pub(super) use ::hmac::{Hmac, Mac};
    }

    fn table(version: u16) -> IntegrityTable {
        let version = NonZeroU16::new(version).unwrap();
        IntegrityTable::generate(version, &mut StdRng::seed_from_u64(version.get().into()))
    }

    #[test]
    fn a_table_survives_the_round_trip_and_nothing_else_is_one() {
        let bytes = table(7).to_bytes();
        assert_eq!(bytes.len(), INTEGRITY_TABLE_BYTES);
        assert_eq!(IntegrityTable::from_bytes(&bytes), Ok(table(7)));
        let no_version = [&MAGIC[..], &[0; 2], &bytes[10..]].concat();
        for bad in
            [&[][..], &bytes[..bytes.len() - 1], &bytes[1..], &[&bytes[..], &[0; 32]].concat(), &no_version]
        {
            assert_eq!(IntegrityTable::from_bytes(bad), Err(NotATable));
        }
    }

    #[test]
    fn another_implementation_proves_the_same() {
        let table = table(3);
        for index in [0, 1, 255] {
            let mut mac =
                hmac::Hmac::<sha2::Sha256>::new_from_slice(&table.keys[usize::from(index)]).unwrap();
            mac.update(&[9; 16]);
            assert_eq!(table.prove(index, &[9; 16])[..], mac.finalize().into_bytes()[..16]);
        }
        assert_ne!(table.prove(0, &[9; 16]), table.prove(1, &[9; 16]));
    }

    #[test]
    fn tables_are_found_by_version() {
        assert_eq!(IntegrityTables::new([]), None);
        let tables = IntegrityTables::new([table(3), table(9), table(4)]).unwrap();
        assert_eq!(tables.newest().version(), 9);
        assert_eq!(tables.of(4), Some(&table(4)));
        assert_eq!(tables.of(5), None);
        assert_eq!(tables.versions().collect::<Vec<_>>(), [3, 4, 9]);
    }
}
