//! Registering an adapter: its blobs are durable before, its rows and its alias come in one transaction.

use sqlx::{Any, Row as _, Transaction};

use crate::{
    alias_change::{AliasChange, Step, apply_move},
    aliases::StoredAlias,
    blob_writer::StagedBlob,
    checks::check_file_name,
    clock::now_ms,
    digest::GenerationDigest,
    error::StoreError,
    generations::{GenerationMetadata, Origin},
    owner::Owner,
    row::{Fields, stored},
    store::Store,
};

/// Files of a generation at most: an adapter in PEFT's format has two.
const FILES_MAX: usize = 16;
/// Metadata and origin at most, each as JSON.
const METADATA_BYTES_MAX: usize = 64 << 10;

/// A generation to be registered.
#[derive(Clone, Debug)]
pub struct Registration {
    /// Whose it will be.
    pub owner: Owner,
    /// Its name, computed from its weights by whoever read them.
    pub digest: GenerationDigest,
    /// What is known about it.
    pub metadata: GenerationMetadata,
    /// Where it came from.
    pub origin: Origin,
    /// Names and blobs of its files, from 1 to 16.
    pub files: Vec<(String, StagedBlob)>,
}

/// What a registration did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Whether the owner did not have the generation yet. If it did, its files and all that is known of it stayed as they
    /// were, but for the digest of the base.
    pub is_new: bool,
    /// When the owner first registered it, Unix ms.
    pub created_ms: i64,
    /// The alias as it is now, if one was to be moved.
    pub alias: Option<StoredAlias>,
}

const NEW_GENERATION: &str = "INSERT INTO generations (owner, digest, metadata, origin, bytes, \
     created_ms) VALUES ($1, $2, $3, $4, $5, $6)";
const NEW_FILE: &str =
    "INSERT INTO generation_files (owner, digest, name, sha256, bytes) VALUES ($1, $2, $3, $4, $5)";
/// It has a file now, and need not be kept for one any more. Keeps a sweep from deleting the row until this transaction
/// ends.
const HOLD_BLOB: &str = "UPDATE blobs SET keep_until_ms = 0 WHERE sha256 = $1";
const ADAPTER_BYTES: BytesQuota = BytesQuota {
    name: "adapter bytes",
    column: "adapter_bytes",
    used: "SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) AS bytes FROM generations \
     WHERE owner = $1",
};

/// A limit on bytes that an owner keeps.
#[derive(Clone, Copy)]
pub(crate) struct BytesQuota {
    /// As errors say it.
    pub(crate) name: &'static str,
    /// See [`quota_of`].
    pub(crate) column: &'static str,
    /// Query of the `bytes` that owner `$1` has.
    pub(crate) used: &'static str,
}

impl Store {
    /// Registers a generation and moves an alias to it, both or neither. To do
    /// it again changes nothing, so it can be repeated when its outcome is unknown.
    ///
    /// # Errors
    /// When the owner does not exist or has not the quota, a name cannot be one, a blob was put too long ago, or the
    /// alias is not where `alias.expected` says.
    pub async fn register(
        &self,
        registration: &Registration,
        alias: Option<&AliasChange<'_>>,
    ) -> Result<Registered, StoreError> {
        let Registration { owner, digest, files, .. } = registration;
        check_files(files)?;
        alias.map(AliasChange::check).transpose()?;
        let action = format!("register generation {digest} of {owner}");
        let failed = |source| StoreError::database(&action, source);
        let mut change = self.database.begin_for(owner, &action).await?;
        let there = sqlx::query(
            "SELECT metadata, created_ms FROM generations WHERE owner = $1 AND digest = $2",
        )
        .bind(owner.as_str())
        .bind(digest.to_string())
        .fetch_optional(&mut *change)
        .await
        .map_err(failed)?;
        let is_new = there.is_none();
        let created_ms = match there {
            None => insert(&mut change, registration, &action).await?,
            Some(row) => {
                let fields = Fields { row: &row, table: "generations" };
                note_base(&mut change, registration, fields.json("metadata")?, &action).await?;
                fields.int("created_ms")?
            }
        };
        let alias = match alias {
            Some(alias) => apply_move(&mut change, owner, alias, Step::To(*digest)).await?,
            None => None,
        };
        change.commit().await.map_err(failed)?;
        Ok(Registered { is_new, created_ms, alias })
    }
}

