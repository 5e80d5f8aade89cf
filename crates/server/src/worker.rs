//! An I/O worker: the thread around a hub, with a socket of its own.
//!
//! Its loop takes turns, so that nothing waits for long: some batches of datagrams in, then some sessions of the
//! current round out. A round has a deadline, a share of the tick after the start of its own. Who is left then has the
//! first turns of the next round, with its newer frame: a worker that cannot keep up sends everybody what is fresh, less
//! often, and not what is stale. The rest of the tick belongs to what arrives.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mio::event::Event;
use mio::{Events, Interest, Poll, Token};
use shadowland_proto::{Time, TokenVerifier};
use shadowland_udp::{DATAGRAM, RecvBatch, RecvStats, SendBatch, SendStats, UdpSocket};
use shadowland_world::Frame;

use crate::config::TICK_HZ;
use crate::control::Control;
use crate::handover::{Handover, HandoverStats};
use crate::hub::{Hub, Inbox, Outbox};
use crate::queue::{FrameSlot, Fresh};
use crate::schedule::Clock;
use crate::stats::{Latencies, Shared, WorkerStats, record, record_many, thread_cpu};

/// Token of the socket in the worker's poll.
pub(crate) const SOCKET: Token = Token(0);
/// Token of the waker in the worker's poll.
pub(crate) const WAKER: Token = Token(1);

/// Datagrams per system call: 256 were measured to be no cheaper each than 64.
const BATCH: usize = 64;
/// Batches that are received before the loop looks at everything else again.
const BATCHES_PER_TURN: usize = 8;
/// The same while sessions wait to be served: two datagrams for each session of a turn, more than players send.
const BATCHES_PER_TURN_OF_ROUND: usize = 2;
/// Handshakes after which sessions are served, even if there is more to receive: they are what costs most.
const HANDSHAKES_PER_TURN: u64 = 8;
/// Sessions that are served before datagrams are received again: half a millisecond, for which a datagram waits.
const SESSIONS_PER_TURN: usize = 64;
/// The same for a while after so many handshakes in one turn: they must not come between the sessions of a round again.
const SESSIONS_PER_TURN_OF_FLOOD: usize = 256;
/// That while.
pub(crate) const FLOOD: Duration = Duration::from_millis(100);
/// The share of a round that serves some sessions however late it is: everybody is served within so many rounds.
const LATE_ROUNDS: usize = 16;
/// Longest sleep: the world wakes its workers far more often.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);
/// How often, and at what distance, departing players are told goodbye: a Disconnect is never answered.
const GOODBYES: usize = 3;
const GOODBYE_PAUSE: Duration = Duration::from_millis(20);

/// How often it is said at most that the kernel drops datagrams.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// What a worker is made of.
pub(crate) struct Parts {
    pub(crate) poll: Poll,
    pub(crate) socket: UdpSocket,
    pub(crate) hub: Hub,
    /// The ways to the other workers, where the kernel does not steer.
    pub(crate) handover: Option<Handover>,
    pub(crate) frames: Arc<FrameSlot<Frame>>,
    pub(crate) round_time: RoundTime,
    pub(crate) clock: Clock,
    /// Who checks login tokens has to know the time of day.
    pub(crate) tokens: Option<Arc<TokenVerifier>>,
    pub(crate) control: Arc<Control>,
    pub(crate) stats: Arc<Shared<WorkerStats>>,
    pub(crate) latencies: Arc<Shared<Latencies>>,
}

/// A worker's state.
pub(crate) struct Worker {
    parts: Parts,
    events: Events,
    inbox: RecvBatch,
    /// There may be datagrams that were not received.
    readable: bool,
    outbox: SendBatch,
    received: RecvStats,
    /// The socket buffer was full: `poll` says when it is worth trying again.
    blocked: bool,
    /// What can be received now could not be before this time.
    empty_at: Time,
    /// Until then sessions are served in longer turns.
    flooded_until: Time,
    /// When the frame of the round was published.
    published_at: Time,
    allowance: Allowance,
    complaint: Complaint,
    errors: Throttle,
}

/// When rounds end, whoever is left.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RoundTime {
    /// From the start of the tick.
    pub(crate) of_tick: Duration,
    /// From when the frame was published, if that is later: a world that takes long does not leave its workers idle.
    pub(crate) of_frame: Duration,
}

impl RoundTime {
    /// Five sixths of a tick, 13.9 ms: what a batch takes, and to lose the processor for a moment, has room behind it. It
    /// was measured against 4/5 and 7/8: the longer one, the more is sent.
    pub(crate) const SERVER: Self = Self { of_tick: share_of_tick(5, 6), of_frame: share_of_tick(1, 2) };
}

