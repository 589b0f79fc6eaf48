//! Between the folds and the candidate: whom all others contradict, nothing is learned from.

use std::sync::Arc;

use pleach_store::StoredRound;
use pleach_trainer::{contradicted, data::ReportSettings};

use super::{
    examiner::{Examiner, FoldExam, Stop},
    gating::{exam_rows, of_folds, while_wanted},
    progress::{LeftOut, Progress},
    steps::{Next, StepError, notes},
    training::{goes_on_from, held_out, rows_of_round},
};
use crate::http::state::AppState;

/// Looks whose rows stay unlikely whatever the folds taught, and notes it. The gate judges by such rows only if they were
/// told well before: to leave out those that lose would find a gain in anything, but of those that were as unlikely before
/// the candidate took nothing away.
pub(super) async fn sift(
    state: &Arc<AppState>,
    examiner: &Arc<dyn Examiner>,
    round: &StoredRound,
    mut progress: Progress,
) -> Result<Next, StepError> {
    let rows = rows_of_round(state, round).await?;
    let (held, trusted) = held_out(&rows);
    let (rows, n_trusted) = (exam_rows(held, &progress), trusted.len());
    let groups: Vec<String> = rows.iter().map(|row| row.group.clone()).collect();
    let before = goes_on_from(state, round).await?;
    let stop = Stop::default();
    let folds = of_folds(state, round, &progress).await?;
    let exam = FoldExam { rows, folds, before, stop: stop.clone() };
    let examination = examiner.fold_scores(Arc::clone(state), exam);
    let Some(scores) = while_wanted(state, round, &stop, examination).await? else {
        return Ok(Next::Wait);
    };
    let found: Vec<_> = contradicted(groups.iter().zip(scores))
        .into_iter()
        .map(|found| LeftOut {
            judges: !found.was_so_before(),
            group: found.group,
            rows: found.n_rows,
            score_before: found.score.before,
            score_after: found.score.after,
            bound: found.bound,
        })
        .collect();
    let n_left = groups.len() + n_trusted - found.iter().map(|group| group.rows).sum::<usize>();
    let n_least = ReportSettings::default().rows_fail_below;
    if (n_left as u64) < n_least {
        let message = format!(
            "without those whom all others contradict {n_left} rows are left to learn from; it takes at least {n_least} \
             (leaves_out_contradicted)"
        );
        return Err(StepError::failed("too_few_examples", message));
    }
    for left_out in &found {
        tracing::warn!(
            round = round.id,
            group = left_out.group,
            rows = left_out.rows,
            score = left_out.score_after,
            "all others contradict it: it is not learned from"
        );
    }
    progress.left_out = Some(found);
    notes(&progress)
}

/// Whether rows of a group are left out.
pub(super) fn is_left_out(progress: &Progress, group: &str) -> bool {
    left_out(progress, group).is_some()
}

/// Whether the gate judges by the rows of a group.
pub(super) fn judges(progress: &Progress, group: &str) -> bool {
    left_out(progress, group).is_none_or(|left_out| left_out.judges)
}

fn left_out<'a>(progress: &'a Progress, group: &str) -> Option<&'a LeftOut> {
    progress.left_out.iter().flatten().find(|left_out| left_out.group == group)
}
