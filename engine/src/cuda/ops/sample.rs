//! The choice of tokens, and log-probabilities.

use crate::{
    cuda::{CudaError, DevicePtr, Launch, LaunchSink, launch::kernel_params},
    sampler::SampledToken,
};

use super::{want, want_stride};

const THREADS: u32 = 1024;

/// Most of the likeliest tokens that a row can ask for.
pub const TOP_MAX: usize = 20;

/// Largest vocabulary: one segment of 512 logits for each thread.
pub const SAMPLE_VOCAB_MAX: usize = 512 * THREADS as usize;

kernel_params! {
    /// What one row asks for. Made by [`crate::cuda::SamplePlan`].
    pub struct SampleSpec {
        /// The random number, in `[0, 1)`, times 2⁶⁴.
        pub uniform: u64,
        /// The same of `top_p`; [`u64::MAX`]: everything.
        pub top_p: u64,
        /// Token to score, [`Self::CHOOSE`] or [`Self::SKIP`].
        pub forced: u32,
        /// How many of the likeliest tokens, at most [`TOP_MAX`]; [`Self::NO_LOGPROBS`]: not even the token's own.
        pub n_top: u32,
        /// How many of the largest edited logits; 0: all.
        pub top_k: u32,
        /// 1 / temperature; [`Self::GREEDY_TEMPERATURE`] (or anything negative): the first of the largest.
        pub inverse_temperature: f32,
        /// Smallest weight relative to the likeliest token's, at most 1.
        pub weight_min: f32,
        /// First of the row's [`LogitEdit`]s.
        pub edits_begin: u32,
        /// End of them.
        pub edits_end: u32,
        /// Zero.
        pub reserved: u32,
    }
}

impl SampleSpec {
    /// In `forced`: a token is chosen.
    pub const CHOOSE: u32 = u32::MAX;
    /// In `forced`: the row's result is not written; the host chooses, from the row's logits.
    pub const SKIP: u32 = u32::MAX - 1;
    /// In `n_top`.
    pub const NO_LOGPROBS: u32 = u32::MAX;
    /// In `inverse_temperature`.
    pub const GREEDY_TEMPERATURE: f32 = -1.0;
    /// The first of the largest logits, and nothing else.
    pub const GREEDY: Self = Self {
        uniform: 0,
        top_p: u64::MAX,
        forced: Self::CHOOSE,
        n_top: Self::NO_LOGPROBS,
        top_k: 0,
        inverse_temperature: Self::GREEDY_TEMPERATURE,
        weight_min: 0.0,
        edits_begin: 0,
        edits_end: 0,
        reserved: 0,
    };
}

kernel_params! {
    /// What changes one logit before the choice: `f(x + bias) - frequency - presence`, where `f` divides what is positive
    /// by `repetition` and multiplies the rest. Every step is rounded.
    pub struct LogitEdit {
        /// Within the vocabulary; at most one edit of a row has it.
        pub token: u32,
        /// Added; minus infinity replaces the logit.
        pub bias: f32,
        /// Factor.
        pub repetition: f32,
        /// The frequency penalty times the number of earlier occurrences.
        pub frequency: f32,
        /// The presence penalty.
        pub presence: f32,
        /// Any: the kernel keeps the logit here.
        pub original: f32,
    }
}

impl LogitEdit {
    /// Changes no bit of the logit.
    pub const fn none(token: u32) -> Self {
        // Zero would change the sign of a negative zero.
        Self { token, bias: -0.0, repetition: 1.0, frequency: 0.0, presence: 0.0, original: 0.0 }
    }
}

kernel_params! {
    /// What one row gives.
    pub struct SampleResult {
        /// The token, or [`SampledToken::NO_TOKEN`].
        pub token: u32,
        /// Its natural log-probability, 0 if not asked for.
        pub logprob: f32,
        /// Likeliest tokens that follow.
        pub n_top: u32,
        /// Zero.
        pub reserved: u32,
        /// By value, then by token.
        pub top_tokens: [u32; TOP_MAX],
        /// Theirs.
        pub top_logprobs: [f32; TOP_MAX],
    }
}

impl SampleResult {
    /// What a download overwrites.
    pub const EMPTY: Self = Self {
        token: SampledToken::NO_TOKEN,
        logprob: 0.0,
        n_top: 0,
        reserved: 0,
        top_tokens: [0; TOP_MAX],
        top_logprobs: [0.0; TOP_MAX],
    };
}

impl From<&SampleResult> for SampledToken {
    fn from(result: &SampleResult) -> Self {
        if result.token == Self::NO_TOKEN {
            return Self::none();
        }
        let top =
            result.top_tokens.iter().copied().zip(result.top_logprobs).take(result.n_top as usize);
        Self { token: result.token, logprob: result.logprob, top: top.collect() }
    }
}

kernel_params! {
    /// One token for every row, its log-probability and the likeliest tokens; see `cuda/sample.cu`. Given equal logits,
    /// it chooses the token that [`crate::sampler::sample`] chooses.
    pub struct SampleParams {
        /// [`super::StepHeader`].
        pub step: DevicePtr,
        /// f32 `[n_sample_rows][stride]`, rows of 16-byte words; changed, and restored at the end.
        pub logits: DevicePtr,
        /// [`SampleSpec`] `[n_sample_rows]`.
        pub specs: DevicePtr,
        /// [`LogitEdit`], to which specs point; changed.
        pub edits: DevicePtr,
        /// [`SampleResult`] `[n_sample_rows]`.
        pub results: DevicePtr,
        /// Distance of rows of logits, a multiple of 4.
        pub stride: u32,
        /// Tokens.
        pub vocab: u32,
    }
}
const _: () = assert!(
    size_of::<SampleParams>() == 48
        && size_of::<SampleSpec>() == 48
        && size_of::<LogitEdit>() == 24
        && size_of::<SampleResult>() == 176
);

impl SampleParams {
    /// Enqueues it for up to `max_rows` rows.
    ///
    /// # Errors
    /// [`CudaError::Launch`] naming what does not fit, or the sink's.
    pub fn launch(&self, sink: &dyn LaunchSink, max_rows: u32) -> Result<(), CudaError> {
        let kernel = "sample";
        let fits = self.vocab > 0 && self.vocab as usize <= SAMPLE_VOCAB_MAX;
        want(kernel, "tokens", self.vocab, fits, format_args!("1 to {SAMPLE_VOCAB_MAX}"))?;
        want_stride(kernel, "distance of rows of logits", self.stride, 4, self.vocab)?;
        sink.submit(&Launch::new(kernel, (max_rows, 1, 1), THREADS, 0, self))
    }
}
