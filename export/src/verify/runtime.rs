//! ONNX Runtime's shared library: found by a path that was checked first. It is never looked for lazily, which would be a
//! panic somewhere else, or a wait without end.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use ort::{LoadDynamicError, environment::Environment};

use super::error::{VerifyError, onnx};

/// The oldest library that is taken, 1.x: that of the interface's version.
pub const WANTED_VERSION: u32 = ort::MINOR_VERSION;
pub(super) const PACKAGE: &str = "the Python package onnxruntime";
/// Names the library.
const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";

/// A loaded library.
#[derive(Clone, Debug)]
pub struct Runtime {
    pub(super) environment: Environment,
    path: PathBuf,
    version: String,
}

/// The process has one library and one environment.
static LOADED: Mutex<Option<Runtime>> = Mutex::new(None);

impl Runtime {
    /// Loads the library at `path`, or the one that the environment variable `ORT_DYLIB_PATH` names. A process that has
    /// loaded one keeps it.
    ///
    /// # Errors
    /// [`VerifyError::NoLibrary`], [`VerifyError::LibraryMissing`], [`VerifyError::LibraryTooOld`],
    /// [`VerifyError::Library`].
    pub fn load(path: Option<&Path>) -> Result<Self, VerifyError> {
        let of_environment = || std::env::var_os(LIBRARY_VARIABLE).filter(|path| !path.is_empty());
        let path = match path {
            Some(path) => path.to_owned(),
            None => of_environment().map(PathBuf::from).ok_or(VerifyError::NoLibrary)?,
        };
        if !path.is_file() {
            return Err(VerifyError::LibraryMissing(path));
        }
        // A relative one would be looked for beside the program.
        let path = std::path::absolute(&path).unwrap_or(path);
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = &*loaded {
            return Ok(runtime.clone());
        }
        let builder = ort::init_from(&path).map_err(|error| refused(&path, &error))?;
        let environment = builder
            .with_name("pleach")
            .with_telemetry(false)
            .build()
            .map_err(onnx("making an environment"))?;
        let version = version(ort::info(), &path);
        Ok(loaded.insert(Self { environment, path, version }).clone())
    }

    /// The library.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version, as far as it tells.
    pub fn version(&self) -> &str {
        &self.version
    }
}

fn refused(path: &Path, error: &LoadDynamicError) -> VerifyError {
    let path = path.to_owned();
    match error {
        LoadDynamicError::BadVersion { version_str, .. } => {
            VerifyError::LibraryTooOld { path, found: version_str.clone() }
        }
        LoadDynamicError::Dlopen { .. }
        | LoadDynamicError::MissingApi { .. }
        | LoadDynamicError::InvalidVersionString => {
            VerifyError::Library { path, problem: error.to_string() }
        }
    }
}

/// From the file's name, which ends in it, with the commit from the build's own words.
fn version(info: &str, path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let number = name.split_once(".so.").map_or("", |(_, number)| number);
    let commit = info.split(", ").find_map(|part| part.strip_prefix("git-commit-id="));
    match (number, commit) {
        ("", commit) => commit.unwrap_or("unknown").to_owned(),
        (number, None) => number.to_owned(),
        (number, Some(commit)) => format!("{number} ({commit})"),
    }
}
