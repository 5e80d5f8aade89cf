//! What a tick costs, without sockets.
//!
//! The server is the real one: hubs, queues and world as its threads drive them ([`shadowland_server::embed`]), under
//! virtual time. So are the clients: sessions that open every packet and answer, on links with round trips of 1 to 8
//! ticks; what they do is not timed. One in 64 is watched and applies what it gets. The others read of a snapshot the
//! tick and their own state only, and acknowledge it all the same, for ten thousand copies of ten thousand others fit
//! no machine; what the server gets from them, and so what it does, is equal as long as nobody has to ask for a page
//! again, and on links without loss nobody has. Nor do bots look around: they walk and strike blindly, and whom a blow
//! hits is the server's business. Timed are, on every tick: receiving (decrypt, acknowledgements, inputs), simulating,
//! publishing the frame, and serving (choose, encode, seal a snapshot for everybody).

mod alone;
mod floor;
mod per_viewer;
mod shard;
mod sight;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;
use shadowland_bots::town;
use shadowland_bots::wander::Pursuit;
use shadowland_proto::{Identity, Time};
use shadowland_server::config::Config;
use shadowland_server::embed::{Assembly, WorldSide, assemble};
use shadowland_wire::entity::EntityType;
use shadowland_wire::limits::PAGE_SLOTS;
use shadowland_world::Frame;
use shadowland_world::replication::CrowdDetail;

use crate::clock::{measure, ms, percentile};
use alone::SharedPages;
use per_viewer::PerViewer;
use shard::{Shard, Told};

const TICK_HZ: u64 = 60;
/// Others that a player sees on average in `wander`.
const OTHERS_IN_SIGHT: f64 = 50.0;
/// Area of the battle a head in `siege`, in cm^2: 5 square metres.
const SIEGE_CM2: f64 = 50_000.0;
/// Ticks between the last player's joining and the measurement, at the least.
const WARM_UP_TICKS: u64 = 120;
/// Ticks until everybody has joined, at the most.
const JOIN_TICKS: u64 = 3_600;
/// Ticks of stillness before views are compared with the truth.
const STILL_TICKS: u64 = 120;
/// The same in `siege`: until the last of the dead has risen, and the pages have gone round twice.
const STILL_AFTER_SIEGE_TICKS: u64 = 660;

/// What a tick costs, without sockets.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What the players do.
    #[arg(long, value_enum, default_value_t = Workload::Wander)]
    workload: Workload,
    /// How many play.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    players: u32,
    /// Ticks to measure.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    ticks: u32,
    /// Threads that receive and serve; one of them simulates before.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// Where all randomness starts.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Bytes of blocks that a player gets in a tick at most.
    #[arg(long, default_value_t = 1_150)]
    budget: usize,
    /// Cells per interest distance: smaller cells cost time and save bytes.
    #[arg(long)]
    cells_per_distance: Option<f64>,
    /// Measure another way to serve the same players in the same run, and report it on a line of its own.
    #[arg(long, value_enum)]
    contender: Option<Contender>,
    /// Print JSON objects, one a line, instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// Spread out, 50 others in sight, 80 % on random walks.
    Wander,
    /// As wander, but 30 % stand in five hot spots, 5 square metres a head.
    Town,
    /// Everybody in one square, 5 square metres a head, in everybody's sight; everybody moves and fights.
    Siege,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Contender {
    /// Everything for each viewer alone: look at all in sight, compare, encode.
    PerViewer,
}

/// The result, as printed with `--json`.
#[derive(Debug, Serialize)]
struct Report {
    workload: String,
    players: u32,
    threads: u32,
    visible_mean: f64,
    tick_cpu_ms_p50: f64,
    tick_cpu_ms_p99: f64,
    tick_wall_ms_p99: f64,
    /// Medians of CPU time.
    phases: Phases,
    aead_floor_ms: f64,
    nearest_40_hz: f64,
    refresh_s_max: f64,
    allocations_per_tick: f64,
    bytes_per_player_per_s: f64,
    bytes_per_tick_max: u64,
    reduction_percent: f64,
    position_error_cm_max: f64,
    missing_entities: u64,
    extra_entities: u64,
}

