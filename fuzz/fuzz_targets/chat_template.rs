//! Bytes from libFuzzer to `pleach_fuzz::chat_template`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    pleach_fuzz::chat_template::run(data);
});
