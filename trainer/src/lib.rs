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
//! The engine knows no objective and this crate no kernel: they meet at the log-probabilities of target tokens.

pub mod data;
mod early_stopping;
mod error;
mod files;
mod learner;
mod lora;
pub mod objective;
mod optimizer;
mod peft;
mod state;

pub use early_stopping::{Better, EarlyStopping, Verdict};
pub use error::TrainerError;
pub use learner::{Learner, LearnerSettings, StepReport};
pub use lora::LoraSettings;
pub use objective::{Objective, Sample, Targeted};
pub use optimizer::{AdamW, OptimizerSettings, Schedule};
pub use peft::{Precision, save_peft};
pub use state::{StateError, TrainState};
