//! What reads bytes from outside, each with a function `run` that gives it any bytes, panics if something is wrong with
//! what they became, and says whether they became anything. `request.rs` is not part of this library, as it takes the whole
//! server.
//!
//! `fuzz_targets/` hands them to libFuzzer; `tests/fuzz_targets/` of the main workspace feeds them the seeds and mutations
//! of these, so that they are compiled and run with every other test. This file and those below it belong to both.

pub mod adapter;
pub mod chat_template;
pub mod gguf;
mod text_model;
pub mod training_rows;

/// Two inputs in one: what is before the first zero byte, which no JSON and no template has, and what is after it.
fn halves(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = data.iter().position(|byte| *byte == 0)?;
    Some((&data[..end], &data[end + 1..]))
}
