//! The Wireshark dissector reads a capture of a demo, with the keys that the server has logged: every packet opens, and
//! every message is named.
//!
//! The capture is made by a relay between bots and a server, which loses some datagrams and changes ports once, so that all
//! of the protocol's own messages appear. Needs `tshark` (package `tshark` on Debian); without it the tests say so and
//! do nothing.

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{self, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::config;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;
use shadowland_bots::{Bots, BotsConfig};
use shadowland_proto::{Identity, IntegrityTable};
use shadowland_server::config::{Consequence, IntegrityConfig};
use shadowland_server::integrity;
use shadowland_server::server::Server;
use shadowland_wire::message::{ClientType, ControlType, ServerType};

const DISSECTOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/wireshark/shadowland.lua");
const BOTS: usize = 2;

/// A capture file of the classic format, for raw IPv4 packets (link type 228).
struct Capture(Vec<u8>);

impl Capture {
    fn new() -> Self {
        let mut bytes = Vec::new();
        for word in [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65_535, 228] {
            bytes.extend(word.to_le_bytes());
        }
        Self(bytes)
    }

    /// Adds a datagram that was seen so long after the start.
    fn push(&mut self, at: Duration, from: SocketAddr, to: SocketAddr, datagram: &[u8]) {
        let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else { panic!("an IPv6 address") };
        let udp = (8 + datagram.len()) as u16;
        let len = 20 + u32::from(udp);
        for word in [at.as_secs() as u32, at.subsec_micros(), len, len] {
            self.0.extend(word.to_le_bytes());
        }
        self.0.extend([0x45, 0]);
        self.0.extend((len as u16).to_be_bytes());
        // No fragments, protocol 17; checksums are left out.
        self.0.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
        self.0.extend(from.ip().octets());
        self.0.extend(to.ip().octets());
        for half in [from.port(), to.port(), udp, 0] {
            self.0.extend(half.to_be_bytes());
        }
        self.0.extend(datagram);
    }
}

/// Stands between clients and a server, and writes down what goes through.
struct Relay {
    socket: UdpSocket,
    server: SocketAddr,
    start: Instant,
    /// By client: the socket towards the server that stands for it.
    ways: HashMap<SocketAddr, UdpSocket>,
    capture: Capture,
    datagrams: usize,
}

impl Relay {
    /// Runs until told to stop. From then on every client has another port.
    fn run(mut self, stop: &AtomicBool, move_on: &AtomicBool) -> (Capture, usize) {
        let mut buffer = [0; 2048];
        while !stop.load(Ordering::Relaxed) {
            if move_on.swap(false, Ordering::Relaxed) {
                self.ways.clear();
            }
            if let Ok((len, client)) = self.socket.recv_from(&mut buffer) {
                let way = self.ways.entry(client).or_insert_with(|| quiet("127.0.0.1:0"));
                let from = way.local_addr().unwrap();
                way.send_to(&buffer[..len], self.server).unwrap();
                self.note(from, self.server, &buffer[..len]);
            }
            let mut arrived = Vec::new();
            for (client, way) in &self.ways {
                while let Ok((len, _)) = way.recv_from(&mut buffer) {
                    arrived.push((*client, way.local_addr().unwrap(), buffer[..len].to_vec()));
                }
            }
            for (client, at, datagram) in arrived {
                self.note(self.server, at, &datagram);
                // Some are lost on the last part of their way.
                if !self.datagrams.is_multiple_of(16) {
                    self.socket.send_to(&datagram, client).unwrap();
                }
            }
        }
        (self.capture, self.datagrams)
    }

    fn note(&mut self, from: SocketAddr, to: SocketAddr, datagram: &[u8]) {
        self.datagrams += 1;
        self.capture.push(self.start.elapsed(), from, to, datagram);
    }
}

/// A socket whose calls return soon.
fn quiet(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_micros(200))).unwrap();
    socket
}

/// A directory of its own, removed afterwards.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("shadowland-dissector-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What the dissector says of a datagram.
#[derive(Debug, Default)]
struct Dissected {
    handshake: String,
    messages: Vec<String>,
    key_number: String,
    complaints: String,
}

