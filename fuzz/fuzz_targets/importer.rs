//! See `rmap_fuzz::importer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rmap_fuzz::importer(data));