/// The contender's result: the players' packets are received, and the world simulated, as in the server's own.
#[derive(Debug, Serialize)]
struct ContenderReport {
    contender: String,
    workload: String,
    players: u32,
    threads: u32,
    visible_mean: f64,
    tick_cpu_ms_p50: f64,
    tick_cpu_ms_p99: f64,
    phases: Phases,
    /// Replication and sealing alone: the contender's, and the server's in the same surroundings.
    replication_ms: f64,
    shared_replication_ms: f64,
    bytes_per_player_per_s: f64,
    reduction_percent: f64,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Phases {
    receive_ms: f64,
    simulate_ms: f64,
    publish_ms: f64,
    serve_ms: f64,
}

/// What one measured tick took.
#[derive(Debug, Clone, Copy, Default)]
struct TickCost {
    receive: Duration,
    simulate: Duration,
    publish: Duration,
    serve: Duration,
    contender: Duration,
    /// The server's own replication in the contender's surroundings.
    alone: Duration,
    wall: Duration,
    allocations: u64,
}

impl TickCost {
    /// Of a part of all ticks, in milliseconds.
    fn percentile(costs: &[Self], part: fn(&Self) -> Duration, share: f64) -> f64 {
        percentile(&mut costs.iter().map(|cost| ms(part(cost))).collect::<Vec<_>>(), share)
    }
}

impl ContenderReport {
    /// From what was measured in the same ticks as `own`, and the bytes that the contender sent in them.
    fn new(own: &Report, costs: &[TickCost], bytes_out: u64) -> Self {
        let of = |part, share| TickCost::percentile(costs, part, share);
        // The session around the packets costs what it costs the server.
        let serve: fn(&TickCost) -> Duration =
            |cost| (cost.serve + cost.contender).saturating_sub(cost.alone);
        let total: fn(&TickCost) -> Duration = |cost| {
            let session = cost.serve.saturating_sub(cost.alone);
            cost.receive + cost.simulate + cost.publish + session + cost.contender
        };
        let player_ticks = f64::from(own.players) * costs.len() as f64;
        let bytes_per_player_tick = bytes_out as f64 / player_ticks;
        Self {
            contender: "per-viewer".to_owned(),
            workload: own.workload.clone(),
            players: own.players,
            threads: 1,
            visible_mean: own.visible_mean,
            tick_cpu_ms_p50: of(total, 0.5),
            tick_cpu_ms_p99: of(total, 0.99),
            phases: Phases { serve_ms: of(serve, 0.5), ..own.phases },
            replication_ms: of(|cost| cost.contender, 0.5),
            shared_replication_ms: of(|cost| cost.alone, 0.5),
            bytes_per_player_per_s: bytes_per_player_tick * TICK_HZ as f64,
            reduction_percent: 100.0
                * (1.0 - bytes_per_player_tick / (own.visible_mean * f64::from(NAIVE_BYTES))),
        }
    }
}

#[expect(clippy::print_stdout, reason = "the report is what the program is for")]
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (report, contender) = Bench::new(arguments)?.run()?;
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report:#?}");
    }
    match contender {
        Some(report) if arguments.json => println!("{}", serde_json::to_string(&report)?),
        Some(report) => println!("{report:#?}"),
        None => {}
    }
    Ok(())
}

impl Arguments {
    /// Until everybody has been told of everybody, and the pages of crowds have gone round once more. A player to whom a
    /// crowd is new gets about a whole page in every tick.
    fn warm_up_ticks(&self) -> u64 {
        let crowd = match self.workload {
            Workload::Wander => return WARM_UP_TICKS,
            Workload::Town => town::heads_of_a_hot_spot(self.players as usize),
            Workload::Siege => self.players as usize,
        };
        let round = CrowdDetail::ALL.map(|detail| u64::from(detail.period())).into_iter().max().unwrap_or(0);
        WARM_UP_TICKS.max(round + crowd.div_ceil(PAGE_SLOTS) as u64)
    }
}

