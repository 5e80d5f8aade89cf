//! Reliable messages from the peer: delivered exactly once, those of an ordered stream in order.

use std::collections::BTreeMap;
use std::sync::Arc;

use shadowland_wire::header::Channel;
use shadowland_wire::limits::REORDER_WINDOW;
use shadowland_wire::message::fragment::Fragment;
use shadowland_wire::message::{ControlType, MessageId, StreamId};

use super::Receiver;
use super::config::TransportConfig;
use super::fragments::Assemblies;
use super::held::{HeldLimit, HeldShare, MESSAGE_OVERHEAD, TREE_OVERHEAD};

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
    /// The same once they are unpacked.
    held_plain_bytes: usize,
    /// What unpacking what was taken adds to its bytes, and was not asked for yet.
    unpacked_bytes: usize,
    pub(super) assemblies: Assemblies,
    share: HeldShare,
    window_messages: u64,
    window_bytes: usize,
}

#[derive(Debug)]
struct Held {
    kind: u8,
    body: Box<[u8]>,
    plain_bytes: usize,
}

/// What a message is a piece of, or is itself.
#[derive(Debug, Clone, Copy)]
struct Measure {
    /// The type and the bytes of the whole, unpacked.
    kind: u8,
    bytes: usize,
    /// The message's own share of them.
    share: usize,
    /// What unpacking adds to the bytes of that share.
    added: usize,
}

impl Measure {
    fn of(kind: u8, body: &[u8], piece: Option<&Fragment<'_>>) -> Self {
        let Some(Fragment { whole, piece, .. }) = piece else {
            return Self { kind, bytes: body.len(), share: body.len(), added: 0 };
        };
        let share = u64::from(whole.plain()) * piece.len() as u64 / u64::from(whole.size.max(1));
        let share = (share as usize).max(piece.len());
        Self { kind: whole.kind, bytes: whole.plain() as usize, share, added: share - piece.len() }
    }
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
    pub(super) fn new(config: &TransportConfig) -> Self {
        Self {
            next_id: [0; StreamId::COUNT],
            unordered: Arrived::default(),
            held: BTreeMap::new(),
            held_bytes: 0,
            held_plain_bytes: 0,
            unpacked_bytes: 0,
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
        let piece = (kind == ControlType::Fragment as u8).then(|| Fragment::decode(body).ok()).flatten();
        if let Some(piece) = &piece {
            self.assemblies.touch(place, piece);
        }
        let next = self.next_id[place.stream.index()];
        let Some(ahead) = place.id.checked_sub(next) else { return Ok(()) };
        if kind == ControlType::Fragment as u8
            && !piece.as_ref().is_some_and(|piece| self.assemblies.takes(&piece.whole))
        {
            return Err(NotTaken::Broken);
        }
        let measure = Measure::of(kind, body, piece.as_ref());
        // What it waits with comes at once with it.
        let waits = place.stream.channel() == Channel::ReliableOrdered && ahead > 0;
        let bytes = measure.bytes + if waits { self.held_plain_bytes } else { 0 };
        if ahead >= self.window_messages || !receiver.has_room(measure.kind, bytes) {
            return Err(NotTaken::AheadOfWindow);
        }
        if !self.share.reserve(self.cost_of(place, ahead, body, piece.as_ref())) {
            return Err(NotTaken::AheadOfWindow);
        }
        let result = match place.stream.channel() {
            Channel::ReliableUnordered => self.accept_unordered(place, ahead, kind, body, receiver),
            _ if ahead == 0 => self.deliver(place, kind, body, receiver),
            _ => self.hold(place, kind, body, measure.share),
        };
        self.share.settle(self.cost());
        if result.is_ok() {
            self.unpacked_bytes += measure.added;
        }
        result
    }

    /// Bytes that unpacking adds to those of the messages that were taken since this was last asked.
    pub(super) fn take_unpacked_bytes(&mut self) -> usize {
        std::mem::take(&mut self.unpacked_bytes)
    }

    /// Bytes of memory that a message takes until it is delivered. What is delivered at once takes none, and may make
    /// room.
    fn cost_of(&self, place: MessageId, ahead: u64, body: &[u8], piece: Option<&Fragment<'_>>) -> usize {
        let ordered = place.stream.channel() != Channel::ReliableUnordered;
        if ordered && ahead > 0 {
            return body.len() + MESSAGE_OVERHEAD + if self.held.is_empty() { TREE_OVERHEAD } else { 0 };
        }
        let Some(piece) = piece else { return 0 };
        let prospect = self.assemblies.prospect(place, piece);
        if prospect.missing as usize > self.held.len() {
            return prospect.cost;
        }
        // The last piece of all, or the one that those behind it have waited for.
        let behind = 1..u64::from((piece.whole.pieces() - piece.index).min(prospect.missing + 1));
        let waiting = behind.map_while(|behind| {
            let held = self.held.get(&MessageId { id: place.id + behind, ..place });
            held.filter(|held| held.kind == ControlType::Fragment as u8)
        });
        if waiting.count() == prospect.missing as usize { 0 } else { prospect.cost }
    }

    /// Bytes of memory that all of it takes.
    fn cost(&self) -> usize {
        let tree = if self.held.is_empty() { 0 } else { TREE_OVERHEAD };
        self.held_bytes + self.held.len() * MESSAGE_OVERHEAD + tree + self.assemblies.cost()
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
            self.held_plain_bytes -= held.plain_bytes;
            self.hand_over(place, held.kind, &held.body, receiver)?;
            place.id += 1;
        }
        self.next_id[place.stream.index()] = place.id;
        Ok(())
    }

