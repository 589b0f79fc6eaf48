//! Settings of a pass, and what it says about its work.

use std::{fmt, str::FromStr};

use crate::cpu::Isa;

/// What the factors of products with frozen weights are rounded to. Everything else is f32: sums, residual stream, norms,
/// attention, the adapter's products, gradients and optimizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProductPrecision {
    /// To nothing: exact weights, f32 activations and gradients.
    #[default]
    F32,
    /// To bf16, the nearest one. Faster, and another result.
    Bf16,
}

impl ProductPrecision {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// # Errors
    /// [`NoBf16`] where kernels or processor lack what it takes.
    pub fn check(self, isa: Isa) -> Result<(), NoBf16> {
        match self {
            Self::F32 => Ok(()),
            Self::Bf16 => isa.lacks_for_bf16().map_or(Ok(()), |lacks| Err(NoBf16 { lacks })),
        }
    }
}

impl fmt::Display for ProductPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name is none of [`ProductPrecision::ALL`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown precision {0:?}: f32 or bf16")]
pub struct UnknownProductPrecision(String);

impl FromStr for ProductPrecision {
    type Err = UnknownProductPrecision;

    fn from_str(name: &str) -> Result<Self, UnknownProductPrecision> {
        let found = Self::ALL.into_iter().find(|precision| precision.name() == name);
        found.ok_or_else(|| UnknownProductPrecision(name.to_owned()))
    }
}

/// Products of bf16 cannot be computed.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("products in bf16 need {lacks}; f32 works everywhere")]
pub struct NoBf16 {
    /// What is missing, in words.
    pub lacks: &'static str,
}

/// How passes are run.
#[derive(Clone, Copy, Debug)]
pub struct TrainOptions {
    /// Kernels.
    pub isa: Isa,
    /// Of products with frozen weights.
    pub precision: ProductPrecision,
    /// Threads that compute; at least one.
    pub threads: usize,
    /// Most rows of a micro-batch.
    pub rows_max: usize,
    /// Bytes for activations that are kept for the backward half. What does not fit is computed again, layer by layer:
    /// a third more work, at equal results. Where all layers are kept, what is left may keep the logits.
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
    /// Log-probabilities and features only: nothing is kept.
    Score,
    /// The same, and the likeliest tokens of every row with targets, `top_k` of them.
    Rank {
        /// How many.
        top_k: usize,
    },
    /// A backward half follows.
    Learn {
        /// Of the adapter's inputs.
        dropout: Option<Dropout>,
    },
}

/// What the loss of a micro-batch changes by, for what a forward half gave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Slopes<'a> {
    /// `dL/dlogp` of every target, in their order.
    pub logps: &'a [f32],
    /// `dL/dh` of every feature `h`, `[features, hidden]`.
    pub features: &'a [f32],
}

/// A likely token of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likely {
    /// The token.
    pub token: u32,
    /// Its log-probability.
    pub logp: f32,
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
