//! Login tokens: an account service says by its signature that whoever holds a client key may play as an account.
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | version `u8` | 1 |
//! | 1 | key id 8 | first 8 bytes of the Ed25519 public key that verifies it |
//! | 9 | token id 16 | random; a token is good once |
//! | 25 | account `u64` | |
//! | 33 | issued `u64` | seconds since 1970 |
//! | 41 | expires `u64` | seconds since 1970 |
//! | 49 | client key 32 | X25519 public key, the static one of the client's handshake |
//! | 81 | signature 64 | Ed25519 over `"shadowland/1 login token"` and the 81 bytes before |

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rand::CryptoRng;
use shadowland_wire::codec::{DecodeError, Reader, Writer};
use shadowland_wire::handshake::KEY_BYTES;
use shadowland_wire::limits::{TOKEN_BYTES, TOKEN_SECONDS_MAX, TOKENS_REMEMBERED};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::Time;

/// Bytes of a token.
pub const LOGIN_TOKEN_BYTES: usize = SIGNED_BYTES + SIGNATURE_BYTES;

const VERSION: u8 = 1;
const CONTEXT: &[u8] = b"shadowland/1 login token";
const KEY_ID_BYTES: usize = 8;
const TOKEN_ID_BYTES: usize = 16;
const SIGNED_BYTES: usize = 1 + KEY_ID_BYTES + TOKEN_ID_BYTES + 3 * 8 + KEY_BYTES;
const SIGNATURE_BYTES: usize = 64;
/// How far the clock of the account service may be ahead of the server's.
const AHEAD_SECONDS: u64 = 30;

const _: () = assert!(LOGIN_TOKEN_BYTES <= TOKEN_BYTES);

/// What a token says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoginToken {
    /// Drawn at random by the issuer: a token is good once.
    pub id: [u8; TOKEN_ID_BYTES],
    /// The account to play as.
    pub account: u64,
    /// When it was issued, in seconds since 1970.
    pub issued_s: u64,
    /// Until when it is good, in seconds since 1970.
    pub expires_s: u64,
    /// The static public key of the client that it is for.
    pub client_key: [u8; KEY_BYTES],
}

/// Why a token does not let its bearer in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TokenError {
    /// There is none.
    #[error("no login token")]
    Missing,
    /// It is not a token of this version.
    #[error("not a login token")]
    Malformed,
    /// Signed by a key that the server does not know.
    #[error("signed by a key that is not known")]
    UnknownKey,
    /// The signature is wrong.
    #[error("the signature is wrong")]
    BadSignature,
    /// Bound to another client's key.
    #[error("made for another client")]
    OtherClient,
    /// Its time is over, or not yet come, or too long.
    #[error("its time is over, not yet come, or longer than {TOKEN_SECONDS_MAX} s")]
    Expired,
    /// It was used before.
    #[error("used before")]
    Used,
    /// As many tokens were used as the server remembers until they expire.
    #[error("too many tokens at once")]
    TooMany,
}

/// An Ed25519 key that signs tokens: what an account service holds.
pub struct TokenSigner {
    pair: Ed25519KeyPair,
    seed: Zeroizing<[u8; KEY_BYTES]>,
}

impl TokenSigner {
    /// A new key.
    #[must_use]
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        let mut seed = Zeroizing::new([0; KEY_BYTES]);
        rng.fill_bytes(&mut *seed);
        Self::from_seed(&seed)
    }

    /// The key of a seed that was kept.
    ///
    /// # Panics
    /// Never: any 32 bytes are an Ed25519 seed.
    #[must_use]
    pub fn from_seed(seed: &[u8; KEY_BYTES]) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).expect("any 32 bytes are an Ed25519 seed");
        Self { pair, seed: Zeroizing::new(*seed) }
    }

    /// The seed, to be kept.
    #[must_use]
    pub fn seed(&self) -> &[u8; KEY_BYTES] {
        &self.seed
    }

    /// The public key, which servers must know.
    ///
    /// # Panics
    /// Never: an Ed25519 public key has 32 bytes.
    #[must_use]
    pub fn public_key(&self) -> [u8; KEY_BYTES] {
        self.pair.public_key().as_ref().try_into().expect("an Ed25519 public key has 32 bytes")
    }

    /// A signed token.
    ///
    /// # Panics
    /// Never: the buffer has the size of a token.
    #[must_use]
    pub fn issue(&self, token: &LoginToken) -> [u8; LOGIN_TOKEN_BYTES] {
        let mut bytes = [0; LOGIN_TOKEN_BYTES];
        let mut writer = Writer::new(&mut bytes[..SIGNED_BYTES]);
        let key_id = &self.public_key()[..KEY_ID_BYTES];
        let mut write = || {
            writer.u8(VERSION)?;
            writer.bytes(key_id)?;
            writer.bytes(&token.id)?;
            writer.u64(token.account)?;
            writer.u64(token.issued_s)?;
            writer.u64(token.expires_s)?;
            writer.bytes(&token.client_key)
        };
        write().expect("the buffer has the size of a token");
        let signature = self.pair.sign(&message(&bytes[..SIGNED_BYTES]));
        bytes[SIGNED_BYTES..].copy_from_slice(signature.as_ref());
        bytes
    }
}

