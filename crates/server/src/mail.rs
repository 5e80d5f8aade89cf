//! Messages of the game's own, between its code and its players: chat, inventory, quests. Reliable, exactly once.
//!
//! ```text
//!  game ──▶ Mailbox::send ──▶ worker ──▶ Connection::send ──▶ player       full at 64 KiB a player that wait here
//!       ◀── try_next ◀─────── worker ◀── session::Inbound ◀── player       full at 4096 messages or 4 MiB of all
//! ```
//!
//! Nothing is lost on the way, and nothing grows: who sends to a player that reads too slowly is told
//! [`MailError::Full`]; while the game does not read, players' messages are not taken, so that sending says full at
//! them, and after a while nobody joins any more. Only what waited in a session for an earlier message comes all at once
//! then, and sessions bound that. Nobody fills more than an eighth of what others have left. A player whose messages are
//! not taken for 18 s is disconnected. What it says before it is in the world is taken when it is.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use shadowland_proto::{Connection, Path, Reliable, SendError, Slot, Stats};
use shadowland_wire::message::{GAME_TYPES_OF_SERVER, StreamId};
use shadowland_world::PlayerHandle;
use thiserror::Error;

/// Messages from players that wait for the game, and their bytes; more where single messages are very large.
const WAITING_MESSAGES: usize = 4_096;
const WAITING_BYTES: usize = 4 << 20;
/// Players who came or left, of whom the game has not heard, above which nobody is let into the world.
pub(crate) const WAITING_NEWS: usize = 16_384;
/// Bytes for a player that wait for room in its connection; one message is always taken.
const WAITING_BYTES_FOR_PLAYER: usize = 64 * 1024;
/// What a message that waits counts for, in bytes: one without a body takes memory, too.
fn cost(body: &[u8]) -> usize {
    body.len() + size_of::<ToPlayer>()
}

/// Messages that wait for a worker's next tick.
const WAITING_FOR_WORKER: usize = 4_096;

/// What happened to a player, and what it says. Workers tell it: that somebody joined a little after the world let it in
/// ([`Game::joined`](crate::game::Game::joined)), and that somebody left a little before the world lets it out.
#[derive(Debug, Clone)]
pub enum Mail {
    /// It is in the world from now on.
    Joined(Recipient),
    /// A message of the game's own, with its type (0x30 to 0x3f).
    Message {
        /// Who sent it.
        from: Recipient,
        /// Its type.
        kind: u8,
        /// The rest, as it was sent: it may be any bytes.
        body: Box<[u8]>,
    },
    /// Its session has ended.
    Left(Recipient),
}

/// Why a message is not taken for sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MailError {
    /// As much waits for this player, or for its worker, as may; try again in a later tick.
    #[error("as much waits for the player as may")]
    Full,
    /// The player has left.
    #[error("the player has left")]
    Gone,
    /// It is larger than `transport.message_bytes`.
    #[error("the message is larger than transport.message_bytes")]
    TooLarge,
    /// The type is not one of the game's own, 0x60 to 0x7f.
    #[error("the type is not one of the game's own, 0x60 to 0x7f")]
    BadType,
    /// There is no such stream: they are numbered 0 to 7.
    #[error("there is no such stream: they are numbered 0 to 7")]
    NoSuchStream,
}

/// A player to write to; cheap to clone.
#[derive(Clone)]
pub struct Recipient(Arc<Shared>);

struct Shared {
    session: Slot,
    player: PlayerHandle,
    /// For the player.
    waiting_bytes: AtomicUsize,
    /// From it, for the game.
    unread: Unread,
    gone: AtomicBool,
    connection: Mutex<(Stats, Path)>,
}

impl Recipient {
    pub(crate) fn new(session: Slot, player: PlayerHandle) -> Self {
        Self(Arc::new(Shared {
            session,
            player,
            waiting_bytes: AtomicUsize::new(0),
            unread: Unread::default(),
            gone: AtomicBool::new(false),
            connection: Mutex::default(),
        }))
    }

