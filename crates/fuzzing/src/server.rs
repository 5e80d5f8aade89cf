//! A client that is in the world of a whole server and keeps to no rule, beside one that does.

use std::net::{Ipv4Addr, SocketAddr};

use rand::SeedableRng;
use rand::rngs::StdRng;
use shadowland_client::{ConnectConfig, Input, Session};
use shadowland_proto::{Channel, Connecting, Connection, Identity, State, Time};
use shadowland_server::config::Config;
use shadowland_server::embed::Guards;
use shadowland_simtest::TICK_US;
use shadowland_simtest::machine::{Hiccups, Machine};
use shadowland_wire::ack::AckBlock;
use shadowland_wire::block::{CellId, PageId};
use shadowland_wire::codec::Writer;
use shadowland_wire::header::Flags;
use shadowland_wire::limits::{DATAGRAM_BYTES, INPUTS_PER_MESSAGE};
use shadowland_wire::message::client::{Buttons, InputMessage, ResetPage};
use shadowland_wire::message::{ClientType, encode_frame};

use crate::pair::Deaf;
use crate::script::{Script, Step};
use crate::within;

/// The server, its world, and both clients.
const HEAP_BYTES: u64 = 24 << 20;
/// Ticks that a script can let pass, so that a run has an end.
const TICKS: u32 = 400;
const HOSTILE_PORT: u16 = 4_000;
const HONEST_PORT: u16 = 5_000;

/// Steps that came late: they have bytes of their own, so that the corpus keeps its meaning.
const OVERTAKEN: u8 = 0xff;
const ARRIVES_AT_LAST: u8 = 0xfe;

/// Messages and payloads of any form from a client in the world, with ticks between them. The other one must go on
/// playing.
pub fn hub(data: &[u8]) {
    within(HEAP_BYTES, || {
        let mut script = Script::new(data);
        let mut world = Town::new();
        while world.step(&mut script).is_ok() {}
        world.check();
    });
}

struct Town {
    machine: Machine,
    now_us: u64,
    ticks: u32,
    hostile: Connection,
    /// Where the script's packets come from.
    from: SocketAddr,
    /// What the script has sealed and later packets overtake.
    overtaken: Vec<Vec<u8>>,
    honest: Session,
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

impl Town {
    fn new() -> Self {
        let mut rng = StdRng::seed_from_u64(4);
        let identity = Identity::generate(&mut rng);
        let mut config = Config::default();
        config.session.max_players = 4;
        config.world.player_capacity = 4;
        config.world.entity_capacity = 32;
        config.world.npcs = 8;
        config.world.map.size_cm = 20_000.0;
        let mut machine = Machine::new(&config, 1, &identity, &Guards::default(), Hiccups::NONE, 1);
        let now = Time::from_micros(TICK_US);
        let key = identity.public_key();
        let mut connecting = Connecting::new(ConnectConfig::default(), key, &mut rng, now).expect("a key");
        let mut buffer = [0; DATAGRAM_BYTES];
        let hostile = loop {
            let length = connecting.poll_transmit(now, &mut buffer).expect("a request");
            let mut answer = Vec::new();
            machine.receive(TICK_US, at(HOSTILE_PORT), &mut buffer[..length], &mut |_, datagram| {
                answer = datagram.to_vec();
            });
            if let Some(connection) = connecting.handle(now, &answer).expect("an answer") {
                break connection;
            }
        };
        let honest = Session::new(ConnectConfig::default(), key, &mut rng, now).expect("a key");
        let mut town = Self {
            machine,
            now_us: TICK_US,
            ticks: 0,
            hostile,
            from: at(HOSTILE_PORT),
            overtaken: Vec::new(),
            honest,
        };
        while town.honest.welcome().is_none() || town.hostile.state() != State::Established {
            town.tick();
        }
        town.ticks = 0;
        town
    }

