//! Deleting completions and what hangs on them: one, those of an end user, and those whose time is over.
//!
//! What was learned from them stays in the weights, and is known by its lineage. The texts go, also those that rounds of the
//! learning loop wrote into their data sets.

use sqlx::{Any, AssertSqlSafe, Transaction};

use crate::{
    clock::now_ms,
    completions::unknown,
    digest::BlobDigest,
    error::StoreError,
    lineage::{SawGeneration, Seen, that_saw},
    owner::Owner,
    round_changes::decide,
    rounds::Decision,
    row::Fields,
    store::Store,
};

/// Who decides about the rounds of whoever was erased.
const ERASURE: &str = "erasure";

/// What was erased.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Completions.
    pub completions: u64,
    /// Feedback, that of the user's and that on the user's completions.
    pub feedback: u64,
    /// Generations that have learned from the user, ordered by digest.
    pub generations: Vec<SawGeneration>,
    /// Rounds that were about to, and are cancelled.
    pub rounds: Vec<String>,
}

/// Feedback on episodes of which nothing is left.
macro_rules! is_orphan {
    () => {
        "episode IS NOT NULL AND NOT EXISTS \
         (SELECT 1 FROM completions WHERE completions.owner = feedback.owner \
          AND completions.episode = feedback.episode)"
    };
}

const ORPHANS: &str = concat!(
    "DELETE FROM feedback WHERE (owner, id) IN (SELECT owner, id FROM feedback WHERE ",
    is_orphan!(),
    " LIMIT 200)"
);
/// Those of one owner's: no erasure reads, or locks, what is another's.
const OWN_ORPHANS: &str = concat!("DELETE FROM feedback WHERE owner = $1 AND ", is_orphan!());
/// Whose time was over first.
const OVER: &str =
    "SELECT owner FROM completions WHERE expires_ms <= $1 ORDER BY expires_ms LIMIT 1";
const GIVEN: &str = "DELETE FROM feedback WHERE owner = $1 AND user_sha256 = $2";
const FORGET: &str =
    "UPDATE round_examples SET user_sha256 = NULL WHERE owner = $1 AND user_sha256 = $2";

/// Deletes completions by a condition, and what hangs on them. Each text is a whole query, in order, and begins with the
/// completions, whose condition has an index: from feedback with OR, or with EXISTS, SQLite would read all feedback there is.
macro_rules! delete_where {
    ($condition:literal) => {
        [
            concat!(
                "DELETE FROM feedback WHERE (owner, completion) IN \
                 (SELECT owner, id FROM completions WHERE ",
                $condition,
                ")"
            ),
            concat!(
                "DELETE FROM feedback WHERE (owner, rejected) IN \
                 (SELECT owner, id FROM completions WHERE ",
                $condition,
                ")"
            ),
            concat!(
                "DELETE FROM metadata WHERE (owner, object) IN \
                 (SELECT owner, id FROM completions WHERE ",
                $condition,
                ")"
            ),
            concat!("DELETE FROM completions WHERE ", $condition),
        ]
    };
}

impl Store {
    /// Deletes a completion, and all feedback on it. [`Store::generations_that_saw`] still knows what learned from it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn delete_completion(&self, owner: &Owner, id: &str) -> Result<(), StoreError> {
        let action = format!("delete completion {id:?}");
        let queries = delete_where!("completions.owner = $1 AND completions.id = $2");
        let mut change = self.database.begin_for(owner, &action).await?;
        let erased = erase(&mut change, owner, id, &queries, &action).await?;
        if erased.completions == 0 {
            return Err(unknown(id));
        }
        change.commit().await.map_err(|source| StoreError::database(&action, source))
    }

    /// Deletes what an end user asked and was answered, all feedback on that, and all feedback that the user gave; the data
    /// sets of rounds that have something of it, too. Rounds that are still to learn from one of these are cancelled. To do
    /// it again is no error, but then nobody knows any more what learned from the user.
    ///
    /// # Errors
    /// When the owner does not exist or the database cannot be written.
    pub async fn erase_user(&self, owner: &Owner, user_sha256: &str) -> Result<Erased, StoreError> {
        let action = format!("erase a user of {owner}");
        let failed = |source| StoreError::database(&action, source);
        let queries = delete_where!("completions.owner = $1 AND completions.user_sha256 = $2");
        let mut change = self.database.begin_for(owner, &action).await?;
        let seen = Seen::User(user_sha256);
        let generations = that_saw(&mut change, owner, seen, &action).await?;
        let (rounds, blobs) = end_rounds(&mut change, owner, user_sha256, &action).await?;
        let mut given = 0;
        for query in [GIVEN, FORGET] {
            let done = sqlx::query(query)
                .bind(owner.as_str())
                .bind(user_sha256)
                .execute(&mut *change)
                .await
                .map_err(failed)?;
            if query == GIVEN {
                given = done.rows_affected();
            }
        }
        let erased = erase(&mut change, owner, user_sha256, &queries, &action).await?;
        change.commit().await.map_err(failed)?;
        self.let_go(&blobs).await;
        Ok(Erased { feedback: erased.feedback + given, generations, rounds, ..erased })
    }

    /// Deletes completions whose time is over, of all owners; how many. A few of one owner's in each change: others, and
    /// other owners, come in between.
    ///
    /// # Errors
    /// When the database cannot be written; what was deleted by then stays so.
    pub(crate) async fn sweep_completions(&self) -> Result<u64, StoreError> {
        let action = "delete old completions";
        let failed = |source| StoreError::database(action, source);
        let (now_ms, mut n_deleted) = (now_ms(), 0);
        loop {
            let over = sqlx::query(OVER).bind(now_ms).fetch_optional(self.database.readers());
            let Some(row) = over.await.map_err(failed)? else { break };
            let owner = Fields { row: &row, table: "completions" }.owner("owner")?;
            n_deleted += self.sweep_some(&owner, now_ms, action).await?;
        }
        loop {
            let orphans = sqlx::query(ORPHANS).execute(self.database.writers());
            if orphans.await.map_err(failed)?.rows_affected() == 0 {
                return Ok(n_deleted);
            }
        }
    }

    /// Deletes the first of an owner's completions whose time was over then; how many.
    async fn sweep_some(
        &self,
        owner: &Owner,
        now_ms: i64,
        action: &str,
    ) -> Result<u64, StoreError> {
        let failed = |source| StoreError::database(action, source);
        // All of them mean the same rows, as nobody else changes this owner's meanwhile; the last one deletes these.
        let queries = delete_where!(
            "completions.owner = $1 AND completions.id IN (SELECT id FROM completions \
             WHERE owner = $1 AND expires_ms <= $2 ORDER BY id LIMIT 200)"
        );
        let mut change = self.database.begin_for(owner, action).await?;
        let mut n_deleted = 0;
        for query in queries {
            let done = sqlx::query(query).bind(owner.as_str()).bind(now_ms);
            n_deleted = done.execute(&mut *change).await.map_err(failed)?.rows_affected();
        }
        change.commit().await.map_err(failed)?;
        Ok(n_deleted)
    }
}

