//! Chat completions, whole and in chunks.

use serde::Serialize;

use super::{
    logprobs::{ChatLogprobs, PromptLogprob},
    parts::PartCard,
    usage::{Usage, UsageField},
};

/// `POST /v1/chat/completions`.
#[derive(Clone, Debug, Serialize)]
pub struct ChatCompletion<'a> {
    /// `chatcmpl-…`.
    pub id: &'a str,
    /// Always `chat.completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The name that was asked for.
    pub model: &'a str,
    /// By index.
    pub choices: Vec<ChatChoice>,
    /// Token counts.
    pub usage: Usage,
    /// Short digest of the base.
    pub system_fingerprint: &'a str,
    /// Digest of the adapter's generation; null for the plain base.
    pub pleach_generation: Option<&'a str>,
    /// Only when the request named several adapters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pleach_adapters: Option<&'a [PartCard]>,
    /// Only with `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<&'a [u32]>,
    /// Only when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<PromptLogprob>>,
}

/// One answer.
#[derive(Clone, Debug, Serialize)]
pub struct ChatChoice {
    /// `0..n`.
    pub index: usize,
    /// What the model said.
    pub message: ChatMessage,
    /// Only when asked for, else null.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop` or `length`.
    pub finish_reason: &'static str,
    /// The stop string or token id that ended it, vLLM's extension; null for an end token of the model.
    pub stop_reason: Option<StopReason>,
    /// Only with `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// The assistant's message.
#[derive(Clone, Debug, Serialize)]
pub struct ChatMessage {
    /// Always `assistant`.
    pub role: &'static str,
    /// Its text.
    pub content: String,
    /// Always null.
    pub refusal: Option<()>,
}

/// What ended a choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum StopReason {
    /// One of `stop`.
    Text(String),
    /// One of `stop_token_ids`.
    Token(u32),
}

/// One event of a streamed chat completion.
#[derive(Clone, Debug, Serialize)]
pub struct ChatChunk<'a> {
    /// `chatcmpl-…`.
    pub id: &'a str,
    /// Always `chat.completion.chunk`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The name that was asked for.
    pub model: &'a str,
    /// One choice, or none in the usage chunk.
    pub choices: &'a [ChatChunkChoice],
    /// With `include_usage`: null, and in the last chunk the counts. Else absent.
    #[serde(skip_serializing_if = "UsageField::is_absent")]
    pub usage: UsageField,
    /// Short digest of the base.
    pub system_fingerprint: &'a str,
    /// Digest of the adapter's generation; null for the plain base.
    pub pleach_generation: Option<&'a str>,
    /// Only when the request named several adapters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pleach_adapters: Option<&'a [PartCard]>,
    /// Only with `return_token_ids`, in the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<&'a [u32]>,
}

/// What one chunk adds to one choice.
#[derive(Clone, Debug, Serialize)]
pub struct ChatChunkChoice {
    /// `0..n`.
    pub index: usize,
    /// The addition.
    pub delta: ChatDelta,
    /// Only when asked for, else null.
    pub logprobs: Option<ChatLogprobs>,
    /// In the choice's last chunk.
    pub finish_reason: Option<&'static str>,
    /// In the choice's last chunk, see [`ChatChoice::stop_reason`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// Only with `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// An addition to a message.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ChatDelta {
    /// In the choice's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// Text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}
