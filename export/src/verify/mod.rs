//! Proof that an exported folder computes what pleach computes, and how fast both do.
//!
//! For the base and each adapter: the tokens of some prompts and of pleach's own greedy answers to them go through our
//! engine with exact products, and through ONNX Runtime as one prefill, in chunks, and one by one; every row of logits is
//! compared. Then both are timed with the same number of threads, ours as it serves (int8 activations).

mod cases;
mod checks;
mod difference;
mod error;
mod memory;
mod native;
mod prompts;
mod report;
mod runtime;
mod session;
mod timing;

use std::path::{Path, PathBuf};

use pleach_engine::{gguf::GgufFile, model::read_spec};

use crate::{
    digest,
    export::NamedAdapter,
    folder::{Lora, Manifest},
};

pub use error::VerifyError;
pub use report::{Check, Latency, Limit, Memory, Report};
pub use runtime::{Runtime, WANTED_VERSION};

/// How to verify.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// Threads of ONNX Runtime and of our engine.
    pub threads: usize,
    /// Whether ONNX Runtime's threads spin while they wait.
    pub spinning: bool,
    /// Decode steps to time; 0 times nothing.
    pub steps: usize,
    /// Tokens of the prompt whose prefill is timed, and that decode steps come after.
    pub prompt_tokens: usize,
    /// Sequences in a batch, where batches are timed.
    pub batch: usize,
    /// Prompts to read, of those that there are.
    pub prompts: usize,
    /// Also exports each adapter merged, into a temporary folder, and compares that.
    pub merged: bool,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            threads,
            spinning: false,
            steps: 200,
            prompt_tokens: 128,
            batch: 4,
            prompts: usize::MAX,
            merged: false,
        }
    }
}

/// Compares a folder with the model and the adapters that it was made of.
///
/// # Errors
/// [`VerifyError`] when it cannot be compared: another base or adapter than the exported one, files that changed, a graph
/// that does not open. Differences are no errors: see [`Report::passed`].
pub fn verify_onnx(
    folder: &Path,
    file: &GgufFile,
    adapters: &[NamedAdapter],
    runtime: &Runtime,
    options: &VerifyOptions,
) -> Result<Report, VerifyError> {
    let manifest = Manifest::read(folder)?;
    manifest.check_files(folder)?;
    manifest.check_base(file.path(), &digest::of_bytes(file.file_bytes()))?;
    check_adapters(&manifest, adapters)?;
    let spec = read_spec(file)?;
    let cases = cases::Cases::new(file, &spec, options.prompts)?;
    let subject =
        Subject { folder, file, spec: &spec, manifest: &manifest, adapters, runtime, options };
    let mut report = Report::new(&subject);
    // First, while memory is fresh.
    if options.steps > 0 {
        timing::time(&subject, &mut report)?;
    }
    checks::check(&subject, &cases, &mut report)?;
    report.judge();
    Ok(report)
}

/// What is verified.
#[derive(Clone, Copy)]
struct Subject<'a> {
    folder: &'a Path,
    file: &'a GgufFile,
    spec: &'a pleach_engine::spec::ModelSpec,
    manifest: &'a Manifest,
    adapters: &'a [NamedAdapter],
    runtime: &'a Runtime,
    options: &'a VerifyOptions,
}

impl<'a> Subject<'a> {
    /// The plain base (`None`) and the adapters that a run can choose.
    fn variants(&self) -> Vec<Option<&'a NamedAdapter>> {
        match self.manifest.lora {
            Lora::None => vec![None],
            Lora::Inputs => [None].into_iter().chain(self.adapters.iter().map(Some)).collect(),
            Lora::Merged => self.adapters.iter().map(Some).collect(),
        }
    }

    /// Whether a run of ONNX Runtime is given the adapter's file.
    fn is_given(&self) -> bool {
        self.manifest.lora == Lora::Inputs
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

fn check_adapters(manifest: &Manifest, adapters: &[NamedAdapter]) -> Result<(), VerifyError> {
    for NamedAdapter { name, path, adapter } in adapters {
        if !manifest.adapters.contains_key(name) {
            let known = manifest.adapters.keys().cloned().collect();
            return Err(VerifyError::UnknownAdapter { name: name.clone(), known });
        }
        manifest.check_adapter(name, Path::new(path), adapter.digest)?;
    }
    let is_given = |name: &String| adapters.iter().any(|adapter| adapter.name == *name);
    match manifest.adapters.keys().find(|name| !is_given(name)) {
        Some(name) => Err(VerifyError::AdapterNotGiven(name.clone())),
        None => Ok(()),
    }
}
