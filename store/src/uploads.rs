//! Files that come in parts.
//!
//! ```text
//! create_upload ── add_part … ── complete_upload: parts become one blob, that a file      (one transaction)
//!                            └── cancel_upload
//! ```

use std::collections::HashSet;

use sqlx::{Any, Transaction, any::AnyRow};

use crate::{
    blob_writer::StagedBlob,
    checks::check_name,
    clock::now_ms,
    digest::BlobDigest,
    error::StoreError,
    files::{NewFile, StoredFile, check_quota, insert},
    owner::{Owner, time_id},
    registration::hold,
    row::{Fields, stored},
    store::Store,
};

/// Parts of an upload at most: with parts of 64 MiB, 8 GiB.
pub const UPLOAD_PARTS_MAX: usize = 1024;
/// How long an upload waits to be completed.
const UPLOAD_LIFE_MS: i64 = 60 * 60 * 1000;

const KIND: &str = "upload";
const PENDING: &str = "pending";
const COMPLETED: &str = "completed";
const CANCELLED: &str = "cancelled";

/// An upload to begin.
#[derive(Clone, Debug)]
pub struct NewUpload {
    /// Whose.
    pub owner: Owner,
    /// The file's name.
    pub filename: String,
    /// What the file is for.
    pub purpose: String,
    /// Bytes that are to come.
    pub bytes: u64,
    /// How long the file is kept, ms; absent: until it is deleted.
    pub file_keep_ms: Option<i64>,
}

/// Where an upload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadStatus {
    /// It takes parts.
    Pending,
    /// It is a file.
    Completed,
    /// It was given up.
    Cancelled,
    /// It was not completed in time.
    Expired,
}

impl UploadStatus {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => PENDING,
            Self::Completed => COMPLETED,
            Self::Cancelled => CANCELLED,
            Self::Expired => "expired",
        }
    }
}

/// An upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredUpload {
    /// `upload_…`.
    pub id: String,
    /// The file's name.
    pub filename: String,
    /// What the file is for.
    pub purpose: String,
    /// Bytes that were announced.
    pub bytes: u64,
    /// Where it is.
    pub status: UploadStatus,
    /// When it was begun, Unix ms.
    pub created_ms: i64,
    /// Until when it must be completed, Unix ms.
    pub expires_ms: i64,
    /// How long its file is kept, ms.
    pub file_keep_ms: Option<i64>,
}

/// A part of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadPart {
    /// `part_…`.
    pub id: String,
    /// Its bytes.
    pub blob: BlobDigest,
    /// How many.
    pub bytes: u64,
    /// When it came, Unix ms.
    pub created_ms: i64,
}

const NEW: &str = "INSERT INTO uploads (owner, id, filename, purpose, bytes, status, created_ms, \
     expires_ms, file_keep_ms) VALUES ($1, $2, $3, $4, $5, 'pending', $6, $7, $8)";
const ONE: &str = "SELECT * FROM uploads WHERE owner = $1 AND id = $2";
const NEW_PART: &str = "INSERT INTO upload_parts (owner, upload, id, sha256, bytes, created_ms) \
     VALUES ($1, $2, $3, $4, $5, $6)";
const PARTS: &str = "SELECT * FROM upload_parts WHERE owner = $1 AND upload = $2 ORDER BY id";
const SUM: &str = "SELECT CAST(COUNT(*) AS BIGINT) AS parts, \
     CAST(COALESCE(SUM(bytes), 0) AS BIGINT) AS bytes \
     FROM upload_parts WHERE owner = $1 AND upload = $2";

impl Store {
    /// Begins an upload, which has an hour to be completed.
    ///
    /// # Errors
    /// When the owner does not exist or has not the quota for it, or the name cannot be one.
    pub async fn create_upload(&self, upload: &NewUpload) -> Result<StoredUpload, StoreError> {
        let NewUpload { owner, filename, purpose, bytes, file_keep_ms } = upload;
        check_name("name of a file", filename)?;
        let action = format!("begin an upload of {owner}");
        let mut change = self.database.begin_for(owner, &action).await?;
        check_quota(&mut change, owner, *bytes, &action).await?;
        let created_ms = now_ms();
        let made = StoredUpload {
            id: time_id("upload_")?,
            filename: filename.clone(),
            purpose: purpose.clone(),
            bytes: *bytes,
            status: UploadStatus::Pending,
            created_ms,
            expires_ms: created_ms.saturating_add(UPLOAD_LIFE_MS),
            file_keep_ms: *file_keep_ms,
        };
        sqlx::query(NEW)
            .bind(owner.as_str())
            .bind(&made.id)
            .bind(filename)
            .bind(purpose)
            .bind(stored(made.bytes))
            .bind(made.created_ms)
            .bind(made.expires_ms)
            .bind(made.file_keep_ms)
            .execute(&mut *change)
            .await
            .map_err(|source| StoreError::database(&action, source))?;
        change.commit().await.map_err(|source| StoreError::database(&action, source))?;
        Ok(made)
    }

