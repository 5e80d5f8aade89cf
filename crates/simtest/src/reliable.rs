//! Reliable messages over bad links: on several ordered streams and the unordered one, small and in fragments,
//! compressible and not, in both directions at once, beside 60 unreliable packets a second.
//!
//! Whatever the link does, every message arrives exactly once and unchanged, in order within its stream; or the
//! session ends with a reason that its side can tell.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use rand_pcg::Pcg32;
use shadowland_client::conditioner::Conditions;
use shadowland_proto::{
    Channel, CloseReason, Congestion, DisconnectReason, SendError, State, Time, TransportConfig,
};

use crate::net::{Net, Side};
use crate::{Outcome, Violation};

const TICK: Duration = Duration::from_micros(1_000_000 / 60);
/// No run may take longer than this after everything was handed over.
const PATIENCE: Duration = Duration::from_secs(300);
/// Type of the unreliable messages; those of the reliable ones are above it.
const UNRELIABLE: u8 = 0x20;
/// Losses of a run at which a session may end for them.
const DESPERATE_LOSS: f64 = 0.3;

const LOSS: [f64; 6] = [0.0, 0.01, 0.05, 0.1, 0.2, 0.3];
const RTT_MS: [f64; 4] = [0.0, 25.0, 100.0, 300.0];
const REORDER: [f64; 3] = [0.0, 0.05, 0.3];
const DUPLICATE: [f64; 2] = [0.0, 0.05];

/// The combinations of the matrix.
pub const MATRIX: u64 = (LOSS.len() * RTT_MS.len() * REORDER.len() * DUPLICATE.len()) as u64;

/// A stream of messages in one direction.
#[derive(Debug)]
struct Stream {
    side: Side,
    channel: Channel,
    number: u8,
    /// Tells the stream's messages.
    kind: u8,
    /// Of its messages one in so many is large.
    large_one_in: u32,
    /// Messages that were handed over, and that shall be.
    sent: u32,
    count: u32,
}

/// What a run does.
#[derive(Debug, Clone)]
struct Plan {
    seed: u64,
    conditions: Conditions,
    transport: TransportConfig,
    messages: u32,
    large_bytes: u32,
    /// When the link goes dark, and for how long.
    blackout: Option<(Duration, Duration)>,
    /// Bytes of an unreliable message from the server.
    snapshot_bytes: usize,
}

/// Runs one seed: anything that a link may be, with blackouts.
pub fn run(seed: u64) -> Result<Outcome, Violation> {
    let mut random = Pcg32::seed_from_u64(seed);
    let narrow = random.random_bool(0.4);
    let conditions = Conditions {
        latency_ms: random.random_range(0.0..200.0),
        jitter_ms: random.random_range(0.0..60.0),
        jitter_reorders: random.random(),
        loss: random.random_range(0.0..0.2),
        burst: if random.random_bool(0.3) { random.random_range(0.0..0.01) } else { 0.0 },
        burst_length: random.random_range(1.0..20.0),
        reorder: random.random_range(0.0..0.3),
        duplicate: random.random_range(0.0..0.05),
        bandwidth_kbit_s: if narrow { random.random_range(600.0..5_000.0) } else { 0.0 },
        queue_ms: random.random_range(50.0..500.0),
    };
    // Sessions live through 10 s of darkness, and 60 s end them on both sides.
    let blackout = match random.random_range(0..10) {
        0..5 => None,
        5..9 => Some(10.0),
        _ => Some(60.0),
    };
    let at = Duration::from_secs_f64(random.random_range(0.5..4.0));
    let transport = random_transport(&mut random);
    let mut large_bytes = [3_000, 20_000, 262_144][random.random_range(0..3)];
    if transport.congestion == Congestion::Loss
        || transport.window_messages < 64
        || transport.window_bytes < 65_536
        || narrow
    {
        // It would arrive, but who has the time.
        large_bytes = large_bytes.min(20_000);
    }
    run_plan(&Plan {
        seed,
        conditions,
        transport,
        messages: random.random_range(30..200),
        large_bytes,
        blackout: blackout.map(|seconds| (at, Duration::from_secs_f64(seconds))),
        snapshot_bytes: random.random_range(0..1_000),
    })
}

