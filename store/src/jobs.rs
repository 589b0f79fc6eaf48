//! Training jobs: what was asked for and where each is. What changes them is in [`crate::job_changes`].
//!
//! ```text
//! validating_files ──> queued ──> running ──> succeeded
//!        │               │  ^        │  └──> failed          (also from validating_files)
//!        │               v  │        v
//!        └───────────> paused <──────┘      all of these ──> cancelled
//! ```

use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, Row as _, any::AnyRow};

use crate::{
    clock::now_ms,
    digest::BlobDigest,
    error::StoreError,
    files::has_time,
    job_changes::add_event,
    job_records::JobEvent,
    metadata::{self, Metadata},
    owner::{Owner, time_id},
    page::{Listing, Page},
    registration::quota_of,
    row::Fields,
    store::Store,
};

pub(crate) const KIND: &str = "job";

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobStatus {
    /// Its files are read.
    ValidatingFiles,
    /// It waits for its turn.
    Queued,
    /// It trains.
    Running,
    /// Somebody stopped it for a while.
    Paused,
    /// It ended, with a model.
    Succeeded,
    /// It ended without one.
    Failed,
    /// Somebody ended it.
    Cancelled,
}

impl JobStatus {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::ValidatingFiles,
        Self::Queued,
        Self::Running,
        Self::Paused,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::ValidatingFiles => "validating_files",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether it stays so for good.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// What of the request is at fault, such as `training_file`.
    pub param: Option<String>,
}

/// A job to be run.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// What is trained: the base's name, or an adapter's to go on from.
    pub model: String,
    /// A file of the owner's.
    pub training_file: String,
    /// Another.
    pub validation_file: Option<String>,
    /// JSON, whose shape is the server's business: method, settings, seed, suffix.
    pub spec: String,
    /// Pairs of the client's.
    pub metadata: Metadata,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredJob {
    /// Whose.
    pub owner: Owner,
    /// `ftjob-…`.
    pub id: String,
    /// Where it is.
    pub status: JobStatus,
    /// What is trained.
    pub model: String,
    /// A file of the owner's.
    pub training_file: String,
    /// Another.
    pub validation_file: Option<String>,
    /// JSON, as it was given.
    pub spec: String,
    /// Pairs of the client's.
    pub metadata: Metadata,
    /// The name that its model is served by.
    pub fine_tuned_model: Option<String>,
    /// The file with what was measured.
    pub result_file: Option<String>,
    /// Tokens that were learned from.
    pub trained_tokens: Option<u64>,
    /// Why it failed.
    pub error: Option<JobError>,
    /// What a training that was interrupted goes on from.
    pub state: Option<BlobDigest>,
    /// When it was asked for, Unix ms.
    pub created_ms: i64,
    /// When it first ran, Unix ms.
    pub started_ms: Option<i64>,
    /// When it ended, Unix ms.
    pub finished_ms: Option<i64>,
    /// When it may be expected to end, Unix ms.
    pub estimated_finish_ms: Option<i64>,
}

const NEW: &str = "INSERT INTO jobs (owner, id, status, model, training_file, validation_file, \
     spec, metadata, created_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
const ONE: &str = "SELECT * FROM jobs WHERE owner = $1 AND id = $2";
const FILE: &str = concat!("SELECT id FROM files WHERE owner = $1 AND id = $2 AND ", has_time!());
const OPEN: &str = "SELECT CAST(COUNT(*) AS BIGINT) AS jobs FROM jobs WHERE owner = $1 \
     AND status IN ('validating_files', 'queued', 'running', 'paused')";

