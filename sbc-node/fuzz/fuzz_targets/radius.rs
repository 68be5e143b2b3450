//! libFuzzer target over `sbc_node::fuzz::fuzz_radius`; the properties live there.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sbc_node::fuzz::fuzz_radius(data));
