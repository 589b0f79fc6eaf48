//! Every way in which the store can fail.

use std::{io, path::PathBuf};

use crate::{
    alias_change::Expected,
    blob_error::BlobError,
    digest::{BlobDigest, GenerationDigest},
    owner::{Owner, TenantId},
};

/// Why something could not be stored or found. Nothing was changed, unless the function says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database is neither a file nor a URL that is known.
    #[error("{scheme:?} is no kind of database: a path, `sqlite:PATH` or `postgres://…` is")]
    UnknownDatabase {
        /// What stands before `:`.
        scheme: String,
    },
    /// A file or folder of the database could not be made.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// `create`, `sync`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The database refused, or could not be reached. After a failed commit it is unknown whether the change was made.
    #[error("cannot {action}: {source}")]
    Database {
        /// What was being done, with the name of the thing.
        action: String,
        /// What it said.
        source: sqlx::Error,
    },
    /// The database was made by a later version of this program.
    #[error(
        "database {place} has schema {version} ({name}), this program knows none after {known}: it is too old for it"
    )]
    NewerSchema {
        /// The database, without passwords.
        place: String,
        /// Its schema.
        version: i64,
        /// What that schema is called.
        name: String,
        /// The last that is known.
        known: i64,
    },
    /// A schema of this number is known by another name: the database belongs to another program.
    #[error("database {place} has schema {version} called {found:?}, which should be {expected:?}")]
    OtherSchema {
        /// The database, without passwords.
        place: String,
        /// The number.
        version: i64,
        /// Its name there.
        found: String,
        /// Its name here.
        expected: String,
    },
    /// A row that this program cannot have written.
    #[error("column {column} of table {table} is damaged: {reason}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The system gave no random bytes.
    #[error("cannot get random bytes: {reason}")]
    Random {
        /// What it said.
        reason: getrandom::Error,
    },
    /// A name or note that cannot be stored.
    #[error("the {what} {text:?} {reason}")]
    InvalidText {
        /// `name of a tenant`, …
        what: &'static str,
        /// Its beginning.
        text: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// A registration without files, or with too many.
    #[error("a generation of {n_files} files cannot be stored, from 1 to {n_files_max} can")]
    FileCount {
        /// How many there are.
        n_files: usize,
        /// How many there may be.
        n_files_max: usize,
    },
    /// Two files of a generation have one name.
    #[error("file {name:?} is there twice")]
    FileTwice {
        /// The name.
        name: String,
    },
    /// Metadata beyond the limit.
    #[error("metadata of {bytes} bytes is too much, at most {bytes_max} are allowed")]
    MetadataTooLong {
        /// Its length as JSON.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// No such tenant.
    #[error("tenant {owner} does not exist")]
    UnknownTenant {
        /// The tenant.
        owner: Owner,
    },
    /// The name is another's.
    #[error("a tenant named {name:?} exists already")]
    TenantNameTaken {
        /// The name.
        name: String,
    },
    /// No such key, or it is another tenant's.
    #[error("tenant {tenant} has no key {id:?}")]
    UnknownKey {
        /// Whose key was meant.
        tenant: TenantId,
        /// Its id.
        id: String,
    },
    /// No such generation.
    #[error("{owner} has no generation {digest}")]
    UnknownGeneration {
        /// Who was meant to have it.
        owner: Owner,
        /// Its digest.
        digest: GenerationDigest,
    },
    /// No such alias.
    #[error("{owner} has no adapter named {alias:?}")]
    UnknownAlias {
        /// Who was meant to have it.
        owner: Owner,
        /// Its name.
        alias: String,
    },
    /// The alias is not where the caller thought: somebody else moved it.
    #[error("adapter {alias:?} is {}, not {expected}", found_text(.found.as_ref()))]
    AliasMoved {
        /// Its name.
        alias: String,
        /// What the caller expected.
        expected: Expected,
        /// Where it points; `None` if there is none.
        found: Option<GenerationDigest>,
    },
    /// The alias has pointed at no other generation.
    #[error("adapter {alias:?} has no earlier generation")]
    NoEarlierGeneration {
        /// Its name.
        alias: String,
    },
    /// The alias has not that generation in its history.
    #[error("adapter {alias:?} has not generation {digest} in its history")]
    NotInHistory {
        /// Its name.
        alias: String,
        /// The generation.
        digest: GenerationDigest,
    },
    /// An alias points at the generation.
    #[error("generation {digest} is what adapter {alias:?} points at")]
    GenerationInUse {
        /// Its digest.
        digest: GenerationDigest,
        /// One such alias.
        alias: String,
    },
    /// An alias pointed at the generation and could be rolled back to it.
    #[error("generation {digest} is in the history of adapter {alias:?}")]
    GenerationInHistory {
        /// Its digest.
        digest: GenerationDigest,
        /// One such alias.
        alias: String,
    },
    /// A quota of the tenant does not allow it.
    #[error("{owner} would have {wanted} {quota}, at most {limit} are allowed")]
    QuotaExceeded {
        /// Whose quota.
        owner: Owner,
        /// `adapters` or `adapter bytes`.
        quota: &'static str,
        /// The quota.
        limit: u64,
        /// What it would be.
        wanted: u64,
    },
    /// No such file, upload, completion, feedback, job, policy, round or lineage, or it is another owner's.
    #[error("no such {kind}: {id:?}")]
    NotFound {
        /// `file`, `upload`, …
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// A training job, or a round of the learning loop, that has not ended needs the file.
    #[error("file {id:?} is needed by {job:?}, which has not ended")]
    FileInUse {
        /// The file.
        id: String,
        /// One such job or round.
        job: String,
    },
    /// The policy is not what the caller thought: somebody else changed it.
    #[error("the policy of {name:?} has revision {found}, not {expected} (0 is none)")]
    PolicyChanged {
        /// The adapter's name.
        name: String,
        /// What the caller expected.
        expected: i64,
        /// What it is.
        found: i64,
    },
    /// A name has one round at a time.
    #[error("round {id:?} of {name:?} has not ended")]
    RoundOpen {
        /// The adapter's name.
        name: String,
        /// The round that is open.
        id: String,
    },
    /// Something has ended, or is not far enough, for what was to be done with it.
    #[error("{kind} {id:?} is {state}")]
    WrongState {
        /// `upload`, `job`, …
        kind: &'static str,
        /// Its id.
        id: String,
        /// What it is instead.
        state: String,
    },
    /// More things than one may have.
    #[error("{what} has {n_max} already, which is the most")]
    TooMany {
        /// What is full.
        what: String,
        /// How many it may have.
        n_max: usize,
    },
    /// Values of this metric are of the other kind.
    #[error("metric {metric:?} is {kind}")]
    MetricKind {
        /// Its name.
        metric: String,
        /// `boolean` or `float`.
        kind: String,
    },
    /// The key came with another request before.
    #[error("the idempotency key {key:?} was used for another request")]
    KeyReused {
        /// The key.
        key: String,
    },
    /// A staged blob was not registered in time and is gone. Put it again.
    #[error("blob {digest} was put too long ago and is gone")]
    BlobExpired {
        /// Its digest.
        digest: BlobDigest,
    },
    /// A blob could not be written or read.
    #[error(transparent)]
    Blob(#[from] BlobError),
}

impl StoreError {
    /// Whether the same may succeed later, because what failed is the database, the disk or the object store, and not what was
    /// asked of them.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Database { .. }
                | Self::Io { .. }
                | Self::Random { .. }
                | Self::BlobExpired { .. }
                | Self::Blob(BlobError::Objects { .. } | BlobError::Io { .. })
        )
    }

    /// Wraps an error of the database.
    pub(crate) fn database(action: impl Into<String>, source: sqlx::Error) -> Self {
        Self::Database { action: action.into(), source }
    }

    /// Wraps an error of the file system.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

fn found_text(found: Option<&GenerationDigest>) -> String {
    found.map_or_else(|| "not there".to_owned(), |digest| format!("generation {digest}"))
}
