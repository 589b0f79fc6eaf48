//! What tests need and a clone does not hold: the default model, a Python with the `openai` client, ONNX Runtime with its
//! Python packages, and a PostgreSQL server.
//!
//! All are set up by the first test that asks, under `target/`, and found there by the next. Cargo runs the test
//! binaries of several packages in an order of its own, and a binary's tests at once, so every test asks here, and a
//! file lock lets one of them work while the others wait. A file or folder is complete when it has its final name or its
//! mark; what an interrupted run leaves behind is made anew.
//!
//! ```text
//! target/test-model/SmolLM2-135M-Instruct.Q4_1.gguf   fetched by `pleach pull`, which checks its digest
//! target/test-python/                                 a virtual environment of tests/python/requirements.txt
//! target/test-onnx/                                   the wheels of tests/python/onnx.txt
//! target/test-postgres/                               the wheel of tests/python/postgres.txt
//! ```

mod error;
mod folders;
mod lock;
mod model;
mod onnx;
mod postgres;
mod python;
mod said;

use std::{io::Write as _, path::PathBuf, sync::OnceLock};

pub use self::{error::SetupError, onnx::OnnxPackages, postgres::PostgresServer};

/// Names another file to take for the default model.
const MODEL_VARIABLE: &str = "PLEACH_TEST_MODEL";

/// The file of the default model (98 MB), fetched if it is not here.
///
/// # Panics
/// With the reason, when it cannot be fetched.
pub fn default_model() -> PathBuf {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    if let Some(path) = std::env::var_os(MODEL_VARIABLE) {
        return path.into();
    }
    let fetch = || model::fetch(&folders::profile_folder());
    MODEL
        .get_or_init(|| fetch().unwrap_or_else(|error| panic!("the default model: {error}")))
        .clone()
}

/// A Python interpreter that has the `openai` client.
///
/// # Panics
/// With the reason, when it cannot be set up.
pub fn python() -> PathBuf {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    let set_up = || python::set_up(&folders::target_folder());
    PYTHON
        .get_or_init(|| set_up().unwrap_or_else(|error| panic!("Python for tests: {error}")))
        .clone()
}

/// ONNX Runtime's library, and a Python that has it, onnxruntime-genai and `onnx`.
///
/// # Panics
/// With the reason, when it cannot be set up: tests of the export prove nothing without it.
pub fn onnx() -> OnnxPackages {
    static PACKAGES: OnceLock<OnnxPackages> = OnceLock::new();
    let set_up = || onnx::set_up(&folders::target_folder());
    PACKAGES
        .get_or_init(|| set_up().unwrap_or_else(|error| panic!("ONNX Runtime for tests: {error}")))
        .clone()
}

/// A PostgreSQL server of this process, started by the first call; `None`, with a notice on standard error, where none
/// can be had.
pub fn postgres() -> Option<&'static PostgresServer> {
    static SERVER: OnceLock<Option<PostgresServer>> = OnceLock::new();
    let started = SERVER.get_or_init(|| match PostgresServer::start() {
        Ok(server) => Some(server),
        Err(error) => {
            // Past the test harness, which holds back what is printed with macros.
            let notice =
                format!("skipped: tests with PostgreSQL, because there is no server: {error}\n");
            let _ = std::io::stderr().write_all(notice.as_bytes());
            None
        }
    });
    started.as_ref()
}

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    folders::workspace()
}

/// `tests/fixtures` of the workspace.
pub fn fixtures() -> PathBuf {
    folders::workspace().join("tests/fixtures")
}
