//! A client whose server is hostile.

use std::collections::BTreeSet;

use shadowland_client::replica::Watcher;
use shadowland_client::{ConnectConfig, EntityId, Event, Input, Replica, Session, View};
use shadowland_proto::{Channel, Connection, Endpoint, Routed, Time};
use shadowland_wire::ack::AckBlock;
use shadowland_wire::block::{
    AgeCode, BODY_MAX_BYTES, BlockHeader, BodyPlan, CellId, Change, EntityRecord, PageId, Tombstone,
    encode_body,
};
use shadowland_wire::codec::Writer;
use shadowland_wire::entity::{EntityDelta, EntityState, EntityType};
use shadowland_wire::header::Flags;
use shadowland_wire::lattice::LatticePosition;
use shadowland_wire::limits::{CLIENT_ENTITIES, CLIENT_PAGES, DATAGRAM_BYTES, PAGE_SLOTS};
use shadowland_wire::message::server::{Brevity, Close, OwnerRecord, SnapshotHeader, Welcome};
use shadowland_wire::message::{ServerType, encode_frame};
use shadowland_wire::quantize::{Rotation, Velocity, Vitals};

use crate::pair::{self, Deaf, HOME, START};
use crate::script::{Script, Step};
use crate::within;

/// A replica and a view of as much as a script can tell, the session, and the endpoint that the script speaks by.
const HEAP_BYTES: u64 = 16 << 20;
/// Room for the body of a snapshot that fits no datagram: a replica must not mind.
const BODY_BYTES: usize = 8 * BODY_MAX_BYTES;

/// Snapshots of any form, one after the other, into a replica.
pub fn replica(data: &[u8]) {
    within(HEAP_BYTES, || {
        let mut script = Script::new(data);
        let (mut replica, mut known, mut tick) = (Replica::new(), Known::default(), 1_000);
        let mut body = [0; BODY_BYTES];
        let mut step = || {
            let length = snapshot(&mut script, &mut tick, &mut body)?;
            let readable = replica.apply_snapshot(&body[..length], &mut known).is_ok();
            check(&replica, &known);
            // A client whose server breaks the protocol ends the session.
            if readable { Ok(()) } else { script.end() }
        };
        while step().is_ok() {}
    });
}

/// Who a watcher of a replica thinks is in sight.
#[derive(Default)]
struct Known(BTreeSet<EntityId>);

impl Watcher for Known {
    fn appeared(&mut self, _tick: u32, record: &EntityRecord) {
        assert!(self.0.insert(record.id), "it appears twice");
    }
    fn updated(&mut self, since: u32, tick: u32, record: &EntityRecord) {
        assert!(self.0.contains(&record.id), "news of nobody");
        assert!(since < tick, "news from {since} at {tick}");
    }
    fn vanished(&mut self, id: EntityId) {
        assert!(self.0.remove(&id), "it vanishes twice");
    }
}

fn check(replica: &Replica, known: &Known) {
    assert!(replica.entities().len() <= CLIENT_ENTITIES && replica.resets().len() <= CLIENT_PAGES);
    assert_eq!(replica.entities().len(), known.0.len());
    for record in replica.entities() {
        assert_eq!(replica.entity(record.id), Some(record));
        assert!(known.0.contains(&record.id), "the watcher was not told");
    }
}

/// The body of a Snapshot into `body`: the script's bytes, or one that is well formed; its length.
fn snapshot(script: &mut Script<'_>, tick: &mut u32, body: &mut [u8; BODY_BYTES]) -> Step<usize> {
    let form = script.u8()?;
    let mut writer = Writer::new(body);
    if form & 1 == 0 {
        let bytes = script.bytes()?;
        writer.bytes(bytes).expect("there is room");
        return Ok(bytes.len());
    }
    *tick = tick.wrapping_add_signed(i32::from(script.u8()? as i8)).max(1);
    let owner = if form & 2 == 0 { None } else { Some(owner(script)?) };
    let brevity = match script.u8()? % 4 {
        0 => Brevity::Short,
        1 => Brevity::Level,
        _ => Brevity::Full,
    };
    let closes = usize::from(form >> 6);
    let last_input = script.number()? as u32;
    let header = SnapshotHeader { tick: *tick, last_input, owner, brevity, closes };
    header.encode(&mut writer).expect("there is room");
    for _ in 0..closes {
        let close = Close { cell: CellId(script.number()? as u32), age: script.number()? as u32 };
        close.encode(&mut writer).expect("there is room");
    }
    let mut previous = CellId(0);
    for _ in 0..usize::from(form >> 3 & 7) {
        let page = page(script)?;
        let age = AgeCode::covering(script.number()?);
        let age = if script.flag()? { AgeCode::FULL } else { age };
        BlockHeader { page, age }.encode(&mut writer, &mut previous).expect("there is room");
        block(script, &mut writer)?;
    }
    Ok(writer.len())
}

