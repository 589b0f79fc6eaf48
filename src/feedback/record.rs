//! A completion on its way to the store.

use std::{collections::BTreeMap, sync::Arc};

use pleach_adapters::GenerationDigest;
use pleach_store::{Metadata, Owner, StoredCompletion};
use pleach_trainer::data::Redactor;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::Capture;
use crate::{hex::hex, http::choice::ChoiceDelta};

/// Bytes of a token that was sampled, in memory, about.
const TOKEN_BYTES: usize = 8;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// What is kept of a completion, as JSON. Fields that come later are optional.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionBody {
    /// What was asked, as it came, but redacted.
    pub messages: Vec<Value>,
    /// Variables of the chat template.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub template_variables: Map<String, Value>,
    /// What was answered.
    pub choices: Vec<KeptChoice>,
    /// Token counts.
    pub usage: KeptUsage,
    /// Short digest of the base.
    pub fingerprint: String,
    /// The adapters that were summed, if the request named several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<KeptPart>,
    /// How tokens were chosen.
    pub sampling: KeptSampling,
    /// How many findings of each kind were taken out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub redacted: BTreeMap<String, usize>,
}

/// One answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KeptChoice {
    /// What the model said, redacted.
    pub content: String,
    /// `stop` or `length`.
    pub finish_reason: String,
    /// The tokens that were sampled, the end token included. Empty where something was taken out of `content`, which they
    /// would tell.
    #[serde(default)]
    pub tokens: Vec<u32>,
    /// The model's log-probability of each of `tokens`, before temperature and filters.
    #[serde(default)]
    pub logprobs: Vec<f32>,
}

/// Token counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptUsage {
    /// Of the prompt.
    pub prompt_tokens: usize,
    /// Of them, those that were cached.
    pub cached_tokens: usize,
    /// Of all choices.
    pub completion_tokens: usize,
}

/// An adapter of a sum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptPart {
    /// Its name.
    pub name: String,
    /// Its generation.
    pub generation: String,
    /// What its own scale was multiplied by.
    pub scale: f32,
}

/// How tokens were chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptSampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Of the likeliest tokens, so much of the probability.
    pub top_p: f32,
    /// Of the likeliest tokens, so many; 0 is all.
    pub top_k: u32,
    /// Of the likeliest token's probability, at least so much.
    pub min_p: f32,
    /// By which logits of tokens that occurred are divided.
    pub repetition_penalty: f32,
    /// Taken off by occurrences.
    pub frequency_penalty: f32,
    /// Taken off once.
    pub presence_penalty: f32,
    /// As asked for.
    pub seed: Option<u64>,
    /// As asked for.
    pub max_tokens: Option<u32>,
}

/// A completion that is to be kept.
#[derive(Clone, Debug)]
pub struct Record {
    /// Whose it is.
    pub owner: Owner,
    /// As the response has it.
    pub id: String,
    /// The adapter's name, without the base before it; else what the request called the base.
    pub model: String,
    /// What it runs on; `None` is the plain base.
    pub generation: Option<GenerationDigest>,
    /// Completions that belong together have one.
    pub episode: Option<String>,
    /// [`user_digest`] of the end user.
    pub user_sha256: Option<String>,
    /// Pairs of the client's.
    pub metadata: Metadata,
    /// When it was asked for, Unix ms.
    pub created_ms: i64,
    /// Days for which it is kept.
    pub keep_days: u32,
    /// Bytes of the request, about what it takes in memory.
    pub n_bytes: usize,
    /// What is kept.
    pub body: CompletionBody,
}

impl Record {
    /// About what it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        let choice = |choice: &KeptChoice| choice.content.len() + TOKEN_BYTES * choice.tokens.len();
        self.n_bytes + self.body.choices.iter().map(choice).sum::<usize>()
    }

    /// Takes personal data and secrets out.
    pub(super) fn redact(&mut self, redactor: &Redactor) {
        let mut redaction = redactor.conversation();
        let body = &mut self.body;
        body.messages.iter_mut().for_each(|message| redaction.redact_json(message));
        for value in body.template_variables.values_mut() {
            redaction.redact_json(value);
        }
        for choice in &mut body.choices {
            let redacted = redaction.redact(&choice.content).into_owned();
            if redacted != choice.content {
                choice.content = redacted;
                choice.tokens.clear();
                choice.logprobs.clear();
            }
        }
        let counts = redaction.counts().iter();
        body.redacted = counts.map(|(kind, n)| (kind.to_string(), *n)).collect();
    }

    /// As the store has it.
    ///
    /// # Errors
    /// When a number in a message has no JSON form.
    pub(super) fn into_stored(self) -> serde_json::Result<(Owner, StoredCompletion)> {
        let expires_ms = self.created_ms.saturating_add(i64::from(self.keep_days) * DAY_MS);
        let completion = StoredCompletion {
            id: self.id,
            model: self.model,
            generation: self.generation.map(|digest| pleach_store::GenerationDigest(digest.0)),
            episode: self.episode,
            user_sha256: self.user_sha256,
            metadata: self.metadata,
            body: serde_json::to_string(&self.body)?,
            created_ms: self.created_ms,
            expires_ms,
        };
        Ok((self.owner, completion))
    }
}

/// Listens to the choices of a completion and hands it over when the last has ended. Dropped before that, nothing is
/// kept.
#[derive(Debug)]
pub struct Recorder {
    capture: Arc<Capture>,
    /// `None` once it was handed over.
    record: Option<Box<Record>>,
    /// Choices that have not ended.
    n_open: usize,
}

impl Recorder {
    /// Begins to listen to `n` choices.
    pub fn new(capture: Arc<Capture>, mut record: Record, n: usize) -> Self {
        record.body.choices = vec![KeptChoice::default(); n];
        Self { capture, record: Some(Box::new(record)), n_open: n }
    }

    /// Takes an addition to a choice, or a whole one.
    pub fn add(&mut self, delta: &ChoiceDelta) {
        let Some(record) = &mut self.record else { return };
        let Some(choice) = record.body.choices.get_mut(delta.index) else { return };
        choice.content.push_str(&delta.text);
        choice.tokens.extend(delta.tokens.iter().map(|event| event.token));
        choice.logprobs.extend(delta.tokens.iter().map(|event| event.logprob));
        let Some(finish) = &delta.finish else { return };
        finish.reason.clone_into(&mut choice.finish_reason);
        record.body.usage.completion_tokens += finish.completion_tokens;
        if delta.index == 0 {
            record.body.usage.cached_tokens = finish.cached_tokens;
        }
        self.n_open = self.n_open.saturating_sub(1);
        if self.n_open == 0
            && let Some(record) = self.record.take()
        {
            self.capture.offer(*record);
        }
    }
}

/// By what an end user is known: SHA-256 of the owner and the name, 64 hex digits. Equal names of two owners are two users.
pub fn user_digest(owner: &Owner, user: &str) -> String {
    let hash = Sha256::new().chain_update(owner.as_str()).chain_update([0]).chain_update(user);
    hex(&hash.finalize())
}
