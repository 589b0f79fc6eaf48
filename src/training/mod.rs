//! From files that tenants send to adapters that they are served.
//!
//! ```text
//! upload ──> FileChecks: every row is read ──> a file of the store
//! job of the store ── run_jobs ──> Run ── Trainer::train ──> Trained ──> an adapter of the job's owner
//! ```
//! A training by rewards has prompts for rows: before each step, the engine answers them with the weights as they are
//! (`sampling.rs`), and a grader says what the answers are worth (`session/exploring.rs`).

mod best;
mod blob_source;
mod cpu_trainer;
mod file_checks;
mod jobs;
mod limits;
mod parent;
mod run;
mod sampling;
mod session;
mod slices;
mod spec;

pub use pleach_trainer::{
    grader::{Graded, Grader, GraderError},
    recipe::{Auto, Hyperparameters, Measured, Method, Resolved, Results},
};

pub use blob_source::BlobSource;
pub use cpu_trainer::{CpuTrainer, CpuTrainerOptions};
pub use file_checks::{CheckedFile, FileChecks, FileProblem};
pub use jobs::{Trainer, Training, run_jobs};
pub use limits::TrainingLimits;
pub use parent::{ParentError, find_parent, read_parent};
pub use run::{Run, RunError, Trained};
pub(crate) use slices::BesideSteps;
pub use spec::{JobSpec, checkpoint_name, model_name};
