//! The packets of a running game allocate nothing.

mod common;

use std::time::Duration;

use common::{Net, PERFECT};
use shadowland_proto::{Receiver, Routed};

#[derive(Default)]
struct Count {
    messages: u64,
    acked: u64,
}

impl Receiver for Count {
    fn message(&mut self, _kind: u8, _body: &[u8]) {
        self.messages += 1;
    }
    fn acked(&mut self, _sequence: u64) {
        self.acked += 1;
    }
}

#[test]
fn unreliable_packets_allocate_nothing_on_either_side() {
    let mut net = Net::connected(1, PERFECT);
    let from = net.clients[0].address;
    let (mut on_server, mut on_client) = (Count::default(), Count::default());
    let mut now = net.now;
    let mut buffer = [0; 1200];
    let rounds = 1_000;
    let allocated = allocation_counter::measure(|| {
        for _ in 0..rounds {
            now = now + Duration::from_millis(16);
            let client = net.clients[0].connection();
            let mut packet = client.packet(now, &mut buffer).unwrap();
            packet.message(0x20, |writer| writer.bytes(&[1; 40])).unwrap();
            let length = packet.finish().len;

            let routed = net.server.route(now, from, &buffer[..length], &mut [0; 128]);
            let Routed::Session(slot) = routed else { panic!("{routed:?}") };
            let session = net.server.session_mut(slot).unwrap();
            session.connection.handle(now, &mut buffer[..length], &mut on_server).unwrap();
            session.connection.on_timeout(now);
            let mut packet = session.connection.packet(now, &mut buffer).unwrap();
            while packet.message(0x41, |writer| writer.bytes(&[2; 300])).is_ok() {}
            let length = packet.finish().len;
            assert!(session.connection.poll_transmit(now, &mut [0; 1200]).is_none());

            let client = net.clients[0].connection();
            client.handle(now, &mut buffer[..length], &mut on_client).unwrap();
            client.on_timeout(now);
            assert!(client.poll_transmit(now, &mut [0; 1200]).is_none());
        }
    });
    assert_eq!((on_server.messages, on_client.messages), (rounds, 3 * rounds));
    assert!(on_client.acked >= rounds && on_server.acked >= rounds - 1);
    assert_eq!(allocated.count_total, 0);
}

#[test]
fn an_idle_connection_is_small() {
    let size = size_of::<shadowland_proto::Connection>();
    assert!(size + 2048 < 8 * 1024, "{size} bytes beside the ring of sent packets");
}