struct Bench<'a> {
    arguments: &'a Arguments,
    world: WorldSide,
    shards: Vec<Worker>,
    contender: Option<(PerViewer, SharedPages)>,
    tick: u64,
    progress: indicatif::ProgressBar,
}

/// A thread with a hub and its clients.
struct Worker {
    work: Sender<Work>,
    done: Receiver<Told>,
}

/// What a worker is told to do next.
enum Work {
    /// The clients' turn: they receive, act and send.
    Clients { tick: u64, still: bool },
    /// Receive what has arrived.
    Receive { now: Time },
    /// Serve everybody with a frame.
    Serve { now: Time, frame: Arc<Frame>, players: usize },
    /// Have some stand in hot spots of a map of this size.
    Settle { players: usize, map_size_cm: f64, seed: u64 },
    /// Start to watch what is seen.
    Watch,
    /// Remember how the server has a tick.
    Remember { moment: Arc<sight::Moment> },
    /// Compare what is seen with the truth, and tell what was watched.
    Sight { frame: Arc<Frame>, truth: Arc<sight::Truth> },
}

impl<'a> Bench<'a> {
    fn new(arguments: &'a Arguments) -> anyhow::Result<Self> {
        let players = arguments.players as usize;
        let config = config(arguments)?;
        let mut rng = StdRng::seed_from_u64(arguments.seed);
        let identity = Identity::generate(&mut rng);
        let Assembly { hubs, world, .. } = assemble(&config, arguments.threads as usize, &identity, &mut rng);
        let count = hubs.len();
        let shards = (0..).zip(hubs).map(|(index, hub)| {
            let addresses = (0..players)
                .filter(|player| player % count == index)
                .map(|player| (player, SocketAddr::from((Ipv4Addr::LOCALHOST, 1_024 + player as u16))));
            let pursuit = arguments.workload.pursuit();
            let shard = Shard::new(hub, addresses, identity.public_key(), arguments.seed, pursuit);
            Worker::start(shard)
        });
        let shards = shards.collect();
        let progress = indicatif::ProgressBar::new(JOIN_TICKS);
        Ok(Self { arguments, world, shards, contender: None, tick: 0, progress })
    }

