//! How a packet is put together: acknowledgements, control messages, the application's messages, and then as
//! many reliable messages as fit; sealed where it stands.

use shadowland_wire::ack::AckBlock;
use shadowland_wire::codec::{Full, Writer};
use shadowland_wire::header::{Channel, Flags, HEADER_BYTES};
use shadowland_wire::limits::{MESSAGES_PER_PACKET, TAG_BYTES};
use shadowland_wire::message::control::Control;
use shadowland_wire::message::encode_frame;

use super::integrity::Integrity;
use super::outbox::{Departure, Timeouts};
use super::path::PathTokens;
use super::sent::Carries;
use super::{Connection, Controls};
use crate::Time;

/// A packet in the making. Dropped without [`PacketBuilder::finish`], it never was.
pub struct PacketBuilder<'c, 'b> {
    connection: &'c mut Connection,
    now: Time,
    buffer: &'b mut [u8],
    /// Bytes written so far, header included.
    length: usize,
    /// Where the payload must end.
    end: usize,
    messages: usize,
    /// The channel of the first message.
    channel: Option<Channel>,
    /// The control messages that were written.
    controls: Controls,
    carries_reliable: bool,
    /// Of the messages.
    flags: Flags,
}

/// A packet that was sealed and must now be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Bytes of the datagram, at the start of the buffer.
    pub len: usize,
    /// Its sequence, by which [`Receiver::acked`](super::Receiver::acked) will name it.
    pub sequence: u64,
}

impl<'c, 'b> PacketBuilder<'c, 'b> {
    /// Starts a packet with acknowledgements and control messages.
    #[inline]
    pub(super) fn start(connection: &'c mut Connection, now: Time, buffer: &'b mut [u8]) -> Option<Self> {
        let mut packet = Self::empty(connection, now, buffer)?;
        // The smallest MTU has room for all of these.
        packet.write_acks().ok()?;
        if !packet.connection.pending.is_empty() {
            packet.write_controls().ok()?;
        }
        Some(packet)
    }

    /// A packet with acknowledgements and one control message, and nothing else.
    pub(super) fn bare(
        connection: &'c mut Connection,
        now: Time,
        buffer: &'b mut [u8],
        control: Control,
    ) -> Option<Sent> {
        let mut packet = Self::empty(connection, now, buffer)?;
        packet.write_acks().and_then(|()| packet.write_control(control)).ok()?;
        Some(packet.seal())
    }

    #[inline]
    fn empty(connection: &'c mut Connection, now: Time, buffer: &'b mut [u8]) -> Option<Self> {
        let mtu = usize::from(connection.parameters.mtu);
        if connection.sealer.is_exhausted() || buffer.len() < mtu {
            return None;
        }
        Some(Self {
            connection,
            now,
            buffer,
            length: HEADER_BYTES,
            end: mtu - TAG_BYTES,
            messages: 0,
            channel: None,
            controls: Controls::NONE,
            carries_reliable: false,
            flags: Flags::NONE,
        })
    }

