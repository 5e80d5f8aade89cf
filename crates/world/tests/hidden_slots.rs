//! Who gets the place of a player that has left learns nothing of the hidden that this one could see.

use shadowland_wire::codec::Writer;
use shadowland_wire::entity::EntityType;
use shadowland_world::replication::{Encoder, Frame, Viewer};
use shadowland_world::{World, WorldConfig};

/// What a player is sent that comes as another one leaves, and can see others who hide, one now and one a little later.
/// The one who left could see somebody hidden, or not.
fn sent_to_the_next(the_first_sees: bool) -> Vec<Vec<u8>> {
    let mut world = World::new(WorldConfig { npcs: 0, ..WorldConfig::default() });
    let first = world.join().unwrap();
    world.teleport(first.entity, [0.0; 3]);
    let mut spawn = |x| world.spawn(EntityType::Npc, [x, 0.0, 0.0]).unwrap();
    // More than a page holds.
    let secrets = [0.0; 30].map(&mut spawn);
    let [one, other] = [100.0, 200.0].map(spawn);
    for secret in secrets {
        world.hide(secret, if the_first_sees { std::slice::from_ref(&first) } else { &[] });
    }
    (0..5).for_each(|_| world.tick());
    world.leave(first);
    let next = world.join().unwrap();
    assert_eq!(next.slot, first.slot);
    world.teleport(next.entity, [0.0; 3]);
    world.hide(one, &[next]);

    let mut frame = Frame::new(world.config());
    let (mut encoder, mut viewer) = (Encoder::new(), Viewer::new(next));
    let (mut sequence, mut sent) = (0, Vec::new());
    for tick in 0..30 {
        if tick == 5 {
            world.hide(other, &[next]);
        }
        world.tick();
        world.publish(&mut frame);
        let first_of_tick = sequence + 1;
        let mut snapshot = viewer.snapshot(&frame, &mut encoder, 2, 4_000).unwrap();
        while snapshot.wants_packet() {
            let mut buffer = [0; 1_150];
            let mut writer = Writer::new(&mut buffer);
            snapshot.write(&mut writer).unwrap();
            sequence += 1;
            snapshot.sent(sequence);
            sent.push(writer.written().to_vec());
        }
        drop(snapshot);
        (first_of_tick..=sequence).for_each(|sequence| viewer.acked(sequence));
    }
    sent
}

#[test]
fn a_place_is_given_on_without_what_was_seen_from_it() {
    assert_eq!(sent_to_the_next(true), sent_to_the_next(false));
}
