//! Answers of the model in training, given by the engine that serves: with its weights as they are between two steps, which
//! have no name and no files, behind everybody who waits, and beside requests only a few at a time.
//!
//! The engine tells the log-probability of every token that it chose. Its own kernels chose it, so that is what importance
//! weights are relative to, not what the learner makes of the same tokens.

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use pleach_engine::{
    engine::{EngineHandle, SequenceStream, SubmitError},
    sampler::{SamplingParams, philox4x32},
    sequence::{FinishReason, SequenceEvent, SequenceRequest},
};
use pleach_text::{Detokenizer, Tokenizer};
use pleach_trainer::{Sample, Targeted};
use tokio::time::{interval, sleep};

use super::run::RunError;
use crate::{adapter_service::AdapterInUse, tenants::BACKGROUND};

/// While there are requests, so many places of a step in a hundred are taken at most.
const PLACES_PERCENT_BESIDE: usize = 25;
/// How often it is looked whether to go on.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a full queue is left alone.
const REST: Duration = Duration::from_millis(100);

/// A prompt to be answered once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    /// Token ids.
    pub(super) prompt: &'a [u32],
    /// Of what is drawn.
    pub(super) seed: u64,
}

/// The seed of an answer: another for every place in a training, the same after a restart.
pub(super) fn seed_of(training: u64, step: u64, prompt: usize, answer: u32) -> u64 {
    let halves = |word: u64| {
        let bytes = word.to_le_bytes();
        let (halves, _) = bytes.as_chunks::<4>();
        [u32::from_le_bytes(halves[0]), u32::from_le_bytes(halves[1])]
    };
    let [step_low, step_high] = halves(step);
    let prompt = u32::try_from(prompt).unwrap_or(u32::MAX);
    let words = philox4x32([step_low, step_high, prompt, answer], halves(training));
    u64::from(words[0]) << 32 | u64::from(words[1])
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answer {
    /// As text, without what ends it.
    pub(super) text: String,
    /// Token ids, what ended it included; at least one.
    pub(super) tokens: Vec<u32>,
    /// Of each, when it was chosen.
    pub(super) logps: Vec<f32>,
    /// There was no room for more.
    pub(super) is_cut: bool,
}

impl Answer {
    /// What is learned from it.
    pub(super) fn sample(&self, prompt: &[u32], advantage: f32) -> Sample {
        let tokens: Vec<u32> = prompt.iter().chain(&self.tokens).copied().collect();
        let answer = Targeted::new(&tokens, (0..tokens.len()).map(|at| at >= prompt.len()));
        Sample::Rollout { answer, sampled_logps: self.logps.as_slice().into(), advantage }
    }
}

/// Gives answers with one set of weights.
#[derive(Debug)]
pub(super) struct Sampler {
    pub(super) engine: EngineHandle,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) in_use: AdapterInUse,
    /// Longest answer, tokens.
    pub(super) max_tokens: usize,
}

