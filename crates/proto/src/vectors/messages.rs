//! One of every message: its place, its body, and its fields as they are read back from that body.

use serde_json::{Value, json};
use shadowland_wire::block::{
    AgeCode, Block, BlockHeader, BodyPlan, CellId, Change, EntityRecord, PageId, PositionUpdate, Tombstone,
    Update, encode_body,
};
use shadowland_wire::codec::{Full, Reader, Writer};
use shadowland_wire::entity::{EntityDelta, EntityId, EntityState, EntityType};
use shadowland_wire::header::Channel;
use shadowland_wire::lattice::LatticePosition;
use shadowland_wire::limits::PAGE_SLOTS;
use shadowland_wire::message::client::{Buttons, Input, InputMessage, ResetPage};
use shadowland_wire::message::control::{Control, DisconnectReason, ReliableHandshake};
use shadowland_wire::message::fragment::{Fragment, Whole};
use shadowland_wire::message::server::{Brevity, Close, OwnerRecord, SnapshotHeader, Welcome};
use shadowland_wire::message::{ClientType, ControlType, Frame, MessageId, ServerType, StreamId};
use shadowland_wire::quantize::{Rotation, Velocity, Vitals};

use super::hex;

/// A message as it travels.
pub(super) struct Example {
    pub(super) name: String,
    pub(super) from_server: bool,
    pub(super) kind: u8,
    pub(super) place: Option<MessageId>,
    pub(super) body: Vec<u8>,
    /// The body of the snapshot that the receiver of a short one holds.
    held: Option<Vec<u8>>,
}

impl Example {
    /// The body in its frame.
    pub(super) fn frame(&self) -> Vec<u8> {
        written(|writer| Frame { kind: self.kind, reliable: self.place, body: &self.body }.encode(writer))
    }

    /// As it stands in the file.
    pub(super) fn to_json(&self) -> Value {
        let frame = self.frame();
        let place = self.place.map(|place| json!({ "stream": frame[1], "id": place.id }));
        let mut value = json!({
            "name": self.name,
            "type": self.kind,
            "from": if self.from_server { "server" } else { "client" },
            "reliable": place,
            "fields": read(self.kind, &self.body, self.held.as_deref()),
            "body": hex(&self.body),
            "frame": hex(&frame),
        });
        if let Some(held) = &self.held {
            value["receiver_holds"] = hex(held).into();
        }
        value
    }
}

