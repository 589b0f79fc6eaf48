//! One choice: the engine's events of one sequence become text, scores and an end.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::Stream;

use pleach_engine::{
    engine::SequenceStream,
    sequence::{FinishReason, SequenceEvent, TokenEvent},
};
use pleach_text::{Detokenizer, StopStrings, Tokenizer};

use super::{
    error::ApiError,
    wire::{chat::StopReason, sampling::Sampling},
};
use crate::{
    telemetry::{Outcome, SequenceClock},
    tenants::SequencePlace,
};

/// When the choices of a request end, and what of it shows. Shared by all of them.
#[derive(Debug)]
pub struct Rules {
    /// Tokens that end a sequence: the model's (unless ignored) and the request's.
    pub stop_tokens: Vec<u32>,
    /// Those of the request.
    stop_token_ids: Vec<u32>,
    stop: Vec<String>,
    include_stop: bool,
    skip_special: bool,
    min_tokens: usize,
    /// `max_tokens` is 0: the one token that the engine chooses is dropped.
    drop_tokens: bool,
}

impl Rules {
    /// The rules of a request.
    pub fn new(sampling: &Sampling, tokenizer: &Tokenizer) -> Self {
        let mut stop_tokens = sampling.stop_token_ids.clone();
        if !sampling.ignore_eos {
            stop_tokens.extend_from_slice(tokenizer.eos_tokens());
        }
        stop_tokens.sort_unstable();
        stop_tokens.dedup();
        Self {
            stop_tokens,
            stop_token_ids: sampling.stop_token_ids.clone(),
            stop: sampling.stop.clone(),
            include_stop: sampling.include_stop,
            skip_special: sampling.skip_special,
            min_tokens: sampling.min_tokens as usize,
            drop_tokens: sampling.max_tokens == Some(0),
        }
    }
}

impl Rules {
    /// End tokens and stop strings end nothing before so many tokens.
    pub fn min_tokens(&self) -> usize {
        self.min_tokens
    }

    /// What turns the tokens of one choice into text, and finds where that ends.
    pub fn follower(&self, tokenizer: &Arc<Tokenizer>) -> (Detokenizer, StopStrings) {
        let stop_strings = StopStrings::new(self.stop.clone()).include_stop(self.include_stop);
        (Detokenizer::new(Arc::clone(tokenizer), self.skip_special), stop_strings)
    }
}

/// An addition to one choice.
#[derive(Clone, Debug, Default)]
pub struct ChoiceDelta {
    /// `prompt_index * n + choice`.
    pub index: usize,
    /// Text. Empty when a token completed no character, is special, or is held back as part of a stop string.
    pub text: String,
    /// The tokens behind it.
    pub tokens: Vec<TokenEvent>,
    /// In the first delta, if asked for: scores of the prompt's tokens from the second on.
    pub prompt_scores: Option<Vec<TokenEvent>>,
    /// In the last delta.
    pub finish: Option<Finish>,
}

impl ChoiceDelta {
    /// Adds what comes after.
    pub fn append(&mut self, next: Self) {
        self.text.push_str(&next.text);
        self.tokens.extend(next.tokens);
        self.prompt_scores = self.prompt_scores.take().or(next.prompt_scores);
        self.finish = next.finish;
    }
}

/// How a choice ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// `stop` or `length`.
    pub reason: &'static str,
    /// The stop string or token of the request.
    pub stop_reason: Option<StopReason>,
    /// Tokens chosen, the end token included.
    pub completion_tokens: usize,
    /// Prompt tokens from the prefix cache.
    pub cached_tokens: usize,
}

/// One choice under way. Dropping it cancels its sequence.
#[derive(Debug)]
pub struct Choice {
    index: usize,
    sequence: SequenceStream,
    clock: SequenceClock,
    place: SequencePlace,
    rules: Arc<Rules>,
    detokenizer: Detokenizer,
    stop_strings: StopStrings,
    cached_tokens: usize,
    completion_tokens: usize,
    prompt_scores: Option<Vec<TokenEvent>>,
    /// An end token that shows only in the last delta.
    end_token: Option<TokenEvent>,
    ended: bool,
}

impl Choice {
    /// Follows a sequence.
    pub fn new(
        index: usize,
        sequence: SequenceStream,
        clock: SequenceClock,
        place: SequencePlace,
        rules: Arc<Rules>,
        tokenizer: &Arc<Tokenizer>,
    ) -> Self {
        let (detokenizer, stop_strings) = rules.follower(tokenizer);
        Self {
            index,
            sequence,
            clock,
            place,
            detokenizer,
            stop_strings,
            rules,
            cached_tokens: 0,
            completion_tokens: 0,
            prompt_scores: None,
            end_token: None,
            ended: false,
        }
    }

