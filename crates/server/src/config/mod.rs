//! From texts to a validated [`Config`].
//!
//! A file, variables and the command line are read as [`Layer`]s: keys with literals and the place where each
//! stands. [`Effective::from_layers`] checks every literal of every layer against the table of [`settings`], and
//! lets later layers win; [`Config`] is what the rest of the server sees, in its own types and units.

mod layer;
pub mod settings;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shadowland_proto::{Congestion, RekeyLimits, TransportConfig};
use shadowland_wire::entity::EntityType;
use shadowland_world::{WorldConfig, sight};
use thiserror::Error;

use crate::cpus::CpuList;
pub use layer::{Layer, Place};
use settings::{DATA_DIR, DEFAULT_DATA_DIR, MAX_PLAYERS, MAX_WORKERS, SETTINGS, Setting, Value};

/// Ticks of the world in a second; fixed, because clients predict with the same step.
pub const TICK_HZ: u32 = 60;

/// File that is read from the working directory when it is there.
pub const DEFAULT_FILE: &str = "shadowland.toml";

/// A configuration that the server can run with.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Directory of the key pair and, later, the database. Paths that are below it by default stand in fields of their own.
    pub data_dir: PathBuf,
    /// Directives of the log filter.
    pub log_filter: String,
    /// Sockets and threads.
    pub network: NetworkConfig,
    /// Players and their connections.
    pub session: SessionConfig,
    /// Acknowledging, sending again, windows and congestion control. What follows from other settings, such as how
    /// much may leave at a time, is set when the server is assembled.
    pub transport: TransportConfig,
    /// Bytes of reliable messages that all players together make the server hold.
    pub held_bytes: usize,
    /// Keys, and who may join.
    pub security: SecurityConfig,
    /// The map and what is on it.
    pub world: WorldConfig,
}

impl Config {
    /// Whether a server can be started with it. What was made of [`Effective`] settings is sound; fields that were set
    /// by hand may not be.
    ///
    /// # Errors
    /// What is wrong, and what is allowed.
    pub fn check(&self) -> Result<(), String> {
        let Self { network, session, world, .. } = self;
        let require = |holds: bool, problem: String| if holds { Ok(()) } else { Err(problem) };
        let workers = network.workers;
        require(
            (1..=MAX_WORKERS).contains(&workers),
            format!("network.workers is {workers}; allowed: 1 to {MAX_WORKERS}"),
        )?;
        let players = session.max_players;
        require(
            (1..=MAX_PLAYERS as usize).contains(&players),
            format!("session.max_players is {players}; allowed: 1 to {MAX_PLAYERS}"),
        )?;
        let hz = session.send_hz;
        require(
            hz > 0 && TICK_HZ.is_multiple_of(hz),
            format!("session.send_hz is {hz}; allowed: a divisor of {TICK_HZ}"),
        )?;
        let places = world.player_capacity;
        require(
            places == players,
            format!("world.player_capacity is {places}; allowed: session.max_players, which is {players}"),
        )?;
        world.check().map_err(|problem| problem.to_string())
    }
}

/// Sockets and threads.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkConfig {
    /// Address and port to listen on; port 0 takes any that is free.
    pub listen: SocketAddr,
    /// I/O threads, each with its own socket.
    pub workers: usize,
    /// Who brings datagrams to the worker of their session.
    pub steering: Steering,
    /// CPUs that the I/O threads are kept on.
    pub worker_cpus: CpuList,
    /// Kernel buffer asked for, arriving, per worker.
    pub recv_buffer_bytes: usize,
    /// Kernel buffer asked for, departing, per worker.
    pub send_buffer_bytes: usize,
}

/// Who brings datagrams to the worker of their session, when there is more than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steering {
    /// The kernel, where it can; the workers otherwise.
    Kernel,
    /// The workers, among each other.
    Workers,
}

/// Players and their connections.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionConfig {
    /// Players at the same time.
    pub max_players: usize,
    /// Silence after which a player counts as gone.
    pub idle_timeout: Duration,
    /// Packets a second to every player, a divisor of [`TICK_HZ`].
    pub send_hz: u32,
    /// Bytes of blocks in each snapshot, at most.
    pub budget_bytes: usize,
}

/// Who may join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// Anybody.
    Open,
    /// Whoever has a login token that one of the keys in this file has signed.
    Token {
        /// The file of public keys.
        keys: PathBuf,
    },
}

