//! What people said about completions and episodes.

use std::collections::BTreeMap;

use serde_json::Value;
use sqlx::{Any, Transaction, any::AnyRow};

use crate::{
    clock::now_ms,
    error::StoreError,
    owner::{Owner, time_id},
    page::{Listing, Order, Page},
    row::Fields,
    store::Store,
};

const KIND: &str = "feedback";

/// What kind of thing was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FeedbackKind {
    /// Yes or no.
    Boolean,
    /// A number.
    Float,
    /// Which of two answers is better.
    Comparison,
    /// What the answer should have been.
    Demonstration,
    /// Words.
    Comment,
}

impl FeedbackKind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Boolean, Self::Float, Self::Comparison, Self::Demonstration, Self::Comment];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Boolean => "boolean",
            Self::Float => "float",
            Self::Comparison => "comparison",
            Self::Demonstration => "demonstration",
            Self::Comment => "comment",
        }
    }

    /// Whether it is a value of a metric, all of whose values are of one kind.
    fn is_metric(self) -> bool {
        matches!(self, Self::Boolean | Self::Float)
    }
}

/// What feedback is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedbackTarget {
    /// An answer.
    Completion {
        /// Its completion.
        id: String,
        /// Which of its answers, from 0.
        choice: u32,
    },
    /// All completions of an episode.
    Episode(String),
}

/// A key by which a request that is sent twice is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The key.
    pub key: String,
    /// SHA-256 of the request, 64 hex digits.
    pub request_sha256: String,
}

/// Feedback to be kept.
#[derive(Clone, Debug)]
pub struct NewFeedback {
    /// What it is about.
    pub target: FeedbackTarget,
    /// The metric, or the kind's own name.
    pub metric: String,
    /// What kind of thing is said.
    pub kind: FeedbackKind,
    /// What is said; checked by whoever knows the kind.
    pub value: Value,
    /// Of a comparison: the completion of the worse answer.
    pub rejected: Option<String>,
    /// For people and programs.
    pub tags: BTreeMap<String, String>,
    /// SHA-256 of who said it, 64 hex digits.
    pub user_sha256: Option<String>,
    /// Sent twice, it is kept once.
    pub idempotency: Option<IdempotencyKey>,
}

/// Feedback.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredFeedback {
    /// `fb-…`.
    pub id: String,
    /// What it is about.
    pub target: FeedbackTarget,
    /// The metric, or the kind's own name.
    pub metric: String,
    /// What kind of thing is said.
    pub kind: FeedbackKind,
    /// What is said; `null` when it was withdrawn.
    pub value: Value,
    /// Of a comparison: the completion of the worse answer.
    pub rejected: Option<String>,
    /// For people and programs.
    pub tags: BTreeMap<String, String>,
    /// SHA-256 of who said it, 64 hex digits.
    pub user_sha256: Option<String>,
    /// When it was given, Unix ms.
    pub created_ms: i64,
    /// When it was last changed, Unix ms.
    pub updated_ms: i64,
    /// When it was withdrawn, Unix ms.
    pub withdrawn_ms: Option<i64>,
}

/// Which feedback of an owner is meant; what is `None` is any.
#[derive(Clone, Copy, Debug, Default)]
pub struct FeedbackFilter<'a> {
    /// On this completion.
    pub completion: Option<&'a str>,
    /// On this episode.
    pub episode: Option<&'a str>,
    /// Of this metric.
    pub metric: Option<&'a str>,
}

const NEW: &str = "INSERT INTO feedback (owner, id, completion, episode, choice, rejected, \
     metric, kind, value, tags, user_sha256, idempotency_key, request_sha256, created_ms, \
     updated_ms) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $14)";
