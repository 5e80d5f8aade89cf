//! The primitives that `snow` computes the handshake with, from `aws-lc-rs`, and its randomness, from the
//! caller. Measured with `snow`'s own, a server's half of the handshake takes more than twice as long.

use std::sync::Arc;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest::{self, SHA256};
use shadowland_wire::handshake::KEY_BYTES;
use shadowland_wire::limits::TAG_BYTES;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use zeroize::Zeroizing;

use super::identity::KeyPair;

/// Hands `snow` its primitives for one handshake.
pub(super) struct Resolver {
    /// The static key of this side, so that it need not be computed again.
    pub(super) identity: Arc<KeyPair>,
    /// The private ephemeral key, the only randomness that the handshake draws.
    pub(super) ephemeral: Zeroizing<[u8; KEY_BYTES]>,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Ephemeral(Some(self.ephemeral.clone()))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        let dh = X25519Dh { identity: Arc::clone(&self.identity), key: None };
        matches!(choice, DHChoice::Curve25519).then(|| Box::new(dh) as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        let hash = Sha256(digest::Context::new(&SHA256));
        matches!(choice, HashChoice::SHA256).then(|| Box::new(hash) as Box<dyn Hash>)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        // `snow` sets the key before it uses the cipher.
        let cipher = ChaChaPoly(key(&[0; KEY_BYTES]));
        matches!(choice, CipherChoice::ChaChaPoly).then(|| Box::new(cipher) as Box<dyn Cipher>)
    }
}

/// Randomness for exactly one key.
struct Ephemeral(Option<Zeroizing<[u8; KEY_BYTES]>>);

impl Random for Ephemeral {
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), snow::Error> {
        let key = self.0.take().filter(|key| key.len() == bytes.len()).ok_or(snow::Error::Rng)?;
        bytes.copy_from_slice(&key[..]);
        Ok(())
    }
}

struct X25519Dh {
    identity: Arc<KeyPair>,
    key: Option<Arc<KeyPair>>,
}

impl Dh for X25519Dh {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        KEY_BYTES
    }

    fn priv_len(&self) -> usize {
        KEY_BYTES
    }

    fn set(&mut self, private: &[u8]) {
        self.key = if self.identity.has_private(private) {
            Some(Arc::clone(&self.identity))
        } else {
            private.try_into().ok().map(|private| Arc::new(KeyPair::new(private)))
        };
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut private = Zeroizing::new([0; KEY_BYTES]);
        rng.try_fill_bytes(&mut *private)?;
        self.key = Some(Arc::new(KeyPair::new(&private)));
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        self.key.as_ref().map_or(&[0; KEY_BYTES], |key| key.public())
    }

    fn privkey(&self) -> &[u8] {
        self.key.as_ref().map_or(&[0; KEY_BYTES], |key| key.private())
    }

    fn dh(&self, public: &[u8], secret: &mut [u8]) -> Result<(), snow::Error> {
        // `snow` hands over buffers that fit the longest key of any curve.
        let public = public.get(..KEY_BYTES).ok_or(snow::Error::Dh)?;
        let key = self.key.as_ref().ok_or(snow::Error::Dh)?;
        key.agree(public, secret).ok_or(snow::Error::Dh)
    }
}

struct ChaChaPoly(LessSafeKey);

impl Cipher for ChaChaPoly {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }

    fn set(&mut self, bytes: &[u8; KEY_BYTES]) {
        self.0 = key(bytes);
    }

    fn encrypt(&self, number: u64, data: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let length = plaintext.len();
        out[..length].copy_from_slice(plaintext);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce(number), Aad::from(data), &mut out[..length])
            .expect("a handshake message is far below the cipher's limit");
        out[length..length + TAG_BYTES].copy_from_slice(tag.as_ref());
        length + TAG_BYTES
    }

    fn decrypt(
        &self,
        number: u64,
        data: &[u8],
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Result<usize, snow::Error> {
        let (ciphertext, tag) = ciphertext.split_last_chunk::<TAG_BYTES>().ok_or(snow::Error::Decrypt)?;
        let out = out.get_mut(..ciphertext.len()).ok_or(snow::Error::Decrypt)?;
        self.0
            .open_separate_gather(nonce(number), Aad::from(data), ciphertext, tag, out)
            .map_err(|_| snow::Error::Decrypt)?;
        Ok(ciphertext.len())
    }
}

