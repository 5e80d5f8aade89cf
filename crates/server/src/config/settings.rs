//! Every setting, once: key, what it means, what is allowed, and the default. The file, the variables, the
//! command line, the validation and `shadowland config` all read this table.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread::available_parallelism;

use tracing_subscriber::filter::LevelFilter;

use crate::cpus::CpuList;

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// `section.name`, as in the file.
    pub key: &'static str,
    /// One line for whoever edits the file.
    pub meaning: &'static str,
    /// What is allowed.
    pub kind: Kind,
    /// What holds when nobody says anything.
    pub default: fn() -> Value,
}

/// What values a setting can have.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// An IP address and a port.
    Address,
    /// A whole number within bounds, both included.
    Whole {
        /// The least.
        min: u64,
        /// The greatest.
        max: u64,
    },
    /// A number, with or without a fraction, within bounds, both included.
    Number {
        /// The least.
        min: f64,
        /// The greatest.
        max: f64,
    },
    /// One of a few whole numbers.
    OneOf(&'static [u64]),
    /// One of a few words.
    Word(&'static [&'static str]),
    /// A path, relative to the working directory or absolute.
    Path,
    /// Numbers of CPUs; see [`CpuList`].
    Cpus,
    /// Directives of `tracing`'s filter.
    LogFilter,
}

/// A checked value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Of [`Kind::Address`].
    Address(SocketAddr),
    /// Of [`Kind::Whole`] and [`Kind::OneOf`].
    Whole(u64),
    /// Of [`Kind::Number`].
    Number(f64),
    /// Of [`Kind::Path`], [`Kind::Word`], [`Kind::Cpus`] and [`Kind::LogFilter`].
    Text(String),
}

/// The setting of the directory below which other paths are by default.
pub(super) const DATA_DIR: &str = "server.data_dir";
/// That directory by default.
pub(super) const DEFAULT_DATA_DIR: &str = "data";
/// Most players at the same time.
pub const MAX_PLAYERS: u64 = 60_000;
/// Most I/O threads.
pub const MAX_WORKERS: usize = 64;
/// How far something can be seen.
const DISTANCE_M: Kind = Kind::Number { min: 5.0, max: 5_000.0 };
/// What is allowed between two looks at an entity.
const LOOK_TICKS: Kind = Kind::Whole { min: 1, max: 60 };

