//! A whole server over the loopback interface.

mod common;

use std::collections::HashSet;
use std::net::UdpSocket;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{Client, config};
use rand::SeedableRng;
use rand::rngs::StdRng;
use shadowland_proto::{
    CloseReason, ConnectConfig, ConnectError, DenyReason, DisconnectReason, DropReason, Identity,
    IntegrityTable, LoginToken, TokenSigner,
};
use shadowland_server::config::{Auth, Config, Consequence, IntegrityConfig, Steering};
use shadowland_server::cpus::CpuList;
use shadowland_server::integrity;
use shadowland_server::server::{Server, StartError};
use shadowland_server::sockets::Steered;
use shadowland_server::stats::{ServerStats, WorkerStats};
use shadowland_wire::codec::{Reader, Writer};
use shadowland_wire::header::{Flags, Header};
use shadowland_wire::message::client::Input;

fn start(config: Config) -> Server {
    Server::start(config, Identity::generate(&mut StdRng::seed_from_u64(7))).unwrap()
}

fn join(server: &Server, seed: u64) -> Client {
    let address = server.local_addr();
    Client::connect(address, server.public_key(), seed, ConnectConfig::default()).unwrap()
}

/// Waits for the counters to say so, for five seconds at most.
fn wait_for(server: &Server, what: &str, done: impl Fn(&ServerStats) -> bool) -> ServerStats {
    let give_up = Instant::now() + Duration::from_secs(5);
    loop {
        let stats = server.stats();
        if done(&stats) {
            return stats;
        }
        assert!(Instant::now() < give_up, "not within five seconds: {what}; {stats:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn players_join_move_and_leave_on_every_worker() {
    for workers in [1, 2] {
        let server = start(config(workers, 100));
        let mut clients: Vec<_> = (0..16).map(|seed| join(&server, seed)).collect();
        for client in &mut clients {
            client.until("welcome and a snapshot", |client| {
                client.heard.welcome.is_some() && client.heard.last.is_some()
            });
        }
        let entities: HashSet<_> =
            clients.iter().map(|client| client.heard.welcome.unwrap().entity.to_bits()).collect();
        assert_eq!(entities.len(), 16, "everybody is somebody else");
        let stats = wait_for(&server, "16 players", |stats| stats.players() == 16);
        assert_eq!(stats.workers.len(), workers);
        assert!(stats.workers.iter().all(|worker| worker.players > 0), "the kernel spreads them: {stats:?}");

        let client = &mut clients[0];
        let before = client.heard.last.unwrap().owner.unwrap().position;
        let forward = Input { forward: 127, ..Input::default() };
        for _ in 0..20 {
            client.step(Some(forward));
        }
        client.until("the last input to be processed", |client| client.heard.last.unwrap().last_input == 20);
        assert_ne!(client.heard.last.unwrap().owner.unwrap().position, before);

        for client in &mut clients[8..] {
            let now = client.now();
            client.connection.close(now, DisconnectReason::Leaving);
            client.step(None);
        }
        let stats = wait_for(&server, "8 players", |stats| stats.players() == 8);
        assert_eq!((stats.sum(|worker| worker.left), stats.sum(|worker| worker.lost)), (8, 0));
    }
}

#[test]
fn everybody_is_told_when_the_server_stops() {
    let server = start(config(2, 100));
    let mut clients: Vec<_> = (0..8).map(|seed| join(&server, seed)).collect();
    for client in &mut clients {
        client.until("a snapshot", |client| client.heard.last.is_some());
    }
    let stats = server.shutdown();
    assert!(stats.ticks.ticks > 0 && stats.cpu() > Duration::ZERO);
    for client in &mut clients {
        client.until("the server's goodbye", |client| client.close_reason().is_some());
        assert_eq!(client.close_reason(), Some(CloseReason::Peer(DisconnectReason::ShuttingDown)));
    }
}

#[test]
fn nothing_leaves_in_clear_after_the_handshake() {
    let server = start(config(1, 10));
    let mut client = join(&server, 1);
    client.until("snapshots", |client| client.heard.snapshots > 30);
    let mut welcome = [0; 32];
    let mut writer = Writer::new(&mut welcome);
    client.heard.welcome.unwrap().encode(&mut writer).unwrap();
    assert!(client.datagrams.len() > 30);
    for datagram in &client.datagrams {
        let header = Header::decode(&mut Reader::new(datagram)).unwrap();
        assert_eq!(header.connection_id, client.connection.id());
        assert!(header.flags.contains(Flags::ENCRYPTED) && header.flags.contains(Flags::CHACHA20_POLY1305));
        let seen = datagram.windows(writer.written().len()).any(|window| window == writer.written());
        assert!(!seen, "the welcome message stands in a datagram");
    }
}

#[test]
fn a_full_server_says_so_and_has_room_again() {
    let server = start(config(1, 2));
    let mut first = join(&server, 1);
    let mut second = join(&server, 2);
    for client in [&mut first, &mut second] {
        client.until("a snapshot", |client| client.heard.last.is_some());
    }
    wait_for(&server, "two players", |stats| stats.players() == 2);
    let quick = || ConnectConfig { timeout: Duration::from_millis(300), ..ConnectConfig::default() };
    let refused = Client::connect(server.local_addr(), server.public_key(), 3, quick());
    assert_eq!(refused.err(), Some(ConnectError::Denied(DenyReason::Full)));

    let now = first.now();
    first.connection.close(now, DisconnectReason::Leaving);
    first.step(None);
    wait_for(&server, "one player", |stats| stats.players() == 1);
    join(&server, 4).until("a snapshot", |client| client.heard.last.is_some());
}

#[test]
fn who_gets_through_the_handshake_of_a_full_world_is_told_too() {
    // Two at once: both are let in by the worker, and the world has room for one.
    let server = start(config(1, 1));
    let mut clients = [join(&server, 1), join(&server, 2)];
    let give_up = Instant::now() + Duration::from_secs(5);
    loop {
        clients.iter_mut().for_each(|client| client.step(None));
        let welcomed = clients.iter().filter(|client| client.heard.last.is_some()).count();
        let refused = clients
            .iter()
            .filter(|client| client.close_reason() == Some(CloseReason::Peer(DisconnectReason::Full)))
            .count();
        if (welcomed, refused) == (1, 1) {
            break;
        }
        assert!(Instant::now() < give_up, "{welcomed} welcomed, {refused} refused");
    }
}

#[test]
fn a_wrong_version_and_a_wrong_key_are_told_apart() {
    let server = start(config(1, 10));
    let quick = || ConnectConfig { timeout: Duration::from_millis(300), ..ConnectConfig::default() };
    let version = ConnectConfig { version: 999, ..quick() };
    let error = Client::connect(server.local_addr(), server.public_key(), 1, version).err();
    assert_eq!(error, Some(ConnectError::Denied(DenyReason::Version)));

    let other = Identity::generate(&mut StdRng::seed_from_u64(8)).public_key();
    let error = Client::connect(server.local_addr(), other, 1, quick()).err();
    assert_eq!(error, Some(ConnectError::NotAccepted));
}

#[test]
fn junk_is_counted_and_disturbs_nobody() {
    let server = start(config(1, 10));
    let mut client = join(&server, 1);
    client.until("a snapshot", |client| client.heard.last.is_some());

    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.connect(server.local_addr()).unwrap();
    let mut forged = client.connection.id().to_le_bytes().to_vec();
    forged.extend([0, 3, 9, 9, 9, 9, 0, 0, 0, 0]);
    forged.resize(80, 0xaa);
    let mut nobody = forged.clone();
    nobody[..4].copy_from_slice(&[0, 0xff, 0, 1]);
    for _ in 0..20 {
        for junk in [&[][..], &[0; 3], &[0; 1200], &[0xff; 500], &forged, &nobody, &vec![1; 3000]] {
            stranger.send(junk).unwrap();
        }
        client.step(None);
    }
    let stats = wait_for(&server, "all junk counted", |stats| {
        stats.sum(|worker| worker.dropped.total()) >= 120 && stats.sum(|worker| worker.oversized) >= 20
    });
    let by = |reason| stats.sum(|worker| worker.dropped.by(reason));
    let expected = [DropReason::NotProtocol, DropReason::BadTag, DropReason::UnknownSession].map(by);
    assert_eq!(expected, [80, 20, 20], "{stats:?}");
    let before = client.heard.snapshots;
    client.until("more snapshots", |client| client.heard.snapshots > before + 10);
    assert_eq!(client.close_reason(), None);
}

#[test]
fn a_silent_player_is_gone_after_the_idle_timeout() {
    let mut config = config(1, 10);
    config.session.idle_timeout = Duration::from_millis(300);
    let server = start(config);
    let mut client = join(&server, 1);
    client.until("a snapshot", |client| client.heard.last.is_some());
    drop(client);
    let stats = wait_for(&server, "nobody", |stats| stats.players() == 0);
    assert_eq!(stats.sum(|worker| worker.lost), 1);
}

#[test]
fn fewer_packets_a_second_on_request() {
    let mut config = config(1, 10);
    config.session.send_hz = 10;
    let server = start(config);
    let mut client = join(&server, 1);
    client.until("a snapshot", |client| client.heard.last.is_some());
    let (first, before) = (client.heard.last.unwrap().tick, client.heard.snapshots);
    client.until("ten more", |client| client.heard.snapshots == before + 10);
    let ticks = client.heard.last.unwrap().tick - first;
    // One every six ticks; snapshots that the network or a busy machine lost make it more, and never less.
    assert!(ticks >= 60, "{ticks} ticks for ten snapshots");
    let stats = server.stats();
    let (snapshots, ticks) = (stats.sum(|worker| worker.snapshots), stats.ticks.ticks);
    assert!(snapshots * 6 <= ticks + 6, "{snapshots} snapshots in {ticks} ticks");
}

#[test]
fn subscribers_see_every_tick_and_the_ticks_keep_their_time() {
    let server = start(config(1, 10));
    let tap = server.frame_tap(1000);
    let mut last: Option<(u32, Instant)> = None;
    for _ in 0..60 {
        let published = tap.next_timeout(Duration::from_secs(1)).expect("a frame");
        if let Some((tick, started)) = last {
            assert_eq!(published.frame.tick(), tick + 1);
            assert!(published.tick_started > started);
        }
        last = Some((published.frame.tick(), published.tick_started));
    }
    assert_eq!(tap.missed(), 0);
    let stats = wait_for(&server, "durations", |stats| stats.ticks.duration_us.len() > 30);
    assert!(stats.latencies.send_us.len() > 30);
    // From the start of a tick to its last datagram: first it is simulated, then a worker sends what came of it. The
    // histograms keep two digits.
    let parts = stats.ticks.simulation_us.min() + stats.latencies.send_us.min();
    let whole = stats.ticks.duration_us.min();
    assert!(whole + whole / 50 + 2 >= parts, "{whole} us, of which {parts}");
}

#[test]
fn a_port_in_use_is_one_clear_error_with_any_number_of_workers() {
    let first = start(config(2, 10));
    for workers in [1, 2] {
        let mut config = config(workers, 10);
        config.network.listen = first.local_addr();
        let error = Server::start(config, Identity::generate(&mut StdRng::seed_from_u64(9))).unwrap_err();
        assert!(matches!(error, StartError::Bind { .. }));
        let message = error.to_string();
        assert!(message.starts_with(&format!("cannot listen on {}: ", first.local_addr())), "{message}");
        assert_eq!(message.lines().count(), 1);
    }
}

/// Another port, as when a router forgets the old one: the datagrams still reach the worker of the session, and
/// everything goes on there after the new address was proved.
#[test]
fn a_player_whose_address_changes_keeps_playing_on_its_worker() {
    let stats = addresses_change(config(2, 100), Steered::ByKernel);
    assert_eq!(stats.sum(|worker| worker.passed_on), 0, "the kernel brings everything to its worker");
}

/// The same where the kernel refuses to steer: it chooses a worker by the new address, and the workers pass on what
/// is not theirs.
#[test]
fn without_steering_workers_pass_on_what_is_not_theirs() {
    for workers in [2, 3] {
        let mut config = config(workers, 100);
        config.network.steering = Steering::Workers;
        let stats = addresses_change(config, Steered::ByWorkers);
        // Of 24 new addresses one at least is another worker's, but for one run in ten million.
        assert!(stats.sum(|worker| worker.passed_on) > 0, "{stats:?}");
        let lost =
            |worker: &WorkerStats| worker.passing_dropped + worker.dropped.by(DropReason::UnknownSession);
        assert_eq!(stats.sum(lost), 0, "{stats:?}");
    }
}

/// Eight players change their address three times and play on.
fn addresses_change(config: Config, steered: Steered) -> ServerStats {
    let server = start(config);
    assert_eq!(server.sockets().steering, steered);
    let mut clients: Vec<_> = (0..8).map(|seed| join(&server, seed)).collect();
    for client in &mut clients {
        client.until("a snapshot", |client| client.heard.last.is_some());
    }
    for round in 0..3 {
        for client in &mut clients {
            let tick = client.heard.last.unwrap().tick;
            client.socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.socket.connect(server.local_addr()).unwrap();
            client.socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
            for _ in 0..3 {
                client.step(Some(Input::default()));
            }
            client.until("snapshots at the new address", |client| {
                client.heard.last.unwrap().tick > tick + 30 * (1 + round)
            });
        }
    }
    let stats = server.stats();
    assert_eq!((stats.players(), stats.sum(|worker| worker.lost)), (8, 0));
    assert!(clients.iter().all(|client| client.close_reason().is_none()));
    stats
}

#[test]
fn workers_run_where_they_are_put_or_the_server_says_what_it_may_use() {
    let mut config = config(2, 10);
    config.network.worker_cpus = CpuList::allowed();
    let server = start(config.clone());
    join(&server, 1).until("a snapshot", |client| client.heard.last.is_some());
    drop(server);

    config.network.worker_cpus = "1023".parse().unwrap();
    let error = Server::start(config, Identity::generate(&mut StdRng::seed_from_u64(9))).unwrap_err();
    let message = error.to_string();
    assert!(message.starts_with("network.worker_cpus names CPUs that this process may not use: [1023]"));
    assert!(message.contains(&format!("allowed: some of {}", CpuList::allowed())), "{message}");
}

#[test]
fn what_the_kernel_granted_is_told() {
    let mut config = config(1, 10);
    config.network.recv_buffer_bytes = 70_000;
    config.network.send_buffer_bytes = 80_000;
    let server = start(config);
    let truth = *server.sockets();
    assert_eq!((truth.recv_buffer_bytes, truth.send_buffer_bytes), (Some(70_000), Some(80_000)));
    assert_eq!(truth.steering, Steered::Alone);
    assert!(truth.to_string().starts_with("each socket has 70000 bytes of buffer for receiving"));
}

/// A server that checks the keys of client version 7 about every second, and that version's table.
fn checking(name: &str, consequence: Consequence) -> (Server, Arc<IntegrityTable>) {
    let tables = std::env::temp_dir().join(format!("shadowland-{name}-{}", std::process::id()));
    let table = IntegrityTable::generate(NonZeroU16::new(7).unwrap(), &mut StdRng::seed_from_u64(30));
    integrity::keep_table(&tables.join("7.table"), &table).unwrap();
    let mut config = config(2, 100);
    let interval = Duration::from_secs(1);
    config.security.integrity = Some(IntegrityConfig { tables: tables.clone(), interval, consequence });
    let server = start(config);
    std::fs::remove_dir_all(tables).unwrap();
    (server, Arc::new(table))
}

fn join_with_table(server: &Server, seed: u64, table: &Arc<IntegrityTable>) -> Client {
    let config = ConnectConfig { integrity: Some(Arc::clone(table)), ..ConnectConfig::default() };
    Client::connect(server.local_addr(), server.public_key(), seed, config).unwrap()
}

#[test]
fn who_fails_an_integrity_challenge_is_disconnected_and_told_why() {
    let (server, table) = checking("disconnect", Consequence::Disconnect);
    let forged = IntegrityTable::generate(NonZeroU16::new(7).unwrap(), &mut StdRng::seed_from_u64(31));
    let mut honest = join_with_table(&server, 1, &table);
    let mut cheat = join_with_table(&server, 2, &Arc::new(forged));
    for client in [&mut honest, &mut cheat] {
        client.until("a snapshot", |client| client.heard.last.is_some());
    }
    cheat.until("the server's verdict", |client| client.close_reason().is_some());
    assert_eq!(cheat.close_reason(), Some(CloseReason::Peer(DisconnectReason::Integrity)));
    let stats = wait_for(&server, "one player", |stats| stats.players() == 1);
    let counted = [stats.sum(|worker| worker.integrity_failed), stats.sum(|worker| worker.lost)];
    assert_eq!(counted, [1, 1]);

    let challenged = Instant::now() + Duration::from_secs(4);
    honest.until("some challenges", |_| Instant::now() > challenged);
    assert_eq!(honest.close_reason(), None);
    assert_eq!(server.stats().sum(|worker| worker.integrity_failed), 1);
}

#[test]
fn where_failed_challenges_are_only_logged_everybody_plays_on() {
    let (server, _) = checking("log", Consequence::Log);
    let forged = IntegrityTable::generate(NonZeroU16::new(7).unwrap(), &mut StdRng::seed_from_u64(31));
    let mut cheat = join_with_table(&server, 2, &Arc::new(forged));
    let mut failed = 0;
    cheat.until("two failures", |_| {
        failed = server.stats().sum(|worker| worker.integrity_failed);
        failed >= 2
    });
    let before = cheat.heard.snapshots;
    cheat.until("more snapshots", |client| client.heard.snapshots > before + 10);
    assert_eq!((cheat.close_reason(), server.stats().players()), (None, 1));
}

#[test]
fn without_tables_a_server_that_checks_integrity_does_not_start() {
    let mut config = config(1, 10);
    config.security.integrity = Some(IntegrityConfig {
        tables: "/nonexistent/tables".into(),
        interval: Duration::from_secs(1),
        consequence: Consequence::Log,
    });
    let error = Server::start(config, Identity::generate(&mut StdRng::seed_from_u64(9))).unwrap_err();
    assert!(error.to_string().starts_with("/nonexistent/tables: cannot read tables"), "{error}");
}

/// A server that asks for login tokens, and who signs them.
fn guarded(mut config: Config, name: &str) -> (Server, TokenSigner) {
    let signer = TokenSigner::generate(&mut StdRng::seed_from_u64(20));
    let keys = std::env::temp_dir().join(format!("shadowland-token-keys-{name}-{}", std::process::id()));
    let digits: String = signer.public_key().iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::write(&keys, digits).unwrap();
    config.security.auth = Auth::Token { keys: keys.clone() };
    let server = start(config);
    std::fs::remove_file(keys).unwrap();
    (server, signer)
}

/// A client's way into such a server, as this account.
fn login(signer: &TokenSigner, seed: u64, account: u64) -> ConnectConfig {
    let identity = Identity::generate(&mut StdRng::seed_from_u64(seed));
    let (id, client_key) = ([seed as u8; 16], identity.public_key());
    let issued_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let token = LoginToken { id, account, issued_s, expires_s: issued_s + 60, client_key };
    let token = Some(signer.issue(&token).to_vec());
    ConnectConfig { token, identity: Some(identity), ..ConnectConfig::default() }
}

#[test]
fn a_player_who_crashed_comes_back_to_a_full_server() {
    for workers in [1, 2] {
        let (server, signer) = guarded(config(workers, 2), &format!("full-{workers}"));
        let connect = |seed, account| {
            let config = ConnectConfig { timeout: Duration::from_secs(3), ..login(&signer, seed, account) };
            Client::connect(server.local_addr(), server.public_key(), seed, config)
        };
        let mut players: Vec<_> = (0..2).map(|account| connect(account, account).unwrap()).collect();
        for player in &mut players {
            player.until("a snapshot", |client| client.heard.last.is_some());
        }
        wait_for(&server, "two players", |stats| stats.players() == 2);
        assert_eq!(connect(10, 9).err(), Some(ConnectError::Denied(DenyReason::Full)));
        // Several times, so that the new session is on the worker of the old one, and on the other.
        for seed in 20..26 {
            // Gone without a word: the server believes that it is still there.
            let gone = players.remove(0);
            let account = seed % 2;
            let mut back = connect(seed, account).unwrap();
            back.until("a snapshot", |client| client.heard.last.is_some());
            drop(gone);
            wait_for(&server, "two players", |stats| stats.players() == 2);
            assert_eq!(back.close_reason(), None);
            players.push(back);
        }
    }
}

#[test]
fn with_tokens_the_newest_session_of_an_account_stays() {
    let (server, signer) = guarded(config(2, 100), "newest");
    let login =
        |seed: u64| Client::connect(server.local_addr(), server.public_key(), seed, login(&signer, seed, 5));
    // On both workers, most likely.
    let mut older = login(1).unwrap();
    older.until("a snapshot", |client| client.heard.last.is_some());
    for seed in 2..8 {
        let mut newer = login(seed).unwrap();
        newer.until("a snapshot", |client| client.heard.last.is_some());
        older.until("to be replaced", |client| client.close_reason().is_some());
        assert_eq!(older.close_reason(), Some(CloseReason::Peer(DisconnectReason::Replaced)));
        older = newer;
    }
    wait_for(&server, "one player", |stats| stats.players() == 1);
    older.until("more snapshots", |client| client.heard.snapshots > 10);

    let config = ConnectConfig { timeout: Duration::from_millis(600), ..ConnectConfig::default() };
    let refused = Client::connect(server.local_addr(), server.public_key(), 99, config).err();
    assert_eq!(refused, Some(ConnectError::Denied(DenyReason::Token)));
}

#[test]
fn what_was_set_by_hand_is_checked_too() {
    let start = |change: fn(&mut Config)| {
        let mut config = config(1, 10);
        change(&mut config);
        Server::start(config, Identity::generate(&mut StdRng::seed_from_u64(7)))
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    assert!(start(|config| config.network.workers = 0).contains("network.workers is 0; allowed: 1 to 64"));
    assert!(start(|config| config.session.send_hz = 7).contains("a divisor of 60"));
    assert!(start(|config| config.session.max_players = 2).contains("session.max_players, which is 2"));
    assert!(start(|config| config.world.npcs = 1 << 20).contains("entity_capacity"));
}
