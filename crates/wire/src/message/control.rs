//! The bodies of control messages: the session's own, in both directions.

use crate::codec::{DecodeError, Full, Reader, Writer};
use crate::handshake::KEY_BYTES;
use crate::limits::{INTEGRITY_NONCE_BYTES, INTEGRITY_PROOF_BYTES, PATH_TOKEN_BYTES};
use crate::message::{ControlType, encode_frame};

/// Bytes of an integrity challenge's nonce that the answer repeats.
pub const INTEGRITY_ECHO_BYTES: usize = 8;

/// A control message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Asks for a Pong.
    Ping {
        /// Comes back in the Pong.
        id: u32,
    },
    /// Answers a Ping.
    Pong {
        /// The Ping's id.
        id: u32,
        /// How long the Ping waited for this answer, in microseconds.
        held_us: u32,
    },
    /// Ends the session; sent three times, never answered.
    Disconnect(DisconnectReason),
    /// Confirms the keys and opens the reliable streams.
    ReliableHandshake(ReliableHandshake),
    /// The server asks for a proof that the client holds the table of keys of its version.
    CheckIntegrity {
        /// The newest version that the server has a table of.
        version: u16,
        /// Which key of the table.
        index: u8,
        /// What the proof is made of.
        nonce: [u8; INTEGRITY_NONCE_BYTES],
    },
    /// The proof.
    IntegrityAnswer {
        /// The client's version: whose table the key is from.
        version: u16,
        /// Start of the challenge's nonce.
        echo: [u8; INTEGRITY_ECHO_BYTES],
        /// Start of HMAC-SHA256 over the nonce, under the key.
        proof: [u8; INTEGRITY_PROOF_BYTES],
    },
    /// The server asks for new keys.
    RekeyRequest {
        /// Number of the new keys; those of the handshake are 0.
        number: u32,
        /// The server's fresh X25519 public key.
        share: [u8; KEY_BYTES],
    },
    /// The client's half of the new keys.
    RekeyResponse {
        /// As in the request.
        number: u32,
        /// The client's fresh X25519 public key.
        share: [u8; KEY_BYTES],
    },
    /// The server asks an address that the client's packets come from for a proof.
    PathChallenge {
        /// Comes back in the response.
        token: [u8; PATH_TOKEN_BYTES],
    },
    /// The proof: the client receives at the address that it sends from.
    PathResponse {
        /// As in the challenge.
        token: [u8; PATH_TOKEN_BYTES],
    },
}

/// What a side tells about its reliable streams before it uses them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReliableHandshake {
    /// `false` from the client, who repeats it until the server has answered with `true`.
    pub answer: bool,
    /// The id of the sender's first message in each of its streams.
    pub first_id: u64,
    /// Messages from the next expected one on that the sender takes, per stream.
    pub window_messages: u16,
    /// Bytes of messages that the sender takes ahead of a gap, all streams together.
    pub window_bytes: u32,
    /// Largest message that the sender takes, packed and unpacked.
    pub message_bytes: u32,
}

/// Why a session was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DisconnectReason {
    /// The player left.
    Leaving,
    /// The server is about to stop.
    ShuttingDown,
    /// The player was removed by the server.
    Kicked,
    /// Nothing was heard for the idle timeout.
    IdleTimeout,
    /// A reliable message was never acknowledged.
    Undeliverable,
    /// The same account has a newer session.
    Replaced,
    /// The server had no room after all.
    Full,
    /// The session has used up its keys.
    KeysExhausted,
    /// The peer did what no honest peer does.
    ProtocolViolation,
    /// The client did not answer an integrity challenge, or not rightly.
    Integrity,
    /// A reason that this version does not know.
    Other(u8),
}

impl DisconnectReason {
    /// The reason with this code.
    #[must_use]
    pub fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Leaving,
            2 => Self::ShuttingDown,
            3 => Self::Kicked,
            4 => Self::IdleTimeout,
            5 => Self::Undeliverable,
            6 => Self::Replaced,
            7 => Self::Full,
            8 => Self::KeysExhausted,
            9 => Self::ProtocolViolation,
            10 => Self::Integrity,
            other => Self::Other(other),
        }
    }

    /// The code of this reason.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Leaving => 1,
            Self::ShuttingDown => 2,
            Self::Kicked => 3,
            Self::IdleTimeout => 4,
            Self::Undeliverable => 5,
            Self::Replaced => 6,
            Self::Full => 7,
            Self::KeysExhausted => 8,
            Self::ProtocolViolation => 9,
            Self::Integrity => 10,
            Self::Other(code) => code,
        }
    }
}

impl Control {
    /// The message's type.
    #[must_use]
    pub fn kind(&self) -> ControlType {
        match self {
            Self::Ping { .. } => ControlType::Ping,
            Self::Pong { .. } => ControlType::Pong,
            Self::Disconnect(_) => ControlType::Disconnect,
            Self::ReliableHandshake(_) => ControlType::ReliableHandshake,
            Self::CheckIntegrity { .. } => ControlType::CheckIntegrity,
            Self::IntegrityAnswer { .. } => ControlType::IntegrityAnswer,
            Self::RekeyRequest { .. } => ControlType::RekeyRequest,
            Self::RekeyResponse { .. } => ControlType::RekeyResponse,
            Self::PathChallenge { .. } => ControlType::PathChallenge,
            Self::PathResponse { .. } => ControlType::PathResponse,
        }
    }

