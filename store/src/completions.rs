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

const NEW: &str = "INSERT INTO completions (owner, id, model, generation, episode, user_sha256, \
     body, metadata, created_ms, expires_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
const ONE: &str = "SELECT * FROM completions WHERE owner = $1 AND id = $2 AND expires_ms > $3";
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

pub(crate) fn completion_in(row: &AnyRow) -> Result<StoredCompletion, StoreError> {
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

pub(crate) fn unknown(id: &str) -> StoreError {
    StoreError::NotFound { kind: KIND, id: id.to_owned() }
}
