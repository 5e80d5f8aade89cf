//! Who must not be seen leaves no trace: two worlds that differ only in what somebody hidden does send everybody else the
//! same bytes.

use shadowland_client::replica::Replica;
use shadowland_wire::codec::Writer;
use shadowland_wire::message::client::{Buttons, Input};
use shadowland_world::replication::Frame;
use shadowland_world::{Encoder, PlayerHandle, Viewer, World, WorldConfig, sight};

const PLAYERS: usize = 6;
const SNEAK: usize = 0;
const FRIEND: usize = 1;
const HIDDEN_AT: u32 = 60;
const TICKS: u32 = 400;

/// What everybody was sent, and what they see.
struct Run {
    world: World,
    sent: [Vec<Vec<u8>>; PLAYERS],
    replicas: [Replica; PLAYERS],
    handles: Vec<PlayerHandle>,
}

/// Everybody walks about in sight of each other. After a second one of them hides from all but a friend, and from then
/// on does as `sneak` says.
fn run(hides: bool, sneak: impl Fn(u32) -> Input) -> Run {
    let mut config = WorldConfig { npcs: 20, player_capacity: PLAYERS, ..WorldConfig::default() };
    config.map.size_cm = 30_000.0;
    config.layers = sight::layers(|_| 20_000.0, 2.0);
    let mut world = World::new(config.clone());
    let handles: Vec<_> = (0..PLAYERS).map(|_| world.join().unwrap()).collect();
    let mut viewers: Vec<_> = handles.iter().map(|handle| Viewer::new(*handle)).collect();
    let (mut frame, mut encoder) = (Frame::new(&config), Encoder::new());
    let mut sent: [Vec<Vec<u8>>; PLAYERS] = Default::default();
    let mut replicas: [Replica; PLAYERS] = Default::default();
    let mut sequence = 0;
    for tick in 1..=TICKS {
        if hides && tick == HIDDEN_AT {
            world.hide(handles[SNEAK].entity, &[handles[FRIEND]]);
        }
        for (index, handle) in handles.iter().enumerate() {
            let usual =
                Input { forward: 100, yaw: (index as u32 * 9_000 + tick * 60) as u16, ..Input::default() };
            let input = if index == SNEAK && tick > HIDDEN_AT { sneak(tick) } else { usual };
            world.input(*handle, tick, input);
        }
        world.tick();
        world.publish(&mut frame);
        for (index, viewer) in viewers.iter_mut().enumerate() {
            let mut snapshot = viewer.snapshot(&frame, &mut encoder, 2, 4_000).unwrap();
            let mut sequences = Vec::new();
            while snapshot.wants_packet() {
                let mut buffer = [0; 1_150];
                let mut writer = Writer::new(&mut buffer);
                snapshot.write(&mut writer).unwrap();
                sequence += 1;
                snapshot.sent(sequence);
                sequences.push(sequence);
                replicas[index].apply_snapshot(writer.written(), &mut ()).unwrap();
                sent[index].push(writer.written().to_vec());
            }
            drop(snapshot);
            sequences.into_iter().for_each(|sequence| viewer.acked(sequence));
        }
    }
    Run { world, sent, replicas, handles }
}

fn running(tick: u32) -> Input {
    let jumps = if tick.is_multiple_of(90) { Buttons::JUMP } else { Buttons::SPRINT };
    Input { forward: 127, right: 40, yaw: (tick * 300) as u16, buttons: jumps }
}

#[test]
fn the_hidden_leave_no_trace() {
    let (still, moving) = (run(true, |_| Input::default()), run(true, running));
    let sneak = moving.handles[SNEAK].entity;
    for index in 0..PLAYERS {
        let same = still.sent[index] == moving.sent[index];
        // The sneak is told of itself, and the friend sees it.
        assert_eq!(same, index != SNEAK && index != FRIEND, "player {index}");
        assert_eq!(moving.replicas[index].entity(sneak).is_some(), index == FRIEND, "player {index}");
    }
    let shown = moving.replicas[FRIEND].entity(sneak).unwrap().position;
    let position = moving.world.position_cm(sneak).unwrap();
    assert_eq!(shown, moving.world.config().lattice().quantize(position));
}

/// The test above can fail: without hiding, everybody is sent something else.
#[test]
fn who_does_not_hide_is_seen() {
    let (still, moving) = (run(false, |_| Input::default()), run(false, running));
    for index in 0..PLAYERS {
        assert_ne!(still.sent[index], moving.sent[index]);
        assert!(moving.replicas[index].entity(moving.handles[SNEAK].entity).is_some());
    }
}
