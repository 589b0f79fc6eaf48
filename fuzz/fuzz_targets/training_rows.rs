//! Bytes from libFuzzer to `src/training_rows.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    pleach_fuzz::training_rows::run(data);
});