impl Sampler {
    /// All answers, in order, unless `must_stop`, which is asked now and then, says so: then `None`.
    ///
    /// # Errors
    /// When the engine cannot answer.
    pub(super) async fn answers(
        &self,
        asks: &[Ask<'_>],
        mut must_stop: impl AsyncFnMut() -> Result<bool, RunError>,
    ) -> Result<Option<Vec<Answer>>, RunError> {
        let mut answers = vec![Answer::default(); asks.len()];
        let mut left = asks.iter().enumerate();
        let mut next = left.next();
        let mut running = FuturesUnordered::new();
        let mut looks = interval(LOOK_EVERY);
        loop {
            let mut is_full = false;
            while let Some((index, ask)) = next {
                if running.len() >= self.places(running.len()) {
                    break;
                }
                match self.engine.submit(self.request(ask)) {
                    Ok(stream) => {
                        let answer = follow(stream, &self.tokenizer);
                        running.push(async move { (index, answer.await) });
                        next = left.next();
                    }
                    Err(SubmitError::QueueFull { .. }) => {
                        is_full = true;
                        break;
                    }
                    Err(SubmitError::ShuttingDown) => return Ok(None),
                    Err(error) => return Err(RunError::server(error)),
                }
            }
            if running.is_empty() && next.is_none() {
                return Ok(Some(answers));
            }
            let rest = pin!(sleep(REST));
            tokio::select! {
                Some((index, answer)) = running.next(), if !running.is_empty() => {
                    let Some(answer) = answer? else { return Ok(None) };
                    answers[index] = answer;
                }
                () = rest, if is_full || running.is_empty() => {}
                _ = looks.tick() => if must_stop().await? {
                    return Ok(None);
                },
            }
        }
    }

    /// How many answers may be under way, of which there are `n_own`.
    fn places(&self, n_own: usize) -> usize {
        let (stats, places) = (self.engine.stats(), self.engine.limits().max_batch);
        let is_alone = stats.running + stats.waiting <= n_own;
        if is_alone { places } else { (places * PLACES_PERCENT_BESIDE / 100).max(1) }
    }

    fn request(&self, ask: &Ask<'_>) -> SequenceRequest {
        // Nothing but the model's own distribution: anything else would be another policy's.
        let sampling = SamplingParams {
            temperature: 1.0,
            seed: ask.seed,
            logprobs: Some(0),
            ..SamplingParams::default()
        };
        let room = self.engine.spec().context.saturating_sub(ask.prompt.len()).max(1);
        SequenceRequest {
            prompt: ask.prompt.to_vec(),
            adapter: Some(self.in_use.engine_lease().clone()),
            kv_key: self.in_use.digest().kv_key(b"training"),
            sampling: Arc::new(sampling),
            max_tokens: self.max_tokens.min(room),
            min_tokens: 0,
            stop_tokens: self.tokenizer.eos_tokens().to_vec(),
            prompt_logprobs: None,
            flow: BACKGROUND,
        }
    }
}

/// The answer, or nothing if the engine stops.
async fn follow(
    mut stream: SequenceStream,
    tokenizer: &Arc<Tokenizer>,
) -> Result<Option<Answer>, RunError> {
    let mut answer = Answer::default();
    let mut text = Detokenizer::new(Arc::clone(tokenizer), true);
    let mut is_finished = false;
    while let Some(event) = stream.recv().await {
        match event {
            SequenceEvent::Token(event) => {
                answer.text.push_str(&text.push(event.token));
                answer.tokens.push(event.token);
                answer.logps.push(event.logprob);
            }
            SequenceEvent::Finished { reason, .. } => {
                answer.is_cut = reason == FinishReason::Length;
                is_finished = reason != FinishReason::Cancelled;
            }
            SequenceEvent::Failed(error) => {
                return Err(RunError::server(format!("an answer cannot be sampled: {error}")));
            }
            SequenceEvent::Admitted { .. } | SequenceEvent::PromptScores(_) => {}
        }
    }
    answer.text.push_str(&text.finish());
    Ok((is_finished && !answer.tokens.is_empty()).then_some(answer))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_answer_has_a_seed_of_its_own_and_the_same_again() {
        let all = || {
            let places = (0..3u64).flat_map(|step| (0..3usize).map(move |prompt| (step, prompt)));
            let places = places.flat_map(|(step, prompt)| (0..3).map(move |n| (step, prompt, n)));
            places.map(|(step, prompt, n)| seed_of(7, step, prompt, n)).collect::<BTreeSet<_>>()
        };
        assert_eq!(all().len(), 27);
        assert_eq!(all(), all());
        assert_ne!(seed_of(7, 1, 1, 1), seed_of(8, 1, 1, 1));
    }

    #[test]
    fn what_was_chosen_is_learned_and_the_prompt_is_not() {
        let answer = Answer { tokens: vec![5, 6], logps: vec![-0.5, -2.0], ..Answer::default() };
        let Sample::Rollout { answer, sampled_logps, advantage } = answer.sample(&[1, 2, 3], 0.5)
        else {
            panic!("it is one");
        };
        assert_eq!(
            (&*answer.tokens, answer.mask()),
            (&[1, 2, 3, 5, 6][..], vec![false, false, false, true, true])
        );
        assert_eq!((&*sampled_logps, advantage), (&[-0.5, -2.0][..], 0.5));
    }
}
