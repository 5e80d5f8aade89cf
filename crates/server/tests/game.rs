//! A game in a running world: what it does, players see; and what it cannot do leaves the world as it was.

mod common;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::config;
use common::stage::{self, ALL, Stage};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shadowland_client::view::EntityView;
use shadowland_client::{Client, Event, Reliable, ServerKey};
use shadowland_proto::{DisconnectReason, Identity};
use shadowland_server::game::{EntityId, EntityType, Game, GameWorld, Input, PlayerHandle, SpawnError};
use shadowland_server::mail::{Mail, Mailbox};
use shadowland_server::server::Server;

const SAY: u8 = 0x30;
const CHAT: Reliable = Reliable::Ordered(1);

/// A vehicle that drives round and round, a creature for each player that only this one sees, and an item where a player
/// wants one.
struct Town {
    mailbox: Mailbox,
    car: Option<EntityId>,
    secrets: HashMap<PlayerHandle, EntityId>,
    item: Option<EntityId>,
}

impl Town {
    fn new(mailbox: Mailbox) -> Self {
        Self { mailbox, car: None, secrets: HashMap::new(), item: None }
    }
}

impl Game for Town {
    fn tick(&mut self, world: &mut GameWorld<'_>) {
        let car = *self.car.get_or_insert_with(|| world.spawn(EntityType::Vehicle, [0.0; 3]).unwrap());
        let degrees = f64::from(world.now() % 360);
        let (sin, cos) = degrees.to_radians().sin_cos();
        assert!(world.steer(car, [1_500.0 * cos, 1_500.0 * sin, 0.0], [degrees, 0.0, 0.0]));
        while let Some(mail) = self.mailbox.try_next() {
            let Mail::Message { from, body, .. } = mail else { continue };
            match &*body {
                b"spawn" => {
                    let here = world.position_cm(from.player().entity).unwrap();
                    self.item = Some(world.spawn(EntityType::Item, here).unwrap());
                }
                _ => assert!(world.despawn(self.item.take().unwrap())),
            }
        }
    }

    fn joined(&mut self, world: &mut GameWorld<'_>, player: PlayerHandle) {
        assert!(world.teleport(player.entity, [500.0, 0.0, 0.0]));
        let secret = world.spawn(EntityType::Npc, [600.0, 0.0, 0.0]).unwrap();
        assert!(world.hide(secret, &[player]));
        self.secrets.insert(player, secret);
    }

    fn left(&mut self, world: &mut GameWorld<'_>, player: PlayerHandle) {
        assert!(world.despawn(self.secrets.remove(&player).unwrap()));
    }
}

fn start<G: Game + 'static>(game: impl FnOnce(Mailbox) -> G) -> Server {
    let mut config = config(2, 10);
    config.world.npcs = 0;
    Server::start_with_game(config, Identity::generate(&mut StdRng::seed_from_u64(7)), game).unwrap()
}