const ONE: &str = "SELECT * FROM feedback WHERE owner = $1 AND id = $2";
const BY_KEY: &str = "SELECT * FROM feedback WHERE owner = $1 AND idempotency_key = $2";
const OLDEST: &str = "SELECT * FROM feedback WHERE owner = $1 AND id > $2 \
     AND ($3 = '' OR completion = $3) AND ($4 = '' OR episode = $4) AND ($5 = '' OR metric = $5) \
     ORDER BY id LIMIT $6";
const NEWEST: &str = "SELECT * FROM feedback WHERE owner = $1 AND ($2 = '' OR id < $2) \
     AND ($3 = '' OR completion = $3) AND ($4 = '' OR episode = $4) AND ($5 = '' OR metric = $5) \
     ORDER BY id DESC LIMIT $6";
const CHANGE: &str = "UPDATE feedback SET value = $3, tags = $4, updated_ms = $5 \
     WHERE owner = $1 AND id = $2";
/// Who withdraws again changes nothing.
const WITHDRAW: &str = "UPDATE feedback SET value = 'null', tags = '{}', user_sha256 = NULL, \
     updated_ms = $3, withdrawn_ms = $3 WHERE owner = $1 AND id = $2 AND withdrawn_ms IS NULL";
const COMPLETION: &str =
    "SELECT id FROM completions WHERE owner = $1 AND id = $2 AND expires_ms > $3";
const EPISODE: &str =
    "SELECT id FROM completions WHERE owner = $1 AND episode = $2 AND expires_ms > $3 LIMIT 1";
const NEW_METRIC: &str = "INSERT INTO metrics (owner, name, kind, created_ms) \
     VALUES ($1, $2, $3, $4) ON CONFLICT (owner, name) DO NOTHING";

impl Store {
    /// Keeps feedback; what was kept, and whether it was new. With `dry_run` all is checked and nothing is kept.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the owner has no such completion or episode, [`StoreError::MetricKind`],
    /// [`StoreError::KeyReused`].
    pub async fn put_feedback(
        &self,
        owner: &Owner,
        feedback: &NewFeedback,
        dry_run: bool,
    ) -> Result<(StoredFeedback, bool), StoreError> {
        let action = format!("keep feedback of {owner}");
        let failed = |source| StoreError::database(&action, source);
        let mut change = self.database.begin_for(owner, &action).await?;
        if let Some(known) = sent_before(&mut change, owner, feedback, &action).await? {
            return Ok((known, false));
        }
        must_have_target(&mut change, owner, feedback, &action).await?;
        if feedback.kind.is_metric() {
            must_be_of_kind(&mut change, owner, feedback, &action).await?;
        }
        let made = insert(&mut change, owner, feedback, &action).await?;
        if !dry_run {
            change.commit().await.map_err(failed)?;
        }
        Ok((made, true))
    }

    /// One feedback of an owner.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also if it is another's.
    pub async fn feedback(&self, owner: &Owner, id: &str) -> Result<StoredFeedback, StoreError> {
        let row = sqlx::query(ONE)
            .bind(owner.as_str())
            .bind(id)
            .fetch_optional(self.database.readers())
            .await
            .map_err(|source| StoreError::database(format!("read feedback {id:?}"), source))?;
        row.as_ref().map_or_else(|| Err(unknown(id)), feedback_in)
    }

