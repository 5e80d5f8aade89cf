//! Where the attacks are played: a server, its players, and the figures about both.

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shadowland_bots::{Bots, BotsConfig};
use shadowland_client::ConnectConfig;
use shadowland_proto::{DropReason, Identity, LoginToken, TokenSigner};
use shadowland_server::config::{Auth, Config};
use shadowland_server::demo;
use shadowland_server::server::Server;
use shadowland_server::stats::ServerStats;

use super::logins::Logins;

/// Places beside those of the players, for logins and for attackers with sessions.
const GUESTS: usize = 512;
/// How long everybody may take to get in.
const JOIN_PATIENCE: Duration = Duration::from_secs(30);
/// From the last join until figures count.
const WARM_UP: Duration = Duration::from_secs(2);
/// How often logins are looked after and the memory is read.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// How long logins may go on after the time is up: longer than a client tries.
const LOGIN_PATIENCE: Duration = Duration::from_secs(11);
/// How long players may take to be heard of again after the attack.
const AFTERMATH: Duration = Duration::from_secs(1);

/// A running server with players in it.
pub(super) struct Stage {
    pub(super) clock: Instant,
    pub(super) server_key: [u8; 32],
    /// Tells the attacker to stop.
    pub(super) stop: AtomicBool,
    /// Who signs login tokens, if the server asks for them.
    pub(super) signer: Option<TokenSigner>,
    players: usize,
    server: Server,
    pub(super) bots: Bots,
}

/// What was seen in a while.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) tick_p99_ms: f64,
    pub(super) overruns: u64,
    pub(super) logins_ms: Vec<f64>,
    pub(super) memory_growth_bytes: u64,
    /// Datagrams that the kernel dropped at the server's sockets.
    pub(super) kernel_drops: u64,
    pub(super) server_cores: f64,
    /// Why the server dropped datagrams, in words.
    pub(super) reasons: String,
}

impl Stage {
    /// Starts a server and lets everybody in.
    pub(super) fn start(players: usize, tokens: bool) -> anyhow::Result<Self> {
        let mut rng = StdRng::seed_from_u64(3);
        let signer = tokens.then(|| TokenSigner::generate(&mut rng));
        let config = config(players, signer.as_ref())?;
        let keys = match &config.security.auth {
            Auth::Token { keys } => Some(keys.clone()),
            Auth::Open => None,
        };
        let server = Server::start(config, Identity::generate(&mut rng));
        // Read, and of no more use.
        keys.map(fs::remove_file).transpose().context("cannot remove the file of keys")?;
        let server = server?;
        let bots = Bots::start(BotsConfig {
            token_key: signer.as_ref().map(|signer| *signer.seed()),
            // Within what a network may ask for.
            connect_per_s: 50.0,
            ..BotsConfig::new(server.local_addr(), server.public_key(), players)
        })?;
        let stage = Self {
            clock: Instant::now(),
            server_key: server.public_key(),
            stop: AtomicBool::new(false),
            signer,
            players,
            server,
            bots,
        };
        let give_up = Instant::now() + JOIN_PATIENCE + Duration::from_secs(players as u64 / 50);
        while stage.bots.stats().playing < players {
            ensure!(Instant::now() < give_up, "only {} players got in", stage.bots.stats().playing);
            thread::sleep(Duration::from_millis(50));
        }
        thread::sleep(WARM_UP);
        Ok(stage)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// How an honest client logs in: as a new player, with a good token if one is asked for.
    pub(super) fn login(&self, rng: &mut StdRng) -> ConnectConfig {
        let identity = Identity::generate(rng);
        let token = self.signer.as_ref().map(|signer| signer.issue(&token(&identity, rng)).to_vec());
        ConnectConfig { identity: Some(identity), token, ..ConnectConfig::default() }
    }

    /// Lets logins go on for so long, and returns what was seen meanwhile.
    pub(super) fn watch(&self, span: Duration, mut logins: Logins<'_>) -> anyhow::Result<Figures> {
        let before = self.server.stats();
        let (began, memory_before) = (Instant::now(), memory()?);
        let mut largest = memory_before;
        while began.elapsed() < span {
            logins.step(true)?;
            largest = largest.max(memory()?);
            thread::sleep(LOOK_EVERY);
        }
        let seconds = began.elapsed().as_secs_f64();
        let after = self.server.stats();
        // Those who have begun may still get in, and the attack goes on meanwhile.
        while !logins.are_done() && began.elapsed() < span + LOGIN_PATIENCE {
            logins.step(false)?;
            largest = largest.max(memory()?);
            thread::sleep(LOOK_EVERY);
        }
        ensure!(!self.server.has_failed(), "a thread of the server has ended");
        let mut durations = after.ticks.duration_us.clone();
        durations.subtract(&before.ticks.duration_us).context("the histogram of ticks has shrunk")?;
        let drops = |stats: &ServerStats| stats.sum(|worker| worker.kernel_drops);
        Ok(Figures {
            tick_p99_ms: durations.value_at_quantile(0.99) as f64 / 1_000.0,
            overruns: after.ticks.overruns - before.ticks.overruns,
            logins_ms: logins.finish(),
            memory_growth_bytes: largest - memory_before,
            kernel_drops: drops(&after) - drops(&before),
            server_cores: (after.cpu() - before.cpu()).as_secs_f64() / seconds,
            reasons: reasons(&before, &after),
        })
    }

    /// Tells the attacker to stop.
    pub(super) fn end_attack(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Players who are not playing any more, some time after the attack.
    pub(super) fn dropped(&self) -> usize {
        thread::sleep(AFTERMATH);
        let stats = self.bots.stats();
        (self.players - stats.playing.min(self.players)).max(stats.lost)
    }
}

/// A token for a new account, good for a minute from now.
pub(super) fn token(identity: &Identity, rng: &mut StdRng) -> LoginToken {
    let issued_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut id = [0; 16];
    rng.fill_bytes(&mut id);
    LoginToken {
        id,
        account: rng.next_u64(),
        issued_s,
        expires_s: issued_s + 60,
        client_key: identity.public_key(),
    }
}

/// The default configuration, with the demo's world, and limits that hold for this machine's own addresses too.
fn config(players: usize, signer: Option<&TokenSigner>) -> anyhow::Result<Config> {
    let mut config = demo::adapt(Config::default(), players)?;
    config.session.max_players += GUESTS;
    config.world.player_capacity += GUESTS;
    config.world.entity_capacity += GUESTS;
    config.security.limit_loopback = true;
    // All players come from 127.0.0.1.
    config.security.sessions_per_address = players;
    if let Some(signer) = signer {
        let path = std::env::temp_dir().join(format!("shadowland-attack-{}", std::process::id()));
        let digits: String = signer.public_key().iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(&path, digits).with_context(|| format!("cannot write {}", path.display()))?;
        config.security.auth = Auth::Token { keys: path };
    }
    Ok(config)
}

/// Bytes of memory that the process has now.
fn memory() -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")
        .context("the system does not tell how much memory is used")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().context("VmRSS is no number")?;
    Ok(kib * 1024)
}

fn reasons(before: &ServerStats, after: &ServerStats) -> String {
    let dropped = |stats: &ServerStats, reason| stats.sum(|worker| worker.dropped.by(reason));
    let mut words: Vec<String> = Vec::new();
    for reason in DropReason::ALL {
        let count = dropped(after, reason) - dropped(before, reason);
        if count > 0 {
            words.push(format!("{reason:?} {count}"));
        }
    }
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}
