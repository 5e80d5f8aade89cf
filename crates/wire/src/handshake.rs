//! The messages before a session exists: the only ones that travel in clear.
//!
//! Each is the all-zero [`Header`], one type byte and a body, and fills its datagram. Clients may share a
//! socket, so that every answer of the server repeats the first [`ECHO_BYTES`] of the client's ephemeral key;
//! it is also what keeps a stranger who saw no request from answering one.

use crate::codec::{DecodeError, Full, Reader, Writer};
use crate::header::{HEADER_BYTES, Header};
use crate::limits::{DATAGRAM_BYTES, TOKEN_BYTES};

/// Bytes of an X25519 public key.
pub const KEY_BYTES: usize = 32;
/// Bytes of the client's ephemeral key that the server's answers repeat.
pub const ECHO_BYTES: usize = 8;
/// Bytes of a cookie.
pub const COOKIE_BYTES: usize = 48;
/// Bytes of the first Noise message without its payload: ephemeral key, sealed static key, tag.
pub const NOISE_REQUEST_BYTES: usize = KEY_BYTES + (KEY_BYTES + 16) + 16;
/// Most bytes of the payload of the first Noise message: a length and the login token.
pub const REQUEST_PAYLOAD_BYTES: usize = 2 + TOKEN_BYTES;
/// Bytes of the second Noise message: ephemeral key, sealed [`Acceptance`], tag.
pub const NOISE_ACCEPTANCE_BYTES: usize = KEY_BYTES + ACCEPTANCE_BYTES + 16;
/// Bytes of an [`Acceptance`].
pub const ACCEPTANCE_BYTES: usize = 14;

/// Bytes of a whole ConnectRequest datagram without a token.
pub const CONNECT_REQUEST_MIN_BYTES: usize = HEADER_BYTES + 1 + 2 + COOKIE_BYTES + NOISE_REQUEST_BYTES + 1;
/// Most bytes of any answer to a handshake datagram.
pub const HANDSHAKE_REPLY_BYTES: usize = HEADER_BYTES + 1 + ECHO_BYTES + NOISE_ACCEPTANCE_BYTES;

// An answer before a valid cookie must never be larger than its request.
const _: () = assert!(HEADER_BYTES + 1 + ECHO_BYTES + COOKIE_BYTES <= DATAGRAM_BYTES);
const _: () = assert!(HANDSHAKE_REPLY_BYTES <= CONNECT_REQUEST_MIN_BYTES);

/// The first bytes of the client's ephemeral key, by which an answer finds its request.
pub type Echo = [u8; ECHO_BYTES];

/// The echo of an ephemeral key.
#[must_use]
pub fn echo_of(ephemeral: &[u8; KEY_BYTES]) -> Echo {
    let mut echo = [0; ECHO_BYTES];
    echo.copy_from_slice(&ephemeral[..ECHO_BYTES]);
    echo
}

/// What a client sends before it has a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientHandshake<'a> {
    /// Asks for a cookie.
    Connect {
        /// The client's protocol version.
        version: u16,
        /// The public ephemeral key that the Noise message will start with.
        ephemeral: [u8; KEY_BYTES],
    },
    /// Asks for a session.
    ConnectRequest {
        /// The client's protocol version, the same as in Connect.
        version: u16,
        /// The cookie as it was received.
        cookie: &'a [u8; COOKIE_BYTES],
        /// The first Noise message; it starts with the client's ephemeral key.
        noise: &'a [u8],
    },
}

/// What a server answers before a session exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerHandshake<'a> {
    /// Proof that the client receives at its address.
    Cookie {
        /// Start of the client's ephemeral key.
        echo: Echo,
        /// To be sent back in ConnectRequest.
        cookie: [u8; COOKIE_BYTES],
    },
    /// The session exists.
    ConnectionAccepted {
        /// Start of the client's ephemeral key.
        echo: Echo,
        /// The second Noise message, whose payload is an [`Acceptance`].
        noise: &'a [u8],
    },
    /// There will be no session. Not authenticated: a hint, not a verdict.
    ConnectionDenied {
        /// Start of the client's ephemeral key.
        echo: Echo,
        /// Why not.
        reason: DenyReason,
    },
}

