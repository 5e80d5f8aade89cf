//! What each command does.

#[cfg(unix)]
use std::fs::File;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use rand::rngs::{StdRng, SysRng};
use rand::{Rng, SeedableRng};
use shadowland_bots::BotsConfig;
use shadowland_proto::{IntegrityTable, KEY_LOG_VARIABLE, KeyLog, LoginToken, TokenSigner};
use shadowland_server::cli::{BotsArgs, ConfigArgs, DemoArgs, IntegrityCommand, PrintArgs, TokenCommand};
use shadowland_server::config::{Auth, Config};
use shadowland_server::demo::{self, DemoOptions};
use shadowland_server::identity::{self, PublicKey};
use shadowland_server::integrity;
use shadowland_server::load;
use shadowland_server::server::Server;
use shadowland_server::tokens;

use crate::progress::{self, Line};
use crate::summary::Summary;

/// How often a running server is looked after.
const LOOK_AFTER: Duration = Duration::from_millis(500);

/// Why a command did not do what it should.
pub(crate) struct Failure {
    pub(crate) error: anyhow::Error,
    pub(crate) exit_code: u8,
}

/// Something went wrong on the way.
impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { error: error.into(), exit_code: 1 }
    }
}

/// What the user has to set right before it can start.
fn not_started(error: impl Into<anyhow::Error>) -> Failure {
    Failure { error: error.into(), exit_code: 2 }
}

/// Prints the effective configuration, or writes it to a file.
pub(crate) fn config(args: &PrintArgs) -> Result<(), Failure> {
    if let Some(file) = args.config.file().filter(|file| args.output.is_none() && is_stdout(file)) {
        let file = file.display();
        return Err(not_started(anyhow!(
            "{file}: it cannot be read, for it is where the output goes, and a shell empties it or adds to it; use \
             `shadowland config --output {file}`"
        )));
    }
    let text = args.config.load().map_err(not_started)?.to_toml();
    match &args.output {
        Some(file) => identity::replace_file(file, text.as_bytes())
            .with_context(|| format!("{}: cannot write the configuration", file.display()))?,
        None => stdout().lock().write_all(text.as_bytes())?,
    }
    Ok(())
}

