//! Training of adapters through frozen weights, as seen from outside: what goes in, what comes out, what it costs.
//!
//! A *pass* ([`crate::cpu::TrainPass`]) takes one [`MicroBatch`] forward to the log-probability of every target token (and
//! the hidden state of every feature), and backward from [`Slopes`], what the loss changes by with each of them, to
//! [`AdapterGradients`]. It knows no objective: a loss is a function of log-probabilities and features, and belongs to the
//! caller. A loss over distributions asks for several tokens at a row; which ones, another pass may say
//! ([`Purpose::Rank`]).
//!
//! A pass is a sequence of short units of work, so that it can stand aside for serving after any of them.

mod error;
mod gradients;
mod micro_batch;
mod options;

pub use error::TrainError;
pub use gradients::{AdapterGradients, AdapterShape, SiteGradients};
pub use micro_batch::{MicroBatch, Target};
pub use options::{
    Dropout, Likely, MemoryNeed, NoBf16, ProductPrecision, Progress, Purpose, Slopes, TrainOptions,
    UnitCost, UnknownProductPrecision,
};
