//! A server's endpoint and a client's session in one thread, under a virtual clock. The world behind the
//! endpoint is one page of walkers that the tests move.

#![allow(dead_code, reason = "each test file uses its part")]

use std::net::SocketAddr;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use shadowland_client::replica::Watcher;
use shadowland_client::{ConnectConfig, Event, Session, Time};
use shadowland_proto::{
    Channel, DropReason, Endpoint, EndpointConfig, Identity, Receiver, Routed, Slot, State,
};
use shadowland_wire::block::{
    AgeCode, BODY_MAX_BYTES, BlockHeader, BodyPlan, CellId, Change, EntityRecord, PageId, encode_body,
};
use shadowland_wire::codec::{Full, Writer};
use shadowland_wire::entity::{EntityDelta, EntityId, EntityState, EntityType};
use shadowland_wire::lattice::LatticePosition;
use shadowland_wire::limits::PAGE_SLOTS;
use shadowland_wire::message::client::{Input, InputMessage, ResetPage};
use shadowland_wire::message::server::{OwnerRecord, SnapshotHeader, Welcome};
use shadowland_wire::message::{ClientType, ServerType};
use shadowland_wire::quantize::{Rotation, Velocity, Vitals};

/// The body of a Welcome for a player's entity.
pub(crate) fn welcome(entity: EntityId) -> Vec<u8> {
    let welcome = Welcome { entity, lattice_step_um: 10_000, tick_hz: 60, interest_distance_cm: 100_000 };
    let mut body = [0; Welcome::MAX_BYTES];
    let mut writer = Writer::new(&mut body);
    welcome.encode(&mut writer).unwrap();
    writer.written().to_vec()
}

pub(crate) const TICK: Duration = Duration::from_micros(16_667);
/// A message of the game's own.
pub(crate) const GAME_TYPE: u8 = 0x60;
pub(crate) const PAGE: PageId = PageId { cell: CellId(5), number: 0 };

/// What the server got from the client.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) inputs: Vec<(u32, Input)>,
    pub(crate) newest_input: u32,
    pub(crate) resets: Vec<PageId>,
    pub(crate) acked: Vec<u64>,
    pub(crate) quiet: bool,
}

impl Receiver for Heard {
    fn message(&mut self, kind: u8, body: &[u8]) {
        match ClientType::from_byte(kind) {
            Some(ClientType::Input) => {
                for (number, input) in InputMessage::decode(body).unwrap().iter() {
                    if number > self.newest_input {
                        self.newest_input = number;
                        if !self.quiet {
                            self.inputs.push((number, input));
                        }
                    }
                }
            }
            Some(ClientType::ResetPage) => self.resets.push(ResetPage::decode(body).unwrap().page),
            None => panic!("message {kind}"),
        }
    }

    fn acked(&mut self, sequence: u64) {
        if !self.quiet {
            self.acked.push(sequence);
        }
    }
}

/// What goes into the next snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blocks {
    /// The whole page.
    Full,
    /// What changed since a baseline so many ticks ago.
    Since(u64),
    /// Bytes that are no block.
    Junk,
}

pub(crate) struct Lab {
    pub(crate) now: Time,
    pub(crate) tick: u32,
    pub(crate) session: Session,
    pub(crate) endpoint: Endpoint<()>,
    pub(crate) slot: Option<Slot>,
    pub(crate) heard: Heard,
    pub(crate) walkers: Vec<EntityRecord>,
    pub(crate) events: Vec<Event>,
    pub(crate) datagrams_from_client: u64,
    /// Client datagrams of which the remainder by 4 is below this are lost.
    pub(crate) lost_of_four: u64,
    pub(crate) last_snapshot: u64,
    /// What the game says on the stream of the welcome, right before it and right after it.
    pub(crate) said_beside_welcome: Option<[&'static [u8]; 2]>,
    welcomed: bool,
}

const ADDRESS: ([u8; 4], u16) = ([198, 51, 100, 7], 4_000);

pub(crate) fn walker(index: u32, x: i32) -> EntityRecord {
    EntityRecord {
        id: EntityId::new(index, 0),
        kind: EntityType::Player,
        position: LatticePosition { x, y: 0, z: 0 },
        rotation: Rotation::default(),
        animation: 1,
        state: EntityState::NONE,
        velocity: Velocity { x: 600, y: 0, z: 0 },
        vitals: Vitals::FULL,
    }
}

impl Lab {
    /// A server, and a client that wants to connect to the server with `key`, or with its own.
    pub(crate) fn new(key: Option<[u8; 32]>) -> Self {
        let mut rng = StdRng::seed_from_u64(3);
        let identity = Identity::generate(&mut rng);
        let key = key.unwrap_or(identity.public_key());
        let now = Time::from_micros(50_000_000);
        Self {
            now,
            tick: 100,
            session: Session::new(ConnectConfig::default(), key, &mut rng, now).unwrap(),
            endpoint: Endpoint::new(EndpointConfig::default(), identity, &[7; 32], &mut rng),
            slot: None,
            heard: Heard::default(),
            walkers: (0..10).map(|index| walker(index, index as i32 * 100)).collect(),
            events: Vec::new(),
            datagrams_from_client: 0,
            lost_of_four: 0,
            last_snapshot: 0,
            said_beside_welcome: None,
            welcomed: false,
        }
    }

    /// The same, and the client is in the world.
    pub(crate) fn playing() -> Self {
        let mut lab = Self::new(None);
        for _ in 0..10 {
            lab.step(None, &mut ());
        }
        assert!(matches!(lab.events[..], [Event::Connected, Event::Welcomed(_)]), "{:?}", lab.events);
        lab.events.clear();
        lab
    }

