//! What a worker hangs on a session: how far its player is on the way into the world, and what comes in from it.

use std::mem::offset_of;
use std::net::SocketAddr;
use std::time::Duration;

use shadowland_proto::{IntegrityFailure, Receiver, Slot, Time};
use shadowland_wire::message::client::{ReceivedInputs, ResetPage};
use shadowland_wire::message::{ClientType, GAME_TYPES_OF_CLIENT};
use shadowland_world::{PlayerHandle, Tick, Viewer};

use crate::mail::{Letterbox, Mail};
use crate::queue::{ToWorld, WorkerQueues};
use crate::stats::WorkerStats;

/// Inputs that a session hands to the world in one tick at most: as many as the world keeps of a player.
/// A client that sends more only wastes its own.
const INPUTS_PER_TICK: u8 = 16;

/// Pages that a session may ask for again in one tick: each is looked up among all of its pages.
const RESETS_PER_TICK: u8 = 8;

/// How long a player asks for a place that an older session of its account is about to leave.
const PLACE_PATIENCE: Duration = Duration::from_secs(1);

/// Messages of the game's own that a session hands over in one tick; further ones are not taken, and come again.
const MAILS_PER_TICK: u8 = 64;

/// A session's way into the world. What an input needs comes first, in one line of the cache with the beginning of the
/// stage, and then what a snapshot does.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Player {
    /// Whether the worker has it on its list: the client has confirmed the keys.
    pub(crate) listed: bool,
    /// Whether it was logged that the client has failed an integrity challenge.
    pub(crate) integrity_told: bool,
    /// Inputs handed over since `counted_at`.
    inputs: u8,
    /// Pages asked for again since `counted_at`.
    resets: u8,
    /// Messages of the game's own handed over since `counted_at`.
    mails: u8,
    counted_at: Tick,
    /// When the world was first asked for a place.
    asked_at: Option<Time>,
    /// From this tick on the player is due for the next snapshot.
    pub(crate) next_turn: Tick,
    /// Number of the newest input that was handed to the world.
    newest_input: u32,
    /// Of a player in the world, if the game has a mailbox.
    pub(crate) letterbox: Option<Box<Letterbox>>,
    pub(crate) stage: Stage,
}

/// How far a player is. The viewer stands last, so that nothing is far from the beginning but what is far in it.
#[derive(Debug, Default)]
#[repr(u8)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are playing, and one place is found sooner than two"
)]
pub(crate) enum Stage {
    /// The keys are not confirmed, or the queue to the world was full: asks when it can.
    #[default]
    Outside,
    /// The world was asked.
    Asked,
    /// In every frame from tick `from` on.
    Playing { from: Tick, viewer: Viewer },
}

/// Bytes of a stage before its viewer.
const BEFORE_VIEWER: usize = 16;
const _: () = {
    assert!(offset_of!(Player, stage) + BEFORE_VIEWER == 64, "the viewer begins with a line of its own");
    assert!(size_of::<Stage>() == BEFORE_VIEWER + size_of::<Viewer>());
};

impl Player {
    /// What is looked at of a player when its datagram comes, and when it is served, from the beginning on.
    pub(crate) const RECEIVE_BYTES: usize = offset_of!(Self, stage) + BEFORE_VIEWER + Viewer::ACKED_BYTES;
    pub(crate) const SERVE_BYTES: usize = offset_of!(Self, stage) + BEFORE_VIEWER + Viewer::HEAD_BYTES;

    #[inline]
    pub(crate) fn handle(&self) -> Option<PlayerHandle> {
        match &self.stage {
            Stage::Playing { viewer, .. } => Some(viewer.player()),
            _ => None,
        }
    }

    /// Logs that the client has failed an integrity challenge, once in a session.
    pub(crate) fn tell_integrity(
        &mut self,
        session: Slot,
        address: SocketAddr,
        account: Option<u64>,
        failure: IntegrityFailure,
    ) {
        if !std::mem::replace(&mut self.integrity_told, true) {
            tracing::warn!(id = session.connection_id(), %address, account, %failure, "a client has failed an \
                 integrity challenge; further ones of its session are only counted");
        }
    }

