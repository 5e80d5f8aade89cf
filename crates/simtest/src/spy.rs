//! Reads along on the wire: nothing may travel in clear after the handshake.

use shadowland_wire::codec::Reader;
use shadowland_wire::handshake::{ClientHandshake, ServerHandshake};
use shadowland_wire::header::{Flags, HEADER_BYTES, Header};
use shadowland_wire::limits::TAG_BYTES;

use crate::Violation;

/// Bytes of plaintext that never stand in a sealed packet by chance.
const WINDOW: usize = 8;

/// Who sent a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A client.
    Client,
    /// The server.
    Server,
}

/// A datagram is either of the handshake or sealed. `session` tells whether the sender has a session with the
/// other side, after which a client sends nothing but sealed packets.
pub fn check_sent(side: Side, session: bool, datagram: &[u8]) -> Result<(), Violation> {
    let complain = |what: &str| Err(Violation(format!("{side:?} sent {what}: {datagram:02x?}")));
    let Ok(header) = Header::decode(&mut Reader::new(datagram)) else {
        return complain("what is no datagram of the protocol");
    };
    if header.connection_id != 0 {
        return if header.flags.contains(Flags::SEALED) {
            Ok(())
        } else {
            complain("a packet that is not sealed")
        };
    }
    match side {
        Side::Client if session => complain("in clear after the handshake"),
        Side::Client if ClientHandshake::decode(datagram).is_ok() => Ok(()),
        Side::Server if ServerHandshake::decode(datagram).is_ok() => Ok(()),
        _ => complain("in clear what is not of the handshake"),
    }
}

/// What was read of a packet, opened in place, must not stand in what travelled. `thorough` looks for every
/// eight bytes of it anywhere, otherwise only where they were.
pub fn check_opened(travelled: &[u8], opened: &[u8], thorough: bool) -> Result<(), Violation> {
    let payload = HEADER_BYTES..opened.len().saturating_sub(TAG_BYTES).max(HEADER_BYTES);
    let (Some(sealed), Some(plain)) = (travelled.get(payload.clone()), opened.get(payload)) else {
        return Ok(());
    };
    let same = sealed.iter().zip(plain).filter(|(sealed, plain)| sealed == plain).count();
    // By chance it is one in 256.
    if same > WINDOW + plain.len() / 8 {
        return Err(Violation(format!("{same} bytes of {} travelled in clear", plain.len())));
    }
    if thorough {
        let window = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("windows of eight"));
        let mut known: Vec<u64> = plain.windows(WINDOW).map(window).collect();
        known.sort_unstable();
        if let Some(seen) = sealed.windows(WINDOW).find(|bytes| known.binary_search(&window(bytes)).is_ok()) {
            return Err(Violation(format!("{seen:02x?} of a packet's content travelled in clear")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(flags: Flags, payload: &[u8]) -> Vec<u8> {
        let mut datagram = vec![7, 0, 0, 1, 0, flags.bits(), 1, 0, 0, 0, 0, 0, 0, 0];
        datagram.extend(payload);
        datagram.extend([0xee; TAG_BYTES]);
        datagram
    }

    #[test]
    fn what_travels_in_clear_is_seen() {
        let content: Vec<u8> = (1..=60).collect();
        assert!(check_sent(Side::Client, true, &packet(Flags::NONE, &content)).is_err());
        assert!(check_sent(Side::Client, true, &packet(Flags::SEALED, &content)).is_ok());
        assert!(check_sent(Side::Client, true, &[0; 1200]).is_err());
        let clear = packet(Flags::SEALED, &content);
        assert!(check_opened(&clear, &clear, false).is_err());
        // A part of it, and elsewhere.
        let mut sealed = packet(Flags::SEALED, &[0xc3; 60]);
        assert!(check_opened(&sealed, &clear, true).is_ok());
        sealed[30..38].copy_from_slice(&content[40..48]);
        assert!(check_opened(&sealed, &clear, false).is_ok());
        assert!(check_opened(&sealed, &clear, true).is_err());
    }
}
