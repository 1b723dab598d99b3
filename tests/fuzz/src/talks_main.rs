//! The fuzz target of conversations: libFuzzer calls [`probe_fuzz::talks::check`] and follows its
//! coverage.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| probe_fuzz::talks::check(data));
