//! Policies and rounds of the learning loop.

use pleach_store::{Decided, GenerationDigest, JobError, StoredPolicy, StoredRound};
use serde::Serialize;
use serde_json::Value;

use super::hidden_names::without_hidden;

use crate::learning::{
    LeftOut, Progress, RoundJob, Trigger,
    dataset::Counts,
    trial::{Breach, ShadowCounts, SideCounts, TrialPhase},
};
use crate::training::Method;

/// A policy, as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct PolicyCard {
    /// Always `adapter.policy`.
    pub object: &'static str,
    /// The adapter.
    pub name: String,
    /// Goes up with every change.
    pub revision: i64,
    /// When it was last changed, Unix seconds.
    pub updated_at: i64,
    /// The document, with all defaults.
    pub policy: Value,
}

impl From<StoredPolicy> for PolicyCard {
    fn from(stored: StoredPolicy) -> Self {
        Self {
            object: "adapter.policy",
            name: stored.name,
            revision: stored.revision,
            updated_at: stored.updated_ms / 1000,
            policy: stored.body,
        }
    }
}

/// The answer to the deletion of a policy.
#[derive(Clone, Debug, Serialize)]
pub struct PolicyDeleted {
    /// The adapter.
    pub name: String,
    /// Always `adapter.policy`.
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
}

/// A round, as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct RoundCard {
    /// `round-…`.
    pub id: String,
    /// Always `adapter.round`.
    pub object: &'static str,
    /// The adapter.
    pub adapter: String,
    /// Where it is.
    pub state: &'static str,
    /// When it began, Unix seconds.
    pub created_at: i64,
    /// When it last changed, Unix seconds.
    pub updated_at: i64,
    /// When it ended, Unix seconds.
    pub ended_at: Option<i64>,
    /// What began it.
    pub trigger: Option<Trigger>,
    /// The generation that is made again.
    pub rebuild_of: Option<String>,
    /// Where the name pointed when it began.
    pub parent: Option<String>,
    /// What was trained on everything.
    pub candidate: Option<String>,
    /// The file of its rows.
    pub training_file: Option<String>,
    /// What its rows are for.
    pub method: Option<&'static str>,
    /// How its rows came about.
    pub data: Option<Counts>,
    /// Whose rows the candidate does not learn from, because all others contradict them; `null` before anybody looked.
    pub left_out: Option<Vec<LeftOut>>,
    /// Whether older feedback was left out, as there was more than a round reads.
    pub data_is_cut: bool,
    /// Its trainings.
    pub jobs: Vec<RoundJob>,
    /// Rounds of this adapter that came to the gate, this one included.
    pub look: Option<u32>,
    /// What the gate found.
    pub verdict: Option<Value>,
    /// The candidate on trial.
    pub rollout: Option<RolloutCard>,
    /// Why it failed, was skipped or was taken back.
    pub error: Option<JobError>,
    /// What people decided, and guardrails after promotion.
    pub decisions: Vec<Decided>,
}

/// A trial, as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct RolloutCard {
    /// Where it is.
    pub phase: TrialPhase,
    /// Requests of the candidate in this phase.
    pub requests_in_phase: u64,
    /// Of the generation that serves.
    pub current: SideCounts,
    /// Of the candidate.
    pub candidate: SideCounts,
    /// Of requests that were run on it too, for nobody to see.
    pub shadows: ShadowCounts,
    /// Why it was taken back.
    pub breach: Option<Breach>,
}

impl From<StoredRound> for RoundCard {
    fn from(round: StoredRound) -> Self {
        // What a later version wrote is shown as far as the store knows it.
        let progress = Progress::of(&round).ok();
        let digest = |digest: Option<GenerationDigest>| digest.map(|digest| digest.to_string());
        let data_is_cut = progress.as_ref().is_some_and(|progress| progress.is_cut);
        let (trigger, method, data, left_out, jobs, trial) = progress
            .map(|p| (Some(p.trigger), p.method, p.counts, p.left_out, p.jobs, p.trial))
            .unwrap_or_default();
        Self {
            id: round.id,
            object: "adapter.round",
            adapter: round.name,
            state: round.state.name(),
            created_at: round.created_ms / 1000,
            updated_at: round.updated_ms / 1000,
            ended_at: round.ended_ms.map(|ms| ms / 1000),
            trigger,
            rebuild_of: digest(round.rebuild_of),
            parent: digest(round.parent),
            candidate: digest(round.candidate),
            training_file: round.file,
            method: method.map(Method::name),
            data,
            left_out,
            data_is_cut,
            jobs,
            look: round.look,
            verdict: round.verdict,
            rollout: trial.map(|trial| RolloutCard {
                phase: trial.phase,
                requests_in_phase: trial.in_phase,
                current: trial.current,
                candidate: trial.candidate,
                shadows: trial.shadows,
                breach: trial.breach,
            }),
            error: round
                .error
                .map(|error| JobError { message: without_hidden(error.message), ..error }),
            decisions: round.decisions,
        }
    }
}
