//! The fuzz target of answers: libFuzzer calls [`probe_fuzz::answers::check`] and follows its
//! coverage.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| probe_fuzz::answers::check(data));
