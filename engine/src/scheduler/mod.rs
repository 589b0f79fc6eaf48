//! Which rows run in the next step: continuous batching over a paged KV pool. Pure logic, no threads, no clock.
//!
//! [`Scheduler::schedule`] plans a step, the caller runs it and hands the result to [`Scheduler::apply`] (or
//! [`Scheduler::fail`]). Each step has, in this order, one row for every sequence that only needs its next token, then
//! prefill chunks, oldest sequence first, until `max_step_rows`.
//!
//! Why nobody starves: sequences run in order of admission; only the youngest is ever preempted, so the oldest always
//! goes on; a preempted one comes back before anything new is admitted, so the set of those older than it only shrinks;
//! and every sequence ends, at the latest when it fills the context or the whole KV pool.

mod admission;
mod queue_policy;
mod sequence;
mod waiting;

use std::{collections::VecDeque, sync::Arc, time::Instant};

pub use queue_policy::{Fifo, QueuePolicy, Queued, Ticket};
pub(crate) use sequence::LivePlace;
pub use sequence::Sequence;
use waiting::Waiting;

use crate::{
    engine::EngineStats,
    kv::{KV_BLOCK_TOKENS, KvPool, kv_blocks_for},
    sampler::SampledToken,
    sequence::{FinishReason, SequenceId},
    step_batch::{StepBatch, StepSequence},
};

/// What bounds a scheduler.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerLimits {
    /// Most sequences in a step, at least one.
    pub max_batch: usize,
    /// Most rows in a step. At least `max_batch`, so that decode rows leave a row for whoever still prefills.
    pub max_step_rows: usize,
    /// KV blocks.
    pub n_kv_blocks: usize,
    /// Longest sequence, tokens.
    pub context: usize,
    /// Token ids are below this.
    pub vocab: usize,
}

impl SchedulerLimits {
    /// Most tokens of a sequence, prompt and completion: what context and KV pool hold.
    pub fn tokens_max(&self) -> usize {
        self.context.min(self.n_kv_blocks.saturating_mul(KV_BLOCK_TOKENS))
    }

    /// Most prompt tokens: one must be left for the completion.
    pub fn max_prompt_tokens(&self) -> usize {
        self.tokens_max().saturating_sub(1)
    }
}

/// Rows of one sequence in the step in flight.
#[derive(Clone, Copy, Debug)]
struct StepPart {
    id: SequenceId,
    /// Its place among the running when the step was planned. They only move down while it is in flight.
    index: usize,
    n_rows: usize,
    n_samples: usize,
    /// Whether the last sample is the sequence's next token.
    chooses: bool,
}

/// All sequences of an engine, and its KV pool.
#[derive(Debug)]
pub struct Scheduler {
    limits: SchedulerLimits,
    pool: KvPool,
    /// Never ran; in order of arrival.
    waiting: Waiting,
    /// Ran and lost their blocks; the longest admitted first.
    preempted: VecDeque<Sequence>,
    /// In order of admission: the oldest first.
    running: Vec<Sequence>,
    /// The step in flight; empty between `apply` and `schedule`.
    parts: Vec<StepPart>,
    counters: EngineStats,
    no_history: Arc<Vec<u32>>,
}

impl Scheduler {
    /// A scheduler of nothing yet.
    ///
    /// # Panics
    /// When the limits contradict each other.
    pub fn new(limits: SchedulerLimits, policy: Box<dyn QueuePolicy>) -> Self {
        assert!(
            (1..=limits.max_step_rows).contains(&limits.max_batch),
            "1 <= max_batch <= max_step_rows"
        );
        Self {
            limits,
            pool: KvPool::new(limits.n_kv_blocks),
            waiting: Waiting::new(policy),
            preempted: VecDeque::new(),
            running: Vec::new(),
            parts: Vec::new(),
            counters: EngineStats::default(),
            no_history: Arc::default(),
        }
    }

    /// Queues a sequence whose prompt has `1..=max_prompt_tokens` tokens.
    ///
    /// # Panics
    /// When it has not: it could block the queue forever.
    pub fn submit(&mut self, sequence: Sequence) {
        let n_prompt = sequence.n_prompt();
        let limit = self.limits.max_prompt_tokens();
        assert!(
            (1..=limit).contains(&n_prompt),
            "prompt of {n_prompt} tokens, at most {limit} fit"
        );
        self.waiting.push(sequence);
    }

