//! Files that are there as a whole or not at all.

use std::{
    fs::File,
    io::{self, Write as _},
    path::Path,
};

/// Writes a file under a name of its own and gives it its name when all bytes are on the disk: after a crash there is the
/// old file or the new one.
///
/// # Errors
/// Of the disk.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let draft = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let write = || {
        let mut file = File::create(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&draft, path)?;
        // The name is on the disk with its folder.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    };
    let written = write();
    if written.is_err() {
        // What is left of a failed attempt; it may not even be there.
        let _ = std::fs::remove_file(&draft);
    }
    written
}