/// Why a server denies a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DenyReason {
    /// The server has as many players as it takes.
    Full,
    /// The server speaks another version of the protocol.
    Version,
    /// The server is about to stop.
    ShuttingDown,
    /// The login token is missing, over, used, or not for this client.
    Token,
    /// As many sessions come from the client's address as may.
    Address,
    /// A reason that this version does not know.
    Other(u8),
}

impl DenyReason {
    /// The reason with this code.
    #[must_use]
    pub fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Full,
            2 => Self::Version,
            3 => Self::ShuttingDown,
            4 => Self::Token,
            5 => Self::Address,
            other => Self::Other(other),
        }
    }

    /// The code of this reason.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Full => 1,
            Self::Version => 2,
            Self::ShuttingDown => 3,
            Self::Token => 4,
            Self::Address => 5,
            Self::Other(code) => code,
        }
    }
}

mod kind {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const COOKIE: u8 = 2;
    pub(super) const CONNECT_REQUEST: u8 = 3;
    pub(super) const CONNECTION_ACCEPTED: u8 = 4;
    pub(super) const CONNECTION_DENIED: u8 = 5;
}

impl<'a> ClientHandshake<'a> {
    /// Writes the whole datagram; Connect is padded with zeros to [`DATAGRAM_BYTES`].
    pub fn encode(&self, writer: &mut Writer<'_>) -> Result<(), Full> {
        Header::HANDSHAKE.encode(writer)?;
        match *self {
            Self::Connect { version, ephemeral } => {
                writer.u8(kind::CONNECT)?;
                writer.u16(version)?;
                writer.bytes(&ephemeral)?;
                const PADDING: usize = DATAGRAM_BYTES - HEADER_BYTES - 1 - 2 - KEY_BYTES;
                writer.bytes(&[0; PADDING])
            }
            Self::ConnectRequest { version, cookie, noise } => {
                writer.u8(kind::CONNECT_REQUEST)?;
                writer.u16(version)?;
                writer.bytes(cookie)?;
                writer.bytes(noise)
            }
        }
    }

    /// Reads a whole datagram. The padding of Connect must be there; what it holds is not looked at.
    pub fn decode(datagram: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(datagram);
        match decode_kind(&mut reader)? {
            kind::CONNECT if datagram.len() == DATAGRAM_BYTES => {
                Ok(Self::Connect { version: reader.u16()?, ephemeral: reader.array()? })
            }
            kind::CONNECT => Err(DecodeError::BadValue("length of Connect")),
            kind::CONNECT_REQUEST => {
                let version = reader.u16()?;
                let cookie = reader.bytes(COOKIE_BYTES)?.first_chunk().ok_or(DecodeError::UnexpectedEnd)?;
                let noise = reader.rest();
                // An empty payload still has the length of the token that it does not carry.
                if noise.len() <= NOISE_REQUEST_BYTES {
                    return Err(DecodeError::UnexpectedEnd);
                }
                if noise.len() > NOISE_REQUEST_BYTES + REQUEST_PAYLOAD_BYTES {
                    return Err(DecodeError::LimitExceeded("length of ConnectRequest"));
                }
                Ok(Self::ConnectRequest { version, cookie, noise })
            }
            _ => Err(DecodeError::BadValue("handshake type")),
        }
    }
}

impl<'a> ServerHandshake<'a> {
    /// Writes the whole datagram.
    pub fn encode(&self, writer: &mut Writer<'_>) -> Result<(), Full> {
        Header::HANDSHAKE.encode(writer)?;
        match *self {
            Self::Cookie { echo, cookie } => {
                writer.u8(kind::COOKIE)?;
                writer.bytes(&echo)?;
                writer.bytes(&cookie)
            }
            Self::ConnectionAccepted { echo, noise } => {
                writer.u8(kind::CONNECTION_ACCEPTED)?;
                writer.bytes(&echo)?;
                writer.bytes(noise)
            }
            Self::ConnectionDenied { echo, reason } => {
                writer.u8(kind::CONNECTION_DENIED)?;
                writer.bytes(&echo)?;
                writer.u8(reason.code())
            }
        }
    }

