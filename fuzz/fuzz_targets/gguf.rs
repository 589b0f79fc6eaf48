//! Bytes from libFuzzer to `pleach_fuzz::gguf`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    pleach_fuzz::gguf::run(data);
});