    /// Feedback of an owner.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn all_feedback(
        &self,
        owner: &Owner,
        filter: FeedbackFilter<'_>,
        page: &Page<'_>,
        order: Order,
    ) -> Result<Listing<StoredFeedback>, StoreError> {
        let rows = sqlx::query(order.pick(OLDEST, NEWEST))
            .bind(owner.as_str())
            .bind(page.after())
            .bind(filter.completion.unwrap_or_default())
            .bind(filter.episode.unwrap_or_default())
            .bind(filter.metric.unwrap_or_default())
            .bind(page.limit())
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| StoreError::database(format!("list feedback of {owner}"), source))?;
        let feedback = rows.iter().map(feedback_in).collect::<Result<_, _>>()?;
        Ok(Listing::new(feedback, page, |feedback: &StoredFeedback| feedback.id.clone()))
    }

    /// Changes what is said; what is `None` stays as it is. The value must be of the kind that it has.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::WrongState`] when it was withdrawn.
    pub async fn change_feedback(
        &self,
        owner: &Owner,
        id: &str,
        value: Option<&Value>,
        tags: Option<&BTreeMap<String, String>>,
    ) -> Result<StoredFeedback, StoreError> {
        let action = format!("change feedback {id:?}");
        let failed = |source| StoreError::database(&action, source);
        let mut change = self.database.begin_for(owner, &action).await?;
        let row = sqlx::query(ONE)
            .bind(owner.as_str())
            .bind(id)
            .fetch_optional(&mut *change)
            .await
            .map_err(failed)?;
        let mut found = row.as_ref().map_or_else(|| Err(unknown(id)), feedback_in)?;
        if found.withdrawn_ms.is_some() {
            let state = "withdrawn".to_owned();
            return Err(StoreError::WrongState { kind: KIND, id: id.to_owned(), state });
        }
        if let Some(value) = value {
            found.value = value.clone();
        }
        if let Some(tags) = tags {
            found.tags.clone_from(tags);
        }
        found.updated_ms = now_ms();
        sqlx::query(CHANGE)
            .bind(owner.as_str())
            .bind(id)
            .bind(found.value.to_string())
            .bind(json(&found.tags))
            .bind(found.updated_ms)
            .execute(&mut *change)
            .await
            .map_err(failed)?;
        change.commit().await.map_err(failed)?;
        Ok(found)
    }

    /// Takes feedback back: nothing is left of it but its id, so that a request that is repeated does not bring it back. To
    /// do it again is no error.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn withdraw_feedback(
        &self,
        owner: &Owner,
        id: &str,
    ) -> Result<StoredFeedback, StoreError> {
        sqlx::query(WITHDRAW)
            .bind(owner.as_str())
            .bind(id)
            .bind(now_ms())
            .execute(self.database.writers())
            .await
            .map_err(|source| StoreError::database(format!("withdraw feedback {id:?}"), source))?;
        self.feedback(owner, id).await
    }
}

/// What came of the same request before.
async fn sent_before(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    feedback: &NewFeedback,
    action: &str,
) -> Result<Option<StoredFeedback>, StoreError> {
    let Some(IdempotencyKey { key, request_sha256 }) = &feedback.idempotency else {
        return Ok(None);
    };
    let row = sqlx::query(BY_KEY)
        .bind(owner.as_str())
        .bind(key)
        .fetch_optional(&mut **change)
        .await
        .map_err(|source| StoreError::database(action, source))?;
    let Some(row) = row else { return Ok(None) };
    let known = Fields { row: &row, table: "feedback" }.maybe_text("request_sha256")?;
    if known.as_deref() != Some(request_sha256) {
        return Err(StoreError::KeyReused { key: key.clone() });
    }
    feedback_in(&row).map(Some)
}

async fn must_have_target(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    feedback: &NewFeedback,
    action: &str,
) -> Result<(), StoreError> {
    let target = match &feedback.target {
        FeedbackTarget::Completion { id, .. } => ("completion", COMPLETION, id),
        FeedbackTarget::Episode(episode) => ("episode", EPISODE, episode),
    };
    let rejected = feedback.rejected.as_ref().map(|id| ("completion", COMPLETION, id));
    for (kind, query, id) in [Some(target), rejected].into_iter().flatten() {
        let row = sqlx::query(query)
            .bind(owner.as_str())
            .bind(id)
            .bind(now_ms())
            .fetch_optional(&mut **change)
            .await
            .map_err(|source| StoreError::database(action, source))?;
        if row.is_none() {
            return Err(StoreError::NotFound { kind, id: id.clone() });
        }
    }
    Ok(())
}