/// Challenges for the keys of the client's version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntegrityConfig {
    /// Directory of the tables, one file for each client version.
    pub tables: PathBuf,
    /// From one challenge to the next, on average.
    pub interval: Duration,
    /// What follows when a client fails.
    pub consequence: Consequence,
}

/// What follows when a client fails a challenge for its version's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consequence {
    /// It is counted, and logged once per session.
    Log,
    /// The same, and the session ends.
    Disconnect,
}

/// Keys, and who may join.
#[derive(Debug, Clone, PartialEq)]
pub struct SecurityConfig {
    /// Who may join.
    pub auth: Auth,
    /// Sessions that may come from one address.
    pub sessions_per_address: usize,
    /// Whether the limits of addresses and networks hold for loopback addresses (127.0.0.0/8, ::1) too.
    pub limit_loopback: bool,
    /// Logins a second that a worker computes.
    pub logins_per_s: u32,
    /// Requests for a login a second from one network.
    pub network_logins_per_s: u32,
    /// Half-open sessions of one network.
    pub network_half_open: usize,
    /// Bytes a second that a player may send.
    pub client_bytes_per_s: u64,
    /// When the keys of a session are replaced.
    pub rekey: RekeyLimits,
    /// Challenges for the keys of the client's version; `None` asks nobody.
    pub integrity: Option<IntegrityConfig>,
    /// File in which the keys of all sessions are logged, for debugging. No setting: `shadowland` takes it from the
    /// variable `SHADOWLAND_KEYLOGFILE`, so that it cannot stay on by being forgotten in a file.
    pub key_log: Option<PathBuf>,
}

/// What is wrong with the configuration; every message is one line.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file that was asked for cannot be read.
    #[error("{path}: cannot read the configuration: {source}")]
    Unreadable {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path}:{line}: {message}")]
    Syntax {
        /// The file.
        path: String,
        /// Line, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// Nobody knows this key.
    #[error("{place}: `{key}` is not a setting; allowed: {allowed}")]
    UnknownKey {
        /// Where it stands.
        place: Place,
        /// As it was written.
        key: String,
        /// What can stand there.
        allowed: String,
    },
    /// A setting cannot have this value.
    #[error("{place}: `{key}` is {value}; allowed: {allowed}")]
    BadValue {
        /// Where it stands.
        place: Place,
        /// The setting.
        key: &'static str,
        /// As it was written.
        value: String,
        /// What it can be.
        allowed: String,
    },
}

/// Every setting with its checked value and, unless it is the default, the place that it comes from.
#[derive(Debug, Clone)]
pub struct Effective {
    values: Vec<(&'static Setting, Value, Option<Place>)>,
}

impl Effective {
    /// Checks all layers and lets each override those before it.
    ///
    /// # Errors
    /// The first mistake, in the order of the layers.
    pub fn from_layers(layers: &[Layer]) -> Result<Self, ConfigError> {
        let mut values: Vec<_> =
            SETTINGS.iter().map(|setting| (setting, (setting.default)(), None)).collect();
        for (key, literal, place) in layers.iter().flat_map(Layer::entries) {
            let index = SETTINGS
                .iter()
                .position(|setting| setting.key == key)
                .ok_or_else(|| unknown_key(key, place.clone()))?;
            let setting = &SETTINGS[index];
            let value = setting.kind.check(literal).ok_or_else(|| ConfigError::BadValue {
                place: place.clone(),
                key: setting.key,
                value: literal.to_string(),
                allowed: setting.kind.allowed(),
            })?;
            values[index] = (setting, value, Some(place.clone()));
        }
        let mut effective = Self { values };
        effective.follow_data_dir();
        effective.check_together()?;
        Ok(effective)
    }

    /// What nobody set and is in the data directory by default goes with it.
    fn follow_data_dir(&mut self) {
        let defaults: Vec<_> = self.values.iter().map(|(setting, ..)| self.default_of(setting)).collect();
        for ((_, value, place), default) in self.values.iter_mut().zip(defaults) {
            if place.is_none() {
                *value = default;
            }
        }
    }

    /// What a setting has when nobody sets it.
    fn default_of(&self, setting: &Setting) -> Value {
        let Some(rest) = below_data_dir(setting) else { return (setting.default)() };
        let path = Path::new(self.text(DATA_DIR)).join(rest);
        Value::Text(path.to_str().expect("it was joined of texts").to_owned())
    }

