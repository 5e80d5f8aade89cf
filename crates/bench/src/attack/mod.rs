//! What attackers can do to a running server: each scenario beside real players, and beside real logins.
//!
//! ```text
//!   server and players ──▶ control: logins ──▶ attack: the same logins, and the attacker ──▶ judge
//! ```
//!
//! Server, players and attacker share the machine and one process, over the loopback interface. The players' threads
//! are niced, and the attacker's one further: on a network it would take none of the server's processor time, and its
//! datagrams would. The server's limits hold for loopback addresses here, each /24 of which
//! is a network of its own; else its configuration is the default one.

mod attacker;
mod guest;
mod handshakes;
mod logins;
mod sessions;
mod stage;

use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use crate::clock::percentile;
use attacker::{Attack, Attacker, Taken};
use logins::Logins;
use stage::{Figures, Stage};

/// What attackers can do to a running server; fails when one of them does harm.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Which attack.
    #[arg(long, value_enum, default_value_t = Scenario::All)]
    scenario: Scenario,
    /// Players beside whom it runs.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    players: u32,
    /// Seconds of the attack, and of the control run before it.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..=3_600))]
    seconds: u32,
    /// Most datagrams a second of the attacker; by default what its thread can send.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Print one JSON object a line instead of text.
    #[arg(long)]
    json: bool,
}

/// An attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// All of the others, one after the other.
    All,
    /// Connect from many addresses whose cookies never come back, as if they were forged.
    ConnectFlood,
    /// ConnectRequest with cookies of the right time and a wrong tag.
    BadCookies,
    /// Cookies from other addresses and other times, and a good request over and over.
    ReplayedCookies,
    /// Requests with good cookies and forged login tokens, to a server that asks for tokens.
    BadTokens,
    /// Disconnect, Ack and Pong of others' sessions, without their keys.
    ForgedPackets,
    /// Real packets of a player, from everywhere.
    ReplayedPackets,
    /// A player whose client sends inputs as fast as it can.
    NoisyPackets,
    /// A player whose packets are full of requests and reliable messages.
    NoisyMessages,
    /// Sessions that are asked for and never confirmed.
    HalfOpen,
}

/// What came of a scenario.
#[derive(Debug, Serialize)]
struct Report {
    scenario: String,
    /// Datagrams that the attacker's kernel took.
    attack_packets_per_s: f64,
    /// Players who lost their session, or did not play at the end.
    players_dropped: usize,
    /// From the start of a tick until its last datagram was handed to the kernel.
    tick_p99_ms: f64,
    /// The same, before the attack.
    tick_p99_ms_control: f64,
    /// From a client's first datagram until its player is in the world; who does not get in counts with 10 s,
    /// for which a client tries.
    login_p95_ms: f64,
    /// The process at its largest, less what it was before the attack.
    memory_growth_mib: f64,
    /// Bytes that the attacker's addresses got, by those that the server got of them.
    amplification: f64,
    /// For people; not among the keys.
    #[serde(skip)]
    notes: String,
}

impl Report {
    /// What is worse than it may be.
    fn failures(&self) -> Vec<&'static str> {
        [
            (self.players_dropped > 0, "players were dropped"),
            (self.amplification > 1.0, "the server amplifies"),
            (self.memory_growth_mib >= 16.0, "memory grows by 16 MiB or more"),
            (self.tick_p99_ms >= 16.67, "ticks take longer than their time"),
            (self.login_p95_ms >= 3_000.0, "logins take 3 s or longer"),
        ]
        .into_iter()
        .filter_map(|(failed, what)| failed.then_some(what))
        .collect()
    }
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the reports are what the program is for")]
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let scenarios: Vec<_> = match arguments.scenario {
        Scenario::All => {
            Scenario::value_variants().iter().copied().filter(|one| *one != Scenario::All).collect()
        }
        one => vec![one],
    };
    let mut failed = Vec::new();
    for scenario in scenarios {
        eprintln!("{}: {} s without it, {} s with it", scenario.name(), arguments.seconds, arguments.seconds);
        let report = play(scenario, arguments)?;
        if arguments.json {
            println!("{}", serde_json::to_string(&report)?);
            eprintln!("{}", report.notes);
        } else {
            print_text(&report);
        }
        if !report.failures().is_empty() {
            failed.push(format!("{}: {}", report.scenario, report.failures().join(", ")));
        }
    }
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the reports are what the program is for")]
fn print_text(report: &Report) {
    println!("{}: {:.0} datagrams/s", report.scenario, report.attack_packets_per_s);
    println!("  players      {} dropped", report.players_dropped);
    println!("  tick p99     {:.2} ms, without {:.2} ms", report.tick_p99_ms, report.tick_p99_ms_control);
    println!("  login p95    {:.0} ms", report.login_p95_ms);
    println!("  memory       {:+.1} MiB", report.memory_growth_mib);
    println!("  amplified    {:.3}", report.amplification);
    println!("  {}", report.notes);
}