    /// Reads a whole datagram.
    pub fn decode(datagram: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(datagram);
        let kind = decode_kind(&mut reader)?;
        let echo = reader.array()?;
        let message = match kind {
            kind::COOKIE => Self::Cookie { echo, cookie: reader.array()? },
            kind::CONNECTION_ACCEPTED => {
                Self::ConnectionAccepted { echo, noise: reader.bytes(NOISE_ACCEPTANCE_BYTES)? }
            }
            kind::CONNECTION_DENIED => {
                Self::ConnectionDenied { echo, reason: DenyReason::from_code(reader.u8()?) }
            }
            _ => return Err(DecodeError::BadValue("handshake type")),
        };
        reader.finish()?;
        Ok(message)
    }
}

/// The echo in an answer of the server, found without decoding the rest: how a socket that is shared by
/// several clients finds the one that it belongs to.
#[must_use]
pub fn peek_echo(datagram: &[u8]) -> Option<Echo> {
    let mut reader = Reader::new(datagram);
    decode_kind(&mut reader).ok()?;
    reader.array().ok()
}

fn decode_kind(reader: &mut Reader<'_>) -> Result<u8, DecodeError> {
    if Header::decode(reader)? != Header::HANDSHAKE {
        return Err(DecodeError::BadValue("handshake header"));
    }
    reader.u8()
}

/// What the server tells a client whom it has accepted; sealed in the second Noise message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acceptance {
    /// The session's id, in the header of all its packets; never 0.
    pub connection_id: u32,
    /// What the session runs with.
    pub parameters: SessionParameters,
}

/// What a session runs with, decided by the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionParameters {
    /// Ticks of the world per second.
    pub tick_rate_hz: u16,
    /// Largest datagram that either side may send, in bytes.
    pub mtu: u16,
    /// A session that hears nothing for so long is over, in milliseconds.
    pub idle_timeout_ms: u32,
    /// Which table of integrity keys the server expects; 0 when it does not ask.
    pub integrity_version: u16,
}

impl Default for SessionParameters {
    fn default() -> Self {
        Self { tick_rate_hz: 60, mtu: DATAGRAM_BYTES as u16, idle_timeout_ms: 15_000, integrity_version: 0 }
    }
}

/// Smallest MTU that a session may have: the largest reliable message and all that goes around it.
pub const MTU_MIN: u16 = 1_150;

