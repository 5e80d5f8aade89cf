//! The test vectors in `docs/vectors.json`: what the code writes and reads is what the file says, and what another
//! implementation of the same primitives computes.
//!
//! Every value in the file comes of fixed keys and fields. It is written anew, when the protocol changes, by
//! `cargo test -p shadowland-proto --lib vectors -- --ignored`.

mod messages;

use std::convert::Infallible;

use rand::{TryCryptoRng, TryRng};
use serde_json::{Map, Value, json};
use shadowland_wire::ack::{AckBlock, AckDelay};
use shadowland_wire::codec::Reader;
use shadowland_wire::handshake::{
    Acceptance, ClientHandshake, DenyReason, ServerHandshake, SessionParameters, echo_of,
};
use shadowland_wire::header::{Channel, Flags, HEADER_BYTES, Header};
use shadowland_wire::limits::TAG_BYTES;
use shadowland_wire::message::control::Control;
use shadowland_wire::message::{ControlType, Frame};
use shadowland_wire::{PROTOCOL_NAME, PROTOCOL_VERSION};
use zeroize::Zeroizing;

use crate::Time;
use crate::crypto::cookie::{Client, Cookies};
use crate::crypto::handshake::{Initiator, Responder};
use crate::crypto::identity::{Identity, KeyPair};
use crate::crypto::integrity::IntegrityTable;
use crate::crypto::key_schedule::SessionKeys;
use crate::crypto::seal::{Opener, Sealer};
use crate::crypto::token::{LoginToken, TokenSigner};

use messages::{Example, examples, written};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/vectors.json");

const SERVER_STATIC: [u8; 32] = [0x11; 32];
const CLIENT_STATIC: [u8; 32] = [0x22; 32];
const CLIENT_EPHEMERAL: [u8; 32] = [0x33; 32];
const SERVER_EPHEMERAL: [u8; 32] = [0x44; 32];
const REKEY_SERVER: [u8; 32] = [0x55; 32];
const REKEY_CLIENT: [u8; 32] = [0x66; 32];
const COOKIE_MASTER: [u8; 32] = [0x88; 32];
const COOKIE_NONCE: [u8; 8] = [0x99; 8];
const TOKEN_SIGNER: [u8; 32] = [0xaa; 32];
const CONNECTION_ID: u32 = 0x0100_0a02;
const COOKIE_MS: u64 = 3_600_123;
const CLIENT_ADDRESS: &str = "192.0.2.1:4000";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(value: &Value) -> Vec<u8> {
    let digits = value.as_str().unwrap();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

fn key(value: &Value) -> [u8; 32] {
    bytes(value).try_into().unwrap()
}

fn file() -> Value {
    serde_json::from_str(&std::fs::read_to_string(FILE).unwrap()).unwrap()
}

fn list<'a>(file: &'a Value, section: &str) -> &'a [Value] {
    file[section].as_array().unwrap()
}

/// Randomness that was decided before.
struct Decided(Vec<u8>);

impl TryRng for Decided {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        unreachable!("keys are drawn as bytes")
    }
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("keys are drawn as bytes")
    }
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        bytes.copy_from_slice(&self.0.drain(..bytes.len()).collect::<Vec<_>>());
        Ok(())
    }
}

impl TryCryptoRng for Decided {}

fn public(private: &[u8; 32]) -> [u8; 32] {
    Identity::from_private_key(private).public_key()
}

fn acceptance() -> Acceptance {
    let parameters = SessionParameters { integrity_version: 7, ..SessionParameters::default() };
    Acceptance { connection_id: CONNECTION_ID, parameters }
}

fn token() -> (LoginToken, Vec<u8>) {
    let token = LoginToken {
        id: [0xbb; 16],
        account: 42,
        issued_s: 1_800_000_000,
        expires_s: 1_800_000_060,
        client_key: public(&CLIENT_STATIC),
    };
    (token, TokenSigner::from_seed(&TOKEN_SIGNER).issue(&token).to_vec())
}

