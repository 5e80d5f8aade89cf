//! Every decoder of the protocol on any bytes. What decodes must survive being encoded and decoded again.

use std::fmt::Debug;

use shadowland_wire::ack::AckBlock;
use shadowland_wire::bits::MAX_BITS;
use shadowland_wire::block::{
    Block, BlockHeader, BodyPlan, CellId, Change, EntityRecord, PositionUpdate, Update, encode_body,
};
use shadowland_wire::codec::{DecodeError, Full, Reader, Writer};
use shadowland_wire::entity::{EntityDelta, EntityId, EntityState, EntityType};
use shadowland_wire::handshake::{Acceptance, ClientHandshake, ServerHandshake, peek_echo};
use shadowland_wire::header::Header;
use shadowland_wire::lattice::LatticePosition;
use shadowland_wire::limits::PAGE_SLOTS;
use shadowland_wire::message::client::{InputMessage, ResetPage};
use shadowland_wire::message::control::Control;
use shadowland_wire::message::fragment::Fragment;
use shadowland_wire::message::server::{Close, OwnerRecord, SnapshotHeader, Welcome};
use shadowland_wire::message::{ClientType, ControlType, Frame, ServerType};
use shadowland_wire::quantize::{Rotation, Velocity, Vitals};

use crate::within;

/// Larger than anything that is encoded here.
const ROOM: usize = 4096;
/// Decoders borrow; only the lists of a block are owned, and what the checks here write.
const HEAP_BYTES: u64 = 64 << 10;

/// The header, the handshake, and the messages of a payload. The first byte says which.
pub fn messages(data: &[u8]) {
    let Some((&which, bytes)) = data.split_first() else { return };
    within(HEAP_BYTES, || match which % 6 {
        0 => survives(Header::decode(&mut Reader::new(bytes)), Header::encode, |bytes| {
            Header::decode(&mut Reader::new(bytes))
        }),
        1 => {
            let _ = peek_echo(bytes);
            let again = written(ClientHandshake::decode(bytes).ok(), ClientHandshake::encode);
            assert_eq!(again.as_deref().map(ClientHandshake::decode), ok(ClientHandshake::decode(bytes)));
        }
        2 => {
            let again = written(ServerHandshake::decode(bytes).ok(), ServerHandshake::encode);
            assert_eq!(again.as_deref().map(ServerHandshake::decode), ok(ServerHandshake::decode(bytes)));
        }
        3 => {
            if let Ok(acceptance) = Acceptance::decode(bytes) {
                assert_eq!(Acceptance::decode(&acceptance.to_bytes()), Ok(acceptance));
            }
        }
        4 => {
            let mut reader = Reader::new(bytes);
            if AckBlock::decode(&mut reader).is_ok() {
                frames(&mut reader);
            }
        }
        _ => frames(&mut Reader::new(bytes)),
    });
}

/// All that a payload can carry after its acknowledgements.
fn frames(reader: &mut Reader<'_>) {
    while !reader.is_empty() {
        let Ok(frame) = Frame::decode(reader) else { return };
        let again = written(Some(frame), Frame::encode).expect("a frame");
        assert_eq!(Frame::decode(&mut Reader::new(&again)), Ok(frame));
        body(&frame);
    }
}

fn body(frame: &Frame<'_>) {
    if frame.kind == ControlType::Fragment as u8 {
        let again = written(Fragment::decode(frame.body).ok(), Fragment::encode);
        assert_eq!(again.as_deref().map(Fragment::decode), ok(Fragment::decode(frame.body)));
    } else if let Ok(Some(control)) = Control::decode(frame.kind, frame.body) {
        let again = written(Some(control), Control::encode).expect("a control message");
        let again = Frame::decode(&mut Reader::new(&again)).expect("a frame");
        assert_eq!(Control::decode(again.kind, again.body), Ok(Some(control)));
    }
    match ClientType::from_byte(frame.kind) {
        Some(ClientType::Input) => {
            survives(InputMessage::decode(frame.body), InputMessage::encode, InputMessage::decode);
        }
        Some(ClientType::ResetPage) => {
            survives(ResetPage::decode(frame.body), ResetPage::encode, ResetPage::decode);
        }
        None => {}
    }
    match ServerType::from_byte(frame.kind) {
        Some(ServerType::Welcome) => {
            survives(Welcome::decode(frame.body), Welcome::encode, Welcome::decode);
        }
        Some(ServerType::Snapshot) => {
            let _ = snapshot(frame.body);
        }
        None => {}
    }
}

/// The body of a Snapshot: the header, the player's own record, closes, and blocks to the end.
pub fn blocks(data: &[u8]) {
    within(HEAP_BYTES, || {
        let _ = snapshot(data);
    });
}

