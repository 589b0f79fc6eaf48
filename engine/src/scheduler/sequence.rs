//! One sequence with the state that the scheduler keeps for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use tokio::sync::mpsc::UnboundedSender;

use crate::{
    engine::Outbox,
    kv::{BlockTable, KV_BLOCK_TOKENS, KvBlockId, KvPool, PrefixHash},
    sampler::{SampledToken, SamplingParams},
    sequence::{FinishReason, FlowId, SequenceEvent, SequenceId, SequenceRequest, TokenEvent},
    step_batch::{AdapterSlot, SampleRow},
};

/// One of the places that an engine has for live sequences; dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct LivePlace(Arc<AtomicUsize>);

impl LivePlace {
    /// Takes a place unless `limit` are taken; the number taken otherwise.
    pub(crate) fn take(live: &Arc<AtomicUsize>, limit: usize) -> Result<Self, usize> {
        live.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < limit).then_some(n + 1))?;
        Ok(Self(Arc::clone(live)))
    }
}

impl Drop for LivePlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Scores of the prompt's own tokens, as far as they are known.
#[derive(Debug)]
struct PromptScores {
    params: Arc<SamplingParams>,
    /// Entry `i` scores `prompt[i + 1]`.
    known: Vec<TokenEvent>,
}

/// A sequence, waiting or running.
///
/// ```text
///   tokens    [ prompt ................. | completion ........ ]
///   computed  [ keys and values written ........... | pending  ]   a step takes pending rows from the left
///   blocks    [ published ...... | full | filling ]                 tokens of a preempted sequence are all pending
/// ```
/// A row at the end of `tokens` chooses the next token. So prefill, decode and recomputing are one thing.
#[derive(Debug)]
pub struct Sequence {
    id: SequenceId,
    /// Its prompt was moved to `tokens`.
    request: SequenceRequest,
    /// Prompt, then completion. Shared with the batch in flight when penalties read it.
    pub(super) tokens: Arc<Vec<u32>>,
    n_prompt: usize,
    /// Tokens whose keys and values are in `table`.
    pub(super) n_computed: usize,
    pub(super) table: BlockTable,
    /// Of the full blocks of `tokens`; empty when prefixes are not cached.
    pub(super) hashes: Vec<PrefixHash>,
    /// The parent of the first block; `None` when prefixes are not cached.
    root: Option<PrefixHash>,
    /// Blocks at the head of `table` that are in the prefix index, or whose equal is.
    pub(super) n_published: usize,
    /// The block for which it last waited, while another sequence computes it.
    pub(super) awaited: Option<usize>,
    scores: Option<PromptScores>,
    pub(super) preemptions: u32,
    /// Whether `SequenceEvent::Admitted` was sent.
    pub(super) was_admitted: bool,
    /// Prompt tokens already counted in the statistics.
    pub(super) n_prompt_counted: usize,
    /// Unbounded, because a bounded one would let a slow client stop the engine; it holds at most `max_tokens + 3` events.
    events: UnboundedSender<SequenceEvent>,
    place: Option<LivePlace>,
    /// Where events wait for the end of the step; without one they are sent at once.
    outbox: Option<Outbox>,
}

impl Sequence {
    /// A new sequence; hashes the prompt's blocks if prefixes are cached, so do it outside the owner thread.
    pub fn new(
        id: SequenceId,
        mut request: SequenceRequest,
        prefix_cache: bool,
        events: UnboundedSender<SequenceEvent>,
    ) -> Self {
        let tokens = Arc::new(std::mem::take(&mut request.prompt));
        let scores = request.prompt_logprobs.map(|n_top| PromptScores {
            params: Arc::new(SamplingParams { logprobs: Some(n_top), ..SamplingParams::default() }),
            known: Vec::new(),
        });
        let mut sequence = Self {
            id,
            n_prompt: tokens.len(),
            tokens,
            n_computed: 0,
            table: BlockTable::default(),
            hashes: Vec::new(),
            root: prefix_cache.then(|| PrefixHash::root(&request.kv_key)),
            n_published: 0,
            awaited: None,
            scores,
            preemptions: 0,
            was_admitted: false,
            n_prompt_counted: 0,
            events,
            place: None,
            outbox: None,
            request,
        };
        sequence.hash_blocks();
        sequence
    }

