//! What moves a round on: the one process that runs it, and whoever decides about it.
//!
//! A process that runs rounds has claimed them ([`crate::round_claims`]). What one that has lost a round still writes changes
//! nothing.

use serde_json::Value;
use sqlx::{Any, Row as _, Transaction};

use crate::{
    checks::{NAME_BYTES_MAX, NOTE_BYTES_MAX, check_text, document},
    clock::now_ms,
    digest::GenerationDigest,
    error::StoreError,
    jobs::JobError,
    owner::Owner,
    round_examples::{self, Example},
    rounds::{Decided, Decision, KIND, LOOKS, ONE, RoundState, StoredRound, round_in, unknown},
    row::Fields,
    store::Store,
};

/// What a process that runs a round writes. What is `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct RoundChange {
    /// It goes on to this.
    pub state: Option<RoundState>,
    /// What it trained.
    pub candidate: Option<GenerationDigest>,
    /// Its data set: a file of the owner's, which nobody can delete from now on until the round has ended.
    pub file: Option<String>,
    /// JSON, instead of what was there.
    pub progress: Option<Value>,
    /// JSON, of the gate. The lineage of the candidate has it, too.
    pub verdict: Option<Value>,
    /// Why it fails.
    pub error: Option<JobError>,
    /// What its data set was made of; added to what is known of that. All of it has to be there and not withdrawn.
    pub examples: Vec<Example>,
}

/// What a process that runs a round has to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum RoundSignal {
    /// Go on. The change was written; this is the round now.
    GoOn(Box<StoredRound>),
    /// Clean up: the round has ended. The change was not written.
    Ended(Box<StoredRound>),
    /// Let go of all: another process has it. The change was not written.
    Lost,
}

const CHANGE: &str = "UPDATE rounds SET state = $3, candidate = COALESCE($4, candidate), \
     file = COALESCE($5, file), progress = COALESCE($6, progress), \
     verdict = COALESCE($7, verdict), error = COALESCE($8, error), look = COALESCE(look, $9), \
     beats = beats + 1, revision = revision + 1, updated_ms = $10 WHERE owner = $1 AND id = $2";
const FILE: &str = "SELECT 1 FROM files WHERE owner = $1 AND id = $2";
const LET_GO: &str = "UPDATE rounds SET ended_ms = $3, runner = NULL WHERE owner = $1 AND id = $2";
/// What was done about a round that was promoted is not what is to be done about one that is taken back.
const DECIDE: &str = "UPDATE rounds SET state = $3, decisions = $4, approved = $5, \
     done_ms = NULL, revision = revision + 1, updated_ms = $6 WHERE owner = $1 AND id = $2";
const DONE: &str = "UPDATE rounds SET done_ms = $4 \
     WHERE owner = $1 AND id = $2 AND state = $3 AND ended_ms IS NOT NULL";
const LINEAGE_VERDICT: &str = "UPDATE lineage SET verdict = $4 \
     WHERE owner = $1 AND generation = $2 AND round = $3";

impl Store {
    /// Writes what a process tells of a round that it runs, all or nothing; what it has to do next.
    ///
    /// # Errors
    /// [`StoreError::WrongState`] when no way leads to the state; [`StoreError::NotFound`] when an example was deleted or
    /// withdrawn meanwhile, or the file of the data set was, so that it has to be made again; when a document is too long or
    /// the database fails.
    pub async fn advance_round(
        &self,
        round: &StoredRound,
        runner: &str,
        step: &RoundChange,
    ) -> Result<RoundSignal, StoreError> {
        let (owner, id) = (&round.owner, round.id.as_str());
        let action = format!("move round {id:?} on");
        let failed = |source| StoreError::database(&action, source);
        let documents = [&step.progress, &step.verdict];
        let [progress, verdict] = documents.map(|value| value.as_ref().map(document).transpose());
        let (progress, verdict) = (progress?, verdict?);
        let error = step.error.as_ref().map(json);
        let mut change = self.database.begin_for(owner, &action).await?;
        let (found, holder) = locked(&mut change, owner, id, &action).await?;
        if found.state.is_final() {
            return Ok(RoundSignal::Ended(Box::new(found)));
        }
        if holder.as_deref() != Some(runner) {
            return Ok(RoundSignal::Lost);
        }
        let state = checked(&found, step.state)?;
        if let Some(file) = &step.file {
            let there = sqlx::query(FILE).bind(owner.as_str()).bind(file);
            if there.fetch_optional(&mut *change).await.map_err(failed)?.is_none() {
                return Err(StoreError::NotFound { kind: "file", id: file.clone() });
            }
        }
        let look = if state == RoundState::Gating {
            Some(next_look(&mut change, owner, &found.name, &action).await?)
        } else {
            None
        };
        let now_ms = now_ms();
        sqlx::query(CHANGE)
            .bind(owner.as_str())
            .bind(id)
            .bind(state.name())
            .bind(step.candidate.map(|digest| digest.to_string()))
            .bind(step.file.as_deref())
            .bind(progress)
            .bind(verdict.as_deref())
            .bind(error)
            .bind(look)
            .bind(now_ms)
            .execute(&mut *change)
            .await
            .map_err(failed)?;
        round_examples::add(&mut change, owner, id, &step.examples, &action).await?;
        if let (Some(verdict), Some(candidate)) = (verdict, step.candidate.or(found.candidate)) {
            sqlx::query(LINEAGE_VERDICT)
                .bind(owner.as_str())
                .bind(candidate.to_string())
                .bind(id)
                .bind(verdict)
                .execute(&mut *change)
                .await
                .map_err(failed)?;
        }
        if state.is_final() {
            let_go(&mut change, owner, id, &action).await?;
        }
        let (now, _) = locked(&mut change, owner, id, &action).await?;
        change.commit().await.map_err(failed)?;
        Ok(RoundSignal::GoOn(Box::new(now)))
    }

