//! Completions that are kept: what was asked and answered, for reading it again, for feedback, and to learn from.

use sqlx::{Any, AssertSqlSafe, Transaction, any::AnyRow};

use crate::{
    clock::now_ms,
    digest::GenerationDigest,
    error::StoreError,
    metadata::{self, Metadata},
    owner::Owner,
    page::{Listing, Order, Page},
    row::Fields,
    store::Store,
};

const KIND: &str = "completion";

/// A completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCompletion {
    /// As the response had it. It begins with the time ([`crate::time_id`]).
    pub id: String,
    /// What the request called the model.
    pub model: String,
    /// What it ran on; `None` is the plain base.
    pub generation: Option<GenerationDigest>,
    /// Completions that belong together have one.
    pub episode: Option<String>,
    /// SHA-256 of the end user's name, 64 hex digits.
    pub user_sha256: Option<String>,
    /// Pairs of the client's.
    pub metadata: Metadata,
    /// JSON, whose shape is the server's business.
    pub body: String,
    /// When it was asked for, Unix ms.
    pub created_ms: i64,
    /// When it ceases to be, Unix ms.
    pub expires_ms: i64,
}

/// Which completions of an owner are meant.
#[derive(Clone, Debug, Default)]
pub struct CompletionFilter {
    /// Those that asked for this model.
    pub model: Option<String>,
    /// Those that have all these pairs.
    pub metadata: Metadata,
}

/// What was erased.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Completions.
    pub completions: u64,
    /// Feedback, that of the user's and that on the user's completions.
    pub feedback: u64,
}

const NEW: &str = "INSERT INTO completions (owner, id, model, generation, episode, user_sha256, \
     body, metadata, created_ms, expires_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
const ONE: &str = "SELECT * FROM completions WHERE owner = $1 AND id = $2 AND expires_ms > $3";
/// Episodes of which nothing is left.
const ORPHANS: &str = "DELETE FROM feedback WHERE episode IS NOT NULL AND NOT EXISTS \
     (SELECT 1 FROM completions WHERE completions.owner = feedback.owner \
      AND completions.episode = feedback.episode)";

/// Deletes completions by a condition, and what hangs on them. Each text is a whole query, in order.
macro_rules! delete_where {
    ($condition:literal) => {
        [
            concat!(
                "DELETE FROM feedback WHERE EXISTS (SELECT 1 FROM completions \
                 WHERE completions.owner = feedback.owner AND (completions.id = feedback.completion \
                 OR completions.id = feedback.rejected) AND ",
                $condition,
                ")"
            ),
            concat!(
                "DELETE FROM metadata WHERE EXISTS (SELECT 1 FROM completions \
                 WHERE completions.owner = metadata.owner AND completions.id = metadata.object AND ",
                $condition,
                ")"
            ),
            concat!("DELETE FROM completions WHERE ", $condition),
        ]
    };
}

