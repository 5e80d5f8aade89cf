//! An I/O worker: the thread around a hub, with a socket of its own.
//!
//! Its loop takes turns, so that nothing waits for long: some batches of datagrams in, then some sessions of the
//! current round out. A frame that comes during a round waits until the round is over, and is replaced if an even
//! newer one comes: a worker that cannot keep up serves everybody less often.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mio::event::Event;
use mio::{Events, Interest, Poll, Token};
use shadowland_proto::{Time, TokenVerifier};
use shadowland_udp::{DATAGRAM, RecvBatch, RecvStats, SendBatch, SendStats, UdpSocket};
use shadowland_world::Frame;

use crate::control::Control;
use crate::handover::{Handover, HandoverStats};
use crate::hub::{Hub, Inbox, Outbox};
use crate::queue::FrameSlot;
use crate::schedule::Clock;
use crate::stats::{Latencies, Shared, WorkerStats, record, record_many, thread_cpu};

/// Token of the socket in the worker's poll.
pub(crate) const SOCKET: Token = Token(0);
/// Token of the waker in the worker's poll.
pub(crate) const WAKER: Token = Token(1);

/// Datagrams per system call: 256 were measured to be no cheaper each than 64.
const BATCH: usize = 64;
/// Batches that are received before sessions are served again.
const BATCHES_PER_TURN: usize = 8;
/// Handshakes after which sessions are served, even if there is more to receive: they are what costs most.
const HANDSHAKES_PER_TURN: u64 = 32;
/// Sessions that are served before datagrams are received again.
const SESSIONS_PER_TURN: usize = 256;
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
    /// When the frame of the round was published.
    published_at: Time,
    complaint: Complaint,
    errors: Throttle,
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
            published_at: Time::default(),
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
        self.readable || (self.parts.hub.is_in_round() && !self.blocked)
    }

    /// Takes some batches off the socket; returns whether there may be more.
    fn receive(&mut self) -> bool {
        let before = self.parts.hub.handshakes();
        for _ in 0..BATCHES_PER_TURN {
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
            // A batch that is not full has seen the socket empty: what arrives now is told by the poll.
            if received < BATCH {
                self.empty_at = now;
                return false;
            }
            if self.parts.hub.handshakes() - before >= HANDSHAKES_PER_TURN {
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
        let Parts { hub, frames, clock, control, tokens, .. } = &mut self.parts;
        hub.hear_world(clock.now());
        if !hub.is_in_round()
            && let Some((frame, published_at)) = frames.take()
        {
            self.published_at = published_at;
            if let Some(tokens) = tokens {
                set_clock(tokens, *clock);
            }
            hub.start_round(clock.now(), frame, control.players());
        }
    }

    /// Serves some sessions of the round, and ends it when all are served and everything has left.
    fn continue_round(&mut self) {
        if !self.parts.hub.is_in_round() {
            return;
        }
        let mut now = self.parts.clock.now();
        let mut left = SESSIONS_PER_TURN;
        while self.parts.hub.has_unserved() && left > 0 {
            // Half a batch: room for a snapshot of several packets and control messages without a second look.
            if self.outbox.len() >= BATCH / 2 {
                self.flush();
                now = self.parts.clock.now();
            }
            if self.outbox.is_full() {
                break;
            }
            self.parts.hub.serve_next(now, &mut self.outbox);
            left -= 1;
        }
        if self.parts.hub.has_unserved() {
            return;
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

    #[test]
    fn a_worker_tells_of_its_errors_every_ten_seconds() {
        let mut errors = Throttle::default();
        let told: Vec<_> =
            (0..25_000).filter_map(|ms| Some((ms, errors.count(Time::from_micros(ms * 1_000))?))).collect();
        assert_eq!(told, [(0, 1), (10_000, 10_000), (20_000, 10_000)]);
    }
}