    /// Whether the environment or the command line set it, if only to its default.
    ///
    /// # Panics
    /// When there is no such setting.
    #[must_use]
    pub fn is_set_for_this_run(&self, key: &str) -> bool {
        matches!(self.entry(key).2, Some(Place::Variable(_) | Place::Argument(_)))
    }

    /// The same values in the server's own types.
    #[must_use]
    pub fn config(&self) -> Config {
        Config {
            data_dir: self.text(DATA_DIR).into(),
            log_filter: self.text("server.log").into(),
            network: NetworkConfig {
                listen: self.address("network.listen"),
                workers: self.whole("network.workers"),
                steering: match self.text("network.steering") {
                    "workers" => Steering::Workers,
                    _ => Steering::Kernel,
                },
                worker_cpus: self.text("network.worker_cpus").parse().expect("the table has checked it"),
                recv_buffer_bytes: self.whole("network.recv_buffer_bytes"),
                send_buffer_bytes: self.whole("network.send_buffer_bytes"),
            },
            session: SessionConfig {
                max_players: self.whole("session.max_players"),
                idle_timeout: Duration::from_secs_f64(self.number("session.idle_timeout_s")),
                send_hz: self.whole("session.send_hz") as u32,
                budget_bytes: self.whole("session.budget_bytes"),
            },
            transport: self.transport(),
            held_bytes: self.whole("transport.held_mib") << 20,
            security: SecurityConfig {
                auth: match self.text("security.auth") {
                    "token" => Auth::Token { keys: self.text("security.token_keys").into() },
                    _ => Auth::Open,
                },
                sessions_per_address: self.whole("security.sessions_per_address"),
                limit_loopback: self.text("security.loopback") == "limited",
                logins_per_s: self.whole("security.logins_per_s") as u32,
                network_logins_per_s: self.whole("security.network_logins_per_s") as u32,
                network_half_open: self.whole("security.network_half_open"),
                client_bytes_per_s: self.whole("security.client_bytes_per_s") as u64,
                rekey: RekeyLimits {
                    bytes: self.whole("security.rekey_bytes") as u64,
                    age: Duration::from_secs_f64(self.number("security.rekey_after_s")),
                },
                integrity: self.integrity(),
                key_log: None,
            },
            world: self.world(),
        }
    }

    fn transport(&self) -> TransportConfig {
        let ms = |key| Duration::from_millis(self.whole(key) as u64);
        TransportConfig {
            timeout_min: ms("transport.timeout_min_ms"),
            timeout_max: ms("transport.timeout_max_ms"),
            retries: self.whole("transport.retries") as u8,
            loss_packets: self.whole("transport.loss_packets") as u64,
            loss_eighths: self.whole("transport.loss_eighths") as u32,
            ack_delay: ms("transport.ack_delay_ms"),
            ack_packets: self.whole("transport.ack_packets") as u32,
            ack_reliable_packets: self.whole("transport.ack_reliable_packets") as u32,
            ping_interval: Duration::from_secs_f64(self.number("transport.ping_interval_s")),
            send_bytes: self.whole("transport.send_bytes"),
            send_messages: self.whole("transport.send_messages"),
            window_messages: self.whole("transport.window_messages") as u16,
            window_bytes: self.whole("transport.window_bytes") as u32,
            message_bytes: self.whole("transport.message_bytes"),
            assembly_expiry: Duration::from_secs_f64(self.number("transport.assembly_expiry_s")),
            compress: self.text("transport.compress") == "on",
            congestion: match self.text("transport.congestion") {
                "loss" => Congestion::Loss,
                "off" => Congestion::Off,
                _ => Congestion::Delay,
            },
            ..TransportConfig::default()
        }
    }

    fn integrity(&self) -> Option<IntegrityConfig> {
        let consequence = match self.text("security.integrity") {
            "log" => Consequence::Log,
            "disconnect" => Consequence::Disconnect,
            _ => return None,
        };
        Some(IntegrityConfig {
            tables: self.text("security.integrity_tables").into(),
            interval: Duration::from_secs_f64(self.number("security.integrity_interval_s")),
            consequence,
        })
    }