/// Lets `tshark` read a capture; `None`, with a notice, where there is none.
fn dissect(capture: &Path, key_log: &Path, port: u16) -> Option<Vec<Dissected>> {
    let fields = ["handshake", "message.name", "key_number"].map(|name| format!("shadowland.{name}"));
    let mut command = Command::new("tshark");
    command.args([
        "-n",
        "-X",
        &format!("lua_script:{DISSECTOR}"),
        "-d",
        &format!("udp.port=={port},shadowland"),
    ]);
    command.arg("-o").arg(format!("shadowland.keylog_file:{}", key_log.display()));
    command.args(["-T", "fields", "-E", "separator=;", "-E", "aggregator=,"]);
    for field in fields {
        command.args(["-e", &field]);
    }
    command.args(["-e", "_ws.expert.message", "-e", "_ws.lua.error"]).arg("-r").arg(capture);
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => {
            // Past the capture of the test's output, so that it is seen although the test passes.
            let notice = format!(
                "NOTICE: the dissector is not tested, for tshark cannot be run ({error}); apt-get install tshark\n"
            );
            io::stderr().write_all(notice.as_bytes()).unwrap();
            return None;
        }
    };
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaints}");
    assert!(!complaints.contains("shadowland.lua"), "{complaints}");
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |line: &str| {
        let [handshake, messages, key_number, complaints, errors] =
            line.split(';').map(str::to_owned).collect::<Vec<_>>().try_into().unwrap();
        let messages = messages.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Dissected { handshake, messages, key_number, complaints: complaints + &errors }
    };
    Some(text.lines().map(line).collect())
}

/// A server that changes keys every few hundred packets and asks for the keys of the client's version, with bots
/// behind a relay, until everything has happened. The number of captured datagrams, and the server's port.
fn capture_a_demo(directory: &Path) -> (usize, u16) {
    let table = IntegrityTable::generate(std::num::NonZeroU16::MIN, &mut StdRng::seed_from_u64(1));
    integrity::keep_table(&directory.join("1.table"), &table).unwrap();
    let mut config = config(1, 100);
    config.session.send_hz = 20;
    config.security.rekey.bytes = 8_000;
    config.security.key_log = Some(directory.join("keys.log"));
    config.security.integrity = Some(IntegrityConfig {
        tables: directory.to_owned(),
        interval: Duration::from_secs(1),
        consequence: Consequence::Disconnect,
    });
    let server = Server::start(config, Identity::generate(&mut StdRng::seed_from_u64(7))).unwrap();
    let relay = Relay {
        socket: quiet("127.0.0.1:0"),
        server: server.local_addr(),
        start: Instant::now(),
        ways: HashMap::new(),
        capture: Capture::new(),
        datagrams: 0,
    };
    let address = relay.socket.local_addr().unwrap();
    let (stop, move_on) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let relay: JoinHandle<_> = {
        let (stop, move_on) = (Arc::clone(&stop), Arc::clone(&move_on));
        thread::spawn(move || relay.run(&stop, &move_on))
    };
    let bots = Bots::start(BotsConfig {
        integrity: Some(Arc::new(table)),
        bots_per_socket: 1,
        send_hz: 10,
        ..BotsConfig::new(address, server.public_key(), BOTS)
    })
    .unwrap();
    let wait = |what: &str, done: &dyn Fn() -> bool| {
        let give_up = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < give_up, "not within 20 s: {what}");
            thread::sleep(Duration::from_millis(10));
        }
    };
    wait("everybody plays", &|| bots.stats().playing == BOTS);
    // Challenges for the new addresses, for the keys of the version, and new session keys.
    move_on.store(true, Ordering::Relaxed);
    let all = |at_least: fn(&shadowland_proto::Stats) -> bool| {
        let seen = bots.inspect(move |session| session.connection().is_some_and(|it| at_least(it.stats())));
        seen.len() == BOTS && seen.iter().all(|(_, enough)| *enough)
    };
    wait("rekeys and integrity answers", &|| all(|stats| stats.rekeys >= 2 && stats.integrity_answered >= 1));
    let stats = bots.stop();
    assert_eq!((stats.lost, stats.failed), (0, 0));
    let port = server.local_addr().port();
    server.shutdown();
    thread::sleep(Duration::from_millis(100));
    stop.store(true, Ordering::Relaxed);
    let (capture, datagrams) = relay.join().unwrap();
    fs::write(directory.join("demo.pcap"), &capture.0).unwrap();
    (datagrams, port)
}

