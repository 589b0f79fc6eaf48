//! Every way in which the set-up can fail.

use std::{io, path::PathBuf};

/// Why tests could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A file or folder could not be made.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// `create`, `lock`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program could not be started.
    #[error("cannot run {program}: {source}")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program failed.
    #[error("`{command}` failed, {status}{hint}; it said:\n{said}")]
    Failed {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: String,
        /// What could be done about it, beginning with `: `, or nothing.
        hint: &'static str,
        /// The end of its output.
        said: String,
    },
    /// `pleach pull` printed something else than the path of the default model.
    #[error("`{command}` printed {printed:?}, not the path of a file named {expected}")]
    OtherFile {
        /// The program and its arguments.
        command: String,
        /// What it printed.
        printed: String,
        /// The name of the default model's file.
        expected: &'static str,
    },
    /// There is no Python.
    #[error(
        "none of {tried} runs: tests of the HTTP interface need Python 3.10 or later, with pip and venv"
    )]
    NoPython {
        /// The names that were tried.
        tried: String,
    },
}

impl SetupError {
    /// Wraps an error of the file system.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
