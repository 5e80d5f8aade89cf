//! Somebody between client and server who reads, keeps, changes and invents datagrams as it likes, and lacks one
//! thing: the server's static key.

use std::net::SocketAddr;

use rand::SeedableRng;
use rand::rngs::StdRng;
use shadowland_proto::{
    ConnectConfig, ConnectError, Connecting, Connection, DropReason, Endpoint, EndpointConfig, Identity,
    Receiver, Routed, State, Time,
};
use shadowland_wire::handshake::{NOISE_ACCEPTANCE_BYTES, ServerHandshake};
use shadowland_wire::limits::DATAGRAM_BYTES;

const START: Time = Time::from_micros(50_000_000);

/// What is said in the session, and must be heard by nobody else.
const SECRET: &[u8] = b"meet me at the old mill";

#[derive(Default)]
struct Heard(Vec<Vec<u8>>);

impl Receiver for Heard {
    fn message(&mut self, _kind: u8, body: &[u8]) {
        self.0.push(body.to_vec());
    }
    fn acked(&mut self, _sequence: u64) {}
}

struct Scene {
    now: Time,
    client: Connecting,
    server: Endpoint<()>,
    /// A server of the attacker's own.
    evil: Endpoint<()>,
    /// Everything that went by.
    seen: Vec<Vec<u8>>,
}

fn home() -> SocketAddr {
    "198.51.100.7:4000".parse().unwrap()
}

fn attacker() -> SocketAddr {
    "203.0.113.9:999".parse().unwrap()
}

impl Scene {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let identity = Identity::generate(&mut rng);
        let key = identity.public_key();
        let mut endpoint = |identity| Endpoint::new(EndpointConfig::default(), identity, &[5; 32], &mut rng);
        let server = endpoint(identity);
        let evil = Identity::generate(&mut StdRng::seed_from_u64(seed + 1_000));
        let evil = endpoint(evil);
        let client = Connecting::new(ConnectConfig::default(), key, &mut rng, START).unwrap();
        Self { now: START, client, server, evil, seen: Vec::new() }
    }

    /// Takes what the client sends next, letting time pass until then; why it has given up, when it has.
    fn request(&mut self) -> Result<Vec<u8>, ConnectError> {
        let mut buffer = [0; DATAGRAM_BYTES];
        loop {
            self.client.on_timeout(self.now)?;
            if let Some(length) = self.client.poll_transmit(self.now, &mut buffer) {
                self.seen.push(buffer[..length].to_vec());
                return Ok(buffer[..length].to_vec());
            }
            self.now = self.client.next_timeout().expect("it is not done");
        }
    }
}

fn ask(endpoint: &mut Endpoint<()>, now: Time, from: SocketAddr, datagram: &[u8]) -> Option<Vec<u8>> {
    let mut reply = [0; 128];
    match endpoint.route(now, from, datagram, &mut reply) {
        Routed::Reply(length) => Some(reply[..length].to_vec()),
        _ => None,
    }
}

#[test]
fn who_answers_in_the_servers_place_gets_no_session_and_the_client_says_why() {
    let mut scene = Scene::new(1);
    let error = loop {
        let request = match scene.request() {
            Ok(request) => request,
            Err(error) => break error,
        };
        if let Some(answer) = ask(&mut scene.evil, scene.now, home(), &request) {
            assert!(scene.client.handle(scene.now, &answer).unwrap().is_none());
        }
    };
    assert_eq!(error, ConnectError::NotAccepted);
    assert!(error.to_string().contains("its public key is not the one given"), "{error}");
    assert_eq!(scene.evil.session_count(), 0);
    assert!(scene.evil.counters().dropped.by(DropReason::HandshakeFailed) > 0);
}