    /// Ends a sequence wherever it is. Whether there was one.
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        if let Some(index) = self.running.iter().position(|sequence| sequence.id() == id) {
            self.finish(index, FinishReason::Cancelled);
            return true;
        }
        let index = self.preempted.iter().position(|sequence| sequence.id() == id);
        if let Some(sequence) = index.and_then(|index| self.preempted.remove(index)) {
            self.waiting.ended(sequence.flow());
            sequence.finish(FinishReason::Cancelled);
            return true;
        }
        let sequence = self.waiting.remove(id);
        sequence.map(|sequence| sequence.finish(FinishReason::Cancelled)).is_some()
    }

    /// Ends every sequence.
    pub fn cancel_all(&mut self) {
        while !self.running.is_empty() {
            self.finish(self.running.len() - 1, FinishReason::Cancelled);
        }
        for sequence in self.preempted.drain(..) {
            self.waiting.ended(sequence.flow());
            sequence.finish(FinishReason::Cancelled);
        }
        while let Some(sequence) = self.waiting.pop_first() {
            sequence.finish(FinishReason::Cancelled);
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty() && self.preempted.is_empty() && self.waiting.is_empty()
    }

    /// Plans the next step. `None` only when no sequence is left. Sequences that nobody listens to are dropped first.
    ///
    /// # Panics
    /// When the result of the last step was not applied.
    pub fn schedule(&mut self, now: Instant) -> Option<StepBatch> {
        assert!(self.parts.is_empty(), "the last step is still in flight");
        self.drop_abandoned();
        self.grow_running();
        self.admit(now);
        let batch = self.build_batch();
        self.pool.check_sum();
        if batch.n_rows() == 0 {
            assert!(self.is_empty(), "sequences are left, but none can run");
            assert_eq!(self.pool.n_used(), 0, "kv blocks leaked");
            return None;
        }
        Some(batch)
    }

    /// Takes the results of the step in flight: one per sample row, in order. Drop the batch first, since it shares
    /// tokens with the sequences.
    pub fn apply(&mut self, sampled: Vec<SampledToken>, at: Instant) {
        let n_samples: usize = self.parts.iter().map(|part| part.n_samples).sum();
        if sampled.len() != n_samples {
            self.fail(&format!("the step gave {} results for {n_samples} rows", sampled.len()));
            return;
        }
        self.counters.steps += 1;
        let mut sampled = sampled.into_iter();
        let mut parts = std::mem::take(&mut self.parts);
        for part in parts.drain(..) {
            let n_left = sampled.len() - part.n_samples;
            // None when it was cancelled during the step: its results are not wanted any more.
            if let Some(index) = self.find(part) {
                self.apply_part(index, part, &mut sampled, at);
            }
            let n_unwanted = sampled.len() - n_left;
            sampled.by_ref().take(n_unwanted).for_each(drop);
        }
        // Its room serves the next step.
        self.parts = parts;
    }

    /// Ends the sequences of the step in flight, which failed. Their blocks leave the prefix index: what is in them is
    /// not known. Running sequences outside the step start over, in case they share such a block. (Today's plans leave
    /// none out: admission stops at the first sequence that the step's rows do not cover.)
    pub fn fail(&mut self, message: &str) {
        self.counters.steps += 1;
        let message: Arc<str> = message.into();
        for part in std::mem::take(&mut self.parts) {
            if let Some(index) = self.find(part) {
                for &block in self.running[index].table.blocks() {
                    self.pool.forget(block);
                }
                self.fail_one(index, Arc::clone(&message));
            }
        }
        while let Some(sequence) = self.running.pop() {
            self.preempt(sequence);
        }
    }

    /// Numbers of now.
    pub fn stats(&self) -> EngineStats {
        EngineStats {
            running: self.running.len(),
            waiting: self.waiting.len() + self.preempted.len(),
            kv_blocks_total: self.pool.n_total(),
            kv_blocks_used: self.pool.n_used(),
            ..self.counters
        }
    }

    /// The KV pool.
    pub fn pool(&self) -> &KvPool {
        &self.pool
    }

    /// Where a sequence of the step in flight is now, if it still runs.
    fn find(&self, part: StepPart) -> Option<usize> {
        let end = self.running.len().min(part.index + 1);
        self.running[..end].iter().rposition(|sequence| sequence.id() == part.id)
    }

    /// Applies the results of one sequence, the first of `results`; those that it leaves are not wanted.
    fn apply_part(
        &mut self,
        index: usize,
        part: StepPart,
        results: &mut std::vec::IntoIter<SampledToken>,
        at: Instant,
    ) {
        let of_part = &results.as_slice()[..part.n_samples];
        if let Some(bad) = of_part.iter().find(|result| result.token as usize >= self.limits.vocab)
        {
            let message = if bad.token == SampledToken::NO_TOKEN {
                "no token can be chosen: a logit is not finite, or every token is banned".to_owned()
            } else {
                format!("token {} is outside the vocabulary of {}", bad.token, self.limits.vocab)
            };
            self.fail_one(index, message.into());
            return;
        }
        let sequence = &mut self.running[index];
        sequence.n_computed += part.n_rows;
        sequence.publish(&mut self.pool);
        let n_prompt_known = sequence.n_computed.min(sequence.n_prompt());
        // After a preemption prompt tokens are computed again, but count once.
        self.counters.prompt_tokens +=
            n_prompt_known.saturating_sub(sequence.n_prompt_counted) as u64;
        sequence.n_prompt_counted = sequence.n_prompt_counted.max(n_prompt_known);

        let n_scores = part.n_samples - usize::from(part.chooses);
        for scored in results.by_ref().take(n_scores) {
            sequence.add_score(scored, at);
        }
        let chosen = if part.chooses { results.next() } else { None };
        if let Some(chosen) = chosen {
            self.counters.completion_tokens += 1;
            self.waiting.served(sequence.flow());
            if let Some(reason) = sequence.add_token(chosen, self.limits.tokens_max(), at) {
                self.finish(index, reason);
            }
        }
    }

    /// Gives every running sequence the block that its next token needs; takes blocks from the youngest if need be.
    fn grow_running(&mut self) {
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &mut self.running[index];
            if sequence.table.len() >= kv_blocks_for(sequence.tokens.len()) {
                index += 1;
            } else if let Some(block) = self.pool.allocate() {
                sequence.table.push(block);
            } else {
                // Perhaps the one that needs the block. Never the only one: alone, it fits.
                let youngest = self.running.pop().expect("index is inside");
                self.preempt(youngest);
                self.counters.preemptions += 1;
            }
        }
    }

    fn preempt(&mut self, mut sequence: Sequence) {
        sequence.reset(&mut self.pool);
        sequence.preemptions += 1;
        tracing::debug!(
            sequence_id = sequence.id().0,
            preemptions = sequence.preemptions,
            "preempted"
        );
        // Called from the youngest to the oldest, so the queue stays in order of admission.
        self.preempted.push_front(sequence);
    }

    fn build_batch(&mut self) -> StepBatch {
        let mut rows_of = vec![0; self.running.len()];
        let mut n_free = self.limits.max_step_rows;
        let by_urgency = |wants_chunk: bool| {
            move |&(_, s): &(usize, &Sequence)| (s.n_pending() > 1) == wants_chunk
        };
        let mut order = Vec::with_capacity(self.running.len());
        for wants_chunk in [false, true] {
            for (index, sequence) in self.running.iter().enumerate().filter(by_urgency(wants_chunk))
            {
                rows_of[index] = sequence.n_pending().min(n_free);
                n_free -= rows_of[index];
                order.push(index);
            }
        }
        let n_rows = self.limits.max_step_rows - n_free;
        let mut batch = StepBatch {
            token_ids: Vec::with_capacity(n_rows),
            positions: Vec::with_capacity(n_rows),
            sequences: Vec::with_capacity(order.len()),
            sample_rows: Vec::with_capacity(order.len()),
        };
        for index in order.into_iter().filter(|&index| rows_of[index] > 0) {
            self.add_rows(index, rows_of[index], &mut batch);
        }
        batch
    }

    fn add_rows(&mut self, index: usize, n_rows: usize, batch: &mut StepBatch) {
        let sequence = &self.running[index];
        let first_row = batch.n_rows();
        let positions = sequence.n_computed..sequence.n_computed + n_rows;
        batch.token_ids.extend_from_slice(&sequence.tokens[positions.clone()]);
        batch.positions.extend(positions.clone());
        batch.sequences.push(StepSequence {
            rows: first_row..first_row + n_rows,
            block_table: sequence.blocks_for(positions.end),
            adapter: sequence.adapter(),
        });
        let n_before = batch.sample_rows.len();
        let rows = &mut batch.sample_rows;
        let chooses = sequence.add_sample_rows(first_row, n_rows, &self.no_history, rows);
        self.parts.push(StepPart {
            id: sequence.id(),
            index,
            n_rows,
            n_samples: batch.sample_rows.len() - n_before,
            chooses,
        });
    }

    fn drop_abandoned(&mut self) {
        self.waiting.drop_abandoned();
        let (pool, waiting) = (&mut self.pool, &mut self.waiting);
        let mut keep = |sequence: &mut Sequence| {
            let keep = !sequence.is_abandoned();
            if !keep {
                sequence.reset(pool);
                waiting.ended(sequence.flow());
            }
            keep
        };
        self.preempted.retain_mut(&mut keep);
        self.running.retain_mut(keep);
    }

    fn finish(&mut self, index: usize, reason: FinishReason) {
        let mut sequence = self.running.remove(index);
        sequence.reset(&mut self.pool);
        self.waiting.ended(sequence.flow());
        sequence.finish(reason);
    }

    fn fail_one(&mut self, index: usize, message: Arc<str>) {
        let mut sequence = self.running.remove(index);
        sequence.reset(&mut self.pool);
        self.waiting.ended(sequence.flow());
        tracing::warn!(sequence_id = sequence.id().0, %message, "sequence failed");
        sequence.fail(message);
    }
}
