//! Why training cannot go on.

use pleach_engine::{site::Site, train::TrainError};

/// Why training cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainerError {
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] TrainError),
    /// A sample of another kind than the objective learns from.
    #[error("sample {index} is {found}, the objective {objective} learns from {expected}")]
    Sample {
        /// Its place in the batch.
        index: usize,
        /// Its kind.
        found: &'static str,
        /// The objective.
        objective: &'static str,
        /// The kind that it takes.
        expected: &'static str,
    },
    /// A sample of a kind that has no score.
    #[error(
        "sample {index} is {found}, scored are supervised sequences, preference pairs and rated answers"
    )]
    Unscored {
        /// Its place among the samples.
        index: usize,
        /// Its kind.
        found: &'static str,
    },
    /// A sample alone is longer than a micro-batch.
    #[error("sample {index} has {rows} rows, a micro-batch has at most {rows_max}")]
    TooLong {
        /// Its place in the batch.
        index: usize,
        /// Rows of its sequences.
        rows: usize,
        /// Rows there is memory for.
        rows_max: usize,
    },
    /// A sample that cannot be learned from.
    #[error("sample {index}: {problem}")]
    BadSample {
        /// Its place in the batch.
        index: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Weights of a head that are not whole rows.
    #[error("a head of {found} weights over hidden states of {hidden} values")]
    Head {
        /// Weights given.
        found: usize,
        /// Width of the model.
        hidden: usize,
    },
    /// The head has another number of outputs than the objective.
    #[error("a head of {found} outputs, the objective {objective} has {expected}")]
    Outputs {
        /// Outputs of the head.
        found: usize,
        /// The objective.
        objective: &'static str,
        /// Its outputs; 0 is no head.
        expected: usize,
    },
    /// No token of the batch is a target, so there is no loss.
    #[error("the batch has no targets")]
    NoTargets,
    /// The call does not follow from what the learner did last.
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
    /// Settings name a site that the model does not have, or that cannot be trained.
    #[error("{site} cannot be trained: {problem}")]
    Site {
        /// Which one.
        site: Site,
        /// What is wrong with it.
        problem: &'static str,
    },
}
