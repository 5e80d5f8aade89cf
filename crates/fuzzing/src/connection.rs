//! An established session whose peer has the keys and keeps to no rule.

use std::net::SocketAddr;

use shadowland_proto::{Connection, DisconnectReason, DropReason, Time};
use shadowland_wire::ack::{AckBlock, AckDelay};
use shadowland_wire::codec::Writer;
use shadowland_wire::header::{Channel, Flags, HEADER_BYTES};
use shadowland_wire::limits::{DATAGRAM_BYTES, FRAGMENT_BYTES, TAG_BYTES};
use shadowland_wire::message::fragment::{Fragment, Whole};
use shadowland_wire::message::{Frame, MessageId, StreamId};

use crate::pair::{Deaf, HOME, Pair};
use crate::script::{Script, Step};
use crate::within;

/// What both sides may hold together: the endpoint, four assemblies of 256 KiB, what waits ahead of gaps, what waits
/// for sending, and what the script itself keeps.
const HEAP_BYTES: u64 = 8 << 20;
/// A side that has more to say at one moment than this never ends.
const PACKETS_AT_ONCE: usize = 2_000;
/// Datagrams that a script can send again.
const HISTORY: usize = 64;

/// Steps that came late: they have bytes of their own, so that the corpus keeps its meaning.
const OVERTAKEN: u8 = 0xff;
const ARRIVES_AT_LAST: u8 = 0xfe;

/// Payloads of any form, in any order with time, losses, replays and what the honest side sends itself.
pub fn connection(data: &[u8]) {
    within(HEAP_BYTES, || {
        let mut script = Script::new(data);
        let Ok(setting) = script.u8() else { return };
        let mut duel = Duel::new(setting & 1 != 0, setting & 2 == 0);
        while duel.step(&mut script).is_ok() {}
    });
}

/// Pieces of large messages that say anything about the whole, compressed or not.
pub fn fragments(data: &[u8]) {
    within(HEAP_BYTES, || {
        let mut script = Script::new(data);
        let mut duel = Duel::new(true, true);
        let mut step = || match script.u8()? % 8 {
            0 => duel.time_passes(&mut script),
            1 => {
                duel.answer();
                Ok(())
            }
            _ => duel.send_fragment(&mut script),
        };
        while step().is_ok() {}
    });
}

/// One of the two sides of a pair is under test; the other is the script's.
struct Duel {
    pair: Pair,
    honest_is_server: bool,
    /// Where the script's packets come from.
    from: SocketAddr,
    /// What the honest side has sent and nobody has taken.
    to_hostile: Vec<Vec<u8>>,
    /// What the script has sent.
    history: Vec<Vec<u8>>,
    /// What it has sealed and later packets overtake.
    overtaken: Vec<Vec<u8>>,
}

impl Duel {
    fn new(honest_is_server: bool, established: bool) -> Self {
        let pair = Pair::new(established);
        Self {
            pair,
            honest_is_server,
            from: HOME,
            to_hostile: Vec::new(),
            history: Vec::new(),
            overtaken: Vec::new(),
        }
    }

    fn honest(&mut self) -> &mut Connection {
        if self.honest_is_server { self.pair.server() } else { &mut self.pair.client }
    }

    fn hostile(&mut self) -> &mut Connection {
        if self.honest_is_server { &mut self.pair.client } else { self.pair.server() }
    }