    /// The session's number in log lines and on the wire.
    #[must_use]
    pub fn connection_id(&self) -> u32 {
        self.0.session.connection_id()
    }

    /// The player in the world.
    #[must_use]
    pub fn player(&self) -> PlayerHandle {
        self.0.player
    }

    /// Whether its session has ended.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.0.gone.load(Ordering::Relaxed)
    }

    /// What its connection has counted, and what is known of its path; at most a second old.
    #[must_use]
    pub fn connection(&self) -> (Stats, Path) {
        *self.0.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, connection: &Connection) {
        *self.0.connection.lock().unwrap_or_else(PoisonError::into_inner) =
            (*connection.stats(), connection.path());
    }
}

impl PartialEq for Recipient {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Recipient {}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient({:#010x})", self.connection_id())
    }
}

/// The game's end. Dropped, players' messages of the game's own are refused as unknown.
#[derive(Debug)]
pub struct Mailbox {
    from_players: Receiver<Mail>,
    waiting: Arc<Waiting>,
    workers: Vec<SyncSender<ToPlayer>>,
    message_bytes: usize,
}

/// Messages that the game has not read.
#[derive(Debug, Default)]
struct Unread {
    messages: AtomicUsize,
    bytes: AtomicUsize,
}

impl Unread {
    fn add(&self, body: &[u8]) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(body.len(), Ordering::Relaxed);
    }

    fn remove(&self, body: &[u8]) {
        self.messages.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(body.len(), Ordering::Relaxed);
    }
}

/// What waits for the game.
#[derive(Debug)]
struct Waiting {
    unread: Unread,
    most_bytes: usize,
    /// Players who have joined or left.
    news: AtomicUsize,
}

impl Waiting {
    /// Whether one more message fits of somebody of whom `own` waits: nobody may have more than an eighth of what the
    /// others leave, so that however many fill it there is room for who has nothing in it.
    fn has_room(&self, own: &Unread, bytes: usize) -> bool {
        let fits = |all: &AtomicUsize, own: &AtomicUsize, more: usize, most: usize| {
            let left = most.saturating_sub(all.load(Ordering::Relaxed));
            8 * (own.load(Ordering::Relaxed) + more) <= left
        };
        fits(&self.unread.messages, &own.messages, 1, WAITING_MESSAGES)
            && fits(&self.unread.bytes, &own.bytes, bytes, self.most_bytes)
    }
}

impl Mailbox {
    /// The next thing that happened, if there is one.
    pub fn try_next(&self) -> Option<Mail> {
        let mail = self.from_players.try_recv().ok()?;
        match &mail {
            Mail::Message { from, body, .. } => {
                self.waiting.unread.remove(body);
                from.0.unread.remove(body);
            }
            Mail::Joined(_) | Mail::Left(_) => {
                self.waiting.news.fetch_sub(1, Ordering::Relaxed);
            }
        }
        Some(mail)
    }

    /// Sends a message to a player: it arrives exactly once, on an ordered stream in the order of sending, unless the
    /// session ends before. It leaves with the next tick.
    ///
    /// # Errors
    /// Why it was not taken; nothing has been sent then.
    pub fn send(&self, to: &Recipient, way: Reliable, kind: u8, body: &[u8]) -> Result<(), MailError> {
        let shared = &to.0;
        if !GAME_TYPES_OF_SERVER.contains(&kind) {
            return Err(MailError::BadType);
        }
        if StreamId::new(way.channel(), way.stream()).is_none() {
            return Err(MailError::NoSuchStream);
        }
        if body.len() > self.message_bytes {
            return Err(MailError::TooLarge);
        }
        if to.is_gone() {
            return Err(MailError::Gone);
        }
        let (waits, bytes) = (shared.waiting_bytes.load(Ordering::Relaxed), cost(body));
        if waits > 0 && waits + bytes > WAITING_BYTES_FOR_PLAYER {
            return Err(MailError::Full);
        }
        let worker = usize::from(shared.session.worker());
        let mail = ToPlayer { to: to.clone(), way, kind, body: body.into() };
        shared.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.workers[worker].try_send(mail).map_err(|_full| {
            shared.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            MailError::Full
        })
    }
}

