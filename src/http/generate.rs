//! Runs the choices of one request. Chat and plain completions, streamed or not, all read the same [`Running`].

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use futures_util::{StreamExt, stream::SelectAll};
use pleach_adapters::Tier;
use pleach_engine::{sampler::SamplingParams, sequence::SequenceRequest};

use super::{
    choice::{Choice, ChoiceDelta, Rules},
    error::ApiError,
    ids,
    state::{AppState, Model, kv_key_of},
    wire::{sampling::Sampling, usage::Usage},
};
use crate::{
    adapter_service::{AdapterInUse, PinnedAdapter},
    learning::{
        rollouts::{Current, Ticket},
        shadows::Shadow,
    },
    tenants::{Admission, Line},
};

/// Most choices of one request, over all its prompts.
pub const CHOICES_MAX: usize = 512;
/// Completion tokens that are set aside of a tenant's limit for a choice that may go on to the end of the context. What it
/// takes beyond is counted when it ends, and the limit may then be owed.
const COMPLETION_RESERVED: usize = 256;

/// What a request asks of the engine.
#[derive(Debug)]
pub struct Job {
    /// On what to run.
    pub model: Model,
    /// Tokens of each prompt.
    pub prompts: Vec<Vec<u32>>,
    /// Each prompt gets `sampling.n` choices.
    pub sampling: Sampling,
    /// Report log-probabilities of completion tokens, with this many likeliest tokens.
    pub logprobs: Option<u32>,
    /// Score the prompt's tokens, with this many likeliest tokens.
    pub prompt_logprobs: Option<u32>,
    /// When the request came.
    pub arrived: Instant,
    /// The field that the prompt came in.
    pub param: &'static str,
}

/// The choices of one request, under way. Dropping it cancels them before the next step.
#[derive(Debug)]
pub struct Running {
    choices: Choices,
    /// After the choices: it is given back when their sequences have been told to end.
    _adapter: Option<AdapterInUse>,
    /// Last: what the choices have used is known by then.
    _admission: Admission,
    ticket: Option<Ticket>,
    n: usize,
    prompt_tokens: usize,
    cached_tokens: usize,
    completion_tokens: usize,
}

/// The choices that have not ended.
#[derive(Debug)]
enum Choices {
    /// The usual case, without what it takes to tell which of many is ready.
    One(Option<Box<Choice>>),
    Many(SelectAll<Choice>),
}

impl Choices {
    fn new(mut choices: Vec<Choice>) -> Self {
        if choices.len() > 1 {
            return Self::Many(choices.into_iter().collect());
        }
        Self::One(choices.pop().map(Box::new))
    }

    fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<ChoiceDelta, ApiError>>> {
        match self {
            Self::Many(choices) => choices.poll_next_unpin(context),
            Self::One(None) => Poll::Ready(None),
            Self::One(Some(choice)) => {
                let delta = ready!(choice.poll_next_unpin(context));
                if delta.is_none() {
                    *self = Self::One(None);
                }
                Poll::Ready(delta)
            }
        }
    }
}

