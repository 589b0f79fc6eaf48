//! What moves a job on: its owner, who cancels, pauses and resumes it, and the one process that runs it.
//!
//! A process that runs a job has *claimed* it, and says so again by every report. Who has not been heard of for a while
//! has died: another claims the job and goes on from the state that was last reported. A report of one that has lost its
//! job changes nothing.

use std::time::Duration;

use sqlx::{Any, Row as _, Transaction};

use crate::{
    beats::{Claim, claim_in},
    blob_writer::StagedBlob,
    clock::now_ms,
    digest::BlobDigest,
    error::StoreError,
    files::{NewFile, insert},
    job_records::{EventLevel, JobEvent},
    jobs::{JobError, JobStatus, KIND, StoredJob, job_in, unknown},
    owner::{Owner, time_id},
    registration::hold,
    row::stored,
    store::Store,
};

/// What a process that runs a job tells.
#[derive(Clone, Debug, Default)]
pub struct JobReport {
    /// It goes on to this: queued after its files were read, then running.
    pub status: Option<JobStatus>,
    /// What happened.
    pub events: Vec<JobEvent>,
    /// A model on the way.
    pub checkpoint: Option<NewCheckpoint>,
    /// What to go on from, if this process dies.
    pub state: Option<StagedBlob>,
    /// Tokens that were learned from.
    pub trained_tokens: Option<u64>,
    /// When it may be expected to end, Unix ms.
    pub estimated_finish_ms: Option<i64>,
}

/// A model on the way.
#[derive(Clone, Debug)]
pub struct NewCheckpoint {
    /// After so many steps of the optimizer.
    pub step: u64,
    /// The name that it is served by.
    pub model: String,
    /// What was measured there, by name.
    pub metrics: serde_json::Value,
}

/// How a job ended.
#[derive(Clone, Debug)]
pub enum JobEnd {
    /// With a model.
    Succeeded {
        /// The name that it is served by.
        fine_tuned_model: String,
        /// Tokens that were learned from.
        trained_tokens: u64,
        /// What was measured.
        results: NewFile,
    },
    /// Without one.
    Failed(JobError),
}

/// What a process that runs a job has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobSignal {
    /// Go on.
    GoOn,
    /// Stop, and tell the state from which somebody goes on later.
    Pause,
    /// Stop: the job was cancelled, or another process has it.
    Stop,
}

const ONE: &str = "SELECT * FROM jobs WHERE owner = $1 AND id = $2";
/// Interrupted ones before new ones; of new ones that of the owner who began one longest ago, or never; of one owner's in
/// the order in which they were asked for.
const NEXT: &str = "SELECT owner, id, runner, beats FROM jobs \
     WHERE status IN ('validating_files', 'queued', 'running') AND runner IS NULL \
     ORDER BY CASE WHEN started_ms IS NULL THEN 1 ELSE 0 END, \
     (SELECT COALESCE(MAX(COALESCE(begun.started_ms, begun.heartbeat_ms)), 0) FROM jobs AS begun \
     WHERE begun.owner = jobs.owner), id LIMIT 1";
/// What may have been left by processes that died.
const HELD: &str = "SELECT owner, id, runner, beats FROM jobs \
     WHERE status IN ('validating_files', 'queued', 'running') AND runner IS NOT NULL ORDER BY id";
const CLAIM: &str = "UPDATE jobs SET runner = $3, heartbeat_ms = $4, beats = beats + 1 \
     WHERE owner = $1 AND id = $2 AND status IN ('validating_files', 'queued', 'running') \
     AND COALESCE(runner, '') = $5 AND beats = $6";
const REPORT: &str = "UPDATE jobs SET status = $3, heartbeat_ms = $4, beats = beats + 1, \
     started_ms = COALESCE(started_ms, $5), trained_tokens = COALESCE($6, trained_tokens), \
     estimated_finish_ms = COALESCE($7, estimated_finish_ms) WHERE owner = $1 AND id = $2";
const NEW_EVENT: &str = "INSERT INTO job_events (owner, job, number, created_ms, level, kind, \
     message, data) SELECT $1, $2, COALESCE(MAX(number), 0) + 1, $3, $4, $5, $6, $7 \
     FROM job_events WHERE owner = $1 AND job = $2";