impl fmt::Debug for TokenSigner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TokenSigner").field("public_key", &self.public_key()).finish_non_exhaustive()
    }
}

/// Checks tokens, and remembers those that were used until they expire. All workers of a server share one, for a
/// token is good once on the server, not once per worker.
pub struct TokenVerifier {
    keys: Vec<[u8; KEY_BYTES]>,
    /// Milliseconds since 1970 at [`Time`] zero, as the wall clock has it now.
    unix_at_zero_ms: AtomicU64,
    used: Mutex<UsedTokens>,
}

#[derive(Default)]
struct UsedTokens {
    by_id: BTreeMap<[u8; TOKEN_ID_BYTES], Used>,
    /// When those that are over were looked for last.
    pruned_at: Option<Time>,
}

/// Pause between two looks for tokens that are over, while as many are remembered as may be: a look goes through all of
/// them, and all workers wait for it.
const PRUNE_PAUSE: Duration = Duration::from_secs(1);

/// How long a used token is remembered: until its time is over by both clocks, so that a wall clock that is set back
/// makes none good again.
#[derive(Debug, Clone, Copy)]
struct Used {
    expires_s: u64,
    until: Time,
}

impl TokenVerifier {
    /// Accepts tokens that any of `keys` has signed. Nothing is good before [`TokenVerifier::set_clock`] was called.
    #[must_use]
    pub fn new(keys: Vec<[u8; KEY_BYTES]>) -> Self {
        Self { keys, unix_at_zero_ms: AtomicU64::new(0), used: Mutex::default() }
    }

    /// At `now` the wall clock shows `unix`, since 1970. To be told now and then: wall clocks are set and corrected
    /// while a server runs, and tokens are issued by the corrected ones.
    pub fn set_clock(&self, now: Time, unix: Duration) {
        let unix_ms = u64::try_from(unix.as_millis()).unwrap_or(u64::MAX);
        self.unix_at_zero_ms.store(unix_ms.saturating_sub(now.as_millis()), Ordering::Relaxed);
    }

    fn unix_s(&self, now: Time) -> u64 {
        self.unix_at_zero_ms.load(Ordering::Relaxed).saturating_add(now.as_millis()) / 1_000
    }

    /// Whether the client with this static key may come in with this token. If so, it is used up by that.
    pub(crate) fn take(
        &self,
        now: Time,
        bytes: Option<&[u8]>,
        client_key: &[u8; KEY_BYTES],
    ) -> Result<LoginToken, TokenError> {
        let token = self.verify(bytes.ok_or(TokenError::Missing)?)?;
        if token.client_key != *client_key {
            return Err(TokenError::OtherClient);
        }
        let now_s = self.unix_s(now);
        let life = token.expires_s.checked_sub(token.issued_s).ok_or(TokenError::Expired)?;
        let early = token.issued_s > now_s.saturating_add(AHEAD_SECONDS);
        if life > TOKEN_SECONDS_MAX || early || now_s >= token.expires_s {
            return Err(TokenError::Expired);
        }
        let mut used = self.used();
        let UsedTokens { by_id, pruned_at } = &mut *used;
        if by_id.contains_key(&token.id) {
            return Err(TokenError::Used);
        }
        if by_id.len() >= TOKENS_REMEMBERED {
            if pruned_at.is_none_or(|at| now - at >= PRUNE_PAUSE) {
                *pruned_at = Some(now);
                by_id.retain(|_, used| now_s < used.expires_s || now < used.until);
            }
            if by_id.len() >= TOKENS_REMEMBERED {
                return Err(TokenError::TooMany);
            }
        }
        let until = now + Duration::from_secs(life);
        by_id.insert(token.id, Used { expires_s: token.expires_s, until });
        Ok(token)
    }

    /// Makes a token good again whose client never confirmed the keys.
    pub(crate) fn give_back(&self, token: &LoginToken) {
        self.used().by_id.remove(&token.id);
    }

