//! Files that tenants send to train on, and what training writes for them.

use sqlx::{Any, Row as _, Transaction, any::AnyRow};

use crate::{
    blob_writer::StagedBlob,
    checks::check_name,
    clock::now_ms,
    digest::BlobDigest,
    error::StoreError,
    owner::{Owner, time_id},
    page::{Listing, Order, Page},
    registration::{BytesQuota, check_bytes_quota, hold},
    row::{Fields, stored},
    store::Store,
};

const KIND: &str = "file";
const PREFIX: &str = "file-";

/// A file to be kept.
#[derive(Clone, Debug)]
pub struct NewFile {
    /// Whose it will be.
    pub owner: Owner,
    /// For people.
    pub filename: String,
    /// What it is for: `fine-tune`, …
    pub purpose: String,
    /// Its bytes.
    pub blob: StagedBlob,
    /// How long it is kept, ms; absent: until it is deleted.
    pub keep_ms: Option<i64>,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFile {
    /// `file-…`.
    pub id: String,
    /// For people.
    pub filename: String,
    /// What it is for.
    pub purpose: String,
    /// The blob with its bytes.
    pub blob: BlobDigest,
    /// How many.
    pub bytes: u64,
    /// When it was made, Unix ms.
    pub created_ms: i64,
    /// When it ceases to be, Unix ms.
    pub expires_ms: Option<i64>,
}

const NEW: &str = "INSERT INTO files (owner, id, filename, purpose, sha256, bytes, created_ms, \
     expires_ms, round) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
const OPEN_ROUND: &str = "SELECT 1 FROM rounds WHERE owner = $1 AND id = $2 AND ended_ms IS NULL";
/// Also those whose time is over: they go all the same.
const OF_ROUND: &str = "SELECT * FROM files WHERE owner = $1 AND round = $2 ORDER BY id";
/// Whether the time `$3` of a file is not over. What a job or a round that has not ended needs is there until that ends: a
/// training may take longer than what it learns from is kept.
macro_rules! has_time {
    () => {
        "(expires_ms IS NULL OR expires_ms > $3 \
         OR EXISTS (SELECT 1 FROM jobs WHERE jobs.owner = files.owner \
         AND (jobs.training_file = files.id OR jobs.validation_file = files.id) \
         AND jobs.status IN ('validating_files', 'queued', 'running', 'paused')) \
         OR EXISTS (SELECT 1 FROM rounds WHERE rounds.owner = files.owner \
         AND rounds.file = files.id AND rounds.ended_ms IS NULL))"
    };
}
pub(crate) use has_time;

const ONE: &str = concat!("SELECT * FROM files WHERE owner = $1 AND id = $2 AND ", has_time!());
/// An empty purpose is any.
const OLDEST: &str = "SELECT * FROM files WHERE owner = $1 AND id > $2 \
     AND ($3 = '' OR purpose = $3) AND (expires_ms IS NULL OR expires_ms > $4) \
     ORDER BY id LIMIT $5";
const NEWEST: &str = "SELECT * FROM files WHERE owner = $1 AND ($2 = '' OR id < $2) \
     AND ($3 = '' OR purpose = $3) AND (expires_ms IS NULL OR expires_ms > $4) \
     ORDER BY id DESC LIMIT $5";
const USER: &str = "SELECT id FROM jobs WHERE owner = $1 \
     AND (training_file = $2 OR validation_file = $2) \
     AND status IN ('validating_files', 'queued', 'running', 'paused') \
     UNION ALL SELECT id FROM rounds WHERE owner = $1 AND file = $2 AND ended_ms IS NULL LIMIT 1";
/// Files, and parts of what may become one.
const FILE_BYTES: BytesQuota = BytesQuota {
    name: "file bytes",
    column: "file_bytes",
    used: "SELECT CAST(COALESCE((SELECT SUM(bytes) FROM files WHERE owner = $1), 0) \
     + COALESCE((SELECT SUM(bytes) FROM upload_parts WHERE owner = $1), 0) AS BIGINT) AS bytes",
};

impl Store {
    /// Keeps a file.
    ///
    /// # Errors
    /// When the owner does not exist or has not the quota, the name cannot be one, or the blob was put too long ago.
    pub async fn create_file(&self, file: &NewFile) -> Result<StoredFile, StoreError> {
        self.make_file(file, None).await
    }

    /// Keeps a file that a round makes for itself, which has not ended.
    ///
    /// # Errors
    /// As [`Self::create_file`]; [`StoreError::NotFound`] when the owner has no such open round.
    pub async fn create_file_of_round(
        &self,
        file: &NewFile,
        round: &str,
    ) -> Result<StoredFile, StoreError> {
        self.make_file(file, Some(round)).await
    }

    async fn make_file(
        &self,
        file: &NewFile,
        round: Option<&str>,
    ) -> Result<StoredFile, StoreError> {
        let action = format!("keep a file of {}", file.owner);
        let failed = |source| StoreError::database(&action, source);
        check_name("name of a file", &file.filename)?;
        let mut change = self.database.begin_for(&file.owner, &action).await?;
        if let Some(round) = round {
            let open = sqlx::query(OPEN_ROUND).bind(file.owner.as_str()).bind(round);
            let open = open.fetch_optional(&mut *change).await.map_err(failed)?;
            if open.is_none() {
                return Err(StoreError::NotFound { kind: "open round", id: round.to_owned() });
            }
        }
        check_quota(&mut change, &file.owner, file.blob.bytes, &action).await?;
        let made = insert(&mut change, file, round, &action).await?;
        change.commit().await.map_err(failed)?;
        Ok(made)
    }

