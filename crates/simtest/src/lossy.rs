//! The whole server and 4 to 12 clients over links with 20 % loss, 100 ms +- 50 ms each way, reordering and
//! duplicates.
//!
//! Players connect, walk about, leave, vanish, lose their network for a while, and come back. Then the links
//! heal, and all stand still: every session that should be alive is, every replica equals the truth, and the
//! server has counted nothing that should not have happened.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use rand_pcg::Pcg32;
use shadowland_proto::{DropReason, Identity, IntegrityTable, IntegrityTables};
use shadowland_server::config::{Config, Consequence, IntegrityConfig};
use shadowland_server::embed::Guards;
use shadowland_wire::entity::EntityType;
use shadowland_world::WorldConfig;
use shadowland_world::config::{LayerConfig, MapConfig};

use crate::link::Conditions;
use crate::machine::{Hiccups, Machine};
use crate::player::{Player, Setting};
use crate::{Outcome, TICK_US, Violation, spy, truth};

/// The links.
pub const CONDITIONS: Conditions =
    Conditions { loss: 0.2, latency_us: 100_000, jitter_us: 50_000, reorder: 0.05, duplicate: 0.02 };
/// Bytes of an entity's complete record, about.
const RECORD_BYTES: u64 = 32;
/// Events at one point of time that nothing but a loop without end makes.
const EVENTS_AT_ONCE: u32 = 10_000;

/// What happens in a run besides playing.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// How bad the links are.
    pub conditions: Conditions,
    /// Players stay, and change their addresses; otherwise they come and go.
    pub steady: bool,
    /// Sessions get new keys after so many bytes, drawn between these; otherwise after the server's default.
    pub rekey_bytes: Option<(u64, u64)>,
    /// Pause between integrity challenges, which nobody may fail; `None`: there are none.
    pub integrity_interval: Option<Duration>,
    /// How long it goes on before the links heal, drawn between these.
    pub seconds: (u64, u64),
}

/// The profile `lossy`.
pub const SCENARIO: Scenario = Scenario {
    conditions: CONDITIONS,
    steady: false,
    rekey_bytes: None,
    integrity_interval: None,
    seconds: (8, 13),
};

/// A run.
struct Run {
    scenario: Scenario,
    config: Config,
    machine: Machine,
    players: Vec<Player>,
    now_us: u64,
    ticks: u64,
    /// The first violation of what the server sent, found while it was sending.
    found: Result<(), Violation>,
}

/// Runs one seed.
pub fn run(seed: u64) -> Result<Outcome, Violation> {
    run_scenario(seed, SCENARIO)
}

/// Runs one seed of a scenario.
pub fn run_scenario(seed: u64, scenario: Scenario) -> Result<Outcome, Violation> {
    let mut random = Pcg32::seed_from_u64(seed);
    let mut run = Run::new(&mut random, seed, scenario);
    let (shortest, longest) = scenario.seconds;
    let heal_us = random.random_range(shortest * 1_000_000..longest * 1_000_000);
    run.until(heal_us)?;
    run.calm_down()?;
    let idle_us = run.config.session.idle_timeout.as_micros() as u64;
    // Whoever has lost the other side notices, connects again, and who has vanished is forgotten.
    run.until(heal_us + idle_us + 4_000_000)?;
    run.check_sessions()?;
    run.players.iter_mut().for_each(Player::stand_still);
    let calm_us = run.now_us;
    run.until(calm_us + scenario.longest_round_trip_us())?;
    run.wait_for_truth(calm_us)?;
    run.check_counters()?;
    run.outcome()
}

impl Scenario {
    /// The slowest that a datagram travels, there and back.
    fn longest_round_trip_us(&self) -> u64 {
        2 * (self.conditions.latency_us + self.conditions.jitter_us)
    }
}

impl Run {
    fn new(random: &mut Pcg32, seed: u64, scenario: Scenario) -> Self {
        let count = random.random_range(4..=12);
        let spare = if random.random_bool(0.7) { 64 } else { random.random_range(0..4) };
        let mut config = random_config(random, seed, count + spare);
        if let Some((least, most)) = scenario.rekey_bytes {
            config.security.rekey.bytes = random.random_range(least..most);
        }
        let guards = Guards { integrity: guard_integrity(scenario, seed, &mut config), ..Guards::default() };
        let identity = Identity::generate(&mut StdRng::seed_from_u64(random.next_u64()));
        let hiccups = Hiccups {
            late: [0.0, 0.05][random.random_range(0..2)],
            blocked: [0.0, 0.05][random.random_range(0..2)],
            cut: [0.0, 0.0, 0.1, 0.6][seed as usize % 4],
            batch: random.random_range(8..=64),
        };
        let setting = Setting {
            server_key: identity.public_key(),
            integrity: guards.integrity.as_ref().map(|tables| Arc::clone(tables.newest())),
            idle_timeout_us: config.session.idle_timeout.as_micros() as u64,
            conditions: scenario.conditions,
            steady: scenario.steady,
            roomy: spare == 64,
        };
        let workers = random.random_range(1..=2);
        let machine = Machine::new(&config, workers, &identity, &guards, hiccups, random.next_u64());
        let players =
            (0..count as u16).map(|index| Player::new(setting.clone(), index, random.next_u64())).collect();
        Self { scenario, config, machine, players, now_us: 0, ticks: 0, found: Ok(()) }
    }