/// Waits for the request's turn and its adapter, then queues every choice, or none. Dropping the future takes the request
/// back, with all that it holds.
///
/// # Errors
/// What the request asks that this model cannot do, a limit of the tenant, an adapter that cannot be had, or the engine's
/// refusal.
pub async fn start(
    state: &AppState,
    job: &mut Job,
    mut admission: Admission,
) -> Result<Running, ApiError> {
    check(state, job)?;
    admission.reserve(most_tokens(state, job))?;
    let n_choices = job.prompts.len() * job.sampling.n;
    let mut line = admission.enter(state.tenants.queue(), n_choices)?;
    let in_use = take_turn(state, &mut job.model, &mut line).await?;
    let mut ticket = job.model.ticket.take();
    let job = &*job;
    let prompt_tokens = job.prompts.iter().map(Vec::len).sum();
    let n = job.sampling.n;
    let base_seed = job.sampling.seed.unwrap_or_else(ids::random_u64);
    // One set of parameters for each choice of a prompt; all prompts share them.
    let params: Vec<_> =
        (0..n as u64).map(|choice| Arc::new(params(job, base_seed.wrapping_add(choice)))).collect();
    let rules = Arc::new(Rules::new(&job.sampling, &state.base.tokenizer));
    let kv_key = job.model.kv_key(admission.owner(), &job.sampling.cache_salt);
    let adapter = in_use.as_ref().map(|in_use| in_use.engine_lease().clone());
    let mut choices = Vec::with_capacity(job.prompts.len() * n);
    for (prompt_index, prompt) in job.prompts.iter().enumerate() {
        for (choice_index, params) in params.iter().enumerate() {
            let sequence = state
                .engine
                .submit(SequenceRequest {
                    prompt: prompt.clone(),
                    adapter: adapter.clone(),
                    kv_key,
                    flow: admission.flow(),
                    sampling: Arc::clone(params),
                    max_tokens: max_tokens(state, job, prompt.len()),
                    min_tokens: job.sampling.min_tokens as usize,
                    stop_tokens: rules.stop_tokens.clone(),
                    prompt_logprobs: job.prompt_logprobs,
                })
                .map_err(|error| ApiError::from_submit(error, job.param))?;
            let label = job.model.label();
            let clock =
                state.telemetry.follow(label, admission.series(), job.arrived, prompt.len());
            // The choices of one prompt share it.
            let n_counted = if choice_index == 0 { prompt.len() } else { 0 };
            let place = line.next_place(n_counted);
            let index = prompt_index * n + choice_index;
            let rules = Arc::clone(&rules);
            choices.push(Choice::new(index, sequence, clock, place, rules, &state.base.tokenizer));
        }
    }
    admission.accepted();
    if let Some(ticket) = &mut ticket {
        ticket.begin(choices.len());
        if let Some(on_trial) = ticket.take_shadow() {
            let (salt, candidate) = (&job.sampling.cache_salt, on_trial.candidate.digest);
            state.learning.shadows.offer(Shadow {
                kv_key: kv_key_of(Some(&candidate), admission.owner(), salt),
                on_trial,
                prompt: job.prompts[0].clone(),
                sampling: Arc::new(SamplingParams { logprobs: None, ..(*params[0]).clone() }),
                rules,
                max_tokens: max_tokens(state, job, job.prompts[0].len()),
            });
        }
    }
    let choices = Choices::new(choices);
    Ok(Running {
        choices,
        _adapter: in_use,
        _admission: admission,
        ticket,
        n,
        prompt_tokens,
        cached_tokens: 0,
        completion_tokens: 0,
    })
}

/// Waits until the request may go to the engine's queue, and its adapter is on the device.
async fn take_turn(
    state: &AppState,
    model: &mut Model,
    line: &mut Line,
) -> Result<Option<AdapterInUse>, ApiError> {
    let Some(pinned) = &model.adapter else {
        line.turns().await;
        return Ok(None);
    };
    let _waiting = state.telemetry.waits_for(pinned.label());
    let is_cold = state.adapters.tier(pinned.digest()) != Tier::Device;
    let _cold_turn = if is_cold { line.cold_turn().await } else { None };
    line.turns().await;
    let leased = match state.adapters.lease(pinned).await {
        Err(error) => match model.ticket.take().and_then(Ticket::instead) {
            Some(current) => {
                tracing::warn!(%error, "a candidate cannot be had: the current generation answers");
                let Current::Adapter(alias) = current else {
                    model.adapter = None;
                    return Ok(None);
                };
                let pinned = model.adapter.insert(PinnedAdapter::One(alias));
                state.adapters.lease(pinned).await
            }
            None => Err(error),
        },
        leased => leased,
    };
    leased.map(Some).map_err(ApiError::from_service)
}

impl Running {
    /// The next addition to any choice; `None` when all have ended. After an error the request is lost.
    pub async fn next(&mut self) -> Option<Result<ChoiceDelta, ApiError>> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// [`next`](Self::next) for a stream written by hand.
    pub fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<ChoiceDelta, ApiError>>> {
        let Some(delta) = ready!(self.choices.poll_next(context)) else {
            return Poll::Ready(None);
        };
        match (&mut self.ticket, &delta) {
            (Some(ticket), Ok(delta)) => ticket.add(delta),
            (Some(_), Err(error)) if error.status().is_server_error() => {
                if let Some(ticket) = self.ticket.take() {
                    ticket.failed();
                }
            }
            (Some(_) | None, _) => {}
        }
        if let Ok(ChoiceDelta { index, finish: Some(finish), .. }) = &delta {
            self.completion_tokens += finish.completion_tokens;
            // The choices of one prompt share it: the first tells what was cached before this request.
            if index % self.n == 0 {
                self.cached_tokens += finish.cached_tokens;
            }
        }
        Poll::Ready(Some(delta))
    }

