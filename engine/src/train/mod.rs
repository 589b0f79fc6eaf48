//! Training of adapters through frozen weights, as seen from outside: what goes in, what comes out, what it costs.
//!
//! A *pass* ([`crate::cpu::TrainPass`]) takes one [`MicroBatch`] forward to the log-probability of every target token,
//! and backward from the weights `dL/dlogp` of the same targets to [`AdapterGradients`]. It knows no objective: a loss is
//! a function of log-probabilities, and belongs to the caller. (A loss over whole distributions, such as a KL divergence
//! over the likeliest tokens, would be more numbers per target: [`Target`] is where they would be.)
//!
//! A pass is a sequence of short units of work, so that it can stand aside for serving after any of them.

mod error;
mod gradients;
mod micro_batch;
mod options;

pub use error::TrainError;
pub use gradients::{AdapterGradients, AdapterShape, SiteGradients};
pub use micro_batch::{MicroBatch, Target};
pub use options::{Dropout, MemoryNeed, Progress, Purpose, TrainOptions, UnitCost};
