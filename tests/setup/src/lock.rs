//! One process at a time sets up; the others wait, and find the work done.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::Path,
};

use crate::error::SetupError;

/// Holds the lock of a folder while it lives. The system lets go of it when the process dies.
#[derive(Debug)]
pub(crate) struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Waits for the lock of `folder`, which is a file beside it.
    pub(crate) fn take(folder: &Path) -> Result<Self, SetupError> {
        let path = folder.with_extension("lock");
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(SetupError::io("create", parent))?;
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(SetupError::io("create", &path))?;
        match file.lock() {
            // Some network file systems have no locks. Two set-ups at once can then disturb each other, once.
            Err(error) if error.kind() != io::ErrorKind::Unsupported => {
                Err(SetupError::io("lock", path)(error))
            }
            Ok(()) | Err(_) => Ok(Self { _file: file }),
        }
    }
}
