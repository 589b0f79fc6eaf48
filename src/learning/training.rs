//! `training`: a job for each fold, and one for everything that nobody contradicts, one after the other. A rebuild has no
//! folds.

use std::sync::Arc;

use pleach_adapters::Generation;
use pleach_store::{
    GenerationDigest, JobStatus, Metadata, NewJob, NewLineage, Origin, Page, RoundState,
    StoreError, StoredJob, StoredRound,
};
use serde_json::{Value, json};

use super::{
    building::{folds_of, new_file},
    examiner::Examiner,
    material::rows_of_file,
    progress::{Progress, RoundJob},
    sifting::{is_left_out, sift},
    steps::{Next, StepError, goes_to, notes},
};
use crate::{
    adapter_service::{Target, candidate_name},
    http::state::AppState,
    training::{Auto, JobSpec, ParentError, find_parent, read_parent},
};

/// Keys of a job's metadata, by which its round finds it again.
pub(super) const ROUND: &str = "round";
const FOLD: &str = "fold";
const ALL_FOLDS: &str = "all";
/// Largest data set that is read.
const DATA_BYTES_MAX: u64 = 1 << 30;
/// For how long a file of a part is kept that nobody deleted, ms.
const PART_KEEP_MS: i64 = 7 * 24 * 60 * 60 * 1000;

/// Begins the next job, looks after the one that runs, or goes on to the gate.
pub(super) async fn train(
    state: &Arc<AppState>,
    examiner: &Arc<dyn Examiner>,
    round: &StoredRound,
    mut progress: Progress,
) -> Result<Next, StepError> {
    for fold in progress.plan() {
        let Some(known) = progress.job(fold).cloned() else {
            let is_to_sift = progress.policy.leaves_out_contradicted && progress.left_out.is_none();
            if fold.is_none() && is_to_sift {
                return sift(state, examiner, round, progress).await;
            }
            return begin(state, round, progress, fold).await;
        };
        if known.generation.is_some() {
            continue;
        }
        let job = state.store.job(&round.owner, &known.job).await?;
        let generation = match job.status {
            JobStatus::Succeeded => result_of(state, round, &progress, &job, fold).await?,
            JobStatus::Failed => {
                let reason = job.error.map(|error| error.message).unwrap_or_default();
                let message = format!("training job {} failed: {reason}", known.job);
                return Err(StepError::failed("job_failed", message));
            }
            JobStatus::Cancelled => {
                let message = format!("training job {} was cancelled", known.job);
                return Err(StepError::failed("job_cancelled", message));
            }
            JobStatus::ValidatingFiles
            | JobStatus::Queued
            | JobStatus::Running
            | JobStatus::Paused => return Ok(Next::Wait),
        };
        if let Some(job) = progress.jobs.iter_mut().find(|job| job.fold == fold) {
            job.generation = Some(generation.to_string());
            if let Some(file) = job.file.take() {
                delete_file(state, round, &file).await?;
            }
        }
        return notes(&progress);
    }
    let candidate = trained(state, round, &progress, None).await?;
    let mut change = goes_to(RoundState::Gating, &progress)?;
    change.candidate = Some(GenerationDigest(candidate.digest.0));
    Ok(Next::Change(Box::new(change)))
}

/// What was trained without a fold, or on everything.
pub(super) async fn trained(
    state: &AppState,
    round: &StoredRound,
    progress: &Progress,
    fold: Option<u32>,
) -> Result<Arc<Generation>, StepError> {
    let gone = || StepError::failed("candidate_gone", "what was trained is not kept any more");
    let job = progress.job(fold).ok_or_else(gone)?;
    let alias = state.adapters.stored(candidate(round, &job.job)).await?;
    Ok(alias.ok_or_else(gone)?.generation)
}

/// The hidden name of a job's adapter.
pub(super) fn candidate(round: &StoredRound, job: &str) -> Target {
    Target {
        owner: round.owner.clone(),
        name: candidate_name(job),
        who: format!("round {}", round.id),
    }
}

