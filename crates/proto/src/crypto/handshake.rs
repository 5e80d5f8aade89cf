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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use shadowland_wire::handshake::SessionParameters;

    const ACCEPTANCE: Acceptance = Acceptance {
        connection_id: 7,
        parameters: SessionParameters {
            tick_rate_hz: 60,
            mtu: 1200,
            idle_timeout_ms: 15_000,
            integrity_version: 0,
        },
    };

    /// The other side: `snow` with its own primitives, which are RustCrypto's and curve25519-dalek.
    fn other<'a>(private: &'a [u8; KEY_BYTES], ephemeral: &'a [u8; KEY_BYTES]) -> Builder<'a> {
        let builder = Builder::new(NOISE_NAME.parse().unwrap()).prologue(PROTOCOL_NAME).unwrap();
        builder.local_private_key(private).unwrap().fixed_ephemeral_key_for_testing_only(ephemeral)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// A client of another implementation comes to the same keys as our server.
        #[test]
        fn another_implementation_connects_to_us(
            seed: u64,
            client_key: [u8; 32],
            ephemeral: [u8; 32],
            payload in proptest::collection::vec(any::<u8>(), 0..REQUEST_PAYLOAD_BYTES),
        ) {
            let mut rng = StdRng::seed_from_u64(seed);
            let server = Identity::generate(&mut rng);
            let public = server.public_key();
            let builder = other(&client_key, &ephemeral).remote_public_key(&public).unwrap();
            let mut client = builder.build_initiator().unwrap();
            let mut request = [0; 512];
            let length = client.write_message(&payload, &mut request).unwrap();

            let responder = Responder::read(&server, &request[..length], &mut rng).unwrap();
            prop_assert_eq!(responder.payload(), &payload);
            prop_assert_eq!(responder.client_key(), Identity::from_private_key(&client_key).public_key());
            let (answer, keys) = responder.accept(&ACCEPTANCE).unwrap();

            let mut payload = [0; 64];
            let length = client.read_message(&answer, &mut payload).unwrap();
            prop_assert_eq!(Acceptance::decode(&payload[..length]), Ok(ACCEPTANCE));
            assert_same(&keys, &session_keys(&mut client));
        }

        /// Our client comes to the same keys as a server of another implementation.
        #[test]
        fn we_connect_to_another_implementation(
            seed: u64,
            server_key: [u8; 32],
            ephemeral: [u8; 32],
            payload in proptest::collection::vec(any::<u8>(), 0..REQUEST_PAYLOAD_BYTES),
        ) {
            let mut rng = StdRng::seed_from_u64(seed);
            let identity = Identity::generate(&mut rng);
            let public = Identity::from_private_key(&server_key).public_key();
            let mut initiator = Initiator::new(&identity, &public, &payload, &mut rng).unwrap();

            let mut server = other(&server_key, &ephemeral).build_responder().unwrap();
            let mut read = [0; 512];
            let length = server.read_message(initiator.request(), &mut read).unwrap();
            prop_assert_eq!(&read[..length], &payload);
            prop_assert_eq!(server.get_remote_static(), Some(&identity.public_key()[..]));
            let mut answer = [0; NOISE_ACCEPTANCE_BYTES];
            let length = server.write_message(&ACCEPTANCE.to_bytes(), &mut answer).unwrap();
            prop_assert_eq!(length, NOISE_ACCEPTANCE_BYTES);

            let (acceptance, keys) = initiator.finish(&answer).unwrap();
            prop_assert_eq!(acceptance, ACCEPTANCE);
            assert_same(&keys, &session_keys(&mut server));
        }
    }

    fn assert_same(ours: &SessionKeys, theirs: &SessionKeys) {
        assert_eq!(ours.client_to_server, theirs.client_to_server);
        assert_eq!(ours.server_to_client, theirs.server_to_client);
        assert_eq!(ours.chain, theirs.chain);
    }
}
