//! The demo: a server and simulated players in one process, over real sockets, and what came of it.
//!
//! ```text
//!   join ──▶ warm up ──▶ measure ──▶ freeze everything ──▶ one second of stillness ──▶ compare with the truth
//! ```
//!
//! The figures are differences between two copies of all counters, taken at the beginning and at the end of the
//! measured time, so that connecting and the first full views are not in them. An observer subscribes to every
//! frame of the world: it knows when each entity changed, resolves the samples of the bots to latencies, and
//! sees when the world has come to rest.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rand::SeedableRng;
use rand::rngs::{StdRng, SysRng};
use serde::Serialize;
use shadowland_bots::converged::{self, Mismatch, Sight, Truth};
use shadowland_bots::latency::{Resolver, Sample};
use shadowland_bots::{Bots, BotsConfig, BotsError, BotsStats, NetProfile};
use shadowland_proto::{DropReason, Identity};
use shadowland_wire::entity::{EntityId, EntityType};
use shadowland_world::Frame;
use thiserror::Error;

use crate::config::Config;
use crate::config::settings::MAX_PLAYERS;
use crate::integrity;
use crate::server::{FrameTap, Published, Server, StartError};
use crate::stats::ServerStats;

/// Others that a player has within interest distance on average: the density of the workload `wander`.
const OTHERS_IN_SIGHT: f64 = 50.0;
/// One creature for so many players.
const PLAYERS_PER_CREATURE: usize = 20;
/// Players are given so long to join beyond the time in which they all start to connect.
const JOIN_PATIENCE: Duration = Duration::from_secs(20);
/// How nice the bots' threads are to the server's, 0 to 19: on other machines they would take none of its time.
const BOTS_NICE: i32 = 10;
/// From the last join until figures count: views have filled, round-trip times are known.
const WARM_UP: Duration = Duration::from_secs(2);
/// How long nothing moves before views are compared with the truth.
const STILLNESS: Duration = Duration::from_secs(1);
/// How long the world may take to come to rest once everybody is told to.
const REST_PATIENCE: Duration = Duration::from_secs(10);
/// How often progress is told.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Frames that wait for the observer: a second.
const FRAMES_WAITING: usize = 60;

/// What to run.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// How many players.
    pub players: usize,
    /// For how long figures are taken.
    pub measured: Duration,
    /// Packets a second of each player; 60, 30, 20, 15, 12 or 10.
    pub send_hz: u32,
    /// The bad network that the players play over, if any.
    pub net: Option<NetProfile>,
}

/// How far a demo is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Players are connecting.
    Joining,
    /// Everybody plays, nothing counts yet.
    WarmingUp,
    /// Figures are taken.
    Measuring,
    /// Everything comes to rest.
    Settling,
    /// Views are compared with the truth.
    Comparing,
}

/// What to show while a demo runs.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// What happens now.
    pub phase: Phase,
    /// Players in the world, as their bots know it.
    pub playing: usize,
    /// Time measured so far.
    pub measured: Duration,
    /// Datagrams a second that the server receives, and that it sends, since the last progress.
    pub packets_per_s: (f64, f64),
}

/// What came of a demo: the keys of `docs/PERFORMANCE.md`, "The commands".
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Players asked for.
    pub players: usize,
    /// Players in the world at the end.
    pub connected: usize,
    /// Of those, whose view equalled the server's quantized truth after one second of stillness.
    pub converged: usize,
    /// Ticks a second.
    pub tick_hz: f64,
    /// From the start of a tick until the last datagram that it caused was handed to the kernel, the median.
    pub tick_p50_ms: f64,
    /// The same, 99th percentile.
    pub tick_p99_ms: f64,
    /// Ticks that started more than 1 ms late because earlier work was not done.
    pub tick_overruns: u64,
    /// From the start of the tick in which a value changed until a client that should see it applied it, the
    /// median over a sample of the bots.
    pub update_latency_p50_ms: f64,
    /// The same, 99th percentile.
    pub update_latency_p99_ms: f64,
    /// Datagrams that the server received.
    pub packets_in_per_s: f64,
    /// Datagrams that the server sent.
    pub packets_out_per_s: f64,
    /// Bytes of those, without UDP and IP headers.
    pub bytes_out_per_player_per_s: f64,
    /// CPU time of the server's threads, as a number of busy cores.
    pub server_cpu_cores: f64,
    /// CPU time of the bots' threads, as a number of busy cores.
    pub bots_cpu_cores: f64,
    /// Players whose session ended before they left.
    pub disconnects: usize,
    /// Players that never got in, messages that one side could not read, datagrams that cannot be on a healthy
    /// network, and errors of sockets.
    pub errors: u64,
    /// What else a reader of the figures should know; not among the keys.
    #[serde(skip)]
    pub notes: Vec<String>,
}

