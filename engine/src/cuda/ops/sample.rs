//! The greedy choice, and log-probabilities.

use crate::{
    cuda::{CudaError, DevicePtr, Launch, LaunchSink, launch::kernel_params},
    sampler::SampledToken,
};

use super::{want, want_stride};

const THREADS: u32 = 1024;

/// Most of the likeliest tokens that a row can ask for.
pub const TOP_MAX: usize = 20;

kernel_params! {
    /// What one row asks for.
    pub struct SampleSpec {
        /// Token to score, [`Self::CHOOSE`] or [`Self::SKIP`].
        pub forced: u32,
        /// How many of the likeliest tokens, at most [`TOP_MAX`]; [`Self::NO_LOGPROBS`]: not even the token's own.
        pub n_top: u32,
    }
}

impl SampleSpec {
    /// In `forced`: the first of the largest.
    pub const CHOOSE: u32 = u32::MAX;
    /// In `forced`: the row's result is not written; the host chooses, from the row's logits.
    pub const SKIP: u32 = u32::MAX - 1;
    /// In `n_top`.
    pub const NO_LOGPROBS: u32 = u32::MAX;
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
    /// The token, its log-probability and the likeliest ones, under unmodified logits; see `cuda/sample.cu`. Rows with a
    /// temperature, penalties, biases or bans are [`SampleSpec::SKIP`] and left to [`crate::sampler::sample`].
    pub struct SampleGreedyParams {
        /// [`super::StepHeader`].
        pub step: DevicePtr,
        /// f32 `[n_sample_rows][stride]`.
        pub logits: DevicePtr,
        /// [`SampleSpec`] `[n_sample_rows]`.
        pub specs: DevicePtr,
        /// [`SampleResult`] `[n_sample_rows]`.
        pub results: DevicePtr,
        /// Distance of rows of logits.
        pub stride: u32,
        /// Tokens.
        pub vocab: u32,
    }
}
const _: () = assert!(size_of::<SampleGreedyParams>() == 40 && size_of::<SampleResult>() == 176);

impl SampleGreedyParams {
    /// Enqueues it for up to `max_rows` rows.
    ///
    /// # Errors
    /// [`CudaError::Launch`] naming what does not fit, or the sink's.
    pub fn launch(&self, sink: &dyn LaunchSink, max_rows: u32) -> Result<(), CudaError> {
        let kernel = "sample_greedy";
        want(
            kernel,
            "tokens",
            self.vocab,
            self.vocab > 0 && self.vocab < SampleSpec::SKIP,
            "1 to 4294967293",
        )?;
        want_stride(kernel, "distance of rows of logits", self.stride, 1, self.vocab)?;
        sink.submit(&Launch::new(kernel, (max_rows, 1, 1), THREADS, 0, self))
    }
}
