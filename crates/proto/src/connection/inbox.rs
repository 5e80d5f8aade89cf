//! Reliable messages from the peer: delivered exactly once, those of an ordered stream in order.

use std::collections::BTreeMap;
use std::sync::Arc;

use shadowland_prefetch::prefetch;
use shadowland_wire::header::Channel;
use shadowland_wire::limits::REORDER_WINDOW;
use shadowland_wire::message::{ControlType, MessageId, StreamId};

use super::Receiver;
use super::config::TransportConfig;
use super::fragments::Assemblies;
use super::held::{HeldLimit, HeldShare};

/// What has arrived so far. Costs nothing until a message overtakes another.
#[derive(Debug)]
pub(super) struct Inbox {
    /// The lowest id of each stream that has not arrived.
    next_id: [u64; StreamId::COUNT],
    /// What of the unordered stream has arrived from `next_id` on.
    unordered: Arrived,
    /// Messages of ordered streams that wait for an earlier one.
    held: BTreeMap<MessageId, Held>,
    held_bytes: usize,
    pub(super) assemblies: Assemblies,
    share: HeldShare,
    window_messages: u64,
    window_bytes: usize,
}

#[derive(Debug)]
struct Held {
    kind: u8,
    body: Box<[u8]>,
}

/// Why a message is not taken. Its packet must not be acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// It is too far ahead, or there is no room for it, here or at the application.
    AheadOfWindow,
    /// It is a piece of a larger message that can never be delivered: the peer breaks the protocol.
    Broken,
}

impl Inbox {
    /// Fetches into the cache what is looked at when nothing reliable arrives.
    #[inline]
    pub(super) fn prefetch(&self) {
        prefetch(&self.assemblies);
    }

    pub(super) fn new(config: &TransportConfig) -> Self {
        Self {
            next_id: [0; StreamId::COUNT],
            unordered: Arrived::default(),
            held: BTreeMap::new(),
            held_bytes: 0,
            assemblies: Assemblies::new(config),
            share: HeldShare::default(),
            window_messages: u64::from(config.window_messages),
            window_bytes: config.window_bytes as usize,
        }
    }

    /// From here on what it holds counts there.
    pub(super) fn count_in(&mut self, limit: Arc<HeldLimit>) {
        self.share = HeldShare::of(limit);
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
    ) -> Result<(), NotTaken> {
        if kind == ControlType::Fragment as u8 {
            self.assemblies.touch();
        }
        let next = self.next_id[place.stream.index()];
        let Some(ahead) = place.id.checked_sub(next) else { return Ok(()) };
        if ahead >= self.window_messages || !receiver.has_room() {
            return Err(NotTaken::AheadOfWindow);
        }
        // What is delivered at once needs no room, and may make some.
        let ordered = place.stream.channel() != Channel::ReliableUnordered;
        let stays = kind == ControlType::Fragment as u8 || (ordered && ahead > 0);
        if stays && !self.share.reserve(body.len()) {
            return Err(NotTaken::AheadOfWindow);
        }
        let result = match place.stream.channel() {
            Channel::ReliableUnordered => self.accept_unordered(place, ahead, kind, body, receiver),
            _ if ahead == 0 => self.deliver(place, kind, body, receiver),
            _ => self.hold(place, kind, body),
        };
        self.share.settle(self.held_bytes + self.assemblies.bytes());
        result
    }

    fn accept_unordered(
        &mut self,
        place: MessageId,
        ahead: u64,
        kind: u8,
        body: &[u8],
        receiver: &mut impl Receiver,
    ) -> Result<(), NotTaken> {
        if self.unordered.insert(ahead) {
            self.hand_over(place, kind, body, receiver)?;
            self.next_id[place.stream.index()] += self.unordered.pop_front();
        }
        Ok(())
    }

    /// Gives a message to the application, or a piece of one to its assembly.
    fn hand_over(
        &mut self,
        place: MessageId,
        kind: u8,
        body: &[u8],
        receiver: &mut impl Receiver,
    ) -> Result<(), NotTaken> {
        if kind == ControlType::Fragment as u8 {
            return self.assemblies.take(place, body, receiver).map_err(|_| NotTaken::Broken);
        }
        receiver.message(kind, body);
        Ok(())
    }

