//! A session from its first datagram to its end.

mod common;

use std::time::Duration;

use common::{Link, Net, PERFECT, Phase, To};
use shadowland_proto::{
    Channel, CloseReason, ConnectConfig, ConnectError, DenyReason, DisconnectReason, DropReason,
    EndpointConfig, Identity, State,
};
use shadowland_wire::header::{Flags, HEADER_BYTES};

const INPUT: u8 = 0x20;
const SNAPSHOT: u8 = 0x41;

const BAD: Link =
    Link { loss: 0.2, duplicates: 0.05, delay: Duration::from_millis(50), jitter: Duration::from_millis(60) };

#[test]
fn a_client_connects_and_both_sides_talk() {
    let mut net = Net::connected(1, PERFECT);
    let from_client = net.client_says(0, INPUT, b"forward");
    let from_server = net.server_says(SNAPSHOT, b"the world");
    net.run(Duration::from_millis(100));
    assert_eq!(net.server_log().messages, [(INPUT, b"forward".to_vec())]);
    assert_eq!(net.clients[0].log.messages, [(SNAPSHOT, b"the world".to_vec())]);
    assert!(net.clients[0].log.acked.contains(&from_client));
    assert!(net.server_log().acked.contains(&from_server));
}
