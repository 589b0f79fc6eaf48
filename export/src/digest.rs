//! SHA-256 of files and of what is written.

use std::{fs::File, io, path::Path};

use sha2::{Digest as _, Sha256};

use crate::error::ExportError;

/// Lower-case hexadecimal of a finished hash.
pub(crate) fn hex(hash: Sha256) -> String {
    use std::fmt::Write as _;
    hash.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Of bytes.
pub(crate) fn of_bytes(bytes: &[u8]) -> String {
    hex(Sha256::new_with_prefix(bytes))
}

/// Of a file.
pub(crate) fn of_file(path: &Path) -> Result<String, ExportError> {
    let mut file = File::open(path).map_err(ExportError::io("open", path))?;
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash).map_err(ExportError::io("read", path))?;
    Ok(hex(hash))
}