    fn step(&mut self, script: &mut Script<'_>) -> Step {
        let what = script.u8()?;
        match what % 7 {
            _ if what == OVERTAKEN => {
                let (skipped, flags, payload) = script.packet()?;
                let sealed = self.seal(skipped, flags, payload);
                self.overtaken.extend(sealed);
            }
            _ if what == ARRIVES_AT_LAST => {
                if let Some(mut datagram) = self.overtaken.pop() {
                    self.machine.receive(self.now_us, self.from, &mut datagram, &mut |_, _| {});
                }
            }
            0 => {
                let (skipped, flags, payload) = script.packet()?;
                self.send(skipped, flags, payload);
            }
            1 => {
                let newest = script.number()? as u32;
                let inputs = [Input {
                    forward: script.u8()? as i8,
                    right: script.u8()? as i8,
                    yaw: script.u16()?,
                    buttons: Buttons(script.u8()?),
                }; INPUTS_PER_MESSAGE];
                let count = script.below(INPUTS_PER_MESSAGE)?.min(newest as usize);
                if count > 0 {
                    let message = InputMessage::new(newest, &inputs[..count]);
                    self.send_message(ClientType::Input as u8, |writer| {
                        message.encode(writer).expect("there is room");
                    });
                }
            }
            2 => {
                let cell = CellId(script.number()? as u32);
                let reset = ResetPage { page: PageId { cell, number: script.number()? as u16 } };
                self.send_message(ClientType::ResetPage as u8, |writer| {
                    reset.encode(writer).expect("there is room");
                });
            }
            3 => {
                let (channel, stream, kind) = (script.below(3)? as u8, script.u8()?, script.u8()?);
                let channel = Channel::from_byte(channel).expect("one of three");
                let body = script.bytes()?;
                let _ = self.hostile.send(channel, stream, kind, body);
            }
            4 => self.from.set_port(HOSTILE_PORT + script.below(3)? as u16),
            _ => {
                for _ in 0..=script.below(8)? {
                    self.tick();
                }
            }
        }
        Ok(())
    }

    fn send_message(&mut self, kind: u8, body: impl FnOnce(&mut Writer<'_>)) {
        let mut payload = [0; DATAGRAM_BYTES];
        let mut writer = Writer::new(&mut payload);
        AckBlock::encode(None, &mut writer).expect("there is room");
        let written = encode_frame(&mut writer, kind, None, |writer| {
            body(writer);
            Ok(())
        });
        written.expect("there is room");
        let length = writer.len();
        self.send(0, Flags::NONE, &payload[..length]);
    }

    fn send(&mut self, skipped: u64, flags: Flags, payload: &[u8]) {
        if let Some(mut datagram) = self.seal(skipped, flags, payload) {
            self.machine.receive(self.now_us, self.from, &mut datagram, &mut |_, _| {});
        }
    }

    fn seal(&mut self, skipped: u64, flags: Flags, payload: &[u8]) -> Option<Vec<u8>> {
        let mut buffer = [0; DATAGRAM_BYTES];
        let length = self.hostile.seal_anything(&mut buffer, skipped, Channel::Unreliable, flags, payload)?;
        Some(buffer[..length].to_vec())
    }

    /// A tick of the server; then both clients hear of it, and say what they have to say.
    fn tick(&mut self) {
        if self.ticks == TICKS {
            return;
        }
        self.ticks += 1;
        self.now_us += TICK_US;
        let now = Time::from_micros(self.now_us);
        let mut mail = Vec::new();
        self.machine.tick();
        self.machine.work(self.now_us, &mut |to, datagram| mail.push((to, datagram.to_vec())));
        for (to, mut datagram) in mail {
            if to.port() == HONEST_PORT {
                self.honest.handle(now, &mut datagram).expect("an honest server and an honest client");
            } else if !datagram.is_empty() {
                let _ = self.hostile.handle(now, &mut datagram, &mut Deaf);
            }
        }
        self.honest.on_timeout(now);
        self.honest.input(Input { forward: 100, ..Input::default() });
        self.hostile.on_timeout(now);
        let mut buffer = [0; DATAGRAM_BYTES];
        while let Some(length) = self.hostile.poll_transmit(now, &mut buffer) {
            self.machine.receive(self.now_us, self.from, &mut buffer[..length], &mut |_, _| {});
        }
        while let Some(length) = self.honest.poll_transmit(now, &mut buffer) {
            let mut answers = Vec::new();
            let from = at(HONEST_PORT);
            self.machine.receive(self.now_us, from, &mut buffer[..length], &mut |_, datagram| {
                answers.push(datagram.to_vec());
            });
            for mut answer in answers {
                self.honest.handle(now, &mut answer).expect("an honest server and an honest client");
            }
        }
    }

    /// The honest client plays, and is told of every tick.
    fn check(&mut self) {
        for _ in 0..4 {
            self.ticks = self.ticks.min(TICKS - 1);
            let before = self.honest.replica().tick();
            self.tick();
            assert_eq!(self.honest.replica().tick(), before + 1);
        }
        assert!(!self.honest.is_over());
        assert!(self.machine.world().world().player_count() <= 2);
    }
}