/// Both Noise messages, and the keys as both sides have them.
fn handshake() -> (Vec<u8>, Vec<u8>, SessionKeys) {
    let payload = written(|writer| writer.length_prefixed(|writer| writer.bytes(&token().1)));
    let client = Identity::from_private_key(&CLIENT_STATIC);
    let mut rng = Decided(CLIENT_EPHEMERAL.to_vec());
    let mut initiator = Initiator::new(&client, &public(&SERVER_STATIC), &payload, &mut rng).unwrap();
    let server = Identity::from_private_key(&SERVER_STATIC);
    let mut rng = Decided(SERVER_EPHEMERAL.to_vec());
    let responder = Responder::read(&server, initiator.request(), &mut rng).unwrap();
    assert_eq!(responder.client_key(), public(&CLIENT_STATIC));
    assert_eq!(responder.payload(), payload);
    let (second, keys) = responder.accept(&acceptance()).unwrap();
    let (accepted, client_keys) = initiator.finish(&second).unwrap();
    assert_eq!(accepted, acceptance());
    assert_eq!(all(&client_keys), all(&keys));
    (initiator.request().to_vec(), second.to_vec(), keys)
}

/// Client to server, server to client, chain.
fn all(keys: &SessionKeys) -> [[u8; 32]; 3] {
    [*keys.client_to_server, *keys.server_to_client, *keys.chain]
}

fn rekey_share(of_server: bool) -> [u8; 32] {
    public(if of_server { &REKEY_SERVER } else { &REKEY_CLIENT })
}

/// The secret that both shares make, and the next keys.
fn rekey(keys: &SessionKeys) -> ([u8; 32], SessionKeys) {
    let mut shared = [0; 32];
    KeyPair::new(&REKEY_SERVER).agree(&rekey_share(false), &mut shared).unwrap();
    let next = SessionKeys::after_exchange(
        &keys.chain,
        &Zeroizing::new(shared),
        &rekey_share(true),
        &rekey_share(false),
    );
    (shared, next)
}

/// A table in which every byte of a key is its index.
fn integrity_table() -> IntegrityTable {
    let keys = (0..=255).flat_map(|index| [index; 32]);
    let bytes: Vec<u8> = b"SLINTEG1\x07\x00".iter().copied().chain(keys).collect();
    IntegrityTable::from_bytes(&bytes).unwrap()
}

fn integrity_proof() -> [u8; 16] {
    integrity_table().prove(200, &[0x77; 16])
}

fn cookie(ephemeral: &[u8; 32]) -> [u8; 48] {
    let address = CLIENT_ADDRESS.parse().unwrap();
    let client = Client { address, version: PROTOCOL_VERSION, ephemeral };
    let mut cookies = Cookies::new(&COOKIE_MASTER);
    let now = Time::from_micros(COOKIE_MS * 1_000);
    let cookie = cookies.make(now, client, COOKIE_NONCE);
    assert_eq!(cookies.verify(now, client, &cookie), Ok(()));
    cookie
}

/// Everything in the file.
fn document() -> Value {
    let (first, second, keys) = handshake();
    json!({
        "about": "Test vectors of docs/PROTOCOL.md. Bytes are hexadecimal digits, numbers decimal; X25519 private keys are \
                  given as they are drawn, before clamping. Made and checked by crates/proto/src/vectors.",
        "varint": varints(),
        "header": headers(),
        "ack_block": ack_blocks(),
        "message": examples().iter().map(Example::to_json).collect::<Vec<_>>(),
        "refused": refused(),
        "login_token": login_token(),
        "integrity": {
            "table": "version 7; all 32 bytes of key i are i",
            "table_start": hex(&integrity_table().to_bytes()[..74]),
            "index": 200,
            "nonce": hex(&[0x77; 16]),
            "proof": hex(&integrity_proof()),
        },
        "cookie": {
            "master_secret": hex(&COOKIE_MASTER),
            "client_address": CLIENT_ADDRESS,
            "version": PROTOCOL_VERSION,
            "client_ephemeral_public": hex(&public(&CLIENT_EPHEMERAL)),
            "milliseconds": COOKIE_MS,
            "nonce": hex(&COOKIE_NONCE),
            "cookie": hex(&cookie(&public(&CLIENT_EPHEMERAL))),
        },
        "handshake": handshake_section(&first, &second, &keys),
        "rekey": rekey_section(&keys),
        "packet": packets(&keys),
    })
}