    fn world(&self) -> WorldConfig {
        let mut world = WorldConfig {
            seed: self.whole("world.seed") as u64,
            tick_hz: TICK_HZ,
            lattice_step_cm: self.number("world.lattice_step_cm"),
            entity_capacity: self.whole("world.entity_capacity"),
            player_capacity: self.whole("session.max_players"),
            npcs: self.whole("world.npcs"),
            layers: sight::layers(|kind| self.distance_cm(kind), self.number("interest.cells_per_distance")),
            near_share: self.number("interest.near_share"),
            distant_period: self.whole("interest.distant_ticks") as u32,
            look_periods: EntityType::ALL.map(|kind| self.whole(look_key(kind)) as u32),
            ..WorldConfig::default()
        };
        world.map.size_cm = self.number("world.map_size_m") * 100.0;
        world
    }

    /// How far entities of a type are seen, in centimetres.
    fn distance_cm(&self, kind: EntityType) -> f64 {
        self.number(distance_key(kind)) * 100.0
    }

    /// A configuration file that says the same, with what each setting means and where its value comes from.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut text = String::from(
            "# The effective configuration. Every line can be left out: it then has its default. Paths that follow \
             server.data_dir are left out.\n",
        );
        let mut section = "";
        for (setting, value, place) in &self.values {
            if section != setting.section() {
                section = setting.section();
                let _ = write!(text, "\n[{section}]\n");
            }
            let _ = writeln!(text, "# {} Allowed: {}.", setting.meaning, setting.kind.allowed());
            if let Some(place) = place {
                let _ = writeln!(text, "# Set by {place}; the default is {}.", self.default_of(setting));
            }
            // In a file it would stay behind when the directory is another one.
            let follows = place.is_none() && below_data_dir(setting).is_some();
            let _ = writeln!(text, "{}{} = {value}", if follows { "# " } else { "" }, setting.name());
        }
        text
    }

    /// What single values cannot show.
    fn check_together(&self) -> Result<(), ConfigError> {
        let capacity: usize = self.whole("world.entity_capacity");
        let needed = self.whole("session.max_players") + self.whole("world.npcs");
        if capacity < needed {
            let allowed = format!("at least session.max_players + world.npcs, which is {needed}");
            return Err(self.not_together(
                "world.entity_capacity",
                &["session.max_players", "world.npcs"],
                allowed,
            ));
        }
        let anybody = "only the default while security.auth is \"open\": anybody could join; set security.auth = \"token\"";
        let nobody = "only the default while security.integrity is \"off\": nobody is asked; set security.integrity = \"log\" or \"disconnect\"";
        for (key, switch, off, allowed) in [
            ("security.token_keys", "security.auth", "open", anybody),
            ("security.integrity_tables", "security.integrity", "off", nobody),
            ("security.integrity_interval_s", "security.integrity", "off", nobody),
        ] {
            let (setting, value, _) = self.entry(key);
            // Integrity challenges may be turned off for once, whatever the file says of them.
            let on_purpose = switch == "security.integrity" && self.is_set_for_this_run(switch);
            let is_default = [(setting.default)(), self.default_of(setting)].contains(value);
            if self.text(switch) == off && !on_purpose && !is_default {
                return Err(self.not_together(key, &[], allowed.to_owned()));
            }
        }
        let shortest: usize = self.whole("transport.timeout_min_ms");
        if self.whole("transport.timeout_max_ms") < shortest {
            let allowed = format!("at least transport.timeout_min_ms, which is {shortest}");
            return Err(self.not_together(
                "transport.timeout_max_ms",
                &["transport.timeout_min_ms"],
                allowed,
            ));
        }
        // A player alone gets his share and a ninth of the other half, pieces counted with what they cost.
        let held_mib_min = (20 * self.whole("transport.message_bytes")).div_ceil(1 << 20);
        if self.whole("transport.held_mib") < held_mib_min {
            let allowed =
                format!("at least {held_mib_min}, or no message of transport.message_bytes could arrive");
            return Err(self.not_together("transport.held_mib", &["transport.message_bytes"], allowed));
        }
        let world = self.world();
        if !world.has_told_step() {
            let allowed = "a whole number of 0.0001 cm, because clients are told micrometres".to_owned();
            return Err(self.not_together("world.lattice_step_cm", &[], allowed));
        }
        world.check().map_err(|problem| {
            let allowed =
                format!("{} (world.map_size_m is {})", problem.allowed, self.number("world.map_size_m"));
            // The shortest distance makes the most cells.
            let shortest =
                |a: &EntityType, b: &EntityType| self.distance_cm(*a).total_cmp(&self.distance_cm(*b));
            let kind = EntityType::ALL.into_iter().min_by(shortest).unwrap_or(EntityType::Player);
            self.not_together(
                distance_key(kind),
                &["world.map_size_m", "interest.cells_per_distance"],
                allowed,
            )
        })
    }

    /// The value of `key` does not go with those of `others`.
    fn not_together(&self, key: &str, others: &[&str], allowed: String) -> ConfigError {
        let (setting, value, place) = self.entry(key);
        let mut places = others.iter().map(|other| &self.entry(other).2);
        let place = place.as_ref().or_else(|| places.find_map(Option::as_ref));
        ConfigError::BadValue {
            place: place.expect("one of them was set: the defaults go together").clone(),
            key: setting.key,
            value: value.to_string(),
            allowed,
        }
    }

    fn entry(&self, key: &str) -> &(&'static Setting, Value, Option<Place>) {
        let found = self.values.iter().find(|(setting, ..)| setting.key == key);
        found.unwrap_or_else(|| panic!("`{key}` is missing in the table of settings"))
    }

    fn whole(&self, key: &str) -> usize {
        match self.entry(key).1 {
            Value::Whole(number) => usize::try_from(number).expect("the bounds of every setting fit"),
            ref other => panic!("`{key}` holds {other}"),
        }
    }

    fn number(&self, key: &str) -> f64 {
        match self.entry(key).1 {
            Value::Number(number) => number,
            ref other => panic!("`{key}` holds {other}"),
        }
    }

    fn text(&self, key: &str) -> &str {
        match &self.entry(key).1 {
            Value::Text(text) => text,
            other => panic!("`{key}` holds {other}"),
        }
    }

    fn address(&self, key: &str) -> SocketAddr {
        match self.entry(key).1 {
            Value::Address(address) => address,
            ref other => panic!("`{key}` holds {other}"),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Effective::from_layers(&[]).expect("the defaults fit together").config()
    }
}

