//! Completions that were kept.

use std::collections::BTreeMap;

use pleach_store::{Metadata, StoredCompletion};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{lineage::LearnedCard, usage::Usage};
use crate::feedback::CompletionBody;

/// A completion that was deleted.
#[derive(Clone, Debug, Serialize)]
pub struct ChatDeleted {
    /// Its id.
    pub id: String,
    /// Always `chat.completion.deleted`.
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
    /// What has learned from it.
    pub generations: Vec<LearnedCard>,
}

/// A completion that was kept, as the response was, with what was asked of it beside.
#[derive(Clone, Debug, Serialize)]
pub struct StoredChat {
    /// `chatcmpl-…`.
    pub id: String,
    /// Always `chat.completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: i64,
    /// The name that was asked for.
    pub model: String,
    /// By index.
    pub choices: Vec<StoredChoice>,
    /// Token counts.
    pub usage: Usage,
    /// Short digest of the base.
    pub system_fingerprint: String,
    /// Digest of the adapter's generation; null for the plain base.
    pub pleach_generation: Option<String>,
    /// Pairs that it is found by.
    pub metadata: Metadata,
    /// Completions that belong together have one.
    pub episode_id: Option<String>,
    /// 0 is greedy.
    pub temperature: f32,
    /// Of the likeliest tokens, so much of the probability.
    pub top_p: f32,
    /// Taken off by occurrences.
    pub frequency_penalty: f32,
    /// Taken off once.
    pub presence_penalty: f32,
    /// As asked for.
    pub seed: Option<u64>,
    /// When it is deleted, seconds since 1970.
    pub expires_at: i64,
    /// How many findings of each kind were taken out before it was kept.
    pub redacted: BTreeMap<String, usize>,
}

/// One answer.
#[derive(Clone, Debug, Serialize)]
pub struct StoredChoice {
    /// From 0.
    pub index: usize,
    /// What the model said, redacted.
    pub message: StoredAnswer,
    /// Always null.
    pub logprobs: Option<()>,
    /// `stop` or `length`.
    pub finish_reason: String,
}

/// The assistant's message.
#[derive(Clone, Debug, Serialize)]
pub struct StoredAnswer {
    /// Always `assistant`.
    pub role: &'static str,
    /// Its text.
    pub content: String,
    /// Always null.
    pub refusal: Option<()>,
}

impl StoredChat {
    /// The card of a completion; `None` when its body cannot be what this program wrote.
    pub fn new(completion: StoredCompletion) -> Option<Self> {
        let body: CompletionBody = serde_json::from_str(&completion.body).ok()?;
        let usage = body.usage;
        let choice = |(index, choice): (usize, crate::feedback::KeptChoice)| StoredChoice {
            index,
            message: StoredAnswer { role: "assistant", content: choice.content, refusal: None },
            logprobs: None,
            finish_reason: choice.finish_reason,
        };
        Some(Self {
            id: completion.id,
            object: "chat.completion",
            created: completion.created_ms / 1000,
            model: completion.model,
            choices: body.choices.into_iter().enumerate().map(choice).collect(),
            usage: Usage::new(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens),
            system_fingerprint: body.fingerprint,
            pleach_generation: completion.generation.map(|digest| digest.to_string()),
            metadata: completion.metadata,
            episode_id: completion.episode,
            temperature: body.sampling.temperature,
            top_p: body.sampling.top_p,
            frequency_penalty: body.sampling.frequency_penalty,
            presence_penalty: body.sampling.presence_penalty,
            seed: body.sampling.seed,
            expires_at: completion.expires_ms / 1000,
            redacted: body.redacted,
        })
    }
}

/// A message that was asked, with its place as its id.
#[derive(Clone, Debug, Serialize)]
pub struct StoredMessage {
    /// The completion's id and the message's place.
    pub id: String,
    /// Its text; null when it came in parts.
    pub content: Value,
    /// The parts it came in.
    pub content_parts: Value,
    /// `role` and the rest.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl StoredMessage {
    /// The card of the message at `index` of the completion `id`.
    pub fn new(id: &str, index: usize, message: Value) -> Self {
        let mut rest = if let Value::Object(fields) = message { fields } else { Map::new() };
        let content = rest.remove("content").unwrap_or(Value::Null);
        let (content, content_parts) =
            if content.is_array() { (Value::Null, content) } else { (content, Value::Null) };
        // Long enough for the most messages of a chat, so that ids are in the order of messages.
        Self { id: format!("{id}-{index:04}"), content, content_parts, rest }
    }
}