fn owner(script: &mut Script<'_>) -> Step<OwnerRecord> {
    Ok(OwnerRecord {
        position: position(script)?,
        fraction: [script.u8()? as i8; 3],
        yaw: script.u16()?,
        velocity: velocity(script)?,
        state: EntityState::NONE,
        health: script.u16()?,
        mana: u16::MAX,
    })
}

/// A body of few entities that meet again in other blocks.
fn block(script: &mut Script<'_>, writer: &mut Writer<'_>) -> Step {
    let mask = script.u32()? & ((1 << PAGE_SLOTS) - 1);
    let split = script.u32()?;
    let (enters, updates) = (mask & split, mask & !split);
    let mut tombstones = Vec::new();
    for _ in 0..script.below(4)? {
        let (id, age) = (entity_id(script)?, script.number()? as u16);
        let destination = if script.flag()? { Some(page(script)?) } else { None };
        tombstones.push(Tombstone { id, age, destination });
    }
    let change = script.u8()?;
    let change = Change {
        delta: EntityDelta::from_bits(change & 0x3f),
        height: change & 0x40 != 0,
        wide: change & 0x80 != 0,
    };
    let first = script.u8()?;
    let record = EntityRecord {
        id: EntityId::NONE,
        kind: EntityType::ALL[script.below(EntityType::ALL.len())?],
        position: position(script)?,
        rotation: Rotation::from_coarse_yaw(first),
        animation: first.into(),
        state: EntityState::NONE,
        velocity: velocity(script)?,
        vitals: Vitals { health: first, mana: first },
    };
    let records: [_; PAGE_SLOTS] = std::array::from_fn(|slot| EntityRecord {
        id: EntityId::from_bits(u32::from(first) + slot as u32),
        ..record
    });
    let low_bits = u32::from(script.u8()? & 31);
    let plan =
        BodyPlan { tombstones: &tombstones, enters, updates, changes: &[change; PAGE_SLOTS], low_bits };
    let mut body = [0; BODY_MAX_BYTES];
    let length = encode_body(&plan, |slot| &records[slot], &mut body).expect("a body has room for all slots");
    writer.bytes(&body[..length]).expect("there is room");
    Ok(())
}

/// One of a few entities.
fn entity_id(script: &mut Script<'_>) -> Step<EntityId> {
    Ok(EntityId::from_bits(script.u8()?.into()))
}

/// One of a few pages.
fn page(script: &mut Script<'_>) -> Step<PageId> {
    let which = script.u8()?;
    Ok(PageId { cell: CellId(u32::from(which >> 2)), number: u16::from(which & 3) })
}

fn position(script: &mut Script<'_>) -> Step<LatticePosition> {
    let mut axis = || Ok(if script.flag()? { script.u32()? as i32 } else { i32::from(script.u8()? as i8) });
    Ok(LatticePosition { x: axis()?, y: axis()?, z: axis()? })
}

fn velocity(script: &mut Script<'_>) -> Step<Velocity> {
    Ok(Velocity { x: script.u8()? as i8 as i16, y: 0, z: i16::from(script.flag()?) })
}

/// A connected session, with the view that a game shows.
pub fn session(data: &[u8]) {
    within(HEAP_BYTES, || {
        let mut script = Script::new(data);
        let mut stage = Stage::new();
        while stage.step(&mut script).is_ok() {
            stage.check();
        }
    });
}

struct Stage {
    now: Time,
    tick: u32,
    server: Endpoint<()>,
    session: Session,
    view: View,
}

impl Stage {
    fn new() -> Self {
        let (server, key, mut rng) = pair::endpoint(pair::small());
        let session = Session::new(ConnectConfig::default(), key, &mut rng, START).expect("a key");
        let mut stage = Self { now: START, tick: 1_000, server, session, view: View::new() };
        while stage.session.connection().is_none() {
            stage.exchange();
        }
        stage.exchange();
        stage
    }

