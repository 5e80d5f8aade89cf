//! From secrets that both sides share to the keys of a session: once after the handshake, and again at every
//! rekey.

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use shadowland_wire::handshake::KEY_BYTES;
use zeroize::{Zeroize, Zeroizing};

const CLIENT_TO_SERVER: &[u8] = b"shadowland/1 client to server";
const SERVER_TO_CLIENT: &[u8] = b"shadowland/1 server to client";
const CHAIN: &[u8] = b"shadowland/1 rekey";

/// A secret of 32 bytes that leaves nothing behind.
pub(crate) type Secret = Zeroizing<[u8; KEY_BYTES]>;

/// The keys of a session until the next rekey.
pub(crate) struct SessionKeys {
    pub(crate) client_to_server: Secret,
    pub(crate) server_to_client: Secret,
    /// What the next keys will come from, together with a fresh exchange. It opens no packet.
    pub(crate) chain: Secret,
}

impl SessionKeys {
    /// From both keys of the Noise split, with the handshake hash as salt: the keys depend on everything that
    /// either side has seen.
    pub(crate) fn after_handshake(split: &mut ([u8; KEY_BYTES], [u8; KEY_BYTES]), hash: &[u8]) -> Self {
        let mut input = Zeroizing::new([0; 2 * KEY_BYTES]);
        input[..KEY_BYTES].copy_from_slice(&split.0);
        input[KEY_BYTES..].copy_from_slice(&split.1);
        split.0.zeroize();
        split.1.zeroize();
        Self::from_root(&Salt::new(HKDF_SHA256, hash).extract(&input[..]))
    }

    /// From the chain of the keys before, the secret of a fresh X25519 exchange, and the two shares that it was
    /// made of.
    pub(crate) fn after_exchange(
        chain: &Secret,
        shared: &Secret,
        server_share: &[u8; KEY_BYTES],
        client_share: &[u8; KEY_BYTES],
    ) -> Self {
        let mut input = Zeroizing::new([0; 3 * KEY_BYTES]);
        for (part, bytes) in input.chunks_exact_mut(KEY_BYTES).zip([&**shared, server_share, client_share]) {
            part.copy_from_slice(bytes);
        }
        Self::from_root(&Salt::new(HKDF_SHA256, &chain[..]).extract(&input[..]))
    }

    fn from_root(root: &Prk) -> Self {
        Self {
            client_to_server: expand(root, CLIENT_TO_SERVER),
            server_to_client: expand(root, SERVER_TO_CLIENT),
            chain: expand(root, CHAIN),
        }
    }
}

/// 32 bytes under a label.
pub(super) fn expand(root: &Prk, label: &[u8]) -> Secret {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    root.expand(&[label], KeyLength)
        .and_then(|material| material.fill(&mut key[..]))
        .expect("HKDF gives 32 bytes");
    key
}

struct KeyLength;

impl KeyType for KeyLength {
    fn len(&self) -> usize {
        KEY_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hkdf::Hkdf;
    use proptest::prelude::*;
    use sha2::Sha256;

    fn expected(salt: &[u8], input: &[u8], keys: &SessionKeys) {
        let root = Hkdf::<Sha256>::new(Some(salt), input);
        for (label, key) in [
            ("shadowland/1 client to server", &keys.client_to_server),
            ("shadowland/1 server to client", &keys.server_to_client),
            ("shadowland/1 rekey", &keys.chain),
        ] {
            let mut other = [0; KEY_BYTES];
            root.expand(label.as_bytes(), &mut other).unwrap();
            assert_eq!(other, **key, "{label}");
        }
    }

    proptest! {
        /// What docs/PROTOCOL.md says, computed by another implementation.
        #[test]
        fn another_implementation_derives_the_same(
            one: [u8; 32],
            two: [u8; 32],
            three: [u8; 32],
            four: [u8; 32],
        ) {
            let keys = SessionKeys::after_handshake(&mut (one, two), &three);
            expected(&three, &[one, two].concat(), &keys);
            let (chain, shared) = (Zeroizing::new(one), Zeroizing::new(two));
            let keys = SessionKeys::after_exchange(&chain, &shared, &three, &four);
            expected(&one, &[two, three, four].concat(), &keys);
        }

        #[test]
        fn what_was_split_is_erased(one: [u8; 32], two: [u8; 32]) {
            let mut split = (one, two);
            SessionKeys::after_handshake(&mut split, b"hash");
            prop_assert_eq!(split, ([0; 32], [0; 32]));
        }
    }
}
