//! Why an export cannot be verified.

use std::path::PathBuf;

use pleach_engine::{backend::RunError, model::LoadError};
use pleach_text::{TemplateError, TextError};

use super::runtime::{PACKAGE, WANTED_VERSION};
use crate::{error::ExportError, folder::ManifestError};

/// Why an export cannot be verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The folder.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A merged export for comparison.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The model file.
    #[error(transparent)]
    Model(#[from] LoadError),
    /// Our engine.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The tokenizer.
    #[error("tokenizer: {0}")]
    Tokenizer(#[from] TextError),
    /// The chat template.
    #[error("chat template: {0}")]
    Template(#[from] TemplateError),
    /// No library was named.
    #[error(
        "no ONNX Runtime library is named: tools/fetch-onnxruntime gets one, --onnxruntime PATH or ORT_DYLIB_PATH names it"
    )]
    NoLibrary,
    /// The library is not there.
    #[error(
        "there is no ONNX Runtime library at {}: tools/fetch-onnxruntime gets one ({PACKAGE} has it)", .0.display()
    )]
    LibraryMissing(PathBuf),
    /// The library is older than what its interface needs.
    #[error(
        "the ONNX Runtime library {} is too old: version {found}, 1.{WANTED_VERSION} or later is needed; tools/fetch-onnxruntime gets one",
        .path.display()
    )]
    LibraryTooOld {
        /// The library.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// The library cannot be used.
    #[error("the ONNX Runtime library {} cannot be used: {problem}", .path.display())]
    Library {
        /// The library.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// ONNX Runtime refused something.
    #[error("ONNX Runtime, {action}: {problem}")]
    Onnx {
        /// What it was to do.
        action: String,
        /// What it said.
        problem: String,
    },
    /// An adapter that is not in the export.
    #[error("the export has no adapter {name:?}: it has {}", .known.join(", "))]
    UnknownAdapter {
        /// The name.
        name: String,
        /// The names that it has.
        known: Vec<String>,
    },
    /// An adapter of the export whose weights nobody gave.
    #[error(
        "adapter {0} of the export is not where it was: --adapter {0}=DIR gives its PEFT folder"
    )]
    AdapterNotGiven(String),
    /// A graph that is of another base than the manifest.
    #[error("{} is not of the base that the manifest names: {found}", .path.display())]
    OtherGraph {
        /// The graph.
        path: PathBuf,
        /// The digest of its base.
        found: String,
    },
    /// A context that holds no prompt.
    #[error("a context of {0} tokens is too short to verify anything")]
    Context(usize),
}

/// Wraps what ONNX Runtime said.
pub(super) fn onnx<E: std::fmt::Display>(
    action: impl Into<String>,
) -> impl FnOnce(E) -> VerifyError {
    let action = action.into();
    move |error| VerifyError::Onnx { action, problem: error.to_string() }
}
