//! `gating`: evidence, judgement, and what follows from it.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use pleach_adapters::Generation;
use pleach_store::{RoundState, StoredRound};
use pleach_trainer::gate::{CheckName, GateSettings, Verdict, judge};
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};

use super::{
    building,
    dataset::part_anchors,
    examiner::{Exam, ExamError, ExamRow, Examiner, Stop},
    probes::default_probes,
    progress::Progress,
    sifting::judges,
    steps::{Next, StepError, ends, goes_to, problem},
    training::{groups, held_out, rows_of_round, trained},
};
use crate::{adapter_service::Target, http::state::AppState};

/// How often it is looked whether the examination is still wanted.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Examines and judges the candidate.
pub(super) async fn gate(
    state: &Arc<AppState>,
    examiner: &Arc<dyn Examiner>,
    round: &StoredRound,
    progress: Progress,
) -> Result<Next, StepError> {
    if let Some(next) = moved(state, round) {
        return Ok(next);
    }
    let exam = exam(state, round, &progress).await?;
    let stop = exam.stop.clone();
    let examination = examiner.examine(Arc::clone(state), exam);
    let Some(evidence) = while_wanted(state, round, &stop, examination).await? else {
        return Ok(Next::Wait);
    };
    let verdict = judge(&evidence, &settings(round, &progress), round.look.unwrap_or(1));
    tracing::info!(
        round = round.id,
        passed = verdict.passed,
        summary = verdict.summary(),
        "judged"
    );
    let state = if !verdict.passed {
        RoundState::Refused
    } else if progress.policy.rollout.approval {
        RoundState::AwaitingApproval
    } else {
        first_of_trial(&progress)
    };
    let mut change = goes_to(state, &progress)?;
    change.verdict = Some(serde_json::to_value(&verdict)?);
    Ok(Next::Change(Box::new(change)))
}

/// What an examination comes to; `None` if it was interrupted, and is to be done again if the round goes on.
pub(super) async fn while_wanted<T>(
    state: &AppState,
    round: &StoredRound,
    stop: &Stop,
    examination: BoxFuture<'_, Result<T, ExamError>>,
) -> Result<Option<T>, StepError> {
    tokio::pin!(examination);
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            outcome = &mut examination => return match outcome {
                Ok(found) => Ok(Some(found)),
                Err(ExamError::Interrupted) => Ok(None),
                Err(ExamError::Failed(error)) => Err(StepError::Failed(error)),
            },
            _ = looks.tick() => {
                // A store that fails says nothing about what is wanted.
                let now = state.store.round(&round.owner, &round.id).await;
                if !state.is_serving() || now.is_ok_and(|now| now.state.is_final()) {
                    stop.stop();
                }
            }
        }
    }
}

/// The state in which a candidate that may go on begins its trial.
pub(super) fn first_of_trial(progress: &Progress) -> RoundState {
    if progress.policy.rollout.shadow.is_some() { RoundState::Shadow } else { RoundState::Canary }
}

/// A candidate that is made to forget something need not be better for it, only not worse than is tolerated.
fn settings(round: &StoredRound, progress: &Progress) -> GateSettings {
    let settings = progress.policy.gate;
    match round.rebuild_of {
        Some(_) => GateSettings { margin: -settings.anchor_tolerance, ..settings },
        None => settings,
    }
}

/// The end of a round whose name points elsewhere by now.
pub(super) fn moved(state: &AppState, round: &StoredRound) -> Option<Next> {
    let target = name_of(round);
    let here = state.adapters.kept(&target).map(|alias| alias.generation.digest.0);
    if here == round.parent.map(|parent| parent.0) {
        return None;
    }
    let message = format!(
        "the adapter `{}` points elsewhere than when the round began; the next one begins there",
        round.name
    );
    Some(ends(RoundState::Failed, problem("alias_moved", message)))
}

/// The name that a round is about.
pub(super) fn name_of(round: &StoredRound) -> Target {
    Target {
        owner: round.owner.clone(),
        name: round.name.clone(),
        who: format!("round {}", round.id),
    }
}

async fn exam(
    state: &AppState,
    round: &StoredRound,
    progress: &Progress,
) -> Result<Exam, StepError> {
    let method = progress.method.ok_or_else(|| StepError::server("it has no method"))?;
    let rows = rows_of_round(state, round).await?;
    let (held, _) = held_out(&rows);
    let mut held_out = exam_rows(held, progress);
    held_out.retain(|row| judges(progress, &row.group));
    let anchors = if progress.policy.anchors.is_some() {
        let anchors = building::anchors(state, round, progress).await?;
        let share = progress.policy.anchor_share;
        Some(part_anchors(&anchors, method, share, held.len()).1)
    } else {
        None
    };
    Ok(Exam {
        round: round.id.clone(),
        method,
        rows: held_out,
        anchors,
        folds: of_folds(state, round, progress).await?,
        candidate: trained(state, round, progress, None).await?,
        current: state.adapters.kept(&name_of(round)).map(|alias| alias.generation),
        best: best(state, round).await?,
        probes: progress.policy.probes.clone().unwrap_or_else(default_probes),
        seed: progress.policy.seed,
        stop: Stop::default(),
    })
}

/// Rows that are held out once each, with their folds.
pub(super) fn exam_rows(held: &[Value], progress: &Progress) -> Vec<ExamRow> {
    let groups = groups(held);
    let folds = building::folds_of(&groups, progress);
    let row = |((value, group), fold): ((&Value, &&str), &usize)| ExamRow {
        value: value.clone(),
        group: (*group).to_owned(),
        fold: u32::try_from(*fold).unwrap_or_default(),
    };
    held.iter().zip(&groups).zip(&folds.of_rows).map(row).collect()
}

/// By fold, what was trained without it. Without folds, as of a rebuild, the candidate: it has learned from the rows that it is
/// judged by, as what it replaces has.
pub(super) async fn of_folds(
    state: &AppState,
    round: &StoredRound,
    progress: &Progress,
) -> Result<Vec<Arc<Generation>>, StepError> {
    if progress.n_folds == 0 {
        return Ok(vec![trained(state, round, progress, None).await?]);
    }
    let mut of_folds = Vec::new();
    for fold in 0..progress.n_folds {
        of_folds.push(trained(state, round, progress, Some(fold)).await?);
    }
    Ok(of_folds)
}

/// Of the generations that the name pointed at before, the one whose gain over the base was found to be the largest. None for a
/// rebuild: they may have learned from what is to be forgotten, and have not all learned from the rows that it is judged by.
async fn best(state: &AppState, round: &StoredRound) -> Result<Option<Arc<Generation>>, StepError> {
    if round.rebuild_of.is_some() {
        return Ok(None);
    }
    let mut best: Option<(f64, Arc<Generation>)> = None;
    for generation in state.adapters.earlier(&name_of(round)) {
        if generation.other_base().is_some() {
            continue;
        }
        let digest = pleach_store::GenerationDigest(generation.digest.0);
        let lineage = match state.store.lineage(&round.owner, &digest).await {
            Ok(lineage) => lineage,
            Err(pleach_store::StoreError::NotFound { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let verdict = lineage.verdict.and_then(|verdict| serde_json::from_value(verdict).ok());
        let gain =
            verdict.and_then(|verdict: Verdict| verdict.check(CheckName::GainOverBase)?.value);
        if let Some(gain) = gain
            && best.as_ref().is_none_or(|(most, _)| gain > *most)
        {
            best = Some((gain, generation));
        }
    }
    Ok(best.map(|(_, generation)| generation))
}