    fn deliver(
        &mut self,
        place: MessageId,
        kind: u8,
        body: &[u8],
        receiver: &mut impl Receiver,
    ) -> Result<(), NotTaken> {
        self.hand_over(place, kind, body, receiver)?;
        let mut place = MessageId { id: place.id + 1, ..place };
        while let Some(held) = self.held.remove(&place) {
            self.held_bytes -= held.body.len();
            self.hand_over(place, held.kind, &held.body, receiver)?;
            place.id += 1;
        }
        self.next_id[place.stream.index()] = place.id;
        Ok(())
    }

    fn hold(&mut self, place: MessageId, kind: u8, body: &[u8]) -> Result<(), NotTaken> {
        if self.held.contains_key(&place) {
            return Ok(());
        }
        if self.held_bytes + body.len() > self.window_bytes {
            return Err(NotTaken::AheadOfWindow);
        }
        self.held_bytes += body.len();
        self.held.insert(place, Held { kind, body: body.into() });
        Ok(())
    }
}

/// Which of the next messages of a stream have arrived, a bit each.
#[derive(Debug, Default)]
struct Arrived([u64; REORDER_WINDOW / 64]);

impl Arrived {
    /// Whether the message so far ahead is new.
    fn insert(&mut self, ahead: u64) -> bool {
        let (word, bit) = (&mut self.0[ahead as usize / 64], 1 << (ahead % 64));
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// Takes off what has arrived without a gap; returns how many.
    fn pop_front(&mut self) -> u64 {
        let mut count = 0;
        while self.0[0] & 1 != 0 {
            let ones = self.0[0].trailing_ones();
            count += u64::from(ones);
            if ones == 64 {
                self.0.rotate_left(1);
                self.0[REORDER_WINDOW / 64 - 1] = 0;
                continue;
            }
            for word in 0..self.0.len() {
                let above = self.0.get(word + 1).copied().unwrap_or(0);
                self.0[word] = self.0[word] >> ones | above << (64 - ones);
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shadowland_wire::codec::Writer;
    use shadowland_wire::limits::{ASSEMBLIES, FRAGMENT_BYTES, REORDER_BYTES};
    use shadowland_wire::message::fragment::{Fragment, Whole};

    const WINDOW: u64 = REORDER_WINDOW as u64;

    /// The bound that `docs/TUNING.md` states, against a sender that keeps to no window and completes nothing.
    #[test]
    fn a_hostile_sender_is_held_to_the_bound() {
        let config = TransportConfig::default();
        let (mut inbox, mut log) = (Inbox::new(&config), Delivered::default());
        let fragment = |index: u32, body: &mut Vec<u8>| {
            let whole = Whole { kind: 0x40, size: config.message_bytes as u32, plain_size: None };
            let mut buffer = [0; 1_100];
            let mut writer = Writer::new(&mut buffer);
            Fragment { whole, index, piece: &[7; FRAGMENT_BYTES] }.encode(&mut writer).unwrap();
            *body = writer.written().to_vec();
        };
        let mut body = Vec::new();
        // Four large messages on ordered streams, of each the last piece but one and all before it.
        for stream in 0..ASSEMBLIES as u8 {
            let stream = StreamId::new(Channel::ReliableOrdered, stream).unwrap();
            for index in 0..(config.message_bytes / FRAGMENT_BYTES) as u32 {
                fragment(index, &mut body);
                let place = MessageId { stream, id: u64::from(index) };
                inbox.accept(place, ControlType::Fragment as u8, &body, &mut log).unwrap();
            }
        }
        // And whatever can be ahead of a gap, on all of them.
        for stream in 0..8 {
            let stream = StreamId::new(Channel::ReliableOrdered, stream).unwrap();
            for id in 0..1_000 {
                let _ = inbox.accept(MessageId { stream, id }, 0x40, &[9; 1_024], &mut log);
            }
        }
        assert!(inbox.held_bytes <= config.window_bytes as usize);
        assert!(inbox.held.len() <= 8 * REORDER_WINDOW);
        let assembled = inbox.assemblies.bytes();
        assert!(assembled <= ASSEMBLIES * config.message_bytes, "{assembled}");
        assert!(assembled > ASSEMBLIES * (config.message_bytes - 2 * FRAGMENT_BYTES), "it was tried");
    }

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
        fn exactly_once_whatever_the_order(order in proptest::collection::vec(0u64..400, 0..900), first: u32) {
            let first = u64::from(first);
            for channel in [Channel::ReliableOrdered, Channel::ReliableUnordered] {
                let (mut inbox, mut delivered) = (Inbox::new(&TransportConfig::default()), Delivered::default());
                inbox.start_at(first);
                for &id in order.iter().chain(&(0..400).collect::<Vec<_>>()) {
                    let body = id.to_le_bytes();
                    let _ = inbox.accept(place(channel, first + id), 0x20, &body, &mut delivered);
                }
                let mut ids: Vec<_> =
                    delivered.0.iter().map(|body| u64::from_le_bytes(body[..].try_into().unwrap())).collect();
                if channel == Channel::ReliableUnordered {
                    ids.sort_unstable();
                }
                prop_assert_eq!(ids, (0..400).collect::<Vec<_>>());
                prop_assert_eq!(inbox.held_bytes, 0);
            }
        }
    }

    #[test]
    fn all_connections_together_hold_no_more_than_they_may() {
        let limit = Arc::new(HeldLimit::new(10_000));
        let mut inboxes: Vec<_> = (0..5).map(|_| Inbox::new(&TransportConfig::default())).collect();
        let mut delivered = Delivered::default();
        let body = [7; 1_000];
        let mut fragment = [0; 1_100];
        let mut writer = Writer::new(&mut fragment);
        let whole = Whole { kind: 0x40, size: 2_000, plain_size: None };
        Fragment { whole, index: 0, piece: &body }.encode(&mut writer).unwrap();
        let fragment = writer.written();
        for inbox in &mut inboxes {
            inbox.count_in(Arc::clone(&limit));
        }
        // Half of them behind gaps, half of them pieces of messages that never end.
        let mut taken = 0;
        for id in 1..=4 {
            for inbox in &mut inboxes {
                let held = inbox.accept(place(Channel::ReliableOrdered, id), 0x20, &body, &mut delivered);
                let piece = place(Channel::ReliableUnordered, 2 * id);
                let piece = inbox.accept(piece, ControlType::Fragment as u8, fragment, &mut delivered);
                for result in [held, piece] {
                    assert!(matches!(result, Ok(()) | Err(NotTaken::AheadOfWindow)), "{result:?}");
                    taken += usize::from(result.is_ok());
                }
            }
        }
        assert_eq!((taken, delivered.0.len(), limit.held()), (10, 0, 10_000));
        // What needs no room is delivered all the same, and makes some.
        let first = place(Channel::ReliableOrdered, 0);
        assert_eq!(inboxes[0].accept(first, 0x20, &body, &mut delivered), Ok(()));
        assert_eq!((delivered.0.len(), limit.held()), (3, 8_000), "with the two that waited for it");
        drop(inboxes);
        assert_eq!(limit.held(), 0);
    }

    #[test]
    fn what_is_held_is_bounded_in_number_and_bytes() {
        let mut inbox = Inbox::new(&TransportConfig::default());
        let mut delivered = Delivered::default();
        let body = vec![0; 8 * 1024];
        let held = (1..=200)
            .filter(|&id| {
                inbox.accept(place(Channel::ReliableOrdered, id), 0x20, &body, &mut delivered).is_ok()
            })
            .count();
        assert_eq!(held * body.len(), REORDER_BYTES);
        assert_eq!(
            inbox.accept(place(Channel::ReliableOrdered, WINDOW), 0x20, &[], &mut delivered),
            Err(NotTaken::AheadOfWindow)
        );
        assert_eq!(
            inbox.accept(place(Channel::ReliableOrdered, u64::MAX), 0x20, &[], &mut delivered),
            Err(NotTaken::AheadOfWindow)
        );
        assert!(delivered.0.is_empty());
    }
}
