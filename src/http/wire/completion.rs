//! Plain completions, whole and in chunks: the same object for both.

use serde::Serialize;

use super::{
    chat::StopReason,
    logprobs::{CompletionLogprobs, PromptLogprob},
    parts::PartCard,
    usage::UsageField,
};

/// `POST /v1/completions`, and every event of its stream.
#[derive(Clone, Debug, Serialize)]
pub struct Completion<'a> {
    /// `cmpl-…`.
    pub id: &'a str,
    /// Always `text_completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The name that was asked for.
    pub model: &'a str,
    /// By index.
    pub choices: &'a [CompletionChoice],
    /// Token counts. In a stream with `include_usage`: null, and in the last chunk the counts; else absent.
    #[serde(skip_serializing_if = "UsageField::is_absent")]
    pub usage: UsageField,
    /// Short digest of the base.
    pub system_fingerprint: &'a str,
    /// Digest of the adapter's generation; null for the plain base.
    pub pleach_generation: Option<&'a str>,
    /// Only when the request named several adapters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pleach_adapters: Option<&'a [PartCard]>,
}

/// One answer, or an addition to it.
#[derive(Clone, Debug, Serialize)]
pub struct CompletionChoice {
    /// `prompt_index * n + choice`.
    pub index: usize,
    /// Text; with `echo` the prompt first.
    pub text: String,
    /// Only when asked for, else null.
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; null in all chunks but the last.
    pub finish_reason: Option<&'static str>,
    /// The stop string or token id that ended it, vLLM's extension; null for an end token of the model.
    pub stop_reason: Option<StopReason>,
    /// Only with `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// Only with `return_token_ids`; in a stream in the choice's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    /// Only when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<PromptLogprob>>,
}