/// Whether standard output was directed into this file.
#[cfg(unix)]
fn is_stdout(file: &Path) -> bool {
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;
    let stdout = stdout().as_fd().try_clone_to_owned().map(File::from);
    match (stdout.and_then(|stdout| stdout.metadata()), file.metadata()) {
        (Ok(one), Ok(other)) => one.is_file() && (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_stdout(_file: &Path) -> bool {
    false
}

/// Hears of the first SIGINT or SIGTERM, which is to be heeded; a second one ends the process at once.
fn stop_signals() -> anyhow::Result<Receiver<()>> {
    let (stop, stopped) = mpsc::channel();
    let mut asked = false;
    ctrlc::set_handler(move || {
        if asked {
            std::process::exit(130);
        }
        asked = true;
        // The receiver is gone only when the process is about to end anyway.
        let _ = stop.send(());
    })
    .context("cannot listen for signals")?;
    Ok(stopped)
}

/// Breaks a run off when a signal asks for it, and tells how much of it there was.
struct Early {
    stopped: Receiver<()>,
    was_stopped: bool,
    measured: Duration,
}

impl Early {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { stopped: stop_signals()?, was_stopped: false, measured: Duration::ZERO })
    }

    /// Whether to go on, when so much was measured.
    fn look(&mut self, measured: Duration) -> ControlFlow<()> {
        self.measured = measured;
        self.was_stopped |= self.stopped.try_recv().is_ok();
        if self.was_stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn tell(&self, whole: Duration) -> std::io::Result<()> {
        if self.was_stopped && self.measured < whole {
            let (measured, whole) = (self.measured.as_secs_f64(), whole.as_secs());
            writeln!(stderr().lock(), "ended early: the report is of {measured:.1} of {whole} s")?;
        }
        Ok(())
    }
}

/// Serves until SIGINT or SIGTERM; a second one ends the process at once.
pub(crate) fn serve(args: &ConfigArgs) -> Result<(), Failure> {
    let mut config = args.load().map_err(not_started)?.config();
    config.security.key_log = key_log_path();
    start_logging(&config);
    let stopped = stop_signals()?;
    let mut rng = StdRng::try_from_rng(&mut SysRng).context("no randomness from the system")?;
    let identity = identity::load_or_create(&config.data_dir, &mut rng).map_err(not_started)?;
    if config.security.auth == Auth::Open {
        tracing::warn!("anybody can join: security.auth is \"open\"");
    }
    let server = Server::start(config, identity).map_err(not_started)?;
    announce(&server)?;

    let mut summary = Summary::default();
    while stopped.recv_timeout(LOOK_AFTER) == Err(RecvTimeoutError::Timeout) {
        summary.look(Instant::now(), &server.worker_stats());
        if server.has_failed() {
            return Err(anyhow!("a thread of the server has ended; the message above says why").into());
        }
    }
    tracing::info!(players = server.stats().players(), "stopping");
    let stats = server.shutdown();
    tracing::info!(
        snapshots = stats.sum(|worker| worker.snapshots),
        snapshots_reduced = stats.sum(|worker| worker.snapshots_reduced),
        sessions_deferred = stats.sum(|worker| worker.sessions_deferred),
        "stopped"
    );
    Ok(())
}

/// Sends simulated players to a running server.
pub(crate) fn bots(args: &BotsArgs) -> Result<(), Failure> {
    let players = args.count as usize;
    let table =
        args.integrity_table.as_deref().map(integrity::load_table).transpose().map_err(not_started)?;
    let key_log = key_log_path();
    if let Some(path) = &key_log {
        writeln!(
            stderr().lock(),
            "the keys of all sessions are logged in {} ({KEY_LOG_VARIABLE})",
            path.display()
        )?;
    }
    let key_log = key_log.as_deref().map(KeyLog::append).transpose();
    let key_log =
        key_log.with_context(|| format!("cannot log keys ({KEY_LOG_VARIABLE})")).map_err(not_started)?;
    let bots = BotsConfig {
        key_log: key_log.map(Arc::new),
        send_hz: args.send_hz,
        net: args.net,
        integrity: table.map(Arc::new),
        ..BotsConfig::new(args.server, args.server_key.0, players)
    };
    let time = Duration::from_secs(args.seconds.into());
    let mut early = Early::new()?;
    let line = Line::new(time);
    let report = load::run(bots, time, &mut |progress| {
        line.show_bots(progress, players);
        early.look(progress.played)
    })?;
    drop(line);
    early.tell(time)?;
    let mut out = stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        progress::print_bots(&mut out, &report)?;
    }
    if report.connected < players {
        return Err(anyhow!("not all players were in the world at the end").into());
    }
    Ok(())
}

/// Makes a key for login tokens, or a token.
pub(crate) fn token(command: &TokenCommand) -> Result<(), Failure> {
    let mut rng = StdRng::try_from_rng(&mut SysRng).context("no randomness from the system")?;
    let mut out = stdout().lock();
    match command {
        TokenCommand::Keygen { out: path } => {
            let signer = TokenSigner::generate(&mut rng);
            tokens::keep_signer(path, &signer).map_err(not_started)?;
            writeln!(out, "{}", PublicKey(signer.public_key()))?;
        }
        TokenCommand::Issue { key, client_key, account, seconds } => {
            let signer = tokens::load_signer(key).map_err(not_started)?;
            let issued_s =
                SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is wrong")?.as_secs();
            let mut id = [0; 16];
            rng.fill_bytes(&mut id);
            let token = LoginToken {
                id,
                account: *account,
                issued_s,
                expires_s: issued_s + seconds,
                client_key: client_key.0,
            };
            for byte in signer.issue(&token) {
                write!(out, "{byte:02x}")?;
            }
            writeln!(out)?;
        }
    }
    Ok(())
}

/// Makes a table of integrity keys.
pub(crate) fn integrity(command: &IntegrityCommand) -> Result<(), Failure> {
    let IntegrityCommand::Generate { client_version, out: path } = command;
    let mut rng = StdRng::try_from_rng(&mut SysRng).context("no randomness from the system")?;
    let table = IntegrityTable::generate(*client_version, &mut rng);
    integrity::keep_table(path, &table).map_err(not_started)?;
    let path = path.display();
    writeln!(stdout().lock(), "{path}: the keys of client version {client_version}")?;
    Ok(())
}

/// Runs server and simulated players in one process. Fails when not everybody was in, stayed and saw the truth.
pub(crate) fn demo(args: &DemoArgs) -> Result<(), Failure> {
    let effective = args.config.load().map_err(not_started)?;
    let mut config = effective.config();
    config.security.key_log = key_log_path();
    let says_nothing = config.log_filter == Config::default().log_filter;
    if says_nothing && !effective.is_set_for_this_run("server.log") {
        // The progress and the report say it all.
        config.log_filter = "warn".to_owned();
    }
    start_logging(&config);
    let players = args.players as usize;
    let measured = Duration::from_secs(args.seconds.into());
    let line = Line::new(measured);
    let options = DemoOptions { players, measured, send_hz: args.send_hz, net: args.net };
    let mut early = Early::new()?;
    let report = demo::run(config, &options, &mut |progress| {
        line.show_demo(progress, players);
        early.look(progress.measured)
    })?;
    drop(line);
    early.tell(measured)?;
    let mut out = stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
        for note in &report.notes {
            writeln!(stderr().lock(), "note: {note}")?;
        }
    } else {
        progress::print_demo(&mut out, &report)?;
    }
    if !report.is_good() {
        return Err(anyhow!("not everybody was in, stayed, and saw the truth").into());
    }
    Ok(())
}

/// The file that keys are to be logged in, if any.
fn key_log_path() -> Option<PathBuf> {
    std::env::var_os(KEY_LOG_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// To standard error, so that standard output holds only what was asked for.
fn start_logging(config: &Config) {
    let filter = tracing_subscriber::EnvFilter::new(&config.log_filter);
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(stderr().is_terminal());
    subscriber.with_writer(stderr).init();
}

/// Tells what a player needs: an address and the key.
fn announce(server: &Server) -> std::io::Result<()> {
    let address = reachable(server.local_addr());
    let key = PublicKey(server.public_key());
    let mut out = stdout().lock();
    writeln!(out, "address     {address}")?;
    writeln!(out, "server key  {key}")?;
    // As this program was called, for the shell may not find it by its name.
    let program = std::env::args().next().unwrap_or_else(|| "shadowland".to_owned());
    writeln!(out, "try         {program} bots --server {address} --server-key {key}")?;
    out.flush()
}

/// An address that others can connect to: if the server listens on all of them, the one that this machine
/// has towards the outside, or the loopback address if it has none.
fn reachable(listen: SocketAddr) -> SocketAddr {
    if !listen.ip().is_unspecified() {
        return listen;
    }
    let outside = || {
        // Connecting a UDP socket sends nothing; it only looks up the route. 192.0.2.1 is kept for documentation.
        let socket = UdpSocket::bind((IpAddr::from([0, 0, 0, 0]), 0)).ok()?;
        socket.connect((IpAddr::from([192, 0, 2, 1]), 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    SocketAddr::new(outside().unwrap_or(IpAddr::from([127, 0, 0, 1])), listen.port())
}
