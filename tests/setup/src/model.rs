//! The default model, fetched by the program that users fetch it with.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    error::SetupError,
    folders,
    lock::FolderLock,
    said::{run, shown},
};

/// The name of the default model's file in the store, see `KNOWN_MODELS`.
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const PROGRAM: &str = "pleach";
const NO_SOURCE: &str = ": without a network, let PLEACH_TEST_MODEL name the file";

/// The model below the target folder that `profile_folder` is in.
pub(crate) fn fetch(profile_folder: &Path) -> Result<PathBuf, SetupError> {
    let folder = folders::target_folder().join("test-model");
    let path = folder.join(FILE);
    if path.is_file() {
        return Ok(path);
    }
    let _lock = FolderLock::take(&folder)?;
    if path.is_file() {
        return Ok(path);
    }
    let home = folder.join("home");
    let mut pull = Command::new(program(profile_folder)?);
    pull.arg("pull").env("PLEACH_HOME", &home);
    let printed = run(&mut pull, NO_SOURCE)?;
    let pulled = Path::new(printed.trim_end());
    if pulled.file_name() != Some(FILE.as_ref()) {
        return Err(SetupError::OtherFile { command: shown(&pull), printed, expected: FILE });
    }
    fs::rename(pulled, &path).map_err(SetupError::io("rename", pulled))?;
    fs::remove_dir_all(&home).map_err(SetupError::io("remove", &home))?;
    Ok(path)
}

/// The program of this build. `cargo test` has built it before the first test runs, except for a single member.
fn program(profile_folder: &Path) -> Result<PathBuf, SetupError> {
    let program = profile_folder.join(PROGRAM).with_extension(std::env::consts::EXE_EXTENSION);
    if program.is_file() {
        return Ok(program);
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut build = Command::new(cargo);
    build
        .args(["build", "--bin", PROGRAM, "--manifest-path"])
        .arg(folders::workspace().join("Cargo.toml"));
    build.arg("--target-dir").arg(folders::target_folder());
    if profile_folder.ends_with("release") {
        build.arg("--release");
    }
    run(&mut build, "")?;
    Ok(program)
}
