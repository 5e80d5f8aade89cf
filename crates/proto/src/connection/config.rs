//! What a connection's transport runs with. Every figure has a default that suits a game; a deployment may set
//! others, and the two sides need not agree: what one must know of the other is told in ReliableHandshake.

use std::time::Duration;

use shadowland_wire::limits::{
    MESSAGE_BYTES, MESSAGE_BYTES_MAX, RELIABLE_MESSAGE_BYTES, RELIABLE_SEND_BYTES, RELIABLE_SEND_MESSAGES,
    REORDER_BYTES, REORDER_WINDOW,
};

/// Least window of bytes: in a smaller one small messages of several streams leave no room for pieces of large ones.
const WINDOW_BYTES_MIN: u32 = 16 * 1024;

/// Figures of acknowledging, sending again, windows and congestion control.
#[derive(Debug, Clone, PartialEq)]
pub struct TransportConfig {
    /// Shortest time after which an unacknowledged reliable message is sent again.
    pub timeout_min: Duration,
    /// Longest time that doubling leads to.
    pub timeout_max: Duration,
    /// Timeouts of a message after which it is sent again; the next one ends the session as undeliverable.
    pub retries: u8,
    /// A packet is lost when one sent so many later was acknowledged (RFC 9002, 6.1.1). It grows by itself on
    /// links that reorder.
    pub loss_packets: u64,
    /// A packet is lost when a later one was acknowledged and so many eighths of a round trip have passed since
    /// it was sent (RFC 9002, 6.1.2). It grows by itself, up to twice as much.
    pub loss_eighths: u32,
    /// How long an acknowledgement waits for a packet to ride on; below 31.5 ms, or round trips cannot be
    /// measured from it.
    pub ack_delay: Duration,
    /// Packets after which an acknowledgement waits no longer; below 64, which a block can name.
    pub ack_packets: u32,
    /// The same for packets with reliable messages, and one that leaves a gap is acknowledged at once: the sender
    /// of much goes by it.
    pub ack_reliable_packets: u32,
    /// A side that has sent nothing worth an answer for so long sends a Ping.
    pub ping_interval: Duration,
    /// Bytes of reliable messages that wait for their acknowledgement; then sending says full. Those that are
    /// taken apart are counted on their own, and one is taken whenever the others are within the figure: so a
    /// connection holds up to twice as much and one largest message.
    pub send_bytes: usize,
    /// Reliable messages that fit a packet, that wait for their acknowledgement; then sending says full.
    pub send_messages: usize,
    /// Messages of a stream that this side takes from the next expected one on, at most [`REORDER_WINDOW`].
    pub window_messages: u16,
    /// Bytes of messages that this side holds ahead of gaps, all streams together; at least 16 KiB.
    pub window_bytes: u32,
    /// Largest reliable message that this side takes and sends, at most [`MESSAGE_BYTES_MAX`].
    pub message_bytes: usize,
    /// A large message that is incomplete ends the session as undeliverable when no piece comes for so long,
    /// though the peer is heard.
    pub assembly_expiry: Duration,
    /// Whether reliable messages from 512 bytes on are compressed when that seems to pay.
    pub compress: bool,
    /// How the sending rate is found.
    pub congestion: Congestion,
    /// How long the application may sleep between sending: so much of the rate may leave at once.
    pub burst: Duration,
    /// Bytes of a tick that replication may always send: the owner's state and acknowledgements.
    pub budget_floor_bytes: usize,
}

/// How the sending rate is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Congestion {
    /// By the delay that the own packets cause in queues: keeps them short, and takes random loss for what it
    /// is. Copa (Arun and Balakrishnan, NSDI 2018) in its default mode.
    #[default]
    Delay,
    /// By loss: NewReno as in RFC 9002. Holds its own against downloads over the same link, at the price of
    /// full queues, and of most of its rate where packets are lost at random.
    Loss,
    /// Not at all: only the windows of the receiver limit. For links that are known to be wide enough.
    Off,
}

impl Default for TransportConfig {
    fn default() -> Self {
        Self {
            timeout_min: Duration::from_millis(250),
            timeout_max: Duration::from_secs(2),
            retries: 10,
            loss_packets: 3,
            loss_eighths: 9,
            ack_delay: Duration::from_millis(25),
            ack_packets: 8,
            ack_reliable_packets: 2,
            ping_interval: Duration::from_secs(5),
            send_bytes: RELIABLE_SEND_BYTES,
            send_messages: RELIABLE_SEND_MESSAGES,
            window_messages: REORDER_WINDOW as u16,
            window_bytes: REORDER_BYTES as u32,
            message_bytes: MESSAGE_BYTES,
            assembly_expiry: Duration::from_secs(10),
            compress: true,
            congestion: Congestion::default(),
            burst: Duration::from_millis(17),
            budget_floor_bytes: 200,
        }
    }
}

impl TransportConfig {
    /// The nearest figures that the protocol can work with.
    #[must_use]
    pub(crate) fn within_bounds(mut self) -> Self {
        self.timeout_min = self.timeout_min.max(Duration::from_millis(1));
        self.timeout_max = self.timeout_max.max(self.timeout_min);
        self.loss_packets = self.loss_packets.max(1);
        self.loss_eighths = self.loss_eighths.max(8);
        self.ack_delay = self.ack_delay.min(Duration::from_millis(31));
        self.ack_packets = self.ack_packets.clamp(1, 63);
        self.ack_reliable_packets = self.ack_reliable_packets.clamp(1, 63);
        self.ping_interval = self.ping_interval.max(Duration::from_millis(1));
        self.send_bytes = self.send_bytes.max(RELIABLE_MESSAGE_BYTES);
        self.send_messages = self.send_messages.max(1);
        self.window_messages = self.window_messages.clamp(1, REORDER_WINDOW as u16);
        self.message_bytes = self.message_bytes.clamp(RELIABLE_MESSAGE_BYTES, MESSAGE_BYTES_MAX);
        self.window_bytes = self.window_bytes.max(WINDOW_BYTES_MIN);
        self
    }
}
