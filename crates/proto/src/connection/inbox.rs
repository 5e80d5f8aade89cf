//! Reliable messages from the peer: delivered exactly once, those of an ordered stream in order.

use std::collections::BTreeMap;

use shadowland_wire::header::Channel;
use shadowland_wire::limits::{REORDER_BYTES, REORDER_WINDOW};
use shadowland_wire::message::{MessageId, StreamId};

use super::Receiver;

const WINDOW: u64 = REORDER_WINDOW as u64;
const _: () = assert!(WINDOW <= 64, "the unordered stream remembers its window in 64 bits");

/// What has arrived so far. Costs nothing until a message overtakes another.
#[derive(Debug)]
pub(super) struct Inbox {
    /// The lowest id of each stream that has not arrived.
    next_id: [u64; StreamId::COUNT],
    /// Of the unordered stream: bit `i` says that `next_id + i` has arrived.
    unordered: u64,
    /// Messages of ordered streams that wait for an earlier one.
    held: BTreeMap<MessageId, Held>,
    held_bytes: usize,
}

#[derive(Debug)]
struct Held {
    kind: u8,
    body: Box<[u8]>,
}

/// The message is too far ahead, or there is no room to hold it: its packet must not be acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AheadOfWindow;

impl Inbox {
    pub(super) fn new() -> Self {
        Self { next_id: [0; StreamId::COUNT], unordered: 0, held: BTreeMap::new(), held_bytes: 0 }
    }

    /// The id of the first message of every stream.
    pub(super) fn start_at(&mut self, first_id: u64) {
        self.next_id = [first_id; StreamId::COUNT];
    }

    /// Takes a message: delivers it and what has waited for it, holds it, or sees that it is there already.
    pub(super) fn accept(
        &mut self,
        place: MessageId,
        kind: u8,
        body: &[u8],
        receiver: &mut impl Receiver,
    ) -> Result<(), AheadOfWindow> {
        let next = self.next_id[place.stream.index()];
        let Some(ahead) = place.id.checked_sub(next) else { return Ok(()) };
        if ahead >= WINDOW {
            return Err(AheadOfWindow);
        }
        match place.stream.channel() {
            Channel::ReliableUnordered => self.accept_unordered(place.stream, ahead, kind, body, receiver),
            _ if ahead == 0 => self.deliver(place, kind, body, receiver),
            _ => return self.hold(place, kind, body),
        }
        Ok(())
    }

    fn accept_unordered(
        &mut self,
        stream: StreamId,
        ahead: u64,
        kind: u8,
        body: &[u8],
        receiver: &mut impl Receiver,
    ) {
        if self.unordered & (1 << ahead) != 0 {
            return;
        }
        receiver.message(kind, body);
        self.unordered |= 1 << ahead;
        let arrived = self.unordered.trailing_ones();
        self.unordered = self.unordered.checked_shr(arrived).unwrap_or(0);
        self.next_id[stream.index()] += u64::from(arrived);
    }

    fn deliver(&mut self, place: MessageId, kind: u8, body: &[u8], receiver: &mut impl Receiver) {
        receiver.message(kind, body);
        let mut place = MessageId { id: place.id + 1, ..place };
        while let Some(held) = self.held.remove(&place) {
            self.held_bytes -= held.body.len();
            receiver.message(held.kind, &held.body);
            place.id += 1;
        }
        self.next_id[place.stream.index()] = place.id;
    }

    fn hold(&mut self, place: MessageId, kind: u8, body: &[u8]) -> Result<(), AheadOfWindow> {
        if self.held.contains_key(&place) {
            return Ok(());
        }
        if self.held_bytes + body.len() > REORDER_BYTES {
            return Err(AheadOfWindow);
        }
        self.held_bytes += body.len();
        self.held.insert(place, Held { kind, body: body.into() });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Default)]
    struct Delivered(Vec<Vec<u8>>);

    impl Receiver for Delivered {
        fn message(&mut self, _kind: u8, body: &[u8]) {
            self.0.push(body.to_vec());
        }
        fn acked(&mut self, _sequence: u64) {}
    }

    fn place(channel: Channel, id: u64) -> MessageId {
        MessageId { stream: StreamId::new(channel, 0).unwrap(), id }
    }

    proptest! {
        /// Ids in any order, with repetitions, until all are in: each is delivered once, ordered ones in order.
        #[test]
        fn exactly_once_whatever_the_order(order in proptest::collection::vec(0u64..200, 0..600), first: u32) {
            let first = u64::from(first);
            for channel in [Channel::ReliableOrdered, Channel::ReliableUnordered] {
                let (mut inbox, mut delivered) = (Inbox::new(), Delivered::default());
                inbox.start_at(first);
                for &id in order.iter().chain(&(0..200).collect::<Vec<_>>()) {
                    let body = id.to_le_bytes();
                    let _ = inbox.accept(place(channel, first + id), 0x20, &body, &mut delivered);
                }
                let mut ids: Vec<_> =
                    delivered.0.iter().map(|body| u64::from_le_bytes(body[..].try_into().unwrap())).collect();
                if channel == Channel::ReliableUnordered {
                    ids.sort_unstable();
                }
                prop_assert_eq!(ids, (0..200).collect::<Vec<_>>());
                prop_assert_eq!(inbox.held_bytes, 0);
            }
        }
    }

    #[test]
    fn what_is_held_is_bounded_in_number_and_bytes() {
        let mut inbox = Inbox::new();
        let mut delivered = Delivered::default();
        let body = vec![0; 8 * 1024];
        let held = (1..=100)
            .filter(|&id| {
                inbox.accept(place(Channel::ReliableOrdered, id), 0x20, &body, &mut delivered).is_ok()
            })
            .count();
        assert_eq!(held * body.len(), REORDER_BYTES);
        assert_eq!(
            inbox.accept(place(Channel::ReliableOrdered, WINDOW), 0x20, &[], &mut delivered),
            Err(AheadOfWindow)
        );
        assert_eq!(
            inbox.accept(place(Channel::ReliableOrdered, u64::MAX), 0x20, &[], &mut delivered),
            Err(AheadOfWindow)
        );
        assert!(delivered.0.is_empty());
    }
}