/// Creates the job without a fold, or on everything; unless a process that was killed did.
async fn begin(
    state: &AppState,
    round: &StoredRound,
    mut progress: Progress,
    fold: Option<u32>,
) -> Result<Next, StepError> {
    let label = fold.map_or_else(|| ALL_FOLDS.to_owned(), |fold| fold.to_string());
    let metadata: Metadata =
        [(ROUND.to_owned(), round.id.clone()), (FOLD.to_owned(), label.clone())].into();
    let known = state.store.jobs(&round.owner, &metadata, &Page::FIRST).await?;
    let data_file = round
        .file
        .clone()
        .ok_or_else(|| StepError::server("a round that trains has no data set"))?;
    if let Some(job) = known.items.into_iter().next() {
        let file = Some(job.training_file).filter(|file| *file != data_file);
        progress.jobs.push(RoundJob { fold, job: job.id, file, generation: None });
        return notes(&progress);
    }
    let file = if fold.is_some() || progress.n_left_out() > 0 {
        Some(part_file(state, round, &progress, fold).await?)
    } else {
        None
    };
    let method =
        progress.method.ok_or_else(|| StepError::server("a round that trains has no method"))?;
    let parent = goes_on_from(state, round).await?;
    let parent = parent.map(|generation| GenerationDigest(generation.digest.0));
    let mut hyperparameters = progress.policy.hyperparameters;
    if parent.is_some() {
        // It has the parent's.
        hyperparameters.lora_rank = Auto::Auto;
    }
    let shape_of = round.rebuild_of.filter(|_| hyperparameters.lora_rank.is_auto());
    let spec = JobSpec {
        method,
        hyperparameters,
        seed: progress.policy.seed,
        precision: state.training.precision(),
        suffix: None,
        round: Some(round.id.clone()),
        early_stopping: None,
        parent,
        shape_of,
        grader: None,
    };
    let base = state.adapters.registry().base_names().first().cloned().unwrap_or_default();
    let new = NewJob {
        model: base,
        training_file: file.clone().unwrap_or(data_file),
        validation_file: None,
        spec: serde_json::to_string(&spec)?,
        metadata,
    };
    match state.store.create_job(&round.owner, &new).await {
        Ok(job) => {
            state.training.wake();
            progress.jobs.push(RoundJob { fold, job: job.id, file, generation: None });
            notes(&progress)
        }
        Err(error) => {
            if let Some(file) = file {
                delete_file(state, round, &file).await?;
            }
            // The owner's other jobs will end.
            let is_full = matches!(error, StoreError::QuotaExceeded { .. });
            if is_full { Ok(Next::Wait) } else { Err(data_gone(error)) }
        }
    }
}

/// The generation that trainings of a round go on from. `None` is the base: of what is to forget something, and where the
/// parent is of a kind that cannot be trained.
pub(super) async fn goes_on_from(
    state: &AppState,
    round: &StoredRound,
) -> Result<Option<Arc<Generation>>, StepError> {
    let (None, Some(parent)) = (round.rebuild_of, round.parent) else { return Ok(None) };
    let found = find_parent(state.adapters.registry(), &round.owner, parent);
    let generation = found.map_err(|error| StepError::failed("parent_gone", error))?;
    let (of_task, spec) = (Arc::clone(&generation), state.engine.spec().clone());
    let read = tokio::task::spawn_blocking(move || read_parent(&of_task, &spec).map(drop)).await;
    match read.map_err(StepError::server)? {
        Ok(()) => Ok(Some(generation)),
        Err(ParentError::Kind(_) | ParentError::Empty) => Ok(None),
        Err(error) => Err(StepError::failed("parent_unreadable", error)),
    }
}

/// The rows of a round's data set.
pub(super) async fn rows_of_round(
    state: &AppState,
    round: &StoredRound,
) -> Result<Vec<Value>, StepError> {
    let file = round.file.as_deref().ok_or_else(|| StepError::server("it has no data set"))?;
    rows_of_file(&state.store, &round.owner, file, DATA_BYTES_MAX).await.map_err(data_gone)
}

