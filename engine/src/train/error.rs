//! Why a pass cannot be run.

use super::NoBf16;
use crate::{adapter_weights::AdapterWeightsError, cpu::CpuError, site::Site};

/// Why a pass cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The processor, or the model's shape.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// The precision.
    #[error(transparent)]
    Precision(#[from] NoBf16),
    /// The adapter does not fit the model, or is of a kind that cannot be trained.
    #[error(transparent)]
    Adapter(#[from] AdapterWeightsError),
    /// The adapter has other sites or ranks than the pass was made for.
    #[error("{site}: rank {found}, the pass has room for rank {expected} there")]
    Shape {
        /// Where.
        site: Site,
        /// Its rank in the adapter, 0 if there is none.
        found: usize,
        /// Rank that the pass was made for, 0 if there is none.
        expected: usize,
    },
    /// More rows than the pass was made for.
    #[error("{rows} rows in a micro-batch of at most {rows_max}")]
    TooManyRows {
        /// Rows wanted.
        rows: usize,
        /// Rows there is memory for.
        rows_max: usize,
    },
    /// A sequence is longer than the model's context.
    #[error("a sequence of {rows} tokens, the model's context is {context}")]
    TooLong {
        /// Tokens of the sequence.
        rows: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// A token beyond the vocabulary.
    #[error("token {token} of a vocabulary of {vocab}")]
    NoSuchToken {
        /// The token.
        token: u32,
        /// Tokens of the vocabulary.
        vocab: usize,
    },
    /// Another number of slopes than the micro-batch has targets, or numbers of features.
    #[error("{found} slopes of {what}, expected {expected}")]
    Slopes {
        /// `logps` or `features`.
        what: &'static str,
        /// Slopes given.
        found: usize,
        /// Slopes that the micro-batch asks for.
        expected: usize,
    },
    /// The call does not follow from what the pass did last.
    #[error("{call} needs {needs}")]
    Order {
        /// What was called.
        call: &'static str,
        /// What has to come before.
        needs: &'static str,
    },
    /// A setting is out of its range.
    #[error("{setting} is {value}, expected {expected}")]
    Setting {
        /// Which one.
        setting: &'static str,
        /// Its value.
        value: f64,
        /// Its range, in words.
        expected: &'static str,
    },
}
