//! How an adapter is trained, whoever asks for it: a job of the server, or the command line.
//!
//! ```text
//! Recipe: method, settings or `auto`, seed, precision
//!    │            rows ── load ──> Loaded: items, report
//!    └──────────────────────────────┴─ Prepared: samples, batches, settings as numbers
//!                                         └─ learner ──> steps, in Prepared's order ──> Place, Results
//! ```
//! Where rows are prompts ([`Method::Reinforcement`]), who trains samples answers to a step's, and makes samples of them.
//!
//! The same recipe on the same rows and base comes to the same bytes: nothing here depends on a clock, a store or a
//! terminal.

mod memory;
mod parent;
mod place;
pub mod precision_name;
mod prepared;
mod results;
mod rows;
mod settings;

use pleach_engine::site::Site;

use crate::{data::DataError, error::TrainerError};

pub use memory::{TrainingMemory, rows_of};
pub use parent::Parent;
pub use place::{Place, Validation};
pub use prepared::{ACTIVATION_BYTES, Compute, Prepared};
pub use results::{Measured, Results};
pub use rows::{EXAMPLE_TOKENS_MAX, Prompt, RowsOf, Text, load, samples};
pub use settings::{Auto, Exploration, GROUP_SIZE, Hyperparameters, Method, Recipe, Resolved};

/// Why a recipe cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The first bad lines.
    #[error("{}", sentences(.0))]
    Rows(Vec<DataError>),
    /// A row from which the method cannot learn.
    #[error("line {line}: the method {method} cannot learn from such rows")]
    Method {
        /// In which file.
        rows_of: RowsOf,
        /// Its line.
        line: u64,
        /// The method.
        method: &'static str,
    },
    /// An adapter of a kind that is not trained.
    #[error("{site}: {kind} cannot be trained")]
    Parent {
        /// Where.
        site: Site,
        /// The kind.
        kind: &'static str,
    },
    /// A rank that is not the parent's.
    #[error("the rank {asked} was asked for, the adapter to go on from has the rank {parent}")]
    Rank {
        /// As asked.
        asked: u32,
        /// The parent's.
        parent: usize,
    },
    /// The learner refused.
    #[error(transparent)]
    Trainer(#[from] TrainerError),
}

fn sentences(errors: &[DataError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