    /// Bytes that are left for messages and their frames.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.end - self.length
    }

    /// Adds an unreliable message. When it does not fit, the packet is as it was.
    pub fn message(
        &mut self,
        kind: u8,
        body: impl FnOnce(&mut Writer<'_>) -> Result<(), Full>,
    ) -> Result<(), Full> {
        if self.messages >= MESSAGES_PER_PACKET {
            return Err(Full);
        }
        let before = self.length;
        self.write(|writer| encode_frame(writer, kind, None, body))?;
        self.connection.stats.body_bytes_sent[0] += (self.length - before) as u64;
        self.messages += 1;
        self.channel.get_or_insert(Channel::Unreliable);
        Ok(())
    }

    /// Fills what is left with reliable messages that wait, and seals the packet.
    #[inline]
    pub fn finish(mut self) -> Sent {
        self.fill_reliable();
        self.seal()
    }

    fn seal(self) -> Sent {
        let Self { connection, now, buffer, length, .. } = self;
        let flags = if self.messages == 0 { self.flags.with(Flags::ACKNOWLEDGMENT) } else { self.flags };
        let carries = match (self.messages, self.carries_reliable) {
            (0, _) => Carries::OnlyAcks,
            (_, false) => Carries::Unreliable,
            (_, true) => Carries::Reliable,
        };
        let len = length + TAG_BYTES;
        let channel = self.channel.unwrap_or(Channel::Unreliable);
        let sequence = connection.sealer.seal(&mut buffer[..len], channel, flags);
        connection.left(now, sequence, len, carries, self.controls);
        Sent { len, sequence }
    }

    /// Adds as many of the waiting reliable messages as fit. They are sure to be sent from here on.
    #[inline]
    pub(super) fn fill_reliable(&mut self) {
        if self.connection.is_reliable_ready() && self.connection.lets_reliable_go(self.now) {
            self.fill_waiting();
        }
    }

    fn fill_waiting(&mut self) {
        let sequence = self.connection.sealer.next_sequence();
        let room = MESSAGES_PER_PACKET - self.messages;
        let mut writer = Writer::new(&mut self.buffer[self.length..self.end]);
        let Connection { outbox, rtt, config, .. } = &mut *self.connection;
        let timeouts = Timeouts { config, rtt };
        let departure = Departure { now: self.now, sequence, room, timeouts };
        let filled = outbox.fill(departure, &mut writer);
        if let Some(channel) = filled.channel {
            self.length += writer.len();
            self.messages += filled.messages;
            self.channel.get_or_insert(channel);
            self.carries_reliable = true;
            self.set(Flags::FRAGMENT, filled.fragments);
            self.set(Flags::COMPRESSED, filled.compressed);
            self.connection.stats.body_bytes_sent[1] += filled.bytes[0];
            self.connection.stats.body_bytes_sent[2] += filled.bytes[1];
        }
    }

    /// Whether there is anything in the packet that must leave now.
    pub(super) fn is_worth_sending(&self, now: Time) -> bool {
        self.messages > 0 || self.connection.is_ack_due(now)
    }

    #[inline]
    fn write_acks(&mut self) -> Result<(), Full> {
        let block = self.connection.received.block(self.now);
        self.write(|writer| AckBlock::encode(block.as_ref(), writer))
    }

    fn write_controls(&mut self) -> Result<(), Full> {
        let pending = self.connection.pending;
        self.set(Flags::RELIABLE_HANDSHAKE, pending.has(Controls::HANDSHAKE));
        self.set(Flags::REKEY, pending.has(Controls::REKEY));
        if pending.has(Controls::HANDSHAKE) {
            self.write_control(Control::ReliableHandshake(self.connection.handshake()))?;
        }
        if pending.has(Controls::PONG) {
            let pong = self.connection.to_say.pong;
            let held_us = (self.now - pong.asked_at).as_micros().min(u128::from(u32::MAX)) as u32;
            self.write_control(Control::Pong { id: pong.id, held_us })?;
        }
        if pending.has(Controls::PING) {
            self.write_control(Control::Ping { id: self.connection.next_ping_id })?;
        }
        if pending.has(Controls::REKEY)
            && let Some(message) = self.connection.keys.message()
        {
            self.write_control(message)?;
        }
        if pending.has(Controls::INTEGRITY)
            && let Some(message) = self.connection.integrity.as_deref().and_then(Integrity::message)
        {
            self.write_control(message)?;
        }
        if pending.has(Controls::PATH_RESPONSES) {
            for token in self.connection.to_say.path_responses.into_iter().flatten() {
                self.write_control(Control::PathResponse { token })?;
            }
        }
        if pending.has(Controls::DISCONNECT) {
            self.write_control(Control::Disconnect(self.connection.to_say.disconnect))?;
        }
        self.controls = pending;
        Ok(())
    }

    fn write_control(&mut self, control: Control) -> Result<(), Full> {
        self.write(|writer| control.encode(writer))?;
        self.messages += 1;
        self.channel.get_or_insert(Channel::Unreliable);
        Ok(())
    }

    fn set(&mut self, flag: Flags, set: bool) {
        if set {
            self.flags = self.flags.with(flag);
        }
    }

    /// Writes behind what is there; on failure nothing is added.
    #[inline]
    fn write(&mut self, write: impl FnOnce(&mut Writer<'_>) -> Result<(), Full>) -> Result<(), Full> {
        let mut writer = Writer::new(&mut self.buffer[self.length..self.end]);
        write(&mut writer)?;
        self.length += writer.len();
        Ok(())
    }
}

impl Connection {
    /// A packet has been sealed: what it carried is no longer pending.
    fn left(&mut self, now: Time, sequence: u64, len: usize, carries: Carries, controls: Controls) {
        self.stats.packets_sent += 1;
        self.stats.bytes_sent += len as u64;
        self.keys.sealed(len);
        self.sent.record(now, sequence, len, carries);
        self.received.sent();
        if carries == Carries::Reliable {
            self.stats.messages_resent = self.outbox.resent();
        }
        if carries == Carries::Reliable || self.keys.are_used_up() {
            self.rouse();
        }
        if carries != Carries::OnlyAcks {
            self.asked_at = now;
            self.flow.sent(len, carries == Carries::Reliable, self.sent.in_flight());
        }
        if !controls.is_empty() {
            self.controls_left(now, controls);
        }
    }

    fn controls_left(&mut self, now: Time, controls: Controls) {
        self.rouse();
        self.pending.remove(controls);
        if controls.has(Controls::PATH_RESPONSES) {
            self.to_say.path_responses = PathTokens::default();
        }
        if controls.has(Controls::PING) {
            self.ping = Some((self.next_ping_id, now));
            self.next_ping_id = self.next_ping_id.wrapping_add(1);
        }
        if controls.has(Controls::DISCONNECT) {
            self.to_say.disconnects -= 1;
            if self.to_say.disconnects > 0 {
                self.pending.add(Controls::DISCONNECT);
            }
        }
    }
}
