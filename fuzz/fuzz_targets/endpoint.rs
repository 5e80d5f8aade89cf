#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shadowland_fuzzing::handshake::endpoint(data));
