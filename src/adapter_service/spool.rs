//! Our own copies of adapters that came at run time: a generation never changes, so it cannot be left to a folder that
//! others write into. They live as long as their generation, and not longer than the process.
//!
//! ```text
//! SPOOL/run-<random>/lock                      locked while the process lives
//! SPOOL/run-<random>/<random>/adapter_config.json, adapter_model.safetensors
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::error::ServiceError;
use crate::http::ids;

/// Most bytes of all copies.
const SPOOL_BYTES_MAX: u64 = 64 << 30;
const RUN_PREFIX: &str = "run-";
const LOCK_FILE: &str = "lock";

/// Where copies are kept.
#[derive(Debug)]
pub(super) struct Spool {
    parent: PathBuf,
    /// `None` until it is needed.
    run: Mutex<Option<Arc<Run>>>,
}

/// The folder of this process, gone with the last copy in it.
#[derive(Debug)]
struct Run {
    folder: PathBuf,
    n_bytes: AtomicU64,
    /// Tells the next process that this one lives.
    _lock: File,
}

/// The folder of one adapter, gone when this is dropped.
#[derive(Debug)]
pub struct SpoolFolder {
    run: Arc<Run>,
    path: PathBuf,
    n_bytes: AtomicU64,
}

/// A file that is being written into a [`SpoolFolder`].
#[derive(Debug)]
pub struct IncomingFile {
    file: File,
    name: &'static str,
    room: u64,
    bytes_max: u64,
}

impl Spool {
    pub(super) fn new(parent: PathBuf) -> Self {
        Self { parent, run: Mutex::default() }
    }

    /// A new, empty folder. Blocks.
    pub(super) fn folder(&self) -> Result<SpoolFolder, ServiceError> {
        let run = self.run()?;
        let path = run.folder.join(ids::random(""));
        fs::create_dir(&path)?;
        Ok(SpoolFolder { run, path, n_bytes: AtomicU64::new(0) })
    }

    fn run(&self) -> io::Result<Arc<Run>> {
        let mut run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = &*run {
            return Ok(Arc::clone(run));
        }
        Ok(Arc::clone(run.insert(Arc::new(Run::begin(&self.parent)?))))
    }
}

impl Run {
    fn begin(parent: &Path) -> io::Result<Self> {
        fs::create_dir_all(parent)?;
        remove_dead_runs(parent);
        let folder = parent.join(ids::random(RUN_PREFIX));
        fs::create_dir(&folder)?;
        let lock = File::create(folder.join(LOCK_FILE))?;
        // Where there are no locks nobody can be told dead either.
        let _ = lock.try_lock();
        Ok(Self { folder, n_bytes: AtomicU64::new(0), _lock: lock })
    }
}

/// What processes left that were killed. Whatever cannot be removed stays.
fn remove_dead_runs(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(RUN_PREFIX) {
            continue;
        }
        let lock = OpenOptions::new().write(true).open(entry.path().join(LOCK_FILE));
        if lock.is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl SpoolFolder {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Begins a file of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// When it cannot be made; also when it is there already.
    pub fn create(&self, name: &'static str, bytes_max: u64) -> Result<IncomingFile, ServiceError> {
        let file = OpenOptions::new().write(true).create_new(true).open(self.path.join(name))?;
        Ok(IncomingFile { file, name, room: bytes_max, bytes_max })
    }

    /// Adds to a file. Blocks.
    ///
    /// # Errors
    /// When it becomes too large, all copies together become too large, or the disk fails.
    pub fn write(&self, to: &mut IncomingFile, bytes: &[u8]) -> Result<(), ServiceError> {
        let n_bytes = bytes.len() as u64;
        to.room = to
            .room
            .checked_sub(n_bytes)
            .ok_or(ServiceError::UploadTooLarge { file: to.name, bytes_max: to.bytes_max })?;
        let before = self.run.n_bytes.fetch_add(n_bytes, Ordering::AcqRel);
        self.n_bytes.fetch_add(n_bytes, Ordering::AcqRel);
        if before.saturating_add(n_bytes) > SPOOL_BYTES_MAX {
            return Err(ServiceError::SpoolFull { bytes_max: SPOOL_BYTES_MAX });
        }
        Ok(to.file.write_all(bytes)?)
    }
}

impl Drop for SpoolFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove an adapter's files");
        }
        self.run.n_bytes.fetch_sub(*self.n_bytes.get_mut(), Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_of_what_is_dropped_or_died() {
        let parent = tempfile::tempdir().unwrap();
        let names = || fs::read_dir(parent.path()).unwrap().count();
        // A process that was killed: its lock is free.
        fs::create_dir_all(parent.path().join("run-dead/x")).unwrap();
        fs::write(parent.path().join("run-dead/lock"), "").unwrap();
        let spool = Spool::new(parent.path().to_owned());
        assert_eq!(names(), 1, "nothing is made before it is needed");
        let folder = spool.folder().unwrap();
        assert_eq!(names(), 1, "ours only");
        // Another server beside this one leaves it alone.
        let other = Spool::new(parent.path().to_owned()).folder().unwrap();
        assert_eq!(names(), 2);
        let mut file = folder.create("a", 5).unwrap();
        folder.write(&mut file, b"123").unwrap();
        let error = folder.write(&mut file, b"456").unwrap_err().to_string();
        assert!(error.contains("a is larger than 5 bytes"), "{error}");
        assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"123");
        folder.create("a", 5).unwrap_err();
        let path = folder.path().to_owned();
        drop(folder);
        assert!(!path.exists());
        drop((spool, other));
        assert_eq!(names(), 0);
    }
}