    fn step(&mut self, script: &mut Script<'_>) -> Step {
        let what = script.u8()?;
        match what % 12 {
            _ if what == OVERTAKEN => {
                let (skipped, flags, payload) = script.packet()?;
                let sealed = self.seal(skipped, flags, payload);
                self.overtaken.extend(sealed);
            }
            _ if what == ARRIVES_AT_LAST => {
                if let Some(mut datagram) = self.overtaken.pop() {
                    self.deliver(&mut datagram);
                }
            }
            0 => {
                let (skipped, flags, payload) = script.packet()?;
                self.send_payload(skipped, flags, payload);
            }
            1 => self.send_frames(script)?,
            2 => self.time_passes(script)?,
            3 => {
                let (channel, stream, kind) = (script.below(3)? as u8, script.u8()?, script.u8()?);
                let body = vec![script.u8()?; usize::from(script.u16()?) * 2];
                let channel = Channel::from_byte(channel).expect("one of three");
                let _ = self.honest().send(channel, stream, kind, &body);
            }
            4 => self.answer(),
            5 => self.to_hostile.clear(),
            6 => self.replay(script)?,
            7 => self.from.set_port(4_000 + script.below(3)? as u16),
            8 => {
                let now = self.pair.now;
                let mut buffer = [0; DATAGRAM_BYTES];
                let (kind, size) = (script.u8()? & 0x7f, usize::from(script.u8()?) * 5);
                if let Some(mut packet) = self.honest().packet(now, &mut buffer) {
                    let _ = packet.message(kind, |writer| writer.bytes(&[kind; 1_275][..size]));
                    let sent = packet.finish();
                    self.to_hostile.push(buffer[..sent.len].to_vec());
                }
            }
            9 => {
                let (channel, stream, kind) = (script.below(3)? as u8, script.u8()?, script.u8()?);
                let channel = Channel::from_byte(channel).expect("one of three");
                let body = script.bytes()?;
                let _ = self.hostile().send(channel, stream, kind, body);
                self.answer();
            }
            10 => {
                let (now, reason) = (self.pair.now, DisconnectReason::from_code(script.u8()?));
                self.honest().close(now, reason);
            }
            _ => self.send_fragment(script)?,
        }
        self.drain();
        Ok(())
    }

    /// A payload of frames, each with its length right, after acknowledgements of anything.
    fn send_frames(&mut self, script: &mut Script<'_>) -> Step {
        let mut payload = [0; DATAGRAM_BYTES];
        let mut writer = Writer::new(&mut payload);
        let acks = script.u8()?;
        let block = AckBlock {
            largest_low: script.u32()?,
            mask: if acks & 2 == 0 { u64::MAX - 1 } else { script.u64()? & !1 },
            delay: AckDelay::from_micros(u64::from(acks) * 200),
        };
        let _ = AckBlock::encode((acks & 1 != 0).then_some(&block), &mut writer);
        for _ in 0..script.below(9)? {
            let (kind, place) = (script.u8()?, script.u8()?);
            let frame = Frame {
                kind: kind & 0x7f,
                reliable: if kind & 0x80 == 0 { None } else { Some(reliable_place(place, script)?) },
                body: script.bytes()?,
            };
            let _ = frame.encode(&mut writer);
        }
        let length = writer.len();
        self.send_payload(0, Flags::NONE, &payload[..length]);
        Ok(())
    }

    /// A piece that has the length which its message demands; what is missing is repeated from its start.
    fn send_fragment(&mut self, script: &mut Script<'_>) -> Step {
        let place = script.u8()?;
        let reliable = Some(reliable_place(place, script)?);
        let (kind, index) = (script.u8()?, script.number()? as u32);
        let size = script.number()? as u32;
        let plain_size = if kind & 0x80 == 0 { None } else { Some(script.number()? as u32) };
        let whole = Whole { kind: kind & 0x7f, size, plain_size };
        let start = u64::from(index) * FRAGMENT_BYTES as u64;
        let length = u64::from(size).saturating_sub(start).min(FRAGMENT_BYTES as u64) as usize;
        let mut piece = [0; FRAGMENT_BYTES];
        let given = script.bytes()?;
        for (byte, given) in piece[..length].iter_mut().zip(given.iter().cycle()) {
            *byte = *given;
        }
        let mut body = [0; DATAGRAM_BYTES];
        let mut writer = Writer::new(&mut body);
        let _ = Fragment { whole, index, piece: &piece[..length] }.encode(&mut writer);
        let mut payload = [0; DATAGRAM_BYTES];
        let mut packet = Writer::new(&mut payload);
        let _ = AckBlock::encode(None, &mut packet);
        let _ = Frame { kind: 0x05, reliable, body: writer.written() }.encode(&mut packet);
        let length = packet.len();
        self.send_payload(0, Flags::FRAGMENT, &payload[..length]);
        Ok(())
    }

