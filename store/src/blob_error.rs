//! Every way in which a blob can fail.

use std::{io, path::PathBuf};

use crate::digest::BlobDigest;

/// Why a blob could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The place of blobs is neither a folder nor a URL that is known.
    #[error("{place:?} is no place for blobs: {reason}")]
    UnknownPlace {
        /// What was given, without what follows `?`.
        place: String,
        /// Why not.
        reason: &'static str,
    },
    /// More bytes than allowed.
    #[error("a blob of more than {bytes_max} bytes is too large")]
    TooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// It is not there.
    #[error("blob {digest} is missing in {place}")]
    Missing {
        /// Which.
        digest: BlobDigest,
        /// The folder or store.
        place: String,
    },
    /// Its bytes are not those that were put.
    #[error("blob {digest} in {place} is damaged: {found}")]
    Damaged {
        /// Which.
        digest: BlobDigest,
        /// The folder or store.
        place: String,
        /// The digest that its bytes have.
        found: BlobDigest,
    },
    /// The object store refused, or could not be reached.
    #[error("cannot {action} in {place}: {source}")]
    Objects {
        /// What was being done, with the name of the thing.
        action: String,
        /// The folder or store.
        place: String,
        /// What it said.
        source: object_store::Error,
    },
    /// A local file could not be read or written.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// `read`, `create`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl BlobError {
    /// Wraps an error of the object store.
    pub(crate) fn objects(
        action: impl Into<String>,
        place: &str,
        source: object_store::Error,
    ) -> Self {
        Self::Objects { action: action.into(), place: place.to_owned(), source }
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