/// All settings, in the order in which `shadowland config` prints them; a section's settings stand together.
pub const SETTINGS: &[Setting] = &[
    Setting {
        key: DATA_DIR,
        meaning: "Directory of what the server keeps: its key pair (server.key), later its database; and, unless they are set, of security.token_keys and security.integrity_tables.",
        kind: Kind::Path,
        default: || Value::Text(DEFAULT_DATA_DIR.into()),
    },
    Setting {
        key: "server.log",
        meaning: "What is logged: a level, or levels by module such as \"info,shadowland_server=debug\".",
        kind: Kind::LogFilter,
        default: || Value::Text("info".into()),
    },
    Setting {
        key: "network.listen",
        meaning: "Address and UDP port that players connect to.",
        kind: Kind::Address,
        default: || Value::Address(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 3565))),
    },
    Setting {
        key: "network.workers",
        meaning: "Threads that receive, assemble and send; by default half of the cores.",
        kind: Kind::Whole { min: 1, max: MAX_WORKERS as u64 },
        default: || {
            Value::Whole(
                available_parallelism().map_or(1, |cores| (cores.get() / 2).clamp(1, MAX_WORKERS)) as u64
            )
        },
    },
    Setting {
        key: "network.worker_cpus",
        meaning: "CPUs that the workers are kept on, one each in this order; when empty they may run anywhere.",
        kind: Kind::Cpus,
        default: || Value::Text(String::new()),
    },
    Setting {
        key: "network.steering",
        meaning: "Who brings datagrams to the worker of their session: the kernel where it can, or the workers.",
        kind: Kind::Word(&["kernel", "workers"]),
        default: || Value::Text("kernel".into()),
    },
    Setting {
        key: "network.recv_buffer_bytes",
        meaning: "Kernel buffer for arriving datagrams, per worker; the kernel may grant less.",
        kind: Kind::Whole { min: 65_536, max: 1 << 30 },
        default: || Value::Whole(8 << 20),
    },
    Setting {
        key: "network.send_buffer_bytes",
        meaning: "Kernel buffer for departing datagrams, per worker; the kernel may grant less.",
        kind: Kind::Whole { min: 65_536, max: 1 << 30 },
        default: || Value::Whole(8 << 20),
    },
    Setting {
        key: "session.max_players",
        meaning: "Players at the same time; the next one is refused.",
        kind: Kind::Whole { min: 1, max: MAX_PLAYERS },
        default: || Value::Whole(10_000),
    },
    Setting {
        key: "session.idle_timeout_s",
        meaning: "Seconds without a packet after which a player counts as gone; clients ping after 5, the server after transport.ping_interval_s.",
        kind: Kind::Number { min: 6.0, max: 600.0 },
        default: || Value::Number(15.0),
    },
    Setting {
        key: "session.send_hz",
        meaning: "Packets a second to every player; the world itself always runs at 60 ticks a second.",
        kind: Kind::OneOf(&[60, 30, 20, 15, 12, 10]),
        default: || Value::Whole(60),
    },
    Setting {
        key: "session.budget_bytes",
        meaning: "Bytes about others that a player is sent at a time, at most; what does not fit waits its turn.",
        kind: Kind::Whole { min: 256, max: 9_200 },
        default: || Value::Whole(1_150),
    },
    Setting {
        key: "transport.congestion",
        meaning: "How the sending rate is found: by the delay in queues (Copa), by loss (NewReno), or not at all.",
        kind: Kind::Word(&["delay", "loss", "off"]),
        default: || Value::Text("delay".into()),
    },
    Setting {
        key: "transport.timeout_min_ms",
        meaning: "Milliseconds after which an unacknowledged reliable message is sent again, at least.",
        kind: Kind::Whole { min: 10, max: 10_000 },
        default: || Value::Whole(250),
    },
    Setting {
        key: "transport.timeout_max_ms",
        meaning: "Milliseconds that this doubles to, at most.",
        kind: Kind::Whole { min: 10, max: 60_000 },
        default: || Value::Whole(2_000),
    },
    Setting {
        key: "transport.retries",
        meaning: "Timeouts of a message after which it is sent again; the next one ends the session.",
        kind: Kind::Whole { min: 1, max: 255 },
        default: || Value::Whole(10),
    },
    Setting {
        key: "transport.loss_packets",
        meaning: "A packet is lost when one sent so many later was acknowledged; grows on links that reorder.",
        kind: Kind::Whole { min: 1, max: 48 },
        default: || Value::Whole(3),
    },
    Setting {
        key: "transport.loss_eighths",
        meaning: "Or when a later one was, and so many eighths of a round trip have passed; grows up to twice that.",
        kind: Kind::Whole { min: 8, max: 64 },
        default: || Value::Whole(9),
    },
    Setting {
        key: "transport.ack_delay_ms",
        meaning: "Milliseconds that an acknowledgement waits for a packet to ride on, at most.",
        kind: Kind::Whole { min: 0, max: 31 },
        default: || Value::Whole(25),
    },
    Setting {
        key: "transport.ack_packets",
        meaning: "Packets after which it waits no longer.",
        kind: Kind::Whole { min: 1, max: 63 },
        default: || Value::Whole(8),
    },
    Setting {
        key: "transport.ack_reliable_packets",
        meaning: "The same for packets with reliable messages.",
        kind: Kind::Whole { min: 1, max: 63 },
        default: || Value::Whole(2),
    },
    Setting {
        key: "transport.ping_interval_s",
        meaning: "Seconds without sending anything that is answered after which a Ping is sent.",
        kind: Kind::Number { min: 0.1, max: 60.0 },
        default: || Value::Number(5.0),
    },
    Setting {
        key: "transport.send_bytes",
        meaning: "Bytes of reliable messages that wait for a player's acknowledgement; then sending says full.",
        kind: Kind::Whole { min: 1_024, max: 16_777_216 },
        default: || Value::Whole(262_144),
    },
    Setting {
        key: "transport.send_messages",
        meaning: "The same in messages that fit a packet.",
        kind: Kind::Whole { min: 1, max: 65_536 },
        default: || Value::Whole(2_048),
    },
    Setting {
        key: "transport.window_messages",
        meaning: "Messages of a stream that are taken from a player ahead of one that is missing.",
        kind: Kind::Whole { min: 1, max: 1_024 },
        default: || Value::Whole(1_024),
    },
    Setting {
        key: "transport.window_bytes",
        meaning: "Bytes of messages that are held for one that is missing, per player.",
        kind: Kind::Whole { min: 16_384, max: 16_777_216 },
        default: || Value::Whole(16_384),
    },
    Setting {
        key: "transport.held_mib",
        meaning: "MiB of memory for what is held so, and for large messages of which pieces are missing, of all players together: half in equal shares, half for who needs more.",
        kind: Kind::Whole { min: 1, max: 65_536 },
        default: || Value::Whole(64),
    },
    Setting {
        key: "transport.message_bytes",
        meaning: "Largest reliable message that is sent and taken; a player can make the server hold four.",
        kind: Kind::Whole { min: 1_024, max: 1_048_576 },
        default: || Value::Whole(262_144),
    },
    Setting {
        key: "transport.assembly_expiry_s",
        meaning: "Seconds without a further piece of a large message after which the session ends.",
        kind: Kind::Number { min: 1.0, max: 600.0 },
        default: || Value::Number(10.0),
    },
    Setting {
        key: "transport.compress",
        meaning: "Whether large reliable messages are compressed where that pays.",
        kind: Kind::Word(&["on", "off"]),
        default: || Value::Text("on".into()),
    },
    Setting {
        key: "security.auth",
        meaning: "Who may join: anybody, or who has a login token.",
        kind: Kind::Word(&["open", "token"]),
        default: || Value::Text("open".into()),
    },
    Setting {
        key: "security.token_keys",
        meaning: "File of the public keys that may sign login tokens, one on each line; read when auth is token; by default below server.data_dir.",
        kind: Kind::Path,
        default: || Value::Text("data/token_keys".into()),
    },
    Setting {
        key: "security.sessions_per_address",
        meaning: "Sessions from one address (IPv4, or IPv6 /64) at a time.",
        kind: Kind::Whole { min: 1, max: 60_000 },
        default: || Value::Whole(64),
    },
    Setting {
        key: "security.loopback",
        meaning: "Whether limits by address and network hold for loopback addresses (127.0.0.0/8, ::1) too.",
        kind: Kind::Word(&["unlimited", "limited"]),
        default: || Value::Text("unlimited".into()),
    },
    Setting {
        key: "security.logins_per_s",
        meaning: "Logins a second that a worker computes at most, 0.1 ms of its time each; rare networks come first.",
        kind: Kind::Whole { min: 10, max: 20_000 },
        default: || Value::Whole(1_000),
    },
    Setting {
        key: "security.network_logins_per_s",
        meaning: "Requests for a login a second from one network (IPv4 /24, IPv6 /48); four times as many at once.",
        kind: Kind::Whole { min: 1, max: 20_000 },
        default: || Value::Whole(64),
    },
    Setting {
        key: "security.network_half_open",
        meaning: "Logins of one network that may wait for the player's first packet at a time.",
        kind: Kind::Whole { min: 1, max: 1_024 },
        default: || Value::Whole(256),
    },
    Setting {
        key: "security.client_bytes_per_s",
        meaning: "Bytes a second that a player may send, 64 more for every packet, and for a compressed message what it is unpacked to; what is above is dropped.",
        kind: Kind::Whole { min: 16_384, max: 16_777_216 },
        default: || Value::Whole(262_144),
    },
    Setting {
        key: "security.rekey_bytes",
        meaning: "Bytes in either direction after which the keys of a session are replaced.",
        kind: Kind::Whole { min: 16_384, max: 1_000_000_000 },
        default: || Value::Whole(1_000_000_000),
    },
    Setting {
        key: "security.rekey_after_s",
        meaning: "Seconds after which the keys of a session are replaced.",
        kind: Kind::Number { min: 10.0, max: 3_600.0 },
        default: || Value::Number(3_600.0),
    },
    Setting {
        key: "security.integrity",
        meaning: "What follows when a client fails a challenge for its version's keys; off asks nobody.",
        kind: Kind::Word(&["off", "log", "disconnect"]),
        default: || Value::Text("off".into()),
    },
    Setting {
        key: "security.integrity_tables",
        meaning: "Directory of the tables of keys, one file for each client version that may play; by default below server.data_dir.",
        kind: Kind::Path,
        default: || Value::Text("data/integrity".into()),
    },
    Setting {
        key: "security.integrity_interval_s",
        meaning: "Seconds from one challenge of a client to the next, on average.",
        kind: Kind::Number { min: 1.0, max: 3_600.0 },
        default: || Value::Number(60.0),
    },
    Setting {
        key: "world.seed",
        meaning: "Seed of everything random in the world: the same seed gives the same world.",
        kind: Kind::Whole { min: 0, max: i64::MAX as u64 },
        default: || Value::Whole(1),
    },
    Setting {
        key: "world.map_size_m",
        meaning: "Side of the square map in metres.",
        kind: Kind::Number { min: 10.0, max: 100_000.0 },
        default: || Value::Number(8_000.0),
    },
    Setting {
        key: "world.lattice_step_cm",
        meaning: "Step of the lattice onto which positions are rounded for sending, in centimetres.",
        kind: Kind::Number { min: 0.1, max: 100.0 },
        default: || Value::Number(1.0),
    },
    Setting {
        key: "world.entity_capacity",
        meaning: "Entities that memory is set aside for; at least session.max_players + world.npcs.",
        kind: Kind::Whole { min: 1, max: 800_000 },
        default: || Value::Whole(32_768),
    },
    Setting {
        key: "world.npcs",
        meaning: "Creatures that wander about from the start.",
        kind: Kind::Whole { min: 0, max: 60_000 },
        default: || Value::Whole(200),
    },
    Setting {
        key: "interest.player_m",
        meaning: "How far players are seen, in metres.",
        kind: DISTANCE_M,
        default: || Value::Number(1_000.0),
    },
    Setting {
        key: "interest.npc_m",
        meaning: "How far peaceful creatures are seen, in metres.",
        kind: DISTANCE_M,
        default: || Value::Number(500.0),
    },
    Setting {
        key: "interest.monster_m",
        meaning: "How far hostile creatures are seen, in metres.",
        kind: DISTANCE_M,
        default: || Value::Number(500.0),
    },
    Setting {
        key: "interest.projectile_m",
        meaning: "How far projectiles are seen, in metres.",
        kind: DISTANCE_M,
        default: || Value::Number(2_000.0),
    },
    Setting {
        key: "interest.environment_m",
        meaning: "How far doors, chests and other scenery with state are seen, in metres.",
        kind: DISTANCE_M,
        default: || Value::Number(250.0),
    },
    Setting {
        key: "interest.item_m",
        meaning: "How far things to pick up are seen, in metres.",
        kind: DISTANCE_M,
        default: || Value::Number(100.0),
    },
    Setting {
        key: "interest.effect_m",
        meaning: "How far short-lived effects are seen, in metres.",
        kind: DISTANCE_M,
        default: || Value::Number(500.0),
    },
    Setting {
        key: "interest.vehicle_m",
        meaning: "How far vehicles are seen, in metres.",
        kind: DISTANCE_M,
        default: || Value::Number(1_500.0),
    },
    Setting {
        key: "interest.cells_per_distance",
        meaning: "Cells of the grids to such a distance: smaller cells save bytes and cost time.",
        kind: Kind::Number { min: 0.25, max: 16.0 },
        default: || Value::Number(2.0),
    },
    Setting {
        key: "interest.near_share",
        meaning: "Which part of a distance is near: what is near is looked at in every tick.",
        kind: Kind::Number { min: 0.0, max: 1.0 },
        default: || Value::Number(0.5),
    },
    Setting {
        key: "interest.distant_ticks",
        meaning: "Ticks from one look at what is beyond it to the next.",
        kind: Kind::Whole { min: 1, max: 60 },
        default: || Value::Whole(3),
    },
    Setting {
        key: "interest.player_ticks",
        meaning: "Ticks from one look at players to the next, for everybody who sees them.",
        kind: LOOK_TICKS,
        default: || Value::Whole(1),
    },
    Setting {
        key: "interest.npc_ticks",
        meaning: "Ticks from one look at peaceful creatures to the next, for everybody who sees them.",
        kind: LOOK_TICKS,
        default: || Value::Whole(1),
    },
    Setting {
        key: "interest.monster_ticks",
        meaning: "Ticks from one look at hostile creatures to the next, for everybody who sees them.",
        kind: LOOK_TICKS,
        default: || Value::Whole(1),
    },
    Setting {
        key: "interest.projectile_ticks",
        meaning: "Ticks from one look at projectiles to the next, for everybody who sees them.",
        kind: LOOK_TICKS,
        default: || Value::Whole(1),
    },
    Setting {
        key: "interest.environment_ticks",
        meaning: "Ticks from one look at doors, chests and other scenery with state to the next, for everybody who sees them.",
        kind: LOOK_TICKS,
        default: || Value::Whole(1),
    },
    Setting {
        key: "interest.item_ticks",
        meaning: "Ticks from one look at things to pick up to the next, for everybody who sees them.",
        kind: LOOK_TICKS,
        default: || Value::Whole(1),
    },
    Setting {
        key: "interest.effect_ticks",
        meaning: "Ticks from one look at short-lived effects to the next, for everybody who sees them.",
        kind: LOOK_TICKS,
        default: || Value::Whole(1),
    },
    Setting {
        key: "interest.vehicle_ticks",
        meaning: "Ticks from one look at vehicles to the next, for everybody who sees them.",
        kind: LOOK_TICKS,
        default: || Value::Whole(1),
    },
];

