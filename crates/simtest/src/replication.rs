//! Replication alone: a world, viewers and replicas over bad links, without the session protocol, so that
//! thousands of seeds take minutes.
//!
//! Every seed is another world: other cell sizes and distances, entities that walk, teleport, appear and
//! vanish, viewers among them, and links with up to 30 % loss. One in three is a small map with crowds on it, which form
//! and dissolve all the time. At the end the world stands still, the links
//! heal, and every replica must equal the truth.

use std::hash::{DefaultHasher, Hasher};

use rand::{Rng, RngExt, SeedableRng};
use rand_pcg::Pcg32;
use shadowland_client::replica::Replica;
use shadowland_wire::codec::Writer;
use shadowland_wire::entity::{EntityId, EntityType};
use shadowland_wire::message::client::{Buttons, Input};
use shadowland_world::config::{CombatConfig, MapConfig};
use shadowland_world::replication::Frame;
use shadowland_world::{Encoder, PlayerHandle, Viewer, World, WorldConfig, sight};

use crate::link::{Conditions, Link};
use crate::truth;
use crate::{Outcome, TICK_US, Violation};

/// Bytes that a snapshot message may have.
const MESSAGE_BYTES: usize = 1150;
/// Packets that one acknowledgement covers: the newest and a mask of 64.
const ACK_MASK: u64 = 64;

/// One snapshot on its way: packet number and message.
type Down = (u64, Vec<u8>);
/// An acknowledgement on its way: the newest packet that was applied, and a bit for each of those before it.
type Up = (u64, u64);

struct Player {
    handle: PlayerHandle,
    viewer: Viewer,
    replica: Replica,
    down: Link<Down>,
    up: Link<Up>,
    next_packet: u64,
    newest_applied: u64,
    applied_mask: u64,
    input: u32,
    budget: usize,
    rtt_ticks: u32,
    conditions: Conditions,
    /// Until when nothing passes.
    outage_until: u32,
    /// Of a player whom the server has no time for in some ticks: what they depend on.
    gaps: Option<Pcg32>,
    /// Ticks that are still to be left out.
    gap: u32,
    /// Poses that acted on somebody.
    poses: u64,
    /// Fingerprint of all snapshots.
    traffic: DefaultHasher,
}

/// Runs one seed.
pub fn run(seed: u64) -> Result<Outcome, Violation> {
    let mut random = Pcg32::seed_from_u64(seed);
    let config = random_config(&mut random, seed);
    let mut world = World::new(config.clone());
    let mut frame = Frame::new(&config);
    let mut encoder = Encoder::new();
    let mut players: Vec<Player> =
        (0..random.random_range(2..8)).map(|_| join(&mut world, &mut random)).collect();
    // Every fourth player misses turns.
    for (number, player) in (0..).zip(&mut players) {
        player.gaps = ((seed + number) % 4 == 1).then(|| Pcg32::seed_from_u64(seed << 8 | number));
    }
    let mut loose: Vec<EntityId> = Vec::new();
    let mut hidden: Vec<Hidden> = Vec::new();
    // Some runs outlive tombstones and empty pages.
    let ticks = if random.random_ratio(1, 8) {
        random.random_range(1_200..2_800)
    } else {
        random.random_range(120..400)
    };
    let mut now_us = 0;

    for tick in 0..ticks {
        for player in &mut players {
            player.weather(tick, &mut random);
        }
        disturb(&mut world, &mut random, &mut players, &mut loose);
        conceal(&mut world, &mut random, &players, &loose, &mut hidden);
        step(&mut world, &mut frame, &mut encoder, &mut players, &mut now_us)?;
    }

    // Stillness, healed links: long enough for two round trips, the slowest period, and what the budget owes.
    world.pause_creatures(true);
    for &id in &loose {
        world.steer(id, [0.0; 3], [0.0; 3]);
    }
    for player in &mut players {
        (player.gaps, player.gap) = (None, 0);
        player.down.set_conditions(Conditions::PERFECT);
        player.up.set_conditions(Conditions::PERFECT);
        send_input(&mut world, player, Input::default());
    }
    for _ in 0..240 {
        step(&mut world, &mut frame, &mut encoder, &mut players, &mut now_us)?;
    }
    truth::check_pages(&frame, &world)?;
    let mut outcome = Outcome::default();
    for player in &players {
        if let Some(difference) = truth::difference(&frame, player.handle, &player.viewer, &player.replica) {
            return Err(Violation(difference));
        }
        truth::check_hidden(&frame, &world, player.handle, &player.replica, |id| {
            hidden.iter().any(|(entity, seers)| *entity == id && seers.contains(&player.handle))
        })?;
        outcome.messages += player.next_packet;
        outcome.traffic_hash ^= player.traffic.finish();
        outcome.poses += player.poses;
        outcome.faults += player.down.faults() + player.up.faults();
    }
    outcome.world_hash = world.hash();
    Ok(outcome)
}