    /// Files that a round made for itself, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn files_of_round(
        &self,
        owner: &Owner,
        round: &str,
    ) -> Result<Vec<StoredFile>, StoreError> {
        let rows = sqlx::query(OF_ROUND)
            .bind(owner.as_str())
            .bind(round)
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| {
                StoreError::database(format!("list files of round {round:?}"), source)
            })?;
        rows.iter().map(file_in).collect()
    }

    /// One file of an owner.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also if it is another's, or its time is over and nothing that runs needs it.
    pub async fn file(&self, owner: &Owner, id: &str) -> Result<StoredFile, StoreError> {
        let row = sqlx::query(ONE)
            .bind(owner.as_str())
            .bind(id)
            .bind(now_ms())
            .fetch_optional(self.database.readers())
            .await
            .map_err(|source| StoreError::database(format!("read file {id:?}"), source))?;
        row.as_ref().map_or_else(|| Err(unknown(id)), file_in)
    }

    /// Files of an owner, of one purpose or of any.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn files(
        &self,
        owner: &Owner,
        purpose: Option<&str>,
        page: &Page<'_>,
        order: Order,
    ) -> Result<Listing<StoredFile>, StoreError> {
        let rows = sqlx::query(order.pick(OLDEST, NEWEST))
            .bind(owner.as_str())
            .bind(page.after())
            .bind(purpose.unwrap_or_default())
            .bind(now_ms())
            .bind(page.limit())
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| StoreError::database(format!("list files of {owner}"), source))?;
        let files = rows.iter().map(file_in).collect::<Result<_, _>>()?;
        Ok(Listing::new(files, page, |file: &StoredFile| file.id.clone()))
    }

    /// Deletes a file. Its blob goes too, unless something else has it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::FileInUse`] while a job or a round needs it.
    pub async fn delete_file(&self, owner: &Owner, id: &str) -> Result<(), StoreError> {
        let action = format!("delete file {id:?}");
        let failed = |source| StoreError::database(&action, source);
        let mut change = self.database.begin_for(owner, &action).await?;
        let row = sqlx::query(ONE)
            .bind(owner.as_str())
            .bind(id)
            .bind(now_ms())
            .fetch_optional(&mut *change)
            .await
            .map_err(failed)?;
        let file = row.as_ref().map_or_else(|| Err(unknown(id)), file_in)?;
        let user = sqlx::query(USER)
            .bind(owner.as_str())
            .bind(id)
            .fetch_optional(&mut *change)
            .await
            .map_err(failed)?;
        if let Some(row) = user {
            let job = row.try_get("id").map_err(failed)?;
            return Err(StoreError::FileInUse { id: id.to_owned(), job });
        }
        sqlx::query("DELETE FROM files WHERE owner = $1 AND id = $2")
            .bind(owner.as_str())
            .bind(id)
            .execute(&mut *change)
            .await
            .map_err(failed)?;
        change.commit().await.map_err(failed)?;
        self.let_go(&[file.blob]).await;
        Ok(())
    }
}

/// Adds the row. The caller holds the owner's.
pub(crate) async fn insert(
    change: &mut Transaction<'static, Any>,
    file: &NewFile,
    round: Option<&str>,
    action: &str,
) -> Result<StoredFile, StoreError> {
    let NewFile { owner, filename, purpose, blob, keep_ms } = file;
    hold(change, blob, action).await?;
    let created_ms = now_ms();
    let made = StoredFile {
        id: time_id(PREFIX)?,
        filename: filename.clone(),
        purpose: purpose.clone(),
        blob: blob.digest,
        bytes: blob.bytes,
        created_ms,
        expires_ms: keep_ms.map(|keep_ms| created_ms.saturating_add(keep_ms)),
    };
    sqlx::query(NEW)
        .bind(owner.as_str())
        .bind(&made.id)
        .bind(&made.filename)
        .bind(&made.purpose)
        .bind(made.blob.to_string())
        .bind(stored(made.bytes))
        .bind(made.created_ms)
        .bind(made.expires_ms)
        .bind(round)
        .execute(&mut **change)
        .await
        .map_err(|source| StoreError::database(action, source))?;
    Ok(made)
}

/// Whether the owner may have so many bytes more. The caller holds its row.
pub(crate) async fn check_quota(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    more_bytes: u64,
    action: &str,
) -> Result<(), StoreError> {
    check_bytes_quota(change, owner, FILE_BYTES, more_bytes, action).await
}

pub(crate) fn file_in(row: &AnyRow) -> Result<StoredFile, StoreError> {
    let fields = Fields { row, table: "files" };
    Ok(StoredFile {
        id: fields.text("id")?,
        filename: fields.text("filename")?,
        purpose: fields.text("purpose")?,
        blob: fields.parsed("sha256")?,
        bytes: fields.number("bytes")?,
        created_ms: fields.int("created_ms")?,
        expires_ms: fields.maybe_int("expires_ms")?,
    })
}

fn unknown(id: &str) -> StoreError {
    StoreError::NotFound { kind: KIND, id: id.to_owned() }
}
