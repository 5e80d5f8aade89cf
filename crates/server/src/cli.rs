//! The command line.

use std::ffi::OsString;
use std::net::{SocketAddr, ToSocketAddrs};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand};

use shadowland_bots::NetProfile;

use crate::config::settings::MAX_PLAYERS;
use crate::config::{ConfigError, DEFAULT_FILE, Effective, Layer};
use crate::identity::PublicKey;

/// Variable that names the configuration file.
const FILE_VARIABLE: &str = "SHADOWLAND_CONFIG";

/// The Tales of Shadowland server. Without a command it serves.
#[derive(Debug, Parser)]
#[command(name = "shadowland", version, max_term_width = 100)]
pub struct Cli {
    /// Settings that stand before the command.
    #[command(flatten)]
    config: ConfigArgs,
    /// What to do.
    #[command(subcommand)]
    command: Option<Command>,
}

impl Cli {
    /// Reads a command line, the first of which is the program's name. Settings may stand on both sides of the command.
    ///
    /// # Errors
    /// The first mistake, or the help that was asked for. Settings of the server are a mistake where no server runs: they
    /// would have no effect.
    pub fn read(line: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Command, clap::Error> {
        let Self { config: earlier, command } = Self::try_parse_from(line).map_err(explained)?;
        let mut command = command.unwrap_or_else(|| Command::Serve(ConfigArgs::default()));
        match (command.config(), earlier.first_given()) {
            (Some(config), _) => config.add_earlier(earlier),
            (None, Some(argument)) => return Err(of_no_use(argument)),
            (None, None) => {}
        }
        Ok(command)
    }
}

/// An argument of [`ConfigArgs`] that a command does not take: the parser knows only that it does not.
fn explained(error: clap::Error) -> clap::Error {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument))
            if error.kind() == ErrorKind::UnknownArgument && ConfigArgs::knows(argument) =>
        {
            of_no_use(argument)
        }
        _ => error,
    }
}

fn of_no_use(argument: &str) -> clap::Error {
    let message = format!(
        "{argument} is for commands that run the server or show its settings (serve, config, demo); leave it out here"
    );
    Cli::command().error(ErrorKind::UnknownArgument, message)
}

const BOTS_HELP: &str = "\
It reads no configuration: neither shadowland.toml nor variables of settings.

Ctrl-C ends the run early and reports what was measured until then; a second one ends it at once. The exit status is 1 \
unless all players were in the world at the end.";

const DEMO_HELP: &str = "\
The server listens on a free port of the loopback interface with a key of its own, and its room, map and npcs follow from \
--players: network.listen (--listen), session.max_players (--max-players), world.map_size_m and world.npcs have no effect. \
It logs warnings only, unless server.log (--log) says otherwise. The players have no login tokens: security.auth has to be \
\"open\".

Ctrl-C ends the run early and reports what was measured until then; a second one ends it at once. The exit status is 1 \
unless all players were in, stayed, and saw in the end what the server had.";

/// What `shadowland` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server until it is told to stop (the default).
    Serve(ConfigArgs),
    /// Print every setting as a configuration file: its value, what is allowed, and who set it.
    Config(PrintArgs),
    /// Send simulated players to a running server, and report how it went.
    #[command(after_help = BOTS_HELP)]
    Bots(BotsArgs),
    /// Make keys for login tokens, and tokens, for tests and small setups.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Make the tables of keys by which a server checks the versions of its clients.
    #[command(subcommand)]
    Integrity(IntegrityCommand),
    /// Run a server and simulated players in one process, and report how it went.
    #[command(after_help = DEMO_HELP)]
    Demo(DemoArgs),
}

impl Command {
    /// The settings of a command that heeds them.
    fn config(&mut self) -> Option<&mut ConfigArgs> {
        match self {
            Self::Serve(config)
            | Self::Config(PrintArgs { config, .. })
            | Self::Demo(DemoArgs { config, .. }) => Some(config),
            Self::Bots(_) | Self::Token(_) | Self::Integrity(_) => None,
        }
    }
}