impl Setting {
    /// The variable that overrides the file: `SHADOWLAND_` and the key in capitals.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.key.replace('.', "_").to_ascii_uppercase())
    }

    /// The part of the key before the dot.
    #[must_use]
    pub fn section(&self) -> &'static str {
        self.key.split_once('.').expect("every key has a section").0
    }

    /// The part of the key after the dot.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.key.split_once('.').expect("every key has a section").1
    }

    /// The setting of a key.
    #[must_use]
    pub fn find(key: &str) -> Option<&'static Setting> {
        SETTINGS.iter().find(|setting| setting.key == key)
    }
}

/// What the names of all variables begin with.
pub const VARIABLE_PREFIX: &str = "SHADOWLAND_";

impl Kind {
    /// The value of this kind that `literal` stands for.
    pub(crate) fn check(self, literal: &Literal) -> Option<Value> {
        match self {
            Kind::Address => Some(Value::Address(literal.text()?.parse().ok()?)),
            Kind::Whole { min, max } => {
                let number = literal.whole()?;
                (min..=max).contains(&number).then_some(Value::Whole(number))
            }
            Kind::OneOf(allowed) => {
                let number = literal.whole()?;
                allowed.contains(&number).then_some(Value::Whole(number))
            }
            Kind::Number { min, max } => {
                let number = literal.number()?;
                (min..=max).contains(&number).then_some(Value::Number(number))
            }
            Kind::Word(allowed) => {
                let text = literal.text()?;
                allowed.contains(&text).then(|| Value::Text(text.to_owned()))
            }
            Kind::Path => {
                let text = literal.text()?;
                (!text.is_empty()).then(|| Value::Text(text.to_owned()))
            }
            Kind::Cpus => {
                let text = literal.text()?;
                text.parse::<CpuList>().ok()?;
                Some(Value::Text(text.to_owned()))
            }
            Kind::LogFilter => {
                let filter = log_filter(literal.text()?)?;
                tracing_subscriber::EnvFilter::builder().parse(&filter).ok()?;
                Some(Value::Text(filter))
            }
        }
    }