fn varints() -> Vec<Value> {
    let values = [0u64, 1, 127, 128, 300, 16_383, 16_384, 1 << 32, (1 << 53) - 1];
    let vector = |value| json!({ "value": value, "bytes": hex(&written(|writer| writer.varint(value))) });
    values.into_iter().map(vector).collect()
}

fn headers() -> Vec<Value> {
    let vector = |header: Header| {
        json!({
            "connection_id": header.connection_id,
            "channel": header.channel as u8,
            "flags": header.flags.bits(),
            "sequence": header.sequence,
            "bytes": hex(&header.to_bytes()),
        })
    };
    let header = Header {
        connection_id: 0x0403_0201,
        channel: Channel::ReliableUnordered,
        flags: Flags::SEALED.with(Flags::KEY_PHASE),
        sequence: 0x0605_0403_0201,
    };
    vec![vector(Header::HANDSHAKE), vector(header)]
}

fn ack_blocks() -> Vec<Value> {
    let block =
        |largest_low, mask, us| Some(AckBlock { largest_low, mask, delay: AckDelay::from_micros(us) });
    let blocks =
        [None, block(0x0403_0201, u64::MAX, 0), block(0x0403_0201, 0x0e, 1_000), block(5, 0x7, 40_000)];
    let vector = |block: Option<AckBlock>| {
        json!({
            "bytes": hex(&written(|writer| AckBlock::encode(block.as_ref(), writer))),
            "largest_low": block.map(|block| block.largest_low),
            "mask": block.map(|block| hex(&block.mask.to_be_bytes())),
            "delay_us": block.and_then(|block| block.delay.as_micros()),
        })
    };
    blocks.into_iter().map(vector).collect()
}

fn login_token() -> Value {
    let (token, bytes) = token();
    json!({
        "signer_seed": hex(&TOKEN_SIGNER),
        "signer_public": hex(&TokenSigner::from_seed(&TOKEN_SIGNER).public_key()),
        "id": hex(&token.id),
        "account": token.account,
        "issued_s": token.issued_s,
        "expires_s": token.expires_s,
        "client_key": hex(&token.client_key),
        "token": hex(&bytes),
    })
}

fn handshake_section(first: &[u8], second: &[u8], keys: &SessionKeys) -> Value {
    let ephemeral = public(&CLIENT_EPHEMERAL);
    let (echo, cookie, version) = (echo_of(&ephemeral), cookie(&ephemeral), PROTOCOL_VERSION);
    let connect = ClientHandshake::Connect { version, ephemeral };
    let connect = written(|writer| connect.encode(writer));
    let cookie_answer = ServerHandshake::Cookie { echo, cookie };
    let request = ClientHandshake::ConnectRequest { version, cookie: &cookie, noise: first };
    let accepted = ServerHandshake::ConnectionAccepted { echo, noise: second };
    let denied = ServerHandshake::ConnectionDenied { echo, reason: DenyReason::Full };
    let (split, hash) = elsewhere::noise();
    json!({
        "prologue": hex(PROTOCOL_NAME),
        "server_static_private": hex(&SERVER_STATIC),
        "server_static_public": hex(&public(&SERVER_STATIC)),
        "client_static_private": hex(&CLIENT_STATIC),
        "client_static_public": hex(&public(&CLIENT_STATIC)),
        "client_ephemeral_private": hex(&CLIENT_EPHEMERAL),
        "client_ephemeral_public": hex(&ephemeral),
        "server_ephemeral_private": hex(&SERVER_EPHEMERAL),
        "server_ephemeral_public": hex(&public(&SERVER_EPHEMERAL)),
        "connect_start": hex(&connect[..49]),
        "connect_zero_bytes_after": connect.len() - 49,
        "cookie_answer": hex(&written(|writer| cookie_answer.encode(writer))),
        "connect_request": hex(&written(|writer| request.encode(writer))),
        "noise_1_payload": hex(&written(|writer| writer.length_prefixed(|writer| writer.bytes(&token().1)))),
        "noise_1": hex(first),
        "connection_accepted": hex(&written(|writer| accepted.encode(writer))),
        "noise_2_payload": hex(&acceptance().to_bytes()),
        "noise_2": hex(second),
        "connection_denied_full": hex(&written(|writer| denied.encode(writer))),
        "connection_id": CONNECTION_ID,
        "split_1": hex(&split.0),
        "split_2": hex(&split.1),
        "handshake_hash": hex(&hash),
        "client_to_server": hex(&*keys.client_to_server),
        "server_to_client": hex(&*keys.server_to_client),
        "chain": hex(&*keys.chain),
    })
}