/// What `shadowland token` can do. It is for tests and small setups: any account service can sign tokens, by the
/// format in docs/PROTOCOL.md.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a key that signs tokens; print the public key, for the file security.token_keys of servers.
    Keygen {
        /// File for the secret key; it must not be there yet.
        #[arg(long, value_name = "PATH")]
        out: PathBuf,
    },
    /// Sign a token for a client and print it in hexadecimal digits.
    Issue {
        /// The secret key, as `token keygen` has made it.
        #[arg(long, value_name = "PATH")]
        key: PathBuf,
        /// The client's static public key, 64 hexadecimal digits.
        #[arg(long, value_name = "KEY")]
        client_key: PublicKey,
        /// The account to play as.
        #[arg(long, value_name = "N")]
        account: u64,
        /// For how many seconds it is good, at most 600.
        #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=600))]
        seconds: u64,
    },
}

/// What `shadowland integrity` can do.
#[derive(Debug, Subcommand)]
pub enum IntegrityCommand {
    /// Make the table of keys of a client version: one copy goes into the directory security.integrity_tables of
    /// servers, one into the client's build.
    Generate {
        /// The client version, from 1; newer versions have higher numbers.
        #[arg(long, value_name = "N")]
        client_version: NonZeroU16,
        /// File for the table, such as data/integrity/7.table; it must not be there yet.
        #[arg(long, value_name = "PATH")]
        out: PathBuf,
    },
}

/// Where the configuration comes from. The file is overridden by variables named after the settings, such as
/// SHADOWLAND_NETWORK_WORKERS, and those by these arguments.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Settings")]
pub struct ConfigArgs {
    /// Configuration file; without it the one named by the variable SHADOWLAND_CONFIG is read, or else `shadowland.toml` if
    /// there is one.
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// Address and UDP port to listen on (network.listen).
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// I/O threads, by default half of the cores (network.workers).
    #[arg(long, value_name = "N")]
    pub workers: Option<String>,
    /// Players at the same time (session.max_players).
    #[arg(long, value_name = "N")]
    pub max_players: Option<String>,
    /// Directory of server.key and, unless set, of token_keys and integrity tables (server.data_dir).
    #[arg(long, value_name = "PATH")]
    pub data_dir: Option<String>,
    /// What is logged to standard error: error, warn, info, debug, trace or off, also by module (server.log).
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// Any setting, such as --set world.npcs=500; `shadowland config` prints them all. May be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_assignment)]
    pub set: Vec<(String, String)>,
}

/// Arguments of `shadowland config`.
#[derive(Debug, Clone, Args)]
pub struct PrintArgs {
    /// Write it to a file instead, which may be the one that it was read from; it is replaced.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Settings to print.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Arguments of `shadowland bots`.
#[derive(Debug, Clone, Args)]
pub struct BotsArgs {
    /// The server's address, such as 127.0.0.1:3565 or game.example.org:3565.
    #[arg(long, value_name = "ADDR", value_parser = parse_server)]
    pub server: SocketAddr,
    /// The server's public key, as the server prints it.
    #[arg(long, value_name = "KEY")]
    pub server_key: PublicKey,
    /// How many players join.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub count: u32,
    /// For how many seconds they play, counted from when all have joined.
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    pub seconds: u32,
    /// Packets a second of each player: 60, 30, 20, 15, 12 or 10; inputs are made at 60 a second all the same.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = parse_send_hz)]
    pub send_hz: u32,
    /// Let the players play over a bad network: wifi, mobile, transatlantic, terrible, or a file (docs/TUNING.md).
    #[arg(long, value_name = "PROFILE|FILE", value_parser = parse_net)]
    pub net: Option<NetProfile>,
    /// The table of integrity keys to answer with, for a server that checks them (security.integrity).
    #[arg(long, value_name = "PATH")]
    pub integrity_table: Option<PathBuf>,
    /// Print the report as one line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `shadowland demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// How many players, at most 60000.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=MAX_PLAYERS as i64))]
    pub players: u32,
    /// For how many seconds figures are taken, after all have joined.
    #[arg(long, value_name = "S", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub seconds: u32,
    /// Packets a second of each player: 60, 30, 20, 15, 12 or 10; inputs are made at 60 a second all the same.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = parse_send_hz)]
    pub send_hz: u32,
    /// Let the players play over a bad network: wifi, mobile, transatlantic, terrible, or a file (docs/TUNING.md).
    #[arg(long, value_name = "PROFILE|FILE", value_parser = parse_net)]
    pub net: Option<NetProfile>,
    /// Print the report as one line of JSON; notes go to standard error.
    #[arg(long)]
    pub json: bool,
    /// Settings of the server.
    #[command(flatten)]
    pub config: ConfigArgs,
}

impl ConfigArgs {
    /// Reads file, variables and arguments, in this order, and checks them.
    ///
    /// # Errors
    /// The first mistake.
    pub fn load(&self) -> Result<Effective, ConfigError> {
        let file = self.file().map_or_else(|| Ok(Layer::default()), |path| Layer::from_file(&path))?;
        // A variable that is not Unicode cannot be one of ours: all values are.
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Effective::from_layers(&[file, Layer::from_variables(variables), self.layer()])
    }