const fn share_of_tick(part: u64, of: u64) -> Duration {
    Duration::from_micros(1_000_000 * part / (of * TICK_HZ as u64))
}

/// What a round may take.
#[derive(Debug, Default)]
struct Allowance {
    until: Time,
    /// Sessions that are still to be served, whatever the time.
    sure: usize,
}

impl Allowance {
    fn new(time: RoundTime, started_at: Time, published_at: Time, sessions: usize) -> Self {
        Self {
            until: (started_at + time.of_tick).max(published_at + time.of_frame),
            sure: SESSIONS_PER_TURN.max(sessions.div_ceil(LATE_ROUNDS)),
        }
    }

    /// A newer frame waits: there is no time left.
    fn hurry(&mut self) {
        self.until = Time::default();
    }

    fn served_one(&mut self) {
        self.sure = self.sure.saturating_sub(1);
    }

    fn is_spent(&self, now: Time) -> bool {
        self.sure == 0 && now >= self.until
    }
}

/// Errors since the last line about one, and when the next line may be.
#[derive(Debug, Default)]
struct Throttle {
    errors: u64,
    next: Time,
}

impl Throttle {
    /// Counts one more; returns how many there were when it is time for a line about them.
    fn count(&mut self, now: Time) -> Option<u64> {
        self.errors += 1;
        (now >= self.next).then(|| {
            self.next = now + COMPLAIN_EVERY;
            std::mem::take(&mut self.errors)
        })
    }
}

/// What was last said about datagrams that the kernel drops.
#[derive(Debug, Default)]
struct Complaint {
    drops: u64,
    next: Time,
}

impl Inbox for RecvBatch {
    fn slots(&self) -> usize {
        self.filled()
    }

    fn datagram(&mut self, index: usize) -> Option<(SocketAddr, &mut [u8])> {
        self.datagram(index)
    }
}

impl Outbox for SendBatch {
    fn slot(&mut self) -> Option<&mut [u8; DATAGRAM]> {
        self.slot()
    }

    fn commit(&mut self, len: usize, to: SocketAddr) {
        self.commit(len, to);
    }
}

impl Worker {
    pub(crate) fn new(parts: Parts) -> Self {
        if let Some(tokens) = &parts.tokens {
            set_clock(tokens, parts.clock);
        }
        Self {
            empty_at: parts.clock.now(),
            parts,
            events: Events::with_capacity(8),
            inbox: RecvBatch::new(BATCH),
            readable: true,
            outbox: SendBatch::new(BATCH),
            received: RecvStats::default(),
            blocked: false,
            flooded_until: Time::default(),
            published_at: Time::default(),
            allowance: Allowance::default(),
            complaint: Complaint::default(),
            errors: Throttle::default(),
        }
    }

    /// Receives and sends until told to stop.
    pub(crate) fn run(mut self) {
        while !self.parts.control.stops() {
            self.turn(LONGEST_SLEEP);
        }
        self.say_goodbye();
    }

    /// Does a part of what there is to do; where there is nothing, it waits for as long as it may.
    pub(crate) fn turn(&mut self, longest_sleep: Duration) {
        let busy = self.is_busy();
        let sleep = if busy { Duration::ZERO } else { longest_sleep };
        if let Err(error) = self.parts.poll.poll(&mut self.events, Some(sleep))
            && error.kind() != io::ErrorKind::Interrupted
        {
            self.report("cannot wait for datagrams", &error);
            std::thread::sleep(GOODBYE_PAUSE);
        }
        if !busy {
            // Whatever is there has just ended the sleep.
            self.empty_at = self.parts.clock.now();
        }
        let is_socket = |event: &&Event| event.token() == SOCKET;
        self.readable |= self.events.iter().filter(is_socket).any(Event::is_readable);
        if self.blocked && self.events.iter().filter(is_socket).any(Event::is_writable) {
            self.set_blocked(false);
        }
        if self.readable {
            self.readable = self.receive();
        }
        self.receive_from_workers();
        self.start_round();
        self.continue_round();
        self.flush();
    }

    /// Whether there is something to do without waiting for it.
    pub(crate) fn is_busy(&self) -> bool {
        // The wake for a frame that came during the round before has been heard already.
        let in_round = self.parts.hub.is_in_round();
        self.readable || if in_round { !self.blocked } else { self.parts.frames.is_waiting() }
    }