/// A step that is done again, after an interruption, is the same step.
const NEW_CHECKPOINT: &str = "INSERT INTO job_checkpoints (owner, job, id, step, model, metrics, \
     created_ms) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (owner, job, step) DO NOTHING";

impl Store {
    /// Ends a job that has not ended. Whoever runs it finds out by its next report.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::WrongState`] when it has ended.
    pub async fn cancel_job(&self, owner: &Owner, id: &str) -> Result<StoredJob, StoreError> {
        self.turn_job(owner, id, JobStatus::Cancelled, "The job has been cancelled").await
    }

    /// Stops a job for a while.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::WrongState`] when it has ended or is paused.
    pub async fn pause_job(&self, owner: &Owner, id: &str) -> Result<StoredJob, StoreError> {
        self.turn_job(owner, id, JobStatus::Paused, "The job has been paused").await
    }

    /// Lets a paused job go on.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::WrongState`] when it is not paused.
    pub async fn resume_job(&self, owner: &Owner, id: &str) -> Result<StoredJob, StoreError> {
        self.turn_job(owner, id, JobStatus::Queued, "The job has been resumed").await
    }

    async fn turn_job(
        &self,
        owner: &Owner,
        id: &str,
        to: JobStatus,
        message: &str,
    ) -> Result<StoredJob, StoreError> {
        let action = format!("change job {id:?}");
        let mut change = self.database.begin_for(owner, &action).await?;
        let (job, _) = locked(&mut change, owner, id, &action).await?;
        let is_resumed = to == JobStatus::Queued;
        if job.status.is_final()
            || (job.status == JobStatus::Paused) != is_resumed && to != JobStatus::Cancelled
        {
            let state = job.status.name().to_owned();
            return Err(StoreError::WrongState { kind: KIND, id: id.to_owned(), state });
        }
        // Files that were not read to the end are read again.
        let to =
            if is_resumed && job.started_ms.is_none() { JobStatus::ValidatingFiles } else { to };
        let blob = set_status(&mut change, owner, &job, to, &action).await?;
        add_event(&mut change, owner, id, &JobEvent::info(message), &action).await?;
        commit(change, &action).await?;
        self.let_go(&blob).await;
        self.job(owner, id).await
    }