fn rekey_section(keys: &SessionKeys) -> Value {
    let (shared, next) = rekey(keys);
    json!({
        "server_private": hex(&REKEY_SERVER),
        "server_share": hex(&rekey_share(true)),
        "client_private": hex(&REKEY_CLIENT),
        "client_share": hex(&rekey_share(false)),
        "shared": hex(&shared),
        "chain_before": hex(&*keys.chain),
        "client_to_server": hex(&*next.client_to_server),
        "server_to_client": hex(&*next.server_to_client),
        "chain": hex(&*next.chain),
    })
}

/// Every message in a packet of its own, then packets with nothing but acknowledgements, then the same after a rekey.
fn packets(keys: &SessionKeys) -> Vec<Value> {
    let mut sealers =
        [&keys.client_to_server, &keys.server_to_client].map(|key| Sealer::new(key, CONNECTION_ID));
    let mut vectors = Vec::new();
    for example in examples() {
        let payload = [&[0][..], &example.frame()].concat();
        let channel = example.place.map_or(Channel::Unreliable, |place| place.stream.channel());
        let from = usize::from(example.from_server);
        vectors.push(packet(&mut sealers[from], from, 0, channel, flags(&example), &payload));
    }
    let acks = AckBlock { largest_low: 3, mask: u64::MAX, delay: AckDelay::from_micros(2_000) };
    let acks = written(|writer| AckBlock::encode(Some(&acks), writer));
    let next = rekey(keys).1;
    let mut acknowledge = |sealers: &mut [Sealer; 2], number| {
        for (from, sealer) in sealers.iter_mut().enumerate() {
            vectors.push(packet(sealer, from, number, Channel::Unreliable, Flags::ACKNOWLEDGMENT, &acks));
        }
    };
    acknowledge(&mut sealers, 0);
    sealers[0].rekey(&next.client_to_server);
    sealers[1].rekey(&next.server_to_client);
    acknowledge(&mut sealers, 1);
    vectors
}

fn flags(example: &Example) -> Flags {
    match ControlType::from_byte(example.kind) {
        Some(ControlType::RekeyRequest | ControlType::RekeyResponse) => Flags::REKEY,
        Some(ControlType::ReliableHandshake) => Flags::RELIABLE_HANDSHAKE,
        Some(ControlType::Fragment) if example.body[0] >= 0x80 => Flags::FRAGMENT.with(Flags::COMPRESSED),
        Some(ControlType::Fragment) => Flags::FRAGMENT,
        _ => Flags::NONE,
    }
}

fn packet(
    sealer: &mut Sealer,
    from: usize,
    key_number: u32,
    channel: Channel,
    flags: Flags,
    payload: &[u8],
) -> Value {
    let mut datagram = [&[0; HEADER_BYTES], payload, &[0; TAG_BYTES]].concat();
    let sequence = sealer.seal(&mut datagram, channel, flags);
    json!({
        "from": if from == 0 { "client" } else { "server" },
        "key_number": key_number,
        "connection_id": CONNECTION_ID,
        "channel": channel as u8,
        "flags": datagram[5],
        "sequence": sequence,
        "payload": hex(payload),
        "datagram": hex(&datagram),
    })
}

