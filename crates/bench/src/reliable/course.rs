//! The course that every contender takes: a session of two ends over a link, under virtual time.

use std::time::Duration;

use anyhow::ensure;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg32;
use shadowland_client::conditioner::{Conditioner, Conditions};
use shadowland_proto::Time;

use super::{MESSAGE_BYTES, PACED_HZ};

/// A run starts here: not at zero, which stands for "never" in places.
pub(super) const START: Time = Time::from_micros(100_000_000);
/// Contenders have so long to connect.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// And so long to find the link's rate, before anything counts.
const WARM_UP: Duration = Duration::from_secs(5);
/// How often the backlog is filled up, and the queue looked at.
const STEP: Duration = Duration::from_millis(5);
/// Time goes on by so much at least: what is overdue could not be helped at once.
const SHORTEST: Duration = Duration::from_micros(100);

/// An end of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Client,
    Server,
}

/// A contender's session, sans-IO.
pub(super) trait Session {
    /// Whether both ends can send.
    fn is_connected(&self) -> bool;
    /// Hands over a message at the server, on one ordered reliable stream; `false` when it takes no more now.
    fn send(&mut self, message: &[u8]) -> bool;
    /// The next message that has been delivered at the client.
    fn delivered(&mut self) -> Option<Vec<u8>>;
    /// What an end sends now, a datagram a call.
    fn transmit(&mut self, now: Time, end: End) -> Option<Vec<u8>>;
    /// A datagram arrives at an end.
    fn receive(&mut self, now: Time, end: End, datagram: Vec<u8>);
    /// When something is to be done at the latest, beside what a datagram causes.
    fn next_timeout(&mut self) -> Option<Time>;
    /// Does what is due.
    fn on_timeout(&mut self, now: Time);
}

/// What came of a run with more to send than the link carries.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backlog {
    /// Bytes of messages that arrived.
    pub(super) delivered_bytes: u64,
    /// Bytes of all datagrams that were sent, both directions.
    pub(super) datagram_bytes: u64,
    /// Share of the bottleneck that carried datagrams.
    pub(super) used: f64,
    /// What a datagram waits for in the queue, on average.
    pub(super) queue_mean_ms: f64,
}

/// Keeps the session backlogged, and measures for so long.
pub(super) fn backlog(
    session: &mut dyn Session,
    link: Conditions,
    seed: u64,
    seconds: u32,
) -> anyhow::Result<Backlog> {
    let mut course = Course::connected(session, link, seed)?;
    let mut noise = StdRng::seed_from_u64(seed);
    let mut queue_ms = Vec::new();
    let mut go_on = |course: &mut Course<'_>, length: Duration| {
        let end = course.now + length;
        let (mut message, mut delivered) = ([0; MESSAGE_BYTES], 0);
        queue_ms.clear();
        while course.now < end {
            loop {
                noise.fill_bytes(&mut message);
                if !course.session.send(&message) {
                    break;
                }
            }
            course.run(STEP);
            delivered +=
                std::iter::from_fn(|| course.session.delivered()).map(|m| m.len() as u64).sum::<u64>();
            queue_ms.push(course.down.queued(course.now).as_secs_f64() * 1_000.0);
        }
        (delivered, queue_ms.iter().sum::<f64>() / queue_ms.len() as f64)
    };
    go_on(&mut course, WARM_UP);
    let before = (course.sent_bytes(), course.down.stats().bytes_through);
    let (delivered_bytes, queue_mean_ms) = go_on(&mut course, Duration::from_secs(seconds.into()));
    let through = course.down.stats().bytes_through - before.1;
    Ok(Backlog {
        delivered_bytes,
        datagram_bytes: course.sent_bytes() - before.0,
        used: through as f64 * 8.0 / 1_000.0 / f64::from(seconds) / link.bandwidth_kbit_s,
        queue_mean_ms,
    })
}

/// Sends at a steady pace; the time that each message took, in milliseconds.
pub(super) fn paced(
    session: &mut dyn Session,
    link: Conditions,
    seed: u64,
    seconds: u32,
) -> anyhow::Result<Vec<f64>> {
    let mut course = Course::connected(session, link, seed)?;
    let mut noise = StdRng::seed_from_u64(seed);
    let (mut message, mut sent_at) = ([0; MESSAGE_BYTES], Vec::new());
    let (mut next, mut latencies) = (0, Vec::new());
    let pause = Duration::from_secs(1) / PACED_HZ;
    let all = seconds * PACED_HZ;
    // The last ones get some time to arrive.
    for number in 0..all + 10 * PACED_HZ {
        noise.fill_bytes(&mut message);
        message[..4].copy_from_slice(&number.to_le_bytes());
        if number < all {
            ensure!(
                course.session.send(&message),
                "the session takes no message at a pace that the link carries"
            );
            sent_at.push(course.now);
        }
        let until = course.now + pause;
        while course.now < until {
            course.step(until);
            while let Some(message) = course.session.delivered() {
                ensure!(message.starts_with(&u32::to_le_bytes(next)), "message {next} is missing or changed");
                latencies.push((course.now - sent_at[next as usize]).as_secs_f64() * 1_000.0);
                next += 1;
            }
        }
    }
    ensure!(next == all, "{next} of {all} messages have arrived");
    Ok(latencies)
}

/// A session on its link.
struct Course<'s> {
    now: Time,
    session: &'s mut dyn Session,
    up: Conditioner<Vec<u8>>,
    down: Conditioner<Vec<u8>>,
}

impl<'s> Course<'s> {
    /// Connects over the same distance, but without loss.
    fn connected(session: &'s mut dyn Session, link: Conditions, seed: u64) -> anyhow::Result<Self> {
        let mut random = StdRng::seed_from_u64(seed);
        let distance = Conditions { latency_ms: link.latency_ms, ..Conditions::PERFECT };
        let mut direction = || Conditioner::new(distance, Pcg32::seed_from_u64(random.next_u64()));
        let mut course = Self { now: START, session, up: direction(), down: direction() };
        while !course.session.is_connected() {
            ensure!(course.now - START < CONNECT_PATIENCE, "the session does not connect");
            course.run(STEP);
        }
        // The way back is as wide as the other: acknowledgements are not what this is about.
        course.up.set_conditions(link);
        course.down.set_conditions(link);
        Ok(course)
    }

    fn sent_bytes(&self) -> u64 {
        self.up.stats().bytes + self.down.stats().bytes
    }

    fn run(&mut self, length: Duration) {
        let end = self.now + length;
        while self.now < end {
            self.step(end);
        }
    }

    /// Goes to the next thing that happens, but not beyond `end`.
    fn step(&mut self, end: Time) {
        self.transmit();
        let links = [self.up.next_arrival(), self.down.next_arrival()];
        let next = links.into_iter().chain([self.session.next_timeout()]).flatten().min();
        self.now = next.map_or(end, |next| next.max(self.now + SHORTEST).min(end));
        while let Some(datagram) = self.up.receive(self.now) {
            self.session.receive(self.now, End::Server, datagram);
        }
        while let Some(datagram) = self.down.receive(self.now) {
            self.session.receive(self.now, End::Client, datagram);
        }
        if self.session.next_timeout().is_some_and(|due| due <= self.now) {
            self.session.on_timeout(self.now);
        }
        self.transmit();
    }

    fn transmit(&mut self) {
        while let Some(datagram) = self.session.transmit(self.now, End::Client) {
            self.up.send(self.now, datagram.len(), datagram);
        }
        while let Some(datagram) = self.session.transmit(self.now, End::Server) {
            self.down.send(self.now, datagram.len(), datagram);
        }
    }
}