    /// The file that is read, if any.
    #[must_use]
    pub fn file(&self) -> Option<PathBuf> {
        let named = || std::env::var_os(FILE_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        let usual = || Path::new(DEFAULT_FILE).exists().then(|| DEFAULT_FILE.into());
        self.config.clone().or_else(named).or_else(usual)
    }

    fn layer(&self) -> Layer {
        let mut layer = Layer::default();
        for (argument, key, value) in self.usual() {
            if let Some(value) = value {
                layer.push_argument(argument, key, value);
            }
        }
        for (key, value) in &self.set {
            layer.push_argument("--set", key, value);
        }
        layer
    }

    /// The settings with an argument of their own.
    fn usual(&self) -> [(&'static str, &'static str, Option<&String>); 5] {
        [
            ("--listen", "network.listen", self.listen.as_ref()),
            ("--workers", "network.workers", self.workers.as_ref()),
            ("--max-players", "session.max_players", self.max_players.as_ref()),
            ("--data-dir", "server.data_dir", self.data_dir.as_ref()),
            ("--log", "server.log", self.log.as_ref()),
        ]
    }

    /// Every argument, as it is typed, and whether it was given.
    fn given(&self) -> impl Iterator<Item = (&'static str, bool)> {
        let usual = self.usual().map(|(argument, _, value)| (argument, value.is_some()));
        let others = [("--config", self.config.is_some()), ("--set", !self.set.is_empty())];
        usual.into_iter().chain(others)
    }

    fn first_given(&self) -> Option<&'static str> {
        self.given().find(|(_, given)| *given).map(|(argument, _)| argument)
    }

    fn knows(argument: &str) -> bool {
        Self::default().given().any(|(known, _)| known == argument)
    }

