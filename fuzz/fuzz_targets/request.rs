//! Bytes from libFuzzer to `pleach_fuzz::request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    pleach_fuzz::request::run(data);
});
