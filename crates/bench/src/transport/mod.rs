//! What a packet costs the server on real sockets: the kernel alone, this project, and what one would take instead.
//!
//! | contender | what it is |
//! |---|---|
//! | `floor` | `recvmmsg` and `sendmmsg` on one socket, nothing else, in clear |
//! | `shadowland` | the endpoint and the connections of `shadowland-proto` on the same socket |
//! | `renet` | renet with netcode, encrypted; 1,024 clients at the most |
//! | `quinn` | QUIC datagrams |
//! | `enet` | ENet, in clear; 4,095 clients at the most |
//!
//! Every contender has one server thread and as many sockets of clients as there are clients, on the loopback
//! interface. In every tick the clients send [`UP_BYTES`] each, and then the server receives what there is and sends
//! [`DOWN_BYTES`] to each. The two take turns, so that a slow client side does not change what the server does in a
//! tick, only how often. Contenders take turns too, in rounds, and medians are told.

mod enet;
mod floor;
mod lap;
mod quinn;
mod renet;
mod shadowland;
mod sockets;

use anyhow::ensure;
use clap::ValueEnum;
use serde::Serialize;

use crate::clock::percentile;
use lap::Cost;

const TICK_HZ: u32 = 60;
/// Bytes of the game's message to each client, in every tick.
const DOWN_BYTES: usize = 200;
/// Bytes of each client's message, in every tick.
const UP_BYTES: usize = 64;
/// Rounds in which the contenders take turns.
const ROUNDS: u32 = 5;

/// What a packet costs on real sockets.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How many clients are connected.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=4_000))]
    clients: u32,
    /// Seconds that each contender is measured for, in all its rounds together.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Only these contenders, besides the floor.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Contender>,
    /// Print one JSON object a line instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Contender {
    /// The kernel alone.
    Floor,
    /// This project.
    Shadowland,
    /// renet with netcode.
    Renet,
    /// QUIC datagrams.
    Quinn,
    /// ENet.
    Enet,
}

/// A line of the result, as printed with `--json`.
#[derive(Debug, Serialize)]
struct Report {
    name: String,
    clients: u32,
    packets_per_s: f64,
    /// CPU time of the server's thread by datagrams that it sent and received.
    ns_per_packet: f64,
    ratio_to_floor: f64,
    /// CPU time of the server's thread by messages of the game that it sent and received.
    ns_per_message: f64,
    messages_ratio_to_floor: f64,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let contenders: Vec<Contender> =
        Contender::value_variants().iter().copied().filter(|contender| arguments.takes(*contender)).collect();
    let ticks = (arguments.seconds * TICK_HZ / ROUNDS).max(1);
    let mut costs: Vec<Vec<Cost>> = vec![Vec::new(); contenders.len()];
    for _ in 0..ROUNDS {
        for (contender, costs) in contenders.iter().zip(&mut costs) {
            costs.push(contender.measure(arguments.clients as usize, ticks)?);
        }
    }
    for (contender, laps) in contenders.iter().zip(&costs) {
        let report = Report::new(contender.name(), arguments.clients, laps, &costs[0])?;
        report.print(arguments.json)?;
    }
    Ok(())
}

impl Arguments {
    fn takes(&self, contender: Contender) -> bool {
        let asked = self.only.is_empty() || self.only.contains(&contender) || contender == Contender::Floor;
        let most = contender.most_clients();
        if asked && self.clients > most {
            tell(&format!("{} takes {most} clients at the most, and is left out", contender.name()));
        }
        asked && self.clients <= most
    }
}

impl Contender {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn most_clients(self) -> u32 {
        match self {
            Self::Renet => renet::MOST_CLIENTS,
            Self::Enet => enet::MOST_CLIENTS,
            _ => u32::MAX,
        }
    }

    fn measure(self, clients: usize, ticks: u32) -> anyhow::Result<Cost> {
        match self {
            Self::Floor => lap::run(clients, ticks, floor::start(clients)?),
            Self::Shadowland => lap::run(clients, ticks, shadowland::start(clients)?),
            Self::Renet => lap::run(clients, ticks, renet::start(clients)?),
            Self::Quinn => lap::run(clients, ticks, quinn::start(clients)?),
            Self::Enet => lap::run(clients, ticks, enet::start(clients)?),
        }
    }
}

impl Report {
    /// Of the laps of a contender and those of the floor in the same rounds.
    fn new(name: String, clients: u32, laps: &[Cost], floor: &[Cost]) -> anyhow::Result<Self> {
        ensure!(laps.iter().all(|lap| lap.messages > 0), "{name} has moved nothing");
        let median = |value: &dyn Fn(usize) -> f64| {
            percentile(&mut (0..laps.len()).map(value).collect::<Vec<_>>(), 0.5)
        };
        Ok(Self {
            clients,
            packets_per_s: median(&|lap| laps[lap].packets as f64 / laps[lap].wall.as_secs_f64()).round(),
            ns_per_packet: median(&|lap| laps[lap].ns_per_packet()).round(),
            ratio_to_floor: round(median(&|lap| laps[lap].ns_per_packet() / floor[lap].ns_per_packet())),
            ns_per_message: median(&|lap| laps[lap].ns_per_message()).round(),
            messages_ratio_to_floor: round(median(&|lap| {
                laps[lap].ns_per_message() / floor[lap].ns_per_message()
            })),
            name,
        })
    }

    #[expect(clippy::print_stdout, reason = "the report is what the program is for")]
    fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            println!("{}", serde_json::to_string(self)?);
        } else {
            println!(
                "{:<11} {:>8.0} packets/s  {:>6.0} ns a packet, {:>5.2} x the floor  {:>6.0} ns a message, {:>5.2} x",
                self.name,
                self.packets_per_s,
                self.ns_per_packet,
                self.ratio_to_floor,
                self.ns_per_message,
                self.messages_ratio_to_floor,
            );
        }
        Ok(())
    }
}

fn round(ratio: f64) -> f64 {
    (ratio * 1_000.0).round() / 1_000.0
}

#[expect(clippy::print_stderr, reason = "beside the report, which scripts read")]
fn tell(note: &str) {
    eprintln!("note: {note}");
}
