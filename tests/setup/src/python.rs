//! A virtual environment with the packages of `tests/python/requirements.txt`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{error::SetupError, folders, lock::FolderLock, said::run};

const PROGRAMS: [&str; 2] = ["python3", "python"];
const NO_VENV: &str = ": on Debian and Ubuntu, `apt-get install python3-venv` brings what it needs";
const NO_PACKAGES: &str =
    ": pip needs a package index, see its option --index-url and PIP_INDEX_URL";

/// The interpreter of the environment below `target`.
pub(crate) fn set_up(target: &Path) -> Result<PathBuf, SetupError> {
    let folder = target.join("test-python");
    let requirements_path = folders::workspace().join("tests/python/requirements.txt");
    let requirements = fs::read_to_string(&requirements_path)
        .map_err(SetupError::io("read", &requirements_path))?;
    let python = folder.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    // Written last, so that it marks a whole environment, and which one.
    let mark = folder.join("installed.txt");
    let is_ready =
        || python.exists() && fs::read_to_string(&mark).is_ok_and(|mark| mark == requirements);
    if is_ready() {
        return Ok(python);
    }
    let _lock = FolderLock::take(&folder)?;
    if is_ready() {
        return Ok(python);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(SetupError::io("remove", &folder))?;
    }
    run(Command::new(system_python()?).args(["-m", "venv"]).arg(&folder), NO_VENV)?;
    let mut install = Command::new(&python);
    // Wheels only: nothing is compiled, so no compiler and no headers are needed.
    install.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        "--no-deps",
    ]);
    install.args(["--only-binary", ":all:", "--requirement"]).arg(&requirements_path);
    run(&mut install, NO_PACKAGES)?;
    fs::write(&mark, requirements).map_err(SetupError::io("write", &mark))?;
    Ok(python)
}

fn system_python() -> Result<&'static str, SetupError> {
    let runs = |program: &&str| {
        let mut command = Command::new(program);
        command.args(["-c", "import sys; sys.exit(sys.version_info < (3, 10))"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    PROGRAMS
        .into_iter()
        .find(runs)
        .ok_or_else(|| SetupError::NoPython { tried: PROGRAMS.join(", ") })
}
