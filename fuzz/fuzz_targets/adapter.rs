//! Bytes from libFuzzer to `pleach_fuzz::adapter`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    pleach_fuzz::adapter::run(data);
});
