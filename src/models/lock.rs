//! One process at a time fetches a file; the others wait and then find it there.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    path::Path,
    time::Duration,
};

use super::{error::ModelError, progress::Progress};

const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Holds the lock of a file while it lives. The system lets go of it when the process dies.
#[derive(Debug)]
pub(super) struct FetchLock {
    _file: File,
}

impl FetchLock {
    /// Waits until no other process fetches into `path`, which is the lock file.
    pub(super) async fn take(path: &Path, progress: &Progress) -> Result<Self, ModelError> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        let file = options.open(path).map_err(ModelError::io("create", path))?;
        let mut has_said = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::WouldBlock) => {}
                // Some network file systems have no locks. Two fetches at once are then possible, and wasteful; the
                // check of the digest still keeps a mixed file from being taken.
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    return Ok(Self { _file: file });
                }
                Err(TryLockError::Error(error)) => return Err(ModelError::io("lock", path)(error)),
            }
            if !has_said {
                progress.say("another pleach is fetching this model: waiting for it");
                has_said = true;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}
