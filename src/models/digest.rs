//! SHA-256 of files, and the note that a file was checked once.
//!
//! The note lies beside the file as `FILE.verified` and holds size, time of change and digest: while these fit, the
//! file is taken as checked and not read again, so that a second start is instant.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::error::ModelError;

const READ_BYTES: usize = 1 << 18;

/// Whether `text` looks like a SHA-256 in hexadecimal.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Feeds a whole file to `hash`; the number of its bytes.
pub(super) fn hash_file(path: &Path, hash: &mut Sha256) -> Result<u64, ModelError> {
    let mut file = File::open(path).map_err(ModelError::io("open", path))?;
    let mut buffer = vec![0; READ_BYTES];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(count) => {
                hash.update(&buffer[..count]);
                bytes += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ModelError::io("read", path)(error)),
        }
    }
}

/// What is remembered of a checked file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Its size.
    pub bytes: u64,
    /// Its time of change, in nanoseconds since 1970.
    pub modified_ns: u64,
    /// Its SHA-256, lower-case hexadecimal.
    pub sha256: String,
}

impl Verified {
    /// The note of `file`, when there is one and the file hasn't changed since.
    pub fn of(file: &Path) -> Option<Self> {
        let note: Self = serde_json::from_slice(&fs::read(note_path(file)).ok()?).ok()?;
        let (bytes, modified_ns) = stamp(file)?;
        (note.bytes == bytes && note.modified_ns == modified_ns).then_some(note)
    }

    /// Remembers that `file` has this digest.
    pub(super) fn write(file: &Path, sha256: String) -> Result<(), ModelError> {
        let Some((bytes, modified_ns)) = stamp(file) else { return Ok(()) };
        let path = note_path(file);
        let note = serde_json::json!(Self { bytes, modified_ns, sha256 }).to_string();
        fs::write(&path, note).map_err(ModelError::io("write", path))
    }
}

fn note_path(file: &Path) -> PathBuf {
    with_suffix(file, ".verified")
}

/// `file` with `suffix` after its name.
pub(super) fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn stamp(file: &Path) -> Option<(u64, u64)> {
    let meta = fs::metadata(file).ok()?;
    let since_epoch = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some((meta.len(), u64::try_from(since_epoch.as_nanos()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex::hex;

    #[test]
    fn a_note_holds_until_the_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.gguf");
        fs::write(&file, b"abc").unwrap();
        assert_eq!(Verified::of(&file), None);
        let mut hash = Sha256::new();
        assert_eq!(hash_file(&file, &mut hash).unwrap(), 3);
        let sha256 = hex(&hash.finalize());
        assert_eq!(sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        Verified::write(&file, sha256.clone()).unwrap();
        assert_eq!(Verified::of(&file).unwrap().sha256, sha256);
        fs::write(&file, b"abcd").unwrap();
        assert_eq!(Verified::of(&file), None);
    }
}