    /// What is allowed, in words.
    #[must_use]
    pub fn allowed(self) -> String {
        match self {
            Kind::Address => "an IP address and a port, such as \"0.0.0.0:3565\" or \"[::]:3565\" (in quotes in a file)".into(),
            Kind::Whole { min, max } => format!("a whole number from {min} to {max}"),
            Kind::Number { min, max } => format!("a number from {min} to {max}"),
            Kind::OneOf(numbers) => {
                let numbers: Vec<_> = numbers.iter().map(u64::to_string).collect();
                format!("one of {}", numbers.join(", "))
            }
            Kind::Word(words) => {
                let words: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
                words.join(" or ")
            }
            Kind::Path => "a path in quotes, not empty".into(),
            Kind::Cpus => "numbers and ranges in quotes, such as \"2-5,8\", or \"\"".into(),
            Kind::LogFilter => {
                "error, warn, info, debug, trace or off, or levels by module such as \"info,shadowland_world=debug\""
                    .into()
            }
        }
    }
}

/// Levels, alone or by module, without spaces. `tracing` takes any other word for the name of a module, so that a misspelt
/// level would silence all of them, and so would a space beside one.
fn log_filter(text: &str) -> Option<String> {
    let directives: Vec<_> =
        text.split(',').map(str::trim).filter(|directive| !directive.is_empty()).collect();
    let is_sound = |directive: &&str| {
        let level = directive.rsplit_once('=').map_or(*directive, |(_, level)| level);
        // An empty one would count as error.
        !level.is_empty() && level.parse::<LevelFilter>().is_ok() && !directive.contains(char::is_whitespace)
    };
    (!directives.is_empty() && directives.iter().all(is_sound)).then(|| directives.join(","))
}

