//! "Replication" in `docs/PROTOCOL.md` and the code say the same: tables, limits, examples.

use shadowland_wire::block::{
    AgeCode, BASELINE_AGES, Block, BlockHeader, BodyPlan, CellId, Change, EntityRecord, PageId, Tombstone,
    encode_body,
};
use shadowland_wire::codec::{Reader, Writer};
use shadowland_wire::entity::{EntityDelta, EntityId, EntityState, EntityType};
use shadowland_wire::lattice::LatticePosition;
use shadowland_wire::limits;
use shadowland_wire::message::client::{Buttons, Input, InputMessage, ResetPage};
use shadowland_wire::message::server::{Brevity, Close, OwnerRecord, SnapshotHeader, Welcome};
use shadowland_wire::pose::{self, Leaf, Pose, PoseContext, PoseFrame};
use shadowland_wire::quantize::{Rotation, Velocity, Vitals};

const DOCUMENT: &str = include_str!("../../../docs/PROTOCOL.md");

/// The section, with every run of white space as one space.
fn section() -> String {
    let section = DOCUMENT.split("\n## Replication\n").nth(1).expect("the section is there");
    section.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn documented(what: &str, bytes: &[u8]) {
    let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(section().contains(&hex.join(" ")), "{what} is {}", hex.join(" "));
}

fn written(encode: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut buffer = [0; 1200];
    let mut writer = Writer::new(&mut buffer);
    encode(&mut writer);
    writer.written().to_vec()
}

const PLAYER: u32 = 0x0030_0005;

fn player() -> EntityRecord {
    EntityRecord {
        id: EntityId::from_bits(PLAYER),
        kind: EntityType::Player,
        position: LatticePosition { x: 70_000, y: -3, z: 0 },
        rotation: Rotation { yaw: 1024, pitch: 0, roll: 0 },
        animation: 1,
        state: EntityState::IN_COMBAT,
        velocity: Velocity { x: 0, y: 600, z: 0 },
        vitals: Vitals { health: 255, mana: 128 },
    }
}

fn owner() -> OwnerRecord {
    OwnerRecord {
        position: LatticePosition { x: 70_000, y: -3, z: 0 },
        fraction: [64, -128, 0],
        yaw: 16_384,
        velocity: Velocity { x: 0, y: 600, z: 0 },
        state: EntityState::IN_COMBAT,
        health: 65_535,
        mana: 32_896,
    }
}

fn no_changes() -> [Change; limits::PAGE_SLOTS] {
    [Change { delta: EntityDelta::NONE, height: false, wide: false }; limits::PAGE_SLOTS]
}

fn body(plan: &BodyPlan<'_>) -> Vec<u8> {
    let mut out = [0; 1200];
    let record = player();
    let length = encode_body(plan, |_| &record, &mut out).unwrap();
    out[..length].to_vec()
}

#[test]
fn a_complete_snapshot() {
    let header = SnapshotHeader { closes: 1, owner: Some(owner()), ..SnapshotHeader::new(1000, 300) };
    let full = BodyPlan { tombstones: &[], enters: 1 << 2, updates: 0, changes: &no_changes(), low_bits: 0 };
    let bytes = written(|writer| {
        header.encode(writer).unwrap();
        Close { cell: CellId(310), age: 2 }.encode(writer).unwrap();
        let page = PageId { cell: CellId(300), number: 0 };
        BlockHeader { page, age: AgeCode::FULL }.encode(writer, &mut CellId(0)).unwrap();
        writer.bytes(&body(&full)).unwrap();
    });
    documented("the snapshot", &bytes);
}

#[test]
fn a_snapshot_of_changes() {
    let header = SnapshotHeader { brevity: Brevity::Short, ..SnapshotHeader::new(1005, 305) };
    let destination = Some(PageId { cell: CellId(299), number: 1 });
    let stones = [Tombstone { id: EntityId::from_bits(7), age: 3, destination }];
    let mut changes = no_changes();
    changes[2].delta = EntityDelta::POSITION;
    let plan = BodyPlan { tombstones: &stones, enters: 0, updates: 1 << 2, changes: &changes, low_bits: 8 };
    let bytes = written(|writer| {
        header.encode(writer).unwrap();
        let page = PageId { cell: CellId(300), number: 2 };
        BlockHeader { page, age: AgeCode::covering(5) }.encode(writer, &mut CellId(0)).unwrap();
        writer.bytes(&body(&plan)).unwrap();
    });
    documented("the snapshot", &bytes);
    // And it says what the text beside it says.
    let mut reader = Reader::new(&bytes);
    let held = SnapshotHeader { owner: Some(owner()), ..SnapshotHeader::new(1000, 300) };
    assert_eq!(SnapshotHeader::decode(&mut reader, Some(&held)), Ok(header));
    let header = BlockHeader::decode(&mut reader, &mut CellId(0)).unwrap();
    assert_eq!(header.age.age(), Some(6));
    let mut block = Block::default();
    block.decode_body(&mut reader).unwrap();
    assert!(reader.is_empty());
    assert_eq!(block.tombstones, stones);
    let held = LatticePosition { x: 69_990, y: 5, z: 0 };
    assert_eq!(block.updates[0].position.resolve(held), player().position);
}

#[test]
fn a_pose_block() {
    let frame = PoseFrame::covering([player()].iter());
    let leaf = Leaf::at(player().position);
    assert_eq!(leaf, Leaf { row: -1, column: 273 });
    let bytes = written(|writer| {
        let mut body = [0; pose::BODY_MAX_BYTES];
        let length = frame.encode_body(0, [(&player(), true)].into_iter(), &mut body).unwrap();
        PoseContext::default().encode_header(&frame, leaf, 1, writer).unwrap();
        writer.bytes(&body[..length]).unwrap();
    });
    documented("the pose block", &bytes);
    let mut poses = Vec::new();
    PoseContext::default().decode(&mut Reader::new(&bytes), &mut poses).unwrap();
    let EntityRecord { id, position, rotation, animation, state, vitals, .. } = player();
    assert_eq!(poses, [Pose { id, position, rotation, animation, condition: Some((state, vitals)) }]);
}

#[test]
fn the_other_messages() {
    let entity = EntityId::from_bits(PLAYER);
    let welcome = Welcome { entity, lattice_step_um: 10_000, tick_hz: 60, interest_distance_cm: 100_000 };
    documented("Welcome", &written(|writer| welcome.encode(writer).unwrap()));
    let inputs = [
        Input { forward: 127, right: 0, yaw: 16_384, buttons: Buttons::default() },
        Input { forward: 127, right: -127, yaw: 16_384, buttons: Buttons::SPRINT },
    ];
    documented("Input", &written(|writer| InputMessage::new(300, &inputs).encode(writer).unwrap()));
    let reset = ResetPage { page: PageId { cell: CellId(300), number: 2 } };
    documented("ResetPage", &written(|writer| reset.encode(writer).unwrap()));
}

#[test]
fn the_ladder_of_ages() {
    let ages: Vec<_> = BASELINE_AGES.iter().map(u16::to_string).collect();
    assert!(section().contains(&format!("`{}`", ages.join(" "))), "{}", ages.join(" "));
}

#[test]
fn types_and_flags() {
    for kind in EntityType::ALL {
        assert!(section().contains(&format!("{} {kind:?}", kind as u8)), "{kind:?}");
    }
    for (flag, name) in [
        (EntityState::DEAD, "dead"),
        (EntityState::IN_COMBAT, "in combat"),
        (EntityState::SPRINTING, "sprinting"),
        (EntityState::CROUCHING, "crouching"),
        (EntityState::AIRBORNE, "airborne"),
        (EntityState::MOUNTED, "mounted"),
        (EntityState::CASTING, "casting"),
        (EntityState::STUNNED, "stunned"),
        (EntityState::ROOTED, "rooted"),
        (EntityState::SILENCED, "silenced"),
        (EntityState::SLOWED, "slowed"),
        (EntityState::HASTED, "hasted"),
        (EntityState::POISONED, "poisoned"),
        (EntityState::REGENERATING, "regenerating"),
        (EntityState::INVULNERABLE, "invulnerable"),
        (EntityState::SHIELDED, "shielded"),
    ] {
        assert!(section().contains(&format!("{:#06x} {name}", flag.to_bits())), "{name}");
    }
}

#[test]
fn the_limits_are_those_of_the_code() {
    for (what, text, value, number) in [
        ("slots of a page", "24", limits::PAGE_SLOTS, 24),
        ("tombstones in a block", "16", limits::PAGE_TOMBSTONES, 16),
        ("inputs in a message", "8", limits::INPUTS_PER_MESSAGE, 8),
        ("closes in a snapshot", "32", limits::CLOSES_PER_SNAPSHOT, 32),
        ("pages of a cell", "4096", limits::PAGES_PER_CELL as usize, 4096),
        ("cells of a map", "2^26", limits::CELLS_PER_MAP as usize, 1 << 26),
        ("pages open at a client", "8192", limits::CLIENT_PAGES, 8192),
        ("pages to be asked for at a client", "8192", limits::CLIENT_PAGES, 8192),
        ("closes of the last 1024 ticks at a client", "16,384", limits::CLIENT_CLOSES, 16_384),
        ("entities at a client", "65,536", limits::CLIENT_ENTITIES, 65_536),
    ] {
        assert!(section().contains(&format!("| {what} | {text} |")), "{what}");
        assert_eq!(value, number, "{what}");
    }
}
