//! Attacks on sessions, by those who see their packets and by those who have one.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use rand_pcg::Pcg64;
use shadowland_client::Input;
use shadowland_client::session::Session;
use shadowland_proto::{Channel, Connecting, Connection, Receiver, Time};
use shadowland_wire::block::{CellId, PageId};
use shadowland_wire::codec::Writer;
use shadowland_wire::header::{Flags, HEADER_BYTES, Header};
use shadowland_wire::limits::{DATAGRAM_BYTES, TAG_BYTES};
use shadowland_wire::message::ClientType;
use shadowland_wire::message::client::{InputMessage, ResetPage};

use super::attacker::{Attack, now};
use super::guest::Guest;
use super::stage::Stage;

/// Between two inputs of a client that behaves.
const INPUT_EVERY: Duration = Duration::from_micros(16_667);
/// For how long packets are recorded before they are replayed.
const RECORDED: Duration = Duration::from_secs(2);
/// Packets that are kept for that; the oldest give way.
const RECORDINGS: usize = 4_096;

/// Packets of the length of a Disconnect, an acknowledgement and a Pong, with the ids of real sessions and sequences
/// that are to come; what is sealed in them is not.
pub(super) struct ForgedPackets {
    ids: Vec<u32>,
    sequence: u64,
    random: Pcg64,
}

impl ForgedPackets {
    pub(super) fn new(stage: &Stage) -> Self {
        let ids = stage.bots.inspect(Session::connection_id).into_iter().filter_map(|(_, id)| id).collect();
        Self { ids, sequence: 1 << 40, random: Pcg64::seed_from_u64(8) }
    }
}

impl Attack for ForgedPackets {
    fn next(&mut self, _now: Time, _source: usize, datagram: &mut [u8; DATAGRAM_BYTES]) -> Option<usize> {
        self.sequence += 1;
        let flags = match self.random.random_range(0..4) {
            0 => Flags::SEALED.with(Flags::ACKNOWLEDGMENT),
            1 => Flags::SEALED.with(Flags::KEY_PHASE),
            _ => Flags::SEALED,
        };
        let connection_id = self.ids[self.sequence as usize % self.ids.len()];
        let header = Header { connection_id, channel: Channel::Unreliable, flags, sequence: self.sequence };
        datagram[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
        let len = HEADER_BYTES + self.random.random_range(1..24) + TAG_BYTES;
        self.random.fill_bytes(&mut datagram[HEADER_BYTES..len]);
        Some(len)
    }
}

/// Everything that a player's client sends, handshake and all, again and from elsewhere.
pub(super) struct ReplayedPackets {
    victim: Guest,
    inputs_due: Time,
    recorded: VecDeque<Vec<u8>>,
    random: Pcg64,
}

impl ReplayedPackets {
    pub(super) fn new(stage: &Stage) -> anyhow::Result<Self> {
        let mut rng = StdRng::seed_from_u64(9);
        let config = stage.login(&mut rng);
        let from = Ipv4Addr::new(127, 33, 0, 1);
        let began = Instant::now();
        let victim = Guest::new(from, stage.address(), stage.server_key, config, &mut rng, now(stage.clock))?;
        let mut recording = Self {
            victim,
            inputs_due: now(stage.clock),
            recorded: VecDeque::with_capacity(RECORDINGS),
            random: Pcg64::seed_from_u64(10),
        };
        while began.elapsed() < RECORDED {
            recording.play(now(stage.clock));
            thread::sleep(Duration::from_millis(1));
        }
        ensure!(recording.victim.plays(), "the player whose packets are to be replayed did not get in");
        Ok(recording)
    }

    /// What the player does.
    fn play(&mut self, now: Time) {
        if now < self.inputs_due {
            return;
        }
        self.inputs_due = now + INPUT_EVERY;
        let input = Input { forward: 127, yaw: self.random.random(), ..Input::default() };
        self.victim.step(now, Some(input), |datagram| {
            if self.recorded.len() == RECORDINGS {
                self.recorded.pop_front();
            }
            self.recorded.push_back(datagram.to_vec());
        });
    }
}

impl Attack for ReplayedPackets {
    fn next(&mut self, now: Time, _source: usize, datagram: &mut [u8; DATAGRAM_BYTES]) -> Option<usize> {
        self.play(now);
        // Half of them among the latest, which are within the replay window.
        let back = if self.random.random() { 64 } else { self.recorded.len() };
        let index = self.recorded.len() - self.random.random_range(1..=back.min(self.recorded.len()));
        let packet = &self.recorded[index];
        datagram[..packet.len()].copy_from_slice(packet);
        Some(packet.len())
    }

