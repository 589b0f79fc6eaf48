//! Bytes from libFuzzer to `pleach_fuzz::training_rows`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    pleach_fuzz::training_rows::run(data);
});
