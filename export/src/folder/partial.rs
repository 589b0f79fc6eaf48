//! A folder under another name until it is whole.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::error::ExportError;

/// Written beside its final place, and removed unless it gets there.
#[derive(Debug)]
pub(crate) struct PartialFolder {
    out: PathBuf,
    path: PathBuf,
    is_whole: bool,
}

impl PartialFolder {
    /// Of `out`, which is nothing or an empty folder.
    pub(crate) fn create(out: &Path) -> Result<Self, ExportError> {
        match fs::read_dir(out).map(|mut entries| entries.next().is_none()) {
            Ok(true) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(false) | Err(_) => return Err(ExportError::Exists(out.to_owned())),
        }
        let mut name = out.file_name().unwrap_or_default().to_owned();
        name.push(format!(".partial-{}", std::process::id()));
        let path = out.with_file_name(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(ExportError::io("create", parent))?;
        }
        fs::create_dir(&path).map_err(ExportError::io("create", &path))?;
        Ok(Self { out: out.to_owned(), path, is_whole: false })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file of it.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), ExportError> {
        let path = self.path.join(name);
        fs::write(&path, bytes).map_err(ExportError::io("write", path))
    }

    /// Gives it its name.
    pub(crate) fn finish(mut self) -> Result<(), ExportError> {
        // An empty folder of that name is replaced where the system can, and removed first where it cannot.
        if cfg!(not(unix)) && self.out.exists() {
            fs::remove_dir(&self.out).map_err(ExportError::io("replace", &self.out))?;
        }
        fs::rename(&self.path, &self.out).map_err(ExportError::io("rename", &self.path))?;
        self.is_whole = true;
        Ok(())
    }
}

impl Drop for PartialFolder {
    fn drop(&mut self) {
        if !self.is_whole {
            // Nothing more can be done about it, and the error that led here is the one to tell.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
