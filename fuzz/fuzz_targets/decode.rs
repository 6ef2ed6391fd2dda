//! See `rmap_fuzz::decode`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rmap_fuzz::decode(data));
