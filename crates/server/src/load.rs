//! Simulated players for a server that runs elsewhere.

use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use shadowland_bots::{Bots, BotsConfig, BotsError, BotsStats};
use thiserror::Error;

/// Players are given so long to join beyond the time in which they all start to connect.
const JOIN_PATIENCE: Duration = Duration::from_secs(20);
/// How often progress is told.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What to show while bots play.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Players in the world.
    pub playing: usize,
    /// Time since all have joined or given up; zero before.
    pub played: Duration,
}

/// What came of it. Rates are of the time in which everybody played.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Players asked for.
    pub players: usize,
    /// Players in the world at the end.
    pub connected: usize,
    /// Datagrams that they received.
    pub packets_in_per_s: f64,
    /// Datagrams that they sent.
    pub packets_out_per_s: f64,
    /// Bytes that they received, without UDP and IP headers.
    pub bytes_in_per_player_per_s: f64,
    /// CPU time of their threads, as a number of busy cores.
    pub bots_cpu_cores: f64,
    /// Players whose session ended before they left.
    pub disconnects: usize,
    /// Players that never got in, messages that could not be read, and errors of sockets.
    pub errors: u64,
    /// Why the last session that ended did.
    #[serde(skip)]
    pub last_end: Option<String>,
    /// How many share a socket, if the limit on open files made them more than they should be.
    #[serde(skip)]
    pub crowded_sockets: Option<usize>,
}

/// Why there is no report.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The bots did not start.
    #[error(transparent)]
    Bots(#[from] BotsError),
    /// Nobody got in.
    #[error("no player got into the world{0}")]
    Nobody(String),
}

/// Lets bots play for so long, counted from when all of them have joined or given up, or until `show` breaks it off: the
/// report is then of what was until then.
///
/// # Errors
/// When they could not be started, or none of them got in.
pub fn run(
    config: BotsConfig,
    seconds: Duration,
    show: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Report, LoadError> {
    let players = config.count;
    let patience = JOIN_PATIENCE + Duration::from_secs_f64(players as f64 / config.connect_per_s);
    let bots = Bots::start(config)?;
    let started = Instant::now();
    let mut goes_on = ControlFlow::Continue(());
    while goes_on.is_continue() {
        let stats = bots.stats();
        if stats.playing + stats.failed + stats.lost >= players || started.elapsed() >= patience {
            break;
        }
        thread::sleep(LOOK_EVERY);
        goes_on = show(&Progress { playing: stats.playing, played: Duration::ZERO });
    }
    let last_end = |bots: &Bots| bots.last_end().map(|end| end.to_string());
    let before = bots.stats();
    if before.playing == 0 && goes_on.is_continue() {
        let why = last_end(&bots).map_or_else(String::new, |end| format!(": {end}"));
        return Err(LoadError::Nobody(why));
    }
    let joined = Instant::now();
    let mut after = before;
    while goes_on.is_continue() && joined.elapsed() < seconds && after.playing > 0 {
        thread::sleep(LOOK_EVERY.min(seconds.saturating_sub(joined.elapsed())));
        after = bots.stats();
        goes_on = show(&Progress { playing: after.playing, played: joined.elapsed() });
    }
    let span = joined.elapsed().as_secs_f64();
    // Of no time at all there is nothing to count either.
    let rate = |count: f64| if count > 0.0 { (count / span * 1_000.0).round() / 1_000.0 } else { 0.0 };
    let per_s = |counter: fn(&BotsStats) -> u64| rate((counter(&after) - counter(&before)) as f64);
    Ok(Report {
        players,
        connected: after.playing,
        packets_in_per_s: per_s(|stats| stats.packets_in),
        packets_out_per_s: per_s(|stats| stats.packets_out),
        bytes_in_per_player_per_s: (per_s(|stats| stats.bytes_in) / after.playing.max(1) as f64).round(),
        bots_cpu_cores: rate((after.cpu - before.cpu).as_secs_f64()),
        disconnects: after.lost,
        errors: after.failed as u64 + after.errors,
        last_end: last_end(&bots),
        crowded_sockets: bots.crowded_sockets(),
    })
}
