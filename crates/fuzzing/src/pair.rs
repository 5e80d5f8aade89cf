//! A server's endpoint and a client of it, with keys on both sides.

use std::net::{Ipv4Addr, SocketAddr};

use rand::SeedableRng;
use rand::rngs::StdRng;
use shadowland_proto::{
    ConnectConfig, Connecting, Connection, Endpoint, EndpointConfig, Identity, Rate, Receiver, Routed, Slot,
    State, Time,
};
use shadowland_wire::limits::DATAGRAM_BYTES;

/// Where the virtual clock starts: not at zero, so that nothing hides behind it.
pub(crate) const START: Time = Time::from_micros(100_000_000);
/// Where clients come from, unless a script says otherwise. Loopback has no limits on rates.
pub(crate) const HOME: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 4_000);

/// Hears everything and keeps nothing.
pub(crate) struct Deaf;

impl Receiver for Deaf {
    fn message(&mut self, _kind: u8, _body: &[u8]) {}
    fn acked(&mut self, _sequence: u64) {}
}

/// A small endpoint that admits as fast as it is asked, and its public key.
pub(crate) fn endpoint(config: EndpointConfig) -> (Endpoint<()>, [u8; 32], StdRng) {
    let mut rng = StdRng::seed_from_u64(1);
    let identity = Identity::generate(&mut rng);
    let key = identity.public_key();
    (Endpoint::new(config, identity, &[5; 32], &mut rng), key, rng)
}

/// As many sessions as a script can use.
pub(crate) fn small() -> EndpointConfig {
    let plenty = Rate { per_second: 100_000, burst: 100_000 };
    EndpointConfig {
        max_sessions: 8,
        max_half_open: 6,
        handshake_rate: plenty,
        client_bytes_per_s: 1 << 24,
        ..EndpointConfig::default()
    }
}

pub(crate) struct Pair {
    pub(crate) now: Time,
    endpoint: Endpoint<()>,
    slot: Slot,
    pub(crate) client: Connection,
}

impl Pair {
    /// Both have keys; if `established`, both have confirmed them.
    pub(crate) fn new(established: bool) -> Self {
        let (mut endpoint, key, mut rng) = endpoint(small());
        let mut connecting = Connecting::new(ConnectConfig::default(), key, &mut rng, START).expect("a key");
        let mut buffer = [0; DATAGRAM_BYTES];
        let client = loop {
            let length = connecting.poll_transmit(START, &mut buffer).expect("a request");
            let mut reply = [0; 128];
            let Routed::Reply(length) = endpoint.route(START, HOME, &buffer[..length], &mut reply) else {
                panic!("no answer");
            };
            if let Some(client) = connecting.handle(START, &reply[..length]).expect("an answer") {
                break client;
            }
        };
        let slot = endpoint.sessions_mut().next().expect("a session").0;
        let mut pair = Self { now: START, endpoint, slot, client };
        while established && pair.client.state() != State::Established {
            let length = pair.client.poll_transmit(START, &mut buffer).expect("ReliableHandshake");
            pair.server().handle_from(START, HOME, &mut buffer[..length], &mut Deaf).expect("it opens");
            let length = pair.server().poll_transmit(START, &mut buffer).expect("its answer");
            pair.client.handle(START, &mut buffer[..length], &mut Deaf).expect("it opens");
        }
        pair
    }

    pub(crate) fn server(&mut self) -> &mut Connection {
        &mut self.endpoint.session_mut(self.slot).expect("it is never removed").connection
    }
}
