//! A scheduler driven by hand over a fake runner, and what its sequences told.

use std::{sync::Arc, time::Instant};

use pleach_engine::{
    backend::StepRunner,
    scheduler::{Fifo, QueuePolicy, Scheduler, SchedulerLimits, Sequence},
    sequence::{FinishReason, FlowId, SequenceEvent, SequenceId, SequenceRequest},
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{FakeRunner, NAN_TOKEN, VOCAB};

/// A scheduler, its runner and the listeners of its sequences.
pub(crate) struct Bench {
    pub(crate) scheduler: Scheduler,
    pub(crate) runner: FakeRunner,
    prefix_cache: bool,
    pub(crate) streams: Vec<Option<UnboundedReceiver<SequenceEvent>>>,
}

impl Bench {
    pub(crate) fn new(limits: SchedulerLimits, prefix_cache: bool) -> Self {
        Self::with_policy(limits, prefix_cache, Box::new(Fifo))
    }

    pub(crate) fn with_policy(
        limits: SchedulerLimits,
        prefix_cache: bool,
        policy: Box<dyn QueuePolicy>,
    ) -> Self {
        Self {
            scheduler: Scheduler::new(limits, policy),
            runner: FakeRunner::new(limits.n_kv_blocks, limits.context, limits.max_step_rows),
            prefix_cache,
            streams: Vec::new(),
        }
    }

    pub(crate) fn submit(&mut self, request: SequenceRequest) -> usize {
        let (sender, receiver) = unbounded_channel();
        let index = self.streams.len();
        self.scheduler.submit(Sequence::new(
            SequenceId(index as u64),
            request,
            self.prefix_cache,
            sender,
        ));
        self.streams.push(Some(receiver));
        index
    }

    /// Whether there was anything to run.
    pub(crate) fn step(&mut self) -> bool {
        let Some(batch) = self.scheduler.schedule(Instant::now()) else { return false };
        let result = self.runner.step(&batch);
        drop(batch);
        match result {
            Ok(sampled) => self.scheduler.apply(sampled, Instant::now()),
            Err(error) => self.scheduler.fail(&error.to_string()),
        }
        self.scheduler.pool().check();
        true
    }

    pub(crate) fn run_to_end(&mut self, n_steps_max: usize) {
        for _ in 0..n_steps_max {
            if !self.step() {
                assert_eq!(self.scheduler.pool().n_used(), 0);
                return;
            }
        }
        panic!("not finished after {n_steps_max} steps");
    }

    pub(crate) fn outcome(&mut self, index: usize) -> Outcome {
        let mut outcome = Outcome::default();
        let stream = self.streams[index].as_mut().expect("listened to");
        while let Ok(event) = stream.try_recv() {
            assert!(outcome.end.is_none(), "an event after the last one: {event:?}");
            match event {
                SequenceEvent::Admitted { cached_tokens, .. } => {
                    assert!(outcome.cached.is_none(), "admitted twice");
                    outcome.cached = Some(cached_tokens);
                }
                SequenceEvent::PromptScores(scores) => {
                    assert!(
                        outcome.scores.is_none() && outcome.tokens.is_empty(),
                        "scores come once, before tokens"
                    );
                    outcome.scores =
                        Some(scores.into_iter().map(|s| (s.token, s.logprob, s.top)).collect());
                }
                SequenceEvent::Token(token) => {
                    outcome.tokens.push((token.token, token.logprob, token.top));
                }
                SequenceEvent::Finished { reason, preemptions } => {
                    outcome.end = Some(Ok(reason));
                    outcome.preemptions = preemptions;
                }
                SequenceEvent::Failed(message) => outcome.end = Some(Err(message.to_string())),
            }
        }
        outcome
    }
}

pub(crate) type Scored = (u32, f32, Vec<(u32, f32)>);

/// All that a sequence told.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) cached: Option<usize>,
    pub(crate) scores: Option<Vec<Scored>>,
    pub(crate) tokens: Vec<Scored>,
    pub(crate) end: Option<Result<FinishReason, String>>,
    pub(crate) preemptions: u32,
}

pub(crate) fn limits(
    n_kv_blocks: usize,
    max_batch: usize,
    max_step_rows: usize,
) -> SchedulerLimits {
    SchedulerLimits { max_batch, max_step_rows, n_kv_blocks, context: 150, vocab: VOCAB }
}

pub(crate) fn request(prompt: Vec<u32>, max_tokens: usize) -> SequenceRequest {
    SequenceRequest {
        prompt,
        adapter: None,
        kv_key: [0; 32],
        flow: FlowId::default(),
        sampling: Arc::default(),
        max_tokens,
        min_tokens: 0,
        stop_tokens: Vec::new(),
        prompt_logprobs: None,
    }
}

/// Tokens below `NAN_TOKEN` that look random; equal seeds share every prefix.
pub(crate) fn tokens(seed: usize, n: usize) -> Vec<u32> {
    (0..n)
        .map(|i| u32::try_from((i * 31 + seed * 17 + i * i * seed) % NAN_TOKEN as usize).unwrap())
        .collect()
}

/// The same request alone, in chunks of 7 rows, without prefix cache. The pool has the same size: it bounds the length.
pub(crate) fn alone(request: &SequenceRequest, limits: SchedulerLimits) -> Outcome {
    let mut bench = Bench::new(SchedulerLimits { max_batch: 1, max_step_rows: 7, ..limits }, false);
    let index = bench.submit(request.clone());
    bench.run_to_end(1000);
    bench.outcome(index)
}

pub(crate) fn assert_same_text(found: &Outcome, expected: &Outcome) {
    // One that fails may do so in the chunk that has its last scores, or in the next.
    if !matches!(found.end, Some(Err(_))) {
        assert_eq!(found.scores, expected.scores);
    }
    assert_eq!(found.tokens, expected.tokens);
    assert_eq!(found.end, expected.end);
}