    /// Takes the next job that waits, or whose process was not heard of for `silence` while this one looked now and then,
    /// for the process `runner`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn claim_job(
        &self,
        runner: &str,
        silence: Duration,
    ) -> Result<Option<StoredJob>, StoreError> {
        let action = "look for a training job";
        let failed = |source| StoreError::database(action, source);
        loop {
            let held =
                sqlx::query(HELD).fetch_all(self.database.readers()).await.map_err(failed)?;
            let held = held.iter().map(|row| claim_in(row, "jobs")).collect::<Result<_, _>>()?;
            let mut next = self.job_beats.silent(held, silence).into_iter().next();
            if next.is_none() {
                let free = sqlx::query(NEXT).fetch_optional(self.database.readers());
                let free = free.await.map_err(failed)?;
                next = free.map(|row| claim_in(&row, "jobs")).transpose()?;
            }
            let Some(Claim { owner, id, runner: before, beats }) = next else { return Ok(None) };
            let claimed = sqlx::query(CLAIM)
                .bind(owner.as_str())
                .bind(&id)
                .bind(runner)
                .bind(now_ms())
                .bind(before)
                .bind(beats)
                .execute(self.database.writers())
                .await
                .map_err(failed)?;
            // Another process may have been first.
            if claimed.rows_affected() == 1 {
                // It may have changed between the two: who had it before may have told of a later state.
                return self.job(&owner, &id).await.map(Some);
            }
        }
    }

    /// Writes what a process tells about the job that it runs; what it has to do next. When that is to pause, only the state
    /// was written; when it is to stop, nothing was.
    ///
    /// # Errors
    /// When the job is not there or the database fails.
    pub async fn report_job(
        &self,
        job: &StoredJob,
        runner: &str,
        report: &JobReport,
    ) -> Result<JobSignal, StoreError> {
        let (owner, id) = (&job.owner, job.id.as_str());
        let action = format!("note the progress of job {id:?}");
        let mut change = self.database.begin_for(owner, &action).await?;
        let (found, holder) = locked(&mut change, owner, id, &action).await?;
        if holder.as_deref() != Some(runner) || found.status.is_final() {
            return Ok(JobSignal::Stop);
        }
        let mut old_state = Vec::new();
        if let Some(state) = &report.state {
            hold(&mut change, state, &action).await?;
            old_state.extend(found.state.filter(|old| *old != state.digest));
            set_state(&mut change, owner, id, Some(state.digest), &action).await?;
        }
        let signal = if found.status == JobStatus::Paused {
            JobSignal::Pause
        } else {
            write_report(&mut change, &found, report, &action).await?;
            JobSignal::GoOn
        };
        commit(change, &action).await?;
        self.let_go(&old_state).await;
        Ok(signal)
    }

    /// Lets go of a job that is paused, or that this process cannot go on with: the next one may claim it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn release_job(&self, job: &StoredJob, runner: &str) -> Result<(), StoreError> {
        let query = "UPDATE jobs SET runner = NULL, heartbeat_ms = NULL \
             WHERE owner = $1 AND id = $2 AND runner = $3";
        sqlx::query(query)
            .bind(job.owner.as_str())
            .bind(&job.id)
            .bind(runner)
            .execute(self.database.writers())
            .await
            .map_err(|source| {
                StoreError::database(format!("let go of job {:?}", job.id), source)
            })?;
        Ok(())
    }

    /// Ends a job that this process runs; whether it still did. Its state is gone then.
    ///
    /// # Errors
    /// When the job is not there or the database fails.
    pub async fn finish_job(
        &self,
        job: &StoredJob,
        runner: &str,
        end: &JobEnd,
    ) -> Result<bool, StoreError> {
        let (owner, id) = (&job.owner, job.id.as_str());
        let action = format!("end job {id:?}");
        let failed = |source| StoreError::database(&action, source);
        let mut change = self.database.begin_for(owner, &action).await?;
        let (found, holder) = locked(&mut change, owner, id, &action).await?;
        if holder.as_deref() != Some(runner) || found.status.is_final() {
            return Ok(false);
        }
        let (status, event) = match end {
            JobEnd::Succeeded { fine_tuned_model, trained_tokens, results } => {
                let file = insert(&mut change, results, None, &action).await?;
                sqlx::query(
                    "UPDATE jobs SET fine_tuned_model = $3, trained_tokens = $4, result_file = $5 \
                     WHERE owner = $1 AND id = $2",
                )
                .bind(owner.as_str())
                .bind(id)
                .bind(fine_tuned_model)
                .bind(stored(*trained_tokens))
                .bind(file.id)
                .execute(&mut *change)
                .await
                .map_err(failed)?;
                let made = format!("New fine-tuned model created: {fine_tuned_model}");
                add_event(&mut change, owner, id, &JobEvent::info(made), &action).await?;
                (JobStatus::Succeeded, JobEvent::info("The job has successfully completed"))
            }
            JobEnd::Failed(error) => {
                let text = json(error);
                sqlx::query("UPDATE jobs SET error = $3 WHERE owner = $1 AND id = $2")
                    .bind(owner.as_str())
                    .bind(id)
                    .bind(text)
                    .execute(&mut *change)
                    .await
                    .map_err(failed)?;
                let message = format!("The job failed: {}", error.message);
                let event = JobEvent { level: EventLevel::Error, ..JobEvent::info(message) };
                (JobStatus::Failed, event)
            }
        };
        let blob = set_status(&mut change, owner, &found, status, &action).await?;
        add_event(&mut change, owner, id, &event, &action).await?;
        commit(change, &action).await?;
        self.let_go(&blob).await;
        Ok(true)
    }
}

