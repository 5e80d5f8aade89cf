//! How many instructions the hot paths take, counted by callgrind: repeatable where times are not, so that a change
//! that makes one slower is noticed on any machine.
//!
//! The command starts itself under valgrind once for each path. Only what [`measured`] calls is counted; the
//! limits are in `crates/bench/instructions.toml`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;
use shadowland_proto::{
    ConnectConfig, Connecting, Connection, Endpoint, EndpointConfig, Identity, Receiver, Routed, Slot, State,
    Time,
};
use shadowland_wire::block::{BODY_MAX_BYTES, BodyPlan, Change, EntityRecord, encode_body};
use shadowland_wire::codec::Writer;
use shadowland_wire::entity::{EntityDelta, EntityId, EntityState, EntityType};
use shadowland_wire::lattice::LatticePosition;
use shadowland_wire::limits::{DATAGRAM_BYTES, PAGE_SLOTS};
use shadowland_wire::message::client::Input;
use shadowland_wire::quantize::{Rotation, Velocity, Vitals};
use shadowland_world::{Encoder, Frame, PlayerHandle, Viewer, World, WorldConfig};

/// The limits that a run is compared with.
const LIMITS_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.toml");
/// How much more than the limit a path may take, in percent: compilers and processors differ a little.
const SLACK_PERCENT: u64 = 10;
/// How often a path is gone before it is counted, and then counted.
const WARM_UP: u32 = 50;
const ROUNDS: u32 = 200;

/// Counts the instructions of the hot paths under valgrind, and fails when one takes over 10 % more than its limit.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Prints one JSON object a line.
    #[arg(long)]
    json: bool,
    /// Takes what was counted as the new limits.
    #[arg(long)]
    update: bool,
    /// Goes a path, to be counted from outside; what the command starts itself with.
    #[arg(long, hide = true, value_name = "PATH")]
    only: Option<Path>,
}

/// A hot path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Path {
    /// A packet of 200 bytes is put together and sealed; the other side opens it and takes its acknowledgements.
    SealOpen,
    /// An endpoint finds the session of a datagram among a hundred.
    Route,
    /// A player's snapshot of a tick, of whose blocks others have had some encoded before.
    Snapshot,
    /// The block of a full page in which everybody has moved.
    PageBlock,
}

#[derive(Debug, Serialize)]
struct Report {
    name: String,
    instructions: u64,
    limit: u64,
    ratio: f64,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(path) = arguments.only {
        path.go();
        return Ok(());
    }
    let text = std::fs::read_to_string(LIMITS_FILE).with_context(|| format!("cannot read {LIMITS_FILE}"))?;
    let limits: BTreeMap<String, u64> = toml::from_str(&text).context(LIMITS_FILE)?;
    let mut reports = Vec::new();
    for path in Path::value_variants() {
        let name = path.name();
        let limit = limits.get(&name).copied().unwrap_or_default();
        let instructions = count(&name)?;
        let report = Report { name, instructions, limit, ratio: instructions as f64 / limit.max(1) as f64 };
        tell(&report, arguments.json)?;
        reports.push(report);
    }
    if arguments.update {
        return update(&reports);
    }
    let slower: Vec<_> = reports
        .iter()
        .filter(|report| 100 * report.instructions > (100 + SLACK_PERCENT) * report.limit)
        .map(|report| report.name.as_str())
        .collect();
    ensure!(
        slower.is_empty(),
        "over {SLACK_PERCENT} % above the limit: {}; make it cheaper, or say in the commit why it has to cost that, \
         and take the new counts with --update",
        slower.join(", ")
    );
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the report is what was asked for")]
fn tell(report: &Report, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string(report)?);
    } else {
        let Report { name, instructions, limit, ratio } = report;
        println!("{name:<12} {instructions:>8} instructions, limit {limit:>8}, ratio {ratio:.2}");
    }
    Ok(())
}

fn update(reports: &[Report]) -> anyhow::Result<()> {
    let mut text = String::from(
        "# Instructions of a round of each hot path, by callgrind. Written by\n\
         # `cargo run --release -p shadowland-bench -- instructions --update`.\n",
    );
    for report in reports {
        writeln!(text, "{} = {}", report.name, report.instructions)?;
    }
    std::fs::write(LIMITS_FILE, text).with_context(|| format!("cannot write {LIMITS_FILE}"))
}

