//! From logits to a token: a pure function of the logits, the sequence's own history and its seed.
//!
//! Order of what is applied, as in vLLM: `logit_bias`, banned tokens, repetition penalty, frequency and presence
//! penalties, temperature, `min_p`, `top_k`, `top_p`. Log-probabilities are those of the logits before any of it.

#![expect(
    clippy::float_cmp,
    reason = "exact values switch settings off; the maximum is found by equality"
)]

mod draw;
mod penalties;
mod philox;
mod softmax;

pub(crate) use draw::Draw;
#[cfg(test)]
pub(crate) use penalties::adjust;
pub use philox::philox4x32;

use crate::step_batch::SampleRow;

/// Temperatures below this are greedy; dividing by them overflows. (The bound is vLLM's.)
pub const TEMPERATURE_MIN: f32 = 1e-5;

/// How a sequence chooses its tokens. Names and ranges are those of the `OpenAI` API and of vLLM.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Smallest set of tokens with at least this probability, `(0, 1]`.
    pub top_p: f32,
    /// The `k` likeliest tokens; 0 is all.
    pub top_k: u32,
    /// Tokens at least this fraction as likely as the likeliest, `[0, 1]`.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or completion; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once per earlier occurrence in the completion.
    pub frequency_penalty: f32,
    /// Subtracted once if the token is in the completion.
    pub presence_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the counter-based generator.
    pub seed: u64,
    /// Report the log-probability of the chosen token and of this many likeliest tokens.
    pub logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

impl SamplingParams {
    /// Whether `SampleRow::history` is read.
    pub fn needs_history(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
    }
}

/// What a row chose.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// The token, or [`SampledToken::NO_TOKEN`].
    pub token: u32,
    /// Its natural log-probability under the unmodified logits, when asked for (else 0).
    pub logprob: f32,
    /// The likeliest tokens under the unmodified logits, likeliest first; empty unless asked for.
    pub top: Vec<(u32, f32)>,
}

impl SampledToken {
    /// Stands for "no token can be chosen": a logit is NaN or +∞, or all tokens are banned. A sentinel, because devices
    /// fill a plain buffer of token ids; it fails this row's sequence and no other.
    pub const NO_TOKEN: u32 = u32::MAX;

    /// What a row gives that can choose nothing.
    pub fn none() -> Self {
        Self { token: Self::NO_TOKEN, logprob: 0.0, top: Vec::new() }
    }
}

/// Chooses (or, with `row.forced`, scores) a token for one row. Equal arguments give equal bits; `row.row` is not read.
///
/// `logits` is `[V]`, at most 2²⁴. Ties go to the lower token id: the greedy choice is the first of the largest, and `top_k` keeps
/// exactly `k`. Tokens outside the vocabulary in bias, history or bans are ignored. Gives
/// [`SampledToken::none`] when there is nothing to choose.
pub fn sample(logits: &[f32], row: &SampleRow) -> SampledToken {
    let token = match row.forced {
        Some(token) => Some(token as usize).filter(|&token| token < logits.len()),
        None => choose(logits, row),
    };
    let n_top = match (row.params.logprobs, row.forced) {
        (Some(n_top), _) => n_top as usize,
        (None, Some(_)) => 0,
        (None, None) => {
            return token.map_or_else(SampledToken::none, |token| SampledToken {
                token: token_id(token),
                logprob: 0.0,
                top: Vec::new(),
            });
        }
    };
    let (Some(token), Some((_, max))) = (token, softmax::finite_max(logits)) else {
        return SampledToken::none();
    };
    let log_sum = softmax::log_sum_exp(logits, max);
    SampledToken {
        token: token_id(token),
        logprob: logprob(logits[token], log_sum),
        top: draw::largest(logits, n_top)
            .into_iter()
            .map(|index| (token_id(index), logprob(logits[index], log_sum)))
            .collect(),
    }
}

fn choose(logits: &[f32], row: &SampleRow) -> Option<usize> {
    let adjusted = penalties::adjust(logits, row);
    let values = adjusted.as_deref().unwrap_or(logits);
    let (best, max) = softmax::finite_max(values)?;
    Some(Draw::of(row).map_or(best, |draw| draw::draw(values, max, &draw)))
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the result's precision")]
fn logprob(logit: f32, log_sum: f64) -> f32 {
    (f64::from(logit) - log_sum) as f32
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "an index into the vocabulary, whose ids are u32"
)]
fn token_id(index: usize) -> u32 {
    index as u32
}