impl Store {
    /// Takes a job, whose files nobody can delete from now on until it has ended.
    ///
    /// # Errors
    /// When the owner does not exist, has not the quota, or has not such files.
    pub async fn create_job(&self, owner: &Owner, job: &NewJob) -> Result<StoredJob, StoreError> {
        let action = format!("take a training job of {owner}");
        let failed = |source| StoreError::database(&action, source);
        let mut change = self.database.begin_for(owner, &action).await?;
        for file in [Some(&job.training_file), job.validation_file.as_ref()].into_iter().flatten() {
            let found = sqlx::query(FILE)
                .bind(owner.as_str())
                .bind(file)
                .bind(now_ms())
                .fetch_optional(&mut *change)
                .await
                .map_err(failed)?;
            if found.is_none() {
                return Err(StoreError::NotFound { kind: "file", id: file.clone() });
            }
        }
        if let Some(limit) = quota_of(&mut change, owner, "training_jobs").await? {
            let row = sqlx::query(OPEN)
                .bind(owner.as_str())
                .fetch_one(&mut *change)
                .await
                .map_err(failed)?;
            let n_open: i64 = row.try_get("jobs").map_err(failed)?;
            let wanted = u64::try_from(n_open).unwrap_or_default() + 1;
            if wanted > limit {
                let (owner, quota) = (owner.clone(), "training jobs");
                return Err(StoreError::QuotaExceeded { owner, quota, limit, wanted });
            }
        }
        let made = StoredJob {
            owner: owner.clone(),
            id: time_id("ftjob-")?,
            status: JobStatus::ValidatingFiles,
            model: job.model.clone(),
            training_file: job.training_file.clone(),
            validation_file: job.validation_file.clone(),
            spec: job.spec.clone(),
            metadata: job.metadata.clone(),
            fine_tuned_model: None,
            result_file: None,
            trained_tokens: None,
            error: None,
            state: None,
            created_ms: now_ms(),
            started_ms: None,
            finished_ms: None,
            estimated_finish_ms: None,
        };
        sqlx::query(NEW)
            .bind(owner.as_str())
            .bind(&made.id)
            .bind(made.status.name())
            .bind(&made.model)
            .bind(&made.training_file)
            .bind(made.validation_file.as_deref())
            .bind(&made.spec)
            .bind(metadata::json(&made.metadata))
            .bind(made.created_ms)
            .execute(&mut *change)
            .await
            .map_err(failed)?;
        metadata::add(&mut change, owner, &made.id, &made.metadata, &action).await?;
        let message = format!("Created fine-tuning job: {}", made.id);
        add_event(&mut change, owner, &made.id, &JobEvent::info(message), &action).await?;
        let validating = JobEvent::info(format!("Validating training file: {}", job.training_file));
        add_event(&mut change, owner, &made.id, &validating, &action).await?;
        change.commit().await.map_err(failed)?;
        Ok(made)
    }

    /// One job of an owner.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also if it is another's.
    pub async fn job(&self, owner: &Owner, id: &str) -> Result<StoredJob, StoreError> {
        let row = sqlx::query(ONE)
            .bind(owner.as_str())
            .bind(id)
            .fetch_optional(self.database.readers())
            .await
            .map_err(|source| StoreError::database(format!("read job {id:?}"), source))?;
        row.as_ref().map_or_else(|| Err(unknown(id)), job_in)
    }

    /// Jobs of an owner that have all of some pairs, newest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn jobs(
        &self,
        owner: &Owner,
        pairs: &Metadata,
        page: &Page<'_>,
    ) -> Result<Listing<StoredJob>, StoreError> {
        let condition = metadata::condition("jobs", pairs.len(), 4);
        let query = format!(
            "SELECT * FROM jobs WHERE owner = $1 AND ($2 = '' OR id < $2){condition} \
             ORDER BY id DESC LIMIT $3"
        );
        // Made of constants and counted placeholders; what clients send is bound.
        let mut query = sqlx::query(AssertSqlSafe(query))
            .bind(owner.as_str())
            .bind(page.after())
            .bind(page.limit());
        for (name, value) in pairs {
            query = query.bind(name).bind(value);
        }
        let rows = query
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| StoreError::database(format!("list jobs of {owner}"), source))?;
        let jobs = rows.iter().map(job_in).collect::<Result<_, _>>()?;
        Ok(Listing::new(jobs, page, |job: &StoredJob| job.id.clone()))
    }
}

pub(crate) fn job_in(row: &AnyRow) -> Result<StoredJob, StoreError> {
    let fields = Fields { row, table: "jobs" };
    let error = fields.maybe_text("error")?;
    let error = error.map(|text| serde_json::from_str(&text)).transpose();
    Ok(StoredJob {
        owner: fields.owner("owner")?,
        id: fields.text("id")?,
        status: status_in(fields)?,
        model: fields.text("model")?,
        training_file: fields.text("training_file")?,
        validation_file: fields.maybe_text("validation_file")?,
        spec: fields.text("spec")?,
        metadata: fields.json("metadata")?,
        fine_tuned_model: fields.maybe_text("fine_tuned_model")?,
        result_file: fields.maybe_text("result_file")?,
        trained_tokens: fields.maybe_number("trained_tokens")?,
        error: error.map_err(|error| fields.corrupt("error", error))?,
        state: fields.maybe_parsed("state_sha256")?,
        created_ms: fields.int("created_ms")?,
        started_ms: fields.maybe_int("started_ms")?,
        finished_ms: fields.maybe_int("finished_ms")?,
        estimated_finish_ms: fields.maybe_int("estimated_finish_ms")?,
    })
}

fn status_in(fields: Fields<'_>) -> Result<JobStatus, StoreError> {
    let name = fields.text("status")?;
    let found = JobStatus::ALL.into_iter().find(|status| status.name() == name);
    found.ok_or_else(|| fields.corrupt("status", format!("{name:?} is none")))
}

pub(crate) fn unknown(id: &str) -> StoreError {
    StoreError::NotFound { kind: KIND, id: id.to_owned() }
}