    /// Takes some batches off the socket; returns whether there may be more.
    fn receive(&mut self) -> bool {
        let before = self.parts.hub.handshakes();
        let batches = if self.parts.hub.is_in_round() { BATCHES_PER_TURN_OF_ROUND } else { BATCHES_PER_TURN };
        for _ in 0..batches {
            let received = match self.parts.socket.recv(&mut self.inbox) {
                Ok(received) => received,
                Err(error) => {
                    self.report("cannot receive", &error);
                    return false;
                }
            };
            let now = self.parts.clock.now();
            // Room for an answer to each.
            self.flush();
            let Self { parts: Parts { hub, handover, .. }, inbox, outbox, .. } = self;
            if let Some(handover) = handover {
                inbox.retain(|from, datagram| !handover.pass_on(from, datagram));
            }
            hub.receive_batch(now, inbox, outbox);
            let handled = self.parts.clock.now();
            let waited = handled - self.empty_at;
            record_many(&mut self.parts.latencies.lock().receive_us, waited, received as u64);
            self.received = *self.inbox.stats();
            let many_handshakes = self.parts.hub.handshakes() - before >= HANDSHAKES_PER_TURN;
            if many_handshakes {
                self.flooded_until = handled + FLOOD;
            }
            // A batch that is not full has seen the socket empty: what arrives now is told by the poll.
            if received < BATCH {
                self.empty_at = now;
                return false;
            }
            if many_handshakes {
                break;
            }
        }
        true
    }

    /// Passes on what is not this worker's, and takes what others passed on to it.
    fn receive_from_workers(&mut self) {
        let Parts { hub, handover: Some(handover), clock, .. } = &mut self.parts else { return };
        let woken = handover.wake();
        let now = clock.now();
        // What it answers finds room: only a datagram without a session is answered at once, and none is passed on.
        handover.receive(|from, datagram| hub.receive(now, from, datagram, &mut self.outbox));
        if let Err(error) = woken {
            self.report("cannot wake another worker", &error);
        }
    }

    /// Hears the world, and starts a round if none is on and there is a frame.
    fn start_round(&mut self) {
        let Parts { hub, frames, round_time, clock, control, tokens, .. } = &mut self.parts;
        hub.hear_world(clock.now());
        if !hub.is_in_round()
            && let Some(Fresh { frame, started_at, published_at }) = frames.take()
        {
            self.published_at = published_at;
            self.allowance = Allowance::new(*round_time, started_at, published_at, hub.listed());
            if let Some(tokens) = tokens {
                set_clock(tokens, *clock);
            }
            hub.start_round(clock.now(), frame, control.players());
        }
    }

    /// Serves some sessions of the round, and ends it when all are served or its time is over, and everything has left.
    fn continue_round(&mut self) {
        if !self.parts.hub.is_in_round() {
            return;
        }
        let mut now = self.parts.clock.now();
        if self.parts.frames.is_waiting() {
            self.allowance.hurry();
        }
        let mut left = if now < self.flooded_until { SESSIONS_PER_TURN_OF_FLOOD } else { SESSIONS_PER_TURN };
        while self.parts.hub.has_unserved() && !self.allowance.is_spent(now) {
            if left == 0 {
                return;
            }
            // Half a batch: room for a snapshot of several packets and control messages without a second look.
            if self.outbox.len() >= BATCH / 2 {
                self.flush();
                now = self.parts.clock.now();
            }
            if self.outbox.is_full() {
                return;
            }
            self.parts.hub.serve_next(now, &mut self.outbox);
            self.allowance.served_one();
            left -= 1;
        }
        self.flush();
        if self.outbox.is_empty() {
            let now = self.parts.clock.now();
            self.parts.hub.end_round(now);
            record(&mut self.parts.latencies.lock().send_us, now - self.published_at);
            self.publish_stats();
        }
    }

    /// Hands the kernel what it takes of the waiting datagrams.
    fn flush(&mut self) {
        if self.outbox.is_empty() || self.blocked {
            return;
        }
        if let Err(error) = self.parts.socket.send(&mut self.outbox) {
            self.report("cannot send", &error);
            self.outbox.clear();
        }
        if !self.outbox.is_empty() {
            self.set_blocked(true);
        }
    }