/// Runs the combination `seed % 144` of loss, round-trip time, reordering and duplicates.
pub fn run_matrix(seed: u64) -> Result<Outcome, Violation> {
    let mut index = (seed % MATRIX) as usize;
    let mut pick = |values: &[f64]| {
        let value = values[index % values.len()];
        index /= values.len();
        value
    };
    let (loss, rtt_ms, reorder, duplicate) = (pick(&LOSS), pick(&RTT_MS), pick(&REORDER), pick(&DUPLICATE));
    let conditions = Conditions { latency_ms: rtt_ms / 2.0, loss, reorder, duplicate, ..Conditions::PERFECT };
    run_plan(&Plan {
        seed,
        conditions,
        transport: TransportConfig::default(),
        messages: 120,
        large_bytes: 20_000,
        blackout: None,
        snapshot_bytes: 400,
    })
}

fn random_transport(random: &mut Pcg32) -> TransportConfig {
    let default = TransportConfig::default();
    TransportConfig {
        congestion: [Congestion::Delay, Congestion::Delay, Congestion::Loss, Congestion::Off]
            [random.random_range(0..4)],
        compress: random.random(),
        window_messages: [1_024, 256, 64, 3][random.random_range(0..4)],
        window_bytes: [262_144, 131_072, 16_384][random.random_range(0..3)],
        ..default
    }
}

fn run_plan(plan: &Plan) -> Result<Outcome, Violation> {
    let mut net = Net::new(plan.seed, plan.conditions, plan.conditions);
    net.join(&plan.transport)?;
    let start = net.now;
    let mut streams = streams(plan.messages);
    let deadline = start + PATIENCE;
    while !is_through(&mut net, &streams) {
        if net.now > deadline {
            return Err(Violation(format!(
                "not through after {PATIENCE:?}: {}",
                progress(&mut net, &streams)
            )));
        }
        if let Some((at, length)) = plan.blackout {
            let dark = (start + at..start + at + length).contains(&net.now);
            let loss = if dark { 1.0 } else { plan.conditions.loss };
            net.links.iter_mut().for_each(|link| link.set_conditions(Conditions { loss, ..plan.conditions }));
        }
        if net.is_established(0) {
            streams.iter_mut().try_for_each(|stream| stream.hand_over(&mut net, plan))?;
            net.say(0, Side::Client, UNRELIABLE, b"input");
            let now = net.now;
            let budget = net.connection(0, Side::Server).budget_bytes(now, plan.snapshot_bytes);
            net.say(0, Side::Server, UNRELIABLE, &vec![7; budget]);
        } else if is_over(&mut net) {
            break;
        }
        net.run(TICK);
    }
    check_end(&mut net, plan)?;
    let complete = net.is_established(0);
    for stream in &streams {
        stream.check(&mut net, plan, complete)?;
    }
    let stats = net.links.iter().map(|link| link.stats());
    let (mut faults, mut messages) = (0, 0);
    for link in stats {
        faults += link.lost + link.overflowed + link.doubled + link.overtaking;
        messages += link.sent;
    }
    Ok(Outcome { faults, messages, ..Outcome::default() })
}

fn streams(count: u32) -> Vec<Stream> {
    let mut streams = Vec::new();
    for side in Side::BOTH {
        for (channel, number, large_one_in) in [
            (Channel::ReliableOrdered, 0, 1_000_000),
            (Channel::ReliableOrdered, 5, 20),
            (Channel::ReliableUnordered, 0, 30),
        ] {
            let kind = UNRELIABLE + 1 + streams.len() as u8;
            streams.push(Stream { side, channel, number, kind, large_one_in, sent: 0, count });
        }
    }
    streams
}

impl Stream {
    /// Hands over some messages, as far as there is room.
    fn hand_over(&mut self, net: &mut Net, plan: &Plan) -> Result<(), Violation> {
        for _ in 0..2 {
            if self.sent == self.count {
                return Ok(());
            }
            let body = self.body(plan, self.sent);
            let (channel, number, kind) = (self.channel, self.number, self.kind);
            match net.connection(0, self.side).send(channel, number, kind, &body) {
                Ok(()) => self.sent += 1,
                Err(SendError::Full) => return Ok(()),
                Err(error) => return Err(Violation(format!("a message is refused: {error}"))),
            }
        }
        Ok(())
    }

