//! Settings of a pass, and what it says about its work.

use crate::cpu::Isa;

/// How passes are run.
#[derive(Clone, Copy, Debug)]
pub struct TrainOptions {
    /// Kernels.
    pub isa: Isa,
    /// Threads that compute; at least one.
    pub threads: usize,
    /// Most rows of a micro-batch.
    pub rows_max: usize,
    /// Bytes for activations that are kept for the backward half. What does not fit is computed again, layer by layer:
    /// a third more work, at equal results.
    pub activation_bytes: usize,
    /// Work of a unit, in multiply-adds: about what all threads together do between two questions whether to go on.
    pub unit_work: u64,
}

impl TrainOptions {
    /// Multiply-adds of a unit of less than a millisecond on two cores with AVX2.
    pub const UNIT_WORK: u64 = 40_000_000;
    /// For a pass that nobody interrupts.
    pub const UNIT_WORK_UNSLICED: u64 = 2_000_000_000;
}

/// Bytes that a pass takes, by what for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryNeed {
    /// The residual stream at the entry of every layer.
    pub residual_bytes: usize,
    /// Activations kept for the backward half.
    pub kept_bytes: usize,
    /// Layers whose activations are kept; the others are computed again.
    pub kept_layers: usize,
    /// All else: the layer that is worked on, panels, attention weights.
    pub working_bytes: usize,
}

impl MemoryNeed {
    /// All of it.
    pub fn total_bytes(self) -> usize {
        self.residual_bytes + self.kept_bytes + self.working_bytes
    }
}

/// `LoRA` dropout: inputs of `A` are zeroed at random, and the others scaled by `1 / (1 − probability)`.
///
/// The mask is a function of the seed, the sequence's stream, the position, the site and the input feature: equal when
/// activations are computed again, and in any micro-batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// `0..1`, in steps of 1/65536.
    pub probability: f32,
    /// Of the masks.
    pub seed: u64,
}

/// What a pass is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Purpose {
    /// Log-probabilities only: nothing is kept.
    Score,
    /// A backward half follows.
    Learn {
        /// Of the adapter's inputs.
        dropout: Option<Dropout>,
    },
}

/// What the next unit will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitCost {
    /// Multiply-adds, or a like amount of other work.
    pub work: u64,
}

/// How far a half of a pass came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Stopped between two units.
    Paused,
    /// All units are done.
    Done,
}
