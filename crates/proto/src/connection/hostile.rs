//! What a peer could send that has the keys of a session and keeps to no rule. Tests and fuzzing alone can ask for it,
//! by the feature `hostile`. The sealer still owns its counter: not even here is a sequence used twice.

use shadowland_wire::header::{Channel, Flags, HEADER_BYTES};
use shadowland_wire::limits::{DATAGRAM_BYTES, TAG_BYTES};

use super::Connection;

impl Connection {
    /// Seals any payload under any flags into `buffer`, after leaving out `skipped` sequences, and returns the length
    /// of the datagram. What does not fit a datagram is cut off. It goes on beyond the last sequence that an honest
    /// sealer uses; `None` once there are no more numbers.
    pub fn seal_anything(
        &mut self,
        buffer: &mut [u8; DATAGRAM_BYTES],
        skipped: u64,
        channel: Channel,
        flags: Flags,
        payload: &[u8],
    ) -> Option<usize> {
        self.sealer.skip(skipped);
        let size = payload.len().min(DATAGRAM_BYTES - HEADER_BYTES - TAG_BYTES);
        let length = HEADER_BYTES + size + TAG_BYTES;
        buffer[HEADER_BYTES..HEADER_BYTES + size].copy_from_slice(&payload[..size]);
        let sequence = self.sealer.seal_beyond(&mut buffer[..length], channel, flags)?;
        self.sent.forget_up_to(sequence);
        Some(length)
    }
}
