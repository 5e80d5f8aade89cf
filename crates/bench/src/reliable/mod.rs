//! What reliable messages get through a bad link, and how soon: this project, and what one would take instead.
//!
//! | contender | what it is |
//! |---|---|
//! | `shadowland` | an ordered stream of `shadowland-proto` |
//! | `renet` | renet's reliable ordered channel, with netcode; served 60 times a second, as it is made for |
//! | `quinn` | a stream of QUIC, every message behind its length; datagrams of 1200 bytes like the others' |
//!
//! All of them run sans-IO under virtual time over the same seeded link, with the figures that they come with. With
//! `--controllers` so do other ways to find the sending rate. Two runs for every contender and link: one with more to
//! send than the link carries, for what gets through, and one of [`PACED_HZ`] messages a second, for the time from
//! sending to delivery. Messages have [`MESSAGE_BYTES`] bytes without a pattern, and go from the server to the client.

mod course;
mod quinn;
mod renet;
mod shadowland;

use anyhow::ensure;
use clap::ValueEnum;
use serde::Serialize;
use shadowland_client::conditioner::Conditions;
use shadowland_proto::Congestion;

use crate::clock::percentile;
use course::{Backlog, Session};

/// Bytes of a message.
const MESSAGE_BYTES: usize = 512;
/// Messages a second of the run that measures latency.
const PACED_HZ: u32 = 60;

/// What reliable messages get through a bad link, and how soon.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Seconds of virtual time that each run is measured for.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// Seed of the links.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only these contenders.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Contender>,
    /// Also other ways to find the sending rate.
    #[arg(long)]
    controllers: bool,
    /// Print one JSON object a line instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Contender {
    /// This project, by delay (Copa).
    Shadowland,
    /// This project, by loss (NewReno).
    ShadowlandLoss,
    /// renet with netcode; it has no congestion control.
    Renet,
    /// QUIC, CUBIC.
    Quinn,
    /// QUIC, NewReno.
    QuinnNewreno,
    /// QUIC, BBR.
    QuinnBbr,
}

/// A link by name.
struct Link {
    name: &'static str,
    conditions: Conditions,
}

/// A line of the result, as printed with `--json`.
#[derive(Debug, Serialize)]
struct Report {
    name: String,
    link: &'static str,
    /// Bodies of messages that arrived, of the backlogged run.
    goodput_kbit_s: f64,
    /// From handing a message over to its delivery, of the paced run.
    latency_p50_ms: f64,
    latency_p99_ms: f64,
    /// Bytes of all datagrams of both directions beyond those of the bodies that arrived, of the backlogged run.
    overhead_percent: f64,
    /// Share of the bottleneck that carried datagrams, of the backlogged run.
    link_used_percent: f64,
    /// What a datagram waits for in the bottleneck's queue on average, of the backlogged run.
    queue_mean_ms: f64,
}

/// The links: a player's line of 10 Mbit/s, and a narrow one; each with a queue of 100 ms.
fn links() -> [Link; 5] {
    let line = Conditions { bandwidth_kbit_s: 10_000.0, queue_ms: 100.0, ..Conditions::PERFECT };
    let narrow = Conditions { bandwidth_kbit_s: 1_000.0, latency_ms: 20.0, ..line };
    let link = |name, conditions| Link { name, conditions };
    [
        link("clean_0ms", line),
        link("clean_25ms", Conditions { latency_ms: 12.5, ..line }),
        link("loss1_100ms", Conditions { loss: 0.01, latency_ms: 50.0, ..line }),
        link("loss5_100ms", Conditions { loss: 0.05, latency_ms: 50.0, ..line }),
        link("narrow_1mbit", narrow),
    ]
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    for Link { name: link, conditions } in links() {
        for contender in Contender::value_variants().iter().filter(|contender| arguments.takes(**contender)) {
            let Backlog { delivered_bytes, datagram_bytes, used, queue_mean_ms } =
                course::backlog(contender.start()?.as_mut(), conditions, arguments.seed, arguments.seconds)?;
            let mut latencies =
                course::paced(contender.start()?.as_mut(), conditions, arguments.seed, arguments.seconds)?;
            let name = contender.name();
            ensure!(delivered_bytes > 0 && !latencies.is_empty(), "{name} has delivered nothing over {link}");
            Report {
                name,
                link,
                goodput_kbit_s: round(
                    delivered_bytes as f64 * 8.0 / 1_000.0 / f64::from(arguments.seconds),
                    0,
                ),
                latency_p50_ms: round(percentile(&mut latencies, 0.5), 1),
                latency_p99_ms: round(percentile(&mut latencies, 0.99), 1),
                overhead_percent: round((datagram_bytes as f64 / delivered_bytes as f64 - 1.0) * 100.0, 2),
                link_used_percent: round(used * 100.0, 1),
                queue_mean_ms: round(queue_mean_ms, 1),
            }
            .print(arguments.json)?;
        }
    }
    Ok(())
}

impl Arguments {
    fn takes(&self, contender: Contender) -> bool {
        if self.only.is_empty() {
            self.controllers || contender.comes_so()
        } else {
            self.only.contains(&contender)
        }
    }
}

impl Contender {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Whether this is what somebody gets who changes nothing.
    fn comes_so(self) -> bool {
        matches!(self, Self::Shadowland | Self::Renet | Self::Quinn)
    }

    fn start(self) -> anyhow::Result<Box<dyn Session>> {
        Ok(match self {
            Self::Shadowland => Box::new(shadowland::start(Congestion::Delay)?),
            Self::ShadowlandLoss => Box::new(shadowland::start(Congestion::Loss)?),
            Self::Renet => Box::new(renet::start()?),
            Self::Quinn => Box::new(quinn::start(quinn::Controller::Cubic)?),
            Self::QuinnNewreno => Box::new(quinn::start(quinn::Controller::NewReno)?),
            Self::QuinnBbr => Box::new(quinn::start(quinn::Controller::Bbr)?),
        })
    }
}

impl Report {
    #[expect(clippy::print_stdout, reason = "the report is what the program is for")]
    fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            println!("{}", serde_json::to_string(self)?);
        } else {
            println!(
                "{:<13} {:<15} {:>6.0} kbit/s  {:>6.1} ms, p99 {:>7.1}  overhead {:>6.2} %  link {:>5.1} %, queue {:>5.1} ms",
                self.link,
                self.name,
                self.goodput_kbit_s,
                self.latency_p50_ms,
                self.latency_p99_ms,
                self.overhead_percent,
                self.link_used_percent,
                self.queue_mean_ms,
            );
        }
        Ok(())
    }
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}
