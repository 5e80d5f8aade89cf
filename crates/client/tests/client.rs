//! A client against a real endpoint, over real sockets.

mod common;

use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use shadowland_client::{Client, EntityId, Event, ServerKey, Time};
use shadowland_proto::{Channel, Endpoint, EndpointConfig, Identity, Receiver, Routed, Slot, State};
use shadowland_wire::lattice::LatticePosition;
use shadowland_wire::message::ServerType;
use shadowland_wire::message::server::{OwnerRecord, SnapshotHeader};

struct Server {
    socket: UdpSocket,
    start: Instant,
    endpoint: Endpoint<()>,
    player: Option<(Slot, SocketAddr)>,
}

struct Deaf;

impl Receiver for Deaf {
    fn message(&mut self, _kind: u8, _body: &[u8]) {}
    fn acked(&mut self, _sequence: u64) {}
}

impl Server {
    fn new() -> (Self, ServerKey) {
        let mut rng = StdRng::seed_from_u64(5);
        let identity = Identity::generate(&mut rng);
        let key = ServerKey(identity.public_key());
        let endpoint = Endpoint::new(EndpointConfig::default(), identity, &[7; 32], &mut rng);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        (Self { socket, start: Instant::now(), endpoint, player: None }, key)
    }

    fn now(&self) -> Time {
        Time::from_micros(50_000_000 + self.start.elapsed().as_micros() as u64)
    }

    /// Takes what has arrived within a millisecond, and answers.
    fn turn(&mut self) {
        let (mut buffer, mut reply) = ([0; 1_200], [0; 1_200]);
        let now = self.now();
        if let Ok((length, from)) = self.socket.recv_from(&mut buffer) {
            match self.endpoint.route(now, from, &buffer[..length], &mut reply) {
                Routed::Reply(length) => drop(self.socket.send_to(&reply[..length], from)),
                Routed::Session(slot) => {
                    self.player = Some((slot, from));
                    let connection = &mut self.endpoint.session_mut(slot).unwrap().connection;
                    let _ = connection.handle(now, &mut buffer[..length], &mut Deaf);
                }
                Routed::Dropped(_) => {}
            }
        }
        let Some((slot, at)) = self.player else { return };
        let connection = &mut self.endpoint.session_mut(slot).unwrap().connection;
        connection.on_timeout(now);
        while let Some(length) = connection.poll_transmit(now, &mut buffer) {
            self.socket.send_to(&buffer[..length], at).unwrap();
        }
    }

    /// Serves until the player can be sent something.
    fn establish(mut self) -> Self {
        let is_through = |server: &mut Self| {
            server.player.is_some_and(|(slot, _)| {
                server.endpoint.session_mut(slot).unwrap().connection.state() == State::Established
            })
        };
        while !is_through(&mut self) {
            assert!(self.start.elapsed() < Duration::from_secs(20));
            self.turn();
        }
        self
    }

    fn welcome(&mut self) {
        let connection = &mut self.endpoint.session_mut(self.player.unwrap().0).unwrap().connection;
        let welcome = common::welcome(EntityId::new(1, 0));
        connection.send(Channel::ReliableOrdered, 0, ServerType::Welcome as u8, &welcome).unwrap();
    }

    /// Sends these snapshots, of which there is nothing but the header, the last one first.
    fn send_backwards(&mut self, headers: &[SnapshotHeader]) {
        let (now, (slot, at)) = (self.now(), self.player.unwrap());
        let connection = &mut self.endpoint.session_mut(slot).unwrap().connection;
        let sealed = headers.iter().map(|header| {
            let mut buffer = [0; 1_200];
            let mut packet = connection.packet(now, &mut buffer).unwrap();
            packet.message(ServerType::Snapshot as u8, |writer| header.encode(writer)).unwrap();
            let length = packet.finish().len;
            buffer[..length].to_vec()
        });
        for datagram in sealed.collect::<Vec<_>>().iter().rev() {
            self.socket.send_to(datagram, at).unwrap();
        }
    }
}

#[test]
fn the_own_player_is_as_new_as_its_newest_record_though_packets_of_a_tick_are_swapped() {
    let (server, key) = Server::new();
    let address = server.socket.local_addr().unwrap();
    let serving = thread::spawn(move || server.establish());
    let mut client = Client::connect(address, key).unwrap();
    // What it says now confirms the keys.
    while !serving.is_finished() {
        drop(client.update());
        thread::sleep(Duration::from_millis(1));
    }
    let mut server = serving.join().unwrap();
    server.welcome();
    let mut until = |server: &mut Server, what: &dyn Fn(&Client, &[Event]) -> bool| {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut events = Vec::new();
        while !what(&client, &events) {
            assert!(Instant::now() < deadline);
            server.turn();
            events.extend(client.update());
        }
    };
    until(&mut server, &|_, events| events.iter().any(|event| matches!(event, Event::Welcomed(_))));
    for tick in [100, 101, 102] {
        let owner = OwnerRecord::at_rest(LatticePosition { x: 10 * tick as i32, y: 0, z: 0 });
        let first = SnapshotHeader { owner: Some(owner), ..SnapshotHeader::new(tick, tick) };
        server.send_backwards(&[first, SnapshotHeader::new(tick, tick)]);
        let has_both =
            |client: &Client, _: &[Event]| client.session().stats().snapshots == 2 * (u64::from(tick) - 99);
        until(&mut server, &has_both);
    }
    let own = client.view().own().unwrap();
    assert_eq!((own.tick, own.last_input, own.position_cm[0]), (102, 102, 1_020.0));
}
