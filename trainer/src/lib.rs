//! Training adapters through the quantized base that serves.
//!
//! ```text
//! data ──> Sample ── Learner::begin ──> passes of the engine, unit by unit ──> log-probabilities
//!                        ^                                                        │ Objective
//!                        │                                                        v
//!      AdamW <── gradients <── backward halves <── dL/dlogp of every target, loss, metrics
//! LoraSettings ──> a fresh adapter        Learner ──> PEFT folder (served), TrainState (resumed)
//! ```
//!
//! Answers that are sampled on the way are worth what a [`grader`] says.
//!
//! What was trained is scored ([`Scorer`]) on rows that it did not learn from ([`folds()`]) and judged ([`gate`]) before it may
//! serve; whoever is [contradicted](`contradicted()`) by all others is not learned from.
//!
//! The engine knows no objective and this crate no kernel: they meet at the log-probabilities of target tokens and the
//! hidden states that a head reads.

mod contradicted;
pub mod data;
mod diagnosis;
mod early_stopping;
mod error;
mod files;
mod folds;
pub mod gate;
pub mod grader;
mod head;
mod learner;
mod lora;
pub mod objective;
mod optimizer;
mod peft;
pub mod recipe;
mod scoring;
mod state;

pub use contradicted::{Contradicted, HeldOutScore, contradicted};
pub use diagnosis::{Diagnosis, Symptom};
pub use early_stopping::{Better, EarlyStopping, StopSignal};
pub use error::TrainerError;
pub use files::write_atomically;
pub use folds::{Folds, folds};
pub use head::Head;
pub use learner::{Learner, LearnerSettings, StepReport};
pub use lora::LoraSettings;
pub use objective::{Objective, Sample, SequenceScores, Targeted};
pub use optimizer::{AdamW, OptimizerSettings, Schedule};
pub use peft::{Precision, save_peft, save_peft_classifier};
pub use scoring::{SampleScore, Scorer, divergence};
pub use state::{StateError, TrainState};
