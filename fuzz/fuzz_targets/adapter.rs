//! Bytes from libFuzzer to `src/adapter.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    pleach_fuzz::adapter::run(data);
});