    fn send_payload(&mut self, skipped: u64, flags: Flags, payload: &[u8]) {
        if let Some(mut datagram) = self.seal(skipped, flags, payload) {
            self.deliver(&mut datagram);
        }
    }

    fn seal(&mut self, skipped: u64, flags: Flags, payload: &[u8]) -> Option<Vec<u8>> {
        let mut buffer = [0; DATAGRAM_BYTES];
        let length =
            self.hostile().seal_anything(&mut buffer, skipped, Channel::Unreliable, flags, payload)?;
        Some(buffer[..length].to_vec())
    }

    /// A datagram that was sent before, with a byte changed or without: none of the two is ever taken.
    fn replay(&mut self, script: &mut Script<'_>) -> Step {
        let (which, place, flip) = (script.u8()?, script.u16()?, script.u8()?);
        if self.history.is_empty() {
            return Ok(());
        }
        let mut datagram = self.history[usize::from(which) % self.history.len()].clone();
        let place = usize::from(place) % datagram.len();
        datagram[place] ^= flip;
        let (now, from) = (self.pair.now, self.from);
        let taken = self.take(now, from, &mut datagram);
        assert!(taken.is_err(), "a replay or a forgery was taken");
        Ok(())
    }

    fn deliver(&mut self, datagram: &mut [u8]) {
        assert!(datagram.len() >= HEADER_BYTES + TAG_BYTES);
        if self.history.len() < HISTORY {
            self.history.push(datagram.to_vec());
        }
        let (now, from) = (self.pair.now, self.from);
        let _ = self.take(now, from, datagram);
    }

    fn take(&mut self, now: Time, from: SocketAddr, datagram: &mut [u8]) -> Result<(), DropReason> {
        if self.honest_is_server {
            self.pair.server().handle_from(now, from, datagram, &mut Deaf)
        } else {
            self.pair.client.handle(now, datagram, &mut Deaf)
        }
    }

    /// The hostile side takes what was sent to it and answers as an honest one would.
    fn answer(&mut self) {
        let now = self.pair.now;
        for mut datagram in std::mem::take(&mut self.to_hostile) {
            let _ = self.hostile().handle(now, &mut datagram, &mut Deaf);
        }
        self.hostile().on_timeout(now);
        let mut buffer = [0; DATAGRAM_BYTES];
        for _ in 0..PACKETS_AT_ONCE {
            let Some(length) = self.hostile().poll_transmit(now, &mut buffer) else { return };
            self.deliver(&mut buffer[..length]);
        }
        panic!("a side that never ends");
    }

    fn time_passes(&mut self, script: &mut Script<'_>) -> Step {
        self.pair.now = self.pair.now + script.pause()?;
        let now = self.pair.now;
        self.honest().on_timeout(now);
        self.drain();
        let next = self.honest().next_timeout();
        assert!(next.is_none_or(|next| next > now), "who sleeps until {next:?} does not sleep at {now:?}");
        Ok(())
    }

    /// Takes what the honest side has to send, which has an end.
    fn drain(&mut self) {
        let now = self.pair.now;
        let mut buffer = [0; DATAGRAM_BYTES];
        for _ in 0..PACKETS_AT_ONCE {
            let Some(length) = self.honest().poll_transmit(now, &mut buffer) else {
                while self.honest_is_server
                    && let Some((length, _)) = self.honest().poll_probe(now, &mut buffer)
                {
                    self.to_hostile.push(buffer[..length].to_vec());
                }
                return;
            };
            if self.to_hostile.len() < PACKETS_AT_ONCE {
                self.to_hostile.push(buffer[..length].to_vec());
            }
        }
        panic!("a side that never ends");
    }
}

fn reliable_place(place: u8, script: &mut Script<'_>) -> Step<MessageId> {
    let ordered = place & 0x80 == 0;
    let (channel, stream) =
        if ordered { (Channel::ReliableOrdered, place & 7) } else { (Channel::ReliableUnordered, 0) };
    let stream = StreamId::new(channel, stream).expect("there are eight");
    Ok(MessageId { stream, id: script.number()? })
}