    fn hostile(&mut self) -> &mut Connection {
        &mut self.server.sessions_mut().next().expect("a session").1.connection
    }

    fn step(&mut self, script: &mut Script<'_>) -> Step {
        match script.u8()? % 10 {
            0..4 => {
                let mut body = [0; BODY_BYTES];
                let length = snapshot(script, &mut self.tick, &mut body)?;
                self.send_message(ServerType::Snapshot as u8, &body[..length]);
            }
            4 => {
                let welcome = Welcome {
                    entity: entity_id(script)?,
                    lattice_step_um: script.number()?.max(1) as u32,
                    tick_hz: script.u8()?.max(1),
                    interest_distance_cm: script.number()? as u32,
                };
                let mut body = [0; Welcome::MAX_BYTES];
                let mut writer = Writer::new(&mut body);
                welcome.encode(&mut writer).expect("there is room");
                self.say(Channel::ReliableOrdered, 0, ServerType::Welcome as u8, writer.written());
            }
            5 => {
                let (skipped, flags) = (script.number()?, Flags::from_bits(script.u8()?));
                let payload = script.bytes()?;
                self.send(skipped, flags, payload);
            }
            6 => {
                let (channel, stream, kind) = (script.below(3)? as u8, script.u8()?, script.u8()?);
                let channel = Channel::from_byte(channel).expect("one of three");
                let body = script.bytes()?;
                self.say(channel, stream, kind, body);
            }
            7 => {
                self.session.input(Input { forward: script.u8()? as i8, ..Input::default() });
                self.exchange();
            }
            8 => {
                self.now = self.now + script.pause()?;
                self.session.on_timeout(self.now);
                self.view.advance(self.now);
                self.exchange();
            }
            _ => self.exchange(),
        }
        Ok(())
    }

    fn say(&mut self, channel: Channel, stream: u8, kind: u8, body: &[u8]) {
        let _ = self.hostile().send(channel, stream, kind, body);
        self.exchange();
    }

    fn send_message(&mut self, kind: u8, body: &[u8]) {
        let mut payload = [0; 2 * BODY_BYTES];
        let mut writer = Writer::new(&mut payload);
        AckBlock::encode(None, &mut writer).expect("there is room");
        encode_frame(&mut writer, kind, None, |writer| writer.bytes(body)).expect("there is room");
        self.send(0, Flags::NONE, writer.written());
    }

    fn send(&mut self, skipped: u64, flags: Flags, payload: &[u8]) {
        let mut buffer = [0; DATAGRAM_BYTES];
        let sealed = self.hostile().seal_anything(&mut buffer, skipped, Channel::Unreliable, flags, payload);
        if let Some(length) = sealed {
            self.deliver(&mut buffer[..length]);
        }
    }

    fn deliver(&mut self, datagram: &mut [u8]) {
        let _ = self.session.handle_watched(self.now, datagram, &mut self.view);
        self.view.snapshot_arrived(self.now, self.session.replica());
        while let Some(event) = self.session.poll_event() {
            if let Event::Welcomed(welcome) = event {
                self.view.welcomed(&welcome);
            }
        }
    }

    /// Both say what they have to say, and hear it.
    fn exchange(&mut self) {
        let mut buffer = [0; DATAGRAM_BYTES];
        for _ in 0..256 {
            let Some(length) = self.session.poll_transmit(self.now, &mut buffer) else { break };
            let mut reply = [0; 128];
            match self.server.route(self.now, HOME, &buffer[..length], &mut reply) {
                Routed::Reply(length) => self.deliver(&mut reply[..length]),
                Routed::Session(_) => {
                    let now = self.now;
                    let _ = self.hostile().handle_from(now, HOME, &mut buffer[..length], &mut Deaf);
                }
                Routed::Dropped(_) => {}
            }
        }
        let now = self.now;
        if self.server.session_count() == 0 {
            return;
        }
        self.hostile().on_timeout(now);
        for _ in 0..256 {
            let Some(length) = self.hostile().poll_transmit(now, &mut buffer) else { break };
            self.deliver(&mut buffer[..length]);
        }
    }

    fn check(&self) {
        for entity in self.view.entities() {
            let numbers = entity.position_cm.iter().chain(&entity.velocity_cm_per_s);
            assert!(numbers.chain([&entity.yaw_degrees]).all(|number| number.is_finite()), "{entity:?}");
        }
    }
}
