//! From feedback to better weights: rounds of the loop, one at a time for each adapter of each owner.
//!
//! ```text
//! policy ──> triggers ──> runner: one step after the other, each written before the next
//!     building: material ──> dataset ──> a file of rows
//!     training: a job for each fold; sifting: whom all others contradict is left out; a job for the rest
//!                                                              (kept under hidden names)
//!               a rebuild has no folds: one job for what is left of the data of the round that made the generation
//!     gating:   examiner ──> evidence ──> trainer::gate::judge
//!     shadow:   shadows: what was answered is run on the candidate once more, for nobody to see
//!     canary:   rollouts ── trial: who gets the candidate, and whether it may go on
//!     promotion by compare-and-swap, watching, taking back; ending: what is left to do
//! ```

mod building;
mod card;
mod claims;
mod cpu_examiner;
pub mod dataset;
mod ending;
mod examiner;
mod gating;
mod material;
mod more_often;
mod policy;
mod probes;
mod probing;
mod progress;
mod promotion;
mod provenance;
mod rebuild;
pub mod refusals;
pub mod rollouts;
mod runner;
pub mod shadows;
mod sifting;
mod steps;
mod token_times;
mod training;
pub mod trial;
mod triggers;
mod wake;

pub use building::ANCHOR_BYTES_MAX;
pub use card::model_card;
pub use cpu_examiner::CpuExaminer;
pub use ending::clean_up;
pub use examiner::{Exam, ExamError, ExamRow, Examiner, FoldExam, Stop};
pub use policy::{
    Guardrails, MethodChoice, MetricRule, Policy, PolicyProblem, Rollout, Signals, Stage, TrainWhen,
};
pub use progress::{LeftOut, Progress, RoundJob, Trigger};
pub use provenance::Provenance;
pub use rebuild::round_that_made;
pub use runner::{Learning, ROUNDS_MAX, run_rounds};
pub use triggers::{Begin, begin};
pub use wake::{Waiter, Wake};
