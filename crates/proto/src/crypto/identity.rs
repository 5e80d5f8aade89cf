//! X25519 key pairs, static and ephemeral.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::agreement::{self, UnparsedPublicKey, X25519};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use rand::CryptoRng;
use shadowland_wire::handshake::KEY_BYTES;
use zeroize::Zeroizing;

/// A static X25519 key pair: who a server or a client is. Cloning shares the key.
#[derive(Clone)]
pub struct Identity(Arc<KeyPair>);

impl Identity {
    /// A new key pair.
    #[must_use]
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        let mut private = Zeroizing::new([0; KEY_BYTES]);
        rng.fill_bytes(&mut *private);
        Self::from_private_key(&private)
    }

    /// The key pair of a private key that was kept.
    #[must_use]
    pub fn from_private_key(private: &[u8; KEY_BYTES]) -> Self {
        Self(Arc::new(KeyPair::new(private)))
    }

    /// The public key, which clients of a server must know.
    #[must_use]
    pub fn public_key(&self) -> [u8; KEY_BYTES] {
        self.0.public
    }

    /// The private key, to be kept.
    #[must_use]
    pub fn private_key(&self) -> &[u8; KEY_BYTES] {
        &self.0.private_bytes
    }

    pub(super) fn key_pair(&self) -> Arc<KeyPair> {
        Arc::clone(&self.0)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Identity").field("public_key", &self.0.public).finish_non_exhaustive()
    }
}

/// A key pair, ready to compute with: the public key is known and the private one parsed, so that a server
/// does neither again for every handshake.
pub(crate) struct KeyPair {
    private: agreement::PrivateKey,
    private_bytes: Zeroizing<[u8; KEY_BYTES]>,
    public: [u8; KEY_BYTES],
}

impl KeyPair {
    pub(crate) fn new(private_bytes: &[u8; KEY_BYTES]) -> Self {
        let private = agreement::PrivateKey::from_private_key(&X25519, private_bytes)
            .expect("any 32 bytes are an X25519 private key");
        let public = private.compute_public_key().expect("every X25519 private key has a public one");
        let public = public.as_ref().try_into().expect("an X25519 public key has 32 bytes");
        Self { private, private_bytes: Zeroizing::new(*private_bytes), public }
    }

    pub(crate) fn public(&self) -> &[u8; KEY_BYTES] {
        &self.public
    }

    pub(super) fn private(&self) -> &[u8; KEY_BYTES] {
        &self.private_bytes
    }

    pub(super) fn has_private(&self, private: &[u8]) -> bool {
        verify_slices_are_equal(&self.private_bytes[..], private).is_ok()
    }

    /// The shared secret with `public`; `None` when it is a point of low order, whose secret anybody knows.
    pub(crate) fn agree(&self, public: &[u8], secret: &mut [u8]) -> Option<()> {
        agreement::agree(&self.private, UnparsedPublicKey::new(&X25519, public), (), |bytes| {
            secret[..KEY_BYTES].copy_from_slice(bytes);
            Ok(())
        })
        .ok()
    }
}