/// When it was made.
async fn insert(
    change: &mut Transaction<'static, Any>,
    registration: &Registration,
    action: &str,
) -> Result<i64, StoreError> {
    let failed = |source| StoreError::database(action, source);
    let Registration { owner, digest, metadata, origin, files } = registration;
    let (metadata, origin) = (json(metadata)?, json(origin)?);
    let bytes = files.iter().fold(0_u64, |sum, (_, blob)| sum.saturating_add(blob.bytes));
    check_bytes_quota(change, owner, ADAPTER_BYTES, bytes, action).await?;
    let created_ms = now_ms();
    sqlx::query(NEW_GENERATION)
        .bind(owner.as_str())
        .bind(digest.to_string())
        .bind(metadata)
        .bind(origin)
        .bind(stored(bytes))
        .bind(created_ms)
        .execute(&mut **change)
        .await
        .map_err(failed)?;
    // In one order, so that two registrations never wait for each other.
    let mut files: Vec<_> = files.iter().collect();
    files.sort_unstable_by_key(|(_, blob)| blob.digest);
    for (name, blob) in files {
        hold(change, blob, action).await?;
        sqlx::query(NEW_FILE)
            .bind(owner.as_str())
            .bind(digest.to_string())
            .bind(name)
            .bind(blob.digest.to_string())
            .bind(stored(blob.bytes))
            .execute(&mut **change)
            .await
            .map_err(failed)?;
    }
    Ok(created_ms)
}

/// A known generation was checked again, perhaps against another base.
async fn note_base(
    change: &mut Transaction<'static, Any>,
    registration: &Registration,
    found: GenerationMetadata,
    action: &str,
) -> Result<(), StoreError> {
    let base_digest = registration.metadata.base_digest.clone();
    if found.base_digest == base_digest {
        return Ok(());
    }
    sqlx::query("UPDATE generations SET metadata = $3 WHERE owner = $1 AND digest = $2")
        .bind(registration.owner.as_str())
        .bind(registration.digest.to_string())
        .bind(json(&GenerationMetadata { base_digest, ..found })?)
        .execute(&mut **change)
        .await
        .map_err(|source| StoreError::database(action, source))?;
    Ok(())
}

/// Keeps a staged blob from being swept until this change ends, and need not be kept for a registration after it.
pub(crate) async fn hold(
    change: &mut Transaction<'static, Any>,
    blob: &StagedBlob,
    action: &str,
) -> Result<(), StoreError> {
    let held = sqlx::query(HOLD_BLOB)
        .bind(blob.digest.to_string())
        .execute(&mut **change)
        .await
        .map_err(|source| StoreError::database(action, source))?;
    if held.rows_affected() == 0 {
        return Err(StoreError::BlobExpired { digest: blob.digest });
    }
    Ok(())
}

/// Whether the owner may have so many bytes more. The caller holds its row.
pub(crate) async fn check_bytes_quota(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    quota: BytesQuota,
    more_bytes: u64,
    action: &str,
) -> Result<(), StoreError> {
    let failed = |source| StoreError::database(action, source);
    let Some(limit) = quota_of(change, owner, quota.column).await? else { return Ok(()) };
    let row = sqlx::query(quota.used)
        .bind(owner.as_str())
        .fetch_one(&mut **change)
        .await
        .map_err(failed)?;
    let bytes: i64 = row.try_get("bytes").map_err(failed)?;
    let wanted = u64::try_from(bytes).unwrap_or_default().saturating_add(more_bytes);
    if wanted > limit {
        let (owner, quota) = (owner.clone(), quota.name);
        return Err(StoreError::QuotaExceeded { owner, quota, limit, wanted });
    }
    Ok(())
}

/// A column of the owner's row that is a quota. The caller holds that row.
pub(crate) async fn quota_of(
    change: &mut Transaction<'static, Any>,
    owner: &Owner,
    column: &'static str,
) -> Result<Option<u64>, StoreError> {
    let row = sqlx::query(
        "SELECT adapters, adapter_bytes, file_bytes, training_jobs FROM tenants WHERE id = $1",
    )
    .bind(owner.as_str())
    .fetch_one(&mut **change)
    .await
    .map_err(|source| StoreError::database(format!("read the quotas of {owner}"), source))?;
    Fields { row: &row, table: "tenants" }.maybe_number(column)
}

fn check_files(files: &[(String, StagedBlob)]) -> Result<(), StoreError> {
    if files.is_empty() || files.len() > FILES_MAX {
        return Err(StoreError::FileCount { n_files: files.len(), n_files_max: FILES_MAX });
    }
    for (index, (name, _)) in files.iter().enumerate() {
        check_file_name(name)?;
        if files[..index].iter().any(|(earlier, _)| earlier == name) {
            return Err(StoreError::FileTwice { name: name.clone() });
        }
    }
    Ok(())
}

fn json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    // PostgreSQL keeps no NUL; JSON of a text with one has the escape `\u0000`, which is fine in a column of text.
    let text = serde_json::to_string(value).expect("strings and numbers have a JSON form");
    if text.len() > METADATA_BYTES_MAX {
        let (bytes, bytes_max) = (text.len(), METADATA_BYTES_MAX);
        return Err(StoreError::MetadataTooLong { bytes, bytes_max });
    }
    Ok(text)
}
