//! `building`: from feedback to a file of rows.

use pleach_store::{NewFile, RoundState, StoreError, StoredRound};
use pleach_trainer::data::ReportSettings;

use super::{
    dataset::{self, LoopData},
    material::{self, Limits, Read, rows_of_file},
    progress::Progress,
    rebuild::Before,
    steps::{Next, StepError, ends, goes_to, problem},
    training::delete_file,
};
use crate::{
    http::{state::AppState, wire::files::FINE_TUNE},
    telemetry::unix_time,
};

/// Largest file of trusted rows.
pub const ANCHOR_BYTES_MAX: u64 = 64 << 20;
/// For how long a data set is kept at least and at most, ms: as long as what it is made of, within this.
const KEEP_MS_MIN: i64 = 60 * 60 * 1000;
const KEEP_MS_MAX: i64 = 30 * 24 * 60 * 60 * 1000;

/// Makes the data set, its file, and the list of what it is made of; or finds that there is too little.
pub(super) async fn build(
    state: &AppState,
    round: &StoredRound,
    mut progress: Progress,
) -> Result<Next, StepError> {
    // What is on its way belongs to it.
    state.capture.settled().await;
    let limits = Limits::OF_ROUND;
    let before = Before::of(&state.store, round).await?;
    let only = before.as_ref().map(|before| &before.examples);
    let mut read = material::read(&state.store, &round.owner, &round.name, limits, only).await?;
    if read.is_cut {
        let Limits { completions_max, bytes_max } = limits;
        tracing::warn!(round = round.id, completions_max, bytes_max, "older feedback is left out");
    }
    progress.is_cut = read.is_cut;
    read.material.anchors = anchors(state, round, &progress).await?;
    progress.usual = match &before {
        Some(before) => before.usual,
        None => dataset::judged_and_negative(&read.material, &progress.policy.signals),
    };
    // It takes seconds of much.
    let policy = progress.policy.clone();
    let made = move || {
        let data = dataset::build(&read.material, &policy);
        let text = data.jsonl(None);
        (read, data, text)
    };
    let (read, data, text) = tokio::task::spawn_blocking(made).await.map_err(StepError::server)?;
    let (n_rows, n_groups) = (data.rows.len(), n_groups(&data));
    let gate = progress.policy.gate;
    progress.method = Some(data.method);
    progress.counts = Some(data.counts.clone());
    progress.n_folds = if before.is_some() { 0 } else { progress.policy.folds };
    let folds = folds_of(&data.groups(), &progress);
    progress.n_folds = progress.n_folds.min(u32::try_from(folds.n_folds).unwrap_or(u32::MAX));
    let is_left_out = progress.policy.leaves_out_contradicted;
    // Without folds nobody can be looked for.
    progress.left_out = before.filter(|_| is_left_out).map(|before| before.left_out_of(&data));
    let of_training = |fold: Option<u32>| match fold {
        Some(fold) => folds.learned(fold as usize).count(),
        None => n_rows - progress.n_left_out(),
    };
    let n_learned = progress.plan().map(of_training).min().unwrap_or_default();
    let n_learned = n_learned + data.anchors_learned.len();
    let n_learned_min = ReportSettings::default().rows_fail_below;
    let too_few = if n_rows < gate.examples_min || n_groups < gate.groups_min {
        Some(format!(
            "{n_rows} rows of {n_groups} groups; it takes at least {} of {} (gate.examples_min, gate.groups_min)",
            gate.examples_min, gate.groups_min
        ))
    } else if (n_learned as u64) < n_learned_min {
        Some(format!(
            "{n_rows} rows, of which a training has {n_learned} to learn from; it takes at least {n_learned_min} \
             (folds, leaves_out_contradicted)"
        ))
    } else {
        None
    };
    if let Some(message) = too_few {
        let Next::Change(mut change) =
            ends(RoundState::Skipped, problem("too_few_examples", message))
        else {
            return Ok(Next::Wait);
        };
        change.progress = Some(progress.to_value()?);
        return Ok(Next::Change(change));
    }
    let name = format!("{}.jsonl", round.id);
    let file = put_file(state, round, name, text, &read).await?;
    let mut change = goes_to(RoundState::Training, &progress)?;
    change.file = Some(file);
    change.examples = read.examples(&data);
    Ok(Next::Change(Box::new(change)))
}

/// The folds of rows of these groups; without folds all rows are in one.
pub(super) fn folds_of(groups: &[&str], progress: &Progress) -> pleach_trainer::Folds {
    pleach_trainer::folds(groups, progress.n_folds as usize, progress.policy.seed)
}

fn n_groups(data: &LoopData) -> usize {
    let mut groups = data.groups();
    groups.sort_unstable();
    groups.dedup();
    groups.len()
}

/// The trusted rows that the policy names.
pub(super) async fn anchors(
    state: &AppState,
    round: &StoredRound,
    progress: &Progress,
) -> Result<Vec<serde_json::Value>, StepError> {
    let Some(file) = &progress.policy.anchors else { return Ok(Vec::new()) };
    match rows_of_file(&state.store, &round.owner, file, ANCHOR_BYTES_MAX).await {
        Ok(rows) => Ok(rows),
        Err(error @ StoreError::NotFound { .. }) => {
            Err(StepError::failed("anchors_not_found", format!("anchors: {error}")))
        }
        Err(error) => Err(error.into()),
    }
}

/// Makes the file of the data set. One that a process made which was killed before it said so is of older data, and goes.
async fn put_file(
    state: &AppState,
    round: &StoredRound,
    name: String,
    text: String,
    read: &Read,
) -> Result<String, StepError> {
    for file in state.store.files_of_round(&round.owner, &round.id).await? {
        delete_file(state, round, &file.id).await?;
    }
    let now_ms = i64::try_from(unix_time().as_millis()).unwrap_or(i64::MAX);
    let keep_ms = read.expires_ms.unwrap_or(now_ms).saturating_sub(now_ms);
    let keep_ms = Some(keep_ms.clamp(KEEP_MS_MIN, KEEP_MS_MAX));
    new_file(state, round, name, text, keep_ms).await
}

/// Makes a file of rows of the round's.
pub(super) async fn new_file(
    state: &AppState,
    round: &StoredRound,
    filename: String,
    text: String,
    keep_ms: Option<i64>,
) -> Result<String, StepError> {
    let blob = state.store.put_blob(text).await?;
    let (owner, purpose) = (round.owner.clone(), FINE_TUNE.to_owned());
    let file = NewFile { owner, filename, purpose, blob, keep_ms };
    match state.store.create_file_of_round(&file, &round.id).await {
        Ok(file) => Ok(file.id),
        Err(error @ StoreError::QuotaExceeded { .. }) => {
            Err(StepError::failed("quota_exceeded", error))
        }
        Err(error) => Err(error.into()),
    }
}