    fn verify(&self, bytes: &[u8]) -> Result<LoginToken, TokenError> {
        let (key_id, token) = decode(bytes).map_err(|_| TokenError::Malformed)?;
        let known = self.keys.iter().filter(|key| key[..KEY_ID_BYTES] == key_id);
        let mut refusal = TokenError::UnknownKey;
        let (signed, signature) = bytes.split_at(SIGNED_BYTES);
        for key in known {
            if UnparsedPublicKey::new(&ED25519, key).verify(&message(signed), signature).is_ok() {
                return Ok(token);
            }
            refusal = TokenError::BadSignature;
        }
        Err(refusal)
    }

    /// A thread that panicked with the lock left nothing half-done: every change is one call.
    fn used(&self) -> MutexGuard<'_, UsedTokens> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for TokenVerifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TokenVerifier").field("keys", &self.keys).finish_non_exhaustive()
    }
}

fn decode(bytes: &[u8]) -> Result<([u8; KEY_ID_BYTES], LoginToken), DecodeError> {
    let mut reader = Reader::new(bytes);
    if reader.u8()? != VERSION {
        return Err(DecodeError::BadValue("version of a token"));
    }
    let key_id = reader.array()?;
    let token = LoginToken {
        id: reader.array()?,
        account: reader.u64()?,
        issued_s: reader.u64()?,
        expires_s: reader.u64()?,
        client_key: reader.array()?,
    };
    reader.bytes(SIGNATURE_BYTES)?;
    reader.finish()?;
    Ok((key_id, token))
}

