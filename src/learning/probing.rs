//! Asking questions of two generations by the engine that serves, one answer at a time and in turns, so that what else the
//! machine does is the same for both.

use std::{sync::Arc, time::Duration};

use pleach_adapters::{Generation, base_kv_key};
use pleach_engine::{
    sampler::SamplingParams,
    sequence::{FlowId, SequenceEvent, SequenceRequest},
};
use pleach_text::{ChatTemplate, Detokenizer, RenderOptions, Tokenizer};
use pleach_trainer::gate::ProbeAnswer;
use serde_json::json;

use super::{
    examiner::{Exam, ExamError},
    refusals::is_refusal,
};
use crate::{adapter_service::AdapterInUse, http::state::AppState};

/// Longest answer.
const ANSWER_TOKENS_MAX: usize = 96;
const PROBE_FAILED: &str = "probe_failed";
/// How often a busy engine is asked again, and how long between.
const ATTEMPTS: usize = 600;
const REST: Duration = Duration::from_millis(200);

/// An answer to a question.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub(super) prompt: Vec<u32>,
    pub(super) tokens: Vec<u32>,
    text: String,
    /// Times between tokens, seconds.
    intervals: Vec<f64>,
}

impl Answer {
    pub(super) fn evidence(&self) -> ProbeAnswer {
        ProbeAnswer { n_tokens: self.tokens.len(), is_refusal: is_refusal(&self.text) }
    }
}

/// The 95th percentile of the times between tokens. Not of whole answers: those are as long as they are.
pub(super) fn p95<'a>(answers: impl Iterator<Item = &'a Answer>) -> f64 {
    let mut intervals: Vec<f64> =
        answers.flat_map(|answer| answer.intervals.iter().copied()).collect();
    intervals.sort_unstable_by(f64::total_cmp);
    let place = (intervals.len() * 95).div_ceil(100).saturating_sub(1);
    intervals.get(place).copied().unwrap_or(f64::NAN)
}

/// Asks all questions; of each pair the first answer is the candidate's.
pub(super) async fn ask(
    state: &AppState,
    tokenizer: &Arc<Tokenizer>,
    template: Option<&ChatTemplate>,
    exam: &Exam,
) -> Result<Vec<[Answer; 2]>, ExamError> {
    let candidate = lease(state, &exam.candidate).await?;
    let current = match &exam.current {
        Some(generation) => Some(lease(state, generation).await?),
        None => None,
    };
    let of_candidate = Side { in_use: Some(&candidate), generation: Some(&exam.candidate) };
    let of_current = Side { in_use: current.as_ref(), generation: exam.current.as_ref() };
    let mut answers = Vec::new();
    for (index, probe) in exam.probes.iter().enumerate() {
        let prompt = render(tokenizer, template, probe)?;
        let seed = exam.seed.wrapping_add(index as u64);
        let one = match answer(state, tokenizer, &of_candidate, &prompt, seed, exam).await {
            // Weights that leave no token to choose are something to judge, too: no answer passes nothing.
            Err(ExamError::Failed(error)) if error.code == PROBE_FAILED => {
                Answer { prompt: prompt.clone(), ..Answer::default() }
            }
            one => one?,
        };
        let other = answer(state, tokenizer, &of_current, &prompt, seed, exam).await?;
        answers.push([one, other]);
    }
    Ok(answers)
}

/// What a question is asked of.
struct Side<'a> {
    in_use: Option<&'a AdapterInUse>,
    generation: Option<&'a Arc<Generation>>,
}

async fn lease(state: &AppState, generation: &Arc<Generation>) -> Result<AdapterInUse, ExamError> {
    let leased = state.adapters.lease_generation(generation).await;
    leased.map_err(|error| ExamError::failed("adapter_unavailable", error))
}

fn render(
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    probe: &str,
) -> Result<Vec<u32>, ExamError> {
    let Some(template) = template else { return Ok(tokenizer.encode(probe, true)) };
    let messages = [json!({"role": "user", "content": probe})];
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let text = template.render(&messages, &options);
    let text = text.map_err(|error| ExamError::failed("template_error", error))?;
    Ok(tokenizer.encode(&text, true))
}

async fn answer(
    state: &AppState,
    tokenizer: &Arc<Tokenizer>,
    side: &Side<'_>,
    prompt: &[u32],
    seed: u64,
    exam: &Exam,
) -> Result<Answer, ExamError> {
    let salt = format!("examination of {}", exam.round);
    let kv_key = match side.generation {
        Some(generation) => generation.digest.kv_key(salt.as_bytes()),
        None => base_kv_key(salt.as_bytes()),
    };
    let room = state.engine.spec().context.saturating_sub(prompt.len()).max(1);
    // Nothing but the model's own distribution, or the divergence would be another's.
    let sampling = SamplingParams { temperature: 1.0, seed, ..SamplingParams::default() };
    let request = SequenceRequest {
        prompt: prompt.to_vec(),
        adapter: side.in_use.map(|in_use| in_use.engine_lease().clone()),
        kv_key,
        sampling: Arc::new(sampling),
        max_tokens: room.min(ANSWER_TOKENS_MAX),
        min_tokens: 0,
        stop_tokens: tokenizer.eos_tokens().to_vec(),
        prompt_logprobs: None,
        flow: FlowId::default(),
    };
    for _ in 0..ATTEMPTS {
        if exam.stop.is_set() || !state.is_serving() {
            return Err(ExamError::Interrupted);
        }
        match state.engine.submit(request.clone()) {
            Ok(stream) => return follow(stream, tokenizer, prompt).await,
            // Clients come first.
            Err(pleach_engine::engine::SubmitError::QueueFull { .. }) => {
                tokio::time::sleep(REST).await;
            }
            Err(error) => return Err(ExamError::failed(PROBE_FAILED, error)),
        }
    }
    Err(ExamError::Interrupted)
}

async fn follow(
    mut stream: pleach_engine::engine::SequenceStream,
    tokenizer: &Arc<Tokenizer>,
    prompt: &[u32],
) -> Result<Answer, ExamError> {
    let mut answer = Answer { prompt: prompt.to_vec(), ..Answer::default() };
    let mut text = Detokenizer::new(Arc::clone(tokenizer), true);
    let mut last = None;
    while let Some(event) = stream.recv().await {
        match event {
            SequenceEvent::Token(event) => {
                answer.text.push_str(&text.push(event.token));
                answer.tokens.push(event.token);
                if let Some(last) = last.replace(event.at) {
                    answer.intervals.push(event.at.saturating_duration_since(last).as_secs_f64());
                }
            }
            SequenceEvent::Failed(error) => return Err(ExamError::failed(PROBE_FAILED, error)),
            SequenceEvent::Admitted { .. }
            | SequenceEvent::PromptScores(_)
            | SequenceEvent::Finished { .. } => {}
        }
    }
    answer.text.push_str(&text.finish());
    if answer.tokens.is_empty() {
        return Err(ExamError::Interrupted);
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_is_over_all_tokens() {
        let answer = |intervals: Vec<f64>| Answer { intervals, ..Answer::default() };
        let one = answer((1..=50).map(f64::from).collect());
        let other = answer((51..=100).map(f64::from).collect());
        assert!((p95([&one, &other].into_iter()) - 95.0).abs() < 1e-9);
        assert!(p95([&answer(vec![])].into_iter()).is_nan());
    }
}