/// Runs this program under callgrind, which counts a path; instructions of a round.
fn count(name: &str) -> anyhow::Result<u64> {
    let output = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            "--toggle-collect=*instructions*measured*",
        ])
        .arg(std::env::current_exe()?)
        .args(["instructions", "--only", name])
        .output()
        .context("cannot run valgrind: install it (Debian: apt-get install valgrind)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("under valgrind: {said}");
    }
    let collected = said.lines().find_map(|line| line.split_once("Collected :"));
    let (_, number) = collected.with_context(|| format!("valgrind does not tell a count: {said}"))?;
    let instructions: u64 = number.trim().parse()?;
    ensure!(instructions > 0, "nothing was counted: the measured function was not found");
    Ok(instructions / u64::from(ROUNDS))
}

impl Path {
    fn name(self) -> String {
        self.to_possible_value().expect("none is skipped").get_name().to_owned()
    }

    fn go(self) {
        match self {
            Self::SealOpen => {
                let mut pair = Pair::new(1);
                rounds(|round| pair.talk(round));
            }
            Self::Route => {
                let mut pair = Pair::new(100);
                let datagram = pair.datagram();
                rounds(|_| {
                    let routed = pair.server.route(pair.now, home(), &datagram, &mut [0; 128]);
                    assert!(matches!(routed, Routed::Session(_)));
                });
            }
            Self::Snapshot => {
                let mut audience = Audience::new();
                for round in 0..WARM_UP + ROUNDS {
                    audience.tick(round);
                    if round < WARM_UP { audience.show(1) } else { measured(|| audience.show(1)) }
                }
            }
            Self::PageBlock => {
                let records: [_; PAGE_SLOTS] = std::array::from_fn(|slot| walker(slot as u32));
                rounds(|round| encode_page(&records, round));
            }
        }
    }
}

fn rounds(mut round: impl FnMut(u32)) {
    (0..WARM_UP).for_each(&mut round);
    (0..ROUNDS).for_each(|number| measured(|| round(number)));
}

/// What callgrind counts, by its name.
#[inline(never)]
fn measured(path: impl FnOnce()) {
    path();
    // So that it is a call, and not a jump, after which the count would go on.
    black_box(());
}

fn home() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 4_000))
}

struct Deaf;

impl Receiver for Deaf {
    fn message(&mut self, _kind: u8, body: &[u8]) {
        black_box(body);
    }
    fn acked(&mut self, sequence: u64) {
        black_box(sequence);
    }
}

/// A server and clients of it; the last one talks.
struct Pair {
    now: Time,
    server: Endpoint<()>,
    slot: Slot,
    client: Connection,
}

impl Pair {
    fn new(clients: u32) -> Self {
        let mut rng = StdRng::seed_from_u64(1);
        let identity = Identity::generate(&mut rng);
        let key = identity.public_key();
        let mut server = Endpoint::new(EndpointConfig::default(), identity, &[5; 32], &mut rng);
        let mut now = Time::from_micros(1_000_000);
        let mut last = None;
        for _ in 0..clients {
            now = now + Duration::from_millis(20);
            last = Some(connect(&mut server, key, &mut rng, now));
        }
        let client = last.expect("one at least");
        let slots = server.sessions_mut().map(|(slot, _)| slot);
        let slot = slots.filter(|slot| slot.connection_id() == client.id()).last().expect("its session");
        Self { now, server, slot, client }
    }

    fn datagram(&mut self) -> Vec<u8> {
        let mut buffer = [0; DATAGRAM_BYTES];
        let len = packet(&mut self.client, self.now, &mut buffer);
        buffer[..len].to_vec()
    }

    /// A packet to the server, and one back.
    fn talk(&mut self, _round: u32) {
        self.now = self.now + Duration::from_millis(16);
        let mut buffer = [0; DATAGRAM_BYTES];
        let len = packet(&mut self.client, self.now, &mut buffer);
        let server = &mut self.server.session_mut(self.slot).expect("it is there").connection;
        server.handle_from(self.now, home(), &mut buffer[..len], &mut Deaf).expect("it opens");
        let len = packet(server, self.now, &mut buffer);
        self.client.handle(self.now, &mut buffer[..len], &mut Deaf).expect("it opens");
    }
}

fn packet(connection: &mut Connection, now: Time, buffer: &mut [u8; DATAGRAM_BYTES]) -> usize {
    let mut packet = connection.packet(now, buffer).expect("it is established");
    packet.message(0x41, |writer| writer.bytes(&[7; 200])).expect("there is room");
    packet.finish().len
}

