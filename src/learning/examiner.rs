//! Gathering what a candidate is judged by.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::future::BoxFuture;
use pleach_adapters::Generation;
use pleach_store::JobError;
use pleach_trainer::{HeldOutScore, gate::Evidence};
use serde_json::Value;

use crate::{http::state::AppState, training::Method};

/// A row that was held out.
#[derive(Clone, Debug, PartialEq)]
pub struct ExamRow {
    /// As its file has it.
    pub value: Value,
    /// Rows of a group hang together.
    pub group: String,
    /// The fold that it was held out with.
    pub fold: u32,
}

/// What a candidate is to be examined by.
#[derive(Clone, Debug)]
pub struct Exam {
    /// The round, for the log.
    pub round: String,
    /// What the rows are for.
    pub method: Method,
    /// Each to be scored under the adapter of its fold.
    pub rows: Vec<ExamRow>,
    /// Trusted rows, to be scored under the candidate; `None` if the owner named none.
    pub anchors: Option<Vec<Value>>,
    /// By fold, what was trained without it; of a rebuild the candidate, for all rows.
    pub folds: Vec<Arc<Generation>>,
    /// What was trained on everything.
    pub candidate: Arc<Generation>,
    /// What serves; `None` is the base.
    pub current: Option<Arc<Generation>>,
    /// The best of what served before.
    pub best: Option<Arc<Generation>>,
    /// Questions.
    pub probes: Vec<String>,
    /// Of what is sampled.
    pub seed: u64,
    /// Set when nobody wants to know any more.
    pub stop: Stop,
}

/// Whose rows others tell.
#[derive(Clone, Debug)]
pub struct FoldExam {
    /// The rows, each held out with its fold.
    pub rows: Vec<ExamRow>,
    /// By fold, what was trained without it.
    pub folds: Vec<Arc<Generation>>,
    /// What these trainings went on from; `None` is the base.
    pub before: Option<Arc<Generation>>,
    /// Set when nobody wants to know any more.
    pub stop: Stop,
}

/// Whether to go on.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks to stop.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked to.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why there is no evidence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExamError {
    /// It cannot be gathered.
    #[error("{}", .0.message)]
    Failed(JobError),
    /// [`Stop`] was set, or the server stops: to be done again.
    #[error("interrupted")]
    Interrupted,
}

impl ExamError {
    /// It cannot be gathered.
    pub fn failed(code: &str, message: impl fmt::Display) -> Self {
        Self::Failed(JobError { code: code.to_owned(), message: message.to_string(), param: None })
    }
}

/// Gathers evidence.
pub trait Examiner: fmt::Debug + Send + Sync + 'static {
    /// Examines a candidate. Takes as long as it takes, aside for what is served.
    ///
    /// # Errors
    /// [`ExamError`].
    fn examine(
        &self,
        state: Arc<AppState>,
        exam: Exam,
    ) -> BoxFuture<'_, Result<Evidence, ExamError>>;

    /// Of each row, its scores before the training and under the adapter of its fold; NaN where there is none.
    ///
    /// # Errors
    /// [`ExamError`].
    fn fold_scores(
        &self,
        state: Arc<AppState>,
        exam: FoldExam,
    ) -> BoxFuture<'_, Result<Vec<HeldOutScore>, ExamError>>;
}
