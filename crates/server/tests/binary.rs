//! The binary as its user runs it: exit codes, messages, signals.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use shadowland_server::identity::PublicKey;

/// A working directory of its own, removed afterwards.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("shadowland-binary-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shadowland"));
        command.current_dir(&self.0).args(arguments).env_clear().stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Sends a signal by its name.
#[cfg(unix)]
fn signal(to: &Child, name: &str) {
    let kill = format!("kill -{name} {}", to.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

/// Reads lines up to one with this in it.
fn wait_for(what: &str, lines: &mut impl BufRead) {
    assert!(lines.by_ref().lines().any(|line| line.unwrap().contains(what)), "it has not said: {what}");
}

/// The one line of an attempt that must end with exit code 2.
fn refusal(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    let lines: Vec<_> = text.lines().collect();
    let [line] = lines[..] else { panic!("not one line: {text}") };
    line.strip_prefix("shadowland: ").expect(line).to_owned()
}

#[test]
fn the_configuration_is_printed_and_mistakes_end_with_code_2() {
    let directory = Directory::new("config");
    let output = directory.run(&["config"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("\n[network]\n") && text.contains("\nlisten = \"0.0.0.0:3565\"\n"), "{text}");

    let output =
        directory.command(&["config", "--workers", "3"]).env("SHADOWLAND_NETWORK_WORKERS", "2").output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(text.contains("# Set by argument --workers"), "{text}");
    assert!(text.contains("\nworkers = 3\n"), "{text}");

    fs::write(directory.0.join("shadowland.toml"), "[session]\nmax_players = 0\n").unwrap();
    for command in [&[][..], &["serve"], &["config"]] {
        assert_eq!(
            refusal(&directory.run(command)),
            "shadowland.toml:2: `session.max_players` is 0; allowed: a whole number from 1 to 60000"
        );
    }
    fs::remove_file(directory.0.join("shadowland.toml")).unwrap();
    let output = directory.command(&["serve"]).env("SHADOWLAND_SERVER_LOG", "inof").output().unwrap();
    let message = refusal(&output);
    assert!(message.starts_with("variable SHADOWLAND_SERVER_LOG: `server.log` is \"inof\"; "), "{message}");
    let message = refusal(&directory.run(&["serve", "--config", "missing.toml"]));
    assert!(message.starts_with("missing.toml: cannot read the configuration: "), "{message}");
    assert_eq!(directory.run(&["dance"]).status.code(), Some(2));
}

#[test]
fn the_configuration_can_be_written_over_the_file_that_it_was_read_from() {
    let directory = Directory::new("output");
    let file = directory.0.join("shadowland.toml");
    fs::write(&file, "world.npcs = 7\n").unwrap();
    let output = directory.run(&["config", "--workers", "3", "--output", "shadowland.toml"]);
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("\nnpcs = 7\n") && text.contains("\nworkers = 3\n"), "{text}");
    assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 1, "nothing is left beside it");

    let output = directory.run(&["config", "--output", "missing/shadowland.toml"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.starts_with("shadowland: missing/shadowland.toml: cannot write the configuration: "),
        "{message}"
    );
    assert_eq!(output.status.code(), Some(1));

    // A mistake leaves the file alone.
    fs::write(&file, "world.npcs = -1\n").unwrap();
    refusal(&directory.run(&["config", "--output", "shadowland.toml"]));
    assert_eq!(fs::read_to_string(&file).unwrap(), "world.npcs = -1\n");
}

#[cfg(unix)]
#[test]
fn a_configuration_is_not_printed_into_the_file_that_it_is_read_from() {
    let directory = Directory::new("redirected");
    let file = fs::File::create(directory.0.join("shadowland.toml")).unwrap();
    let output = directory.command(&["config"]).stdout(file).output().unwrap();
    let message = refusal(&output);
    assert!(
        message.starts_with("shadowland.toml: it cannot be read, ") && message.contains("--output"),
        "{message}"
    );

    fs::write(directory.0.join("shadowland.toml"), "world.npcs = 7\n").unwrap();
    let added = fs::File::options().append(true).open(directory.0.join("shadowland.toml")).unwrap();
    let message = refusal(&directory.command(&["config"]).stdout(added).output().unwrap());
    assert!(message.contains("adds to it") && !message.contains("has emptied"), "{message}");

    let other = fs::File::create(directory.0.join("other.toml")).unwrap();
    assert!(directory.command(&["config"]).stdout(other).status().unwrap().success());
    assert!(fs::metadata(directory.0.join("other.toml")).unwrap().len() > 1_000);
}

#[test]
fn a_bad_key_file_and_a_port_in_use_end_with_code_2() {
    let directory = Directory::new("start");
    fs::create_dir(directory.0.join("data")).unwrap();
    fs::write(directory.0.join("data/server.key"), "not a key").unwrap();
    let quiet = ["--listen", "127.0.0.1:0", "--log", "off"];
    let message = refusal(&directory.run(&quiet));
    assert!(
        message.starts_with("data/server.key: not a server key; allowed: 64 hexadecimal digits"),
        "{message}"
    );

    fs::remove_file(directory.0.join("data/server.key")).unwrap();
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let message = refusal(&directory.run(&["--listen", &address, "--log", "off"]));
    assert!(message.starts_with(&format!("cannot listen on {address}: ")), "{message}");
    assert_eq!(message.matches("os error").count(), 1, "the cause is told once: {message}");
}

#[cfg(unix)]
#[test]
fn it_serves_without_a_file_and_stops_cleanly_when_told() {
    use common::Client;
    use shadowland_proto::{CloseReason, ConnectConfig, DisconnectReason};

    let directory = Directory::new("serve");
    for signal in ["INT", "TERM"] {
        let mut server = directory
            .command(&["--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
        let mut value = |name: &str| {
            let line = lines.next().unwrap().unwrap();
            line.strip_prefix(name).unwrap_or_else(|| panic!("{line}")).trim().to_owned()
        };
        let address = value("address").parse().unwrap();
        let key: PublicKey = value("server key").parse().unwrap();
        assert!(directory.0.join("data/server.key").exists());

        let mut client = Client::connect(address, key.0, 5, ConnectConfig::default()).unwrap();
        client.until("a snapshot", |client| client.heard.last.is_some());
        // Longer than it takes until the server looks.
        let told = Instant::now() + Duration::from_millis(1_500);
        client.until("a while", |_| Instant::now() >= told);
        self::signal(&server, signal);
        client.until("the server's goodbye", |client| client.close_reason().is_some());
        assert_eq!(client.close_reason(), Some(CloseReason::Peer(DisconnectReason::ShuttingDown)));

        let status = server.wait().unwrap();
        let mut log = String::new();
        server.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        assert!(status.success(), "{log}");
        assert!(log.contains("stopped"), "{log}");
        assert_eq!(log.matches("who came and went").count(), 1, "{log}");
        assert!(log.contains("players=1 joined=1 left=0 lost=0 denied=0"), "{log}");
        assert!(!log.contains("SHADOWLAND_KEYLOGFILE"), "nobody asked for it: {log}");
    }
}

#[cfg(unix)]
#[test]
fn a_signal_ends_a_run_early_with_its_report() {
    let directory = Directory::new("early");
    let start = |line: &[&str]| {
        let mut command = directory.command(line);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        (child, log)
    };
    let (mut server, mut server_log) = start(&["--listen", "127.0.0.1:0"]);
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let mut value = || lines.next().unwrap().unwrap().rsplit(' ').next().unwrap().to_owned();
    let (address, key) = (value(), value());
    let how = ["--seconds", "600", "--json"];
    let bots = ["bots", "--server", &address, "--server-key", &key, "--count", "2"];
    let bots = start(&[&bots[..], &how].concat());
    wait_for("who came and went", &mut server_log);
    let mut demo = start(&[&["demo", "--players", "2", "--log", "info"][..], &how].concat());
    wait_for("serving", &mut demo.1);
    // A demo warms up for two seconds; what it reports before is as good here.
    std::thread::sleep(Duration::from_secs(4));
    for (run, mut log) in [bots, demo] {
        signal(&run, "INT");
        let output = run.wait_with_output().unwrap();
        let mut complaints = String::new();
        log.read_to_string(&mut complaints).unwrap();
        assert!(complaints.contains("ended early: the report is of "), "{complaints}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["players"], 2, "{report}");
        assert_eq!(report["disconnects"], 0, "{report}");
    }
    signal(&server, "INT");
    assert!(server.wait().unwrap().success());
}

#[test]
fn token_keys_and_tokens_are_made_and_a_server_needs_the_public_key() {
    let directory = Directory::new("token");
    let output = directory.run(&["token", "keygen", "--out", "signer"]);
    assert!(output.status.success());
    let public = String::from_utf8(output.stdout).unwrap();
    public.trim().parse::<PublicKey>().unwrap();
    let again = refusal(&directory.run(&["token", "keygen", "--out", "signer"]));
    assert!(again.starts_with("signer: cannot keep the new key: "), "{again}");

    let client = "ab".repeat(32);
    let issue = ["token", "issue", "--key", "signer", "--account", "7", "--client-key", &client];
    let (one, other) = (directory.run(&issue).stdout, directory.run(&issue).stdout);
    assert_eq!(one.len(), 2 * shadowland_proto::LOGIN_TOKEN_BYTES + 1);
    assert_ne!(one, other, "every token has an id of its own");
    assert_eq!(one[2..18], public.as_bytes()[..16], "the key's id is its start");

    let serve = ["--listen", "127.0.0.1:0", "--set", "security.auth=token"];
    let message = refusal_after_logs(&directory.run(&serve));
    assert!(message.starts_with("data/token_keys: cannot read the keys for login tokens: "), "{message}");
}

#[test]
fn a_demo_checks_the_integrity_of_its_players_and_logs_keys_when_told_to() {
    let directory = Directory::new("demo");
    let generate = ["integrity", "generate", "--client-version", "7", "--out", "data/integrity/7.table"];
    assert!(directory.run(&generate).status.success());
    let again = refusal(&directory.run(&generate));
    assert!(again.starts_with("data/integrity/7.table: cannot keep the new table: "), "{again}");

    let demo = ["demo", "--players", "2", "--seconds", "3", "--set", "security.integrity=disconnect"];
    let mut demo = directory.command(&demo);
    demo.args(["--set", "security.integrity_interval_s=1"]).env("SHADOWLAND_KEYLOGFILE", "keys.log");
    let output = demo.output().unwrap();
    let complaints = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{complaints}");
    assert!(complaints.contains("WARN") && complaints.contains("(SHADOWLAND_KEYLOGFILE)"), "{complaints}");
    let keys = fs::read_to_string(directory.0.join("keys.log")).unwrap();
    assert_eq!(keys.lines().count(), 4, "two players, two directions: {keys}");

    let mut demo = directory.command(&["demo", "--players", "1", "--seconds", "1"]);
    let output = demo.env("SHADOWLAND_KEYLOGFILE", "missing/keys.log").output().unwrap();
    let complaints = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && complaints.contains("missing/keys.log: cannot log keys"),
        "{complaints}"
    );
}

#[test]
fn a_demo_logs_what_is_asked_for() {
    let directory = Directory::new("demo-log");
    let log = |arguments: &[&str]| {
        let output = directory.run(&[&["demo", "--players", "1", "--seconds", "1"], arguments].concat());
        String::from_utf8(output.stderr).unwrap()
    };
    let (quiet, asked) = (log(&[]), log(&["--log", "info"]));
    assert!(!quiet.contains("INFO") && asked.contains("INFO"), "{quiet}\n{asked}");
}

/// The last line of an attempt that must end with exit code 2.
fn refusal_after_logs(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    text.lines().last().and_then(|line| line.strip_prefix("shadowland: ")).expect(&text).to_owned()
}
