//! What a login costs the server, and how long a player waits for it.
//!
//! Cost: an endpoint without a socket takes everything that a login sends it (Connect, ConnectRequest, the first sealed
//! packet); its processor time is taken, the clients' is not. No limits on rates: they are what keeps this cost from
//! the tick. Latency: one client after the other connects over the loopback interface to a whole server that has
//! nothing else to do. Storm, if asked for: that many players within ten seconds, as after a restart; those who are in play
//! on while the others come, so that server and players need the machine for that, too.

use std::net::{SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;
use shadowland_bots::{Bots, BotsConfig};
use shadowland_proto::{
    ConnectConfig, Connecting, Connection, Endpoint, EndpointConfig, Identity, Rate, Receiver, Routed, State,
    Time,
};
use shadowland_server::config::Config;
use shadowland_server::server::Server;
use shadowland_wire::limits::DATAGRAM_BYTES;

use crate::clock::{measure, ms, percentile};

/// What a login costs the server, and how long a player waits for it.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Logins whose cost is measured, after a tenth as many that are not.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(10..=50_000))]
    logins: u32,
    /// Logins over the loopback interface.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..=10_000))]
    connects: u32,
    /// Players that all come within ten seconds; 0 for none.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=20_000))]
    storm: u32,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    logins: u32,
    /// Of the server's processor time for whole logins.
    handshakes_per_s_per_core: f64,
    /// Processor time of the server by what it takes, in microseconds each.
    connect_us: f64,
    request_us: f64,
    confirm_us: f64,
    connects: u32,
    /// From sending Connect to keys that both sides have.
    handshake_ms_p50: f64,
    handshake_ms_p99: f64,
    /// To the server's first sealed packet, which leaves with its next tick.
    established_ms_p50: f64,
    established_ms_p99: f64,
    #[serde(flatten)]
    storm: Option<Storm>,
}

/// What became of many players who come at once.
#[derive(Debug, Serialize)]
struct Storm {
    storm_players: u32,
    /// From the first Connect until the last of them was in the world; `None` if not within [`STORM_PATIENCE`].
    storm_all_in_s: Option<f64>,
    /// In the world at the end.
    storm_playing: usize,
    /// Never got a session, or lost it.
    storm_failed: usize,
    /// Of all threads of the server, as a number of busy cores.
    storm_server_cores: f64,
    storm_tick_p99_ms: f64,
}

/// They start to connect one after the other, the last after so long.
const STORM: Duration = Duration::from_secs(10);
const STORM_PATIENCE: Duration = Duration::from_secs(40);
/// Packets a second to and from each of them: what two cores can do for ten thousand.
const STORM_HZ: u32 = 10;

#[expect(clippy::print_stdout, reason = "the report is what the program is for")]
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let cost = Cost::measure(arguments.logins)?;
    let (mut handshakes, mut established) = latencies(arguments.connects)?;
    let each_us = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(arguments.logins);
    let report = Report {
        logins: arguments.logins,
        handshakes_per_s_per_core: f64::from(arguments.logins) / cost.total().as_secs_f64(),
        connect_us: each_us(cost.connect),
        request_us: each_us(cost.request),
        confirm_us: each_us(cost.confirm),
        connects: arguments.connects,
        handshake_ms_p50: percentile(&mut handshakes, 0.5),
        handshake_ms_p99: percentile(&mut handshakes, 0.99),
        established_ms_p50: percentile(&mut established, 0.5),
        established_ms_p99: percentile(&mut established, 0.99),
        storm: (arguments.storm > 0).then(|| storm(arguments.storm)).transpose()?,
    };
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        let Report { handshakes_per_s_per_core, connect_us, request_us, confirm_us, .. } = report;
        println!("{handshakes_per_s_per_core:.0} logins a second and core of server time");
        println!(
            "Connect {connect_us:.1} us, ConnectRequest {request_us:.1} us, first packet {confirm_us:.1} us"
        );
        let Report { handshake_ms_p50, handshake_ms_p99, established_ms_p99, .. } = report;
        println!(
            "loopback: keys after {handshake_ms_p50:.2} ms (p99 {handshake_ms_p99:.2} ms), first answer p99 \
             {established_ms_p99:.2} ms"
        );
        if let Some(Storm { storm_players, storm_playing, storm_all_in_s, .. }) = report.storm {
            let all_in =
                storm_all_in_s.map_or_else(|| "not all".to_owned(), |s| format!("all after {s:.1} s"));
            println!("storm of {storm_players}: {storm_playing} in the world, {all_in}");
        }
    }
    Ok(())
}

