//! The attacker's thread: many addresses, one after the other, as fast as they go.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use shadowland_proto::Time;
use shadowland_udp::{Options, RecvBatch, SendBatch, UdpSocket};
use shadowland_wire::limits::DATAGRAM_BYTES;

/// Networks that most attacks come from.
pub(super) const NETWORKS: usize = 256;
/// Datagrams a system call.
const BATCH: usize = 64;
/// How nice the thread is; the players' are nice by 5.
const NICE: i32 = 10;
/// How long it rests when it has nothing to send.
const REST: Duration = Duration::from_millis(1);

/// What an attacker sends. Sources are counted from 0; each is an address in a network of its own.
pub(super) trait Attack: Send {
    /// How many addresses it needs.
    fn sources(&self) -> usize {
        NETWORKS
    }

    /// Writes the next datagram of a source and returns its length; `None` when it has nothing to send now.
    fn next(&mut self, now: Time, source: usize, datagram: &mut [u8; DATAGRAM_BYTES]) -> Option<usize>;

    /// The server has sent this to a source.
    fn answered(&mut self, _now: Time, _source: usize, _datagram: &mut [u8]) {}

    /// Players of its own that must not have lost their session, and have.
    fn dropped(&self) -> usize {
        0
    }
}

/// What an attack came to.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// For how long it was sent.
    pub(super) time: Duration,
    /// Datagrams, and their bytes.
    pub(super) sent: u64,
    pub(super) sent_bytes: u64,
    /// Bytes of what came back. What found no room at the attacker's sockets counts as large as the largest.
    pub(super) answered_bytes: u64,
    /// See [`Attack::dropped`].
    pub(super) dropped: usize,
}

pub(super) struct Attacker {
    attack: Box<dyn Attack>,
    server: SocketAddr,
    rate: Option<u32>,
    sockets: Vec<UdpSocket>,
    outbox: SendBatch,
    inbox: RecvBatch,
    largest_answer: usize,
}

/// The clock that attacks and guests go by.
pub(super) fn now(start: Instant) -> Time {
    Time::default() + start.elapsed()
}

impl Attacker {
    pub(super) fn new(
        attack: Box<dyn Attack>,
        server: SocketAddr,
        rate: Option<u32>,
    ) -> anyhow::Result<Self> {
        let sockets = (0..attack.sources()).map(|source| {
            // 127.64.0.9, 127.64.1.9, ...: a network each.
            let address = Ipv4Addr::new(127, 64 + (source >> 8) as u8, source as u8, 9);
            UdpSocket::bind((address, 0).into(), &Options::default())
        });
        Ok(Self {
            sockets: sockets.collect::<Result<_, _>>()?,
            attack,
            server,
            rate,
            outbox: SendBatch::new(BATCH),
            inbox: RecvBatch::new(BATCH),
            largest_answer: 0,
        })
    }

    /// Attacks until told to stop.
    pub(super) fn run(mut self, start: Instant, stop: &AtomicBool) -> anyhow::Result<Taken> {
        // Without a process it is the calling thread's own. To be nicer is always allowed.
        let _ = rustix::process::setpriority_process(None, NICE);
        let began = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let before = self.outbox.stats().datagrams;
            for source in 0..self.sockets.len() {
                self.turn(now(start), source)?;
                self.keep_rate(began);
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
            if self.outbox.stats().datagrams == before {
                thread::sleep(REST);
            }
        }
        let time = began.elapsed();
        // What the server still had to say.
        thread::sleep(Duration::from_millis(100));
        for source in 0..self.sockets.len() {
            while self.receive(now(start), source)? == BATCH {}
        }
        let lost = self.sockets.iter().map(|socket| socket.kernel_drops().unwrap_or(0)).sum::<u64>();
        Ok(Taken {
            time,
            sent: self.outbox.stats().datagrams,
            sent_bytes: self.outbox.stats().bytes,
            answered_bytes: self.inbox.stats().bytes + lost * self.largest_answer as u64,
            dropped: self.attack.dropped(),
        })
    }

    /// A batch of a source, and what has come back to it.
    fn turn(&mut self, now: Time, source: usize) -> anyhow::Result<()> {
        while let Some(slot) = self.outbox.slot() {
            let Some(len) = self.attack.next(now, source, slot) else { break };
            self.outbox.commit(len, self.server);
        }
        self.sockets[source].send(&mut self.outbox)?;
        // What finds no room is lost, as on any network.
        self.outbox.clear();
        self.receive(now, source).map(drop)
    }

    fn receive(&mut self, now: Time, source: usize) -> anyhow::Result<usize> {
        let received = self.sockets[source].recv(&mut self.inbox)?;
        for (_, datagram) in self.inbox.iter_mut() {
            self.largest_answer = self.largest_answer.max(datagram.len());
            self.attack.answered(now, source, datagram);
        }
        Ok(received)
    }

    fn keep_rate(&self, began: Instant) {
        if let Some(rate) = self.rate {
            let due = Duration::from_secs_f64(self.outbox.stats().datagrams as f64 / f64::from(rate));
            thread::sleep(due.saturating_sub(began.elapsed()));
        }
    }
}