#[test]
fn an_invented_acceptance_is_passed_over_for_the_real_one() {
    let mut scene = Scene::new(2);
    let echo = scene.client.echo();
    let connection = loop {
        let request = scene.request().unwrap();
        for byte in [0, 1, 0xff] {
            let noise = [byte; NOISE_ACCEPTANCE_BYTES];
            let mut buffer = [0; 128];
            let mut writer = shadowland_wire::Writer::new(&mut buffer);
            ServerHandshake::ConnectionAccepted { echo, noise: &noise }.encode(&mut writer).unwrap();
            let taken = scene.client.handle(scene.now, writer.written());
            assert_eq!(taken.err(), Some(DropReason::HandshakeFailed));
        }
        let answer = ask(&mut scene.server, scene.now, home(), &request).unwrap();
        if let Some(connection) = scene.client.handle(scene.now, &answer).unwrap() {
            break connection;
        }
    };
    assert_eq!(connection.state(), State::Handshaking);
}

/// The attacker is the client's only way to the server, and hands everything on. It learns nothing, and what it
/// changes is not taken.
#[test]
fn who_hands_everything_on_reads_nothing_and_changes_nothing() {
    let mut scene = Scene::new(3);
    let mut client = loop {
        let request = scene.request().unwrap();
        let answer = ask(&mut scene.server, scene.now, attacker(), &request).unwrap();
        // Changed in any byte behind the header and the echo, an acceptance does not open.
        if answer.len() == 85 {
            for place in 23..answer.len() {
                let mut changed = answer.clone();
                changed[place] ^= 0x20;
                assert!(scene.client.handle(scene.now, &changed).is_err(), "byte {place}");
            }
        }
        scene.seen.push(answer.clone());
        if let Some(connection) = scene.client.handle(scene.now, &answer).unwrap() {
            break connection;
        }
    };
    let now = scene.now;
    let slot = scene.server.sessions_mut().next().unwrap().0;
    let mut heard = [Heard::default(), Heard::default()];
    for round in 0..4 {
        let server = &mut scene.server.session_mut(slot).unwrap().connection;
        for datagram in say(&mut client, now, round > 0) {
            assert_changes_are_refused(&datagram, |bytes| {
                server.handle_from(now, attacker(), bytes, &mut heard[0])
            });
            server.handle_from(now, attacker(), &mut datagram.clone(), &mut heard[0]).unwrap();
            scene.seen.push(datagram);
        }
        for datagram in say(server, now, round > 0) {
            assert_changes_are_refused(&datagram, |bytes| client.handle(now, bytes, &mut heard[1]));
            client.handle(now, &mut datagram.clone(), &mut heard[1]).unwrap();
            scene.seen.push(datagram);
        }
    }
    for heard in heard {
        assert_eq!(heard.0, [SECRET, SECRET, SECRET]);
    }
    let leaked =
        scene.seen.iter().any(|datagram| datagram.windows(8).any(|window| SECRET.starts_with(window)));
    assert!(!leaked, "the secret stands in a datagram");
}

/// What a side has to say, and the secret if it is to say it.
fn say(connection: &mut Connection, now: Time, secret: bool) -> Vec<Vec<u8>> {
    let mut buffer = [0; DATAGRAM_BYTES];
    let mut said = Vec::new();
    if secret {
        let mut packet = connection.packet(now, &mut buffer).unwrap();
        packet.message(0x41, |writer| writer.bytes(SECRET)).unwrap();
        let length = packet.finish().len;
        said.push(buffer[..length].to_vec());
    }
    while let Some(length) = connection.poll_transmit(now, &mut buffer) {
        said.push(buffer[..length].to_vec());
    }
    said
}

fn assert_changes_are_refused(datagram: &[u8], mut give: impl FnMut(&mut [u8]) -> Result<(), DropReason>) {
    for bit in 0..8 * datagram.len() {
        let mut changed = datagram.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(give(&mut changed).is_err(), "bit {bit}");
    }
    assert!(give(&mut datagram[..datagram.len() - 1].to_vec()).is_err());
}