fn snapshot(body: &[u8]) -> Result<(), DecodeError> {
    let mut reader = Reader::new(body);
    let position = LatticePosition { x: 70_000, y: -5, z: i32::MAX };
    let owner = OwnerRecord::at_rest(position);
    let held = SnapshotHeader { owner: Some(owner), ..SnapshotHeader::new(100_000, 7) };
    let header = SnapshotHeader::decode(&mut reader, Some(&held))?;
    survives(Ok(header), SnapshotHeader::encode, |bytes| {
        SnapshotHeader::decode(&mut Reader::new(bytes), Some(&held))
    });
    for _ in 0..header.closes {
        Close::decode(&mut reader)?;
    }
    let (mut previous, mut block) = (CellId(0), Block::default());
    while !reader.is_empty() {
        let before = previous;
        let header = BlockHeader::decode(&mut reader, &mut previous)?;
        let again = written(Some(header), |header, writer| header.encode(writer, &mut { before }));
        let again = again.expect("a header");
        assert_eq!(BlockHeader::decode(&mut Reader::new(&again), &mut { before }), Ok(header));
        block.decode_body(&mut reader)?;
        block_survives(&block);
    }
    Ok(())
}

/// Encodes a block from what was decoded, unless a slot has both an enter and an update: the encoder has one record
/// for a slot.
fn block_survives(block: &Block) {
    let mut records = [nobody(); PAGE_SLOTS];
    let mut changes = [Change { delta: EntityDelta::NONE, height: false, wide: false }; PAGE_SLOTS];
    let (mut enters, mut updates, mut low_bits) = (0, 0, 0);
    for (slot, record) in &block.enters {
        enters |= 1 << slot;
        records[usize::from(*slot)] = *record;
    }
    for update in &block.updates {
        let slot = usize::from(update.slot);
        updates |= 1 << slot;
        let mut change = Change { delta: update.delta, height: false, wide: false };
        let position = match update.position {
            PositionUpdate::Full(position) => {
                change.wide = true;
                position
            }
            PositionUpdate::Low { bits, xy: [x, y], z } => {
                assert!(bits <= MAX_BITS);
                low_bits = low_bits.max(bits);
                change.height = z.is_some();
                LatticePosition { x: x as i32, y: y as i32, z: z.unwrap_or(0) as i32 }
            }
        };
        changes[slot] = change;
        records[slot] = EntityRecord {
            position,
            rotation: update.rotation,
            animation: update.animation,
            state: update.state,
            velocity: update.velocity,
            vitals: update.vitals,
            ..nobody()
        };
    }
    if enters & updates != 0 {
        return;
    }
    let plan = BodyPlan { tombstones: &block.tombstones, enters, updates, changes: &changes, low_bits };
    let mut bytes = [0; ROOM];
    let length = encode_body(&plan, |slot| &records[slot], &mut bytes).expect("a block that was decoded");
    let mut again = Block::default();
    again.decode_body(&mut Reader::new(&bytes[..length])).expect("what was encoded");
    assert_eq!((&again.tombstones, &again.enters), (&block.tombstones, &block.enters));
    assert_eq!(again.updates.len(), block.updates.len());
    for (again, update) in again.updates.iter().zip(&block.updates) {
        update_survives(again, update);
    }
}

/// An encoder may add groups, where all updates of a block having the same ones takes fewer bits; what was there stays.
fn update_survives(again: &Update, update: &Update) {
    let has = |group| update.delta.contains(group);
    assert!(again.slot == update.slot && again.delta.contains(update.delta));
    assert!(!has(EntityDelta::POSITION) || again.position == update.position);
    assert!(!has(EntityDelta::ROTATION) || again.rotation == update.rotation);
    assert!(!has(EntityDelta::ANIMATION) || again.animation == update.animation);
    assert!(!has(EntityDelta::FLAGS) || again.state == update.state);
    assert!(!has(EntityDelta::VELOCITY) || again.velocity == update.velocity);
    assert!(!has(EntityDelta::VITALS) || again.vitals == update.vitals);
}

fn nobody() -> EntityRecord {
    EntityRecord {
        id: EntityId::NONE,
        kind: EntityType::Player,
        position: LatticePosition::default(),
        rotation: Rotation::default(),
        animation: 0,
        state: EntityState::NONE,
        velocity: Velocity::default(),
        vitals: Vitals::default(),
    }
}

/// A value that was decoded is the same after it was encoded and decoded again.
fn survives<T: Copy + PartialEq + Debug>(
    decoded: Result<T, DecodeError>,
    encode: impl FnOnce(&T, &mut Writer<'_>) -> Result<(), Full>,
    decode: impl FnOnce(&[u8]) -> Result<T, DecodeError>,
) {
    if let Some(bytes) = written(decoded.ok(), encode) {
        assert_eq!(decode(&bytes).ok(), decoded.ok());
    }
}

fn written<T>(
    value: Option<T>,
    encode: impl FnOnce(&T, &mut Writer<'_>) -> Result<(), Full>,
) -> Option<Vec<u8>> {
    let mut buffer = [0; ROOM];
    let mut writer = Writer::new(&mut buffer);
    encode(&value?, &mut writer).expect("there is room");
    Some(writer.written().to_vec())
}

fn ok<T>(result: Result<T, DecodeError>) -> Option<Result<T, DecodeError>> {
    result.is_ok().then_some(result)
}
