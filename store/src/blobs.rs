//! Where blobs are: a folder, or an object store. Named by the SHA-256 of their bytes, so they never change.
//!
//! ```text
//! incoming/<random>              while it is written
//! sha256/<first two digits>/<all 64 digits>
//! ```
//!
//! In a folder a blob gets its final name by a rename, after its bytes were synced, and the rename is synced before
//! anybody is told (`LocalFileSystem::with_fsync`): a name that exists has its whole content, also after a crash.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use object_store::{ObjectStore, local::LocalFileSystem, path::Path as ObjectPath};

use crate::{blob_error::BlobError, digest::BlobDigest, error::StoreError, owner::random_id};

pub(crate) const INCOMING: &str = "incoming";

/// The place of all blobs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Blobs {
    pub(crate) objects: Arc<dyn ObjectStore>,
    /// For messages; without credentials.
    pub(crate) place: Arc<str>,
    /// The root, if it is a folder.
    pub(crate) folder: Option<Arc<Path>>,
}

impl Blobs {
    /// Blobs in `s3://BUCKET/PREFIX` (if built with the feature `s3`; credentials and endpoint come from the usual
    /// `AWS_…` variables), or else in a folder, which is made if need be.
    ///
    /// # Errors
    /// When the folder cannot be made, or the URL is of no known kind.
    pub fn open(place: &str) -> Result<Self, BlobError> {
        match place.split_once("://") {
            Some(("file", path)) => Self::in_folder(path),
            Some(("s3" | "s3a", _)) => Ok(Self::in_objects(open_s3(place)?, without_query(place))),
            Some(_) => Err(unknown_place(place, "its scheme is neither `file` nor `s3`")),
            None => Self::in_folder(place),
        }
    }

    /// Blobs in a folder, which is made if need be.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn in_folder(folder: impl AsRef<Path>) -> Result<Self, BlobError> {
        let folder = folder.as_ref();
        let place: Arc<str> = folder.display().to_string().into();
        std::fs::create_dir_all(folder.join(INCOMING)).map_err(BlobError::io("create", folder))?;
        let folder = folder.canonicalize().map_err(BlobError::io("find", folder.to_path_buf()))?;
        let objects = LocalFileSystem::new_with_prefix(&folder)
            .map_err(|source| BlobError::objects("open blobs", &place, source))?
            .with_fsync(true);
        let folder = Some(Arc::from(PathBuf::from(&folder)));
        Ok(Self { objects: Arc::new(objects), place, folder })
    }

    /// Blobs in any object store, called `place` in messages. A rename there may be a copy and a deletion.
    pub fn in_objects(objects: Arc<dyn ObjectStore>, place: &str) -> Self {
        Self { objects, place: place.into(), folder: None }
    }

    /// The place, for messages; without credentials.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Where a blob is.
    pub(crate) fn path_of(digest: &BlobDigest) -> ObjectPath {
        let digits = digest.to_string();
        ObjectPath::from(format!("sha256/{}/{digits}", &digits[..2]))
    }

    /// The file of a blob, if blobs are in a folder; whether or not it is there.
    pub fn local_path(&self, digest: &BlobDigest) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(Self::path_of(digest).as_ref()))
    }

    /// A name for a blob that is being written.
    pub(crate) fn new_incoming() -> Result<ObjectPath, StoreError> {
        Ok(ObjectPath::from(format!("{INCOMING}/{}", random_id()?)))
    }

    pub(crate) fn failed(
        &self,
        action: impl Into<String>,
        source: object_store::Error,
    ) -> BlobError {
        BlobError::objects(action, &self.place, source)
    }
}

/// What lies below `s3://BUCKET/PREFIX`.
#[cfg(feature = "s3")]
pub(crate) fn open_s3(url: &str) -> Result<Arc<dyn ObjectStore>, BlobError> {
    use object_store::{aws::AmazonS3Builder, prefix::PrefixStore};

    // The HTTP client takes the process's provider of cryptography; whoever installed one was first.
    drop(rustls::crypto::ring::default_provider().install_default());
    let place = without_query(url);
    let bucket_and_prefix = place.split_once("://").map_or("", |(_, rest)| rest);
    let prefix = bucket_and_prefix.split_once('/').map_or("", |(_, prefix)| prefix);
    let failed = |source| BlobError::objects("open", place, source);
    let objects = AmazonS3Builder::from_env().with_url(place).build().map_err(failed)?;
    let prefix = ObjectPath::parse(prefix)
        .map_err(|_| unknown_place(url, "its path is no prefix of objects"))?;
    Ok(Arc::new(PrefixStore::new(objects, prefix)))
}

#[cfg(not(feature = "s3"))]
pub(crate) fn open_s3(url: &str) -> Result<Arc<dyn ObjectStore>, BlobError> {
    Err(unknown_place(url, "this program was built without the feature `s3`"))
}

pub(crate) fn unknown_place(place: &str, reason: &'static str) -> BlobError {
    BlobError::UnknownPlace { place: without_query(place).to_owned(), reason }
}

/// Credentials, if any, are in the query.
pub(crate) fn without_query(url: &str) -> &str {
    url.split_once('?').map_or(url, |(place, _)| place)
}
