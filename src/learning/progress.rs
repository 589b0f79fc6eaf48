//! What a round keeps with itself, beside what the store knows of every round.

use pleach_store::StoredRound;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{dataset::Counts, policy::Policy, trial::Trial};
use crate::training::Method;

/// What began a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// Somebody asked for it.
    Manual,
    /// There was enough feedback.
    Examples,
    /// There was feedback that had waited long enough.
    Age,
}

/// A training of a round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundJob {
    /// The fold whose rows it does not learn from; `None` learns from all.
    pub fold: Option<u32>,
    /// Its job.
    pub job: String,
    /// A file that is there for this job alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// What it came to, 64 hex digits.
    #[serde(default)]
    pub generation: Option<String>,
}

/// A group of rows that all others contradict: see [`pleach_trainer::contradicted()`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeftOut {
    /// As its rows have it: a digest.
    pub group: String,
    /// Its rows.
    pub rows: usize,
    /// Their median score under what training went on from, in nats.
    pub score_before: f64,
    /// That under what learned from others.
    pub score_after: f64,
    /// What that is below.
    pub bound: f64,
    /// Whether the gate judges by its rows: if what went before told them well, they are what the candidate would spoil.
    #[serde(default = "judges")]
    pub judges: bool,
}

/// Rounds of earlier versions judged by all rows.
const fn judges() -> bool {
    true
}

/// See the module. Kept as JSON; fields that come later are optional.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The policy as it was when the round began: a change is for the next one.
    pub policy: Policy,
    /// What began it.
    pub trigger: Trigger,
    /// The last feedback that had come when it began: what is later is for the next one to wait for.
    #[serde(default)]
    pub newest_feedback: Option<String>,
    /// What its rows are for.
    #[serde(default)]
    pub method: Option<Method>,
    /// How its rows came about.
    #[serde(default)]
    pub counts: Option<Counts>,
    /// Whether there was more feedback than is read for a round; the newest was.
    #[serde(default)]
    pub is_cut: bool,
    /// Parts of its rows; none of a rebuild's.
    #[serde(default)]
    pub n_folds: u32,
    /// Whose rows the candidate does not learn from; `None`: nobody has looked yet, or nobody is to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<Vec<LeftOut>>,
    /// Answers in its data that were judged by values of metrics, and those of which the judgement was negative.
    #[serde(default)]
    pub usual: (u64, u64),
    /// Its trainings, in their order.
    #[serde(default)]
    pub jobs: Vec<RoundJob>,
    /// Its candidate on trial.
    #[serde(default)]
    pub trial: Option<Trial>,
    /// The name is being moved to the candidate, or has been.
    #[serde(default)]
    pub is_promoting: bool,
}

impl Progress {
    /// Of a round that begins.
    pub fn new(policy: Policy, trigger: Trigger, newest_feedback: Option<String>) -> Self {
        Self {
            policy,
            trigger,
            newest_feedback,
            method: None,
            counts: None,
            is_cut: false,
            n_folds: 0,
            left_out: None,
            usual: (0, 0),
            jobs: Vec::new(),
            trial: None,
            is_promoting: false,
        }
    }

    /// Of a stored round.
    ///
    /// # Errors
    /// When it was written by a later version.
    pub fn of(round: &StoredRound) -> serde_json::Result<Self> {
        serde_json::from_value(round.progress.clone())
    }

    /// As it is stored.
    ///
    /// # Errors
    /// When a number has no JSON form: a bug.
    pub fn to_value(&self) -> serde_json::Result<Value> {
        serde_json::to_value(self)
    }

    /// Rows that the candidate does not learn from, as far as is known.
    pub fn n_left_out(&self) -> usize {
        self.left_out.iter().flatten().map(|group| group.rows).sum()
    }

    /// The folds that are trained without, in order; last, everything.
    pub fn plan(&self) -> impl Iterator<Item = Option<u32>> + use<> {
        (0..self.n_folds).map(Some).chain([None])
    }

    /// The training without a fold, or on everything.
    pub fn job(&self, fold: Option<u32>) -> Option<&RoundJob> {
        self.jobs.iter().find(|job| job.fold == fold)
    }
}
