//! Congestion control over a bottleneck: how much of it is used, how long its queue stands, how evenly several
//! sessions share it, and what reliable messages cost.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shadowland_client::conditioner::Conditions;
use shadowland_proto::{Channel, TransportConfig};

use crate::Violation;
use crate::net::{Net, Side};

const KIND: u8 = 0x30;
/// Bytes of a message, without a pattern.
pub const MESSAGE_BYTES: usize = 512;
/// How often the queue is looked at, and the backlog filled up.
const STEP: Duration = Duration::from_millis(5);
/// Sessions may find their rate for so long before it is measured.
const WARM_UP: Duration = Duration::from_secs(5);

/// What was measured of backlogged sessions from the server to their clients.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// Kilobits a second of message bodies, by session.
    pub goodput_kbit_s: Vec<f64>,
    /// Share of the bottleneck that carried datagrams, whatever was in them.
    pub used: f64,
    /// Mean and 99th percentile of the time that a datagram waits in the queue.
    pub queue_mean_ms: f64,
    /// See above.
    pub queue_p99_ms: f64,
    /// Bytes of all datagrams of both directions by bytes of bodies that arrived.
    pub overhead: f64,
}

/// Runs so many sessions over one link for some virtual time, each with more to send than the link can carry.
/// Every session joins half a second after the one before.
///
/// # Errors
/// When a session ends.
pub fn run(
    seed: u64,
    link: Conditions,
    transport: &TransportConfig,
    sessions: usize,
    seconds: u64,
) -> Result<Measured, Violation> {
    let mut net = Net::new(seed, Conditions { bandwidth_kbit_s: 0.0, ..link }, link);
    let mut noise = StdRng::seed_from_u64(seed);
    let mut queue_ms = Vec::new();
    for _ in 0..sessions {
        net.join(transport)?;
        go_on(&mut net, &mut noise, Duration::from_millis(500), &mut queue_ms)?;
    }
    go_on(&mut net, &mut noise, WARM_UP, &mut queue_ms)?;
    queue_ms.clear();
    (0..sessions).for_each(|session| net.inbox(session, Side::Client).messages.clear());
    let before = net.links.each_ref().map(|link| link.stats());
    let length = Duration::from_secs(seconds);
    go_on(&mut net, &mut noise, length, &mut queue_ms)?;

    let after = net.links.each_ref().map(|link| link.stats());
    let bodies: Vec<usize> = (0..sessions)
        .map(|session| net.inbox(session, Side::Client).messages.iter().map(|(_, body, _)| body.len()).sum())
        .collect();
    let all_bodies: usize = bodies.iter().sum();
    let datagrams = after[0].bytes - before[0].bytes + after[1].bytes - before[1].bytes;
    let through = after[1].bytes_through - before[1].bytes_through;
    queue_ms.sort_unstable_by(f64::total_cmp);
    Ok(Measured {
        goodput_kbit_s: bodies.iter().map(|&bytes| kbit_s(bytes as f64, length)).collect(),
        used: kbit_s(through as f64, length) / link.bandwidth_kbit_s,
        queue_mean_ms: queue_ms.iter().sum::<f64>() / queue_ms.len() as f64,
        queue_p99_ms: queue_ms[queue_ms.len() * 99 / 100],
        overhead: datagrams as f64 / all_bodies as f64,
    })
}

fn go_on(
    net: &mut Net,
    noise: &mut StdRng,
    length: Duration,
    queue_ms: &mut Vec<f64>,
) -> Result<(), Violation> {
    let end = net.now + length;
    let mut body = [0; MESSAGE_BYTES];
    while net.now < end {
        for session in 0..net.len() {
            if !net.is_established(session) && net.inbox(session, Side::Client).messages.len() > 1 {
                return Err(Violation(format!("session {session} has ended")));
            }
            loop {
                noise.fill_bytes(&mut body);
                let connection = net.connection(session, Side::Server);
                if connection.send(Channel::ReliableOrdered, 0, KIND, &body).is_err() {
                    break;
                }
            }
        }
        net.run(STEP);
        queue_ms.push(net.links[1].queued(net.now).as_secs_f64() * 1_000.0);
    }
    Ok(())
}

fn kbit_s(bytes: f64, length: Duration) -> f64 {
    bytes * 8.0 / 1_000.0 / length.as_secs_f64()
}