    fn hold(&mut self, place: MessageId, kind: u8, body: &[u8], plain_bytes: usize) -> Result<(), NotTaken> {
        if self.held.contains_key(&place) {
            return Ok(());
        }
        if self.held_bytes + body.len() > self.window_bytes {
            return Err(NotTaken::AheadOfWindow);
        }
        self.held_bytes += body.len();
        self.held_plain_bytes += plain_bytes;
        self.held.insert(place, Held { kind, body: body.into(), plain_bytes });
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
    use super::super::held::ASSEMBLY_OVERHEAD;
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
        let assembled = inbox.assemblies.cost();
        let most = ASSEMBLIES * (ASSEMBLY_OVERHEAD + config.message_bytes + 263 * MESSAGE_OVERHEAD);
        assert!(assembled <= most, "{assembled}");
        assert!(assembled > ASSEMBLIES * config.message_bytes, "it was tried: {assembled}");
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

    /// As [`Delivered`], for so many bytes in all, of which all that comes at once counts.
    struct Bounded(usize, Delivered);

    impl Receiver for Bounded {
        fn message(&mut self, kind: u8, body: &[u8]) {
            self.1.message(kind, body);
        }
        fn has_room(&self, _kind: u8, bytes: usize) -> bool {
            bytes <= self.0
        }
        fn acked(&mut self, _sequence: u64) {}
    }

    #[test]
    fn what_waits_behind_a_gap_counts_as_what_it_is_unpacked_to() {
        let packed = super::super::compress::compress(&[7; 100_000]).unwrap();
        let whole = Whole { kind: 0x30, size: packed.len() as u32, plain_size: Some(100_000) };
        let body = super::super::fragments::take_apart(whole, &packed).next().unwrap();
        let (mut inbox, mut receiver) =
            (Inbox::new(&TransportConfig::default()), Bounded(300_000, Delivered::default()));
        let mut taken = 0;
        for id in 1..10 {
            let place = place(Channel::ReliableOrdered, id);
            taken += usize::from(inbox.accept(place, FRAGMENT, &body, &mut receiver).is_ok());
        }
        assert_eq!((taken, inbox.take_unpacked_bytes()), (3, 3 * (100_000 - packed.len())));
        inbox.accept(place(Channel::ReliableOrdered, 0), 0x30, &[], &mut receiver).unwrap();
        assert_eq!(receiver.1.0.iter().map(Vec::len).sum::<usize>(), 300_000);
        assert_eq!((inbox.held_plain_bytes, inbox.held_bytes), (0, 0));
    }

    #[test]
    fn a_broken_fragment_is_one_whether_there_is_room_or_not() {
        let mut inbox = Inbox::new(&TransportConfig { message_bytes: 2_000, ..TransportConfig::default() });
        for body in [vec![], vec![0xff; 5], piece(2_001, 0)] {
            let place = place(Channel::ReliableOrdered, 3);
            let taken = inbox.accept(place, FRAGMENT, &body, &mut Bounded(0, Delivered::default()));
            assert_eq!(taken, Err(NotTaken::Broken), "{body:?}");
        }
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

    /// The body of a piece of a message of so many bytes.
    fn piece(size: u32, index: u32) -> Vec<u8> {
        let whole = Whole { kind: 0x40, size, plain_size: None };
        let length = (size as usize - index as usize * FRAGMENT_BYTES).min(FRAGMENT_BYTES);
        let mut buffer = [0; FRAGMENT_BYTES + Fragment::HEADER_BYTES_MAX];
        let mut writer = Writer::new(&mut buffer);
        Fragment { whole, index, piece: &[7; FRAGMENT_BYTES][..length] }.encode(&mut writer).unwrap();
        writer.written().to_vec()
    }

    const FRAGMENT: u8 = ControlType::Fragment as u8;

    /// Whatever is held, and however little of it are bytes of messages: memory is not more than what is counted.
    #[test]
    fn what_is_held_costs_no_more_than_is_counted() {
        let ordered = |stream: u8, id| MessageId {
            stream: StreamId::new(Channel::ReliableOrdered, stream).unwrap(),
            id,
        };
        let ahead: Vec<_> =
            (0..8).flat_map(|stream| (1..WINDOW).map(move |id| ordered(stream, id))).collect();
        let messages = |length: usize| ahead.iter().map(move |place| (*place, 0x40, vec![9; length]));
        let mixed = |length| {
            messages(length)
                .step_by(2)
                .chain(messages(length).skip(1).step_by(2).collect::<Vec<_>>().into_iter().rev())
        };
        let pieces = |of: u64| {
            (0..of).flat_map(|index| {
                (0..4).map(move |number| {
                    (
                        place(Channel::ReliableUnordered, 250 * number + index),
                        FRAGMENT,
                        piece(250_000, index as u32),
                    )
                })
            })
        };
        let cases: Vec<Vec<(MessageId, u8, Vec<u8>)>> = vec![
            messages(0).collect(),
            messages(0).rev().collect(),
            mixed(0).collect(),
            messages(1).collect(),
            mixed(10).collect(),
            messages(0).take(1).collect(),
            (0..8).map(|stream| (ordered(stream, 1), 0x40, vec![1; 25])).collect(),
            pieces(1).collect(),
            pieces(12).collect(),
            pieces(249).collect(),
            pieces(1).chain(messages(0)).collect(),
        ];
        for (number, case) in cases.into_iter().enumerate() {
            let (mut inbox, mut log) = (Inbox::new(&TransportConfig::default()), Delivered::default());
            let used = allocation_counter::measure(|| {
                for (place, kind, body) in &case {
                    inbox.accept(*place, *kind, body, &mut log).unwrap();
                }
            });
            // An allocator adds up to 16 bytes to each, in its own figures and by rounding up.
            let memory = used.bytes_current + 16 * used.count_current;
            assert!(log.0.is_empty() && memory > 0);
            assert!(memory <= inbox.cost() as i64, "case {number}: {memory}, of {} counted", inbox.cost());
        }
    }

    #[test]
    fn all_connections_together_hold_no_more_than_they_may() {
        let limit = Arc::new(HeldLimit::new(400_000, 20));
        let mut inboxes: Vec<_> = (0..20).map(|_| Inbox::new(&TransportConfig::default())).collect();
        let mut delivered = Delivered::default();
        let (body, fragment) = ([7; 900], piece(2_000, 0));
        inboxes.iter_mut().for_each(|inbox| inbox.count_in(Arc::clone(&limit)));
        // Nothing but names of messages, bodies behind gaps, and pieces of messages that never end.
        let mut taken = [0; 3];
        for id in 1..=1_000 {
            for inbox in &mut inboxes {
                let stream = |stream| StreamId::new(Channel::ReliableOrdered, stream).unwrap();
                let empty = inbox.accept(MessageId { stream: stream(1), id }, 0x20, &[], &mut delivered);
                let held = inbox.accept(MessageId { stream: stream(0), id }, 0x20, &body, &mut delivered);
                let piece = place(Channel::ReliableUnordered, 2 * id);
                let piece = match id {
                    1..=4 => inbox.accept(piece, FRAGMENT, &fragment, &mut delivered),
                    _ => Err(NotTaken::AheadOfWindow),
                };
                for (result, taken) in [empty, held, piece].into_iter().zip(&mut taken) {
                    assert!(matches!(result, Ok(()) | Err(NotTaken::AheadOfWindow)), "{result:?}");
                    *taken += usize::from(result.is_ok());
                }
            }
        }
        let cost: usize = inboxes.iter().map(Inbox::cost).sum();
        assert!((200_000..=400_000).contains(&cost), "{cost}");
        assert!(delivered.0.is_empty() && taken.iter().all(|taken| *taken > 20), "{taken:?}");
        // What needs no room is delivered all the same, and makes some.
        let first = place(Channel::ReliableOrdered, 0);
        assert_eq!(inboxes[0].accept(first, 0x20, &body, &mut delivered), Ok(()));
        assert!(delivered.0.len() > 1 && inboxes.iter().map(Inbox::cost).sum::<usize>() < cost - 900);
        drop(inboxes);
        assert_eq!(limit.taken(), 0);
    }

    /// Of `design/threats.md`: each is bounded, all are bounded together, and others still get what they send.
    #[test]
    fn a_thousand_hoarders_of_fragments_leave_others_room() {
        const MOST: usize = 64 << 20;
        let limit = Arc::new(HeldLimit::new(MOST, 10_000));
        let new = || {
            let mut inbox = Inbox::new(&TransportConfig::default());
            inbox.count_in(Arc::clone(&limit));
            inbox
        };
        let mut delivered = Delivered::default();
        let mut hoarders: Vec<_> = (0..1_000).map(|_| new()).collect();
        let pieces: Vec<_> = (0..249).map(|index| piece(250_000, index)).collect();
        let used = allocation_counter::measure(|| {
            // All but the last piece of four messages, in turns, as long as anything is taken.
            for (index, piece) in (0..).zip(&pieces) {
                for inbox in &mut hoarders {
                    for number in 0..4 {
                        let place = place(Channel::ReliableUnordered, 250 * number + index);
                        let _ = inbox.accept(place, FRAGMENT, piece, &mut delivered);
                    }
                }
            }
        });
        let each: Vec<_> = hoarders.iter().map(Inbox::cost).collect();
        let all: usize = each.iter().sum();
        assert!(delivered.0.is_empty() && each.iter().all(|bytes| *bytes < MOST / 2 / 9 + MOST / 2 / 10_000));
        assert!((MOST / 4..=MOST).contains(&all) && used.bytes_current <= MOST as i64, "{all}, {used:?}");

        // Ten players each send a large message, on an ordered stream with a piece that is late.
        for _ in 0..10 {
            let mut honest = new();
            let size = 16_000;
            for index in (0..16).filter(|index| *index != 3).chain([3]) {
                let place = place(Channel::ReliableOrdered, u64::from(index));
                assert_eq!(
                    honest.accept(place, FRAGMENT, &piece(size, index), &mut delivered),
                    Ok(()),
                    "{index}"
                );
            }
            assert_eq!(delivered.0.pop().map(|message| message.len()), Some(size as usize));
        }
        // One piece at a time always finds room: that of the share.
        let mut crowd: Vec<_> = (0..8_000).map(|_| new()).collect();
        for inbox in &mut crowd {
            let ahead = place(Channel::ReliableOrdered, 1);
            assert_eq!(inbox.accept(ahead, FRAGMENT, &piece(2_000, 1), &mut delivered), Ok(()));
        }
        for inbox in &mut crowd {
            let gap = place(Channel::ReliableOrdered, 0);
            assert_eq!(inbox.accept(gap, FRAGMENT, &piece(2_000, 0), &mut delivered), Ok(()));
            assert_eq!(delivered.0.pop().map(|message| message.len()), Some(2_000));
        }
    }

    /// What lacks only one piece takes it, though there is no room for a single one.
    #[test]
    fn the_piece_that_completes_a_message_needs_no_room() {
        for channel in [Channel::ReliableOrdered, Channel::ReliableUnordered] {
            let mut delivered = Delivered::default();
            let pieces: Vec<_> = (0..5).map(|index| piece(5_000, index)).collect();
            // Room for four pieces and their message, and not for one more.
            let limit = Arc::new(HeldLimit::new(2 * (4 * (1_010 + MESSAGE_OVERHEAD) + ASSEMBLY_OVERHEAD), 1));
            let mut inbox = Inbox::new(&TransportConfig::default());
            inbox.count_in(Arc::clone(&limit));
            for index in [0, 1, 3, 4] {
                let place = place(channel, index);
                assert_eq!(inbox.accept(place, FRAGMENT, &pieces[index as usize], &mut delivered), Ok(()));
            }
            let refused = inbox.accept(place(channel, 50), FRAGMENT, &piece(70_000, 50), &mut delivered);
            assert_eq!(refused, Err(NotTaken::AheadOfWindow));
            assert_eq!(inbox.accept(place(channel, 2), FRAGMENT, &pieces[2], &mut delivered), Ok(()));
            assert_eq!((delivered.0.len(), inbox.cost()), (1, 0));
        }
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
