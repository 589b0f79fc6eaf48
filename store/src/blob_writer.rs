//! Writing a blob: bytes flow through the hash into `incoming/`, then the blob gets its name.
//!
//! ```text
//! write … write ── finish: 1 all bytes are durable under incoming/
//!                          2 its row in `blobs` says: keep for a while      (committed)
//!                          3 it gets its name                               (durable)
//! ```
//!
//! After a crash between 2 and 3, or 3 and a registration, the row leads to the garbage; nothing has to be listed.
//! See [`crate::blob_garbage`] for the other half.

use bytes::Bytes;
use object_store::{ObjectStoreExt as _, buffered::BufWriter, path::Path as ObjectPath};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    blob_error::BlobError, blobs::Blobs, clock::now_ms, digest::BlobDigest, error::StoreError,
    row::stored, store::Store,
};

/// What is kept in memory of a blob until it is written: also the size of a part of an upload, which object stores
/// want to have at least 5 MiB.
const PART_BYTES: usize = 8 << 20;
/// Parts on their way at once.
const PARTS_MAX: usize = 2;
/// Bytes hashed at once: a fraction of a millisecond, so that it holds up nobody on this thread.
const PIECE_BYTES: usize = 256 << 10;

const CLAIM: &str = "INSERT INTO blobs (sha256, bytes, created_ms, keep_until_ms) \
     VALUES ($1, $2, $3, $4) ON CONFLICT (sha256) DO UPDATE SET keep_until_ms = \
     CASE WHEN blobs.keep_until_ms > $4 THEN blobs.keep_until_ms ELSE $4 END";

/// A blob that is durable under its name, for a while: a registration must follow ([`Store::register`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StagedBlob {
    /// SHA-256 of its bytes.
    pub digest: BlobDigest,
    /// How many bytes it has.
    pub bytes: u64,
}

/// A blob that is being written. Dropped before [`Self::finish`], it leaves nothing that the next sweep would not find.
#[derive(Debug)]
pub struct BlobWriter {
    store: Store,
    out: BufWriter,
    incoming: ObjectPath,
    hasher: Sha256,
    bytes: u64,
    bytes_max: u64,
}

impl Store {
    /// Begins to write a blob of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// When the system gives no random name.
    pub fn blob_writer(&self, bytes_max: u64) -> Result<BlobWriter, StoreError> {
        let incoming = Blobs::new_incoming()?;
        let objects = self.blobs.objects.clone();
        let out = BufWriter::with_capacity(objects, incoming.clone(), PART_BYTES)
            .with_max_concurrency(PARTS_MAX);
        let hasher = Sha256::new();
        Ok(BlobWriter { store: self.clone(), out, incoming, hasher, bytes: 0, bytes_max })
    }

    /// Writes a blob that is in memory.
    ///
    /// # Errors
    /// As those of [`BlobWriter`].
    pub async fn put_blob(&self, bytes: impl Into<Bytes>) -> Result<StagedBlob, StoreError> {
        let bytes = bytes.into();
        let mut writer = self.blob_writer(bytes.len() as u64)?;
        writer.write(bytes).await?;
        writer.finish().await
    }

    /// Writes a blob of what `input` gives until its end, called `name` in errors.
    ///
    /// # Errors
    /// When `input` fails, and as those of [`BlobWriter`].
    pub async fn put_blob_from(
        &self,
        name: &str,
        mut input: impl AsyncRead + Unpin,
        bytes_max: u64,
    ) -> Result<StagedBlob, StoreError> {
        let mut writer = self.blob_writer(bytes_max)?;
        loop {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            match (&mut input).take(PIECE_BYTES as u64).read_to_end(&mut piece).await {
                Ok(0) => return writer.finish().await,
                Ok(_) => writer.write(piece).await?,
                Err(source) => {
                    writer.abort().await;
                    return Err(BlobError::io("read", name)(source).into());
                }
            }
        }
    }
}

impl BlobWriter {
    /// Adds bytes.
    ///
    /// # Errors
    /// [`BlobError::TooLarge`] beyond the limit, or when they cannot be written. Nothing more can be written then.
    pub async fn write(&mut self, bytes: impl Into<Bytes>) -> Result<(), StoreError> {
        let mut bytes = bytes.into();
        let all_bytes = self.bytes.saturating_add(bytes.len() as u64);
        if all_bytes > self.bytes_max {
            self.abort().await;
            return Err(BlobError::TooLarge { bytes_max: self.bytes_max }.into());
        }
        self.bytes = all_bytes;
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
            self.hasher.update(&piece);
            let written = self.out.put(piece).await;
            written.map_err(|source| self.store.blobs.failed("write a blob", source))?;
        }
        Ok(())
    }

    /// Ends the blob and gives it its name. Equal bytes are one blob.
    ///
    /// # Errors
    /// When it cannot be written, or the database cannot.
    pub async fn finish(mut self) -> Result<StagedBlob, StoreError> {
        let Store { blobs, database, blob_keep_ms, .. } = &self.store;
        self.out.shutdown().await.map_err(|source| {
            let source = object_store::Error::Generic { store: "blobs", source: source.into() };
            blobs.failed("write a blob", source)
        })?;
        let staged =
            StagedBlob { digest: BlobDigest(self.hasher.finalize().into()), bytes: self.bytes };
        let digest = staged.digest;
        let now_ms = now_ms();
        sqlx::query(CLAIM)
            .bind(digest.to_string())
            .bind(stored(staged.bytes))
            .bind(now_ms)
            .bind(now_ms.saturating_add(*blob_keep_ms))
            .execute(database.writers())
            .await
            .map_err(|source| StoreError::database(format!("note blob {digest}"), source))?;
        // Over whatever is there: that has the same bytes, or is damaged and now healed.
        blobs
            .objects
            .rename(&self.incoming, &Blobs::path_of(&digest))
            .await
            .map_err(|source| blobs.failed(format!("name blob {digest}"), source))?;
        Ok(staged)
    }

    /// Gives up. What cannot be deleted now is left for the next sweep.
    async fn abort(&mut self) {
        drop(self.out.abort().await);
    }
}
