//! What hostile peers send: the bodies of the fuzz targets. `fuzz/` runs them under libFuzzer with the nightly
//! toolchain; `tests/corpus.rs` runs them over the committed corpus with any.
//!
//! Most targets read a **script** from the fuzzer's bytes: one byte says what happens next, what follows is what it
//! needs, and where the bytes end the script ends. So a few bytes lead deep into a session, behind handshakes and
//! ciphers that no fuzzer would guess.
//!
//! A target fails by a panic: of the code under test, of an assertion about what must hold after each step, or of
//! the bound on the memory that a run may hold at once.
//!
//! | module | hostile is |
//! |---|---|
//! | [`decoders`] | whoever made the bytes of a message |
//! | [`handshake`] | whoever can reach a server's port or answer a client, without keys |
//! | [`connection`] | the peer of an established session |
//! | [`client`] | the server that a client is connected to |
//! | [`server`] | a client that is in the world |

#![forbid(unsafe_code)]

pub mod client;
pub mod connection;
pub mod decoders;
pub mod handshake;
mod pair;
mod script;
pub mod server;

/// A target: takes any bytes, and panics where it finds something.
pub type Target = fn(&[u8]);

/// All targets, by the names that they have in `fuzz/fuzz_targets` and `fuzz/corpus`.
pub const TARGETS: [(&str, Target); 10] = [
    ("messages", decoders::messages),
    ("blocks", decoders::blocks),
    ("endpoint", handshake::endpoint),
    ("tokens", handshake::tokens),
    ("connecting", handshake::connecting),
    ("connection", connection::connection),
    ("fragments", connection::fragments),
    ("replica", client::replica),
    ("session", client::session),
    ("hub", server::hub),
];

/// Runs, and panics if more than so many bytes of the heap were held at any time.
fn within(bytes: u64, run: impl FnOnce()) {
    let used = allocation_counter::measure(run).bytes_max;
    assert!(used <= bytes, "{used} bytes at once, more than {bytes}");
}