/// The bytes that `write` writes.
pub(super) fn written(write: impl FnOnce(&mut Writer<'_>) -> Result<(), Full>) -> Vec<u8> {
    let mut buffer = [0; 1200];
    let mut writer = Writer::new(&mut buffer);
    write(&mut writer).unwrap();
    writer.written().to_vec()
}

/// Every message, some in several forms.
pub(super) fn examples() -> Vec<Example> {
    let mut examples: Vec<Example> = controls().into_iter().map(control).collect();
    let stream = StreamId::new(Channel::ReliableOrdered, 3);
    for (id, plain_size) in [(300, Some(70_000)), (301, None)] {
        let whole = Whole { kind: 0x40, size: 2_003, plain_size };
        let fragment = Fragment { whole, index: 2, piece: &[7, 8, 9] };
        let kind = ControlType::Fragment as u8;
        examples.push(example("Fragment", true, kind, stream, id, |writer| fragment.encode(writer)));
    }
    let inputs = [
        Input { forward: 127, right: 0, yaw: 16_384, buttons: Buttons::default() },
        Input { forward: 127, right: -127, yaw: 16_384, buttons: Buttons::SPRINT },
    ];
    let inputs = InputMessage::new(300, &inputs);
    examples.push(example("Input", false, ClientType::Input as u8, None, 0, |writer| inputs.encode(writer)));
    let reset = ResetPage { page: page(300, 2) };
    let unordered = StreamId::new(Channel::ReliableUnordered, 0);
    let kind = ClientType::ResetPage as u8;
    examples.push(example("ResetPage", false, kind, unordered, 5, |writer| reset.encode(writer)));
    let entity = EntityId::from_bits(0x0030_0005);
    let welcome = Welcome { entity, lattice_step_um: 10_000, tick_hz: 60, interest_distance_cm: 100_000 };
    let ordered = StreamId::new(Channel::ReliableOrdered, 0);
    let kind = ServerType::Welcome as u8;
    examples.push(example("Welcome", true, kind, ordered, 0, |writer| welcome.encode(writer)));
    examples.extend(snapshots());
    examples
}

fn example(
    name: &str,
    from_server: bool,
    kind: u8,
    stream: Option<StreamId>,
    id: u64,
    write: impl FnOnce(&mut Writer<'_>) -> Result<(), Full>,
) -> Example {
    let place = stream.map(|stream| MessageId { stream, id });
    Example { name: name.to_owned(), from_server, kind, place, body: written(write), held: None }
}

fn controls() -> [(bool, Control); 12] {
    let handshake = |answer| {
        Control::ReliableHandshake(ReliableHandshake {
            answer,
            first_id: 0,
            window_messages: 256,
            window_bytes: 131_072,
            message_bytes: 262_144,
        })
    };
    [
        (false, handshake(false)),
        (true, handshake(true)),
        (true, Control::Ping { id: 7 }),
        (false, Control::Pong { id: 7, held_us: 1_500 }),
        (true, Control::Disconnect(DisconnectReason::Replaced)),
        (true, Control::CheckIntegrity { version: 7, index: 200, nonce: [0x77; 16] }),
        (false, Control::IntegrityAnswer { version: 7, echo: [0x77; 8], proof: super::integrity_proof() }),
        (true, Control::RekeyRequest { number: 1, share: super::rekey_share(true) }),
        (false, Control::RekeyResponse { number: 1, share: super::rekey_share(false) }),
        (true, Control::PathChallenge { token: [1, 2, 3, 4, 5, 6, 7, 8] }),
        (false, Control::PathResponse { token: [1, 2, 3, 4, 5, 6, 7, 8] }),
        (false, Control::Disconnect(DisconnectReason::Leaving)),
    ]
}

fn control((from_server, control): (bool, Control)) -> Example {
    let frame = written(|writer| control.encode(writer));
    let body = Frame::decode(&mut Reader::new(&frame)).unwrap().body.to_vec();
    let name = format!("{:?}", control.kind());
    Example { name, from_server, kind: control.kind() as u8, place: None, body, held: None }
}

fn page(cell: u32, number: u16) -> PageId {
    PageId { cell: CellId(cell), number }
}

/// What goes into a block: by slot, who enters and who changes.
struct Plan {
    header: BlockHeader,
    tombstones: Vec<Tombstone>,
    enters: Vec<(usize, EntityRecord)>,
    updates: Vec<(usize, Change, EntityRecord)>,
    low_bits: u32,
}

impl Plan {
    fn encode(&self, previous: &mut CellId, writer: &mut Writer<'_>) -> Result<(), Full> {
        self.header.encode(writer, previous)?;
        let mut changes = [Change { delta: EntityDelta::NONE, height: false, wide: false }; PAGE_SLOTS];
        let (mut enters, mut updates) = (0, 0);
        self.enters.iter().for_each(|(slot, _)| enters |= 1 << slot);
        for (slot, change, _) in &self.updates {
            updates |= 1 << slot;
            changes[*slot] = *change;
        }
        let record = |slot| {
            let entered = self.enters.iter().find(|(at, _)| *at == slot).map(|(_, record)| record);
            entered.or_else(|| self.updates.iter().find(|(at, ..)| *at == slot).map(|(.., record)| record))
        };
        let Self { tombstones, low_bits, .. } = self;
        let plan = BodyPlan { tombstones, enters, updates, changes: &changes, low_bits: *low_bits };
        let mut body = [0; 1100];
        let length = encode_body(&plan, |slot| record(slot).unwrap(), &mut body)?;
        writer.bytes(&body[..length])
    }
}

fn snapshots() -> Vec<Example> {
    let position = LatticePosition { x: 70_000, y: -3, z: 0 };
    let owner = OwnerRecord {
        position,
        fraction: [64, -128, 0],
        yaw: 16_384,
        velocity: Velocity { x: 0, y: 600, z: 0 },
        state: EntityState::IN_COMBAT,
        health: 65_535,
        mana: 32_896,
    };
    let player = EntityRecord {
        id: EntityId::from_bits(0x0030_0005),
        kind: EntityType::Player,
        position,
        rotation: Rotation { yaw: 1024, pitch: 0, roll: 0 },
        animation: 1,
        state: EntityState::IN_COMBAT,
        velocity: Velocity { x: 0, y: 600, z: 0 },
        vitals: Vitals { health: 255, mana: 128 },
    };
    let arrow = EntityRecord {
        id: EntityId::from_bits(0x0010_0006),
        kind: EntityType::Projectile,
        position: LatticePosition { x: 70_001, y: -40_000, z: 150 },
        rotation: Rotation { yaw: 1_025, pitch: 100, roll: 4_095 },
        velocity: Velocity { x: 3_000, y: -1, z: -250 },
        ..player
    };
    let change = |delta, height, wide| Change { delta, height, wide };
    let complete = Plan {
        header: BlockHeader { page: page(300, 0), age: AgeCode::FULL },
        tombstones: vec![],
        enters: vec![(2, player), (3, arrow)],
        updates: vec![],
        low_bits: 0,
    };
    let level = Plan {
        header: BlockHeader { page: page(300, 0), age: AgeCode::covering(5) },
        updates: vec![(2, change(EntityDelta::POSITION, false, false), player)],
        low_bits: 8,
        ..no_change()
    };
    let (pose, all) = (EntityDelta::from_bits(0b00_0011), EntityDelta::from_bits(0b11_1111));
    let flags_and_vitals = EntityDelta::from_bits(0b10_1000);
    let rich = Plan {
        header: BlockHeader { page: page(301, 2), age: AgeCode::covering(40) },
        tombstones: vec![
            Tombstone { id: EntityId::from_bits(7), age: 3, destination: Some(page(299, 1)) },
            Tombstone { id: EntityId::from_bits(8), age: 0, destination: None },
        ],
        enters: vec![(0, player)],
        updates: vec![
            (1, change(all, true, true), arrow),
            (5, change(pose, true, false), arrow),
            (23, change(flags_and_vitals, false, false), player),
        ],
        low_bits: 10,
    };
    let first = SnapshotHeader { owner: Some(owner), closes: 1, ..SnapshotHeader::new(1_000, 300) };
    let second = SnapshotHeader {
        owner: Some(OwnerRecord {
            velocity: Velocity { x: -5, y: 0, z: 7 },
            health: 65_535,
            mana: 65_535,
            ..owner
        }),
        brevity: Brevity::Level,
        ..SnapshotHeader::new(1_005, 305)
    };
    let third = SnapshotHeader { brevity: Brevity::Short, ..SnapshotHeader::new(1_005, 305) };
    let snapshot = |header: SnapshotHeader, closes: &[Close], blocks: &[Plan]| {
        example("Snapshot", true, ServerType::Snapshot as u8, None, 0, |writer| {
            header.encode(writer)?;
            closes.iter().try_for_each(|close| close.encode(writer))?;
            let mut previous = CellId(0);
            blocks.iter().try_for_each(|block| block.encode(&mut previous, writer))
        })
    };
    let first = snapshot(first, &[Close { cell: CellId(310), age: 2 }], &[complete]);
    let held = Some(first.body.clone());
    let second = Example { held: held.clone(), ..snapshot(second, &[], &[level]) };
    let third = Example { held, ..snapshot(third, &[], &[no_change(), rich]) };
    vec![first, second, third]
}

/// A block that says that nothing has changed.
fn no_change() -> Plan {
    Plan {
        header: BlockHeader { page: page(300, 0), age: AgeCode::covering(1) },
        tombstones: vec![],
        enters: vec![],
        updates: vec![],
        low_bits: 0,
    }
}

/// The fields of a body, read by the decoders. `held` is the body of the snapshot that the receiver of a short one holds.
pub(super) fn read(kind: u8, body: &[u8], held: Option<&[u8]>) -> Value {
    if kind == ControlType::Fragment as u8 {
        let Fragment { whole, index, piece } = Fragment::decode(body).unwrap();
        let Whole { kind, size, plain_size } = whole;
        return json!({
            "type": kind, "index": index, "size": size, "plain_size": plain_size, "piece": hex(piece),
        });
    }
    if ControlType::from_byte(kind).is_some() {
        return read_control(Control::decode(kind, body).unwrap().unwrap());
    }
    if kind == ClientType::Input as u8 {
        let inputs = InputMessage::decode(body).unwrap();
        let inputs = inputs.iter().map(|(number, input)| {
            let Input { forward, right, yaw, buttons } = input;
            json!({ "number": number, "forward": forward, "right": right, "yaw": yaw, "buttons": buttons.0 })
        });
        return json!({ "inputs": inputs.collect::<Vec<_>>() });
    }
    if kind == ClientType::ResetPage as u8 {
        return read_page(ResetPage::decode(body).unwrap().page);
    }
    if kind == ServerType::Welcome as u8 {
        let Welcome { entity, lattice_step_um, tick_hz, interest_distance_cm } =
            Welcome::decode(body).unwrap();
        return json!({
            "entity": entity.to_bits(),
            "lattice_step_um": lattice_step_um,
            "tick_hz": tick_hz,
            "interest_distance_cm": interest_distance_cm,
        });
    }
    read_snapshot(body, held)
}

fn read_control(control: Control) -> Value {
    match control {
        Control::Ping { id } => json!({ "id": id }),
        Control::Pong { id, held_us } => json!({ "id": id, "held_us": held_us }),
        Control::Disconnect(reason) => json!({ "reason": reason.code() }),
        Control::ReliableHandshake(handshake) => json!({
            "answer": u8::from(handshake.answer),
            "first_id": handshake.first_id,
            "window_messages": handshake.window_messages,
            "window_bytes": handshake.window_bytes,
            "message_bytes": handshake.message_bytes,
        }),
        Control::CheckIntegrity { version, index, nonce } => {
            json!({ "version": version, "index": index, "nonce": hex(&nonce) })
        }
        Control::IntegrityAnswer { version, echo, proof } => {
            json!({ "version": version, "echo": hex(&echo), "proof": hex(&proof) })
        }
        Control::RekeyRequest { number, share } | Control::RekeyResponse { number, share } => {
            json!({ "number": number, "share": hex(&share) })
        }
        Control::PathChallenge { token } | Control::PathResponse { token } => json!({ "token": hex(&token) }),
    }
}

fn read_page(page: PageId) -> Value {
    json!({ "cell": page.cell.0, "page": page.number })
}

fn read_snapshot(body: &[u8], held: Option<&[u8]>) -> Value {
    let held = held.map(|held| SnapshotHeader::decode(&mut Reader::new(held), None).unwrap());
    let mut reader = Reader::new(body);
    let header = SnapshotHeader::decode(&mut reader, held.as_ref()).unwrap();
    let owner = header.owner.map(|owner| {
        json!({
            "position": owner.position.to_array(),
            "fraction": owner.fraction,
            "yaw": owner.yaw,
            "velocity": read_velocity(owner.velocity),
            "state": owner.state.to_bits(),
            "health": owner.health,
            "mana": owner.mana,
        })
    });
    let closes: Vec<_> = (0..header.closes)
        .map(|_| Close::decode(&mut reader).unwrap())
        .map(|close| json!({ "cell": close.cell.0, "age": close.age }))
        .collect();
    let (mut previous, mut block, mut blocks) = (CellId(0), Block::default(), Vec::new());
    while !reader.is_empty() {
        let header = BlockHeader::decode(&mut reader, &mut previous).unwrap();
        block.decode_body(&mut reader).unwrap();
        let mut value = read_page(header.page);
        value["age"] = json!(header.age.age());
        value["tombstones"] = block.tombstones.iter().map(read_tombstone).collect();
        value["enters"] = block.enters.iter().map(|(slot, record)| read_record(*slot, record)).collect();
        value["updates"] = block.updates.iter().map(read_update).collect();
        blocks.push(value);
    }
    json!({
        "tick": header.tick, "last_input": header.last_input, "owner": owner, "closes": closes, "blocks": blocks,
    })
}

fn read_tombstone(tombstone: &Tombstone) -> Value {
    let Tombstone { id, age, destination } = tombstone;
    json!({ "id": id.to_bits(), "age": age, "destination": destination.map(read_page) })
}

fn read_record(slot: u8, record: &EntityRecord) -> Value {
    json!({
        "slot": slot,
        "id": record.id.to_bits(),
        "type": record.kind as u8,
        "position": record.position.to_array(),
        "rotation": read_rotation(record.rotation),
        "animation": record.animation,
        "state": record.state.to_bits(),
        "velocity": read_velocity(record.velocity),
        "vitals": read_vitals(record.vitals),
    })
}

/// Only the groups that are there.
fn read_update(update: &Update) -> Value {
    let mut value = json!({ "slot": update.slot });
    let has = |group| update.delta.contains(group);
    if has(EntityDelta::POSITION) {
        value["position"] = match update.position {
            PositionUpdate::Full(position) => json!({ "full": position.to_array() }),
            PositionUpdate::Low { bits, xy: [x, y], z } => {
                json!({ "low_bits": bits, "x": x, "y": y, "z": z })
            }
        };
    }
    for (group, name, fields) in [
        (EntityDelta::ROTATION, "rotation", read_rotation(update.rotation)),
        (EntityDelta::ANIMATION, "animation", update.animation.into()),
        (EntityDelta::FLAGS, "state", update.state.to_bits().into()),
        (EntityDelta::VELOCITY, "velocity", read_velocity(update.velocity)),
        (EntityDelta::VITALS, "vitals", read_vitals(update.vitals)),
    ] {
        if has(group) {
            value[name] = fields;
        }
    }
    value
}

fn read_rotation(Rotation { yaw, pitch, roll }: Rotation) -> Value {
    json!([yaw, pitch, roll])
}

fn read_velocity(Velocity { x, y, z }: Velocity) -> Value {
    json!([x, y, z])
}

fn read_vitals(Vitals { health, mana }: Vitals) -> Value {
    json!([health, mana])
}