    /// Asks the poll for writability only while it is missed: every datagram that leaves would report it.
    fn set_blocked(&mut self, blocked: bool) {
        self.blocked = blocked;
        let interest = if blocked { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        if let Err(error) = self.parts.poll.registry().reregister(&mut self.parts.socket, SOCKET, interest) {
            // Without the event the next frame is the time to try again.
            self.blocked = false;
            self.report("cannot wait for room to send", &error);
        }
    }

    fn publish_stats(&mut self) {
        let SendStats { datagrams, bytes, refused, blocked, .. } = *self.outbox.stats();
        let passed = self.parts.handover.as_ref().map(Handover::stats).unwrap_or_default();
        let HandoverStats { passed: passed_on, dropped: passing_dropped } = passed;
        let stats = WorkerStats {
            passed_on,
            passing_dropped,
            datagrams_in: self.received.datagrams,
            bytes_in: self.received.bytes,
            oversized: self.received.oversized,
            datagrams_out: datagrams,
            bytes_out: bytes,
            refused,
            blocked,
            kernel_drops: self.parts.socket.kernel_drops().unwrap_or(0),
            cpu: thread_cpu(),
            ..self.parts.hub.stats()
        };
        *self.parts.stats.lock() = stats;
        self.complain(stats.kernel_drops);
    }

    /// At most one line every so often: what fails once may fail with every datagram.
    fn report(&mut self, what: &str, error: &io::Error) {
        if let Some(errors) = self.errors.count(self.parts.clock.now()) {
            tracing::error!(%error, errors, "{what}");
        }
    }

    /// Tells that the kernel drops datagrams, and what helps; not every tick.
    fn complain(&mut self, drops: u64) {
        let now = self.parts.clock.now();
        if drops > self.complaint.drops && now >= self.complaint.next {
            tracing::warn!(
                drops = drops - self.complaint.drops,
                "the kernel drops datagrams before they are received; raise network.recv_buffer_bytes and \
                 net.core.rmem_max, or give the server more cores and workers"
            );
            self.complaint = Complaint { drops, next: now + COMPLAIN_EVERY };
        }
    }

    /// Tells every player that the server stops.
    fn say_goodbye(&mut self) {
        let now = self.parts.clock.now();
        for pass in 0..GOODBYES {
            if pass > 0 {
                std::thread::sleep(GOODBYE_PAUSE);
            }
            // Whatever blocked before, now is the last time to try.
            self.blocked = false;
            self.flush();
            let Self { parts: Parts { hub, socket, .. }, outbox, .. } = self;
            hub.goodbye(now, &mut Draining { batch: outbox, socket });
            self.flush();
        }
        self.publish_stats();
    }
}

/// Tells the time of day as the system has it now: it may have been set since the last time.
fn set_clock(tokens: &TokenVerifier, clock: Clock) {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    tokens.set_clock(clock.now(), unix);
}

/// An outbox that is emptied when it is full, and loses what the socket does not take.
struct Draining<'a> {
    batch: &'a mut SendBatch,
    socket: &'a UdpSocket,
}

impl Outbox for Draining<'_> {
    fn slot(&mut self) -> Option<&mut [u8; DATAGRAM]> {
        if self.batch.is_full() && self.socket.send(self.batch).is_err() {
            self.batch.clear();
        }
        self.batch.slot()
    }

    fn commit(&mut self, len: usize, to: SocketAddr) {
        self.batch.commit(len, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sessions that are served in a round that begins and goes on at these times, in milliseconds after the start of its
    /// tick; each takes 0.01 ms.
    fn served(sessions: usize, published_ms: u64, begins_ms: u64, newer_ms: Option<u64>) -> usize {
        let at = |us: u64| Time::from_micros(1_000_000 + us);
        let published_at = at(published_ms * 1_000);
        let mut allowance = Allowance::new(RoundTime::SERVER, at(0), published_at, sessions);
        let mut served = 0;
        let mut now_us = begins_ms * 1_000;
        while served < sessions && !allowance.is_spent(at(now_us)) {
            allowance.served_one();
            served += 1;
            now_us += 10;
            if newer_ms.is_some_and(|newer_ms| now_us >= newer_ms * 1_000) {
                allowance.hurry();
            }
        }
        served
    }

    #[test]
    fn a_round_ends_in_time_for_the_next_tick() {
        // What a worker that keeps up does is not changed.
        assert_eq!(served(1_000, 1, 1, None), 1_000);
        // Until 13.89 ms, of which it has 12.89.
        assert_eq!(served(5_000, 1, 1, None), 1_289);
        // It lost its processor for a while.
        assert_eq!(served(5_000, 1, 8, None), 589);
        assert_eq!(
            served(5_000, 1, 8, Some(10)),
            313,
            "a sixteenth, which is more than until the newer frame"
        );
        assert_eq!(served(5_000, 1, 8, Some(12)), 400);
    }

    #[test]
    fn a_round_that_comes_late_serves_some_sessions() {
        assert_eq!(served(5_000, 1, 40, None), 313, "a sixteenth");
        assert_eq!(served(500, 1, 40, None), SESSIONS_PER_TURN, "a turn");
        assert_eq!(served(10, 1, 40, None), 10);
    }

    #[test]
    fn a_slow_world_leaves_its_workers_half_a_tick() {
        assert_eq!(served(5_000, 12, 12, None), 834);
    }

    #[test]
    fn a_worker_tells_of_its_errors_every_ten_seconds() {
        let mut errors = Throttle::default();
        let told: Vec<_> =
            (0..25_000).filter_map(|ms| Some((ms, errors.count(Time::from_micros(ms * 1_000))?))).collect();
        assert_eq!(told, [(0, 1), (10_000, 10_000), (20_000, 10_000)]);
    }
}
