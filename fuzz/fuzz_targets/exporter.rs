//! See `rmap_fuzz::exporter`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rmap_fuzz::exporter(data));
