//! `docs/PROTOCOL.md` and the code say the same: types, limits, examples.

use shadowland_proto::{LoginToken, TokenSigner, TransportConfig};
use shadowland_wire::ack::{AckBlock, AckDelay};
use shadowland_wire::codec::Writer;
use shadowland_wire::header::{Channel, Flags, Header};
use shadowland_wire::limits;
use shadowland_wire::message::control::DisconnectReason;
use shadowland_wire::message::fragment::{Fragment, Whole};
use shadowland_wire::message::{ClientType, ControlType, Frame, MessageId, ServerType, StreamId};

const DOCUMENT: &str = include_str!("../../../docs/PROTOCOL.md");
const TUNING: &str = include_str!("../../../docs/TUNING.md");

fn row(first: &str) -> &'static str {
    let row = DOCUMENT.lines().find(|line| line.starts_with(&format!("| {first} |")));
    row.unwrap_or_else(|| panic!("no row for {first}"))
}

#[test]
fn the_table_of_message_types_is_that_of_the_code() {
    let mut types: Vec<(u8, String)> = Vec::new();
    types.extend(ControlType::ALL.map(|kind| (kind as u8, format!("{kind:?}"))));
    types.extend(ClientType::ALL.map(|kind| (kind as u8, format!("{kind:?}"))));
    types.extend(ServerType::ALL.map(|kind| (kind as u8, format!("{kind:?}"))));
    for (number, name) in &types {
        let start = format!("| {number:#04x} | {name} |");
        assert!(DOCUMENT.contains(&start), "no row {start}");
    }
    let table = DOCUMENT.split("### Message types").nth(1).unwrap().split("##").next().unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| 0x")).count();
    assert_eq!(rows, types.len(), "a type is in the document but not in the code");
}

#[test]
fn the_limits_are_those_of_the_code() {
    let kib = 1024;
    for (what, text, named, value) in [
        ("datagram", "1200 bytes", limits::DATAGRAM_BYTES, 1200),
        ("replay window", "64 packets", limits::REPLAY_WINDOW as usize, 64),
        ("messages in a packet", "128", limits::MESSAGES_PER_PACKET, 128),
        ("ordered streams in a direction", "8, and one unordered", limits::RELIABLE_STREAMS, 8),
        ("reliable message", "1024 bytes", limits::RELIABLE_MESSAGE_BYTES, kib),
        ("unacknowledged reliable messages", "256 KiB, 2048", limits::RELIABLE_SEND_BYTES, 256 * kib),
        ("held ahead of a gap", "1024 messages per stream, 256 KiB", limits::REORDER_BYTES, 256 * kib),
        ("piece of a larger message", "1000 bytes", limits::FRAGMENT_BYTES, 1000),
        ("larger messages taken apart or put together at a time", "4", limits::ASSEMBLIES, 4),
        ("keys of an integrity table", "256", limits::INTEGRITY_KEYS, 256),
        ("login token", "256 bytes", limits::TOKEN_BYTES, 256),
        ("accepted handshakes remembered", "8192, 10 s", limits::REMEMBERED_HANDSHAKES, 8192),
        ("rate buckets for networks", "4096", limits::NETWORK_BUCKETS, 4096),
    ] {
        assert!(row(what).contains(&format!("| {text} |")), "{}", row(what));
        assert_eq!(named, value, "{what}");
    }
    assert_eq!(limits::RELIABLE_SEND_MESSAGES, 2 * kib);
    assert_eq!(limits::REORDER_WINDOW, kib);
    assert!(row("larger message, packed and unpacked").contains("256 KiB; 1 MiB"));
    assert_eq!((limits::MESSAGE_BYTES, limits::MESSAGE_BYTES_MAX), (256 * kib, kib * kib));
    assert!(row("sequence").contains("2^48"));
    assert_eq!(limits::SEQUENCE_MAX, 1 << 48);
    assert_eq!(limits::RELIABLE_FIRST_ID_MAX, 1 << 62);
}