fn connect(server: &mut Endpoint<()>, key: [u8; 32], rng: &mut StdRng, now: Time) -> Connection {
    let mut connecting = Connecting::new(ConnectConfig::default(), key, rng, now).expect("a key");
    let mut buffer = [0; DATAGRAM_BYTES];
    let mut client = loop {
        let len = connecting.poll_transmit(now, &mut buffer).expect("a request");
        let mut reply = [0; 128];
        let Routed::Reply(len) = server.route(now, home(), &buffer[..len], &mut reply) else {
            panic!("no answer")
        };
        if let Some(client) = connecting.handle(now, &reply[..len]).expect("an answer") {
            break client;
        }
    };
    while client.state() != State::Established {
        let len = client.poll_transmit(now, &mut buffer).expect("ReliableHandshake");
        let Routed::Session(slot) = server.route(now, home(), &buffer[..len], &mut [0; 128]) else {
            panic!("no session")
        };
        let session = &mut server.session_mut(slot).expect("it was routed to it").connection;
        session.handle_from(now, home(), &mut buffer[..len], &mut Deaf).expect("it opens");
        let len = session.poll_transmit(now, &mut buffer).expect("its answer");
        client.handle(now, &mut buffer[..len], &mut Deaf).expect("it opens");
    }
    client
}

/// Players who walk about within sight of each other, and what two of them are shown.
struct Audience {
    world: World,
    frame: Frame,
    encoder: Encoder,
    players: Vec<PlayerHandle>,
    viewers: [Viewer; 2],
    sequence: u64,
}

impl Audience {
    const PLAYERS: usize = 60;

    fn new() -> Self {
        let mut config = WorldConfig { player_capacity: Self::PLAYERS, npcs: 0, ..WorldConfig::default() };
        config.entity_capacity = 2 * Self::PLAYERS;
        config.map.size_cm = 100_000.0;
        let mut world = World::new(config.clone());
        let players: Vec<_> =
            (0..Self::PLAYERS).map(|_| world.join().expect("there is room for all")).collect();
        let viewers = [Viewer::new(players[0]), Viewer::new(players[1])];
        Self { world, frame: Frame::new(&config), encoder: Encoder::new(), players, viewers, sequence: 0 }
    }

    /// Everybody walks; the first of the two is served before the other.
    fn tick(&mut self, round: u32) {
        for (index, player) in self.players.iter().enumerate() {
            let yaw = (index * 1_000 + round as usize * 10) as u16;
            self.world.input(*player, round + 1, Input { forward: 127, yaw, ..Input::default() });
        }
        self.world.tick();
        self.world.publish(&mut self.frame);
        self.sequence += 1;
        self.show(0);
    }

    /// A viewer's snapshot, acknowledged at once.
    fn show(&mut self, viewer: usize) {
        let mut buffer = [0; DATAGRAM_BYTES];
        let viewer = &mut self.viewers[viewer];
        let snapshot = viewer.snapshot(&self.frame, &mut self.encoder, 4, 1_150);
        let mut snapshot = snapshot.expect("the player is in the world");
        let mut writer = Writer::new(&mut buffer);
        snapshot.write(&mut writer).expect("there is room");
        snapshot.sent(self.sequence);
        assert!(writer.len() > 100, "{} bytes are no news of 59 walkers", writer.len());
        drop(snapshot);
        viewer.acked(self.sequence);
    }
}

fn walker(index: u32) -> EntityRecord {
    EntityRecord {
        id: EntityId::new(index, 0),
        kind: EntityType::Player,
        position: LatticePosition { x: index as i32 * 1_000, y: -7, z: 0 },
        rotation: Rotation::from_coarse_yaw(index as u8),
        animation: 1,
        state: EntityState::NONE,
        velocity: Velocity::default(),
        vitals: Vitals::FULL,
    }
}

fn encode_page(records: &[EntityRecord; PAGE_SLOTS], round: u32) {
    let pose = EntityDelta::POSITION.union(EntityDelta::ROTATION);
    let delta = if round.is_multiple_of(4) { pose } else { EntityDelta::POSITION };
    let changes = &[Change { delta, height: false, wide: false }; PAGE_SLOTS];
    let updates = (1 << PAGE_SLOTS) - 1;
    let plan = BodyPlan { tombstones: &[], enters: 0, updates, changes, low_bits: 9 };
    let mut body = [0; BODY_MAX_BYTES];
    let length = encode_body(black_box(&plan), |slot| &records[slot], &mut body).expect("there is room");
    black_box(&body[..length]);
}