    /// Lets everything happen up to a point of time, in order.
    fn until(&mut self, end_us: u64) -> Result<(), Violation> {
        let mut events = 0;
        loop {
            let players = self.players.iter().map(Player::next_us).min().unwrap_or(u64::MAX);
            let server = self.machine.next_work_us().unwrap_or(u64::MAX).min(self.next_tick_us());
            let next_us = players.min(server);
            if next_us > end_us {
                self.now_us = end_us;
                return Ok(());
            }
            events = if next_us > self.now_us { 0 } else { events + 1 };
            if events > EVENTS_AT_ONCE {
                return Err(Violation(format!("an endless loop at {next_us} us")));
            }
            self.now_us = self.now_us.max(next_us);
            self.step()?;
        }
    }

    /// Everything that is due now.
    fn step(&mut self) -> Result<(), Violation> {
        let Self { machine, players, now_us, found, .. } = self;
        let now_us = *now_us;
        for index in 0..players.len() {
            while let Some((from, mut datagram)) = players[index].arrival(now_us) {
                let travelled = datagram.clone();
                machine.receive(now_us, from, &mut datagram, &mut |to, bytes| {
                    deliver(players, now_us, found, to, bytes)
                });
                if datagram != travelled {
                    // It was opened: nothing else changes it.
                    spy::check_opened(&travelled, &datagram, now_us % 16 == 0)?;
                }
            }
            players[index].act(now_us)?;
        }
        if now_us >= self.next_tick_us() {
            self.ticks += 1;
            self.machine.tick();
        }
        let Self { machine, players, found, .. } = self;
        machine.work(now_us, &mut |to, bytes| deliver(players, now_us, found, to, bytes));
        std::mem::replace(&mut self.found, Ok(()))?;
        self.check_coverage()
    }

    fn next_tick_us(&self) -> u64 {
        self.ticks * 1_000_000 / 60
    }

    fn calm_down(&mut self) -> Result<(), Violation> {
        self.machine.world().pause_creatures(true);
        self.machine.keep_up();
        let now_us = self.now_us;
        self.players.iter_mut().try_for_each(|player| player.calm_down(now_us))
    }

    /// Invariant 2 of replication, for everybody who was just served.
    fn check_coverage(&mut self) -> Result<(), Violation> {
        // With fewer packets a second, subscriptions follow when it is a player's turn.
        if self.config.session.send_hz != 60 {
            return Ok(());
        }
        let Some((frame, hubs)) = self.machine.served() else { return Ok(()) };
        for hub in hubs {
            for (_, viewer) in hub.viewers() {
                if viewer.subscribed_cells().next().is_some() {
                    truth::check_coverage(frame, viewer.player(), viewer)?;
                }
            }
        }
        Ok(())
    }

    /// Everybody who stays is in the world, and nobody else.
    fn check_sessions(&mut self) -> Result<(), Violation> {
        let staying = self.players.iter().filter(|player| player.stays()).count();
        for (index, player) in self.players.iter().enumerate().filter(|(_, player)| player.stays()) {
            let alive =
                player.session().is_some_and(|session| session.welcome().is_some() && !session.is_over());
            if !alive {
                return Err(Violation(format!("player {index} has no session")));
            }
        }
        let hubs: Vec<_> = self.machine.hubs().map(|hub| hub.stats()).collect();
        let sessions: u64 = hubs.iter().map(|stats| stats.sessions).sum();
        let players: u64 = hubs.iter().map(|stats| stats.players).sum();
        let in_world = self.machine.world().world().player_count();
        if (sessions, players, in_world) != (staying as u64, staying as u64, staying) {
            return Err(Violation(format!(
                "{staying} players stay; the server has {sessions} sessions, {players} of them in the world, which \
                 has {in_world}"
            )));
        }
        Ok(())
    }

    /// Invariant 1 of replication: since the world stands still, everybody sees the truth within two round
    /// trips, the slowest period, and the time that the outstanding bytes take; and goes on seeing it.
    fn wait_for_truth(&mut self, calm_us: u64) -> Result<(), Violation> {
        let ticks_per_snapshot = u64::from(60 / self.config.session.send_hz);
        let budget = self.config.session.budget_bytes as u64;
        let outstanding = self.machine.world().world().entity_count() as u64 * RECORD_BYTES;
        let slowest = u64::from(self.config.world.distant_period).max(ticks_per_snapshot);
        let ticks = 2 * slowest + (outstanding / budget + 1) * ticks_per_snapshot;
        let bound_us = 2 * self.scenario.longest_round_trip_us() + ticks * TICK_US;
        self.until(calm_us + bound_us)?;
        self.check_truth()?;
        self.until(self.now_us + 500_000)?;
        self.check_truth()
    }

