//! Reading every row of a file before it is taken: a bad line is told to who sent it, not found when training begins.

use std::io::BufReader;

use pleach_store::{BlobDigest, Store, StoreError};
use pleach_trainer::data::{DataError, Format, ReadLimits, RowReader, RowSource as _};
use tokio::{runtime::Handle, sync::Semaphore};

use super::BlobSource;

/// Files that are checked at a time: they wait for each other, not for what is served.
const CHECKS_MAX: usize = 1;
/// What is read from the blob at once.
const BUFFER_BYTES: usize = 256 << 10;

/// Checks files, a few at a time.
#[derive(Debug)]
pub struct FileChecks {
    turns: Semaphore,
}

/// A file without a bad line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckedFile {
    /// What its rows are.
    pub format: Format,
    /// How many there are.
    pub n_rows: u64,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileProblem {
    /// Its first bad line, or that it has none.
    #[error(transparent)]
    Data(#[from] DataError),
    /// It cannot be read just now.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The check panicked: a bug.
    #[error("the check of the file failed")]
    Panicked,
}

impl Default for FileChecks {
    fn default() -> Self {
        Self { turns: Semaphore::new(CHECKS_MAX) }
    }
}

impl FileChecks {
    /// Reads all rows.
    ///
    /// # Errors
    /// [`FileProblem`].
    pub async fn check(
        &self,
        store: &Store,
        blob: &BlobDigest,
        bytes_max: u64,
    ) -> Result<CheckedFile, FileProblem> {
        let _turn = self.turns.acquire().await.map_err(|_| FileProblem::Panicked)?;
        let source = BlobSource::new(store.blob_reader(blob).await?, Handle::current());
        let checked = tokio::task::spawn_blocking(move || read_all(source, bytes_max)).await;
        checked.map_err(|_| FileProblem::Panicked)?.map_err(FileProblem::Data)
    }
}

fn read_all(source: BlobSource, bytes_max: u64) -> Result<CheckedFile, DataError> {
    let limits = ReadLimits { file_bytes_max: bytes_max, ..ReadLimits::default() };
    let source = BufReader::with_capacity(BUFFER_BYTES, source);
    let mut rows = RowReader::new(source, None, limits);
    let mut n_rows = 0;
    for row in rows.by_ref() {
        row?;
        n_rows += 1;
    }
    let format = rows.format().ok_or(DataError::Empty)?;
    Ok(CheckedFile { format, n_rows })
}