/// Where a setting's path lies in the data directory, if it does by default.
fn below_data_dir(setting: &Setting) -> Option<PathBuf> {
    match (setting.default)() {
        Value::Text(path) if setting.key != DATA_DIR => {
            Path::new(&path).strip_prefix(DEFAULT_DATA_DIR).ok().map(Path::to_owned)
        }
        _ => None,
    }
}

/// The setting of how far entities of a type are seen.
fn distance_key(kind: EntityType) -> &'static str {
    match kind {
        EntityType::Player => "interest.player_m",
        EntityType::Npc => "interest.npc_m",
        EntityType::Monster => "interest.monster_m",
        EntityType::Projectile => "interest.projectile_m",
        EntityType::Environment => "interest.environment_m",
        EntityType::Item => "interest.item_m",
        EntityType::Effect => "interest.effect_m",
        EntityType::Vehicle => "interest.vehicle_m",
    }
}

/// The setting of how often entities of a type are looked at.
fn look_key(kind: EntityType) -> &'static str {
    match kind {
        EntityType::Player => "interest.player_ticks",
        EntityType::Npc => "interest.npc_ticks",
        EntityType::Monster => "interest.monster_ticks",
        EntityType::Projectile => "interest.projectile_ticks",
        EntityType::Environment => "interest.environment_ticks",
        EntityType::Item => "interest.item_ticks",
        EntityType::Effect => "interest.effect_ticks",
        EntityType::Vehicle => "interest.vehicle_ticks",
    }
}

fn unknown_key(key: &str, place: Place) -> ConfigError {
    let section = key.split_once('.').map_or(key, |(section, _)| section);
    let names: Vec<_> =
        SETTINGS.iter().filter(|setting| setting.section() == section).map(|setting| setting.key).collect();
    let allowed = if names.is_empty() {
        let mut sections: Vec<_> =
            SETTINGS.iter().map(|setting| format!("[{}]", setting.section())).collect();
        sections.dedup();
        sections.join(", ")
    } else {
        names.join(", ")
    };
    ConfigError::UnknownKey { place, key: key.to_owned(), allowed }
}
