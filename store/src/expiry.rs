//! Deleting what was to be kept for a time only.

use sqlx::any::AnyRow;

use crate::{
    clock::now_ms, digest::BlobDigest, error::StoreError, row::Fields, store::Store,
    uploads::drop_parts,
};

/// Rows looked at together.
const BATCH_ROWS: i64 = 100;
/// How long an upload that has ended can still be looked at.
const ENDED_UPLOAD_MS: i64 = 24 * 60 * 60 * 1000;

/// A job or a round that has not ended keeps its files.
const OLD_FILES: &str = "SELECT owner, id, sha256 FROM files WHERE expires_ms <= $1 \
     AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.owner = files.owner \
     AND (jobs.training_file = files.id OR jobs.validation_file = files.id) \
     AND jobs.status IN ('validating_files', 'queued', 'running', 'paused')) \
     AND NOT EXISTS (SELECT 1 FROM rounds WHERE rounds.owner = files.owner \
     AND rounds.file = files.id AND rounds.ended_ms IS NULL) LIMIT $2";
/// With parts, or old.
const OLD_UPLOADS: &str = "SELECT owner, id, expires_ms FROM uploads WHERE expires_ms <= $2 \
     OR (expires_ms <= $1 AND EXISTS (SELECT 1 FROM upload_parts \
     WHERE upload_parts.owner = uploads.owner AND upload_parts.upload = uploads.id)) LIMIT $3";

/// What was deleted because its time was over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Completions, with all feedback on them.
    pub completions: u64,
    /// Files.
    pub files: u64,
    /// Uploads that were not completed in time, and rows of those that have ended.
    pub uploads: u64,
}

impl Store {
    /// Deletes all whose time is over. Nobody sees it any more before that. Call it now and then.
    ///
    /// # Errors
    /// When the database fails; what was deleted by then stays so.
    pub async fn sweep_expired(&self) -> Result<Expired, StoreError> {
        Ok(Expired {
            completions: self.sweep_completions().await?,
            files: self.sweep_files().await?,
            uploads: self.sweep_uploads().await?,
        })
    }

    async fn sweep_files(&self) -> Result<u64, StoreError> {
        let action = "delete old files";
        let failed = |source| StoreError::database(action, source);
        let mut n_deleted = 0;
        loop {
            let rows = sqlx::query(OLD_FILES)
                .bind(now_ms())
                .bind(BATCH_ROWS)
                .fetch_all(self.database.readers())
                .await
                .map_err(failed)?;
            if rows.is_empty() {
                return Ok(n_deleted);
            }
            let mut blobs = Vec::new();
            for row in &rows {
                let fields = Fields { row, table: "files" };
                sqlx::query("DELETE FROM files WHERE owner = $1 AND id = $2")
                    .bind(fields.text("owner")?)
                    .bind(fields.text("id")?)
                    .execute(self.database.writers())
                    .await
                    .map_err(failed)?;
                blobs.push(fields.parsed("sha256")?);
                n_deleted += 1;
            }
            self.let_go(&blobs).await;
        }
    }

    async fn sweep_uploads(&self) -> Result<u64, StoreError> {
        let mut n_deleted = 0;
        loop {
            let now_ms = now_ms();
            let rows = sqlx::query(OLD_UPLOADS)
                .bind(now_ms)
                .bind(now_ms - ENDED_UPLOAD_MS)
                .bind(BATCH_ROWS)
                .fetch_all(self.database.readers())
                .await
                .map_err(|source| StoreError::database("look for old uploads", source))?;
            if rows.is_empty() {
                return Ok(n_deleted);
            }
            for row in &rows {
                let blobs = self.end_upload(row, now_ms).await?;
                self.let_go(&blobs).await;
                n_deleted += 1;
            }
        }
    }

    /// Takes the parts of an upload away, and the upload itself when it is old.
    async fn end_upload(&self, row: &AnyRow, now_ms: i64) -> Result<Vec<BlobDigest>, StoreError> {
        let action = "delete old uploads";
        let fields = Fields { row, table: "uploads" };
        let (owner, id) = (fields.owner("owner")?, fields.text("id")?);
        let mut change = self.database.begin_for(&owner, action).await?;
        let blobs = drop_parts(&mut change, &owner, &id, action).await?;
        if fields.int("expires_ms")? <= now_ms - ENDED_UPLOAD_MS {
            sqlx::query("DELETE FROM uploads WHERE owner = $1 AND id = $2")
                .bind(owner.as_str())
                .bind(&id)
                .execute(&mut *change)
                .await
                .map_err(|source| StoreError::database(action, source))?;
        }
        change.commit().await.map_err(|source| StoreError::database(action, source))?;
        Ok(blobs)
    }
}