    /// Holds one of the engine's places until the sequence ends, and speaks through its outbox.
    pub(crate) fn within_engine(mut self, place: LivePlace, outbox: Outbox) -> Self {
        self.place = Some(place);
        self.outbox = Some(outbox);
        self
    }

    /// Its id.
    pub fn id(&self) -> SequenceId {
        self.id
    }

    /// In which of the queue policy's lines it waits.
    pub fn flow(&self) -> FlowId {
        self.request.flow
    }

    /// Tokens of its prompt.
    pub fn n_prompt(&self) -> usize {
        self.n_prompt
    }

    /// Adapter of all its rows.
    pub fn adapter(&self) -> Option<AdapterSlot> {
        self.request.adapter.as_ref().map(crate::engine::AdapterLease::slot)
    }

    /// Known tokens that are not computed.
    pub(super) fn n_pending(&self) -> usize {
        self.tokens.len() - self.n_computed
    }

    /// Completion tokens chosen so far.
    pub(super) fn n_completed(&self) -> usize {
        self.tokens.len() - self.n_prompt
    }

    /// Whether nobody listens to it any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Whether it may begin with cached blocks. Not while prompt scores are missing: they need every prompt row.
    pub(super) fn looks_up_prefix(&self) -> bool {
        self.root.is_some() && !self.awaits_scores()
    }

    /// Hashes of the blocks that may come from the cache: full ones that leave at least one token to compute, since the
    /// cache holds no logits.
    pub(super) fn reusable_hashes(&self) -> &[PrefixHash] {
        if !self.looks_up_prefix() {
            return &[];
        }
        let n_reusable = (self.tokens.len() - 1) / KV_BLOCK_TOKENS;
        &self.hashes[..n_reusable.min(self.hashes.len())]
    }

    /// Whether it is going to compute block `block_idx`, and that block has this hash.
    pub(super) fn will_publish(&self, block_idx: usize, hash: &PrefixHash) -> bool {
        self.n_published <= block_idx && self.hashes.get(block_idx) == Some(hash)
    }

    /// Forgets everything computed; the tokens stay.
    pub(super) fn reset(&mut self, pool: &mut KvPool) {
        self.table.release(pool);
        self.n_computed = 0;
        self.n_published = 0;
    }

    /// Enters the blocks that became full in the prefix index.
    pub(super) fn publish(&mut self, pool: &mut KvPool) {
        let n_full = (self.n_computed / KV_BLOCK_TOKENS).min(self.hashes.len());
        for block_idx in self.n_published..n_full {
            pool.publish(self.table.blocks()[block_idx], self.hashes[block_idx]);
        }
        self.n_published = self.n_published.max(n_full);
    }

    /// Blocks of the first `n_tokens` tokens.
    pub(super) fn blocks_for(&self, n_tokens: usize) -> Vec<KvBlockId> {
        self.table.for_tokens(n_tokens).to_vec()
    }