/// Processor time of the server.
#[derive(Debug, Default)]
struct Cost {
    connect: Duration,
    request: Duration,
    confirm: Duration,
}

impl Cost {
    fn total(&self) -> Duration {
        self.connect + self.request + self.confirm
    }

    fn measure(logins: u32) -> anyhow::Result<Self> {
        let mut rng = StdRng::seed_from_u64(1);
        let identity = Identity::generate(&mut rng);
        let server_key = identity.public_key();
        let warm_up = logins / 10;
        let unlimited = Rate { per_second: 1_000_000, burst: 1_000_000 };
        let config = EndpointConfig {
            max_sessions: (logins + warm_up) as usize,
            max_half_open: (logins + warm_up) as usize,
            network_rate: unlimited,
            handshake_rate: unlimited,
            ..EndpointConfig::default()
        };
        let mut server: Endpoint<()> = Endpoint::new(config, identity, &[1; 32], &mut rng);
        let mut cost = Self::default();
        let mut now = Time::from_micros(100_000_000);
        for index in 0..logins + warm_up {
            if index == warm_up {
                cost = Self::default();
            }
            now = now + Duration::from_micros(100);
            let connecting = Connecting::new(ConnectConfig::default(), server_key, &mut rng, now)?;
            let from = SocketAddr::from((u32::to_be_bytes(0x0a00_0000 + index), 4_000));
            cost.login(&mut server, connecting, from, now)?;
        }
        ensure!(server.session_count() == (logins + warm_up) as usize, "not everybody got in");
        Ok(cost)
    }

    fn login(
        &mut self,
        server: &mut Endpoint<()>,
        mut connecting: Connecting,
        from: SocketAddr,
        now: Time,
    ) -> anyhow::Result<()> {
        let (mut datagram, mut reply) = ([0; DATAGRAM_BYTES], [0; 128]);
        let mut connection = None;
        for stage in 0..2 {
            let len = connecting.poll_transmit(now, &mut datagram).context("nothing to send")?;
            let mut routed = None;
            let span = measure(|| routed = Some(server.route(now, from, &datagram[..len], &mut reply)));
            *(if stage == 0 { &mut self.connect } else { &mut self.request }) += span.cpu;
            let Some(Routed::Reply(len)) = routed else { return Err(anyhow!("refused: {routed:?}")) };
            connection = connecting.handle(now, &reply[..len]).map_err(|reason| anyhow!("{reason}"))?;
        }
        let mut connection = connection.context("not accepted")?;
        let len = connection.poll_transmit(now, &mut datagram).context("nothing to confirm")?;
        let mut confirmed = false;
        let span = measure(|| {
            if let Routed::Session(slot) = server.route(now, from, &datagram[..len], &mut reply)
                && let Some(session) = server.session_mut(slot)
            {
                let taken = session.connection.handle_from(now, from, &mut datagram[..len], &mut Nobody);
                confirmed = taken.is_ok() && session.connection.state() == State::Established;
            }
        });
        self.confirm += span.cpu;
        ensure!(confirmed, "the keys are not confirmed");
        Ok(())
    }
}