impl Report {
    /// Whether everybody was in, stayed, and saw the truth.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.connected == self.players && self.converged == self.players && self.disconnects == 0
    }
}

/// Why there is no report.
#[derive(Debug, Error)]
pub enum DemoError {
    /// So many players cannot be.
    #[error("a demo with {players} players cannot be: {reason}")]
    Players {
        /// As asked for.
        players: usize,
        /// What is wrong.
        reason: String,
    },
    /// The server did not start.
    #[error(transparent)]
    Server(#[from] StartError),
    /// The bots did not start.
    #[error(transparent)]
    Bots(#[from] BotsError),
    /// The system has no randomness.
    #[error("the system has no randomness for keys")]
    Randomness,
    /// Nobody got in.
    #[error("no player got into the world{0}")]
    Nobody(String),
    /// A thread of the server panicked.
    #[error("a thread of the server has ended; the message above says why")]
    ServerFailed,
}

/// Runs a demo on a server with this configuration, changed to the demo's needs: it listens on a free port of
/// the loopback interface, has room for the players, and a map on which they stand as densely as in `wander`.
///
/// When `show` breaks it off, the figures are of what was measured until then. If that is nothing, they are zero, and views
/// are not compared.
///
/// # Errors
/// When it could not be run; how well it went is what the report says.
pub fn run(
    config: Config,
    options: &DemoOptions,
    show: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Report, DemoError> {
    let config = adapt(config, options.players)?;
    let checks = config.security.integrity.as_ref();
    let tables =
        checks.map(|checks| integrity::load_tables(&checks.tables)).transpose().map_err(StartError::from)?;
    let mut rng = StdRng::try_from_rng(&mut SysRng).map_err(|_| DemoError::Randomness)?;
    let server = Server::start(config, Identity::generate(&mut rng))?;
    let tap = server.frame_tap(FRAMES_WAITING);
    let bots = Bots::start(BotsConfig {
        send_hz: options.send_hz,
        net: options.net,
        integrity: tables.map(|tables| Arc::clone(tables.newest())),
        sample: true,
        nice: BOTS_NICE,
        ..BotsConfig::new(server.local_addr(), server.public_key(), options.players)
    })?;
    let observed = Observed::default();
    let demo = Demo { server: &server, bots: &bots, observed: &observed, options };
    let (report, missed) = thread::scope(|scope| {
        let observer = scope.spawn(|| demo.observed.follow(tap, demo.bots));
        let report = demo.measure(show);
        observed.stop.store(true, Ordering::Relaxed);
        (report, observer.join())
    });
    drop(bots);
    server.shutdown();
    let mut report = report?;
    // A panic of the observer was told where it happened.
    let missed = missed.unwrap_or(u64::MAX);
    if missed > 0 {
        report.notes.push(format!(
            "{missed} frames were missed by the observer: latencies around them are not counted"
        ));
    }
    Ok(report)
}

/// The configuration that a demo of so many players runs with: on a free port of the loopback interface, with room
/// for the players, and a map on which they stand as densely as in `wander`.
///
/// # Errors
/// When so many cannot be.
pub fn adapt(mut config: Config, players: usize) -> Result<Config, DemoError> {
    if players as u64 > MAX_PLAYERS {
        let reason = format!("a server has at most {MAX_PLAYERS}");
        return Err(DemoError::Players { players, reason });
    }
    let world = &mut config.world;
    let distance = world.distance_cm(EntityType::Player);
    world.set_density(players, OTHERS_IN_SIGHT, distance);
    world.npcs = players / PLAYERS_PER_CREATURE;
    world.player_capacity = players;
    world.entity_capacity = world.entity_capacity.max(players + world.npcs);
    config.session.max_players = players;
    config.network.listen = ([127, 0, 0, 1], 0).into();
    config.world.check().map_err(|problem| DemoError::Players { players, reason: problem.to_string() })?;
    Ok(config)
}

/// A running demo.
struct Demo<'a> {
    server: &'a Server,
    bots: &'a Bots,
    observed: &'a Observed,
    options: &'a DemoOptions,
}

/// All counters at one moment.
struct Moment {
    at: Instant,
    server: ServerStats,
    bots: BotsStats,
}

impl Demo<'_> {
    fn measure(&self, show: &mut dyn FnMut(&Progress) -> ControlFlow<()>) -> Result<Report, DemoError> {
        let mut shown = self.moment();
        let mut look = |phase, measured| -> Result<ControlFlow<()>, DemoError> {
            if self.server.has_failed() {
                return Err(DemoError::ServerFailed);
            }
            thread::sleep(LOOK_EVERY);
            let now = self.moment();
            let goes_on = show(&progress(phase, measured, &shown, &now));
            shown = now;
            Ok(goes_on)
        };

        let connecting = BotsConfig::new(self.server.local_addr(), [0; 32], 0).connect_per_s;
        let patience = JOIN_PATIENCE + Duration::from_secs_f64(self.options.players as f64 / connecting);
        let started = Instant::now();
        while !self.everybody_is_in() && started.elapsed() < patience {
            if look(Phase::Joining, Duration::ZERO)?.is_break() {
                return Ok(self.report_of_nothing());
            }
        }
        if self.bots.stats().playing == 0 {
            let why = self.bots.last_end().map_or_else(String::new, |end| format!(": {end}"));
            return Err(DemoError::Nobody(why));
        }
        let joined = Instant::now();
        while joined.elapsed() < WARM_UP {
            if look(Phase::WarmingUp, Duration::ZERO)?.is_break() {
                return Ok(self.report_of_nothing());
            }
        }

        let before = self.moment();
        self.observed.state().resolver.count_from(self.bots.time_of(before.at));
        while before.at.elapsed() < self.options.measured {
            if look(Phase::Measuring, before.at.elapsed())?.is_break() {
                break;
            }
        }
        let after = self.moment();
        let measured = after.at - before.at;
        self.observed.state().resolver.count_until(self.bots.time_of(after.at));

        self.bots.freeze(true);
        self.server.pause_creatures(true);
        let frozen = Instant::now();
        while !self.observed.is_at_rest_since(frozen) && frozen.elapsed() < REST_PATIENCE {
            // Whoever breaks it off now has a report as soon as there is one.
            let _ = look(Phase::Settling, measured)?;
        }
        let _ = look(Phase::Comparing, measured)?;
        let views = self.compare();
        Ok(self.report(&before, &after, &views))
    }

    /// When it was broken off before anything was measured.
    fn report_of_nothing(&self) -> Report {
        let now = self.moment();
        self.report(&now, &now, &[])
    }

    fn moment(&self) -> Moment {
        Moment { at: Instant::now(), server: self.server.stats(), bots: self.bots.stats() }
    }

    fn everybody_is_in(&self) -> bool {
        let stats = self.bots.stats();
        stats.playing + stats.failed + stats.lost >= self.options.players
    }

    /// Compares the view of every bot that plays with the latest frame.
    fn compare(&self) -> Vec<Result<(), Mismatch>> {
        let Some(frame) = self.observed.state().latest.clone() else { return Vec::new() };
        let truth = Truth::new(frame.all_pages().flat_map(|page| page.rows()).map(|row| row.record));
        let views = self.bots.inspect(move |session| {
            let own = session.welcome().filter(|_| !session.is_over())?.entity;
            Some(converged::check(session.replica(), own, &truth, |kind| sight(&frame, kind)))
        });
        views.into_iter().filter_map(|(_, view)| view).collect()
    }

    fn report(&self, before: &Moment, after: &Moment, views: &[Result<(), Mismatch>]) -> Report {
        // Of no time at all everything is zero, and not unknown.
        let seconds = (after.at - before.at).as_secs_f64().max(f64::MIN_POSITIVE);
        let per_s = |counter: fn(&ServerStats) -> u64| {
            (counter(&after.server) - counter(&before.server)) as f64 / seconds
        };
        let cores = |after: Duration, before: Duration| (after - before).as_secs_f64() / seconds;
        let durations = since(&before.server.ticks.duration_us, &after.server.ticks.duration_us);
        let tick_ms = |quantile| durations.value_at_quantile(quantile) as f64 / 1_000.0;
        let bots = self.bots.stats();
        let observed = self.observed.state();
        let resolver = &observed.resolver;
        Report {
            players: self.options.players,
            connected: bots.playing,
            converged: views.iter().filter(|view| view.is_ok()).count(),
            tick_hz: rounded(per_s(|stats| stats.ticks.ticks)),
            tick_p50_ms: rounded(tick_ms(0.5)),
            tick_p99_ms: rounded(tick_ms(0.99)),
            tick_overruns: after.server.ticks.overruns - before.server.ticks.overruns,
            update_latency_p50_ms: rounded(resolver.percentile_ms(50.0)),
            update_latency_p99_ms: rounded(resolver.percentile_ms(99.0)),
            packets_in_per_s: rounded(per_s(|stats| stats.sum(|worker| worker.datagrams_in))),
            packets_out_per_s: rounded(per_s(|stats| stats.sum(|worker| worker.datagrams_out))),
            bytes_out_per_player_per_s: rounded(
                per_s(|stats| stats.sum(|worker| worker.bytes_out)) / bots.playing.max(1) as f64,
            ),
            server_cpu_cores: rounded(cores(after.server.cpu(), before.server.cpu())),
            bots_cpu_cores: rounded(cores(after.bots.cpu, before.bots.cpu)),
            disconnects: bots.lost,
            errors: bots.failed as u64 + bots.errors + server_errors(&self.server.stats()),
            notes: self.notes(resolver, before, after, views),
        }
    }

    /// What a reader of the figures should know besides.
    fn notes(
        &self,
        resolver: &Resolver,
        before: &Moment,
        after: &Moment,
        views: &[Result<(), Mismatch>],
    ) -> Vec<String> {
        let mut notes =
            vec![format!("update latencies are of {} changes that sampled players saw", resolver.count())];
        let latencies = &after.server.latencies;
        let before_latencies = &before.server.latencies;
        notes.push(format!(
            "datagrams were in the world's queue within {} and frames with their last datagram in the kernel within \
             {} ms (p50, p99)",
            between(&before_latencies.receive_us, &latencies.receive_us),
            between(&before_latencies.send_us, &latencies.send_us),
        ));
        notes.push(self.server.sockets().to_string());
        if let Some(bots) = self.bots.crowded_sockets() {
            notes.push(crowded(bots));
        }
        let mut tell = |count: u64, what: &str| {
            if count > 0 {
                notes.push(format!("{count} {what}"));
            }
        };
        tell(resolver.unresolved(), "samples reach back farther than changes are remembered");
        tell(self.bots.stats().samples_dropped, "samples were dropped, because too many waited");
        tell(
            after.bots.turns_missed - before.bots.turns_missed,
            "turns of players were missed: the bots are overloaded",
        );
        tell(after.bots.unsent - before.bots.unsent, "datagrams of players found no room in the kernel");
        tell(
            after.server.sum(|worker| worker.sessions_deferred)
                - before.server.sum(|worker| worker.sessions_deferred),
            "turns of players were put off to the next tick: the server's workers are overloaded",
        );
        tell(
            after.server.sum(|worker| worker.blocked) - before.server.sum(|worker| worker.blocked),
            "times the server's sockets were full",
        );
        tell(
            after.server.sum(|worker| worker.passing_dropped)
                - before.server.sum(|worker| worker.passing_dropped),
            "datagrams to the server found their way to its worker full",
        );
        tell(
            after.server.sum(|worker| worker.kernel_drops) - before.server.sum(|worker| worker.kernel_drops),
            "datagrams to the server were dropped by the kernel: raise network.recv_buffer_bytes and \
             net.core.rmem_max",
        );
        let wrong: Vec<_> = views.iter().filter_map(|view| view.as_ref().err()).collect();
        if let Some(first) = wrong.first() {
            notes.push(format!("{} players do not see the truth; the first: {first}", wrong.len()));
        }
        if let Some(end) = self.bots.last_end() {
            notes.push(format!("the last session that ended: {end}"));
        }
        notes
    }
}

/// That too few files may be open, and what helps.
#[must_use]
pub fn crowded(bots: usize) -> String {
    format!(
        "up to {bots} players share a socket, because no more files may be open; raise the limit (ulimit -n) for \
         figures that compare"
    )
}

/// What a histogram has seen since an earlier copy of it.
fn since(before: &Histogram<u64>, after: &Histogram<u64>) -> Histogram<u64> {
    let mut since = after.clone();
    since.subtract(before).expect("it was a part of it, with the same bounds");
    since
}

/// Median and 99th percentile in milliseconds of what was recorded meanwhile in microseconds.
fn between(before: &Histogram<u64>, after: &Histogram<u64>) -> String {
    let since = since(before, after);
    let ms = |quantile| since.value_at_quantile(quantile) as f64 / 1_000.0;
    format!("{:.2}, {:.2}", ms(0.5), ms(0.99))
}

fn progress(phase: Phase, measured: Duration, before: &Moment, now: &Moment) -> Progress {
    let seconds = (now.at - before.at).as_secs_f64();
    let per_s = |counter: fn(&ServerStats) -> u64| {
        counter(&now.server).saturating_sub(counter(&before.server)) as f64 / seconds
    };
    Progress {
        phase,
        playing: now.bots.playing,
        measured,
        packets_per_s: (
            per_s(|stats| stats.sum(|worker| worker.datagrams_in)),
            per_s(|stats| stats.sum(|worker| worker.datagrams_out)),
        ),
    }
}

/// How far entities of a type must be seen, and may be seen: a subscribed cell's nearest point is within the
/// distance, the slack by which subscriptions reach farther (twice: the viewer may have moved by as much since)
/// and their hysteresis; its farthest point is a diagonal beyond; and its members may be two steps outside.
fn sight(frame: &Frame, kind: EntityType) -> Sight {
    let layer = frame.layers().of(kind);
    let allowance = layer.cell_diagonal() + f64::from(layer.cell_edge()) / 4.0 + 4.0;
    Sight { distance: f64::from(layer.distance()), allowance }
}

/// What cannot happen between healthy programs on one machine.
fn server_errors(stats: &ServerStats) -> u64 {
    const WRONG: [DropReason; 8] = [
        DropReason::TooLarge,
        DropReason::NotProtocol,
        DropReason::BadCookie,
        DropReason::HandshakeFailed,
        DropReason::NotSealed,
        DropReason::BadTag,
        DropReason::Malformed,
        DropReason::TooManyMessages,
    ];
    let dropped = |reason| stats.sum(|worker| worker.dropped.by(reason));
    WRONG.into_iter().map(dropped).sum::<u64>() + stats.sum(|worker| worker.bad_messages)
}

/// To a thousandth.
fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

/// What the observer has seen.
#[derive(Default)]
struct Observed {
    state: Mutex<ObservedState>,
    stop: AtomicBool,
}

#[derive(Default)]
struct ObservedState {
    resolver: Resolver,
    latest: Option<Arc<Frame>>,
    /// Start of the last tick that changed anything.
    changed_at: Option<Instant>,
}

impl Observed {
    fn state(&self) -> MutexGuard<'_, ObservedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the world until told to stop; returns how many frames it missed.
    fn follow(&self, tap: FrameTap, bots: &Bots) -> u64 {
        let (mut changed, mut samples): (Vec<EntityId>, Vec<Sample>) = (Vec::new(), Vec::new());
        while !self.stop.load(Ordering::Relaxed) {
            let Some(Published { frame, tick_started }) = tap.next_timeout(LOOK_EVERY) else { continue };
            let tick = frame.tick();
            let rows = frame.all_pages().flat_map(|page| page.rows());
            changed.clear();
            changed.extend(rows.filter(|row| row.changed.contains(&tick)).map(|row| row.record.id));
            bots.drain_samples(&mut samples);

            let mut state = self.state();
            state.resolver.tick(tick, bots.time_of(tick_started), changed.iter().copied());
            for sample in samples.drain(..) {
                state.resolver.sample(sample);
            }
            if !changed.is_empty() {
                state.changed_at = Some(tick_started);
            }
            state.latest = Some(frame);
        }
        tap.missed()
    }

    /// Whether nothing has changed for a second, all of it after `since`.
    fn is_at_rest_since(&self, since: Instant) -> bool {
        let changed_at = self.state().changed_at.map_or(since, |changed| changed.max(since));
        changed_at.elapsed() >= STILLNESS
    }
}
