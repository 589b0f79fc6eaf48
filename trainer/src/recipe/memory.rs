//! What a training takes of memory, before it takes it.

use pleach_engine::{
    cpu::TrainPass,
    spec::ModelSpec,
    train::{AdapterShape, MemoryNeed, MicroBatch},
};

use super::{Compute, Prepared, RecipeError};
use crate::{Sample, data::Position, learner::cut};

/// Arrays of the adapter's size in f32 that a learner keeps: weights, gradients, two moments.
const ARRAYS_KEPT: usize = 4;
/// The same while a state is saved: a copy of weights and moments, their bytes, and the file.
const ARRAYS_OF_A_SAVE: usize = 9;

/// Bytes of a training, beside the base, the tokenizer and the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TrainingMemory {
    /// Numbers that are trained.
    pub n_parameters: usize,
    /// Weights, gradients and moments; with a parent, its weights.
    pub adapter_bytes: usize,
    /// What passes reserve.
    pub pass_bytes: usize,
    /// Of these, what the longest micro-batch of the data writes to: the rest takes no memory.
    pub pass_bytes_touched: usize,
    /// Layers whose activations are kept for the backward half.
    pub kept_layers: usize,
    /// Rows of the longest micro-batch.
    pub rows: usize,
    /// Tokens and weights of all samples.
    pub sample_bytes: usize,
    /// For a moment, while a state is saved.
    pub saving_bytes: usize,
}

impl TrainingMemory {
    /// All of it at its peak.
    pub fn peak_bytes(&self) -> usize {
        self.adapter_bytes + self.pass_bytes_touched + self.sample_bytes + self.saving_bytes
    }

    /// All that is reserved, as if every micro-batch were as long as one may be.
    pub fn reserved_bytes(&self) -> usize {
        self.peak_bytes() - self.pass_bytes_touched + self.pass_bytes
    }
}

impl Prepared {
    /// What training it takes.
    ///
    /// # Errors
    /// [`RecipeError::Trainer`] when the adapter's shape does not fit the model.
    pub fn memory(
        &self,
        spec: &ModelSpec,
        compute: Compute,
    ) -> Result<TrainingMemory, RecipeError> {
        let shape: AdapterShape = self.lora().shape(spec)?;
        let options = self.train_options(compute);
        let need: MemoryNeed = TrainPass::memory_need(spec, &shape, &options);
        let n_parameters = shape.n_parameters(spec);
        let array = n_parameters * size_of::<f32>();
        let steps = self.steps_from(Position::default()).take(self.steps_per_epoch() as usize);
        let longest = steps.map(|step| longest_pass(&self.batch(&step), options.rows_max));
        let validation =
            self.validation().iter().map(|batch| longest_pass(batch, options.rows_max));
        // What is sampled on the way may be as long as is allowed.
        let exploration = self.resolved().exploration;
        let of_answers = exploration.map(|_| self.rows_max());
        let rows = longest.chain(validation).chain(of_answers).max().unwrap_or(0);
        // Almost all buffers have a row for each row of the micro-batch.
        let touched = need.total_bytes() / options.rows_max * rows.min(options.rows_max);
        let samples = self.samples().iter().chain(self.validation().iter().flatten());
        let n_answers = exploration.map_or(0, |exploration| exploration.group_size as usize);
        let answer_tokens = n_answers * self.resolved().batch_size as usize * self.rows_max();
        let token_bytes = size_of::<u32>() + size_of::<f32>();
        Ok(TrainingMemory {
            n_parameters,
            adapter_bytes: array * (ARRAYS_KEPT + usize::from(self.has_parent())),
            pass_bytes: need.total_bytes(),
            pass_bytes_touched: touched,
            kept_layers: need.kept_layers,
            rows,
            sample_bytes: (samples.map(tokens_of).sum::<usize>() + answer_tokens) * token_bytes,
            saving_bytes: array * ARRAYS_OF_A_SAVE,
        })
    }
}

/// Rows that a step or an evaluation has in one pass at most.
fn longest_pass(batch: &[Sample], rows_max: usize) -> usize {
    let rows: Vec<usize> = batch.iter().map(rows_of).collect();
    let passes = cut(&rows, rows_max).into_iter();
    passes.map(|pass| rows[pass].iter().sum()).max().unwrap_or(0)
}

/// Rows that a sample takes of a pass: of each of its sequences, up to the last target.
pub fn rows_of(sample: &Sample) -> usize {
    let sequences = sample.sequences();
    sequences.iter().map(|sequence| MicroBatch::rows_of(&sequence.mask())).sum()
}

fn tokens_of(sample: &Sample) -> usize {
    sample.sequences().iter().map(|sequence| sequence.tokens.len()).sum()
}