impl Store {
    /// Keeps completions, all or none: one commit for many.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn put_completions(
        &self,
        completions: &[(Owner, StoredCompletion)],
    ) -> Result<(), StoreError> {
        let action = format!("keep {} completions", completions.len());
        let mut change = self.database.begin(&action).await?;
        for (owner, completion) in completions {
            insert(&mut change, owner, completion, &action).await?;
        }
        change.commit().await.map_err(|source| StoreError::database(&action, source))
    }

    /// One completion of an owner.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also if it is another's or its time is over.
    pub async fn completion(
        &self,
        owner: &Owner,
        id: &str,
    ) -> Result<StoredCompletion, StoreError> {
        let row = sqlx::query(ONE)
            .bind(owner.as_str())
            .bind(id)
            .bind(now_ms())
            .fetch_optional(self.database.readers())
            .await
            .map_err(|source| StoreError::database(format!("read completion {id:?}"), source))?;
        row.as_ref().map_or_else(|| Err(unknown(id)), completion_in)
    }

    /// Whether the owner has a completion of this episode.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn has_episode(&self, owner: &Owner, episode: &str) -> Result<bool, StoreError> {
        let row = sqlx::query(
            "SELECT id FROM completions WHERE owner = $1 AND episode = $2 AND expires_ms > $3 \
             LIMIT 1",
        )
        .bind(owner.as_str())
        .bind(episode)
        .bind(now_ms())
        .fetch_optional(self.database.readers())
        .await
        .map_err(|source| StoreError::database(format!("look for episode {episode:?}"), source))?;
        Ok(row.is_some())
    }

    /// Completions of an owner.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn completions(
        &self,
        owner: &Owner,
        filter: &CompletionFilter,
        page: &Page<'_>,
        order: Order,
    ) -> Result<Listing<StoredCompletion>, StoreError> {
        let after = order.pick("id > $2", "($2 = '' OR id < $2)");
        let direction = order.pick("ASC", "DESC");
        let pairs = metadata::condition("completions", filter.metadata.len(), 6);
        let query = format!(
            "SELECT * FROM completions WHERE owner = $1 AND {after} AND expires_ms > $3 \
             AND ($4 = '' OR model = $4){pairs} ORDER BY id {direction} LIMIT $5"
        );
        // Made of constants and counted placeholders; what clients send is bound.
        let mut query = sqlx::query(AssertSqlSafe(query))
            .bind(owner.as_str())
            .bind(page.after())
            .bind(now_ms())
            .bind(filter.model.as_deref().unwrap_or_default())
            .bind(page.limit());
        for (name, value) in &filter.metadata {
            query = query.bind(name).bind(value);
        }
        let rows = query.fetch_all(self.database.readers()).await.map_err(|source| {
            StoreError::database(format!("list completions of {owner}"), source)
        })?;
        let completions = rows.iter().map(completion_in).collect::<Result<_, _>>()?;
        Ok(Listing::new(completions, page, |completion: &StoredCompletion| completion.id.clone()))
    }

    /// Replaces the pairs of a completion.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn set_completion_metadata(
        &self,
        owner: &Owner,
        id: &str,
        metadata: &Metadata,
    ) -> Result<StoredCompletion, StoreError> {
        let action = format!("change completion {id:?}");
        let failed = |source| StoreError::database(&action, source);
        let mut change = self.database.begin_for(owner, &action).await?;
        let row = sqlx::query(ONE)
            .bind(owner.as_str())
            .bind(id)
            .bind(now_ms())
            .fetch_optional(&mut *change)
            .await
            .map_err(failed)?;
        let found = row.as_ref().map_or_else(|| Err(unknown(id)), completion_in)?;
        sqlx::query("UPDATE completions SET metadata = $3 WHERE owner = $1 AND id = $2")
            .bind(owner.as_str())
            .bind(id)
            .bind(metadata::json(metadata))
            .execute(&mut *change)
            .await
            .map_err(failed)?;
        metadata::replace(&mut change, owner, id, metadata, &action).await?;
        change.commit().await.map_err(failed)?;
        Ok(StoredCompletion { metadata: metadata.clone(), ..found })
    }

    /// Deletes a completion, and all feedback on it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn delete_completion(&self, owner: &Owner, id: &str) -> Result<(), StoreError> {
        let queries = delete_where!("completions.owner = $1 AND completions.id = $2");
        let erased = self.erase(owner, id, &queries, None).await?;
        if erased.completions == 0 { Err(unknown(id)) } else { Ok(()) }
    }

    /// Deletes what an end user asked and was answered, all feedback on that, and all feedback that the user gave. To do it
    /// again is no error.
    ///
    /// # Errors
    /// When the owner does not exist or the database cannot be written.
    pub async fn erase_user(&self, owner: &Owner, user_sha256: &str) -> Result<Erased, StoreError> {
        let queries = delete_where!("completions.owner = $1 AND completions.user_sha256 = $2");
        let given = "DELETE FROM feedback WHERE owner = $1 AND user_sha256 = $2";
        self.erase(owner, user_sha256, &queries, Some(given)).await
    }

    /// Deletes what `key` names; each query has owner and key.
    async fn erase(
        &self,
        owner: &Owner,
        key: &str,
        [feedback, pairs, completions]: &[&'static str; 3],
        also_feedback: Option<&'static str>,
    ) -> Result<Erased, StoreError> {
        let action = format!("erase what {owner} has");
        let failed = |source| StoreError::database(&action, source);
        let mut change = self.database.begin_for(owner, &action).await?;
        let mut erased = Erased::default();
        let bound =
            |query: &'static str| sqlx::query(query).bind(owner.as_str()).bind(key.to_owned());
        for query in also_feedback.into_iter().chain([*feedback]) {
            let done = bound(query).execute(&mut *change).await.map_err(failed)?;
            erased.feedback += done.rows_affected();
        }
        bound(pairs).execute(&mut *change).await.map_err(failed)?;
        let done = bound(completions).execute(&mut *change).await.map_err(failed)?;
        erased.completions = done.rows_affected();
        let done = sqlx::query(ORPHANS).execute(&mut *change).await.map_err(failed)?;
        erased.feedback += done.rows_affected();
        change.commit().await.map_err(failed)?;
        Ok(erased)
    }

    /// Deletes completions whose time is over, of all owners; how many.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) async fn sweep_completions(&self) -> Result<u64, StoreError> {
        let action = "delete old completions";
        let failed = |source| StoreError::database(action, source);
        let mut change = self.database.begin(action).await?;
        let mut n_deleted = 0;
        // All three mean the same rows.
        let now_ms = now_ms();
        for query in delete_where!("completions.expires_ms <= $1") {
            let done = sqlx::query(query).bind(now_ms).execute(&mut *change).await;
            n_deleted = done.map_err(failed)?.rows_affected();
        }
        sqlx::query(ORPHANS).execute(&mut *change).await.map_err(failed)?;
        change.commit().await.map_err(failed)?;
        Ok(n_deleted)
    }
}

async fn insert(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    completion: &StoredCompletion,
    action: &str,
) -> Result<(), StoreError> {
    sqlx::query(NEW)
        .bind(owner.as_str())
        .bind(&completion.id)
        .bind(&completion.model)
        .bind(completion.generation.map(|digest| digest.to_string()))
        .bind(completion.episode.as_deref())
        .bind(completion.user_sha256.as_deref())
        .bind(&completion.body)
        .bind(metadata::json(&completion.metadata))
        .bind(completion.created_ms)
        .bind(completion.expires_ms)
        .execute(&mut **change)
        .await
        .map_err(|source| StoreError::database(action, source))?;
    metadata::add(change, owner, &completion.id, &completion.metadata, action).await
}

fn completion_in(row: &AnyRow) -> Result<StoredCompletion, StoreError> {
    let fields = Fields { row, table: "completions" };
    Ok(StoredCompletion {
        id: fields.text("id")?,
        model: fields.text("model")?,
        generation: fields.maybe_parsed("generation")?,
        episode: fields.maybe_text("episode")?,
        user_sha256: fields.maybe_text("user_sha256")?,
        metadata: fields.json("metadata")?,
        body: fields.text("body")?,
        created_ms: fields.int("created_ms")?,
        expires_ms: fields.int("expires_ms")?,
    })
}

fn unknown(id: &str) -> StoreError {
    StoreError::NotFound { kind: KIND, id: id.to_owned() }
}
