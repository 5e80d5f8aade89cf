//! How bots leave, against a real endpoint over real sockets.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use shadowland_bots::{Bots, BotsConfig, NetProfile};
use shadowland_proto::{
    CloseReason, DisconnectReason, Endpoint, EndpointConfig, Identity, Receiver, Routed, State, Time,
};

struct Deaf;

impl Receiver for Deaf {
    fn message(&mut self, _kind: u8, _body: &[u8]) {}
    fn acked(&mut self, _sequence: u64) {}
}

/// Serves a client until its session is in a state.
fn serve_until(socket: &UdpSocket, endpoint: &mut Endpoint<()>, start: Instant, wanted: State) {
    let (mut buffer, mut reply) = ([0; 1_200], [0; 1_200]);
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        assert!(Instant::now() < deadline, "not within five seconds: {wanted:?}");
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let now = Time::from_micros(50_000_000 + start.elapsed().as_micros() as u64);
        match endpoint.route(now, from, &buffer[..length], &mut reply) {
            Routed::Reply(length) => drop(socket.send_to(&reply[..length], from)),
            Routed::Session(slot) => {
                let connection = &mut endpoint.session_mut(slot).unwrap().connection;
                let _ = connection.handle(now, &mut buffer[..length], &mut Deaf);
                while let Some(length) = connection.poll_transmit(now, &mut buffer) {
                    socket.send_to(&buffer[..length], from).unwrap();
                }
                if connection.state() == wanted {
                    return;
                }
            }
            Routed::Dropped(_) => {}
        }
    }
}

#[test]
fn bots_on_a_bad_network_say_goodbye_too() {
    let mut rng = StdRng::seed_from_u64(5);
    let identity = Identity::generate(&mut rng);
    let key = identity.public_key();
    let mut endpoint = Endpoint::new(EndpointConfig::default(), identity, &[7; 32], &mut rng);
    let start = Instant::now();
    for net in [None, Some("transatlantic".parse::<NetProfile>().unwrap())] {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        let bots =
            Bots::start(BotsConfig { net, ..BotsConfig::new(socket.local_addr().unwrap(), key, 1) }).unwrap();
        serve_until(&socket, &mut endpoint, start, State::Established);
        drop(bots);
        let left = State::Closed(CloseReason::Peer(DisconnectReason::Leaving));
        serve_until(&socket, &mut endpoint, start, left);
    }
}
