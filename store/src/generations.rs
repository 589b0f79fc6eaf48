//! Generations: what is known about each, and which blobs are its files.

use serde::{Deserialize, Serialize};
use sqlx::any::AnyRow;

use crate::{
    digest::{BlobDigest, GenerationDigest},
    error::StoreError,
    owner::Owner,
    page::{Listing, Page},
    row::Fields,
    store::Store,
};

/// What is worth knowing about an adapter without opening it. Stored as JSON; fields that come later are optional.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationMetadata {
    /// `lora`, `dora`, …
    pub kind: String,
    /// The format of its files: `peft`, …
    pub format: String,
    /// Largest rank of any site.
    pub rank_max: u32,
    /// Which linears it acts on, such as `q_proj`, each once.
    pub target_modules: Vec<String>,
    /// Weights of all sites.
    pub n_parameters: u64,
    /// Bytes of its tensors as stored in its file.
    pub tensor_bytes: u64,
    /// SHA-256 of the file of the base that it was checked against, when it was last registered.
    #[serde(default)]
    pub base_digest: Option<String>,
    /// Name of the base that it was trained on, if its files tell.
    #[serde(default)]
    pub base_name: Option<String>,
}

/// Where a generation came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum Origin {
    /// Its files were sent.
    Upload,
    /// Its files were read from a folder or an object store.
    Place {
        /// Which.
        place: String,
    },
    /// It was trained here.
    Training {
        /// By this job.
        job: String,
        /// SHA-256 of all rows that it learned from, 64 hex digits.
        data_sha256: String,
        /// From this generation of the same owner; `None` is the base.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent: Option<GenerationDigest>,
    },
    /// It was made of others.
    Merge {
        /// Those.
        parents: Vec<GenerationDigest>,
    },
}

/// One file of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationFile {
    /// Its name in an adapter's folder.
    pub name: String,
    /// The blob with its bytes.
    pub blob: BlobDigest,
    /// How many.
    pub bytes: u64,
}

/// A generation that one owner has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredGeneration {
    /// Whose.
    pub owner: Owner,
    /// Its name.
    pub digest: GenerationDigest,
    /// What is known about it.
    pub metadata: GenerationMetadata,
    /// Where it came from.
    pub origin: Origin,
    /// Bytes of all its files.
    pub bytes: u64,
    /// When it was registered, Unix ms.
    pub created_ms: i64,
}

const GENERATION: &str = "SELECT * FROM generations WHERE owner = $1 AND digest = $2";
const GENERATIONS: &str =
    "SELECT * FROM generations WHERE owner = $1 AND digest > $2 ORDER BY digest LIMIT $3";
const FILES: &str = "SELECT name, sha256, bytes FROM generation_files \
     WHERE owner = $1 AND digest = $2 ORDER BY name";

impl Store {
    /// One generation of an owner.
    ///
    /// # Errors
    /// [`StoreError::UnknownGeneration`], also if another owner has it.
    pub async fn generation(
        &self,
        owner: &Owner,
        digest: &GenerationDigest,
    ) -> Result<StoredGeneration, StoreError> {
        let row = sqlx::query(GENERATION)
            .bind(owner.as_str())
            .bind(digest.to_string())
            .fetch_optional(self.database.readers())
            .await
            .map_err(|source| StoreError::database(format!("read generation {digest}"), source))?;
        row.as_ref().map_or_else(|| Err(unknown(owner, digest)), generation_in)
    }

    /// Generations of an owner, ordered by digest.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn generations(
        &self,
        owner: &Owner,
        page: &Page<'_>,
    ) -> Result<Listing<StoredGeneration>, StoreError> {
        let rows = sqlx::query(GENERATIONS)
            .bind(owner.as_str())
            .bind(page.after())
            .bind(page.limit())
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| {
                StoreError::database(format!("list generations of {owner}"), source)
            })?;
        let generations = rows.iter().map(generation_in).collect::<Result<_, _>>()?;
        Ok(Listing::new(generations, page, |generation| generation.digest.to_string()))
    }

    /// The files of a generation, ordered by name; at least one.
    ///
    /// # Errors
    /// [`StoreError::UnknownGeneration`], also if another owner has it.
    pub async fn generation_files(
        &self,
        owner: &Owner,
        digest: &GenerationDigest,
    ) -> Result<Vec<GenerationFile>, StoreError> {
        let rows = sqlx::query(FILES)
            .bind(owner.as_str())
            .bind(digest.to_string())
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| {
                StoreError::database(format!("read the files of generation {digest}"), source)
            })?;
        if rows.is_empty() {
            return Err(unknown(owner, digest));
        }
        rows.iter().map(file_in).collect()
    }
}

pub(crate) fn generation_in(row: &AnyRow) -> Result<StoredGeneration, StoreError> {
    let fields = Fields { row, table: "generations" };
    Ok(StoredGeneration {
        owner: fields.owner("owner")?,
        digest: fields.parsed("digest")?,
        metadata: fields.json("metadata")?,
        origin: fields.json("origin")?,
        bytes: fields.number("bytes")?,
        created_ms: fields.int("created_ms")?,
    })
}

pub(crate) fn file_in(row: &AnyRow) -> Result<GenerationFile, StoreError> {
    let fields = Fields { row, table: "generation_files" };
    let (name, blob) = (fields.text("name")?, fields.parsed("sha256")?);
    Ok(GenerationFile { name, blob, bytes: fields.number("bytes")? })
}

pub(crate) fn unknown(owner: &Owner, digest: &GenerationDigest) -> StoreError {
    StoreError::UnknownGeneration { owner: owner.clone(), digest: *digest }
}
