//! The fuzz target: libFuzzer calls [`probe_fuzz::check`] and follows its coverage.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| probe_fuzz::check(data));
