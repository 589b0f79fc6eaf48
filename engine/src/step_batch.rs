//! The ragged batch of one step: decode rows and prefill chunks of any mix of adapters.

use std::{ops::Range, sync::Arc};

use crate::{kv::KvBlockId, sampler::SamplingParams};

/// Place of a resident adapter on the device. `None` in an `Option<AdapterSlot>` is a plain base row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterSlot(pub u32);

/// Rows of one sequence in a step. Its rows are consecutive positions.
#[derive(Clone, Debug)]
pub struct StepSequence {
    /// Rows of the step that belong to this sequence.
    pub rows: Range<usize>,
    /// Blocks that hold (and will hold) the keys and values of positions `0..=positions[rows.end - 1]`.
    pub block_table: Vec<KvBlockId>,
    /// Adapter of all its rows.
    pub adapter: Option<AdapterSlot>,
}

/// One row whose logits are wanted.
#[derive(Clone, Debug)]
pub struct SampleRow {
    /// Row of the step.
    pub row: usize,
    /// How to choose.
    pub params: Arc<SamplingParams>,
    /// Index of the token being chosen: 0 for the first completion token. Part of the random counter, so that a
    /// sequence draws the same numbers in any batch and after preemption.
    pub sample_index: u64,
    /// Prompt and completion so far, for penalties; empty when no penalty is set. Shared with the sequence, which can
    /// grow it in place once the step's batch is gone.
    pub history: Arc<Vec<u32>>,
    /// How many tokens at the head of `history` are the prompt.
    pub n_prompt: usize,
    /// Tokens that may not be chosen (end tokens before `min_tokens`).
    pub banned: Vec<u32>,
    /// Score this token instead of choosing one (log-probabilities of a given text).
    pub forced: Option<u32>,
}

/// Everything that one forward pass needs.
#[derive(Clone, Debug, Default)]
pub struct StepBatch {
    /// `[T]`.
    pub token_ids: Vec<u32>,
    /// `[T]`, position of each row in its sequence.
    pub positions: Vec<usize>,
    /// In row order; their row ranges tile `0..T`.
    pub sequences: Vec<StepSequence>,
    /// Ascending by row.
    pub sample_rows: Vec<SampleRow>,
}

impl StepBatch {
    /// Rows of the step, `T`.
    pub fn n_rows(&self) -> usize {
        self.token_ids.len()
    }
}