/// `docs/TUNING.md` has a row for every figure of the transport, with its default.
#[test]
fn every_default_of_the_transport_is_documented_as_it_is() {
    let config = format!("{:?}", TransportConfig::default());
    let fields = config.trim_start_matches("TransportConfig { ").trim_end_matches(" }").split(", ");
    let table = TUNING.split("## Defaults").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut count = 0;
    for (name, value) in fields.map(|field| field.split_once(": ").unwrap()) {
        let row = table.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
        let told = row.unwrap_or_else(|| panic!("no row for {name}")).split(" | ").nth(1).unwrap();
        assert_eq!(told.split([',', '(']).next().unwrap().trim(), in_words(value), "{name}");
        count += 1;
    }
    assert_eq!(count, table.lines().filter(|line| line.starts_with("| `")).count());
}

/// As the document writes what `Debug` prints.
fn in_words(value: &str) -> String {
    let unit = value.trim_start_matches(|c: char| c.is_ascii_digit());
    match (value[..value.len() - unit.len()].parse::<u64>(), unit) {
        (Ok(bytes), "") if bytes >= 4_096 => format!("{} KiB", bytes / 1_024),
        (Ok(number), "") => number.to_string(),
        (Ok(number), unit) => format!("{number} {unit}"),
        (Err(_), word) => word.to_lowercase(),
    }
}

#[test]
fn the_reasons_are_those_of_the_code() {
    let section = DOCUMENT.split("## 9. Disconnect").nth(1).unwrap().split("## 10").next().unwrap();
    let codes = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse().ok());
    let codes: Vec<u8> = codes.collect();
    let known = (0..=u8::MAX)
        .filter(|&code| !matches!(DisconnectReason::from_code(code), DisconnectReason::Other(_)));
    assert_eq!(codes, known.collect::<Vec<_>>());
}

#[test]
fn the_examples_are_what_the_code_writes() {
    let header = Header {
        connection_id: 0x0403_0201,
        channel: Channel::ReliableUnordered,
        flags: Flags::SEALED.with(Flags::KEY_PHASE),
        sequence: 0x0c0b_0a09_0807_0605,
    };
    documented(&header.to_bytes());

    let mut buffer = [0; 64];
    let mut writer = Writer::new(&mut buffer);
    let block = AckBlock { largest_low: 0x0403_0201, mask: 0x0e, delay: AckDelay::from_micros(1_000) };
    AckBlock::encode(Some(&block), &mut writer).unwrap();
    documented(writer.written());

    let mut writer = Writer::new(&mut buffer);
    Frame { kind: 0x41, reliable: None, body: &[9, 8] }.encode(&mut writer).unwrap();
    let stream = StreamId::new(Channel::ReliableOrdered, 3).unwrap();
    let place = MessageId { stream, id: 300 };
    Frame { kind: 0x40, reliable: Some(place), body: &[7] }.encode(&mut writer).unwrap();
    documented(writer.written());

    let mut writer = Writer::new(&mut buffer);
    let whole = Whole { kind: 0x40, size: 2_003, plain_size: Some(70_000) };
    Fragment { whole, index: 2, piece: &[7, 8, 9] }.encode(&mut writer).unwrap();
    documented(writer.written());
}

#[test]
fn the_example_of_a_token_is_what_the_code_signs() {
    let signer = TokenSigner::from_seed(&[0x11; 32]);
    let token = LoginToken {
        id: [0x22; 16],
        account: 42,
        issued_s: 1_800_000_000,
        expires_s: 1_800_000_060,
        client_key: [0x33; 32],
    };
    let hex: String = signer.issue(&token).iter().map(|byte| format!("{byte:02x}")).collect();
    let lines: Vec<_> = (0..hex.len()).step_by(100).map(|at| &hex[at..hex.len().min(at + 100)]).collect();
    assert!(DOCUMENT.contains(&lines.join("\n")), "{}", lines.join("\n"));
}

fn documented(bytes: &[u8]) {
    let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(DOCUMENT.contains(&format!("`{}`", hex.join(" "))), "{}", hex.join(" "));
}