/// A file of the data set without the rows of a fold, or, for the training on everything, without those left out.
async fn part_file(
    state: &AppState,
    round: &StoredRound,
    progress: &Progress,
    fold: Option<u32>,
) -> Result<String, StepError> {
    let rows = rows_of_round(state, round).await?;
    let (held, trusted) = held_out(&rows);
    let groups = groups(held);
    let is_learned: Vec<bool> = match fold {
        Some(fold) => {
            let folds = folds_of(&groups, progress);
            folds.of_rows.iter().map(|of_row| *of_row != fold as usize).collect()
        }
        None => groups.iter().map(|group| !is_left_out(progress, group)).collect(),
    };
    let learned = held.iter().zip(is_learned).filter_map(|(row, is)| is.then_some(row));
    let lines: Vec<_> = learned.chain(trusted).map(Value::to_string).collect();
    let text = lines.join("\n") + "\n";
    let without = fold.map_or_else(|| "contradicted".to_owned(), |fold| fold.to_string());
    let name = format!("{}-without-{without}.jsonl", round.id);
    new_file(state, round, name, text, Some(PART_KEEP_MS)).await
}

fn data_gone(error: StoreError) -> StepError {
    if matches!(error, StoreError::NotFound { .. }) {
        return StepError::failed("data_gone", "the data set is not kept any more");
    }
    error.into()
}

/// The rows of a data set that are held out once each, and the trusted ones, which come last.
pub(super) fn held_out(rows: &[Value]) -> (&[Value], &[Value]) {
    let n_held = rows.iter().take_while(|row| row["trusted"] != true).count();
    rows.split_at(n_held)
}

/// The groups of rows.
pub(super) fn groups(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["group"].as_str().unwrap_or_default()).collect()
}

pub(super) async fn delete_file(
    state: &AppState,
    round: &StoredRound,
    file: &str,
) -> Result<(), StepError> {
    match state.store.delete_file(&round.owner, file).await {
        // Somebody else may have, or a job of the owner's needs it: its time will be over.
        Ok(()) | Err(StoreError::NotFound { .. } | StoreError::FileInUse { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What a job came to. That of the candidate has a lineage; those of folds serve nobody and go when the round ends, so nobody
/// has to know what they learned from.
async fn result_of(
    state: &AppState,
    round: &StoredRound,
    progress: &Progress,
    job: &StoredJob,
    fold: Option<u32>,
) -> Result<GenerationDigest, StepError> {
    // It may have been trained by another process.
    let kept = state.adapters.stored(candidate(round, &job.id)).await?;
    let kept = kept.ok_or_else(|| {
        StepError::failed("candidate_gone", "what was trained is not kept any more")
    })?;
    let generation = GenerationDigest(kept.generation.digest.0);
    if fold.is_some() {
        return Ok(generation);
    }
    let stored = state.store.generation(&round.owner, &generation).await?;
    let (data_sha256, parent) = match stored.origin {
        Origin::Training { data_sha256, parent, .. } => (Some(data_sha256), parent),
        Origin::Upload | Origin::Place { .. } | Origin::Merge { .. } => (None, None),
    };
    let Progress { policy, method, counts, .. } = progress;
    let spec: JobSpec = serde_json::from_str(&job.spec)?;
    let lineage = NewLineage {
        generation,
        base_sha256: state.adapters.base_digest().to_owned(),
        parent,
        round: Some(round.id.clone()),
        job: Some(job.id.clone()),
        data_sha256,
        recipe: json!({
            "method": method,
            "hyperparameters": policy.hyperparameters,
            "precision": spec.precision.name(),
            "data": counts,
            "rows_left_out": progress.n_left_out(),
        }),
        seed: policy.seed,
    };
    state.store.put_lineage(&round.owner, &lineage).await?;
    Ok(generation)
}
