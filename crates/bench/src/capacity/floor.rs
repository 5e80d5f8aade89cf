//! The floor: what the bare cipher calls take for the packets that were sent and received.

use std::hint::black_box;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use super::shard::Traffic;
use crate::clock::{measure, ms, percentile};

/// Bytes that are authenticated but not encrypted: the header.
const HEADER: usize = 14;
/// Bytes of the tag.
const TAG: usize = 16;
/// Cipher calls of one measurement.
const CALLS: u64 = 2_000;
/// Measurements, of which the median counts.
const ROUNDS: usize = 15;

/// CPU time of the cipher calls of a tick, in milliseconds.
pub(super) fn aead(before: Traffic, after: Traffic, ticks: u64) -> f64 {
    let sealed = (after.packets_out - before.packets_out) as f64 / ticks as f64;
    let opened = (after.packets_in - before.packets_in) as f64 / ticks as f64;
    let mean = |bytes: u64, packets: u64| (bytes / packets.max(1)) as usize;
    let out = mean(after.bytes_out - before.bytes_out, after.packets_out - before.packets_out);
    let input = mean(after.bytes_in - before.bytes_in, after.packets_in - before.packets_in);
    sealed * call_ms(out.max(HEADER + TAG), false) + opened * call_ms(input.max(HEADER + TAG), true)
}

/// One call for a packet of this many bytes.
fn call_ms(packet: usize, open: bool) -> f64 {
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).expect("a key has 32 bytes"));
    let header = [1; HEADER];
    let nonce = || Nonce::assume_unique_for_key([9; 12]);
    let mut plain = vec![3; packet - HEADER - TAG];
    let tag =
        key.seal_in_place_separate_tag(nonce(), Aad::from(header), &mut plain).expect("the message is short");
    let mut sealed = plain.clone();
    sealed.extend_from_slice(tag.as_ref());
    let mut scratch = sealed.clone();
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let span = measure(|| {
                for _ in 0..CALLS {
                    if open {
                        scratch.copy_from_slice(&sealed);
                        let opened = key.open_in_place(nonce(), Aad::from(header), &mut scratch);
                        black_box(opened.is_ok());
                    } else {
                        let tag = key.seal_in_place_separate_tag(nonce(), Aad::from(header), &mut plain);
                        black_box(tag.is_ok());
                    }
                }
            });
            ms(span.cpu) / CALLS as f64
        })
        .collect();
    percentile(&mut rounds, 0.5)
}