    /// Fetches into the cache what the player's next snapshot needs.
    #[inline]
    pub(crate) fn prefetch(&self) {
        if let Stage::Playing { viewer, .. } = &self.stage {
            viewer.prefetch();
        }
    }

    /// Asks the world for a place, if that was not done yet.
    #[inline]
    pub(crate) fn ask(&mut self, now: Time, session: Slot, queues: &mut WorkerQueues) {
        let may_join = matches!(self.stage, Stage::Outside) && queues.mail.has_room_for_players();
        if may_join && queues.push_control(ToWorld::Join { session }) {
            self.asked_at.get_or_insert(now);
            self.stage = Stage::Asked;
        }
    }

    /// The world had no place; whether it is to be asked once more.
    pub(crate) fn asks_again(&mut self, now: Time) -> bool {
        let again = self.asked_at.is_some_and(|at| now - at < PLACE_PATIENCE);
        if again {
            self.stage = Stage::Outside;
        }
        again
    }

    /// Gives up the player's place in the world, if it has one.
    pub(crate) fn leave(&mut self) -> Option<PlayerHandle> {
        let handle = self.handle()?;
        self.stage = Stage::Outside;
        Some(handle)
    }
}

/// Takes a session's packet apart while the connection opens it.
pub(crate) struct Inbound<'a> {
    pub(crate) player: &'a mut Player,
    pub(crate) queues: &'a mut WorkerQueues,
    pub(crate) stats: &'a mut WorkerStats,
    /// The worker's latest tick, by which inputs are bounded.
    pub(crate) tick: Tick,
}

impl Receiver for Inbound<'_> {
    fn message(&mut self, kind: u8, body: &[u8]) {
        let read = match ClientType::from_byte(kind) {
            Some(ClientType::Input) => ReceivedInputs::decode(body).map(|inputs| self.inputs(inputs)).is_ok(),
            Some(ClientType::ResetPage) => {
                ResetPage::decode(body).map(|reset| self.reset_page(reset)).is_ok()
            }
            None => self.mail(kind, body),
        };
        if !read {
            self.stats.bad_messages += 1;
        }
    }

    fn has_room(&self, kind: u8, bytes: usize) -> bool {
        // What is none of the game's has a bound of its own.
        if ClientType::from_byte(kind).is_some() {
            return true;
        }
        match &self.player.letterbox {
            Some(letterbox) => {
                let has_share = self.player.mails < MAILS_PER_TICK || self.player.counted_at != self.tick;
                has_share && self.queues.mail.has_room(&letterbox.recipient, bytes)
            }
            // A player who is not in the world yet is nobody that the game knows.
            None => !self.queues.mail.is_read(),
        }
    }

    #[inline]
    fn acked(&mut self, sequence: u64) {
        if let Stage::Playing { viewer, .. } = &mut self.player.stage {
            viewer.acked(sequence);
        }
    }
}

