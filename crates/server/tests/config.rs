//! What happens to a configuration: which mistakes are named how, and who overrides whom.

use std::path::PathBuf;
use std::time::Duration;

use shadowland_proto::{Congestion, TransportConfig};
use shadowland_server::config::settings::SETTINGS;
use shadowland_server::config::{Auth, Config, Effective, Layer};

/// The error line that a file with this text gives.
fn mistake(text: &str) -> String {
    let layers = Layer::from_toml("shadowland.toml", text).map(|layer| [layer]);
    let error = layers.and_then(|layers| Effective::from_layers(&layers)).expect_err(text);
    error.to_string()
}

#[test]
fn a_mistake_names_file_line_key_value_and_what_is_allowed() {
    for (text, expected) in [
        (
            "[network]\nworkers = 0",
            "shadowland.toml:2: `network.workers` is 0; allowed: a whole number from 1 to 64",
        ),
        (
            "[network]\n\nworkers = \"two\"",
            "shadowland.toml:3: `network.workers` is \"two\"; allowed: a whole number from 1 to 64",
        ),
        (
            "[network]\nworkers = -1",
            "shadowland.toml:2: `network.workers` is -1; allowed: a whole number from 1 to 64",
        ),
        (
            "[network]\nworkers = 1.5",
            "shadowland.toml:2: `network.workers` is 1.5; allowed: a whole number from 1 to 64",
        ),
        (
            "[network]\nworkers = [1,\n  2]",
            "shadowland.toml:2: `network.workers` is [1, 2]; allowed: a whole number from 1 to 64",
        ),
        (
            "network.listen = \"localhost\"",
            "shadowland.toml:1: `network.listen` is \"localhost\"; allowed: an IP address and a port, \
             such as \"0.0.0.0:3565\" or \"[::]:3565\" (in quotes in a file)",
        ),
        (
            "[network]\nlisten = 3565",
            "shadowland.toml:2: `network.listen` is 3565; allowed: an IP address and a port, \
             such as \"0.0.0.0:3565\" or \"[::]:3565\" (in quotes in a file)",
        ),
        (
            "[session]\nsend_hz = 25",
            "shadowland.toml:2: `session.send_hz` is 25; allowed: one of 60, 30, 20, 15, 12, 10",
        ),
        (
            "[session]\nidle_timeout_s = nan",
            "shadowland.toml:2: `session.idle_timeout_s` is NaN; allowed: a number from 6 to 600",
        ),
        (
            "[session]\nidle_timeout_s = true",
            "shadowland.toml:2: `session.idle_timeout_s` is true; allowed: a number from 6 to 600",
        ),
        (
            "[server]\ndata_dir = \"\"",
            "shadowland.toml:2: `server.data_dir` is \"\"; allowed: a path in quotes, not empty",
        ),
        (
            "[network]\nworker_cpus = \"3-1\"",
            "shadowland.toml:2: `network.worker_cpus` is \"3-1\"; allowed: numbers and ranges in quotes, such as \
             \"2-5,8\", or \"\"",
        ),
        (
            "[server]\nlog = \"loud,=\"",
            "shadowland.toml:2: `server.log` is \"loud,=\"; allowed: error, warn, info, debug, trace or off, \
             or levels by module such as \"info,shadowland_world=debug\"",
        ),
        (
            "[network]\nworkrs = 2",
            "shadowland.toml:2: `network.workrs` is not a setting; allowed: network.listen, network.workers, \
             network.worker_cpus, network.steering, network.recv_buffer_bytes, network.send_buffer_bytes",
        ),
        (
            "[netwrk]\nworkers = 2",
            "shadowland.toml:2: `netwrk.workers` is not a setting; allowed: [server], [network], [session], [transport], [security], [world], [interest]",
        ),
        (
            "workers = 2",
            "shadowland.toml:1: `workers` is not a setting; allowed: [server], [network], [session], [transport], [security], [world], [interest]",
        ),
        (
            "network = 2",
            "shadowland.toml:1: `network` is not a setting; allowed: network.listen, network.workers, \
             network.worker_cpus, network.steering, network.recv_buffer_bytes, network.send_buffer_bytes",
        ),
        (
            "[world]\nnpcs = 30000",
            "shadowland.toml:2: `world.entity_capacity` is 32768; allowed: at least session.max_players + world.npcs, \
             which is 40000",
        ),
        (
            "[world]\nmap_size_m = 100000\n[interest]\nitem_m = 20",
            "shadowland.toml:4: `interest.item_m` is 20.0; allowed: long enough that the map has below \
             2^26 cells (world.map_size_m is 100000)",
        ),
        (
            "[world]\nlattice_step_cm = 0.12345",
            "shadowland.toml:2: `world.lattice_step_cm` is 0.12345; allowed: a whole number of 0.0001 cm, because \
             clients are told micrometres",
        ),
        (
            "[world]\nnpcs = 70000\n[network]\nworkers = 0",
            "shadowland.toml:2: `world.npcs` is 70000; allowed: a whole number from 0 to 60000",
        ),
    ] {
        assert_eq!(mistake(text), expected, "for {text:?}");
    }
}