    /// Adds what stood before the command: what stands after it wins.
    fn add_earlier(&mut self, earlier: Self) {
        let Self { config, listen, workers, max_players, data_dir, log, set } = earlier;
        for (mine, earlier) in [
            (&mut self.listen, listen),
            (&mut self.workers, workers),
            (&mut self.max_players, max_players),
            (&mut self.data_dir, data_dir),
            (&mut self.log, log),
        ] {
            *mine = mine.take().or(earlier);
        }
        self.config = self.config.take().or(config);
        self.set.splice(0..0, set);
    }
}

fn parse_assignment(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("KEY=VALUE is needed, such as world.npcs=500")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

fn parse_send_hz(text: &str) -> Result<u32, String> {
    let hz = text.parse().ok().filter(|hz| shadowland_bots::fleet::SEND_HZ.contains(hz));
    hz.ok_or_else(|| "one of 60, 30, 20, 15, 12, 10".to_owned())
}

/// A named network, or the one that a file describes.
fn parse_net(text: &str) -> Result<NetProfile, String> {
    let profile = match text.parse::<NetProfile>() {
        Ok(profile) => profile,
        Err(unknown) => {
            let file =
                std::fs::read_to_string(text).map_err(|error| format!("{unknown}; as a file: {error}"))?;
            toml::from_str(&file).map_err(|error| error.to_string())?
        }
    };
    if profile.is_valid() {
        Ok(profile)
    } else {
        Err("shares are from 0 to 1, a burst_length is at least 1, and no figure is negative".to_owned())
    }
}

fn parse_server(text: &str) -> Result<SocketAddr, String> {
    let mut addresses = text.to_socket_addrs().map_err(|error| error.to_string())?;
    addresses.next().ok_or_else(|| "the name has no address".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_a_name_or_a_file() {
        assert_eq!(parse_net("mobile"), Ok("mobile".parse().unwrap()));
        let error = parse_net("mobil").unwrap_err();
        assert!(
            error.contains("`mobil`; there are wifi, mobile, transatlantic, terrible; as a file: "),
            "{error}"
        );
        let path = std::env::temp_dir().join(format!("shadowland-net-{}.toml", std::process::id()));
        let with = |text: &str| {
            std::fs::write(&path, text).unwrap();
            parse_net(path.to_str().unwrap())
        };
        let profile = with("up.latency_ms = 20\ndown = { latency_ms = 30, loss = 0.01 }\n").unwrap();
        assert_eq!((profile.up.latency_ms, profile.down.loss), (20.0, 0.01));
        assert!(with("down.loss = 2\n").unwrap_err().starts_with("shares are from 0 to 1"));
        assert!(with("down.los = 0\n").unwrap_err().contains("unknown field `los`"));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    fn read<'a>(line: impl IntoIterator<Item = &'a str>) -> Result<Command, clap::Error> {
        Cli::read(["shadowland"].into_iter().chain(line))
    }

    #[test]
    fn without_a_command_it_serves_and_arguments_may_stand_on_both_sides() {
        assert!(matches!(read([]), Ok(Command::Serve(_))));
        let line =
            "--workers 2 --log warn --set world.npcs=1 serve --log off --set world.npcs=3 --set world.seed=4";
        let Ok(Command::Serve(config)) = read(line.split(' ')) else { panic!("it does not serve") };
        let config = Effective::from_layers(&[config.layer()]).unwrap().config();
        assert_eq!((config.network.workers, config.log_filter.as_str()), (2, "off"));
        assert_eq!((config.world.npcs, config.world.seed), (3, 4));
    }

    #[test]
    fn settings_are_refused_where_no_server_runs() {
        let key = "ab".repeat(32);
        let bots = format!("bots --server 127.0.0.1:3565 --server-key {key}");
        let keygen = "token keygen --out key".to_owned();
        let generate = "integrity generate --client-version 7 --out table".to_owned();
        for command in [bots, keygen, generate] {
            assert!(read(command.split(' ')).is_ok(), "{command}");
            for setting in [
                "--config FILE",
                "--listen 127.0.0.1:0",
                "--workers=2",
                "--max-players 5",
                "--data-dir data",
                "--log info",
                "--set interest.player_m=100",
            ] {
                let argument = setting.split([' ', '=']).next().unwrap();
                let expected = format!("error: {argument} is for commands that run the server or show its");
                for line in [format!("{command} {setting}"), format!("{setting} {command}")] {
                    let error = read(line.split(' ')).expect_err(&line);
                    assert!(error.to_string().starts_with(&expected), "{line}: {error}");
                    assert_eq!(error.exit_code(), 2);
                }
            }
            let name = command.split(" --").next().unwrap();
            let help = read(format!("{name} --help").split(' ')).unwrap_err().to_string();
            assert!(
                help.contains("Usage:") && !help.contains("--workers") && !help.contains("--set"),
                "{help}"
            );
        }
    }

    #[test]
    fn help_says_what_it_is_and_where_the_limits_are() {
        let help = |line: &'static str| read(line.split(' ')).unwrap_err().to_string();
        let top = help("--help");
        assert!(top.starts_with("The Tales of Shadowland server. Without a command it serves"), "{top}");
        let list = top.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
        assert!(list.lines().all(|line| line.chars().count() <= 100), "{list}");
        for line in ["bots --help", "demo --help"] {
            let help = help(line);
            assert!(
                help.contains("Ctrl-C") && help.contains("exit status is 1") && help.contains("12 or 10"),
                "{help}"
            );
        }
        assert!(help("demo --help").contains("world.npcs have no effect"));
    }

    #[test]
    fn a_demo_has_as_many_players_as_a_server_at_most() {
        let demo = |players: &'static str| read(["demo", "--players", players]);
        assert!(demo("60000").is_ok() && demo("0").is_err());
        let error = demo("60001").unwrap_err().to_string();
        assert!(error.contains("60001 is not in 1..=60000"), "{error}");
    }

    #[test]
    fn bots_need_a_server_and_its_key() {
        let key = "ab".repeat(32);
        let line = ["bots", "--server", "127.0.0.1:3565", "--server-key", &key, "--count", "7"];
        let Ok(Command::Bots(args)) = read(line) else { panic!("not bots") };
        assert_eq!((args.server, args.count), ("127.0.0.1:3565".parse().unwrap(), 7));
        assert_eq!(args.server_key.to_string(), key);

        for bad in [&line[..1], &line[..3], &["bots", "--server", "nowhere", "--server-key", &key]] {
            assert!(read(bad.iter().copied()).is_err(), "{bad:?}");
        }
        assert!(read([&line[..4], &["abc"]].concat()).is_err());
    }
}