#[test]
fn every_packet_of_a_demo_is_opened_and_every_message_named() {
    let directory = Directory::new("demo");
    let (datagrams, port) = capture_a_demo(&directory.0);
    let (capture, keys) = (directory.0.join("demo.pcap"), directory.0.join("keys.log"));
    let Some(dissected) = dissect(&capture, &keys, port) else { return };
    assert_eq!(dissected.len(), datagrams);
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for (number, packet) in dissected.iter().enumerate() {
        assert_eq!(packet.complaints, "", "packet {}: {packet:?}", number + 1);
        assert!(!packet.handshake.is_empty() || !packet.key_number.is_empty(), "packet {}", number + 1);
        for name in packet.messages.iter().map(String::as_str).chain([packet.handshake.as_str()]) {
            *seen.entry(name).or_default() += 1;
        }
    }
    let expected = [
        "Connect",
        "Cookie",
        "ConnectRequest",
        "ConnectionAccepted",
        "ReliableHandshake",
        "Ping",
        "Pong",
        "Disconnect",
        "RekeyRequest",
        "RekeyResponse",
        "PathChallenge",
        "PathResponse",
        "CheckIntegrity",
        "IntegrityAnswer",
        "Welcome",
        "Input",
        "Snapshot",
    ];
    for name in expected {
        assert!(seen.contains_key(name), "no {name} in the capture: {seen:?}");
    }
    let numbers: BTreeSet<_> = dissected.iter().map(|packet| packet.key_number.as_str()).collect();
    assert!(["0", "1", "2"].iter().all(|number| numbers.contains(number)), "keys {numbers:?}");

    // Without the right keys nothing opens, and it says so.
    let text = fs::read_to_string(&keys).unwrap();
    let wrong: String =
        text.lines().map(|line| format!("{}{}\n", &line[..line.len() - 64], "0".repeat(64))).collect();
    fs::write(&keys, wrong).unwrap();
    for packet in dissect(&capture, &keys, port).unwrap().iter().filter(|packet| packet.handshake.is_empty())
    {
        assert_eq!((packet.messages.len(), packet.complaints.as_str()), (0, "No logged key opens it"));
    }
}

/// The test vectors, as a capture: one of every message.
#[test]
fn every_message_of_the_test_vectors_is_named() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/vectors.json");
    let vectors: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let id = vectors["handshake"]["connection_id"].as_u64().unwrap();
    let mut keys = String::new();
    for (number, section) in ["handshake", "rekey"].into_iter().enumerate() {
        for (label, name) in
            [("CLIENT_TO_SERVER", "client_to_server"), ("SERVER_TO_CLIENT", "server_to_client")]
        {
            keys += &format!("{label} {id:08x} {number} {}\n", text(&vectors[section][name]));
        }
    }
    let (client, server) = ("192.0.2.1:4000".parse().unwrap(), "192.0.2.2:3565".parse().unwrap());
    let mut capture = Capture::new();
    let handshakes = ["cookie_answer", "connect_request", "connection_accepted", "connection_denied_full"];
    for name in handshakes {
        let (from, to) = if name == "connect_request" { (client, server) } else { (server, client) };
        capture.push(Duration::ZERO, from, to, &bytes(&vectors["handshake"][name]));
    }
    let packets = vectors["packet"].as_array().unwrap();
    for packet in packets {
        let (from, to) = if packet["from"] == "client" { (client, server) } else { (server, client) };
        capture.push(Duration::ZERO, from, to, &bytes(&packet["datagram"]));
    }
    let directory = Directory::new("vectors");
    let (path, key_log) = (directory.0.join("vectors.pcap"), directory.0.join("keys.log"));
    fs::write(&path, &capture.0).unwrap();
    fs::write(&key_log, keys).unwrap();
    let Some(dissected) = dissect(&path, &key_log, 3565) else { return };

    let complaints: Vec<_> = dissected.iter().filter(|packet| !packet.complaints.is_empty()).collect();
    assert_eq!(complaints.len(), 0, "{complaints:?}");
    let named: Vec<_> = dissected[..4].iter().map(|packet| packet.handshake.as_str()).collect();
    assert_eq!(named, ["Cookie", "ConnectRequest", "ConnectionAccepted", "ConnectionDenied"]);
    let messages = vectors["message"].as_array().unwrap();
    for ((vector, packet), dissected) in packets.iter().enumerate().zip(&dissected[4..]) {
        // Each message has a packet of its own, in the same order; then come packets with none.
        let expected: Vec<_> =
            messages.get(vector).map(|message| text(&message["name"])).into_iter().collect();
        assert_eq!(dissected.messages, expected, "{packet}");
        assert_eq!(dissected.key_number, packet["key_number"].to_string());
    }
}

fn bytes(digits: &Value) -> Vec<u8> {
    let digits = digits.as_str().unwrap();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

/// The names in the dissector are those of the code.
#[test]
fn the_dissector_knows_every_type_of_message() {
    let script = fs::read_to_string(DISSECTOR).unwrap();
    let mut types: Vec<(u8, String)> = Vec::new();
    types.extend(ControlType::ALL.map(|kind| (kind as u8, format!("{kind:?}"))));
    types.extend(ClientType::ALL.map(|kind| (kind as u8, format!("{kind:?}"))));
    types.extend(ServerType::ALL.map(|kind| (kind as u8, format!("{kind:?}"))));
    for (number, name) in types {
        let entry = format!("[{number:#04x}] = \"{name}\",");
        assert!(script.contains(&entry), "{DISSECTOR} has no {entry}");
        let read = format!("read[{number:#04x}] = ");
        assert!(name == "Ack" || script.contains(&read), "{DISSECTOR} does not read {name}");
    }
}
