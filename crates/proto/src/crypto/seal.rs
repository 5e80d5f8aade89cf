//! Sealing and opening packets in place with ChaCha20-Poly1305.
//!
//! The nonce is connection id and sequence, the associated data the whole header. A [`Sealer`] cannot be
//! cloned and owns the counter of its direction, so that no sequence is ever sealed twice under a key.
//!
//! The cipher is ring's, which makes one of a key without allocating. aws-lc-rs, which has the public-key part, keeps
//! its ciphers behind pointers: for one of ten thousand sessions that is two waits for memory with every packet.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use shadowland_wire::handshake::KEY_BYTES;
use shadowland_wire::header::{Channel, Flags, HEADER_BYTES, Header};
use shadowland_wire::limits::{SEQUENCE_MAX, TAG_BYTES};
use zeroize::Zeroizing;

/// Seals the packets of one direction and numbers them from 1.
pub(crate) struct Sealer {
    key: PacketKey,
    /// Lowest bit of the key's number: the header says it.
    phase: bool,
    connection_id: u32,
    next_sequence: u64,
    /// Whether `next_sequence` has been used, which is the last number that there is.
    #[cfg(feature = "hostile")]
    no_number_left: bool,
}

impl Sealer {
    pub(crate) fn new(key: &[u8; KEY_BYTES], connection_id: u32) -> Self {
        Self {
            key: PacketKey::new(key),
            phase: false,
            connection_id,
            next_sequence: 1,
            #[cfg(feature = "hostile")]
            no_number_left: false,
        }
    }

    /// Seals with the next key from here on. Sequences go on.
    pub(crate) fn rekey(&mut self, key: &[u8; KEY_BYTES]) {
        self.key = PacketKey::new(key);
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

    /// Leaves out so many sequences; what is sealed next has a later one.
    #[cfg(feature = "hostile")]
    pub(crate) fn skip(&mut self, sequences: u64) {
        self.next_sequence = self.next_sequence.saturating_add(sequences);
    }

    /// As [`Sealer::seal`], but also beyond the last sequence that an honest sealer uses; `None` where numbers end.
    #[cfg(feature = "hostile")]
    pub(crate) fn seal_beyond(&mut self, packet: &mut [u8], channel: Channel, flags: Flags) -> Option<u64> {
        let next = self.next_sequence.saturating_add(1);
        let sealed = !self.no_number_left;
        self.no_number_left = next == self.next_sequence;
        sealed.then(|| self.seal_next(packet, channel, flags, next))
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
        let next = self.next_sequence + 1;
        self.seal_next(packet, channel, flags, next)
    }

    fn seal_next(&mut self, packet: &mut [u8], channel: Channel, flags: Flags, next: u64) -> u64 {
        let sequence = std::mem::replace(&mut self.next_sequence, next);
        let phase = if self.phase { Flags::KEY_PHASE } else { Flags::NONE };
        let flags = flags.with(Flags::SEALED).with(phase);
        let header = Header { connection_id: self.connection_id, channel, flags, sequence };
        let header_bytes = header.to_bytes();
        let (head, rest) = packet.split_at_mut(HEADER_BYTES);
        let (payload, tag_room) = rest.split_at_mut(rest.len() - TAG_BYTES);
        head.copy_from_slice(&header_bytes);
        let tag = self
            .key
            .cipher()
            .seal_in_place_separate_tag(nonce(&header), Aad::from(header_bytes), payload)
            .expect("a datagram is far below the cipher's limit");
        tag_room.copy_from_slice(tag.as_ref());
        sequence
    }
}

/// Opens the packets of one direction.
pub(crate) struct Opener {
    key: PacketKey,
}

impl Opener {
    pub(crate) fn new(key: &[u8; KEY_BYTES]) -> Self {
        Self { key: PacketKey::new(key) }
    }

    /// Opens a packet in place: its payload, or `None` when the tag does not verify, and then what is left of
    /// the packet means nothing.
    pub(crate) fn open<'p>(&self, header: &Header, packet: &'p mut [u8]) -> Option<&'p mut [u8]> {
        let (head, sealed) = packet.split_at_mut_checked(HEADER_BYTES)?;
        let data = <[u8; HEADER_BYTES]>::try_from(&*head).ok()?;
        self.key.cipher().open_in_place(nonce(header), Aad::from(data), sealed).ok()
    }
}

