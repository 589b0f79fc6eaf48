//! Models, adapters and a place for exports.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use pleach_adapters::load_peft;
use pleach_engine::{gguf::GgufFile, model::read_spec};
use pleach_export::{
    ExportOptions, Form, LoraExport, NamedAdapter, Precision, export_onnx,
    verify::{Report, Runtime, VerifyOptions, verify_onnx},
};

/// Prompts that are read, of all that there are: a test shall not take minutes.
const PROMPTS: usize = 8;

pub(crate) fn fixtures() -> PathBuf {
    pleach_test_setup::fixtures()
}

pub(crate) fn tiny(name: &str) -> GgufFile {
    GgufFile::open(&fixtures().join(format!("models/{name}.gguf"))).unwrap()
}

pub(crate) fn default_model() -> GgufFile {
    GgufFile::open(&pleach_test_setup::default_model()).unwrap()
}

pub(crate) fn runtime() -> Runtime {
    Runtime::load(Some(&pleach_test_setup::onnx().library)).unwrap()
}

pub(crate) fn adapter(file: &GgufFile, folder: &Path) -> NamedAdapter {
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    let adapter = load_peft(folder, &read_spec(file).unwrap()).unwrap();
    NamedAdapter { name, path: folder.display().to_string(), adapter }
}

/// The two trained adapters of the default model.
pub(crate) fn reference_adapters(file: &GgufFile) -> Vec<NamedAdapter> {
    ["pirate", "extract"].map(|name| adapter(file, &fixtures().join("adapters").join(name))).into()
}

pub(crate) fn options(form: Form, precision: Precision) -> ExportOptions {
    ExportOptions {
        form,
        precision,
        accuracy_level: 0,
        f32_activations: BTreeSet::new(),
        lora: LoraExport::None,
    }
}

/// Exports and compares, without times.
pub(crate) fn exported_and_verified(
    file: &GgufFile,
    adapters: &[NamedAdapter],
    options: &ExportOptions,
    merged: bool,
) -> (tempfile::TempDir, Report) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    export_onnx(file, adapters, options, &out).unwrap();
    let verify = VerifyOptions {
        steps: 0,
        threads: 2,
        merged,
        prompts: PROMPTS,
        ..VerifyOptions::default()
    };
    let report = verify_onnx(&out, file, adapters, &runtime(), &verify).unwrap();
    (dir, report)
}

/// Every check, as one line for a message.
pub(crate) fn told(report: &Report) -> String {
    let line = |check: &pleach_export::verify::Check| {
        let adapter = check.adapter.as_deref().unwrap_or("base");
        let (what, max, kl, top1) = (&check.what, check.logit_max, check.kl, check.top1);
        format!("{adapter}, {what}: logit {max:.1e}, KL {kl:.1e}, top-1 {top1}, {}", check.passed)
    };
    report.checks.iter().map(line).collect::<Vec<_>>().join("\n")
}
