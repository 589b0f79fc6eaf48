//! Blobs that nobody has: found by their rows, so that no store has to be listed.
//!
//! A blob is deleted in a transaction that holds its row: who wants to put or register it meanwhile waits for that row,
//! then finds it gone (a registration fails with [`StoreError::BlobExpired`]) or makes it anew (a put gives the blob its
//! name only after its row is committed). So no generation can point at a blob that is being deleted, whatever
//! other processes share database and blobs. A table that points at `blobs` must have a foreign key: where
//! `unused!` does not know it yet, the key stops the deletion.

use std::{path::PathBuf, time::SystemTime};

use futures_util::TryStreamExt as _;
use object_store::{ObjectStoreExt as _, path::Path as ObjectPath};
use sqlx::Row as _;

use crate::{
    blob_error::BlobError,
    blob_writer::StagedBlob,
    blobs::{Blobs, INCOMING},
    clock::now_ms,
    digest::BlobDigest,
    error::StoreError,
    row::Fields,
    store::Store,
};

/// Rows looked at together.
const BATCH_ROWS: i64 = 100;

/// What nobody has, and nobody will register: `$1` is now.
macro_rules! unused {
    () => {
        "keep_until_ms < $1 \
         AND NOT EXISTS (SELECT 1 FROM generation_files WHERE generation_files.sha256 = blobs.sha256) \
         AND NOT EXISTS (SELECT 1 FROM files WHERE files.sha256 = blobs.sha256) \
         AND NOT EXISTS (SELECT 1 FROM upload_parts WHERE upload_parts.sha256 = blobs.sha256) \
         AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.state_sha256 = blobs.sha256)"
    };
}

const CANDIDATES: &str = concat!(
    "SELECT sha256, bytes FROM blobs WHERE ",
    unused!(),
    " AND sha256 > $2 ORDER BY sha256 LIMIT $3"
);
const FORGET: &str = concat!("DELETE FROM blobs WHERE ", unused!(), " AND sha256 = $2");

/// What a sweep deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Blobs that nothing had.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Unfinished uploads.
    pub uploads: u64,
}

impl Store {
    /// Deletes blobs that nothing has and whose time to be registered has passed, and unfinished uploads of that
    /// age. Runs when a store is opened; call it now and then if it stays open for long.
    ///
    /// # Errors
    /// When the database or the blobs' place fails; what was deleted by then stays so.
    pub async fn sweep_blobs(&self) -> Result<Swept, StoreError> {
        let mut swept = Swept { uploads: self.sweep_incoming().await?, ..Swept::default() };
        let mut after = String::new();
        loop {
            let rows = sqlx::query(CANDIDATES)
                .bind(now_ms())
                .bind(&after)
                .bind(BATCH_ROWS)
                .fetch_all(self.database.readers())
                .await
                .map_err(|source| StoreError::database("look for unused blobs", source))?;
            let Some(last) = rows.last() else { return Ok(swept) };
            after = last
                .try_get("sha256")
                .map_err(|source| StoreError::database("look for unused blobs", source))?;
            for row in &rows {
                let fields = Fields { row, table: "blobs" };
                if self.delete_if_unused(&fields.parsed("sha256")?).await? {
                    swept.blobs += 1;
                    swept.bytes = swept.bytes.saturating_add(fields.number("bytes")?);
                }
            }
        }
    }

    /// Deletes staged blobs that will not be registered after all, unless a generation has them. Whoever staged equal bytes
    /// meanwhile gets [`StoreError::BlobExpired`] and puts them again.
    ///
    /// # Errors
    /// When the database or the blobs' place fails; what is left is found by a sweep.
    pub async fn discard_blobs(&self, staged: &[StagedBlob]) -> Result<(), StoreError> {
        for StagedBlob { digest, .. } in staged {
            sqlx::query("UPDATE blobs SET keep_until_ms = 0 WHERE sha256 = $1")
                .bind(digest.to_string())
                .execute(self.database.writers())
                .await
                .map_err(|source| StoreError::database(format!("give up blob {digest}"), source))?;
            self.delete_if_unused(digest).await?;
        }
        Ok(())
    }