    /// Adds what to sample when the next `n_rows` pending tokens are computed, where row 0 of them is row `first_row` of
    /// the step: first prompt tokens to score, then a token to choose if these rows reach the end of what is known.
    /// Whether they do.
    pub(super) fn add_sample_rows(
        &self,
        first_row: usize,
        n_rows: usize,
        no_history: &Arc<Vec<u32>>,
        rows: &mut Vec<SampleRow>,
    ) -> bool {
        let end = self.n_computed + n_rows;
        if let Some(scores) = &self.scores {
            for position in self.n_computed.max(scores.known.len())..end.min(self.n_prompt - 1) {
                rows.push(SampleRow {
                    row: first_row + position - self.n_computed,
                    params: Arc::clone(&scores.params),
                    sample_index: 0,
                    history: Arc::clone(no_history),
                    n_prompt: 0,
                    banned: Vec::new(),
                    forced: Some(self.tokens[position + 1]),
                });
            }
        }
        let chooses = end == self.tokens.len();
        if chooses {
            let params = &self.request.sampling;
            let n_completed = self.n_completed();
            let is_early = n_completed < self.request.min_tokens;
            rows.push(SampleRow {
                row: first_row + n_rows - 1,
                params: Arc::clone(params),
                sample_index: n_completed as u64,
                history: Arc::clone(if params.needs_history() { &self.tokens } else { no_history }),
                n_prompt: self.n_prompt,
                banned: if is_early { self.request.stop_tokens.clone() } else { Vec::new() },
                forced: None,
            });
        }
        chooses
    }

    /// Takes a scored prompt token; reports all of them when the last one is there.
    pub(super) fn add_score(&mut self, sampled: SampledToken, at: Instant) {
        let scores =
            self.scores.as_mut().expect("a scored row belongs to a sequence that asked for scores");
        scores.known.push(token_event(sampled, at));
        self.report_scores();
    }

    /// Appends the chosen token and reports it; the reason if the sequence ends with it. `tokens_max` is the most
    /// tokens, prompt and completion, that context and KV pool can hold.
    pub(super) fn add_token(
        &mut self,
        chosen: SampledToken,
        tokens_max: usize,
        at: Instant,
    ) -> Option<FinishReason> {
        // A prompt of one token has nothing to score, but an answer is owed.
        self.report_scores();
        let token = chosen.token;
        Arc::make_mut(&mut self.tokens).push(token);
        self.hash_blocks();
        self.send(SequenceEvent::Token(token_event(chosen, at)));
        if self.request.stop_tokens.contains(&token) {
            Some(FinishReason::Stop { token })
        } else if self.n_completed() >= self.request.max_tokens || self.tokens.len() >= tokens_max {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// Reports an event. That nobody listens is noticed before the next step.
    pub(super) fn send(&self, event: SequenceEvent) {
        if let Some(outbox) = &self.outbox {
            outbox.push(&self.events, event);
        } else {
            let _ = self.events.send(event);
        }
    }

    /// Ends a sequence that holds no blocks.
    pub(crate) fn finish(self, reason: FinishReason) {
        let preemptions = self.preemptions;
        self.end(SequenceEvent::Finished { reason, preemptions });
    }

    /// Ends a sequence that holds no blocks, with an error.
    pub(super) fn fail(self, message: Arc<str>) {
        self.end(SequenceEvent::Failed(message));
    }

    fn end(mut self, event: SequenceEvent) {
        debug_assert!(self.table.is_empty(), "a sequence ended with kv blocks");
        // Before the event: who has seen the last event may count on the place (and on the adapter's lease).
        self.place = None;
        self.request.adapter = None;
        self.send(event);
    }

    fn awaits_scores(&self) -> bool {
        self.scores.as_ref().is_some_and(|scores| scores.known.len() + 1 < self.n_prompt)
    }

    fn report_scores(&mut self) {
        if self.awaits_scores() {
            return;
        }
        if let Some(scores) = self.scores.take() {
            self.send(SequenceEvent::PromptScores(scores.known));
        }
    }

    fn hash_blocks(&mut self) {
        let Some(root) = self.root else { return };
        for block in self.tokens.chunks_exact(KV_BLOCK_TOKENS).skip(self.hashes.len()) {
            let parent = self.hashes.last().copied().unwrap_or(root);
            self.hashes.push(parent.child(block));
        }
    }
}

fn token_event(sampled: SampledToken, at: Instant) -> TokenEvent {
    TokenEvent { token: sampled.token, logprob: sampled.logprob, top: sampled.top, at }
}
