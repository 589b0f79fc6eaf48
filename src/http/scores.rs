//! From token events to the log-probability shapes of the wire.

use std::collections::BTreeMap;

use pleach_engine::sequence::TokenEvent;
use pleach_text::Tokenizer;

use super::wire::logprobs::{
    ChatLogprobs, ChatTokenLogprob, CompletionLogprobs, PromptLogprob, PromptTokenLogprob,
    TopLogprob, TopTokens,
};

/// What stands for minus infinity, which JSON cannot say (`OpenAI`'s and vLLM's convention).
const LOGPROB_MIN: f32 = -9999.0;

/// Scores of chat tokens.
pub fn chat(tokenizer: &Tokenizer, tokens: &[TokenEvent]) -> ChatLogprobs {
    let content = tokens
        .iter()
        .map(|event| {
            let (token, bytes) = spelled(tokenizer, event.token, "");
            ChatTokenLogprob {
                token,
                logprob: finite(event.logprob),
                bytes,
                top_logprobs: event
                    .top
                    .iter()
                    .map(|&(id, logprob)| {
                        let (token, bytes) = spelled(tokenizer, id, "");
                        TopLogprob { token, logprob: finite(logprob), bytes }
                    })
                    .collect(),
            }
        })
        .collect();
    ChatLogprobs { content, refusal: None }
}

/// Collects the scores of a plain completion, and where in its text each token begins.
#[derive(Clone, Copy, Debug)]
pub struct CompletionScores {
    /// Characters of text so far.
    offset: usize,
    skip_special: bool,
}

impl CompletionScores {
    /// Starts at the beginning of the text. With `skip_special`, special tokens are not in the completion's text.
    pub fn new(skip_special: bool) -> Self {
        Self { offset: 0, skip_special }
    }

    /// Adds an echoed prompt. `scores` are those of `prompt[1..]`.
    pub fn prompt(
        &mut self,
        out: &mut CompletionLogprobs,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        scores: &[TokenEvent],
    ) {
        if let Some(&first) = prompt.first() {
            out.tokens.push(spelled(tokenizer, first, "bytes:").0);
            out.token_logprobs.push(None);
            out.top_logprobs.push(None);
            out.text_offset.push(self.offset);
            self.offset += characters(tokenizer.token_bytes(first));
        }
        for event in scores {
            self.token(out, tokenizer, event, false);
        }
    }

    /// Adds completion tokens.
    pub fn tokens(
        &mut self,
        out: &mut CompletionLogprobs,
        tokenizer: &Tokenizer,
        tokens: &[TokenEvent],
    ) {
        for event in tokens {
            self.token(out, tokenizer, event, self.skip_special);
        }
    }

    fn token(
        &mut self,
        out: &mut CompletionLogprobs,
        tokenizer: &Tokenizer,
        event: &TokenEvent,
        skip_special: bool,
    ) {
        let (text, bytes) = spelled(tokenizer, event.token, "bytes:");
        let mut top = TopTokens::default();
        for &(id, logprob) in &event.top {
            top.add(spelled(tokenizer, id, "bytes:").0, finite(logprob));
        }
        // The chosen token is always there.
        top.add(text.clone(), finite(event.logprob));
        out.tokens.push(text);
        out.token_logprobs.push(Some(finite(event.logprob)));
        out.top_logprobs.push(Some(top));
        out.text_offset.push(self.offset);
        if !(skip_special && tokenizer.is_special(event.token)) {
            self.offset += characters(&bytes);
        }
    }
}

/// vLLM's `prompt_logprobs`: null for the first token.
pub fn prompt(tokenizer: &Tokenizer, scores: &[TokenEvent]) -> Vec<PromptLogprob> {
    let of_tokens = scores.iter().map(|event| {
        let entry = |id, logprob, rank| {
            let (decoded_token, _) = spelled(tokenizer, id, "");
            (id, PromptTokenLogprob { logprob: finite(logprob), rank, decoded_token })
        };
        let top = event
            .top
            .iter()
            .enumerate()
            .map(|(place, &(id, logprob))| entry(id, logprob, Some(place + 1)));
        let mut tokens: BTreeMap<_, _> = top.collect();
        let (id, chosen) = entry(event.token, event.logprob, None);
        tokens.entry(id).or_insert(chosen);
        Some(tokens)
    });
    std::iter::once(None).chain(of_tokens).collect()
}

/// A token's text and bytes. Bytes that are no UTF-8 alone are written as `\xNN` after `prefix`.
fn spelled(tokenizer: &Tokenizer, id: u32, prefix: &str) -> (String, Vec<u8>) {
    use std::fmt::Write as _;

    let bytes = tokenizer.token_bytes(id).to_vec();
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold(prefix.to_owned(), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
            text
        }),
    };
    (text, bytes)
}

/// Characters that begin in these bytes: all bytes but UTF-8's continuations.
fn characters(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte & 0xc0 != 0x80).count()
}

fn finite(logprob: f32) -> f32 {
    logprob.max(LOGPROB_MIN)
}