impl Acceptance {
    /// The bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; ACCEPTANCE_BYTES] {
        let mut bytes = [0; ACCEPTANCE_BYTES];
        bytes[0..4].copy_from_slice(&self.connection_id.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.parameters.tick_rate_hz.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.parameters.mtu.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.parameters.idle_timeout_ms.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.parameters.integrity_version.to_le_bytes());
        bytes
    }

    /// Reads the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let connection_id = reader.u32()?;
        let parameters = SessionParameters {
            tick_rate_hz: reader.u16()?,
            mtu: reader.u16()?,
            idle_timeout_ms: reader.u32()?,
            integrity_version: reader.u16()?,
        };
        reader.finish()?;
        if connection_id == 0 {
            return Err(DecodeError::BadValue("connection id"));
        }
        if parameters.tick_rate_hz == 0 {
            return Err(DecodeError::BadValue("tick rate"));
        }
        if parameters.mtu < MTU_MIN || usize::from(parameters.mtu) > DATAGRAM_BYTES {
            return Err(DecodeError::BadValue("MTU"));
        }
        if parameters.idle_timeout_ms == 0 {
            return Err(DecodeError::BadValue("idle timeout"));
        }
        Ok(Self { connection_id, parameters })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::Flags;
    use proptest::prelude::*;

    fn client_bytes(message: &ClientHandshake<'_>) -> Vec<u8> {
        let mut buffer = [0; DATAGRAM_BYTES];
        let mut writer = Writer::new(&mut buffer);
        message.encode(&mut writer).unwrap();
        writer.written().to_vec()
    }

    fn server_bytes(message: &ServerHandshake<'_>) -> Vec<u8> {
        let mut buffer = [0; DATAGRAM_BYTES];
        let mut writer = Writer::new(&mut buffer);
        message.encode(&mut writer).unwrap();
        writer.written().to_vec()
    }

    #[test]
    fn connect_fills_a_datagram_and_a_shorter_one_is_refused() {
        let connect = ClientHandshake::Connect { version: 0x0201, ephemeral: [7; 32] };
        let bytes = client_bytes(&connect);
        assert_eq!(bytes.len(), DATAGRAM_BYTES);
        assert_eq!(bytes[14..17], [1, 1, 2]);
        assert_eq!(ClientHandshake::decode(&bytes), Ok(connect));
        assert_eq!(
            ClientHandshake::decode(&bytes[..DATAGRAM_BYTES - 1]),
            Err(DecodeError::BadValue("length of Connect"))
        );
    }

    #[test]
    fn a_header_that_is_not_zero_is_no_handshake() {
        let mut bytes = client_bytes(&ClientHandshake::Connect { version: 1, ephemeral: [7; 32] });
        bytes[5] = Flags::KEY_PHASE.bits();
        assert_eq!(ClientHandshake::decode(&bytes), Err(DecodeError::BadValue("handshake header")));
    }

    #[test]
    fn reason_codes_survive_the_round_trip() {
        for code in 0..=u8::MAX {
            assert_eq!(DenyReason::from_code(code).code(), code);
        }
    }

    proptest! {
        #[test]
        fn requests_survive_the_round_trip(
            version: u16,
            cookie: [u8; COOKIE_BYTES],
            noise in proptest::collection::vec(any::<u8>(),
                NOISE_REQUEST_BYTES + 1..=NOISE_REQUEST_BYTES + REQUEST_PAYLOAD_BYTES),
        ) {
            let message = ClientHandshake::ConnectRequest { version, cookie: &cookie, noise: &noise };
            let bytes = client_bytes(&message);
            prop_assert_eq!(ClientHandshake::decode(&bytes), Ok(message));
        }

        #[test]
        fn answers_survive_the_round_trip(echo: Echo, cookie: [u8; COOKIE_BYTES], code: u8) {
            let noise = [code; NOISE_ACCEPTANCE_BYTES];
            for message in [
                ServerHandshake::Cookie { echo, cookie },
                ServerHandshake::ConnectionAccepted { echo, noise: &noise },
                ServerHandshake::ConnectionDenied { echo, reason: DenyReason::from_code(code) },
            ] {
                let bytes = server_bytes(&message);
                prop_assert_eq!(ServerHandshake::decode(&bytes), Ok(message));
                prop_assert_eq!(peek_echo(&bytes), Some(echo));
            }
        }

        #[test]
        fn any_bytes_decode_to_a_message_or_an_error(
            kind in 0u8..8,
            body in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            let mut bytes = vec![0; HEADER_BYTES];
            bytes.push(kind);
            bytes.extend(&body);
            if let Ok(message) = ServerHandshake::decode(&bytes) {
                prop_assert_eq!(server_bytes(&message), &bytes[..]);
            }
            if let Ok(message) = ClientHandshake::decode(&bytes) {
                prop_assert_eq!(client_bytes(&message), &bytes[..]);
            }
            let _ = ClientHandshake::decode(&body);
            let _ = ServerHandshake::decode(&body);
        }

        #[test]
        fn acceptances_survive_the_round_trip(bytes: [u8; ACCEPTANCE_BYTES]) {
            if let Ok(acceptance) = Acceptance::decode(&bytes) {
                prop_assert_eq!(acceptance.to_bytes(), bytes);
            }
            let acceptance = Acceptance { connection_id: 1, parameters: SessionParameters::default() };
            prop_assert_eq!(Acceptance::decode(&acceptance.to_bytes()), Ok(acceptance));
        }
    }
}