    /// Writes the whole frame.
    pub fn encode(&self, writer: &mut Writer<'_>) -> Result<(), Full> {
        encode_frame(writer, self.kind() as u8, None, |writer| match *self {
            Self::Ping { id } => writer.u32(id),
            Self::Pong { id, held_us } => {
                writer.u32(id)?;
                writer.u32(held_us)
            }
            Self::Disconnect(reason) => writer.u8(reason.code()),
            Self::ReliableHandshake(handshake) => {
                writer.u8(u8::from(handshake.answer))?;
                writer.varint(handshake.first_id)?;
                writer.u16(handshake.window_messages)?;
                writer.u32(handshake.window_bytes)?;
                writer.u32(handshake.message_bytes)
            }
            Self::CheckIntegrity { version, index, nonce } => {
                writer.u16(version)?;
                writer.u8(index)?;
                writer.bytes(&nonce)
            }
            Self::IntegrityAnswer { version, echo, proof } => {
                writer.u16(version)?;
                writer.bytes(&echo)?;
                writer.bytes(&proof)
            }
            Self::RekeyRequest { number, share } | Self::RekeyResponse { number, share } => {
                writer.u32(number)?;
                writer.bytes(&share)
            }
            Self::PathChallenge { token } | Self::PathResponse { token } => writer.bytes(&token),
        })
    }

    /// Reads the body of the control message with this type byte; `None` for a type that is unknown or only
    /// reserved, which a receiver skips.
    pub fn decode(kind: u8, body: &[u8]) -> Result<Option<Self>, DecodeError> {
        let mut reader = Reader::new(body);
        let control = match ControlType::from_byte(kind) {
            Some(ControlType::Ping) => Self::Ping { id: reader.u32()? },
            Some(ControlType::Pong) => Self::Pong { id: reader.u32()?, held_us: reader.u32()? },
            Some(ControlType::Disconnect) => Self::Disconnect(DisconnectReason::from_code(reader.u8()?)),
            Some(ControlType::ReliableHandshake) => Self::ReliableHandshake(ReliableHandshake {
                answer: match reader.u8()? {
                    0 => false,
                    1 => true,
                    _ => return Err(DecodeError::BadValue("reliable handshake")),
                },
                first_id: reader.varint()?,
                window_messages: reader.u16()?,
                window_bytes: reader.u32()?,
                message_bytes: reader.u32()?,
            }),
            Some(ControlType::CheckIntegrity) => {
                Self::CheckIntegrity { version: reader.u16()?, index: reader.u8()?, nonce: reader.array()? }
            }
            Some(ControlType::IntegrityAnswer) => Self::IntegrityAnswer {
                version: reader.u16()?,
                echo: reader.array()?,
                proof: reader.array()?,
            },
            Some(ControlType::RekeyRequest) => {
                Self::RekeyRequest { number: reader.u32()?, share: reader.array()? }
            }
            Some(ControlType::RekeyResponse) => {
                Self::RekeyResponse { number: reader.u32()?, share: reader.array()? }
            }
            Some(ControlType::PathChallenge) => Self::PathChallenge { token: reader.array()? },
            Some(ControlType::PathResponse) => Self::PathResponse { token: reader.array()? },
            _ => return Ok(None),
        };
        reader.finish()?;
        Ok(Some(control))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Frame;
    use proptest::prelude::*;

    fn any_control() -> impl Strategy<Value = Control> {
        prop_oneof![
            any::<u32>().prop_map(|id| Control::Ping { id }),
            any::<(u32, u32)>().prop_map(|(id, held_us)| Control::Pong { id, held_us }),
            any::<u8>().prop_map(|code| Control::Disconnect(DisconnectReason::from_code(code))),
            any::<(u16, u8, [u8; 16])>().prop_map(|(version, index, nonce)| Control::CheckIntegrity {
                version,
                index,
                nonce
            }),
            any::<(u16, [u8; 8], [u8; 16])>().prop_map(|(version, echo, proof)| Control::IntegrityAnswer {
                version,
                echo,
                proof
            }),
            any::<(u32, [u8; 32])>().prop_map(|(number, share)| Control::RekeyRequest { number, share }),
            any::<(u32, [u8; 32])>().prop_map(|(number, share)| Control::RekeyResponse { number, share }),
            any::<[u8; 8]>().prop_map(|token| Control::PathChallenge { token }),
            any::<[u8; 8]>().prop_map(|token| Control::PathResponse { token }),
            any::<(bool, u64, u16, u32, u32)>().prop_map(
                |(answer, first_id, window_messages, window_bytes, message_bytes)| {
                    Control::ReliableHandshake(ReliableHandshake {
                        answer,
                        first_id,
                        window_messages,
                        window_bytes,
                        message_bytes,
                    })
                }
            ),
        ]
    }

    proptest! {
        #[test]
        fn control_messages_survive_the_round_trip(control in any_control()) {
            let mut buffer = [0; 64];
            let mut writer = Writer::new(&mut buffer);
            control.encode(&mut writer).unwrap();
            let frame = Frame::decode(&mut Reader::new(writer.written())).unwrap();
            prop_assert_eq!(frame.reliable, None);
            prop_assert_eq!(Control::decode(frame.kind, frame.body), Ok(Some(control)));
        }

        #[test]
        fn any_bytes_decode_to_a_message_or_an_error(
            kind: u8,
            body in proptest::collection::vec(any::<u8>(), 0..32),
        ) {
            if let Ok(Some(control)) = Control::decode(kind, &body) {
                let mut buffer = [0; 64];
                let mut writer = Writer::new(&mut buffer);
                control.encode(&mut writer).unwrap();
                prop_assert_eq!(&writer.written()[2..], &body[..]);
            }
        }
    }

    #[test]
    fn reserved_types_are_skipped() {
        assert_eq!(Control::decode(ControlType::Fragment as u8, &[1, 2, 3]), Ok(None));
        assert_eq!(Control::decode(0, &[]), Ok(None));
    }
}