/// A job and who runs it. The caller holds the owner's row, so nobody else changes it.
async fn locked(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    id: &str,
    action: &str,
) -> Result<(StoredJob, Option<String>), StoreError> {
    let row = sqlx::query(ONE)
        .bind(owner.as_str())
        .bind(id)
        .fetch_optional(&mut **change)
        .await
        .map_err(|source| StoreError::database(action, source))?;
    let row = row.ok_or_else(|| unknown(id))?;
    let runner = row.try_get("runner").map_err(|source| StoreError::database(action, source))?;
    Ok((job_in(&row)?, runner))
}

/// Moves a job. One that has ended lets go of its state, which is returned.
async fn set_status(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    job: &StoredJob,
    to: JobStatus,
    action: &str,
) -> Result<Vec<BlobDigest>, StoreError> {
    let failed = |source| StoreError::database(action, source);
    sqlx::query("UPDATE jobs SET status = $3 WHERE owner = $1 AND id = $2")
        .bind(owner.as_str())
        .bind(&job.id)
        .bind(to.name())
        .execute(&mut **change)
        .await
        .map_err(failed)?;
    if !to.is_final() {
        return Ok(Vec::new());
    }
    set_state(change, owner, &job.id, None, action).await?;
    sqlx::query(
        "UPDATE jobs SET finished_ms = $3, estimated_finish_ms = NULL WHERE owner = $1 AND id = $2",
    )
    .bind(owner.as_str())
    .bind(&job.id)
    .bind(now_ms())
    .execute(&mut **change)
    .await
    .map_err(failed)?;
    Ok(job.state.into_iter().collect())
}

async fn set_state(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    id: &str,
    state: Option<BlobDigest>,
    action: &str,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE jobs SET state_sha256 = $3 WHERE owner = $1 AND id = $2")
        .bind(owner.as_str())
        .bind(id)
        .bind(state.map(|digest| digest.to_string()))
        .execute(&mut **change)
        .await
        .map_err(|source| StoreError::database(action, source))?;
    Ok(())
}

async fn write_report(
    change: &mut Transaction<'static, Any>,
    job: &StoredJob,
    report: &JobReport,
    action: &str,
) -> Result<(), StoreError> {
    let failed = |source| StoreError::database(action, source);
    let (owner, id) = (&job.owner, job.id.as_str());
    let now_ms = now_ms();
    let status = report.status.unwrap_or(job.status);
    sqlx::query(REPORT)
        .bind(owner.as_str())
        .bind(id)
        .bind(status.name())
        .bind(now_ms)
        .bind((status == JobStatus::Running).then_some(now_ms))
        .bind(report.trained_tokens.map(stored))
        .bind(report.estimated_finish_ms)
        .execute(&mut **change)
        .await
        .map_err(failed)?;
    for event in &report.events {
        add_event(change, owner, id, event, action).await?;
    }
    if let Some(checkpoint) = &report.checkpoint {
        sqlx::query(NEW_CHECKPOINT)
            .bind(owner.as_str())
            .bind(id)
            .bind(time_id("ftckpt-")?)
            .bind(stored(checkpoint.step))
            .bind(&checkpoint.model)
            .bind(checkpoint.metrics.to_string())
            .bind(now_ms)
            .execute(&mut **change)
            .await
            .map_err(failed)?;
    }
    Ok(())
}

/// Adds an event with the next number.
pub(crate) async fn add_event(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    job: &str,
    event: &JobEvent,
    action: &str,
) -> Result<(), StoreError> {
    let kind = if event.metrics.is_some() { "metrics" } else { "message" };
    let data = event.metrics.as_ref().unwrap_or(&serde_json::Value::Null);
    sqlx::query(NEW_EVENT)
        .bind(owner.as_str())
        .bind(job)
        .bind(now_ms())
        .bind(event.level.name())
        .bind(kind)
        .bind(&event.message)
        .bind(data.to_string())
        .execute(&mut **change)
        .await
        .map_err(|source| StoreError::database(action, source))?;
    Ok(())
}

fn json(error: &JobError) -> String {
    serde_json::to_string(error).expect("texts have a JSON form")
}

async fn commit(change: Transaction<'static, Any>, action: &str) -> Result<(), StoreError> {
    change.commit().await.map_err(|source| StoreError::database(action, source))
}
