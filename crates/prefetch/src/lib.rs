//! Fetching memory into the cache before it is needed.
//!
//! A server with ten thousand sessions finds none of them in a cache when its turn comes. A line from memory takes
//! 150 ns and more, but many can be on their way together, at about 5 ns each. So whoever goes through sessions in a
//! known order asks for the lines of the next ones while it works on this one.
//!
//! On other processors than x86-64 these functions do nothing.

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// Asks for all lines of a value: it will be read or written soon. A hint that changes nothing else.
#[inline]
pub fn prefetch<T: ?Sized>(value: &T) {
    prefetch_first(value, usize::MAX);
}

/// As [`prefetch`], but only for the first `bytes` of the value.
#[inline]
pub fn prefetch_first<T: ?Sized>(value: &T, bytes: usize) {
    let start = std::ptr::from_ref(value).cast::<u8>();
    let bytes = size_of_val(value).min(bytes);
    let mut offset = 0;
    while offset < bytes {
        prefetch_line(start.wrapping_add(offset));
        offset += LINE;
    }
    // A value that is not aligned to lines ends in one more of them.
    if bytes > 0 && align_of_val(value) < LINE {
        prefetch_line(start.wrapping_add(bytes - 1));
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[expect(unsafe_code, reason = "the instruction has no safe form")]
fn prefetch_line(address: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: every x86-64 processor has SSE, and the instruction neither faults nor changes anything.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn prefetch_line(_address: *const u8) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_its_size_a_value_stays_as_it_is() {
        let values: Vec<u64> = (0..1_000).collect();
        prefetch(&());
        prefetch(&values[..0]);
        prefetch(&values[3]);
        prefetch_first(&values[..], 100);
        prefetch(&values[..]);
        assert!(values.iter().copied().eq(0..1_000));
    }
}