/// Deletes what `key` names; each query has owner and key.
async fn erase(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    key: &str,
    [feedback, compared, pairs, completions]: &[&'static str; 4],
    action: &str,
) -> Result<Erased, StoreError> {
    let failed = |source| StoreError::database(action, source);
    let mut erased = Erased::default();
    let bound = |query: &'static str| sqlx::query(query).bind(owner.as_str()).bind(key.to_owned());
    for query in [*feedback, *compared] {
        let done = bound(query).execute(&mut **change).await.map_err(failed)?;
        erased.feedback += done.rows_affected();
    }
    bound(pairs).execute(&mut **change).await.map_err(failed)?;
    let done = bound(completions).execute(&mut **change).await.map_err(failed)?;
    erased.completions = done.rows_affected();
    let orphans = sqlx::query(OWN_ORPHANS).bind(owner.as_str());
    let done = orphans.execute(&mut **change).await.map_err(failed)?;
    erased.feedback += done.rows_affected();
    Ok(erased)
}

/// Cancels the open rounds whose data sets have something of a user's, and deletes the data sets of all such rounds, with all
/// parts of them. Of a round that is still building nobody knows yet what its data set has: that goes, too, and is built
/// again. The ids of those that are cancelled, and the blobs to be let go of.
async fn end_rounds(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    user_sha256: &str,
    action: &str,
) -> Result<(Vec<String>, Vec<BlobDigest>), StoreError> {
    let failed = |source| StoreError::database(action, source);
    let rounds = Seen::User(user_sha256).rounds();
    let query = |query: String| {
        // Made of constants.
        sqlx::query(AssertSqlSafe(query)).bind(owner.as_str()).bind(user_sha256.to_owned())
    };
    let open = format!(
        "SELECT id FROM rounds WHERE owner = $1 AND ended_ms IS NULL AND id IN ({rounds}) \
         ORDER BY id"
    );
    let rows = query(open).fetch_all(&mut **change).await.map_err(failed)?;
    let mut ended = Vec::new();
    for row in &rows {
        let id = Fields { row, table: "rounds" }.text("id")?;
        let why = "a user whose data it has was erased";
        decide(change, owner, &id, (Decision::Cancel, ERASURE, why), action).await?;
        ended.push(id);
    }
    let files = format!(
        "SELECT id, sha256 FROM files WHERE owner = $1 AND (id IN \
         (SELECT file FROM rounds WHERE owner = $1 AND id IN ({rounds})) \
         OR round IN ({rounds}) \
         OR round IN (SELECT id FROM rounds WHERE owner = $1 AND state = 'building'))"
    );
    let rows = query(files).fetch_all(&mut **change).await.map_err(failed)?;
    let mut blobs = Vec::new();
    for row in &rows {
        let fields = Fields { row, table: "files" };
        sqlx::query("DELETE FROM files WHERE owner = $1 AND id = $2")
            .bind(owner.as_str())
            .bind(fields.text("id")?)
            .execute(&mut **change)
            .await
            .map_err(failed)?;
        blobs.push(fields.parsed("sha256")?);
    }
    Ok((ended, blobs))
}
