//! Every bound of the protocol, by name. Decoders check a claimed count or length against these before they
//! do anything with it.

/// Largest datagram that either side sends, in bytes: header, payload and tag, without UDP and IP.
pub const DATAGRAM_BYTES: usize = 1200;
/// Bytes of the ChaCha20-Poly1305 tag at the end of every sealed packet.
pub const TAG_BYTES: usize = 16;
/// Positions of the replay window; a deployment can widen it at build time (a multiple of 64).
pub const REPLAY_WINDOW: u64 = 64;
/// Most messages in one packet; more is a protocol violation, for no honest peer packs so many.
pub const MESSAGES_PER_PACKET: usize = 128;
/// Most independent streams of reliable messages in a direction.
pub const RELIABLE_STREAMS: usize = 8;
/// Largest reliable message that fits one packet, in bytes; fragments carry more.
pub const RELIABLE_MESSAGE_BYTES: usize = 1024;
/// Bytes of a piece of a larger message; the last one is shorter.
pub const FRAGMENT_BYTES: usize = 1000;
/// Largest reliable message that a deployment can allow, in bytes, packed and unpacked.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Largest reliable message by default, in bytes.
pub const MESSAGE_BYTES: usize = 256 * 1024;
/// Messages that a connection puts together, and takes apart, at the same time.
pub const ASSEMBLIES: usize = 4;
/// Bytes of reliable messages that a connection holds for sending; then `send` says full.
pub const RELIABLE_SEND_BYTES: usize = 256 * 1024;
/// Messages from the next expected one on that a receiver takes, per stream; a multiple of 64.
pub const REORDER_WINDOW: usize = 1024;
/// Bytes of reliable messages that a connection holds until the gap before them is filled.
pub const REORDER_BYTES: usize = 256 * 1024;
/// Reliable messages that a connection holds for sending; then `send` says full.
pub const RELIABLE_SEND_MESSAGES: usize = 2048;
/// Largest id that a reliable stream may start from, so that ids never run out.
pub const RELIABLE_FIRST_ID_MAX: u64 = 1 << 62;
/// Last sequence of a direction: a session that gets there is closed, for its keys are used up.
pub const SEQUENCE_MAX: u64 = 1 << 48;
/// Random bytes of a PathChallenge.
pub const PATH_TOKEN_BYTES: usize = 8;
/// Keys of an integrity table: as many as a byte can name.
pub const INTEGRITY_KEYS: usize = 256;
/// Random bytes of an integrity challenge.
pub const INTEGRITY_NONCE_BYTES: usize = 16;
/// Bytes of its answer: half of an HMAC-SHA256.
pub const INTEGRITY_PROOF_BYTES: usize = 16;
/// Bytes in a direction under the same keys after which a session is closed: it could not rekey.
pub const KEY_BYTES_MAX: u64 = 2_000_000_000;
/// The same for the age of the keys, in seconds.
pub const KEY_SECONDS_MAX: u64 = 2 * 60 * 60;
/// Accepted handshakes that an endpoint remembers, to answer a repeated request with the same bytes.
pub const REMEMBERED_HANDSHAKES: usize = 8192;
/// Rate buckets for networks that an endpoint keeps.
pub const NETWORK_BUCKETS: usize = 4096;
/// Longest life of a login token, in seconds: used ones are remembered so long.
pub const TOKEN_SECONDS_MAX: u64 = 600;
/// Used login tokens that a server remembers until they expire; then it takes no more.
pub const TOKENS_REMEMBERED: usize = 65_536;
/// Longest login token that ConnectRequest may carry, in bytes.
pub const TOKEN_BYTES: usize = 256;

/// Slots of a page: its full state must fit one datagram.
pub const PAGE_SLOTS: usize = 24;
/// Tombstones that a page remembers; an evicted one raises the page's floor.
pub const PAGE_TOMBSTONES: usize = 16;
/// Pages that a client keeps open, and that it has yet to ask for; above it the server is at fault.
pub const CLIENT_PAGES: usize = 8192;
/// Entities that a client keeps; above it the server is at fault.
pub const CLIENT_ENTITIES: usize = 65_536;
/// Inputs that one input message may carry: the newest and those before it.
pub const INPUTS_PER_MESSAGE: usize = 8;
/// Pages of a cell.
pub const PAGES_PER_CELL: u32 = 4096;
/// Cells that all layers of a map may have together.
pub const CELLS_PER_MAP: u32 = 1 << 26;
/// Closes that one snapshot may carry.
pub const CLOSES_PER_SNAPSHOT: usize = 32;
/// Closes that a client remembers, half as many as all snapshots of that time can carry; above it the server is at
/// fault.
pub const CLIENT_CLOSES: usize = 16_384;