    fn run(mut self) -> anyhow::Result<(Report, Option<ContenderReport>)> {
        let players = self.arguments.players as usize;
        self.progress.set_message("joining");
        while self.world.world().player_count() < players {
            ensure!(self.tick < JOIN_TICKS, "only {} players joined", self.world.world().player_count());
            self.run_on(1, false);
        }
        self.settle();
        let Arguments { contender, budget, .. } = *self.arguments;
        self.contender = contender
            .map(|Contender::PerViewer| (PerViewer::new(players, budget), SharedPages::new(players, budget)));
        self.progress.set_message("warming up");
        self.run_on(self.arguments.warm_up_ticks(), false);
        self.all(|| Work::Watch);
        let sent_before = self.sent_bytes();
        let contender_before = self.contender.as_ref().map_or(0, |(contender, _)| contender.bytes_out());
        let ticks = u64::from(self.arguments.ticks);
        self.progress.set_message("measuring");
        let costs: Vec<TickCost> = (0..ticks).map(|_| self.watched_step()).collect();
        let sent = self.sent_bytes();
        let contender_sent =
            self.contender.take().map(|(contender, _)| contender.bytes_out() - contender_before);
        // The floor is measured in the same run, with the sizes that were sent and received.
        let floor = floor::aead(sent_before, sent, ticks);
        let frame = self.world.publish();
        let truth = Arc::new(sight::Truth::new(self.world.world(), &frame));
        let watched = self.look(&frame, &truth);
        self.progress.set_message("comparing");
        self.run_on(self.arguments.workload.still_ticks(), true);
        let frame = self.world.publish();
        let truth = Arc::new(sight::Truth::new(self.world.world(), &frame));
        let at_rest = self.look(&frame, &truth);
        self.progress.finish_and_clear();
        // What the clients that see nothing stand for.
        ensure!(at_rest.resets == 0, "clients had to ask for {} pages on links without loss", at_rest.resets);

        let seconds = ticks as f64 / TICK_HZ as f64;
        let bytes_per_player_per_s =
            (sent.bytes_out - sent_before.bytes_out) as f64 / players as f64 / seconds;
        let visible_mean = watched.visible_mean();
        let naive = visible_mean * f64::from(NAIVE_BYTES) * TICK_HZ as f64;
        let of = |part, share| TickCost::percentile(&costs, part, share);
        let total = |cost: &TickCost| cost.receive + cost.simulate + cost.publish + cost.serve;
        let report = Report {
            workload: self
                .arguments
                .workload
                .to_possible_value()
                .context("a hidden workload")?
                .get_name()
                .to_owned(),
            players: self.arguments.players,
            threads: self.arguments.threads,
            visible_mean,
            tick_cpu_ms_p50: of(total, 0.5),
            tick_cpu_ms_p99: of(total, 0.99),
            tick_wall_ms_p99: of(|cost| cost.wall, 0.99),
            phases: Phases {
                receive_ms: of(|cost| cost.receive, 0.5),
                simulate_ms: of(|cost| cost.simulate, 0.5),
                publish_ms: of(|cost| cost.publish, 0.5),
                serve_ms: of(|cost| cost.serve, 0.5),
            },
            aead_floor_ms: floor,
            nearest_40_hz: watched.nearest_40_hz(),
            refresh_s_max: watched.refresh_s_max(),
            allocations_per_tick: costs.iter().map(|cost| cost.allocations).sum::<u64>() as f64
                / ticks as f64,
            bytes_per_player_per_s,
            bytes_per_tick_max: sent.bytes_in_tick_max,
            reduction_percent: 100.0 * (1.0 - bytes_per_player_per_s / naive),
            position_error_cm_max: at_rest.position_error_cm_max,
            missing_entities: at_rest.missing,
            extra_entities: at_rest.extra,
        };
        let contender = contender_sent.map(|sent| ContenderReport::new(&report, &costs, sent));
        Ok((report, contender))
    }

    /// In a town some players stand in hot spots.
    fn settle(&mut self) {
        if self.arguments.workload != Workload::Town {
            return;
        }
        let (players, seed) = (self.arguments.players as usize, self.arguments.seed);
        let map_size_cm = self.world.world().config().map.size_cm;
        for told in self.all(|| Work::Settle { players, map_size_cm, seed }) {
            for (entity, [x, y]) in told.settled {
                self.world.teleport(entity, [x, y, 0.0]);
            }
        }
    }

    /// So many ticks that are not measured.
    fn run_on(&mut self, ticks: u64, still: bool) {
        for _ in 0..ticks {
            self.step(still);
        }
    }

    /// One tick, of which is remembered what happened in it.
    fn watched_step(&mut self) -> TickCost {
        let (cost, frame) = self.step(false);
        let moment = Arc::new(sight::Moment::new(&frame));
        drop(frame);
        self.all(|| Work::Remember { moment: Arc::clone(&moment) });
        cost
    }

    /// One tick of everything.
    fn step(&mut self, still: bool) -> (TickCost, Arc<Frame>) {
        self.tick += 1;
        self.progress.inc(1);
        let (tick, now) = (self.tick, Time::from_micros(self.tick * 1_000_000 / TICK_HZ));
        self.all(|| Work::Clients { tick, still });
        let received = self.all(|| Work::Receive { now });
        let simulated = measure(|| self.world.tick());
        let mut frame = None;
        let published = measure(|| frame = Some(self.world.publish()));
        let frame = frame.expect("it was published");
        let players = self.world.world().player_count();
        let (mut contender, mut alone) = Default::default();
        if let Some((per_viewer, shared)) = &mut self.contender {
            contender = measure(|| per_viewer.serve(&frame, |_, _| ())).cpu;
            alone = measure(|| shared.serve(&frame)).cpu;
        }
        let served = self.all(|| Work::Serve { now, frame: Arc::clone(&frame), players });
        let cpu = |spans: &[Told]| spans.iter().map(|told| told.span.cpu).sum();
        let longest = |spans: &[Told]| spans.iter().map(|told| told.span.wall).max().unwrap_or_default();
        let allocations = |spans: &[Told]| spans.iter().map(|told| told.span.allocations).sum::<u64>();
        let cost = TickCost {
            receive: cpu(&received),
            simulate: simulated.cpu,
            publish: published.cpu,
            serve: cpu(&served),
            contender,
            alone,
            wall: longest(&received) + simulated.wall + published.wall + longest(&served),
            allocations: allocations(&received)
                + allocations(&served)
                + simulated.allocations
                + published.allocations,
        };
        (cost, frame)
    }

