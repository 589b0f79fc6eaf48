//! Bytes from libFuzzer to `src/gguf.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    pleach_fuzz::gguf::run(data);
});
