//! `Noise_IK_25519_ChaChaPoly_SHA256`: each side's half, and the session keys that come of it.

use rand::CryptoRng;
use shadowland_wire::PROTOCOL_NAME;
use shadowland_wire::handshake::{
    Acceptance, KEY_BYTES, NOISE_ACCEPTANCE_BYTES, NOISE_REQUEST_BYTES, REQUEST_PAYLOAD_BYTES,
};
use snow::params::NoiseParams;
use snow::{Builder, HandshakeState};
use zeroize::Zeroizing;

use super::identity::Identity;
use super::key_schedule::SessionKeys;
use super::resolver::Resolver;

const NOISE_NAME: &str = "Noise_IK_25519_ChaChaPoly_SHA256";

/// The handshake did not go through: another key, damaged bytes, or a key that is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HandshakeFailed;

impl From<snow::Error> for HandshakeFailed {
    /// Why exactly is of no use to anybody but an attacker.
    fn from(_: snow::Error) -> Self {
        Self
    }
}

/// The client's half.
pub(crate) struct Initiator {
    state: HandshakeState,
    request: Vec<u8>,
}

impl Initiator {
    /// Computes the first message, whose ephemeral key Connect shows beforehand.
    pub(crate) fn new(
        identity: &Identity,
        server_key: &[u8; KEY_BYTES],
        payload: &[u8],
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, HandshakeFailed> {
        let mut state = builder(identity, rng)?.remote_public_key(server_key)?.build_initiator()?;
        let mut request = vec![0; NOISE_REQUEST_BYTES + payload.len()];
        let length = state.write_message(payload, &mut request)?;
        request.truncate(length);
        Ok(Self { state, request })
    }

    /// The first message.
    pub(crate) fn request(&self) -> &[u8] {
        &self.request
    }

    /// The public ephemeral key, which the first message starts with.
    pub(crate) fn ephemeral(&self) -> [u8; KEY_BYTES] {
        *self.request.first_chunk().expect("the first message starts with a key")
    }

    /// Reads the second message. A message that does not open changes nothing.
    pub(crate) fn finish(&mut self, message: &[u8]) -> Result<(Acceptance, SessionKeys), HandshakeFailed> {
        let mut payload = [0; NOISE_ACCEPTANCE_BYTES];
        let length = self.state.read_message(message, &mut payload)?;
        let acceptance = Acceptance::decode(&payload[..length]).map_err(|_| HandshakeFailed)?;
        Ok((acceptance, session_keys(&mut self.state)))
    }
}

/// The server's half, after the first message has opened.
pub(crate) struct Responder {
    state: HandshakeState,
    payload: [u8; REQUEST_PAYLOAD_BYTES],
    payload_length: usize,
}

impl Responder {
    /// Reads the first message.
    pub(crate) fn read(
        identity: &Identity,
        message: &[u8],
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, HandshakeFailed> {
        let mut state = builder(identity, rng)?.build_responder()?;
        let mut payload = [0; REQUEST_PAYLOAD_BYTES];
        let payload_length = state.read_message(message, &mut payload)?;
        Ok(Self { state, payload, payload_length })
    }

    /// The client's static public key: it holds the private one.
    pub(crate) fn client_key(&self) -> [u8; KEY_BYTES] {
        let key = self.state.get_remote_static().and_then(|key| key.first_chunk());
        *key.expect("the first message of IK carries the static key")
    }

    /// What the first message carried.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.payload[..self.payload_length]
    }

    /// Computes the second message.
    pub(crate) fn accept(
        mut self,
        acceptance: &Acceptance,
    ) -> Result<([u8; NOISE_ACCEPTANCE_BYTES], SessionKeys), HandshakeFailed> {
        let mut message = [0; NOISE_ACCEPTANCE_BYTES];
        self.state.write_message(&acceptance.to_bytes(), &mut message)?;
        let keys = session_keys(&mut self.state);
        Ok((message, keys))
    }
}

fn builder<'a>(identity: &'a Identity, rng: &mut dyn CryptoRng) -> Result<Builder<'a>, HandshakeFailed> {
    let params: NoiseParams = NOISE_NAME.parse()?;
    let mut ephemeral = Zeroizing::new([0; KEY_BYTES]);
    rng.fill_bytes(&mut *ephemeral);
    let resolver = Resolver { identity: identity.key_pair(), ephemeral };
    let builder = Builder::with_resolver(params, Box::new(resolver));
    Ok(builder.prologue(PROTOCOL_NAME)?.local_private_key(identity.private_key())?)
}

fn session_keys(state: &mut HandshakeState) -> SessionKeys {
    let mut split = state.dangerously_get_raw_split();
    SessionKeys::after_handshake(&mut split, state.get_handshake_hash())
}
