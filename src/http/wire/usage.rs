//! What a request cost.

use serde::{Serialize, Serializer};

/// Token counts of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Tokens of all prompts, each counted once, however many choices it has.
    pub prompt_tokens: usize,
    /// Tokens chosen in all choices, end tokens included.
    pub completion_tokens: usize,
    /// The sum.
    pub total_tokens: usize,
    /// Of the prompt tokens.
    pub prompt_tokens_details: PromptTokensDetails,
    /// Of the completion tokens.
    pub completion_tokens_details: CompletionTokensDetails,
}

/// Of the prompt tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PromptTokensDetails {
    /// Those whose keys and values came from the prefix cache.
    pub cached_tokens: usize,
    /// Always 0: there is no audio.
    pub audio_tokens: usize,
}

/// Of the completion tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CompletionTokensDetails {
    /// Always 0: reasoning is not told apart.
    pub reasoning_tokens: usize,
    /// Always 0: there is no audio.
    pub audio_tokens: usize,
    /// Always 0: predictions are not supported.
    pub accepted_prediction_tokens: usize,
    /// Always 0: predictions are not supported.
    pub rejected_prediction_tokens: usize,
}

/// The `usage` of a chunk or a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageField {
    /// Not there: a chunk of a stream without `include_usage`.
    Absent,
    /// `null`: a chunk before the last of a stream with `include_usage`.
    Null,
    /// The counts.
    Counts(Usage),
}

impl UsageField {
    /// That of a chunk.
    pub fn of_chunk(include_usage: bool) -> Self {
        if include_usage { Self::Null } else { Self::Absent }
    }

    /// Whether the field is left out.
    pub fn is_absent(&self) -> bool {
        *self == Self::Absent
    }
}

impl Serialize for UsageField {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Absent | Self::Null => serializer.serialize_none(),
            Self::Counts(usage) => usage.serialize(serializer),
        }
    }
}

impl Usage {
    /// The usage of a request.
    pub fn new(prompt_tokens: usize, cached_tokens: usize, completion_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens, audio_tokens: 0 },
            completion_tokens_details: CompletionTokensDetails::default(),
        }
    }
}
