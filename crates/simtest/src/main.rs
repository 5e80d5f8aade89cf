//! Runs seeds of a profile until one violates an invariant, or all have run.

use clap::{Parser, ValueEnum};
use serde::Serialize;
use shadowland_simtest::{Outcome, Violation, replication};

/// Whole server and many clients under virtual time and a bad network.
#[derive(Debug, Parser)]
#[command(name = "shadowland-simtest", version)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// What to simulate.
    #[arg(long, value_enum, default_value_t = Profile::Replication)]
    profile: Profile,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Profile {
    /// Replication alone, without the session protocol: random worlds, up to 30 % loss.
    Replication,
}

/// The result, as printed with `--json`.
#[derive(Debug, Default, Serialize)]
struct Report {
    seeds: u64,
    faults: u64,
    messages: u64,
    violations: u64,
    first_failing_seed: Option<u64>,
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the report is what the program is for")]
fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let mut report = Report::default();
    for seed in arguments.from..arguments.from + arguments.seeds {
        report.seeds += 1;
        match run(arguments.profile, seed) {
            Ok(outcome) => {
                report.faults += outcome.faults;
                report.messages += outcome.messages;
            }
            Err(Violation(what)) => {
                report.violations += 1;
                if report.first_failing_seed.is_none() {
                    report.first_failing_seed = Some(seed);
                }
                let profile = arguments.profile.to_possible_value().expect("no profile is hidden");
                eprintln!("seed {seed}: {what}");
                eprintln!(
                    "reproduce: cargo run --release -p shadowland-simtest -- --seeds 1 --from {seed} --profile {}",
                    profile.get_name()
                );
            }
        }
    }
    if arguments.json {
        println!("{}", serde_json::to_string(&report).expect("a report is plain numbers"));
    } else {
        let Report { seeds, faults, messages, violations, .. } = report;
        println!("{seeds} seeds, {messages} packets, {faults} faults injected, {violations} violations");
    }
    std::process::ExitCode::from(u8::from(report.violations > 0))
}

fn run(profile: Profile, seed: u64) -> Result<Outcome, Violation> {
    match profile {
        Profile::Replication => replication::run(seed),
    }
}
