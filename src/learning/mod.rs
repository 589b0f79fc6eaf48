//! From feedback to better weights: rounds of the loop, one at a time for each adapter of each owner.
//!
//! ```text
//! feedback ──> data set ──> fold jobs + final job ──> gate ──> (approval) ──> canary ──> full
//!   policy       dataset        training                examiner               rollout
//! ```

mod card;
pub mod dataset;
mod policy;
mod provenance;
pub mod trial;

pub use card::model_card;
pub use policy::{
    Guardrails, MethodChoice, MetricRule, Policy, PolicyProblem, Rollout, Signals, Stage, TrainWhen,
};
pub use provenance::Provenance;