    /// One upload of an owner, and the file that it became.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also if it is another's.
    pub async fn upload(
        &self,
        owner: &Owner,
        id: &str,
    ) -> Result<(StoredUpload, Option<StoredFile>), StoreError> {
        let row = sqlx::query(ONE)
            .bind(owner.as_str())
            .bind(id)
            .fetch_optional(self.database.readers())
            .await
            .map_err(|source| StoreError::database(format!("read upload {id:?}"), source))?;
        let row = row.ok_or_else(|| unknown(id))?;
        let file = match (Fields { row: &row, table: "uploads" }).maybe_text("file")? {
            // It may have been deleted since.
            Some(file) => self.file(owner, &file).await.ok(),
            None => None,
        };
        Ok((upload_in(&row)?, file))
    }

    /// Adds a part.
    ///
    /// # Errors
    /// When there is no such upload, it has ended or is full, or would have more bytes than announced or than the quota.
    pub async fn add_part(
        &self,
        owner: &Owner,
        upload: &str,
        blob: &StagedBlob,
    ) -> Result<UploadPart, StoreError> {
        let action = format!("add a part to upload {upload:?}");
        let failed = |source| StoreError::database(&action, source);
        let mut change = self.database.begin_for(owner, &action).await?;
        let found = pending(&mut change, owner, upload, &action).await?;
        check_quota(&mut change, owner, blob.bytes, &action).await?;
        let row = sqlx::query(SUM)
            .bind(owner.as_str())
            .bind(upload)
            .fetch_one(&mut *change)
            .await
            .map_err(failed)?;
        let fields = Fields { row: &row, table: "upload_parts" };
        if fields.number::<usize>("parts")? >= UPLOAD_PARTS_MAX {
            let what = format!("upload {upload:?}");
            return Err(StoreError::TooMany { what, n_max: UPLOAD_PARTS_MAX });
        }
        let bytes = fields.number::<u64>("bytes")?.saturating_add(blob.bytes);
        if bytes > found.bytes {
            let state =
                format!("announced with {} bytes, this part would make {bytes}", found.bytes);
            return Err(StoreError::WrongState { kind: KIND, id: upload.to_owned(), state });
        }
        hold(&mut change, blob, &action).await?;
        let part = UploadPart {
            id: time_id("part_")?,
            blob: blob.digest,
            bytes: blob.bytes,
            created_ms: now_ms(),
        };
        sqlx::query(NEW_PART)
            .bind(owner.as_str())
            .bind(upload)
            .bind(&part.id)
            .bind(part.blob.to_string())
            .bind(stored(part.bytes))
            .bind(part.created_ms)
            .execute(&mut *change)
            .await
            .map_err(failed)?;
        change.commit().await.map_err(failed)?;
        Ok(part)
    }

    /// The parts of these ids, in their order, for one who is to join them.
    ///
    /// # Errors
    /// When there is no such upload or part, a part is named twice, or the upload has ended.
    pub async fn parts(
        &self,
        owner: &Owner,
        upload: &str,
        ids: &[String],
    ) -> Result<Vec<UploadPart>, StoreError> {
        let (found, _) = self.upload(owner, upload).await?;
        must_be_pending(&found)?;
        let rows = sqlx::query(PARTS)
            .bind(owner.as_str())
            .bind(upload)
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| StoreError::database(format!("read upload {upload:?}"), source))?;
        let all: Vec<_> = rows.iter().map(part_in).collect::<Result<_, _>>()?;
        let mut seen = HashSet::new();
        let named = ids.iter().map(|id| {
            let part = all.iter().find(|part| part.id == *id).filter(|_| seen.insert(id));
            part.cloned().ok_or_else(|| StoreError::NotFound { kind: "part", id: id.clone() })
        });
        named.collect()
    }

    /// Makes an upload a file, whose bytes are those of its parts. Parts that are not in it are gone too.
    ///
    /// # Errors
    /// When the upload is not there or has ended, the quota does not allow the file, or the blob was put too long ago.
    pub async fn complete_upload(
        &self,
        owner: &Owner,
        upload: &str,
        blob: &StagedBlob,
    ) -> Result<(StoredUpload, StoredFile), StoreError> {
        let action = format!("complete upload {upload:?}");
        let failed = |source| StoreError::database(&action, source);
        let mut change = self.database.begin_for(owner, &action).await?;
        let found = pending(&mut change, owner, upload, &action).await?;
        let parts = drop_parts(&mut change, owner, upload, &action).await?;
        check_quota(&mut change, owner, blob.bytes, &action).await?;
        let file = NewFile {
            owner: owner.clone(),
            filename: found.filename.clone(),
            purpose: found.purpose.clone(),
            blob: *blob,
            keep_ms: found.file_keep_ms,
        };
        let file = insert(&mut change, &file, None, &action).await?;
        end(&mut change, owner, upload, COMPLETED, Some(&file.id), &action).await?;
        change.commit().await.map_err(failed)?;
        self.let_go(&parts).await;
        Ok((StoredUpload { status: UploadStatus::Completed, ..found }, file))
    }

    /// Gives an upload up. Its parts are gone.
    ///
    /// # Errors
    /// When it is not there or has ended.
    pub async fn cancel_upload(
        &self,
        owner: &Owner,
        upload: &str,
    ) -> Result<StoredUpload, StoreError> {
        let action = format!("cancel upload {upload:?}");
        let mut change = self.database.begin_for(owner, &action).await?;
        let found = pending(&mut change, owner, upload, &action).await?;
        let parts = drop_parts(&mut change, owner, upload, &action).await?;
        end(&mut change, owner, upload, CANCELLED, None, &action).await?;
        change.commit().await.map_err(|source| StoreError::database(&action, source))?;
        self.let_go(&parts).await;
        Ok(StoredUpload { status: UploadStatus::Cancelled, ..found })
    }
}