/// A message on its way to a player.
#[derive(Debug)]
pub(crate) struct ToPlayer {
    pub(crate) to: Recipient,
    way: Reliable,
    kind: u8,
    body: Box<[u8]>,
}

impl ToPlayer {
    pub(crate) fn session(&self) -> Slot {
        self.to.0.session
    }
}

/// A worker's end.
#[derive(Debug)]
pub(crate) struct Post {
    to_game: Sender<Mail>,
    waiting: Weak<Waiting>,
    from_game: Receiver<ToPlayer>,
}

/// The ends of a mailbox, one for each worker.
pub(crate) fn mailbox(workers: usize, message_bytes: usize) -> (Mailbox, Vec<Post>) {
    let (to_game, from_players) = channel();
    // The largest one needs an eighth of what is left.
    let most_bytes = WAITING_BYTES.max(16 * message_bytes);
    let waiting = Arc::new(Waiting { unread: Unread::default(), most_bytes, news: AtomicUsize::new(0) });
    let mut senders = Vec::new();
    let posts = (0..workers).map(|_| {
        let (sender, from_game) = sync_channel(WAITING_FOR_WORKER);
        senders.push(sender);
        Post { to_game: to_game.clone(), waiting: Arc::downgrade(&waiting), from_game }
    });
    let posts = posts.collect();
    (Mailbox { from_players, waiting, workers: senders, message_bytes }, posts)
}

impl Post {
    /// Whether a message from a player would be taken, or refused for good.
    pub(crate) fn has_room(&self, from: &Recipient, bytes: usize) -> bool {
        self.waiting.upgrade().is_none_or(|waiting| waiting.has_room(&from.0.unread, bytes))
    }

    /// Whether players may join: not while a game that reads nothing has not heard of those who came and went before.
    pub(crate) fn has_room_for_players(&self) -> bool {
        self.waiting.upgrade().is_none_or(|waiting| waiting.news.load(Ordering::Relaxed) < WAITING_NEWS)
    }

    /// Whether somebody reads.
    pub(crate) fn is_read(&self) -> bool {
        self.waiting.strong_count() > 0
    }

