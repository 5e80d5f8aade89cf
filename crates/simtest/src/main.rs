//! Runs seeds of a profile on all cores, and reports those that violate an invariant.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use shadowland_simtest::{Outcome, Violation, lossy, rekey, reliable, replication, run_twice};

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
    #[arg(long, value_enum, default_value_t = Profile::Lossy)]
    profile: Profile,
    /// Seeds that run at the same time; by default as many as there are cores.
    #[arg(long)]
    threads: Option<usize>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Profile {
    /// Replication alone, without the session protocol: random worlds, up to 30 % loss.
    Replication,
    /// The whole server and 4 to 12 clients: 20 % loss, 100 ms +- 50 ms, reordering, duplicates.
    Lossy,
    /// The same with 10 % loss and long sessions: new keys every few hundred packets, and new addresses.
    Rekey,
    /// Reliable messages over random links: exactly once and in order, through blackouts.
    Reliable,
    /// The same for every combination of loss, round-trip time, reordering and duplicates.
    Matrix,
}

/// The result, as printed with `--json`.
#[derive(Debug, Default, Serialize)]
struct Report {
    seeds: u64,
    faults: u64,
    messages: u64,
    rekeys: u64,
    proofs: u64,
    moves: u64,
    violations: u64,
    first_failing_seed: Option<u64>,
}

/// One seed in so many runs a second time: both runs must be the same, to the last byte.
const TWICE_ONE_OF: u64 = 10;

#[expect(clippy::print_stdout, reason = "the report is what the program is for")]
fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let report = run_all(&arguments);
    if arguments.json {
        println!("{}", serde_json::to_string(&report).expect("a report is plain numbers"));
    } else {
        let Report { seeds, faults, messages, rekeys, proofs, moves, violations, .. } = report;
        println!(
            "{seeds} seeds, {messages} packets, {faults} faults injected, {rekeys} rekeys, {proofs} integrity answers, \
             {moves} moves, {violations} violations"
        );
    }
    std::process::ExitCode::from(u8::from(report.violations > 0))
}

fn run_all(arguments: &Arguments) -> Report {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = arguments.threads.unwrap_or(cores).clamp(1, 256);
    let progress = progress_of(arguments.seeds);
    let next = AtomicU64::new(0);
    let report = Mutex::new(Report::default());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= arguments.seeds {
                        return;
                    }
                    let seed = arguments.from + index;
                    let result = run(arguments.profile, seed, index.is_multiple_of(TWICE_ONE_OF));
                    let mut report = report.lock().expect("a run that panics ends the program");
                    report.add(seed, &result);
                    if let Err(violation) = result {
                        progress.suspend(|| complain(arguments.profile, seed, &violation));
                        progress.set_message(format!("{} violations", report.violations));
                    }
                    progress.inc(1);
                }
            });
        }
    });
    progress.finish_and_clear();
    report.into_inner().expect("all threads have ended well")
}

fn run(profile: Profile, seed: u64, twice: bool) -> Result<Outcome, Violation> {
    let run = match profile {
        Profile::Replication => replication::run,
        Profile::Lossy => lossy::run,
        Profile::Rekey => rekey::run,
        Profile::Reliable => reliable::run,
        Profile::Matrix => reliable::run_matrix,
    };
    if twice { run_twice(run, seed) } else { run(seed) }
}

#[expect(clippy::print_stderr, reason = "next to the report on standard output")]
fn complain(profile: Profile, seed: u64, Violation(what): &Violation) {
    let profile = profile.to_possible_value().expect("no profile is hidden");
    eprintln!("seed {seed}: {what}");
    eprintln!(
        "reproduce: cargo run --release -p shadowland-simtest -- --seeds 1 --from {seed} --profile {}",
        profile.get_name()
    );
}

/// Live on a terminal's standard error, nothing elsewhere.
fn progress_of(seeds: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{bar:40} {pos}/{len} seeds  {elapsed} of about {duration}  {msg}");
    ProgressBar::new(seeds).with_style(style.expect("the template is valid"))
}

impl Report {
    fn add(&mut self, seed: u64, result: &Result<Outcome, Violation>) {
        self.seeds += 1;
        match result {
            Ok(outcome) => {
                self.faults += outcome.faults;
                self.messages += outcome.messages;
                self.rekeys += outcome.rekeys;
                self.proofs += outcome.proofs;
                self.moves += outcome.moves;
            }
            Err(_) => {
                self.violations += 1;
                self.first_failing_seed = Some(self.first_failing_seed.map_or(seed, |first| first.min(seed)));
            }
        }
    }
}
