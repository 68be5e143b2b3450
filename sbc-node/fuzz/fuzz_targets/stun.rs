//! libFuzzer target over `sbc_core::fuzz::fuzz_stun`; the properties live there.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sbc_core::fuzz::fuzz_stun(data));