/// A value as it was written, before anybody checked it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Literal {
    /// In quotes in the file.
    Text(String),
    /// A whole number in the file.
    Whole(i64),
    /// A number with a fraction in the file.
    Number(f64),
    /// Anything else in the file, as it stands there.
    Other(String),
    /// From a variable or the command line, where everything is text.
    Unquoted(String),
}

impl Literal {
    fn text(&self) -> Option<&str> {
        match self {
            Literal::Text(text) | Literal::Unquoted(text) => Some(text),
            _ => None,
        }
    }

    fn whole(&self) -> Option<u64> {
        match self {
            Literal::Whole(number) => u64::try_from(*number).ok(),
            Literal::Unquoted(text) => text.parse().ok(),
            _ => None,
        }
    }

    fn number(&self) -> Option<f64> {
        match self {
            #[allow(clippy::cast_precision_loss, reason = "bounds lie far below 2^53")]
            Literal::Whole(number) => Some(*number as f64),
            Literal::Number(number) => Some(*number),
            Literal::Unquoted(text) => text.parse().ok(),
            _ => None,
        }
    }
}

impl std::fmt::Display for Literal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Literal::Text(text) | Literal::Unquoted(text) => write!(f, "{text:?}"),
            Literal::Whole(number) => write!(f, "{number}"),
            Literal::Number(number) => write!(f, "{number:?}"),
            Literal::Other(text) => f.write_str(text),
        }
    }
}

impl std::fmt::Display for Value {
    /// As TOML.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Address(address) => write!(f, "\"{address}\""),
            Value::Whole(number) => write!(f, "{number}"),
            Value::Number(number) => write!(f, "{number:?}"),
            Value::Text(text) => write!(f, "{}", toml::Value::String(text.clone())),
        }
    }
}