/// What no decoder takes.
fn refused() -> Vec<Value> {
    let mut channel = Header::HANDSHAKE.to_bytes();
    channel[4] = 3;
    [
        ("varint", "longer than need be", vec![0x80, 0x00]),
        ("varint", "above 64 bits", vec![0xff; 10]),
        ("header", "channel 3", channel.to_vec()),
        ("header", "too short", vec![0; 13]),
        ("ack_block", "a delay of nothing", vec![0x05]),
        ("ack_block", "a mask without a gap", [&[0xc0, 5, 0, 0, 0][..], &[0xff; 8]].concat()),
        ("frame", "longer than the payload", vec![0x41, 3, 1, 2]),
        ("frame", "stream 8", vec![0xc0, 8, 0, 0]),
        ("frame", "a reliable Ping", vec![0x81, 0, 0, 4, 1, 0, 0, 0]),
        ("control", "a Ping of 5 bytes", vec![0x01, 5, 1, 0, 0, 0, 0]),
        ("control", "answer 2", [&[0x06, 12, 2, 0, 0, 1][..], &[0; 8]].concat()),
    ]
    .into_iter()
    .map(|(read_as, what, bytes)| json!({ "read_as": read_as, "what": what, "bytes": hex(&bytes) }))
    .collect()
}

fn refuses(read_as: &str, bytes: &[u8]) -> bool {
    let mut reader = Reader::new(bytes);
    match read_as {
        "varint" => reader.varint().is_err(),
        "header" => Header::decode(&mut reader).is_err(),
        "ack_block" => AckBlock::decode(&mut reader).is_err(),
        "frame" => Frame::decode(&mut reader).is_err(),
        _ => {
            let frame = Frame::decode(&mut reader).unwrap();
            Control::decode(frame.kind, frame.body).is_err()
        }
    }
}

/// A line for each vector.
fn format(document: &Value) -> String {
    let section = |(name, value): (&String, &Value)| {
        let lines: Vec<String> = match value {
            Value::Array(vectors) => vectors.iter().map(|vector| format!("    {vector}")).collect(),
            Value::Object(fields) => {
                fields.iter().map(|(name, value)| format!("    \"{name}\": {value}")).collect()
            }
            text => return format!("  \"{name}\": {text}"),
        };
        let (open, close) = if value.is_array() { ('[', ']') } else { ('{', '}') };
        format!("  \"{name}\": {open}\n{}\n  {close}", lines.join(",\n"))
    };
    let document: &Map<String, Value> = document.as_object().unwrap();
    format!("{{\n{}\n}}\n", document.iter().map(section).collect::<Vec<_>>().join(",\n"))
}

#[test]
#[ignore = "writes docs/vectors.json anew"]
fn write_the_file() {
    std::fs::write(FILE, format(&document())).unwrap();
}

#[test]
fn the_code_writes_what_the_file_says() {
    let (file, document) = (file(), document());
    for (section, value) in document.as_object().unwrap() {
        assert_eq!(&file[section], value, "{section}");
    }
    assert_eq!(file.as_object().unwrap().len(), document.as_object().unwrap().len());
}