    /// A tick: an input, a snapshot if there is to be one, and everything that follows from it.
    pub(crate) fn step(&mut self, blocks: Option<Blocks>, watcher: &mut impl Watcher) {
        self.now = self.now + TICK;
        self.tick += 1;
        for walker in &mut self.walkers {
            walker.position.x += 10;
        }
        self.session.on_timeout(self.now);
        self.session.input(Input { forward: (self.tick % 100) as i8, ..Input::default() });
        // Twice: the handshake has two round trips.
        for _ in 0..2 {
            self.carry_to_server();
            self.carry_to_client(watcher);
        }
        if let Some(blocks) = blocks {
            self.send_snapshot(blocks, watcher);
        }
        while let Some(event) = self.session.poll_event() {
            self.events.push(event);
        }
    }

    pub(crate) fn server(&mut self) -> &mut shadowland_proto::Connection {
        &mut self.endpoint.session_mut(self.slot.unwrap()).unwrap().connection
    }

    fn carry_to_server(&mut self) {
        let mut buffer = [0; 1_200];
        while let Some(length) = self.session.poll_transmit(self.now, &mut buffer) {
            self.datagrams_from_client += 1;
            if self.datagrams_from_client % 4 < self.lost_of_four {
                continue;
            }
            let mut reply = [0; 128];
            match self.endpoint.route(self.now, SocketAddr::from(ADDRESS), &buffer[..length], &mut reply) {
                Routed::Reply(length) => {
                    let _ = self.session.handle(self.now, &mut reply[..length]);
                }
                Routed::Session(slot) => {
                    self.slot = Some(slot);
                    let session = self.endpoint.session_mut(slot).unwrap();
                    let handled = session.connection.handle(self.now, &mut buffer[..length], &mut self.heard);
                    assert!(matches!(handled, Ok(()) | Err(DropReason::Closed)), "{handled:?}");
                }
                Routed::Dropped(_) => {}
            }
        }
    }

    fn carry_to_client(&mut self, watcher: &mut impl Watcher) {
        let Some(slot) = self.slot else { return };
        let connection = &mut self.endpoint.session_mut(slot).unwrap().connection;
        connection.on_timeout(self.now);
        if connection.state() == State::Established && !self.welcomed {
            self.welcomed = true;
            let mut say =
                |kind, body: &[u8]| connection.send(Channel::ReliableOrdered, 0, kind, body).unwrap();
            let (before, after) = self.said_beside_welcome.map(|[before, after]| (before, after)).unzip();
            before.into_iter().for_each(|body| say(GAME_TYPE, body));
            say(ServerType::Welcome as u8, &welcome(EntityId::new(0, 0)));
            after.into_iter().for_each(|body| say(GAME_TYPE, body));
        }
        let mut buffer = [0; 1_200];
        while let Some(length) = connection.poll_transmit(self.now, &mut buffer) {
            // Goodbyes come three times.
            let handled = self.session.handle_watched(self.now, &mut buffer[..length], watcher);
            assert!(matches!(handled, Ok(()) | Err(DropReason::Closed)), "{handled:?}");
        }
    }

    fn send_snapshot(&mut self, blocks: Blocks, watcher: &mut impl Watcher) {
        let (tick, walkers, newest_input) = (self.tick, &self.walkers, self.heard.newest_input);
        let connection = &mut self.endpoint.session_mut(self.slot.unwrap()).unwrap().connection;
        let mut buffer = [0; 1_200];
        let mut packet = connection.packet(self.now, &mut buffer).unwrap();
        packet
            .message(ServerType::Snapshot as u8, |writer| {
                write_snapshot(writer, tick, newest_input, walkers, blocks)
            })
            .unwrap();
        let sent = packet.finish();
        self.last_snapshot = sent.sequence;
        self.session.handle_watched(self.now, &mut buffer[..sent.len], watcher).unwrap();
    }
}

fn write_snapshot(
    writer: &mut Writer<'_>,
    tick: u32,
    last_input: u32,
    walkers: &[EntityRecord],
    blocks: Blocks,
) -> Result<(), Full> {
    let owner = OwnerRecord {
        position: walkers[0].position,
        fraction: [64, 0, 0],
        yaw: 16_384,
        velocity: walkers[0].velocity,
        state: EntityState::NONE,
        health: u16::MAX,
        mana: u16::MAX,
    };
    SnapshotHeader { owner: Some(owner), ..SnapshotHeader::new(tick, last_input) }.encode(writer)?;
    let age = match blocks {
        Blocks::Junk => return writer.bytes(&[0xff; 7]),
        Blocks::Full => AgeCode::FULL,
        Blocks::Since(ticks) => AgeCode::covering(ticks),
    };
    BlockHeader { page: PAGE, age }.encode(writer, &mut CellId(0))?;
    let everybody = (1 << walkers.len()) - 1;
    let (enters, updates) = if age == AgeCode::FULL { (everybody, 0) } else { (0, everybody) };
    let change = Change { delta: EntityDelta::POSITION, height: false, wide: false };
    let changes = &[change; PAGE_SLOTS];
    let plan = BodyPlan { tombstones: &[], enters, updates, changes, low_bits: 12 };
    let mut body = [0; BODY_MAX_BYTES];
    let length = encode_body(&plan, |slot| &walkers[slot], &mut body)?;
    writer.bytes(&body[..length])
}