/// Runs a scenario: the control run, and then the attack, on a server of its own.
fn play(scenario: Scenario, arguments: &Arguments) -> anyhow::Result<Report> {
    let span = Duration::from_secs(arguments.seconds.into());
    let stage = Stage::start(arguments.players as usize, scenario == Scenario::BadTokens)?;
    let control = stage.watch(span, Logins::new(&stage, 15))?;
    // Its buffers, keys and requests are made before the memory is looked at.
    let attacker = Attacker::new(scenario.attack(&stage)?, stage.address(), arguments.rate)?;
    let logins = Logins::new(&stage, 16);
    let (during, taken) = thread::scope(|scope| {
        let attacking = scope.spawn(|| attacker.run(stage.clock, &stage.stop));
        let during = stage.watch(span, logins);
        stage.end_attack();
        (during, attacking.join())
    });
    let taken = taken.map_err(|_| anyhow::anyhow!("the attacker has panicked"))??;
    let dropped = stage.dropped() + taken.dropped;
    Ok(report(scenario, dropped, control, during?, &taken))
}

fn report(scenario: Scenario, dropped: usize, control: Figures, during: Figures, taken: &Taken) -> Report {
    // What the server's kernel dropped, the server did not get; all of it is taken for the attacker's.
    let mean = taken.sent_bytes as f64 / taken.sent.max(1) as f64;
    let arrived = (taken.sent_bytes as f64 - during.kernel_drops as f64 * mean).max(1.0);
    let mut logins = during.logins_ms.clone();
    let notes = format!(
        "{} logins, median {:.0} ms (without {:.0} ms); server {:.2} cores (without {:.2}); {} ticks late; the \
         kernel dropped {} datagrams to the server; dropped by reason: {}",
        logins.len(),
        percentile(&mut logins, 0.5),
        percentile(&mut control.logins_ms.clone(), 0.5),
        during.server_cores,
        control.server_cores,
        during.overruns,
        during.kernel_drops,
        during.reasons,
    );
    Report {
        scenario: scenario.name(),
        attack_packets_per_s: rounded(taken.sent as f64 / taken.time.as_secs_f64()),
        players_dropped: dropped,
        tick_p99_ms: rounded(during.tick_p99_ms),
        tick_p99_ms_control: rounded(control.tick_p99_ms),
        login_p95_ms: rounded(percentile(&mut logins, 0.95)),
        memory_growth_mib: rounded(during.memory_growth_bytes as f64 / f64::from(1 << 20)),
        amplification: rounded(taken.answered_bytes as f64 / arrived),
        notes,
    }
}

/// To a thousandth.
fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

impl Scenario {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn attack(self, stage: &Stage) -> anyhow::Result<Box<dyn Attack>> {
        Ok(match self {
            Self::All => anyhow::bail!("not an attack of its own"),
            Self::ConnectFlood => Box::new(handshakes::ConnectFlood::new(stage)?),
            Self::BadCookies => Box::new(handshakes::BadCookies::new(stage)?),
            Self::ReplayedCookies => Box::new(handshakes::ReplayedCookies::new(stage)?),
            Self::BadTokens => Box::new(handshakes::BadTokens::new(stage)?),
            Self::ForgedPackets => Box::new(sessions::ForgedPackets::new(stage)),
            Self::ReplayedPackets => Box::new(sessions::ReplayedPackets::new(stage)?),
            Self::NoisyPackets => Box::new(sessions::NoisyPackets::new(stage)?),
            Self::NoisyMessages => Box::new(sessions::NoisyMessages::new(stage)?),
            Self::HalfOpen => Box::new(handshakes::HalfOpen::new(stage)?),
        })
    }
}
