//! Replication without the session around it: the server's own, by shared pages, in the same surroundings as the
//! contender's. Packets have the bytes that a session's have and are really sealed; timeouts, congestion control and
//! reliable messages are left out. Nothing is lost, and a packet is acknowledged after 1 to 8 ticks.

use std::collections::VecDeque;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use shadowland_wire::codec::Writer;
use shadowland_wire::header::HEADER_BYTES;
use shadowland_wire::limits::{DATAGRAM_BYTES, TAG_BYTES};
use shadowland_world::{Encoder, Frame, PlayerHandle, Tick, Viewer};

use super::shard::LONGEST_ROUND_TRIP;

/// Bytes of a session's packet before a snapshot: header, acknowledgements without a gap, type and length.
const BEFORE_SNAPSHOT: usize = HEADER_BYTES + 5 + 3;

/// What stands for a player's session.
pub(super) struct Link {
    pub(super) player: PlayerHandle,
    pub(super) round_trip: Tick,
    key: LessSafeKey,
}

impl Link {
    pub(super) fn new(player: PlayerHandle) -> Self {
        let key = UnboundKey::new(&CHACHA20_POLY1305, &[player.slot as u8; 32]);
        Self {
            player,
            round_trip: 1 + player.slot % LONGEST_ROUND_TRIP as Tick,
            key: LessSafeKey::new(key.expect("a key has 32 bytes")),
        }
    }

    /// Seals a packet into which a snapshot of `written` bytes was written; gives the packet's bytes.
    pub(super) fn seal(&self, buffer: &mut [u8; DATAGRAM_BYTES], written: usize) -> usize {
        let length = BEFORE_SNAPSHOT + written + TAG_BYTES;
        let (header, rest) = buffer[..length].split_at_mut(HEADER_BYTES);
        let (payload, tag) = rest.split_at_mut(length - HEADER_BYTES - TAG_BYTES);
        let nonce = Nonce::assume_unique_for_key([9; 12]);
        let sealed = self.key.seal_in_place_separate_tag(nonce, Aad::from(&*header), payload);
        tag.copy_from_slice(sealed.expect("the message is short").as_ref());
        length
    }
}

/// Where a snapshot stands in a packet.
pub(super) fn snapshot_of(buffer: &mut [u8; DATAGRAM_BYTES]) -> Writer<'_> {
    Writer::new(&mut buffer[BEFORE_SNAPSHOT..DATAGRAM_BYTES - TAG_BYTES])
}

/// The server's replication.
pub(super) struct SharedPages {
    /// By slot of the player.
    players: Vec<Option<Player>>,
    encoder: Encoder,
    budget_bytes: usize,
    sequence: u64,
}

struct Player {
    link: Link,
    viewer: Viewer,
    /// Packets on their way, with the ticks that they show.
    packets: VecDeque<(Tick, u64)>,
}

impl SharedPages {
    pub(super) fn new(players: usize, budget_bytes: usize) -> Self {
        let players = (0..players).map(|_| None).collect();
        Self { players, encoder: Encoder::new(), budget_bytes, sequence: 0 }
    }

    /// Sends everybody a snapshot of a frame.
    pub(super) fn serve(&mut self, frame: &Frame) {
        let now = frame.tick();
        for (handle, _) in frame.owners() {
            let player = &mut self.players[handle.slot as usize];
            if player.as_ref().is_none_or(|player| player.link.player != handle) {
                let (link, viewer) = (Link::new(handle), Viewer::new(handle));
                *player = Some(Player { link, viewer, packets: VecDeque::new() });
            }
            let Some(Player { link, viewer, packets }) = player else { continue };
            while let Some((_, sequence)) = packets.pop_front_if(|(tick, _)| *tick + link.round_trip <= now) {
                viewer.acked(sequence);
            }
            let snapshot = viewer.snapshot(frame, &mut self.encoder, link.round_trip, self.budget_bytes);
            let Some(mut snapshot) = snapshot else { continue };
            while snapshot.wants_packet() {
                let mut buffer = [0; DATAGRAM_BYTES];
                let mut writer = snapshot_of(&mut buffer);
                snapshot.write(&mut writer).expect("a packet has room for a header");
                let written = writer.len();
                link.seal(&mut buffer, written);
                self.sequence += 1;
                snapshot.sent(self.sequence);
                packets.push_back((now, self.sequence));
            }
        }
    }
}