/// Lets time pass until `done`, for twenty seconds at most.
fn until(clients: &mut [Client], what: &str, mut done: impl FnMut(&[Client]) -> bool) {
    let give_up = Instant::now() + Duration::from_secs(20);
    loop {
        for client in &mut *clients {
            if let Some(Event::Disconnected(end)) = client.update().last() {
                panic!("{end}");
            }
        }
        if done(clients) {
            return;
        }
        assert!(Instant::now() < give_up, "not within twenty seconds: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn seen(client: &Client, kind: EntityType) -> Vec<EntityView> {
    client.view().entities().filter(|entity| entity.kind == kind).collect()
}

#[test]
fn players_see_what_the_game_does() {
    let server = start(Town::new);
    let join = || Client::connect(server.local_addr(), ServerKey(server.public_key())).unwrap();
    let mut clients = vec![join(), join()];
    let all_see = |kind, count| {
        move |clients: &[Client]| clients.iter().all(|client| seen(client, kind).len() == count)
    };
    until(&mut clients, "both see the vehicle", all_see(EntityType::Vehicle, 1));
    until(&mut clients, "both see each other", all_see(EntityType::Player, 2));
    let start = seen(&clients[0], EntityType::Vehicle)[0].position_cm;
    until(&mut clients, "it has moved by 5 m", |clients| {
        let [x, y, _] = seen(&clients[1], EntityType::Vehicle)[0].position_cm;
        (x - start[0]).hypot(y - start[1]) > 500.0
    });

    clients[0].send(CHAT, SAY, b"spawn").unwrap();
    until(&mut clients, "both see the item", all_see(EntityType::Item, 1));
    assert_eq!(seen(&clients[1], EntityType::Item)[0].position_cm, [500.0, 0.0, 0.0]);
    clients[1].send(CHAT, SAY, b"despawn").unwrap();
    until(&mut clients, "nobody sees the item", all_see(EntityType::Item, 0));

    until(&mut clients, "each sees its secret", all_see(EntityType::Npc, 1));
    let [mine, other] = [0, 1].map(|number| seen(&clients[number], EntityType::Npc)[0].id);
    assert_ne!(mine, other);
    assert_eq!(server.stats().ticks.entities, 5);

    clients.remove(1).disconnect();
    until(&mut clients, "the other one sees nobody else", all_see(EntityType::Player, 1));
    until(&mut clients, "its secret has gone with it", |_| server.stats().ticks.entities == 3);
    assert!(!server.has_failed());
}

#[test]
fn a_panic_of_the_game_stops_the_server() {
    struct Broken;
    impl Game for Broken {
        fn tick(&mut self, world: &mut GameWorld<'_>) {
            assert!(world.now() < 5, "meant to happen: a game that panics");
        }
    }
    let server = start(|_| Broken);
    until(&mut [], "the server has failed", |_| server.has_failed());
}

/// What happened in which tick.
type Log = Arc<Mutex<Vec<(u32, String)>>>;

/// Writes down what it is told, and does what its seed says.
struct Recorder {
    log: Log,
    random: StdRng,
    others: Vec<EntityId>,
}

impl Recorder {
    fn note(&self, world: &GameWorld<'_>, what: String) {
        self.log.lock().unwrap().push((world.now(), what));
    }
}

impl Game for Recorder {
    fn tick(&mut self, world: &mut GameWorld<'_>) {
        self.note(world, format!("tick of {}", world.player_count()));
        let kind = EntityType::ALL[self.random.random_range(1..EntityType::ALL.len())];
        let mut point =
            || [0, 0, 1].map(|up| self.random.random_range(-9_000.0..9_000.0) * f64::from(1 - up));
        self.others.push(world.spawn(kind, point()).unwrap());
        let (velocity, yaw) = (point(), self.random.random());
        for &id in &self.others {
            world.steer(id, velocity, [0.0; 3]);
            world.walk(id, Input { forward: 100, yaw, ..Input::default() });
        }
        if self.others.len() > 20 {
            assert!(world.despawn(self.others.remove(0)));
        }
    }

    fn joined(&mut self, world: &mut GameWorld<'_>, player: PlayerHandle) {
        assert!(world.is_playing(player) && world.kind(player.entity) == Some(EntityType::Player));
        self.note(world, format!("joined {}", player.slot));
    }

    fn left(&mut self, world: &mut GameWorld<'_>, player: PlayerHandle) {
        assert!(world.is_playing(player) && world.position_cm(player.entity).is_some());
        self.note(world, format!("left {}", player.slot));
    }
}

/// Three join one after the other and one leaves, under virtual time: what the game heard, and the world at the end.
fn recorded(seed: u64) -> (Vec<(u32, String)>, u64) {
    let mut stage = Stage::new(&stage::config(10), &mut StdRng::seed_from_u64(1));
    let log = Log::default();
    let random = StdRng::seed_from_u64(seed);
    stage.server.world.set_game(Recorder { log: Arc::clone(&log), random, others: Vec::new() });
    for _ in 0..3 {
        stage.connect();
        (0..20).for_each(|_| drop(stage.round(ALL)));
    }
    stage.guests[1].connection.close(stage.now, DisconnectReason::Leaving);
    stage.answer(1);
    (0..20).for_each(|_| drop(stage.round(ALL)));
    let log = log.lock().unwrap().clone();
    (log, stage.server.world.world().hash())
}

#[test]
fn the_game_hears_of_everything_in_order_and_the_same_game_makes_the_same_world() {
    let (log, hash) = recorded(1);
    let ticks: Vec<_> = log.iter().filter(|(_, what)| what.starts_with("tick")).collect();
    // Once in each tick, from 0 on, after those who came and went.
    assert!(ticks.iter().map(|(tick, _)| *tick).eq(0..80), "{ticks:?}");
    let mut players = 0;
    for (_, what) in &log {
        match what.split_once(' ').unwrap() {
            ("joined", slot) => {
                assert_eq!(slot, players.to_string());
                players += 1;
            }
            ("left", slot) => {
                assert_eq!(slot, "1");
                players -= 1;
            }
            _ => assert_eq!(*what, format!("tick of {players}")),
        }
    }
    assert_eq!((log.len(), players), (80 + 4, 2));

    assert_eq!(recorded(1), (log, hash));
    assert_ne!(recorded(2).1, hash);
}

/// Does what it must not.
#[derive(Default)]
struct Vandal {
    spawned: usize,
    refused: Arc<Mutex<usize>>,
}

impl Game for Vandal {
    fn tick(&mut self, world: &mut GameWorld<'_>) {
        let nowhere = [f64::NAN, f64::INFINITY, 0.0];
        let players: Vec<_> = world.players().collect();
        for player in &players {
            let id = player.entity;
            assert!(
                !world.despawn(id) && !world.teleport(id, nowhere) && !world.steer(id, [1.0; 3], [0.0; 3])
            );
            assert!(world.hide(id, &players) && world.teleport(id, [f64::MAX, f64::MIN, f64::MAX]));
            world.damage(id, 400);
        }
        assert_eq!(world.spawn(EntityType::Player, [0.0; 3]), Err(SpawnError::Player));
        assert_eq!(world.spawn(EntityType::Item, nowhere), Err(SpawnError::NotFinite));
        // Everything that there is room for comes and goes, until no index is left that has rested.
        let error = loop {
            match world.spawn(EntityType::Vehicle, [f64::MIN; 3]) {
                Ok(id) => {
                    self.spawned += 1;
                    assert!(world.hide(id, &players) && world.steer(id, [f64::MAX; 3], [f64::MAX; 3]));
                    assert!(self.spawned.is_multiple_of(3) || world.despawn(id));
                }
                Err(error) => break error,
            }
        };
        assert_eq!(error, SpawnError::Full);
        *self.refused.lock().unwrap() += 1;
    }

    fn joined(&mut self, world: &mut GameWorld<'_>, player: PlayerHandle) {
        assert!(!world.despawn(player.entity) && world.hide(player.entity, &[]));
    }

    fn left(&mut self, world: &mut GameWorld<'_>, player: PlayerHandle) {
        assert!(world.hide(player.entity, &[player]) && !world.despawn(player.entity));
    }
}

#[test]
fn whatever_a_game_does_players_come_play_and_go() {
    const PLAYERS: usize = 6;
    let mut config = stage::config(PLAYERS);
    config.world.entity_capacity = 60;
    let mut stage = Stage::new(&config, &mut StdRng::seed_from_u64(1));
    let vandal = Vandal::default();
    let refused = Arc::clone(&vandal.refused);
    stage.server.world.set_game(vandal);
    for wave in 0..3 {
        (0..PLAYERS).for_each(|_| stage.connect());
        let ours = wave * PLAYERS..(wave + 1) * PLAYERS;
        // As long as an index rests.
        for _ in 0..1_100 {
            stage.round(ALL);
            ours.clone().for_each(|guest| stage.answer(guest));
        }
        assert_eq!(stage.server.world.world().player_count(), PLAYERS);
        for guest in ours.clone() {
            let heard = &stage.guests[guest].heard;
            assert!(heard.welcome.is_some() && heard.snapshots > 1_000, "{heard:?}");
        }
        for guest in ours {
            stage.guests[guest].connection.close(stage.now, DisconnectReason::Leaving);
            stage.answer(guest);
        }
        (0..10).for_each(|_| drop(stage.round(ALL)));
        assert_eq!(stage.server.world.world().player_count(), 0);
    }
    assert_eq!(*refused.lock().unwrap(), 3 * 1_110);
}