/// The first value of a metric says of what kind all are.
async fn must_be_of_kind(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    feedback: &NewFeedback,
    action: &str,
) -> Result<(), StoreError> {
    let failed = |source| StoreError::database(action, source);
    let metric = &feedback.metric;
    sqlx::query(NEW_METRIC)
        .bind(owner.as_str())
        .bind(metric)
        .bind(feedback.kind.name())
        .bind(now_ms())
        .execute(&mut **change)
        .await
        .map_err(failed)?;
    let row = sqlx::query("SELECT kind FROM metrics WHERE owner = $1 AND name = $2")
        .bind(owner.as_str())
        .bind(metric)
        .fetch_one(&mut **change)
        .await
        .map_err(failed)?;
    let kind = Fields { row: &row, table: "metrics" }.text("kind")?;
    if kind == feedback.kind.name() {
        return Ok(());
    }
    Err(StoreError::MetricKind { metric: metric.clone(), kind })
}

async fn insert(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    feedback: &NewFeedback,
    action: &str,
) -> Result<StoredFeedback, StoreError> {
    let created_ms = now_ms();
    let NewFeedback { target, metric, kind, value, rejected, tags, user_sha256, idempotency } =
        feedback.clone();
    let (completion, episode, choice) = match &target {
        FeedbackTarget::Completion { id, choice } => (Some(id.as_str()), None, *choice),
        FeedbackTarget::Episode(episode) => (None, Some(episode.as_str()), 0),
    };
    let id = time_id("fb-")?;
    sqlx::query(NEW)
        .bind(owner.as_str())
        .bind(&id)
        .bind(completion)
        .bind(episode)
        .bind(i64::from(choice))
        .bind(rejected.as_deref())
        .bind(&metric)
        .bind(kind.name())
        .bind(value.to_string())
        .bind(json(&tags))
        .bind(user_sha256.as_deref())
        .bind(idempotency.as_ref().map(|idempotency| idempotency.key.as_str()))
        .bind(idempotency.as_ref().map(|idempotency| idempotency.request_sha256.as_str()))
        .bind(created_ms)
        .execute(&mut **change)
        .await
        .map_err(|source| StoreError::database(action, source))?;
    let (updated_ms, withdrawn_ms) = (created_ms, None);
    Ok(StoredFeedback {
        id,
        target,
        metric,
        kind,
        value,
        rejected,
        tags,
        user_sha256,
        created_ms,
        updated_ms,
        withdrawn_ms,
    })
}

fn json(tags: &BTreeMap<String, String>) -> String {
    serde_json::to_string(tags).expect("texts by text have a JSON form")
}

pub(crate) fn feedback_in(row: &AnyRow) -> Result<StoredFeedback, StoreError> {
    let fields = Fields { row, table: "feedback" };
    let target = match (fields.maybe_text("completion")?, fields.maybe_text("episode")?) {
        (Some(id), None) => FeedbackTarget::Completion { id, choice: fields.number("choice")? },
        (None, Some(episode)) => FeedbackTarget::Episode(episode),
        _ => return Err(fields.corrupt("completion", "it is about one thing, or nothing")),
    };
    let kind = fields.text("kind")?;
    let kind = FeedbackKind::ALL.into_iter().find(|known| known.name() == kind);
    Ok(StoredFeedback {
        id: fields.text("id")?,
        target,
        metric: fields.text("metric")?,
        kind: kind.ok_or_else(|| fields.corrupt("kind", "there is no such kind"))?,
        value: fields.json("value")?,
        rejected: fields.maybe_text("rejected")?,
        tags: fields.json("tags")?,
        user_sha256: fields.maybe_text("user_sha256")?,
        created_ms: fields.int("created_ms")?,
        updated_ms: fields.int("updated_ms")?,
        withdrawn_ms: fields.maybe_int("withdrawn_ms")?,
    })
}

fn unknown(id: &str) -> StoreError {
    StoreError::NotFound { kind: KIND, id: id.to_owned() }
}