    /// Deletes blobs whose rows are gone, except those that others have or that were put only now; when that fails, a
    /// later sweep does it.
    pub(crate) async fn let_go(&self, digests: &[BlobDigest]) {
        for digest in digests {
            if let Err(error) = self.delete_if_unused(digest).await {
                tracing::warn!(%error, "an unused blob is left for the next sweep");
            }
        }
    }

    /// Deletes a blob with its row, unless it is used or kept; whether it did.
    pub(crate) async fn delete_if_unused(&self, digest: &BlobDigest) -> Result<bool, StoreError> {
        let action = format!("delete blob {digest}");
        let failed = |source| StoreError::database(&action, source);
        let mut change = self.database.begin(&action).await?;
        let forgotten =
            sqlx::query(FORGET).bind(now_ms()).bind(digest.to_string()).execute(&mut *change).await;
        match forgotten {
            Ok(done) if done.rows_affected() == 0 => return Ok(false),
            Ok(_) => {}
            Err(error) if is_used(&error) => return Ok(false),
            Err(error) => return Err(failed(error)),
        }
        // Before the commit: while the row is held, nobody gives the blob its name again.
        self.delete_object(&Blobs::path_of(digest)).await?;
        change.commit().await.map_err(failed)?;
        Ok(true)
    }

    /// Deletes an object for good, or finds it gone.
    async fn delete_object(&self, path: &ObjectPath) -> Result<(), StoreError> {
        match self.blobs.objects.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(source) => return Err(self.blobs.failed(format!("delete {path}"), source).into()),
        }
        #[cfg(unix)]
        if let Some(root) = &self.blobs.folder {
            let folder = root.join(path.as_ref());
            let folder = folder.parent().map_or_else(|| root.to_path_buf(), PathBuf::from);
            // A blob that came back after a power failure would have no row, and never be found.
            let synced = match tokio::fs::File::open(&folder).await {
                Ok(open) => open.sync_all().await,
                Err(error) => Err(error),
            };
            match synced {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(BlobError::io("sync", folder)(error).into());
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Deletes unfinished uploads whose last byte is old; how many.
    async fn sweep_incoming(&self) -> Result<u64, StoreError> {
        let keep_ms = u64::try_from(self.blob_keep_ms).unwrap_or_default();
        let keep = std::time::Duration::from_millis(keep_ms);
        let Some(before) = SystemTime::now().checked_sub(keep) else { return Ok(0) };
        let Some(root) = &self.blobs.folder else { return self.sweep_objects(before).await };
        // Not through `object_store`: it hides the files that it has not finished.
        let folder = root.join(INCOMING);
        let sweep = move || sweep_folder(&folder, before);
        let swept = tokio::task::spawn_blocking(sweep).await;
        swept.map_err(|error| BlobError::io("read", INCOMING)(error.into()))?.map_err(Into::into)
    }

    async fn sweep_objects(&self, before: SystemTime) -> Result<u64, StoreError> {
        let failed = |source| self.blobs.failed("look for unfinished uploads", source);
        let mut swept = 0;
        let mut listed = self.blobs.objects.list(Some(&ObjectPath::from(INCOMING)));
        while let Some(object) = listed.try_next().await.map_err(failed)? {
            if SystemTime::from(object.last_modified) < before {
                self.delete_object(&object.location).await?;
                swept += 1;
            }
        }
        Ok(swept)
    }
}

fn sweep_folder(folder: &std::path::Path, before: SystemTime) -> Result<u64, BlobError> {
    let mut swept = 0;
    for entry in std::fs::read_dir(folder).map_err(BlobError::io("read", folder))? {
        let path = entry.map_err(BlobError::io("read", folder))?.path();
        // Whoever wrote it may have finished it meanwhile.
        let Ok(modified) = std::fs::metadata(&path).and_then(|metadata| metadata.modified()) else {
            continue;
        };
        if modified < before && std::fs::remove_file(&path).is_ok() {
            swept += 1;
        }
    }
    Ok(swept)
}

fn is_used(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_foreign_key_violation)
}