/// An upload that takes parts. The caller holds the owner's row.
async fn pending(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    upload: &str,
    action: &str,
) -> Result<StoredUpload, StoreError> {
    let row = sqlx::query(ONE)
        .bind(owner.as_str())
        .bind(upload)
        .fetch_optional(&mut **change)
        .await
        .map_err(|source| StoreError::database(action, source))?;
    let found = row.as_ref().map_or_else(|| Err(unknown(upload)), upload_in)?;
    must_be_pending(&found)?;
    Ok(found)
}

fn must_be_pending(upload: &StoredUpload) -> Result<(), StoreError> {
    if upload.status == UploadStatus::Pending {
        return Ok(());
    }
    let (id, state) = (upload.id.clone(), upload.status.name().to_owned());
    Err(StoreError::WrongState { kind: KIND, id, state })
}

/// Deletes the rows of all parts; their blobs.
pub(crate) async fn drop_parts(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    upload: &str,
    action: &str,
) -> Result<Vec<BlobDigest>, StoreError> {
    let failed = |source| StoreError::database(action, source);
    let bound = |query| sqlx::query(query).bind(owner.as_str()).bind(upload.to_owned());
    let rows = bound(PARTS).fetch_all(&mut **change).await.map_err(failed)?;
    let parts = rows.iter().map(|row| part_in(row).map(|part| part.blob));
    let parts = parts.collect::<Result<_, _>>()?;
    bound("DELETE FROM upload_parts WHERE owner = $1 AND upload = $2")
        .execute(&mut **change)
        .await
        .map_err(failed)?;
    Ok(parts)
}

async fn end(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    upload: &str,
    status: &str,
    file: Option<&str>,
    action: &str,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE uploads SET status = $3, file = $4 WHERE owner = $1 AND id = $2")
        .bind(owner.as_str())
        .bind(upload)
        .bind(status)
        .bind(file)
        .execute(&mut **change)
        .await
        .map_err(|source| StoreError::database(action, source))?;
    Ok(())
}

fn upload_in(row: &AnyRow) -> Result<StoredUpload, StoreError> {
    let fields = Fields { row, table: "uploads" };
    let expires_ms = fields.int("expires_ms")?;
    let status = match fields.text("status")?.as_str() {
        PENDING if expires_ms <= now_ms() => UploadStatus::Expired,
        PENDING => UploadStatus::Pending,
        COMPLETED => UploadStatus::Completed,
        CANCELLED => UploadStatus::Cancelled,
        other => return Err(fields.corrupt("status", format!("{other:?} is none"))),
    };
    Ok(StoredUpload {
        id: fields.text("id")?,
        filename: fields.text("filename")?,
        purpose: fields.text("purpose")?,
        bytes: fields.number("bytes")?,
        status,
        created_ms: fields.int("created_ms")?,
        expires_ms,
        file_keep_ms: fields.maybe_int("file_keep_ms")?,
    })
}

fn part_in(row: &AnyRow) -> Result<UploadPart, StoreError> {
    let fields = Fields { row, table: "upload_parts" };
    Ok(UploadPart {
        id: fields.text("id")?,
        blob: fields.parsed("sha256")?,
        bytes: fields.number("bytes")?,
        created_ms: fields.int("created_ms")?,
    })
}

fn unknown(id: &str) -> StoreError {
    StoreError::NotFound { kind: KIND, id: id.to_owned() }
}