    fn dropped(&self) -> usize {
        usize::from(!self.victim.plays())
    }
}

/// A player whose client sends a packet with an input as often as it can.
pub(super) struct NoisyPackets {
    session: Session,
    random: Pcg64,
}

impl NoisyPackets {
    pub(super) fn new(stage: &Stage) -> anyhow::Result<Self> {
        let mut rng = StdRng::seed_from_u64(11);
        let session = Session::new(stage.login(&mut rng), stage.server_key, &mut rng, now(stage.clock))?;
        Ok(Self { session, random: Pcg64::seed_from_u64(12) })
    }
}

impl Attack for NoisyPackets {
    fn sources(&self) -> usize {
        1
    }

    fn next(&mut self, now: Time, _source: usize, datagram: &mut [u8; DATAGRAM_BYTES]) -> Option<usize> {
        if self.session.next_timeout().is_some_and(|at| now >= at) {
            self.session.on_timeout(now);
        }
        self.session.input(Input { forward: 127, yaw: self.random.random(), ..Input::default() });
        self.session.poll_transmit(now, datagram)
    }

    fn answered(&mut self, now: Time, _source: usize, datagram: &mut [u8]) {
        // What is not for the session is counted there.
        let _ = self.session.handle(now, datagram);
    }
}

/// A player whose packets are full: inputs, requests for pages that it has or that do not exist, messages that nobody
/// knows, and reliable ones as many as there is room for.
pub(super) struct NoisyMessages {
    phase: Phase,
    input: u32,
    random: Pcg64,
}

enum Phase {
    Connecting(Box<Connecting>),
    Connected(Box<Connection>),
}

impl NoisyMessages {
    pub(super) fn new(stage: &Stage) -> anyhow::Result<Self> {
        let mut rng = StdRng::seed_from_u64(13);
        let config = stage.login(&mut rng);
        let connecting = Connecting::new(config, stage.server_key, &mut rng, now(stage.clock))?;
        Ok(Self {
            phase: Phase::Connecting(Box::new(connecting)),
            input: 8,
            random: Pcg64::seed_from_u64(14),
        })
    }

    fn fill(&mut self, now: Time, datagram: &mut [u8; DATAGRAM_BYTES]) -> Option<usize> {
        let Phase::Connected(connection) = &mut self.phase else { return None };
        let mut body = [0; 64];
        self.random.fill_bytes(&mut body);
        let channel =
            if self.random.random() { Channel::ReliableOrdered } else { Channel::ReliableUnordered };
        // Full is what it wants to be.
        let _ = connection.send(channel, 0, self.random.random_range(0x20..0x30), &body);
        let mut packet = connection.packet(now, datagram)?;
        loop {
            let written = match self.random.random_range(0..3) {
                0 => {
                    self.input += 1;
                    let message = InputMessage::new(self.input, &[Input::default(); 8]);
                    packet.message(ClientType::Input as u8, |writer| message.encode(writer))
                }
                1 => {
                    let cell = CellId(self.random.random_range(0..1_000));
                    let reset = ResetPage { page: PageId { cell, number: 0 } };
                    packet.message(ClientType::ResetPage as u8, |writer| reset.encode(writer))
                }
                _ => packet.message(0x7f, |writer: &mut Writer<'_>| writer.bytes(&body[..3])),
            };
            if written.is_err() {
                return Some(packet.finish().len);
            }
        }
    }
}

impl Attack for NoisyMessages {
    fn sources(&self) -> usize {
        1
    }

    fn next(&mut self, now: Time, _source: usize, datagram: &mut [u8; DATAGRAM_BYTES]) -> Option<usize> {
        let due = match &mut self.phase {
            Phase::Connecting(connecting) => connecting.poll_transmit(now, datagram),
            Phase::Connected(connection) => {
                if connection.next_timeout().is_some_and(|at| now >= at) {
                    connection.on_timeout(now);
                }
                connection.poll_transmit(now, datagram)
            }
        };
        due.or_else(|| self.fill(now, datagram))
    }

    fn answered(&mut self, now: Time, _source: usize, datagram: &mut [u8]) {
        match &mut self.phase {
            Phase::Connecting(connecting) => {
                if let Ok(Some(connection)) = connecting.handle(now, datagram) {
                    self.phase = Phase::Connected(Box::new(connection));
                }
            }
            Phase::Connected(connection) => {
                // What is not for the session is counted there.
                let _ = connection.handle(now, datagram, &mut Nobody);
            }
        }
    }
}

/// Takes messages and does nothing with them.
struct Nobody;

impl Receiver for Nobody {
    fn message(&mut self, _kind: u8, _body: &[u8]) {}
    fn acked(&mut self, _sequence: u64) {}
}
