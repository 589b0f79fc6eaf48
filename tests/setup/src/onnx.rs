//! ONNX Runtime and its Python clients: the wheels of `tests/python/onnx.txt`, pinned by digest, in a folder of their own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{error::SetupError, folders, lock::FolderLock, python, said::run};

const NO_PACKAGES: &str =
    ": pip needs a package index, see its option --index-url and PIP_INDEX_URL";

/// A Python with the packages, and the library in them.
#[derive(Clone, Debug)]
pub struct OnnxPackages {
    folder: PathBuf,
    python: PathBuf,
    /// ONNX Runtime's shared library.
    pub library: PathBuf,
}

impl OnnxPackages {
    /// A Python process that finds the packages.
    pub fn python(&self) -> Command {
        let mut command = Command::new(&self.python);
        command.env("PYTHONPATH", &self.folder).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }
}

/// The packages below `target`.
pub(crate) fn set_up(target: &Path) -> Result<OnnxPackages, SetupError> {
    let folder = target.join("test-onnx");
    let requirements_path = folders::workspace().join("tests/python/onnx.txt");
    let requirements = fs::read_to_string(&requirements_path)
        .map_err(SetupError::io("read", &requirements_path))?;
    let python = python::set_up(target)?;
    // Written last, so that it marks whole packages, and which ones.
    let mark = folder.join("installed.txt");
    let is_ready = || fs::read_to_string(&mark).is_ok_and(|mark| mark == requirements);
    if !is_ready() {
        let _lock = FolderLock::take(&folder)?;
        if !is_ready() {
            if folder.exists() {
                fs::remove_dir_all(&folder).map_err(SetupError::io("remove", &folder))?;
            }
            let mut install = Command::new(&python);
            install.args(["-m", "pip", "install", "--quiet", "--no-input"]);
            install.args(["--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]);
            install.args(["--require-hashes", "--target"]).arg(&folder);
            install.arg("--requirement").arg(&requirements_path);
            run(&mut install, NO_PACKAGES)?;
            fs::write(&mark, &requirements).map_err(SetupError::io("write", &mark))?;
        }
    }
    let library = library(&folder.join("onnxruntime/capi"))?;
    Ok(OnnxPackages { folder, python, library })
}

/// The one that has its version in its name.
fn library(folder: &Path) -> Result<PathBuf, SetupError> {
    let entries = fs::read_dir(folder).map_err(SetupError::io("read", folder))?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    let is_library = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libonnxruntime.so")
            || name.starts_with("libonnxruntime.1")
            || name == "onnxruntime.dll"
    };
    let missing =
        || SetupError::io("find a library in", folder)(std::io::ErrorKind::NotFound.into());
    paths.find(is_library).ok_or_else(missing)
}
