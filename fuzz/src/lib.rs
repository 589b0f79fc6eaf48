//! What reads bytes from outside, each with a function that gives it any bytes and checks what comes out.
//!
//! `fuzz_targets/` hands them to libFuzzer; `tests/fuzz_targets/` of the main workspace feeds them the seeds and mutations
//! of these, so that they are compiled and run with every other test. This file and those below it belong to both.

pub mod adapter;
pub mod chat_template;
pub mod gguf;
pub mod request;
mod text_model;
pub mod training_rows;

/// A target takes any bytes, panics if something is wrong with what they became, and says whether they became anything.
pub type Target = fn(&[u8]) -> bool;

/// All targets, by the names of their folders of seeds.
pub const TARGETS: [(&str, Target); 5] = [
    ("adapter", adapter::run),
    ("chat_template", chat_template::run),
    ("gguf", gguf::run),
    ("request", request::run),
    ("training_rows", training_rows::run),
];

/// Two inputs in one: what is before the first zero byte, which no JSON and no template has, and what is after it.
fn halves(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = data.iter().position(|byte| *byte == 0)?;
    Some((&data[..end], &data[end + 1..]))
}
