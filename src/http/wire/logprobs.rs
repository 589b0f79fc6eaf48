//! Log-probabilities, in the three shapes that clients know.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

/// `choices[].logprobs` of a chat completion.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ChatLogprobs {
    /// One entry per completion token, the end token included.
    pub content: Vec<ChatTokenLogprob>,
    /// Always null: refusals are not told apart.
    pub refusal: Option<()>,
}

/// One chosen token.
#[derive(Clone, Debug, Serialize)]
pub struct ChatTokenLogprob {
    /// Its text; bytes that are no UTF-8 are written as `\xNN`.
    pub token: String,
    /// Natural logarithm of its probability under the unmodified distribution.
    pub logprob: f32,
    /// Its bytes: joined over tokens they are the exact text.
    pub bytes: Vec<u8>,
    /// The likeliest tokens.
    pub top_logprobs: Vec<TopLogprob>,
}

/// One of the likeliest tokens.
#[derive(Clone, Debug, Serialize)]
pub struct TopLogprob {
    /// Its text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// `choices[].logprobs` of a plain completion: parallel lists.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CompletionLogprobs {
    /// Text of each token; one that is no UTF-8 alone is written `bytes:\xNN`.
    pub tokens: Vec<String>,
    /// Log-probability of each; null for the first token of an echoed prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// The likeliest tokens at each place, and the chosen one.
    pub top_logprobs: Vec<Option<TopTokens>>,
    /// Characters of text before each token.
    pub text_offset: Vec<usize>,
}

/// Tokens and their log-probabilities: an object on the wire, likeliest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopTokens(Vec<(String, f32)>);

impl TopTokens {
    /// Adds a token, unless one that is spelled alike is there: the likeliest comes first and stands for them.
    pub fn add(&mut self, token: String, logprob: f32) {
        if self.0.iter().all(|(other, _)| *other != token) {
            self.0.push((token, logprob));
        }
    }
}

impl Serialize for TopTokens {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, logprob)| (token, logprob)))
    }
}

/// One entry of `prompt_logprobs`, vLLM's extension: from token id to its score; null for the first token.
pub type PromptLogprob = Option<BTreeMap<u32, PromptTokenLogprob>>;

/// A scored token of the prompt.
#[derive(Clone, Debug, Serialize)]
pub struct PromptTokenLogprob {
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// 1 for the likeliest; null when it is not among those that were asked for.
    pub rank: Option<usize>,
    /// Its text.
    pub decoded_token: String,
}