/// Milliseconds until each client has keys, and until it has the server's first packet.
fn latencies(connects: u32) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let mut config = Config::default();
    config.network.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.network.workers = 1;
    config.world.npcs = 0;
    let mut rng = StdRng::seed_from_u64(2);
    let server = Server::start(config, Identity::generate(&mut rng))?;
    let (mut handshakes, mut established) = (Vec::new(), Vec::new());
    // The first ones find cold caches, and are not counted.
    for index in 0..connects + connects / 10 {
        let (keys, answer) = login(&server, &mut rng)?;
        if index >= connects / 10 {
            handshakes.push(ms(keys));
            established.push(ms(answer));
        }
    }
    server.shutdown();
    Ok((handshakes, established))
}

fn login(server: &Server, rng: &mut StdRng) -> anyhow::Result<(Duration, Duration)> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(server.local_addr())?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut connecting =
        Connecting::new(ConnectConfig::default(), server.public_key(), rng, Time::default())?;
    let mut buffer = [0; DATAGRAM_BYTES];
    let start = Instant::now();
    let now = || Time::default() + start.elapsed();
    let (mut connection, keys) = loop {
        connecting.on_timeout(now())?;
        while let Some(len) = connecting.poll_transmit(now(), &mut buffer) {
            socket.send(&buffer[..len])?;
        }
        let Ok(len) = socket.recv(&mut buffer) else { continue };
        if let Ok(Some(connection)) = connecting.handle(now(), &buffer[..len]) {
            break (connection, start.elapsed());
        }
    };
    while connection.state() == State::Handshaking {
        send(&mut connection, &socket, now())?;
        if let Ok(len) = socket.recv(&mut buffer) {
            // What is not for the session is counted there.
            let _ = connection.handle(now(), &mut buffer[..len], &mut Nobody);
        }
        if connection.next_timeout().is_some_and(|at| now() >= at) {
            connection.on_timeout(now());
        }
    }
    let answer = start.elapsed();
    connection.close(now(), shadowland_proto::DisconnectReason::Leaving);
    send(&mut connection, &socket, now())?;
    ensure!(matches!(connection.state(), State::Closed(_)), "the session goes on");
    Ok((keys, answer))
}

fn send(connection: &mut Connection, socket: &UdpSocket, now: Time) -> anyhow::Result<()> {
    let mut buffer = [0; DATAGRAM_BYTES];
    while let Some(len) = connection.poll_transmit(now, &mut buffer) {
        socket.send(&buffer[..len])?;
    }
    Ok(())
}

/// Lets so many players come within [`STORM`] to a whole server in this process.
fn storm(players: u32) -> anyhow::Result<Storm> {
    let mut config = Config::default();
    config.network.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.session.send_hz = STORM_HZ;
    let server = Server::start(config, Identity::generate(&mut StdRng::seed_from_u64(3)))?;
    let before = server.stats();
    let bots = Bots::start(BotsConfig {
        send_hz: STORM_HZ,
        connect_per_s: f64::from(players) / STORM.as_secs_f64(),
        connect_timeout: STORM_PATIENCE,
        ..BotsConfig::new(server.local_addr(), server.public_key(), players as usize)
    })?;
    let start = Instant::now();
    let mut all_in = None;
    while all_in.is_none() && start.elapsed() < STORM_PATIENCE {
        sleep(Duration::from_millis(20));
        all_in = (bots.stats().playing == players as usize).then(|| start.elapsed());
    }
    let (span, stats, played) = (start.elapsed(), server.stats(), bots.stats());
    drop(bots);
    server.shutdown();
    Ok(Storm {
        storm_players: players,
        storm_all_in_s: all_in.map(|time| time.as_secs_f64()),
        storm_playing: played.playing,
        storm_failed: played.failed + played.lost,
        storm_server_cores: (stats.cpu() - before.cpu()).as_secs_f64() / span.as_secs_f64(),
        storm_tick_p99_ms: stats.ticks.duration_us.value_at_quantile(0.99) as f64 / 1e3,
    })
}

/// Takes messages and does nothing with them.
struct Nobody;

impl Receiver for Nobody {
    fn message(&mut self, _kind: u8, _body: &[u8]) {}
    fn acked(&mut self, _sequence: u64) {}
}
