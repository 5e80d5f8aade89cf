//! Sealing and opening packets in place with ChaCha20-Poly1305.
//!
//! The nonce is connection id and sequence, the associated data the whole header. A [`Sealer`] cannot be
//! cloned and owns the counter of its direction, so that no sequence is ever sealed twice under a key.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use shadowland_wire::handshake::KEY_BYTES;
use shadowland_wire::header::{Channel, Flags, HEADER_BYTES, Header};
use shadowland_wire::limits::{SEQUENCE_MAX, TAG_BYTES};

/// Seals the packets of one direction and numbers them from 1.
pub(crate) struct Sealer {
    key: LessSafeKey,
    /// Lowest bit of the key's number: the header says it.
    phase: bool,
    connection_id: u32,
    next_sequence: u64,
}

impl Sealer {
    pub(crate) fn new(key: &[u8; KEY_BYTES], connection_id: u32) -> Self {
        Self { key: parse_key(key), phase: false, connection_id, next_sequence: 1 }
    }

    /// Seals with the next key from here on. Sequences go on.
    pub(crate) fn rekey(&mut self, key: &[u8; KEY_BYTES]) {
        self.key = parse_key(key);
        self.phase = !self.phase;
    }

    /// The sequence that the next packet will have.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Whether the last sequence has been used.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.next_sequence > SEQUENCE_MAX
    }

    /// Uses up all sequences but none of them twice.
    #[cfg(test)]
    pub(crate) fn exhaust(&mut self) {
        self.next_sequence = SEQUENCE_MAX + 1;
    }

    /// Seals a packet in place and returns its sequence. `packet` is room for the header, the payload, and room
    /// for the tag.
    ///
    /// # Panics
    /// When the sealer is exhausted, or `packet` has no room for header and tag: bugs of the caller.
    pub(crate) fn seal(&mut self, packet: &mut [u8], channel: Channel, flags: Flags) -> u64 {
        assert!(!self.is_exhausted(), "a sequence is never used twice");
        let sequence = self.next_sequence;
        self.next_sequence += 1;

        let phase = if self.phase { Flags::KEY_PHASE } else { Flags::NONE };
        let flags = flags.with(Flags::SEALED).with(phase);
        let header = Header { connection_id: self.connection_id, channel, flags, sequence };
        let header_bytes = header.to_bytes();
        let (head, rest) = packet.split_at_mut(HEADER_BYTES);
        let (payload, tag_room) = rest.split_at_mut(rest.len() - TAG_BYTES);
        head.copy_from_slice(&header_bytes);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(&header), Aad::from(header_bytes), payload)
            .expect("a datagram is far below the cipher's limit");
        tag_room.copy_from_slice(tag.as_ref());
        sequence
    }
}

/// Opens the packets of one direction.
pub(crate) struct Opener {
    key: LessSafeKey,
}

impl Opener {
    pub(crate) fn new(key: &[u8; KEY_BYTES]) -> Self {
        Self { key: parse_key(key) }
    }

    /// Opens a packet in place: its payload, or `None` when the tag does not verify, and then what is left of
    /// the packet means nothing.
    pub(crate) fn open<'p>(&self, header: &Header, packet: &'p mut [u8]) -> Option<&'p mut [u8]> {
        let (head, sealed) = packet.split_at_mut_checked(HEADER_BYTES)?;
        let data = <[u8; HEADER_BYTES]>::try_from(&*head).ok()?;
        self.key.open_in_place(nonce(header), Aad::from(data), sealed).ok()
    }
}

fn parse_key(key: &[u8; KEY_BYTES]) -> LessSafeKey {
    let key = UnboundKey::new(&CHACHA20_POLY1305, key).expect("a ChaCha20-Poly1305 key has 32 bytes");
    LessSafeKey::new(key)
}

fn nonce(header: &Header) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&header.connection_id.to_le_bytes());
    bytes[4..].copy_from_slice(&header.sequence.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shadowland_wire::codec::Reader;

    fn sealed(sealer: &mut Sealer, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; HEADER_BYTES];
        packet.extend(payload);
        packet.extend([0; TAG_BYTES]);
        sealer.seal(&mut packet, Channel::Unreliable, Flags::NONE);
        packet
    }

    fn open(opener: &Opener, packet: &mut [u8]) -> Option<Vec<u8>> {
        let header = Header::decode(&mut Reader::new(packet)).ok()?;
        opener.open(&header, packet).map(|payload| payload.to_vec())
    }

    #[test]
    fn every_single_bit_flip_of_a_sealed_packet_is_refused() {
        let (mut sealer, opener) = (Sealer::new(&[7; 32], 9), Opener::new(&[7; 32]));
        let packet = sealed(&mut sealer, b"the quick brown fox");
        assert_eq!(open(&opener, &mut packet.clone()).as_deref(), Some(&b"the quick brown fox"[..]));
        for bit in 0..packet.len() * 8 {
            let mut flipped = packet.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&opener, &mut flipped), None, "bit {bit}");
        }
        for length in 0..packet.len() {
            assert_eq!(open(&opener, &mut packet[..length].to_vec()), None, "cut to {length}");
        }
    }

    #[test]
    fn no_sequence_is_sealed_twice() {
        let mut sealer = Sealer::new(&[7; 32], 9);
        for expected in 1..100 {
            let packet = sealed(&mut sealer, b"");
            let header = Header::decode(&mut Reader::new(&packet)).unwrap();
            assert_eq!(header.sequence, expected);
            assert!(header.flags.contains(Flags::SEALED));
        }
    }
}