/// What is signed: the context keeps the signature from meaning anything elsewhere.
fn message(signed: &[u8]) -> [u8; CONTEXT.len() + SIGNED_BYTES] {
    let mut message = [0; CONTEXT.len() + SIGNED_BYTES];
    message[..CONTEXT.len()].copy_from_slice(CONTEXT);
    message[CONTEXT.len()..].copy_from_slice(signed);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    const CLIENT: [u8; KEY_BYTES] = [7; KEY_BYTES];
    const UNIX: u64 = 1_800_000_000;

    fn signer() -> TokenSigner {
        TokenSigner::generate(&mut StdRng::seed_from_u64(1))
    }

    fn token(id: u8) -> LoginToken {
        let (issued_s, expires_s) = (UNIX, UNIX + 60);
        LoginToken { id: [id; 16], account: 42, issued_s, expires_s, client_key: CLIENT }
    }

    fn verifier(keys: &[&TokenSigner]) -> TokenVerifier {
        let keys = keys.iter().map(|signer| signer.public_key()).collect();
        let verifier = TokenVerifier::new(keys);
        verifier.set_clock(at(0), Duration::from_secs(UNIX));
        verifier
    }

    fn at(seconds: u64) -> Time {
        Time::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn a_token_is_good_once_for_its_client_and_for_its_time() {
        let signer = signer();
        let verifier = verifier(&[&signer]);
        let bytes = signer.issue(&token(1));
        assert_eq!(verifier.take(at(0), Some(&bytes), &[8; KEY_BYTES]), Err(TokenError::OtherClient));
        assert_eq!(verifier.take(at(60), Some(&bytes), &CLIENT), Err(TokenError::Expired));
        assert_eq!(verifier.take(at(59), Some(&bytes), &CLIENT), Ok(token(1)));
        assert_eq!(verifier.take(at(59), Some(&bytes), &CLIENT), Err(TokenError::Used));
        verifier.give_back(&token(1));
        assert_eq!(verifier.take(at(59), Some(&bytes), &CLIENT), Ok(token(1)));
        assert_eq!(verifier.take(at(0), None, &CLIENT), Err(TokenError::Missing));
    }

    #[test]
    fn tokens_that_live_too_long_or_come_from_the_future_are_refused() {
        let signer = signer();
        let verifier = verifier(&[&signer]);
        for (issued_s, expires_s) in [
            (UNIX, UNIX + TOKEN_SECONDS_MAX + 1),
            (UNIX + AHEAD_SECONDS + 1, UNIX + AHEAD_SECONDS + 60),
            (UNIX + 20, UNIX + 10),
            (0, u64::MAX),
        ] {
            let bytes = signer.issue(&LoginToken { issued_s, expires_s, ..token(1) });
            assert_eq!(verifier.take(at(0), Some(&bytes), &CLIENT), Err(TokenError::Expired));
        }
        let bytes = signer.issue(&LoginToken { issued_s: UNIX + AHEAD_SECONDS, ..token(2) });
        assert!(verifier.take(at(0), Some(&bytes), &CLIENT).is_ok());
    }

    #[test]
    fn any_of_several_keys_may_have_signed_and_no_other() {
        let (old, new) = (signer(), TokenSigner::generate(&mut StdRng::seed_from_u64(2)));
        let stranger = TokenSigner::generate(&mut StdRng::seed_from_u64(3));
        let verifier = verifier(&[&old, &new]);
        assert!(verifier.take(at(0), Some(&old.issue(&token(1))), &CLIENT).is_ok());
        assert!(verifier.take(at(0), Some(&new.issue(&token(2))), &CLIENT).is_ok());
        let forged = stranger.issue(&token(3));
        assert_eq!(verifier.take(at(0), Some(&forged), &CLIENT), Err(TokenError::UnknownKey));
        let mut forged = stranger.issue(&token(3));
        forged[1..9].copy_from_slice(&new.public_key()[..8]);
        assert_eq!(verifier.take(at(0), Some(&forged), &CLIENT), Err(TokenError::BadSignature));
    }

    #[test]
    fn every_single_bit_flip_and_every_cut_is_refused() {
        let signer = signer();
        let verifier = verifier(&[&signer]);
        let bytes = signer.issue(&token(1));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(verifier.take(at(0), Some(&flipped), &CLIENT).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(verifier.take(at(0), Some(&bytes[..length]), &CLIENT).is_err());
        }
        assert!(verifier.take(at(0), Some(&bytes), &CLIENT).is_ok());
    }

    #[test]
    fn what_is_remembered_is_bounded_and_forgotten_when_it_expires() {
        let signer = signer();
        let verifier = verifier(&[&signer]);
        let used = Used { expires_s: UNIX + 30, until: at(20) };
        verifier.used().by_id = (0..TOKENS_REMEMBERED as u128).map(|id| (id.to_le_bytes(), used)).collect();
        let bytes = signer.issue(&token(255));
        assert_eq!(verifier.take(at(29), Some(&bytes), &CLIENT), Err(TokenError::TooMany));
        let soon = at(29) + PRUNE_PAUSE / 2;
        verifier.set_clock(soon, Duration::from_secs(UNIX + 31));
        assert_eq!(
            verifier.take(soon, Some(&bytes), &CLIENT),
            Err(TokenError::TooMany),
            "not looked at again"
        );
        assert!(verifier.take(at(31), Some(&bytes), &CLIENT).is_ok());
        assert_eq!(verifier.used().by_id.len(), 1);
    }

    #[test]
    fn tokens_are_judged_by_the_wall_clock_as_it_is_now() {
        let signer = signer();
        let verifier = verifier(&[&signer]);
        // It was an hour slow when the server started, and was set right.
        let (issued_s, expires_s) = (UNIX + 3_600, UNIX + 3_660);
        let later = |id| signer.issue(&LoginToken { issued_s, expires_s, ..token(id) });
        assert_eq!(verifier.take(at(1), Some(&later(1)), &CLIENT), Err(TokenError::Expired));
        verifier.set_clock(at(2), Duration::from_secs(UNIX + 3_602));
        assert!(verifier.take(at(3), Some(&later(1)), &CLIENT).is_ok());
        assert_eq!(verifier.take(at(3), Some(&signer.issue(&token(2))), &CLIENT), Err(TokenError::Expired));
        // Set back again: what was used stays used, also when much else was used since.
        verifier.set_clock(at(3_700), Duration::from_secs(UNIX + 3_610));
        let filling = Used { expires_s: 0, until: at(0) };
        verifier
            .used()
            .by_id
            .extend((0..TOKENS_REMEMBERED as u128).map(|id| ((id + 1_000).to_le_bytes(), filling)));
        assert!(verifier.take(at(3_700), Some(&later(3)), &CLIENT).is_ok());
        assert_eq!(verifier.take(at(3_700), Some(&later(1)), &CLIENT), Err(TokenError::Used));
        assert_eq!(verifier.used().by_id.len(), 2);
    }

    #[test]
    fn a_verifier_without_a_clock_takes_nothing() {
        let signer = signer();
        let verifier = TokenVerifier::new(vec![signer.public_key()]);
        let bytes = signer.issue(&token(1));
        assert_eq!(verifier.take(at(0), Some(&bytes), &CLIENT), Err(TokenError::Expired));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            prop_assert!(verifier(&[&signer()]).take(at(0), Some(&bytes), &CLIENT).is_err());
        }
    }
}