impl Inbound<'_> {
    fn inputs(&mut self, inputs: ReceivedInputs<'_>) {
        let Some(handle) = self.player.handle() else { return };
        self.count_anew();
        for (number, input) in inputs.after(self.player.newest_input) {
            // What is not taken now comes again with the next message.
            if self.player.inputs == INPUTS_PER_TICK || !self.queues.push_input(handle, number, input) {
                self.stats.inputs_dropped += 1;
                return;
            }
            self.player.inputs += 1;
            self.player.newest_input = number;
        }
    }

    /// In each tick a session has its share again.
    fn count_anew(&mut self) {
        if self.player.counted_at != self.tick {
            (self.player.counted_at, self.player.inputs, self.player.resets) = (self.tick, 0, 0);
            self.player.mails = 0;
        }
    }

    /// Hands a message of the game's own over; `false` when it is none, or nobody reads.
    fn mail(&mut self, kind: u8, body: &[u8]) -> bool {
        self.count_anew();
        let Some(letterbox) = &self.player.letterbox else { return false };
        let from = letterbox.recipient.clone();
        let taken = GAME_TYPES_OF_CLIENT.contains(&kind)
            && self.queues.mail.tell(Mail::Message { from, kind, body: body.into() });
        // What waited for an earlier message comes with it, far beyond a tick's share if need be.
        self.player.mails = self.player.mails.saturating_add(u8::from(taken));
        self.stats.mail_in += u64::from(taken);
        taken
    }

    fn reset_page(&mut self, reset: ResetPage) {
        self.count_anew();
        // What is not taken now is asked for again a second later.
        if self.player.resets == RESETS_PER_TICK {
            self.stats.inputs_dropped += 1;
            return;
        }
        self.player.resets += 1;
        if let Stage::Playing { viewer, .. } = &mut self.player.stage {
            viewer.reset_page(reset.page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::{Recipient, mailbox};
    use crate::queue::{WorldQueues, queues};
    use shadowland_wire::block::PageId;
    use shadowland_wire::codec::Writer;
    use shadowland_wire::entity::EntityId;
    use shadowland_wire::message::client::{Input, InputMessage};

    fn handle() -> PlayerHandle {
        PlayerHandle { slot: 3, entity: EntityId::from_bits(1) }
    }

    fn playing() -> Player {
        let stage = Stage::Playing { viewer: Viewer::new(handle()), from: 1 };
        Player { stage, ..Player::default() }
    }

    fn send(
        player: &mut Player,
        queues: &mut WorkerQueues,
        stats: &mut WorkerStats,
        tick: Tick,
        newest: u32,
    ) {
        let mut body = [0; 64];
        let mut writer = Writer::new(&mut body);
        let count = newest.min(8) as usize;
        InputMessage::new(newest, &[Input::default(); 8][..count]).encode(&mut writer).unwrap();
        let len = writer.written().len();
        Inbound { player, queues, stats, tick }.message(ClientType::Input as u8, &body[..len]);
    }

    fn numbers(world: &mut WorldQueues) -> Vec<u32> {
        std::iter::from_fn(|| world.from_worker.pop().ok())
            .map(|message| match message {
                ToWorld::Input { number, .. } => number,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn each_input_goes_to_the_world_once_and_in_order() {
        let (mut worker, mut world) = queues(10, mailbox(1, 1_000).1.remove(0));
        let (mut player, mut stats) = (playing(), WorkerStats::default());
        for (tick, newest) in [(1, 1), (1, 1), (2, 3), (2, 2), (3, 5)] {
            send(&mut player, &mut worker, &mut stats, tick, newest);
        }
        assert_eq!(numbers(&mut world), [1, 2, 3, 4, 5]);
        assert_eq!((stats.inputs_dropped, stats.bad_messages), (0, 0));
    }

    #[test]
    fn a_flood_of_inputs_is_bounded_per_tick() {
        let (mut worker, mut world) = queues(10, mailbox(1, 1_000).1.remove(0));
        let (mut player, mut stats) = (playing(), WorkerStats::default());
        for newest in 1..=1000 {
            send(&mut player, &mut worker, &mut stats, 7, newest);
        }
        assert_eq!(numbers(&mut world), (1..=INPUTS_PER_TICK.into()).collect::<Vec<_>>());
        // In the next tick it goes on with what comes then.
        send(&mut player, &mut worker, &mut stats, 8, 1000);
        assert_eq!(numbers(&mut world), (993..=1000).collect::<Vec<_>>());
    }

    #[test]
    fn pages_asked_for_again_are_bounded_per_tick() {
        let (mut worker, _world) = queues(10, mailbox(1, 1_000).1.remove(0));
        let (mut player, mut stats) = (playing(), WorkerStats::default());
        let mut ask = |tick, stats: &mut WorkerStats| {
            let mut inbound = Inbound { player: &mut player, queues: &mut worker, stats, tick };
            for _ in 0..100 {
                inbound.reset_page(ResetPage { page: PageId::default() });
            }
        };
        ask(1, &mut stats);
        assert_eq!(stats.inputs_dropped, 92);
        ask(2, &mut stats);
        assert_eq!(stats.inputs_dropped, 184);
    }

    #[test]
    fn however_many_messages_come_at_once_the_share_of_a_tick_stays_used_up() {
        let (mailbox, mut posts) = mailbox(1, 1_000);
        let (mut worker, _world) = queues(10, posts.remove(0));
        let (mut player, mut stats) = (playing(), WorkerStats::default());
        let recipient = Recipient::new(Slot::claimed_by(&[0x80; 16]).unwrap(), handle());
        player.letterbox = Some(Box::new(Letterbox::new(recipient)));
        let mut inbound = Inbound { player: &mut player, queues: &mut worker, stats: &mut stats, tick: 7 };
        assert!(inbound.has_room(0x30, 0));
        // As many as can wait in a session for an earlier one.
        (0..1_023).for_each(|_| inbound.message(0x30, &[]));
        assert!(!inbound.has_room(0x30, 0));
        inbound.tick = 8;
        assert!(!inbound.has_room(0x30, 0), "the game has not read them");
        assert_eq!(std::iter::from_fn(|| mailbox.try_next()).count(), 1_023);
        assert!(inbound.has_room(0x30, 0));
        assert_eq!((stats.mail_in, stats.bad_messages), (1_023, 0));
    }

    #[test]
    fn what_somebody_says_before_it_is_in_the_world_waits_until_then() {
        let (mailbox, mut posts) = mailbox(1, 1_000);
        let (mut worker, _world) = queues(10, posts.remove(0));
        let (mut player, mut stats) = (Player::default(), WorkerStats::default());
        let inbound = Inbound { player: &mut player, queues: &mut worker, stats: &mut stats, tick: 7 };
        assert!(!inbound.has_room(0x30, 0));
        assert!(inbound.has_room(ClientType::ResetPage as u8, 0), "the game has nothing to do with it");
        drop(mailbox);
        assert!(inbound.has_room(0x30, 0), "nobody reads");
    }

    #[test]
    fn nobody_asks_for_a_place_while_the_game_does_not_hear_of_players() {
        let (mailbox, mut posts) = mailbox(1, 1_000);
        let (mut worker, mut world) = queues(10, posts.remove(0));
        let session = Slot::claimed_by(&[0x80; 16]).unwrap();
        while worker.mail.has_room_for_players() {
            worker.mail.tell(Mail::Joined(Recipient::new(session, handle())));
        }
        let mut player = Player::default();
        player.ask(Time::default(), session, &mut worker);
        assert!(matches!(player.stage, Stage::Outside) && world.from_worker.pop().is_err());
        assert!(mailbox.try_next().is_some());
        player.ask(Time::default(), session, &mut worker);
        assert!(matches!(player.stage, Stage::Asked));
    }

    #[test]
    fn who_is_not_in_the_world_moves_nothing_and_junk_is_counted() {
        let (mut worker, mut world) = queues(10, mailbox(1, 1_000).1.remove(0));
        let (mut player, mut stats) = (Player::default(), WorkerStats::default());
        send(&mut player, &mut worker, &mut stats, 1, 1);
        assert_eq!(numbers(&mut world), [0; 0]);
        let mut inbound = Inbound { player: &mut player, queues: &mut worker, stats: &mut stats, tick: 1 };
        inbound.message(ClientType::Input as u8, &[1, 2, 3]);
        inbound.message(ClientType::ResetPage as u8, &[]);
        inbound.message(0x7f, &[]);
        inbound.acked(5);
        assert_eq!(stats.bad_messages, 3);
    }
}
