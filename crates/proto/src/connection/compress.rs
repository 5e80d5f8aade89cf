//! LZ4 for large reliable messages, where it pays. Both directions are bounded: what is unpacked has the length
//! that was announced, and that was checked against the limit before.

/// Shorter messages are not worth the work.
pub(super) const COMPRESS_FROM: usize = 512;
/// Bytes that are looked at to guess whether compressing pays.
const SAMPLE: usize = 1024;

/// The compressed message, if it is at least a sixteenth shorter.
pub(super) fn compress(plain: &[u8]) -> Option<Vec<u8>> {
    if plain.len() < COMPRESS_FROM || !seems_to_pay(plain) {
        return None;
    }
    let packed = lz4_flex::block::compress(plain);
    (packed.len() + plain.len() / 16 < plain.len()).then_some(packed)
}

/// The message of exactly `plain_size` bytes; `None` when these bytes are not one.
pub(super) fn decompress(packed: &[u8], plain_size: usize) -> Option<Vec<u8>> {
    let mut plain = vec![0; plain_size];
    let size = lz4_flex::block::decompress_into(packed, &mut plain).ok()?;
    (size == plain_size).then_some(plain)
}

/// Whether the bytes are far from evenly distributed: the sum of the squared counts of a sample, which is
/// `n + n * n / 256` for random bytes (the collision entropy, 8 bits), must be a third larger. Costs 1 us.
fn seems_to_pay(plain: &[u8]) -> bool {
    let step = (plain.len() / SAMPLE).max(1);
    let mut counts = [0u32; 256];
    let mut samples = 0u64;
    for &byte in plain.iter().step_by(step).take(SAMPLE) {
        counts[usize::from(byte)] += 1;
        samples += 1;
    }
    let squares: u64 = counts.iter().map(|&count| u64::from(count).pow(2)).sum();
    3 * squares > 4 * (samples + samples * samples / 256)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    fn random(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        StdRng::seed_from_u64(1).fill_bytes(&mut bytes);
        bytes
    }

    #[test]
    fn text_is_compressed_and_noise_is_not() {
        let text = "The guild bank holds 12 swords, 40 potions and a horse. ".repeat(40);
        let packed = compress(text.as_bytes()).unwrap();
        assert!(packed.len() * 4 < text.len());
        assert_eq!(decompress(&packed, text.len()).unwrap(), text.as_bytes());
        assert!(compress(&text.as_bytes()[..COMPRESS_FROM - 1]).is_none());
        for length in [600, 1_024, 10_000, 200_000] {
            assert!(!seems_to_pay(&random(length)), "{length} random bytes");
        }
    }

    #[test]
    fn what_does_not_unpack_to_the_announced_size_is_refused() {
        let packed = compress(&[7; 10_000]).unwrap();
        assert!(decompress(&packed, 10_000).is_some());
        assert!(decompress(&packed, 9_999).is_none(), "a bomb stops at the announced size");
        assert!(decompress(&packed, 10_001).is_none());
        assert!(decompress(&packed[..packed.len() - 1], 10_000).is_none());
        let noise = random(2_000);
        for start in 0..1_000 {
            let _ = decompress(&noise[start..start + 500], 4_000);
        }
    }
}
