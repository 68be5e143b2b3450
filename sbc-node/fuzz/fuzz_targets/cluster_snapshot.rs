//! libFuzzer target over `sbc_cluster::fuzz::fuzz_snapshot`; the properties live there.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sbc_cluster::fuzz::fuzz_snapshot(data));
