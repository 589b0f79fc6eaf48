//! Shadows: requests that the current generation has answered as always, run on a candidate once more, for nobody to see.
//!
//! They wait behind everybody, a few run at a time, and what finds no room is dropped and counted. They are of no tenant's
//! limits, appear in no measurement of what is served, and nothing that they say is kept: only how long it took, how long it
//! is, and whether it refuses.

use std::sync::{Arc, Mutex, PoisonError};

use pleach_engine::{
    engine::{SequenceStream, SubmitError},
    sampler::SamplingParams,
    sequence::{FinishReason, SequenceEvent, SequenceRequest},
};
use tokio::sync::{Semaphore, mpsc};

use super::{
    refusals::{LOOKED_AT, is_refusal},
    rollouts::OnTrial,
    token_times::TokenTimes,
    trial::RequestEnd,
    wake::Wake,
};
use crate::{
    http::{choice::Rules, state::AppState},
    tenants::BACKGROUND,
};

/// Shadows that wait; one more is dropped.
const WAITING_MAX: usize = 64;
/// Shadows that run at a time: each takes a place of a step.
const RUNNING_MAX: usize = 2;

/// A request to be run once more.
#[derive(Debug)]
pub struct Shadow {
    /// The trial that it is for.
    pub on_trial: Arc<OnTrial>,
    /// Token ids.
    pub prompt: Vec<u32>,
    /// As the request's first choice has it.
    pub sampling: Arc<SamplingParams>,
    /// Where its text ends.
    pub rules: Arc<Rules>,
    /// Most tokens.
    pub max_tokens: usize,
    /// Of the candidate and of whose request it is.
    pub kv_key: [u8; 32],
}

/// The line of shadows.
#[derive(Debug)]
pub struct Shadows {
    line: mpsc::Sender<Shadow>,
    /// Until somebody runs them.
    waiting: Mutex<Option<mpsc::Receiver<Shadow>>>,
    wake: Arc<Wake>,
}

impl Shadows {
    /// An empty line.
    pub fn new(wake: Arc<Wake>) -> Self {
        let (line, waiting) = mpsc::channel(WAITING_MAX);
        Self { line, waiting: Mutex::new(Some(waiting)), wake }
    }

    /// Takes in a shadow, or drops and counts it. Never waits.
    pub fn offer(&self, shadow: Shadow) {
        if let Err(
            mpsc::error::TrySendError::Full(shadow) | mpsc::error::TrySendError::Closed(shadow),
        ) = self.line.try_send(shadow)
        {
            shadow.on_trial.shadow_dropped();
        }
    }

    fn take(&self) -> Option<mpsc::Receiver<Shadow>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Runs shadows until the server stops. Another call does nothing.
pub(super) async fn run_shadows(state: Arc<AppState>) {
    let Some(mut waiting) = state.learning.shadows.take() else { return };
    let places = Arc::new(Semaphore::new(RUNNING_MAX));
    while let Some(shadow) = waiting.recv().await {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        if !state.is_serving() {
            return;
        }
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let _place = place;
            run(&state, shadow).await;
        });
    }
}

async fn run(state: &AppState, shadow: Shadow) {
    let Shadow { on_trial, prompt, sampling, rules, max_tokens, kv_key } = shadow;
    if !on_trial.wants_shadows() {
        return;
    }
    let in_use = match state.adapters.lease_generation(&on_trial.candidate).await {
        Ok(in_use) => in_use,
        Err(error) => {
            tracing::warn!(round = on_trial.round, %error, "a candidate cannot be had for a shadow");
            return tell(state, &on_trial, None);
        }
    };
    let (stop_tokens, adapter) = (rules.stop_tokens.clone(), in_use.engine_lease().clone());
    let submitted = state.engine.submit(SequenceRequest {
        prompt,
        adapter: Some(adapter),
        kv_key,
        flow: BACKGROUND,
        sampling,
        max_tokens,
        min_tokens: rules.min_tokens(),
        stop_tokens,
        prompt_logprobs: None,
    });
    match submitted {
        Ok(sequence) => {
            if let Some(end) = follow(state, sequence, &rules).await {
                tell(state, &on_trial, end);
            }
        }
        // Clients need the room.
        Err(SubmitError::QueueFull { .. } | SubmitError::ShuttingDown) => on_trial.shadow_dropped(),
        Err(error) => {
            tracing::warn!(round = on_trial.round, %error, "a shadow cannot run");
            tell(state, &on_trial, None);
        }
    }
}

/// What became of a shadow; `Some(None)` if it failed, `None` if the engine stops.
async fn follow(
    state: &AppState,
    mut sequence: SequenceStream,
    rules: &Rules,
) -> Option<Option<RequestEnd>> {
    let (mut text, mut stop_strings) = rules.follower(&state.base.tokenizer);
    let (mut times, mut beginning) = (TokenTimes::default(), String::new());
    let mut end = RequestEnd { answers: 1, ..RequestEnd::default() };
    let mut note = |piece: &str| {
        let n_missing = LOOKED_AT.saturating_sub(beginning.chars().count());
        beginning.extend(piece.chars().take(n_missing));
        is_refusal(&beginning)
    };
    let mut refuses = false;
    while let Some(event) = sequence.recv().await {
        match event {
            SequenceEvent::Admitted { .. } | SequenceEvent::PromptScores(_) => {}
            SequenceEvent::Failed(_) => return Some(None),
            SequenceEvent::Finished { reason: FinishReason::Cancelled, .. } => return None,
            SequenceEvent::Finished { .. } => break,
            SequenceEvent::Token(event) => {
                end.tokens += 1;
                times.token(event.at);
                if rules.stop_tokens.contains(&event.token) {
                    continue;
                }
                let piece = text.push(event.token);
                if end.tokens <= rules.min_tokens() as u64 {
                    refuses = note(&stop_strings.push_exempt(&piece));
                    continue;
                }
                let step = stop_strings.push(&piece);
                refuses = note(&step.emit);
                if step.matched.is_some() {
                    break;
                }
            }
        }
    }
    if end.tokens == 0 {
        return None;
    }
    end.refusals = u64::from(refuses);
    end.between_tokens = times.between();
    Some(Some(end))
}

fn tell(state: &AppState, on_trial: &OnTrial, end: Option<RequestEnd>) {
    let end = end.unwrap_or(RequestEnd { failed: true, ..RequestEnd::default() });
    if on_trial.shadow_ended(end) {
        state.learning.shadows.wake.all();
    }
}