    /// Has every shard do something at the same time, and waits for all.
    fn all(&self, work: impl Fn() -> Work) -> Vec<Told> {
        for shard in &self.shards {
            shard.work.send(work()).expect("a worker ends after its bench");
        }
        self.shards.iter().map(|shard| shard.done.recv().expect("a worker answers")).collect()
    }

    fn sent_bytes(&self) -> shard::Traffic {
        let told = self.all(|| Work::Receive { now: Time::from_micros(self.tick * 1_000_000 / TICK_HZ) });
        told.into_iter().map(|told| told.traffic).sum()
    }

    fn look(&self, frame: &Arc<Frame>, truth: &Arc<sight::Truth>) -> sight::Seen {
        let told = self.all(|| Work::Sight { frame: Arc::clone(frame), truth: Arc::clone(truth) });
        told.into_iter().map(|told| told.seen).fold(sight::Seen::default(), sight::Seen::and)
    }
}

/// Bytes of an entity in the naive protocol that `reduction_percent` compares with: everything in full, every tick.
const NAIVE_BYTES: u32 = 46;

impl Worker {
    fn start(mut shard: Shard) -> Self {
        let (work, to_do) = channel();
        let (tell, done) = channel();
        std::thread::spawn(move || {
            while let Ok(work) = to_do.recv() {
                let (mut span, mut seen, mut settled) = Default::default();
                match work {
                    Work::Clients { tick, still } => shard.clients_turn(tick, still),
                    Work::Receive { now } => span = shard.receive(now),
                    Work::Serve { now, frame, players } => span = shard.serve(now, frame, players),
                    Work::Settle { players, map_size_cm, seed } => {
                        settled = shard.settle(|index| town::hot_spot(seed, index, players, map_size_cm));
                    }
                    Work::Watch => shard.watch(),
                    Work::Remember { moment } => shard.remember(moment),
                    Work::Sight { frame, truth } => seen = shard.look(&frame, &truth),
                }
                if tell.send(Told { span, seen, traffic: shard.traffic(), settled }).is_err() {
                    return;
                }
            }
        });
        Self { work, done }
    }
}

impl Workload {
    fn pursuit(self) -> Pursuit {
        match self {
            Self::Wander | Self::Town => Pursuit::Wander,
            Self::Siege => Pursuit::Fight,
        }
    }

    fn still_ticks(self) -> u64 {
        match self {
            Self::Wander | Self::Town => STILL_TICKS,
            Self::Siege => STILL_AFTER_SIEGE_TICKS,
        }
    }
}

fn config(arguments: &Arguments) -> anyhow::Result<Config> {
    let mut config = Config::default();
    let players = arguments.players as usize;
    config.session.max_players = players;
    config.session.budget_bytes = arguments.budget;
    let world = &mut config.world;
    world.seed = arguments.seed;
    world.npcs = 0;
    world.player_capacity = players;
    world.entity_capacity = players;
    if let Some(cells) = arguments.cells_per_distance {
        world.layers.iter_mut().for_each(|layer| layer.cells_per_distance = cells);
    }
    match arguments.workload {
        Workload::Wander | Workload::Town => {
            let distance = world.distance_cm(EntityType::Player);
            world.set_density(players, OTHERS_IN_SIGHT, distance);
        }
        Workload::Siege => world.map.size_cm = (SIEGE_CM2 * players as f64).sqrt(),
    }
    world.check()?;
    Ok(config)
}