fn key(bytes: &[u8; KEY_BYTES]) -> LessSafeKey {
    let key = UnboundKey::new(&CHACHA20_POLY1305, bytes).expect("a ChaCha20-Poly1305 key has 32 bytes");
    LessSafeKey::new(key)
}

/// Noise, section 12.3: 32 zero bits, then the number in little endian.
fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

struct Sha256(digest::Context);

impl Hash for Sha256 {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        self.0 = digest::Context::new(&SHA256);
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        out[..32].copy_from_slice(self.0.clone().finish().as_ref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::identity::Identity;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    fn state(private: &str, ephemeral: &str, server: Option<&[u8; 32]>) -> snow::HandshakeState {
        let identity = Identity::from_private_key(&bytes(private).try_into().unwrap());
        let ephemeral = Zeroizing::new(bytes(ephemeral).try_into().unwrap());
        let resolver = Resolver { identity: identity.key_pair(), ephemeral };
        let params = "Noise_IK_25519_ChaChaPoly_SHA256".parse().unwrap();
        let builder = snow::Builder::with_resolver(params, Box::new(resolver));
        let builder = builder.prologue(b"John Galt").unwrap();
        let builder = builder.local_private_key(identity.private_key()).unwrap();
        match server {
            Some(key) => builder.remote_public_key(key).unwrap().build_initiator().unwrap(),
            None => builder.build_responder().unwrap(),
        }
    }

    /// A handshake that another implementation has computed: the Noise test vectors of `cacophony` (Haskell).
    #[test]
    fn the_handshake_is_the_one_that_others_compute() {
        let responder_key = "4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893";
        let server = Identity::from_private_key(&bytes(responder_key).try_into().unwrap()).public_key();
        assert_eq!(server[..], bytes("31e0303fd6418d2f8c0e78b91f22e8caed0fbe48656dcf4767e4834f701b8f62"));
        let mut initiator = state(
            "e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1",
            "893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a",
            Some(&server),
        );
        let mut responder =
            state(responder_key, "bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b", None);

        let (mut message, mut payload) = ([0; 200], [0; 200]);
        let length = initiator.write_message(b"Ludwig von Mises", &mut message).unwrap();
        assert_eq!(
            message[..length],
            bytes(
                "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944718da798efbcd91528520204f904\
                 b9bd6c7413dccdc214d951e15253e39987f18146e8cd0873654207148333479d4d16c289f0294b29960a72f48e0b\
                 7bba2e89083169825e59642148d492020664ccf7"
            )
        );
        let length = responder.read_message(&message[..length], &mut payload).unwrap();
        assert_eq!(&payload[..length], b"Ludwig von Mises");

        let length = responder.write_message(b"Murray Rothbard", &mut message).unwrap();
        assert_eq!(
            message[..length],
            bytes(
                "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f1448088435361e70b2ed446e6c9ec387d1d6b\
                 3b840f194e373979d241b203c4acafccf5"
            )
        );
        let length = initiator.read_message(&message[..length], &mut payload).unwrap();
        assert_eq!(&payload[..length], b"Murray Rothbard");
        let hash = bytes("0b0f68fb0c27e03ce9b97565995ed4838cc0581b762ef72b062f6a546419fad7");
        assert_eq!(initiator.get_handshake_hash(), hash);
        assert_eq!(responder.get_handshake_hash(), hash);
        assert_eq!(initiator.dangerously_get_raw_split(), responder.dangerously_get_raw_split());
    }
}