fn random_config(random: &mut Pcg32, seed: u64) -> WorldConfig {
    let far = random.random_range(2_000.0..60_000.0);
    // One to four layers; players are seen from afar, or not.
    let distances = EntityType::ALL.map(|_| far / random.random_range(1..=6) as f64);
    let mut layers = sight::layers(|kind| distances[kind as usize], 1.0);
    for layer in &mut layers {
        layer.cells_per_distance = random.random_range(0.7..4.0);
    }
    let crowds = seed.is_multiple_of(3);
    WorldConfig {
        seed,
        lattice_step_cm: [0.5, 1.0, 2.0][random.random_range(0..3)],
        map: MapConfig {
            size_cm: random.random_range(1.0..6.0) * far * if crowds { 0.15 } else { 1.0 },
            height_cm: 10_000.0,
        },
        entity_capacity: 2_000,
        player_capacity: 8,
        layers,
        npcs: random.random_range(if crowds { 20..500 } else { 0..200 }),
        crowd_entities: if crowds { random.random_range(4..200) } else { 288 },
        // All is over long before views are compared.
        combat: CombatConfig {
            damage: 300,
            cooldown_ticks: 10,
            combat_ticks: 40,
            dead_ticks: 60,
            ..CombatConfig::default()
        },
        near_share: random.random_range(0.0..=1.0),
        distant_period: random.random_range(1..6),
        look_periods: EntityType::ALL
            .map(|_| if random.random_ratio(1, 4) { random.random_range(1..20) } else { 1 }),
        ..WorldConfig::default()
    }
}

fn join(world: &mut World, random: &mut Pcg32) -> Player {
    let handle = world.join().expect("capacity for all players");
    let conditions = Conditions {
        loss: random.random_range(0.0..0.3),
        latency_us: random.random_range(1_000..150_000),
        jitter_us: random.random_range(0..60_000),
        reorder: random.random_range(0.0..0.3),
        duplicate: random.random_range(0.0..0.05),
    };
    let mut link_random = || Pcg32::seed_from_u64(random.next_u64());
    let (down, up) = (Link::new(conditions, link_random()), Link::new(conditions, link_random()));
    Player {
        handle,
        viewer: Viewer::new(handle),
        replica: Replica::new(),
        down,
        up,
        next_packet: 1,
        newest_applied: 0,
        applied_mask: 0,
        input: 0,
        budget: random.random_range(300..3_000),
        rtt_ticks: (2 * conditions.latency_us / TICK_US) as u32,
        conditions,
        outage_until: 0,
        gaps: None,
        gap: 0,
        poses: 0,
        traffic: DefaultHasher::new(),
    }
}

impl Player {
    /// Whether the server has no time for the player in this tick.
    fn has_gap(&mut self) -> bool {
        if self.gap > 0 {
            self.gap -= 1;
            return true;
        }
        if let Some(random) = &mut self.gaps
            && random.random_ratio(1, 6)
        {
            self.gap = random.random_range(1..6);
        }
        false
    }

    /// Outages come and go: of one direction or of both, for a moment or for longer than tombstones live.
    fn weather(&mut self, tick: u32, random: &mut Pcg32) {
        let outage = Conditions { loss: 1.0, ..self.conditions };
        if tick >= self.outage_until {
            self.down.set_conditions(self.conditions);
            self.up.set_conditions(self.conditions);
            if random.random_ratio(1, 500) {
                let long = random.random_ratio(1, 4);
                self.outage_until = tick + random.random_range(if long { 300..1_300 } else { 5..120 });
                if random.random() {
                    self.down.set_conditions(outage);
                }
                self.up.set_conditions(outage);
            }
        }
    }
}

/// Everything that may happen to a world within a tick.
fn disturb(world: &mut World, random: &mut Pcg32, players: &mut [Player], loose: &mut Vec<EntityId>) {
    for player in players.iter_mut() {
        if random.random_ratio(1, 20) {
            let input = Input {
                forward: random.random(),
                right: random.random(),
                yaw: random.random(),
                buttons: Buttons(random.random_range(0..16)),
            };
            // Several at once are caught up with, two a tick.
            for _ in 0..random.random_range(1..6) {
                send_input(world, player, input);
            }
        }
        if random.random_ratio(1, 200) {
            let pages: Vec<_> = player.replica.pages().map(|(page, _)| page).collect();
            if !pages.is_empty() {
                player.viewer.reset_page(pages[random.random_range(0..pages.len())]);
            }
        }
        if random.random_ratio(1, 300) {
            let point = random_point(world, random);
            world.teleport(player.handle.entity, point);
        }
    }
    // Bursts, so that tombstones overflow.
    if random.random_ratio(1, 15) {
        for _ in 0..random.random_range(1..40) {
            let kind = EntityType::ALL[random.random_range(1..EntityType::ALL.len())];
            let point = random_point(world, random);
            loose.extend(world.spawn(kind, point));
        }
    }
    if random.random_ratio(1, 15) {
        for _ in 0..random.random_range(0..=loose.len()) {
            let id = loose.swap_remove(random.random_range(0..loose.len()));
            world.despawn(id);
        }
    }
    if random.random_ratio(1, 5) && !loose.is_empty() {
        let id = loose[random.random_range(0..loose.len())];
        let point = random_point(world, random);
        world.teleport(id, point);
    }
    if random.random_ratio(1, 3) && !loose.is_empty() {
        let id = loose[random.random_range(0..loose.len())];
        let mut upto = |most: f64| [0; 3].map(|_: i32| random.random_range(-most..most));
        let velocity = upto(if id.index().is_multiple_of(2) { 40_000.0 } else { 3_000.0 });
        world.steer(id, velocity, upto(360.0));
    }
}

