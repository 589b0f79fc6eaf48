//! Bytes from libFuzzer to `src/chat_template.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    pleach_fuzz::chat_template::run(data);
});