    /// Tells the game; `false` when nobody reads.
    pub(crate) fn tell(&self, mail: Mail) -> bool {
        let Some(waiting) = self.waiting.upgrade() else { return false };
        match &mail {
            Mail::Message { from, body, .. } => {
                waiting.unread.add(body);
                from.0.unread.add(body);
            }
            Mail::Joined(_) | Mail::Left(_) => {
                waiting.news.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.to_game.send(mail).is_ok()
    }

    /// The next message for a player of this worker.
    pub(crate) fn next(&self) -> Option<ToPlayer> {
        self.from_game.try_recv().ok()
    }
}

/// A player's mail at its worker. Dropped, the recipient is gone.
#[derive(Debug)]
pub(crate) struct Letterbox {
    pub(crate) recipient: Recipient,
    waiting: VecDeque<ToPlayer>,
    /// The second in which the game was told of the connection.
    reported_in: u32,
}

impl Letterbox {
    pub(crate) fn new(recipient: Recipient) -> Self {
        Self { recipient, waiting: VecDeque::new(), reported_in: u32::MAX }
    }

    /// Tells the game what the connection has counted, if that was not done in this second.
    pub(crate) fn report(&mut self, connection: &Connection, second: u32) {
        if self.reported_in != second {
            self.reported_in = second;
            self.recipient.publish(connection);
        }
    }

    pub(crate) fn put(&mut self, mail: ToPlayer) {
        self.waiting.push_back(mail);
    }

    /// Gives the connection what it takes. What it can never take is lost: returns how many messages.
    pub(crate) fn empty_into(&mut self, connection: &mut Connection) -> u64 {
        let mut lost = 0;
        while let Some(ToPlayer { way, kind, body, .. }) = self.waiting.front() {
            match connection.send(way.channel(), way.stream(), *kind, body) {
                Err(SendError::Full) => break,
                Ok(()) => {}
                // Such as one that is larger than this client takes.
                Err(_) => lost += 1,
            }
            self.recipient.0.waiting_bytes.fetch_sub(cost(body), Ordering::Relaxed);
            self.waiting.pop_front();
        }
        lost
    }
}

impl Drop for Letterbox {
    fn drop(&mut self) {
        self.recipient.0.gone.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shadowland_wire::entity::EntityId;

    fn recipient() -> Recipient {
        Recipient::new(Slot::default(), PlayerHandle { slot: 0, entity: EntityId::from_bits(7) })
    }

    #[test]
    fn who_does_not_read_is_told_no_more_and_who_is_not_read_waits() {
        let (mailbox, posts) = mailbox(1, 1_000);
        let player = recipient();
        let say = |post: &Post| {
            post.tell(Mail::Message { from: player.clone(), kind: 0x30, body: [1; 100].into() })
        };
        while posts[0].has_room(&player, 100) {
            assert!(say(&posts[0]));
        }
        assert!(matches!(mailbox.try_next(), Some(Mail::Message { kind: 0x30, .. })));
        assert!(posts[0].has_room(&player, 100));

        let mut sent = 0;
        let full = loop {
            match mailbox.send(&player, Reliable::Ordered(1), 0x60, &[0; 1_000]) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert_eq!((full, sent), (MailError::Full, WAITING_BYTES_FOR_PLAYER / cost(&[0; 1_000])));
        let send = |kind, bytes| mailbox.send(&player, Reliable::Unordered, kind, &vec![0; bytes]);
        assert_eq!(send(0x60, 1_001), Err(MailError::TooLarge));
        assert_eq!(send(0x5f, 1), Err(MailError::BadType));
        let nowhere = mailbox.send(&player, Reliable::Ordered(8), 0x60, &[]);
        assert_eq!(nowhere, Err(MailError::NoSuchStream));
        drop(Letterbox::new(player.clone()));
        assert_eq!(send(0x60, 1), Err(MailError::Gone));

        drop(mailbox);
        assert!(!posts[0].is_read() && posts[0].has_room(&player, 100) && !say(&posts[0]));
    }

    #[test]
    fn however_many_fill_the_mailbox_others_have_room_in_it() {
        let (mailbox, posts) = mailbox(1, 1_000);
        let say = |player: &Recipient, bytes: usize| {
            let body = vec![1; bytes].into();
            let mail = Mail::Message { from: player.clone(), kind: 0x30, body };
            posts[0].has_room(player, bytes) && posts[0].tell(mail)
        };
        for bytes in [0, 100_000] {
            let crowd: Vec<Recipient> = (0..300).map(|_| recipient()).collect();
            while crowd.iter().filter(|player| say(player, bytes)).count() > 0 {}
            assert!(say(&recipient(), bytes.min(1_000)), "{bytes} bytes each");
            let unread = std::iter::from_fn(|| mailbox.try_next()).count();
            assert!((10..=WAITING_MESSAGES).contains(&unread), "{unread} of {bytes} bytes");
        }
        let Unread { messages, bytes } = &mailbox.waiting.unread;
        assert_eq!((messages.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn while_the_game_reads_nothing_nobody_joins_for_ever() {
        let (mailbox, posts) = mailbox(1, 1_000);
        let mut told = 0;
        while posts[0].has_room_for_players() {
            let player = recipient();
            assert!(posts[0].tell(Mail::Joined(player.clone())) && posts[0].tell(Mail::Left(player)));
            told += 2;
        }
        assert_eq!(told, WAITING_NEWS);
        assert!(matches!(mailbox.try_next(), Some(Mail::Joined(_))));
        assert!(posts[0].has_room_for_players());
    }
}
