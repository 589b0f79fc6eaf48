//! Reading a blob, with its digest checked on the way.

use std::path::Path;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::BoxStream};
use object_store::ObjectStoreExt as _;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;

use crate::{
    blob_error::BlobError, blobs::Blobs, digest::BlobDigest, error::StoreError, owner::random_id,
    store::Store,
};

/// A blob that is being read. Bytes are good only once [`Self::next`] has given `None`.
pub struct BlobReader {
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    blobs: Blobs,
    hasher: Sha256,
    digest: BlobDigest,
    /// As the place tells it; not checked.
    bytes: u64,
    /// All bytes were read, and they were the right ones.
    is_checked: bool,
}

impl std::fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobReader").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl Store {
    /// Begins to read a blob.
    ///
    /// # Errors
    /// [`BlobError::Missing`], or when its place cannot be read.
    pub async fn blob_reader(&self, digest: &BlobDigest) -> Result<BlobReader, StoreError> {
        let digest = *digest;
        let blobs = self.blobs.clone();
        let got = blobs.objects.get(&Blobs::path_of(&digest)).await;
        let got = got.map_err(|source| read_failed(&blobs, digest, source))?;
        let (bytes, stream) = (got.meta.size, got.into_stream());
        let hasher = Sha256::new();
        Ok(BlobReader { stream, blobs, hasher, digest, bytes, is_checked: false })
    }

    /// A whole blob of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// As those of [`BlobReader`], and [`BlobError::TooLarge`].
    pub async fn read_blob(
        &self,
        digest: &BlobDigest,
        bytes_max: u64,
    ) -> Result<Vec<u8>, StoreError> {
        let mut reader = self.blob_reader(digest).await?;
        if reader.bytes > bytes_max {
            return Err(BlobError::TooLarge { bytes_max }.into());
        }
        let mut all = Vec::new();
        while let Some(bytes) = reader.next().await? {
            if all.len() as u64 + bytes.len() as u64 > bytes_max {
                return Err(BlobError::TooLarge { bytes_max }.into());
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }

    /// Copies a blob to a file, which appears with its whole content or not at all. It is a copy, so it is not synced.
    ///
    /// # Errors
    /// As those of [`BlobReader`], and when the file cannot be written.
    pub async fn copy_blob(&self, digest: &BlobDigest, to: &Path) -> Result<(), StoreError> {
        let mut reader = self.blob_reader(digest).await?;
        let mut name = to.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.part", random_id()?));
        let part = to.with_file_name(name);
        let copied = copy_to(&mut reader, &part).await;
        let renamed = match copied {
            Ok(()) => tokio::fs::rename(&part, to)
                .await
                .map_err(BlobError::io("create", to))
                .map_err(Into::into),
            Err(error) => Err(error),
        };
        if renamed.is_err() {
            // The first error is the one to tell.
            drop(tokio::fs::remove_file(&part).await);
        }
        renamed
    }
}

impl BlobReader {
    /// Bytes of the whole blob, as its place tells; not checked until it was read.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next bytes; `None` after the last ones, if they were the right ones.
    ///
    /// # Errors
    /// [`BlobError::Damaged`] at the end, if the bytes are not those that were put; or when they cannot be read.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.is_checked {
            return Ok(None);
        }
        match self.stream.next().await {
            Some(Ok(bytes)) => {
                self.hasher.update(&bytes);
                Ok(Some(bytes))
            }
            Some(Err(source)) => Err(read_failed(&self.blobs, self.digest, source)),
            None => {
                let found = BlobDigest(self.hasher.finalize_reset().into());
                self.is_checked = found == self.digest;
                if self.is_checked {
                    return Ok(None);
                }
                let place = self.blobs.place.to_string();
                Err(BlobError::Damaged { digest: self.digest, place, found }.into())
            }
        }
    }
}

async fn copy_to(reader: &mut BlobReader, path: &Path) -> Result<(), StoreError> {
    let mut file =
        tokio::fs::File::create_new(path).await.map_err(BlobError::io("create", path))?;
    while let Some(bytes) = reader.next().await? {
        file.write_all(&bytes).await.map_err(BlobError::io("write", path))?;
    }
    file.flush().await.map_err(BlobError::io("write", path))?;
    Ok(())
}

fn read_failed(blobs: &Blobs, digest: BlobDigest, source: object_store::Error) -> StoreError {
    if let object_store::Error::NotFound { .. } = source {
        return BlobError::Missing { digest, place: blobs.place.to_string() }.into();
    }
    blobs.failed(format!("read blob {digest}"), source).into()
}