#[test]
fn the_code_reads_what_the_file_says() {
    let file = file();
    for vector in list(&file, "varint") {
        assert_eq!(
            Reader::new(&bytes(&vector["bytes"])).varint().unwrap(),
            vector["value"].as_u64().unwrap()
        );
    }
    for vector in list(&file, "header") {
        let header = Header::decode(&mut Reader::new(&bytes(&vector["bytes"]))).unwrap();
        assert_eq!(header.to_bytes()[..], bytes(&vector["bytes"]));
        assert_eq!(Some(header.sequence), vector["sequence"].as_u64());
    }
    for vector in list(&file, "ack_block") {
        let block = AckBlock::decode(&mut Reader::new(&bytes(&vector["bytes"]))).unwrap();
        assert_eq!(block.map(|block| u64::from(block.largest_low)), vector["largest_low"].as_u64());
    }
    for vector in list(&file, "message") {
        let (frame, body) = (bytes(&vector["frame"]), bytes(&vector["body"]));
        let mut reader = Reader::new(&frame);
        let frame = Frame::decode(&mut reader).unwrap();
        assert!(reader.is_empty() && frame.body == body, "{vector}");
        let held = vector.get("receiver_holds").map(bytes);
        assert_eq!(messages::read(frame.kind, frame.body, held.as_deref()), vector["fields"]);
    }
    for vector in list(&file, "refused") {
        assert!(refuses(vector["read_as"].as_str().unwrap(), &bytes(&vector["bytes"])), "{vector}");
    }
    for vector in list(&file, "packet") {
        let section = if vector["key_number"] == 0 { "handshake" } else { "rekey" };
        let direction = if vector["from"] == "client" { "client_to_server" } else { "server_to_client" };
        let opener = Opener::new(&key(&file[section][direction]));
        let mut datagram = bytes(&vector["datagram"]);
        let header = Header::decode(&mut Reader::new(&datagram)).unwrap();
        assert_eq!(opener.open(&header, &mut datagram).unwrap(), bytes(&vector["payload"]));
    }
    let handshake = &file["handshake"];
    let datagram = bytes(&handshake["connect_request"]);
    let Ok(ClientHandshake::ConnectRequest { noise, .. }) = ClientHandshake::decode(&datagram) else {
        panic!("no ConnectRequest")
    };
    let server = Identity::from_private_key(&key(&handshake["server_static_private"]));
    let mut rng = Decided(bytes(&handshake["server_ephemeral_private"]));
    let responder = Responder::read(&server, noise, &mut rng).unwrap();
    assert_eq!(responder.payload(), bytes(&handshake["noise_1_payload"]));
}

#[test]
fn every_message_is_in_the_file() {
    use shadowland_wire::message::{ClientType, ServerType};
    let file = file();
    let types: Vec<u64> =
        list(&file, "message").iter().map(|vector| vector["type"].as_u64().unwrap()).collect();
    let control =
        ControlType::ALL.into_iter().filter(|&kind| kind != ControlType::Ack).map(|kind| kind as u8);
    let client = ClientType::ALL.into_iter().map(|kind| kind as u8);
    let server = ServerType::ALL.into_iter().map(|kind| kind as u8);
    for kind in control.chain(client).chain(server) {
        assert!(types.contains(&kind.into()), "no message of type {kind:#04x}");
    }
}

/// The same primitives by others: RustCrypto, and `snow` with those instead of ours.
mod elsewhere {
    use super::*;
    use chacha20poly1305::aead::{Aead, KeyInit, Payload};
    use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
    use curve25519_dalek::MontgomeryPoint;
    use hkdf::Hkdf;
    use hmac::{Hmac, Mac as _};
    use sha2::Sha256;

    fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
        let mut mac = <Hmac<Sha256> as hmac::Mac>::new_from_slice(key).unwrap();
        mac.update(message);
        mac.finalize().into_bytes().to_vec()
    }

    /// Both sides of the handshake: the split keys and the handshake hash.
    pub(super) fn noise() -> (([u8; 32], [u8; 32]), Vec<u8>) {
        let builder = || {
            snow::Builder::new("Noise_IK_25519_ChaChaPoly_SHA256".parse().unwrap())
                .prologue(PROTOCOL_NAME)
                .unwrap()
        };
        let server_public = public(&SERVER_STATIC);
        let mut client = builder()
            .local_private_key(&CLIENT_STATIC)
            .unwrap()
            .remote_public_key(&server_public)
            .unwrap()
            .fixed_ephemeral_key_for_testing_only(&CLIENT_EPHEMERAL)
            .build_initiator()
            .unwrap();
        let mut server = builder()
            .local_private_key(&SERVER_STATIC)
            .unwrap()
            .fixed_ephemeral_key_for_testing_only(&SERVER_EPHEMERAL)
            .build_responder()
            .unwrap();
        let (first, second, _) = handshake();
        let payload = written(|writer| writer.length_prefixed(|writer| writer.bytes(&token().1)));
        let mut buffer = [0; 600];
        let length = client.write_message(&payload, &mut buffer).unwrap();
        assert_eq!(buffer[..length], first);
        let length = server.read_message(&first, &mut buffer).unwrap();
        assert_eq!(buffer[..length], payload);
        let length = server.write_message(&acceptance().to_bytes(), &mut buffer).unwrap();
        assert_eq!(buffer[..length], second);
        client.read_message(&second, &mut buffer).unwrap();
        let (split, hash) = (client.dangerously_get_raw_split(), client.get_handshake_hash().to_vec());
        assert_eq!((server.dangerously_get_raw_split(), server.get_handshake_hash()), (split, &hash[..]));
        (split, hash)
    }

    fn keys_follow(salt: &[u8], input: &[u8], section: &Value) {
        let root = Hkdf::<Sha256>::new(Some(salt), input);
        for (label, name) in [
            ("shadowland/1 client to server", "client_to_server"),
            ("shadowland/1 server to client", "server_to_client"),
            ("shadowland/1 rekey", "chain"),
        ] {
            let mut key = [0; 32];
            root.expand(label.as_bytes(), &mut key).unwrap();
            assert_eq!(key[..], bytes(&section[name]), "{name}");
        }
    }

    #[test]
    fn other_implementations_compute_what_the_file_says() {
        let file = file();
        let handshake = &file["handshake"];
        let (split, hash) = noise();
        assert_eq!(
            [&split.0[..], &split.1, &hash].map(hex),
            ["split_1", "split_2", "handshake_hash",].map(|name| handshake[name].as_str().unwrap())
        );
        keys_follow(&hash, &[split.0, split.1].concat(), handshake);

        let rekey = &file["rekey"];
        let point = |name: &str| MontgomeryPoint(key(&rekey[name]));
        let of_server = point("client_share").mul_clamped(key(&rekey["server_private"]));
        let of_client = point("server_share").mul_clamped(key(&rekey["client_private"]));
        assert_eq!([of_server.0, of_client.0], [key(&rekey["shared"]); 2]);
        let input = ["shared", "server_share", "client_share"].map(|name| bytes(&rekey[name])).concat();
        keys_follow(&bytes(&handshake["chain"]), &input, rekey);

        for vector in list(&file, "packet") {
            let section = if vector["key_number"] == 0 { handshake } else { rekey };
            let name = if vector["from"] == "client" { "client_to_server" } else { "server_to_client" };
            let (datagram, payload) = (bytes(&vector["datagram"]), bytes(&vector["payload"]));
            let (aad, sealed) = datagram.split_at(14);
            let nonce = [&aad[..4], &aad[6..]].concat();
            let cipher = ChaCha20Poly1305::new(Key::from_slice(&bytes(&section[name])));
            let other = cipher.encrypt(Nonce::from_slice(&nonce), Payload { msg: &payload, aad }).unwrap();
            assert_eq!(other, sealed, "{vector}");
        }

        let cookie = &file["cookie"];
        let number = |name: &str| cookie[name].as_u64().unwrap();
        let epoch = (number("milliseconds") / 60_000).to_le_bytes();
        let secret = hmac_sha256(&bytes(&cookie["master_secret"]), &epoch);
        let signed = [
            &[0; 10][..],
            &[0xff, 0xff, 192, 0, 2, 1],
            &4000u16.to_le_bytes(),
            &(number("version") as u16).to_le_bytes(),
            &bytes(&cookie["client_ephemeral_public"]),
            &number("milliseconds").to_le_bytes(),
            &bytes(&cookie["nonce"]),
        ]
        .concat();
        let head = [&number("milliseconds").to_le_bytes()[..], &bytes(&cookie["nonce"])].concat();
        assert_eq!([head, hmac_sha256(&secret, &signed)].concat(), bytes(&cookie["cookie"]));

        let integrity = &file["integrity"];
        let proof = hmac_sha256(&[200; 32], &bytes(&integrity["nonce"]));
        assert_eq!(proof[..16], bytes(&integrity["proof"]));
    }
}