    /// Says that nothing is left to do about a round that ended like this. If it ended otherwise meanwhile, there is.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn round_done(&self, round: &StoredRound) -> Result<(), StoreError> {
        sqlx::query(DONE)
            .bind(round.owner.as_str())
            .bind(&round.id)
            .bind(round.state.name())
            .bind(now_ms())
            .execute(self.database.writers())
            .await
            .map_err(|source| {
                StoreError::database(format!("note the end of round {:?}", round.id), source)
            })?;
        Ok(())
    }

    /// Writes what somebody decides about a round, and ends it if that does; the round as it is then. Whoever runs it finds
    /// out when it writes next.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::WrongState`] when this cannot be decided about it; when a text is too long.
    pub async fn decide_round(
        &self,
        owner: &Owner,
        id: &str,
        decision: Decision,
        by: &str,
        reason: &str,
    ) -> Result<StoredRound, StoreError> {
        check_text("author of a decision", by, NAME_BYTES_MAX)?;
        check_text("reason of a decision", reason, NOTE_BYTES_MAX)?;
        let action = format!("decide about round {id:?}");
        let mut change = self.database.begin_for(owner, &action).await?;
        let decided = decide(&mut change, owner, id, (decision, by, reason), &action).await?;
        change.commit().await.map_err(|source| StoreError::database(&action, source))?;
        Ok(decided)
    }
}

/// The same, in a change that holds the owner's row.
pub(crate) async fn decide(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    id: &str,
    (decision, by, reason): (Decision, &str, &str),
    action: &str,
) -> Result<StoredRound, StoreError> {
    let (found, _) = locked(change, owner, id, action).await?;
    let state = after(&found, decision).ok_or_else(|| wrong_state(&found, ""))?;
    let now_ms = now_ms();
    let mut decisions = found.decisions;
    let (by, reason) = (by.to_owned(), reason.to_owned());
    decisions.push(Decided { decision, by, reason, at_ms: now_ms });
    let is_approved = decisions.iter().any(|decided| decided.decision == Decision::Approve);
    sqlx::query(DECIDE)
        .bind(owner.as_str())
        .bind(id)
        .bind(state.name())
        .bind(json(&decisions))
        .bind(i64::from(is_approved))
        .bind(now_ms)
        .execute(&mut **change)
        .await
        .map_err(|source| StoreError::database(action, source))?;
    if state.is_final() && !found.state.is_final() {
        let_go(change, owner, id, action).await?;
    }
    Ok(locked(change, owner, id, action).await?.0)
}

/// Where a decision brings a round; `None` where it cannot be made.
fn after(round: &StoredRound, decision: Decision) -> Option<RoundState> {
    use RoundState::{AwaitingApproval, Canary, Promoted, RolledBack, Shadow};
    let state = round.state;
    match decision {
        Decision::Approve => {
            (state == AwaitingApproval && !round.is_approved()).then_some(AwaitingApproval)
        }
        Decision::Veto => matches!(state, AwaitingApproval | Shadow | Canary | Promoted)
            .then_some(RoundState::Vetoed),
        Decision::Cancel => (!state.is_final()).then_some(RoundState::Cancelled),
        Decision::RollBack => (state == Promoted).then_some(RolledBack),
    }
}

/// The state that a round is to have.
fn checked(round: &StoredRound, to: Option<RoundState>) -> Result<RoundState, StoreError> {
    let Some(to) = to.filter(|to| *to != round.state) else { return Ok(round.state) };
    if !round.state.leads_to(to) {
        return Err(wrong_state(round, &format!(", which does not become {}", to.name())));
    }
    let waits = round.state == RoundState::AwaitingApproval && to != RoundState::Failed;
    if waits && !round.is_approved() {
        return Err(wrong_state(round, ", and nobody has approved it"));
    }
    Ok(to)
}

fn wrong_state(round: &StoredRound, why: &str) -> StoreError {
    let state = format!("{}{why}", round.state.name());
    StoreError::WrongState { kind: KIND, id: round.id.clone(), state }
}

/// A round and who runs it. The caller holds the owner's row, so nobody else changes it.
async fn locked(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    id: &str,
    action: &str,
) -> Result<(StoredRound, Option<String>), StoreError> {
    let failed = |source| StoreError::database(action, source);
    let row = sqlx::query(ONE)
        .bind(owner.as_str())
        .bind(id)
        .fetch_optional(&mut **change)
        .await
        .map_err(failed)?;
    let row = row.ok_or_else(|| unknown(id))?;
    Ok((round_in(&row)?, row.try_get("runner").map_err(failed)?))
}

async fn next_look(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    name: &str,
    action: &str,
) -> Result<i64, StoreError> {
    let row = sqlx::query(LOOKS)
        .bind(owner.as_str())
        .bind(name)
        .fetch_one(&mut **change)
        .await
        .map_err(|source| StoreError::database(action, source))?;
    Ok(1 + Fields { row: &row, table: "rounds" }.int("looks")?)
}

async fn let_go(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    id: &str,
    action: &str,
) -> Result<(), StoreError> {
    sqlx::query(LET_GO)
        .bind(owner.as_str())
        .bind(id)
        .bind(now_ms())
        .execute(&mut **change)
        .await
        .map_err(|source| StoreError::database(action, source))?;
    Ok(())
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("texts and numbers have a JSON form")
}