    /// What an event adds, if that shows.
    fn take(&mut self, event: Option<SequenceEvent>) -> Option<Result<ChoiceDelta, ApiError>> {
        match event {
            Some(SequenceEvent::Admitted { at, cached_tokens }) => {
                self.clock.admitted(at);
                self.place.admitted();
                self.cached_tokens = cached_tokens;
                None
            }
            Some(SequenceEvent::PromptScores(scores)) => {
                self.prompt_scores = Some(scores);
                None
            }
            Some(SequenceEvent::Token(event)) => self.token(event).map(Ok),
            Some(SequenceEvent::Finished { reason, .. }) => Some(self.finished(reason)),
            Some(SequenceEvent::Failed(detail)) => Some(Err(self.failed(&detail))),
            None => Some(Err(self.failed("the engine has stopped"))),
        }
    }

    fn token(&mut self, event: TokenEvent) -> Option<ChoiceDelta> {
        self.clock.token(event.at);
        if self.rules.drop_tokens {
            return None;
        }
        self.completion_tokens += 1;
        self.place.token();
        if self.rules.stop_tokens.contains(&event.token) && !self.rules.include_stop {
            self.end_token = Some(event);
            return None;
        }
        let piece = self.detokenizer.push(event.token);
        let mut delta = self.delta(String::new());
        delta.tokens.push(event);
        // No stop string ends the choice here, but one that ends it later may begin here, as in vLLM.
        if self.completion_tokens <= self.rules.min_tokens {
            delta.text = self.stop_strings.push_exempt(&piece);
            return Some(delta);
        }
        let step = self.stop_strings.push(&piece);
        delta.text = step.emit;
        if let Some(stop) = step.matched {
            delta.finish =
                Some(self.end("stop", Some(StopReason::Text(self.rules.stop[stop].clone()))));
        }
        Some(delta)
    }

    fn finished(&mut self, reason: FinishReason) -> Result<ChoiceDelta, ApiError> {
        let mut text = String::new();
        let rest = self.detokenizer.finish();
        let mut step = self.stop_strings.push(&rest);
        text.push_str(&step.emit);
        if step.matched.is_none() {
            step = self.stop_strings.finish();
            text.push_str(&step.emit);
        }
        let mut delta = self.delta(text);
        delta.tokens.extend(self.end_token.take());
        let stop_text = step.matched.map(|stop| StopReason::Text(self.rules.stop[stop].clone()));
        delta.finish = Some(match (stop_text, reason) {
            (Some(stop_text), _) => self.end("stop", Some(stop_text)),
            _ if self.rules.drop_tokens && reason != FinishReason::Cancelled => {
                self.end("length", None)
            }
            (None, FinishReason::Stop { token }) => {
                let asked = self.rules.stop_token_ids.contains(&token);
                self.end("stop", asked.then_some(StopReason::Token(token)))
            }
            (None, FinishReason::Length) => self.end("length", None),
            (None, FinishReason::Cancelled) => {
                self.ended = true;
                self.clock.finish(Outcome::Abort);
                return Err(ApiError::ShuttingDown);
            }
        });
        Ok(delta)
    }

    fn failed(&mut self, detail: &str) -> ApiError {
        self.ended = true;
        self.clock.finish(Outcome::Error);
        ApiError::Internal { detail: detail.to_owned() }
    }

    fn delta(&mut self, text: String) -> ChoiceDelta {
        ChoiceDelta {
            index: self.index,
            text,
            prompt_scores: self.prompt_scores.take(),
            ..ChoiceDelta::default()
        }
    }

    fn end(&mut self, reason: &'static str, stop_reason: Option<StopReason>) -> Finish {
        self.ended = true;
        self.clock.finish(if reason == "stop" { Outcome::Stop } else { Outcome::Length });
        Finish {
            reason,
            stop_reason,
            completion_tokens: self.completion_tokens,
            cached_tokens: self.cached_tokens,
        }
    }
}

/// Additions: one for each token and one for the end. `None` after the last, or after an error.
impl Stream for Choice {
    type Item = Result<ChoiceDelta, ApiError>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<ChoiceDelta, ApiError>>> {
        while !self.ended {
            let event = ready!(self.sequence.poll_recv(context));
            let delta = self.take(event);
            if delta.is_some() {
                return Poll::Ready(delta);
            }
        }
        Poll::Ready(None)
    }
}