#[test]
fn broken_toml_is_one_line_with_file_and_line() {
    for (text, line) in [
        ("[network", 1),
        ("[network]\nworkers = ", 2),
        ("[a]\nb = 1\nb = 2", 3),
        ("\n\n\u{7}", 3),
        ("a = \"\n", 1),
    ] {
        let message = mistake(text);
        assert!(message.starts_with(&format!("shadowland.toml:{line}: ")), "{text:?}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = Layer::from_file(&PathBuf::from("/nowhere/shadowland.toml")).unwrap_err().to_string();
    assert!(error.starts_with("/nowhere/shadowland.toml: cannot read the configuration: "), "{error}");
}

#[test]
fn variables_override_the_file_and_arguments_override_both() {
    let file = Layer::from_toml(
        "shadowland.toml",
        "[network]\nworkers = 2\nlisten = \"127.0.0.1:1\"\n[session]\nmax_players = 5",
    );
    let variables = [
        ("SHADOWLAND_NETWORK_WORKERS", "3"),
        ("SHADOWLAND_SESSION_MAX_PLAYERS", "6"),
        // What Kubernetes makes of a service with the name `shadowland`.
        ("SHADOWLAND_PORT_3565_UDP_ADDR", "10.0.0.1"),
        ("PATH", "/bin"),
    ];
    let variables = Layer::from_variables(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let mut arguments = Layer::default();
    arguments.push_argument("--workers", "network.workers", "4");

    let config = Effective::from_layers(&[file.unwrap(), variables, arguments]).unwrap().config();
    assert_eq!(config.network.workers, 4);
    assert_eq!(config.session.max_players, 6);
    assert_eq!(config.network.listen, "127.0.0.1:1".parse().unwrap());
}

#[test]
fn what_is_of_no_use_is_a_mistake() {
    let load = |text: &str| {
        let layer = Layer::from_toml("shadowland.toml", text).unwrap();
        Effective::from_layers(&[layer]).map(|_| ()).map_err(|error| error.to_string())
    };
    let error = load("[security]\ntoken_keys = \"keys\"").unwrap_err();
    assert!(
        error.starts_with("shadowland.toml:2: `security.token_keys` is \"keys\"; allowed: only "),
        "{error}"
    );
    assert_eq!(load("[security]\ntoken_keys = \"keys\"\nauth = \"token\""), Ok(()));
    for (line, written) in
        [("integrity_tables = \"tables\"", "\"tables\""), ("integrity_interval_s = 5", "5.0")]
    {
        let error = load(&format!("[security]\n{line}")).unwrap_err();
        let key = line.split(' ').next().unwrap();
        assert_eq!(
            error,
            format!(
                "shadowland.toml:2: `security.{key}` is {written}; allowed: only the default while \
                 security.integrity is \"off\": nobody is asked; set security.integrity = \"log\" or \"disconnect\""
            )
        );
        assert_eq!(load(&format!("[security]\n{line}\nintegrity = \"log\"")), Ok(()));
        // Off for once, whatever the file says.
        let file = format!("[security]\n{line}\nintegrity = \"log\"");
        let file = Layer::from_toml("shadowland.toml", &file).unwrap();
        let mut arguments = Layer::default();
        arguments.push_argument("--set", "security.integrity", "off");
        assert!(Effective::from_layers(&[file, arguments]).is_ok());
    }
    // As `shadowland config` prints it.
    assert_eq!(load("[security]\ntoken_keys = \"data/token_keys\"\nauth = \"open\""), Ok(()));
}

#[test]
fn mistakes_outside_the_file_name_their_place() {
    let variables = [("SHADOWLAND_SESSION_SEND_HZ".to_owned(), "fast".to_owned())];
    let error = Effective::from_layers(&[Layer::from_variables(variables)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "variable SHADOWLAND_SESSION_SEND_HZ: `session.send_hz` is \"fast\"; allowed: one of 60, 30, 20, 15, 12, 10"
    );
    let misspelt = |name: &str| {
        let layer = Layer::from_variables([(name.to_owned(), "1".to_owned())]);
        Effective::from_layers(&[layer]).err().map(|error| error.to_string())
    };
    let error = misspelt("SHADOWLAND_WORLD_NPSC").unwrap();
    assert!(
        error.starts_with(
            "variable SHADOWLAND_WORLD_NPSC: `world.npsc` is not a setting; allowed: world.seed, "
        ),
        "{error}"
    );
    // Of services in a cluster: they belong to nobody here.
    for of_others in
        ["SHADOWLAND_WORLD_SERVICE_HOST", "SHADOWLAND_SERVER_PORT_80_TCP", "SHADOWLAND_DOOR_OPEN"]
    {
        assert_eq!(misspelt(of_others), None, "{of_others}");
    }
    let mut arguments = Layer::default();
    arguments.push_argument("--set", "world.nps", "1");
    let error = Effective::from_layers(&[arguments]).unwrap_err().to_string();
    assert!(
        error.starts_with("argument --set: `world.nps` is not a setting; allowed: world.seed, "),
        "{error}"
    );
}

#[test]
fn what_is_in_the_data_directory_by_default_moves_with_it() {
    let load = |lines: &str| {
        let text = format!("[security]\nauth = \"token\"\nintegrity = \"log\"\n{lines}");
        let mut arguments = Layer::default();
        arguments.push_argument("--data-dir", "server.data_dir", "/srv/shadowland/");
        Effective::from_layers(&[Layer::from_toml("shadowland.toml", &text).unwrap(), arguments]).unwrap()
    };
    let paths = |effective: &Effective| {
        let security = effective.config().security;
        let Auth::Token { keys } = security.auth else { panic!("nobody asks for tokens") };
        (keys, security.integrity.unwrap().tables)
    };
    let moved = load("");
    assert_eq!(paths(&moved), ("/srv/shadowland/token_keys".into(), "/srv/shadowland/integrity".into()));
    // What is set stays, also where it says the default.
    let set = load("token_keys = \"keys\"\nintegrity_tables = \"data/integrity\"\n");
    assert_eq!(paths(&set), ("keys".into(), "data/integrity".into()));
    let printed = set.to_toml();
    assert!(printed.contains("the default is \"/srv/shadowland/token_keys\"."), "{printed}");

    // What is printed can be moved again.
    let in_directory = |directory: &str| {
        let mut arguments = Layer::default();
        arguments.push_argument("--data-dir", "server.data_dir", directory);
        arguments
    };
    let printed = Effective::from_layers(&[in_directory("there")]).unwrap().to_toml();
    assert!(printed.contains("\n# token_keys = \"there/token_keys\"\n"), "{printed}");
    let printed = Layer::from_toml("printed.toml", &printed).unwrap();
    let same = Effective::from_layers(std::slice::from_ref(&printed)).unwrap();
    assert_eq!(same.config(), Effective::from_layers(&[in_directory("there")]).unwrap().config());
    let moved = Effective::from_layers(&[printed, in_directory("elsewhere")]).unwrap();
    assert_eq!(moved.config(), Effective::from_layers(&[in_directory("elsewhere")]).unwrap().config());
    let usual = Layer::from_toml("usual.toml", "security.token_keys = \"data/token_keys\"").unwrap();
    Effective::from_layers(&[usual, in_directory("elsewhere")]).unwrap();
}

#[test]
fn a_misspelt_log_level_is_a_mistake() {
    let load = |filter: &str| {
        let mut arguments = Layer::default();
        arguments.push_argument("--log", "server.log", filter);
        Effective::from_layers(&[arguments]).map(|effective| effective.config().log_filter)
    };
    for filter in [
        "inof",
        "inof,shadowland_world=debug",
        "info,shadowland_world=dbug",
        "info,shadowland_world=",
        "info,shadowland_world =debug",
        "",
        ",",
    ] {
        let allowed = "error, warn, info, debug, trace or off, or levels by module such as \"info,shadowland_world=debug\"";
        let expected = format!("argument --log: `server.log` is {filter:?}; allowed: {allowed}");
        assert_eq!(load(filter).expect_err(filter).to_string(), expected);
    }
    for filter in ["off", "WARN", "info,shadowland_world=debug", "shadowland_server=trace"] {
        assert_eq!(load(filter).unwrap(), filter);
    }
    assert_eq!(load("info, shadowland_world=debug").unwrap(), "info,shadowland_world=debug");
}

#[test]
fn the_printed_configuration_is_a_file_that_says_the_same() {
    let text = "[server]\ndata_dir = \"a \\\"quoted\\\" C:\\\\dir\"\n[session]\nidle_timeout_s = 20\n[world]\nseed = 0x10";
    let effective = Effective::from_layers(&[Layer::from_toml("one.toml", text).unwrap()]).unwrap();
    assert_eq!(effective.config().session.idle_timeout, Duration::from_secs(20));
    assert_eq!(effective.config().world.seed, 16);
    let printed = effective.to_toml();
    assert!(printed.contains("Set by one.toml:4; the default is 15.0."), "{printed}");
    let again = Effective::from_layers(&[Layer::from_toml("two.toml", &printed).unwrap()]).unwrap();
    assert_eq!(again.config(), effective.config());
}

#[test]
fn every_default_is_allowed_and_sections_stand_together() {
    Config::default();
    let printed = Effective::from_layers(&[]).unwrap().to_toml();
    for setting in SETTINGS {
        assert_eq!(printed.matches(&format!("[{}]\n", setting.section())).count(), 1, "{}", setting.key);
    }
    // Written out, every default passes its own check.
    Effective::from_layers(&[Layer::from_toml("defaults.toml", &printed).unwrap()]).unwrap();
}

#[test]
fn the_world_starts_with_its_own_defaults() {
    assert_eq!(Config::default().world, shadowland_world::WorldConfig::default());
}

#[test]
fn sessions_start_with_the_transport_of_the_protocol_and_every_figure_of_it_can_be_set() {
    // Clients send nothing large yet: a server holds less for each than the protocol would.
    let transport = TransportConfig { window_bytes: 16_384, ..TransportConfig::default() };
    assert_eq!(Config::default().transport, transport);
    let text = "[transport]\ncongestion = \"loss\"\ntimeout_min_ms = 300\ntimeout_max_ms = 3000\nretries = 5\n\
                loss_packets = 4\nloss_eighths = 10\nack_delay_ms = 20\nack_packets = 2\nack_reliable_packets = 1\nping_interval_s = 1.5\n\
                send_bytes = 2048\nsend_messages = 7\nwindow_messages = 64\nwindow_bytes = 32768\n\
                message_bytes = 4096\nheld_mib = 3\nassembly_expiry_s = 2.0\ncompress = \"off\"\n";
    let layer = Layer::from_toml("shadowland.toml", text).unwrap();
    let settings = SETTINGS.iter().filter(|setting| setting.section() == "transport").count();
    assert_eq!(text.lines().count() - 1, settings, "one is missing here");
    let expected = TransportConfig {
        timeout_min: Duration::from_millis(300),
        timeout_max: Duration::from_secs(3),
        retries: 5,
        loss_packets: 4,
        loss_eighths: 10,
        ack_delay: Duration::from_millis(20),
        ack_packets: 2,
        ack_reliable_packets: 1,
        ping_interval: Duration::from_millis(1_500),
        send_bytes: 2_048,
        send_messages: 7,
        window_messages: 64,
        window_bytes: 32_768,
        message_bytes: 4_096,
        assembly_expiry: Duration::from_secs(2),
        compress: false,
        congestion: Congestion::Loss,
        ..TransportConfig::default()
    };
    assert_eq!(Effective::from_layers(&[layer]).unwrap().config().transport, expected);
    assert_eq!(
        mistake("[transport]\ntimeout_min_ms = 2500"),
        "shadowland.toml:2: `transport.timeout_max_ms` is 2000; allowed: at least transport.timeout_min_ms, which is \
         2500"
    );
    assert_eq!(
        mistake("[transport]\nmessage_bytes = 1_048_576\nheld_mib = 19"),
        "shadowland.toml:3: `transport.held_mib` is 19; allowed: at least 20, or no message of \
         transport.message_bytes could arrive"
    );
}