    fn check_truth(&mut self) -> Result<(), Violation> {
        let Self { machine, players, .. } = self;
        let frame = machine.world().publish();
        let mut different = None;
        let mut seen = 0;
        for hub in machine.hubs() {
            for (id, viewer) in hub.viewers() {
                let player = players
                    .iter()
                    .filter_map(Player::session)
                    .find(|session| session.connection_id() == Some(id));
                let Some(session) = player else { continue };
                seen += 1;
                let difference = truth::difference(&frame, viewer.player(), viewer, session.replica());
                different = different.or(difference);
                truth::check_coverage(&frame, viewer.player(), viewer)?;
            }
        }
        let staying = players.iter().filter(|player| player.stays()).count();
        match different {
            Some(difference) => Err(Violation(difference)),
            None if seen != staying => Err(Violation(format!("{seen} of {staying} players have a viewer"))),
            None => Ok(()),
        }
    }

    /// What no bad link explains must not have happened.
    fn check_counters(&mut self) -> Result<(), Violation> {
        let mut unexpected = String::new();
        for hub in self.machine.hubs() {
            let stats = hub.stats();
            for reason in DropReason::ALL {
                // Repeated by the link, or late.
                let explained = matches!(
                    reason,
                    DropReason::UnknownSession
                        | DropReason::Replayed
                        | DropReason::BehindWindow
                        | DropReason::Closed
                );
                if !explained && stats.dropped.by(reason) > 0 {
                    let _ = write!(unexpected, "; {reason}: {}", stats.dropped.by(reason));
                }
            }
            for (count, what) in [
                (stats.bad_messages, "bad messages"),
                (stats.crowded_out, "handshake answers without room"),
                (stats.integrity_failed, "failed integrity challenges"),
            ] {
                if count > 0 {
                    let _ = write!(unexpected, "; {what}: {count}");
                }
            }
        }
        if unexpected.is_empty() { Ok(()) } else { Err(Violation(format!("the server counted{unexpected}"))) }
    }

    fn outcome(mut self) -> Result<Outcome, Violation> {
        let players = &self.players;
        let stats = || players.iter().filter_map(|player| Some(player.session()?.connection()?.stats()));
        Ok(Outcome {
            rekeys: stats().map(|stats| stats.rekeys).sum(),
            proofs: stats().map(|stats| stats.integrity_answered).sum(),
            moves: players.iter().map(Player::moves).sum(),
            faults: players.iter().map(Player::faults).sum(),
            messages: players.iter().map(Player::datagrams).sum(),
            traffic_hash: players.iter().fold(0, |hash, player| hash ^ player.traffic_hash()),
            world_hash: self.machine.world().world().hash(),
            ..Outcome::default()
        })
    }
}

/// Gives a datagram of the server to the player at its address.
fn deliver(
    players: &mut [Player],
    now_us: u64,
    found: &mut Result<(), Violation>,
    to: SocketAddr,
    datagram: &[u8],
) {
    let IpAddr::V4(ip) = to.ip() else { return };
    if let Some(player) = players.get_mut(usize::from(ip.octets()[3])) {
        let delivered = player.deliver(now_us, to, datagram);
        if found.is_ok() {
            *found = delivered;
        }
    }
}

/// Lets the server ask its clients for the keys of their version, if the scenario says so.
fn guard_integrity(scenario: Scenario, seed: u64, config: &mut Config) -> Option<Arc<IntegrityTables>> {
    let interval = scenario.integrity_interval?;
    let consequence = Consequence::Disconnect;
    config.security.integrity = Some(IntegrityConfig { tables: PathBuf::new(), interval, consequence });
    let table = IntegrityTable::generate(NonZeroU16::MIN, &mut StdRng::seed_from_u64(seed));
    IntegrityTables::new([table]).map(Arc::new)
}

fn random_config(random: &mut Pcg32, seed: u64, max_players: usize) -> Config {
    let mut config = Config::default();
    config.session.max_players = max_players;
    config.session.idle_timeout = Duration::from_millis(random.random_range(3_000..4_000));
    config.session.send_hz = [60, 60, 60, 30, 20][random.random_range(0..5)];
    config.session.budget_bytes = random.random_range(300..2_000);
    let far = random.random_range(3_000.0..15_000.0);
    let near_types = vec![EntityType::Item, EntityType::Npc];
    let far_types = EntityType::ALL.into_iter().filter(|kind| !near_types.contains(kind)).collect::<Vec<_>>();
    let layers = vec![
        LayerConfig {
            distance_cm: far / 2.0,
            cells_per_distance: random.random_range(0.7..4.0),
            types: near_types,
        },
        LayerConfig { distance_cm: far, cells_per_distance: random.random_range(0.7..4.0), types: far_types },
    ];
    config.world = WorldConfig {
        seed,
        lattice_step_cm: [0.5, 1.0, 2.0][random.random_range(0..3)],
        map: MapConfig { size_cm: random.random_range(1.0..4.0) * far, height_cm: 10_000.0 },
        entity_capacity: 1_000,
        player_capacity: max_players,
        layers,
        npcs: random.random_range(0..150),
        near_share: random.random_range(0.0..=1.0),
        distant_period: random.random_range(1..6),
        ..WorldConfig::default()
    };
    config
}
