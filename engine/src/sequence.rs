//! One sequence as the engine runs it, and what it tells its owner.

use std::{sync::Arc, time::Instant};

use crate::{engine::AdapterLease, sampler::SamplingParams};

/// Names a sequence for cancellation and logs. Never reused within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// One waiting line of the queue policy. Opaque: the engine knows no tenants. Lines come and go with their sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId(pub u64);

/// What to run.
#[derive(Clone, Debug)]
pub struct SequenceRequest {
    /// Prompt tokens, at least one.
    pub prompt: Vec<u32>,
    /// Adapter of every row; `None` is the plain base.
    pub adapter: Option<AdapterLease>,
    /// What else made the keys and values besides tokens: adapter digest, scale and tenant salt, hashed above the
    /// engine. Sequences share cached prefixes only if these are equal.
    pub kv_key: [u8; 32],
    /// In which line it waits: sequences of one flow share what the queue policy gives that flow.
    pub flow: FlowId,
    /// How to choose tokens.
    pub sampling: Arc<SamplingParams>,
    /// Most completion tokens, at least one.
    pub max_tokens: usize,
    /// End tokens are banned before this many completion tokens.
    pub min_tokens: usize,
    /// Tokens that end the sequence. They are reported as an event, then the sequence finishes.
    pub stop_tokens: Vec<u32>,
    /// Score every prompt token from the second on (`SequenceEvent::PromptScores`) with this many likeliest tokens.
    pub prompt_logprobs: Option<u32>,
}

/// One chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEvent {
    /// The token.
    pub token: u32,
    /// Its log-probability, when asked for (else 0).
    pub logprob: f32,
    /// Likeliest tokens with log-probabilities, when asked for.
    pub top: Vec<(u32, f32)>,
    /// When its step ended.
    pub at: Instant,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token, which was the last [`TokenEvent`].
    Stop {
        /// The token.
        token: u32,
    },
    /// `max_tokens` or the context is full.
    Length,
    /// Cancelled by its owner or by shut-down.
    Cancelled,
}

/// What a sequence tells its owner, in this order.
#[derive(Clone, Debug)]
pub enum SequenceEvent {
    /// It left the queue. Sent once, also if it is preempted later.
    Admitted {
        /// When.
        at: Instant,
        /// Prompt tokens whose keys and values came from the prefix cache.
        cached_tokens: usize,
    },
    /// Scores of `prompt[1..]`, in order; only when asked for.
    PromptScores(Vec<TokenEvent>),
    /// The next completion token.
    Token(TokenEvent),
    /// The last event.
    Finished {
        /// Why.
        reason: FinishReason,
        /// How often it was preempted and recomputed.
        preemptions: u32,
    },
    /// The last event when the step that ran it failed.
    Failed(Arc<str>),
}