    /// A message is known by its number: its length, and whether it repeats itself.
    fn body(&self, plan: &Plan, number: u32) -> Vec<u8> {
        let mut random =
            StdRng::seed_from_u64(plan.seed ^ u64::from(number) << 8 ^ u64::from(self.kind) << 40);
        let length = match random.random_ratio(1, self.large_one_in) {
            true => random.random_range(1_000..=plan.large_bytes),
            false => random.random_range(4..1_024),
        };
        let mut body = vec![0; length as usize];
        if random.random_bool(0.7) {
            random.fill_bytes(&mut body);
        }
        body[..4].copy_from_slice(&number.to_le_bytes());
        body
    }

    /// What has arrived is what was sent: all of it if the session has lived, else a part without a repetition,
    /// and of an ordered stream its beginning.
    fn check(&self, net: &mut Net, plan: &Plan, complete: bool) -> Result<(), Violation> {
        let received = &net.inbox(0, self.side.other()).messages;
        let mut bodies: Vec<_> =
            received.iter().filter(|(kind, ..)| *kind == self.kind).map(|(_, body, _)| body).collect();
        let number = |body: &Vec<u8>| body.first_chunk().map_or(u32::MAX, |bytes| u32::from_le_bytes(*bytes));
        if self.channel == Channel::ReliableUnordered {
            bodies.sort_by_key(|body| number(body));
            let repeated = bodies.windows(2).any(|pair| number(pair[0]) == number(pair[1]));
            if repeated {
                return Err(self.violation("a message arrived twice"));
            }
        } else if bodies.iter().enumerate().any(|(index, body)| number(body) != index as u32) {
            return Err(self.violation("messages are missing, repeated or out of order"));
        }
        if complete && bodies.len() != self.count as usize {
            return Err(self.violation(&format!("{} of {} messages arrived", bodies.len(), self.count)));
        }
        match bodies.iter().find(|body| ***body != self.body(plan, number(body))) {
            Some(body) => Err(self.violation(&format!("message {} arrived changed", number(body)))),
            None => Ok(()),
        }
    }

    fn violation(&self, what: &str) -> Violation {
        Violation(format!("from the {:?}, {:?} stream {}: {what}", self.side, self.channel, self.number))
    }
}

fn is_through(net: &mut Net, streams: &[Stream]) -> bool {
    streams.iter().all(|stream| stream.sent == stream.count)
        && net.is_established(0)
        && Side::BOTH.into_iter().all(|side| net.connection(0, side).unacknowledged() == 0)
}

fn is_over(net: &mut Net) -> bool {
    Side::BOTH.into_iter().all(|side| matches!(net.connection(0, side).state(), State::Closed(_)))
}

/// A session that has ended had to, and both sides know why.
fn check_end(net: &mut Net, plan: &Plan) -> Result<(), Violation> {
    let states = Side::BOTH.map(|side| net.connection(0, side).state());
    let dark = plan.blackout.map_or(Duration::ZERO, |(_, length)| length);
    let idle = State::Closed(CloseReason::Local(DisconnectReason::IdleTimeout));
    let undeliverable = |state| {
        matches!(
            state,
            State::Closed(
                CloseReason::Local(DisconnectReason::Undeliverable | DisconnectReason::IdleTimeout)
                    | CloseReason::Peer(DisconnectReason::Undeliverable | DisconnectReason::IdleTimeout)
            )
        )
    };
    let is_right = if dark > Duration::from_secs(30) {
        // Before the dark all may have arrived.
        states == [idle; 2] || states == [State::Established; 2]
    } else if plan.conditions.loss >= DESPERATE_LOSS {
        states == [State::Established; 2] || states.into_iter().all(undeliverable)
    } else {
        states == [State::Established; 2]
    };
    if is_right { Ok(()) } else { Err(Violation(format!("the session is {states:?}; plan: {plan:?}"))) }
}

fn progress(net: &mut Net, streams: &[Stream]) -> String {
    let sent: Vec<_> = streams.iter().map(|stream| stream.sent).collect();
    let waiting = Side::BOTH.map(|side| net.connection(0, side).unacknowledged());
    let paths = Side::BOTH.map(|side| net.connection(0, side).path());
    format!("{sent:?} sent, {waiting:?} unacknowledged, {paths:?}, now {:?}", Time::as_micros(net.now))
}