/// A key as its 32 bytes, wiped when it is dropped. What the cipher makes of them costs some 25 ns, less than to
/// fetch it from where it lies for one of ten thousand sessions.
struct PacketKey(Zeroizing<[u8; KEY_BYTES]>);

impl PacketKey {
    fn new(key: &[u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(*key))
    }

    #[inline]
    fn cipher(&self) -> LessSafeKey {
        let key =
            UnboundKey::new(&CHACHA20_POLY1305, &self.0[..]).expect("a ChaCha20-Poly1305 key has 32 bytes");
        LessSafeKey::new(key)
    }
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
    use chacha20poly1305::aead::{Aead, KeyInit, Payload};
    use proptest::prelude::*;
    use shadowland_wire::codec::Reader;
    use std::collections::BTreeSet;

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

    proptest! {
        /// Against another implementation, both ways.
        #[test]
        fn another_implementation_seals_and_opens_the_same(
            key: [u8; 32],
            connection_id: u32,
            flags: u8,
            skipped in 0..50u64,
            payload in proptest::collection::vec(any::<u8>(), 0..1_100),
        ) {
            let mut sealer = Sealer::new(&key, connection_id);
            sealer.next_sequence += skipped;
            let mut packet = vec![0; HEADER_BYTES];
            packet.extend(&payload);
            packet.extend([0; TAG_BYTES]);
            let sequence = sealer.seal(&mut packet, Channel::ReliableOrdered, Flags::from_bits(flags));
            let (head, sealed) = packet.split_at(HEADER_BYTES);

            let other = chacha20poly1305::ChaCha20Poly1305::new(&key.into());
            let mut nonce = [0; 12];
            nonce[..4].copy_from_slice(&connection_id.to_le_bytes());
            nonce[4..].copy_from_slice(&sequence.to_le_bytes());
            let plain = Payload { msg: &payload, aad: head };
            prop_assert_eq!(other.encrypt(&nonce.into(), plain).unwrap(), sealed);
            let opened = other.decrypt(&nonce.into(), Payload { msg: sealed, aad: head }).unwrap();
            prop_assert_eq!(&opened, &payload);
            prop_assert_eq!(open(&Opener::new(&key), &mut packet).unwrap(), payload);
        }
    }

    /// Seals on several threads, with new keys now and then. Sequences that only grow, under keys that all differ,
    /// make a (key, nonce) pair that repeats impossible; here it is looked at in the headers.
    fn no_pair_repeats(seals_each: u64) {
        let threads: Vec<_> = (0..4u8)
            .map(|thread| {
                std::thread::spawn(move || {
                    let mut keys = BTreeSet::from([[thread; 32]]);
                    let mut sealer = Sealer::new(&[thread; 32], u32::from(thread));
                    let (mut last, mut phase) = (0, false);
                    for number in 1..=seals_each {
                        if number % 997 == 0 {
                            let mut key = [thread; 32];
                            key[8..16].copy_from_slice(&number.to_le_bytes());
                            assert!(keys.insert(key));
                            sealer.rekey(&key);
                            phase = !phase;
                        }
                        let mut packet = [0; HEADER_BYTES + TAG_BYTES];
                        sealer.seal(&mut packet, Channel::Unreliable, Flags::NONE);
                        let header = Header::decode(&mut Reader::new(&packet)).unwrap();
                        assert!(header.sequence > last);
                        assert_eq!(header.connection_id, u32::from(thread));
                        assert_eq!(header.flags.contains(Flags::KEY_PHASE), phase);
                        last = header.sequence;
                    }
                    assert_eq!(last, seals_each);
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn no_key_and_nonce_repeat_over_ten_million_seals_on_four_threads() {
        no_pair_repeats(2_500_000);
    }

    /// `cargo test --release -p shadowland-proto -- --ignored no_key_and_nonce`
    #[test]
    #[ignore = "the long form: 10^9 seals"]
    fn no_key_and_nonce_repeat_over_a_billion_seals() {
        no_pair_repeats(250_000_000);
    }
}