/// Somebody hidden, and those who may see it.
type Hidden = (EntityId, Vec<PlayerHandle>);

/// Entities turn invisible, are seen by others, and show themselves again.
fn conceal(
    world: &mut World,
    random: &mut Pcg32,
    players: &[Player],
    loose: &[EntityId],
    hidden: &mut Vec<Hidden>,
) {
    hidden.retain(|(id, _)| world.is_hidden(*id));
    if random.random_ratio(1, 30) {
        let any = random.random_range(0..players.len() + loose.len());
        let id = match players.get(any) {
            Some(player) => player.handle.entity,
            None => loose[any - players.len()],
        };
        let seers: Vec<_> =
            players.iter().map(|player| player.handle).filter(|_| random.random_ratio(1, 3)).collect();
        world.hide(id, &seers);
        hidden.retain(|(entity, _)| *entity != id);
        hidden.push((id, seers));
    }
    if random.random_ratio(1, 60) && !hidden.is_empty() {
        let (id, _) = hidden.swap_remove(random.random_range(0..hidden.len()));
        world.reveal(id);
    }
}

fn random_point(world: &World, random: &mut Pcg32) -> [f64; 3] {
    let half = world.config().map.size_cm / 2.0;
    [random.random_range(-half..half), random.random_range(-half..half), random.random_range(0.0..500.0)]
}

fn send_input(world: &mut World, player: &mut Player, input: Input) {
    player.input += 1;
    world.input(player.handle, player.input, input);
}

/// One tick of everything.
fn step(
    world: &mut World,
    frame: &mut Frame,
    encoder: &mut Encoder,
    players: &mut [Player],
    now_us: &mut u64,
) -> Result<(), Violation> {
    for player in players.iter_mut() {
        receive_acks(player, *now_us);
    }
    world.tick();
    world.publish(frame);
    for player in players.iter_mut() {
        if player.has_gap() {
            continue;
        }
        send_snapshot(player, frame, encoder, *now_us)?;
        truth::check_coverage(frame, player.handle, &player.viewer)?;
    }
    *now_us += TICK_US;
    for player in players.iter_mut() {
        receive_snapshots(player, *now_us)?;
    }
    Ok(())
}

fn send_snapshot(
    player: &mut Player,
    frame: &Frame,
    encoder: &mut Encoder,
    now_us: u64,
) -> Result<(), Violation> {
    let Some(mut snapshot) = player.viewer.snapshot(frame, encoder, player.rtt_ticks, player.budget) else {
        return Err(Violation("a player is missing from the frame".to_owned()));
    };
    while snapshot.wants_packet() {
        let mut buffer = [0; MESSAGE_BYTES];
        let mut writer = Writer::new(&mut buffer);
        snapshot.write(&mut writer).map_err(|_| Violation("a snapshot's header does not fit".to_owned()))?;
        let message = writer.written().to_vec();
        let packet = player.next_packet;
        player.next_packet += 1;
        snapshot.sent(packet);
        player.traffic.write(&message);
        player.down.send(now_us, (packet, message));
    }
    Ok(())
}

fn receive_snapshots(player: &mut Player, now_us: u64) -> Result<(), Violation> {
    let mut heard = false;
    while let Some((packet, message)) = player.down.receive(now_us) {
        // The replay window of the session protocol: nothing twice, nothing too old.
        let newest = player.newest_applied;
        if packet > newest {
            let shift = packet - newest;
            player.applied_mask =
                if shift >= ACK_MASK { 0 } else { player.applied_mask << shift | 1 << (shift - 1) };
            if newest == 0 {
                player.applied_mask = 0;
            }
            player.newest_applied = packet;
        } else {
            let back = newest - packet;
            if back == 0 || back > ACK_MASK || player.applied_mask & 1 << (back - 1) != 0 {
                continue;
            }
            player.applied_mask |= 1 << (back - 1);
        }
        let applied = player
            .replica
            .apply_snapshot(&message, &mut ())
            .map_err(|error| Violation(format!("a snapshot is refused: {error}")))?;
        player.poses += u64::from(applied.poses);
        heard = true;
        // With acknowledgements after application this never happens; if it does, it is a bug.
        if let Some(page) = player.replica.resets().next() {
            return Err(Violation(format!("page {page:?} lacks its baseline")));
        }
    }
    if heard {
        player.up.send(now_us, (player.newest_applied, player.applied_mask));
    }
    Ok(())
}

fn receive_acks(player: &mut Player, now_us: u64) {
    while let Some((newest, mask)) = player.up.receive(now_us) {
        player.viewer.acked(newest);
        for back in 0..ACK_MASK {
            if mask & 1 << back != 0 {
                player.viewer.acked(newest - 1 - back);
            }
        }
    }
}
