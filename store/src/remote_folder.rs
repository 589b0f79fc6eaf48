//! A part of an object store that others write and we only read.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::BoxStream};
use object_store::{ObjectStore, ObjectStoreExt as _, path::Path as ObjectPath};

use crate::{
    blob_error::BlobError,
    blobs::{open_s3, unknown_place, without_query},
};

/// How places in object stores begin.
const SCHEMES: [&str; 2] = ["s3://", "s3a://"];

/// All objects below one URL. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RemoteFolder {
    objects: Arc<dyn ObjectStore>,
    /// Its URL, without credentials and without a slash at the end.
    place: Arc<str>,
}

/// A folder within a [`RemoteFolder`], which may be the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemotePath(ObjectPath);

/// An object that is being read.
pub struct RemoteFile {
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    folder: RemoteFolder,
    path: String,
}

impl std::fmt::Debug for RemoteFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl RemoteFolder {
    /// Whether a text names something in an object store.
    pub fn is_url(text: &str) -> bool {
        SCHEMES.iter().any(|scheme| text.starts_with(scheme))
    }

    /// What lies below `s3://BUCKET/PREFIX` (if built with the feature `s3`; credentials and endpoint come from the
    /// usual `AWS_…` variables). Nothing is asked of it now.
    ///
    /// # Errors
    /// When the URL is of no known kind.
    pub fn open(url: &str) -> Result<Self, BlobError> {
        if !Self::is_url(url) {
            return Err(unknown_place(url, "it does not begin with `s3://`"));
        }
        Ok(Self::in_objects(open_s3(url)?, without_query(url)))
    }

    /// Any object store, whose root is called `place`.
    pub fn in_objects(objects: Arc<dyn ObjectStore>, place: &str) -> Self {
        Self { objects, place: place.trim_end_matches('/').into() }
    }

    /// Its URL, without credentials.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Where `url` is below this folder; `None` if it is elsewhere or no path of objects (one with `..`, for example).
    pub fn below(&self, url: &str) -> Option<RemotePath> {
        let rest = url.strip_prefix(&*self.place)?.trim_end_matches('/');
        let path = if rest.is_empty() { rest } else { rest.strip_prefix('/')? };
        // What it parses to is what it says, or it is refused.
        let parsed = ObjectPath::parse(path).ok().filter(|parsed| parsed.as_ref() == path)?;
        Some(RemotePath(parsed))
    }

    /// Begins to read the object `name` in the folder `path` below this one; `None` if there is none.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn read(
        &self,
        path: &RemotePath,
        name: &str,
    ) -> Result<Option<RemoteFile>, BlobError> {
        let object = path.0.clone().join(name);
        match self.objects.get(&object).await {
            Ok(got) => {
                let (stream, path) = (got.into_stream(), object.to_string());
                Ok(Some(RemoteFile { stream, folder: self.clone(), path }))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(self.failed(object.as_ref(), source)),
        }
    }

    fn failed(&self, path: &str, source: object_store::Error) -> BlobError {
        BlobError::objects(format!("read {path}"), &self.place, source)
    }
}

impl RemoteFile {
    /// The next bytes; `None` after the last ones.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BlobError> {
        let next = self.stream.next().await.transpose();
        next.map_err(|source| self.folder.failed(&self.path, source))
    }
}
