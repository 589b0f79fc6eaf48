//! What a job tells on its way: events and checkpoints.

use serde_json::Value;
use sqlx::any::AnyRow;

use crate::{
    error::StoreError,
    owner::Owner,
    page::{Listing, Page},
    row::Fields,
    store::Store,
};

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventLevel {
    /// It is as it should be.
    Info,
    /// Somebody might want to know.
    Warn,
    /// Something failed.
    Error,
}

impl EventLevel {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// Something that a job tells.
#[derive(Clone, Debug, PartialEq)]
pub struct JobEvent {
    /// How much it matters.
    pub level: EventLevel,
    /// For people.
    pub message: String,
    /// What was measured, by name; `None` for a message alone.
    pub metrics: Option<Value>,
}

impl JobEvent {
    /// A message that all is as it should be.
    pub fn info(message: impl Into<String>) -> Self {
        Self { level: EventLevel::Info, message: message.into(), metrics: None }
    }
}

/// An event of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredEvent {
    /// Its job.
    pub job: String,
    /// From 1, in the order in which they were told.
    pub number: u64,
    /// When, Unix ms.
    pub created_ms: i64,
    /// What.
    pub event: JobEvent,
}

/// A model on the way.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredCheckpoint {
    /// `ftckpt-…`.
    pub id: String,
    /// Its job.
    pub job: String,
    /// After so many steps of the optimizer.
    pub step: u64,
    /// The name that it is served by.
    pub model: String,
    /// What was measured there, by name.
    pub metrics: Value,
    /// When, Unix ms.
    pub created_ms: i64,
}

const EVENTS: &str = "SELECT * FROM job_events WHERE owner = $1 AND job = $2 \
     AND ($3 = 0 OR number < $3) ORDER BY number DESC LIMIT $4";
const CHECKPOINTS: &str = "SELECT * FROM job_checkpoints WHERE owner = $1 AND job = $2 \
     AND ($3 = '' OR id < $3) ORDER BY id DESC LIMIT $4";

impl Store {
    /// Events of a job, newest first. [`Page::after`] is the number of one.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also if the job is another's.
    pub async fn job_events(
        &self,
        owner: &Owner,
        job: &str,
        page: &Page<'_>,
    ) -> Result<Listing<StoredEvent>, StoreError> {
        self.job(owner, job).await?;
        let after: i64 = page.after.and_then(|number| number.parse().ok()).unwrap_or_default();
        let rows = sqlx::query(EVENTS)
            .bind(owner.as_str())
            .bind(job)
            .bind(after)
            .bind(page.limit())
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| {
                StoreError::database(format!("list events of job {job:?}"), source)
            })?;
        let events = rows.iter().map(event_in).collect::<Result<_, _>>()?;
        Ok(Listing::new(events, page, |event: &StoredEvent| event.number.to_string()))
    }

    /// Checkpoints of a job, newest first.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also if the job is another's.
    pub async fn job_checkpoints(
        &self,
        owner: &Owner,
        job: &str,
        page: &Page<'_>,
    ) -> Result<Listing<StoredCheckpoint>, StoreError> {
        self.job(owner, job).await?;
        let rows = sqlx::query(CHECKPOINTS)
            .bind(owner.as_str())
            .bind(job)
            .bind(page.after())
            .bind(page.limit())
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| {
                StoreError::database(format!("list checkpoints of job {job:?}"), source)
            })?;
        let checkpoints = rows.iter().map(checkpoint_in).collect::<Result<_, _>>()?;
        Ok(Listing::new(checkpoints, page, |checkpoint: &StoredCheckpoint| checkpoint.id.clone()))
    }
}

fn event_in(row: &AnyRow) -> Result<StoredEvent, StoreError> {
    let fields = Fields { row, table: "job_events" };
    let level = match fields.text("level")?.as_str() {
        "info" => EventLevel::Info,
        "warn" => EventLevel::Warn,
        "error" => EventLevel::Error,
        other => return Err(fields.corrupt("level", format!("{other:?} is none"))),
    };
    let metrics = match fields.text("kind")?.as_str() {
        "metrics" => Some(fields.json("data")?),
        "message" => None,
        other => return Err(fields.corrupt("kind", format!("{other:?} is none"))),
    };
    Ok(StoredEvent {
        job: fields.text("job")?,
        number: fields.number("number")?,
        created_ms: fields.int("created_ms")?,
        event: JobEvent { level, message: fields.text("message")?, metrics },
    })
}

fn checkpoint_in(row: &AnyRow) -> Result<StoredCheckpoint, StoreError> {
    let fields = Fields { row, table: "job_checkpoints" };
    Ok(StoredCheckpoint {
        id: fields.text("id")?,
        job: fields.text("job")?,
        step: fields.number("step")?,
        model: fields.text("model")?,
        metrics: fields.json("metrics")?,
        created_ms: fields.int("created_ms")?,
    })
}
