//! With the key log alone, and another implementation of the cipher, everything that was sealed can be read.

mod common;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use common::{Net, PERFECT, To};
use shadowland_proto::{ConnectConfig, EndpointConfig, KeyLog, RekeyLimits};

/// A sink that can be read.
#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl Text {
    fn lines(&self) -> Vec<String> {
        let bytes = self.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }
}

impl io::Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_keys_in_the_log_open_every_packet_of_every_epoch() {
    let (server_log, client_log) = (Text::default(), Text::default());
    let config = EndpointConfig {
        rekey: RekeyLimits { bytes: 30_000, ..RekeyLimits::default() },
        key_log: Some(Arc::new(KeyLog::new(server_log.clone()))),
        ..EndpointConfig::default()
    };
    let mut net = Net::new(1, PERFECT, config);
    let key_log = Some(Arc::new(KeyLog::new(client_log.clone())));
    net.join(ConnectConfig { key_log, ..ConnectConfig::default() });
    net.run_until(Duration::from_secs(10), Net::all_established);
    for number in 0..600u32 {
        net.client_says(0, 0x20, &number.to_le_bytes());
        net.server_says(0x41, &[number as u8; 300]);
        net.run(Duration::from_millis(16));
    }
    let rekeys = net.session().connection.stats().rekeys;
    assert!(rekeys >= 5, "{rekeys} rekeys");
    let lines = server_log.lines();
    assert_eq!(lines.len() as u64, 2 * (rekeys + 1));
    // The client computes the same keys when it answers, so a little earlier.
    assert_eq!(client_log.lines(), lines);

    // By direction and phase: the keys with this lowest bit.
    let mut keys: BTreeMap<(bool, bool), Vec<Vec<u8>>> = BTreeMap::new();
    let id = net.session().connection.id();
    for line in &lines {
        let [label, of, number, key] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(of, format!("{id:08x}"));
        let key = (0..64).step_by(2).map(|at| u8::from_str_radix(&key[at..at + 2], 16).unwrap()).collect();
        let phase = number.parse::<u32>().unwrap() & 1 == 1;
        keys.entry((label == "CLIENT_TO_SERVER", phase)).or_default().push(key);
    }
    let sealed: Vec<_> = net.sent.iter().filter(|(_, datagram)| datagram[..4] != [0; 4]).collect();
    assert!(sealed.len() > 1_200);
    for (to, datagram) in sealed {
        let (head, sealed) = datagram.split_at(14);
        let candidates = &keys[&(matches!(to, To::Server { .. }), head[5] & 0x80 != 0)];
        let nonce = [&head[..4], &head[6..]].concat();
        let opens = candidates.iter().any(|key| {
            let payload = Payload { msg: sealed, aad: head };
            ChaCha20Poly1305::new(Key::from_slice(key)).decrypt(Nonce::from_slice(&nonce), payload).is_ok()
        });
        assert!(opens, "{to:?} {head:02x?}");
    }
}

#[test]
fn nothing_is_logged_unless_asked_for() {
    let log = Text::default();
    let config =
        EndpointConfig { key_log: Some(Arc::new(KeyLog::new(log.clone()))), ..EndpointConfig::default() };
    Net::connected(1, PERFECT);
    assert_eq!(log.lines(), [""; 0]);
    Net::connected_to(1, PERFECT, config);
    assert_eq!(log.lines().len(), 2);
}