    /// What was used so far; final when all choices have ended.
    pub fn usage(&self) -> Usage {
        Usage::new(self.prompt_tokens, self.cached_tokens, self.completion_tokens)
    }

    /// Waits for all choices; each is the sum of its deltas, in the order of index.
    ///
    /// # Errors
    /// The first failure of any choice.
    pub async fn collect(mut self) -> Result<(Vec<ChoiceDelta>, Usage), ApiError> {
        let mut whole: Vec<ChoiceDelta> = Vec::new();
        while let Some(delta) = self.next().await {
            let delta = delta?;
            match whole.iter_mut().find(|choice| choice.index == delta.index) {
                Some(choice) => choice.append(delta),
                None => whole.push(delta),
            }
        }
        whole.sort_unstable_by_key(|choice| choice.index);
        Ok((whole, self.usage()))
    }
}

fn check(state: &AppState, job: &Job) -> Result<(), ApiError> {
    if !state.is_serving() {
        return Err(ApiError::ShuttingDown);
    }
    let n_choices = job.prompts.len() * job.sampling.n;
    if n_choices > CHOICES_MAX {
        return Err(ApiError::invalid(
            "n",
            format!("{n_choices} choices over all prompts, at most {CHOICES_MAX}"),
        ));
    }
    // Unlike a queue that is full now, waiting would not help.
    let live_max = state.engine.max_live();
    if n_choices > live_max {
        return Err(ApiError::invalid(
            "n",
            format!(
                "{n_choices} choices over all prompts, but this server runs and queues at most {live_max} together"
            ),
        ));
    }
    let vocab = state.engine.spec().vocab;
    let check_tokens = |param: &str, mut tokens: Box<dyn Iterator<Item = u32> + '_>| match tokens
        .find(|&token| token as usize >= vocab)
    {
        Some(token) => Err(ApiError::invalid(
            param,
            format!("token {token} is outside the vocabulary of {vocab}"),
        )),
        None => Ok(()),
    };
    check_tokens("logit_bias", Box::new(job.sampling.logit_bias.iter().map(|(token, _)| *token)))?;
    check_tokens("stop_token_ids", Box::new(job.sampling.stop_token_ids.iter().copied()))?;
    let tokens_max = state.engine.max_prompt_tokens();
    for prompt in &job.prompts {
        check_tokens(job.param, Box::new(prompt.iter().copied()))?;
        if prompt.is_empty() {
            return Err(ApiError::invalid(job.param, "it has no tokens"));
        }
        if prompt.len() > tokens_max {
            return Err(ApiError::ContextLength {
                param: job.param,
                tokens: prompt.len(),
                tokens_max,
            });
        }
    }
    Ok(())
}

/// A prompt may be continued to the end of the context, however much was asked for: the choice then ends with
/// `length`. 0 runs one token, which the choice drops.
fn max_tokens(state: &AppState, job: &Job, prompt_tokens: usize) -> usize {
    let room = state.engine.spec().context.saturating_sub(prompt_tokens).max(1);
    job.sampling.max_tokens.map_or(room, |asked| room.min(asked as usize)).max(1)
}

/// The most tokens that the request is expected to use: its prompts, and what its choices were allowed by name.
fn most_tokens(state: &AppState, job: &Job) -> u64 {
    let of_prompt = |prompt: &Vec<u32>| {
        let n_completion = match job.sampling.max_tokens {
            Some(0) => 0,
            Some(_) => max_tokens(state, job, prompt.len()),
            None => max_tokens(state, job, prompt.len()).min(COMPLETION_RESERVED),
        };
        prompt.len() + job.sampling.n * n_completion
    };
    job.prompts.iter().map(of_prompt).sum::<usize>() as u64
}

fn params(job: &Job, seed: u64) -> SamplingParams {
    let sampling = &job.sampling;
    SamplingParams {
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        top_k: sampling.top_k,
        min_p: sampling.min_p,
        repetition_penalty: sampling.repetition_penalty,
        frequency_penalty: sampling.frequency_penalty,
        presence_penalty: sampling.presence_penalty,
        logit_bias: sampling.logit_bias.clone(),
        seed,
        logprobs: job.logprobs,
    }
}
