//! Errors by name, and nothing half-written after them.

use std::{fs, path::Path};

use pleach_engine::gguf::{GgufBuilder, GgufFile};
use pleach_export::{
    ExportOptions, Form, LoraExport, MODEL_FILE, Precision, export_onnx,
    verify::{Runtime, VerifyError, VerifyOptions, verify_onnx},
};

use crate::support::{adapter, fixtures, options, runtime, tiny};

fn plain() -> ExportOptions {
    options(Form::Genai, Precision::F32)
}

/// The message of an export that is refused, after which its folder and its parent are as they were.
fn refused(file: &GgufFile, adapters: &[&str], options: &ExportOptions) -> String {
    let dir = tempfile::tempdir().unwrap();
    let folder =
        |name: &&str| adapter(file, &fixtures().join("models/lora/llama-plain").join(name));
    let adapters: Vec<_> = adapters.iter().map(folder).collect();
    let error = export_onnx(file, &adapters, options, &dir.path().join("out")).unwrap_err();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "something is left after: {error}");
    error.to_string()
}

#[test]
fn what_cannot_be_exported_is_refused_and_nothing_is_left() {
    let file = tiny("llama-plain");
    let with = |lora| ExportOptions { lora, ..plain() };
    let merged = |name: &str| with(LoraExport::Merged(name.to_owned()));
    assert_eq!(
        refused(&file, &["r8-patterns"], &merged("pirate")),
        "no adapter is called \"pirate\"; there is r8-patterns: --adapter pirate=DIR gives one"
    );
    assert_eq!(
        refused(&file, &[], &merged("pirate")),
        "no adapter is called \"pirate\"; there are none: --adapter pirate=DIR gives one"
    );
    assert_eq!(
        refused(&file, &["r8-patterns"], &plain()),
        "adapter r8-patterns would not be exported: --lora is none"
    );
    assert_eq!(
        refused(&file, &["r8-patterns", "r256"], &merged("r256")),
        "adapter r8-patterns would not be exported: another one is merged"
    );
    assert_eq!(
        refused(&file, &["r256", "r256"], &with(LoraExport::Inputs)),
        "adapter r256 is given twice"
    );
    let mut builder = GgufBuilder::new();
    builder.meta("general.architecture", "gemma3");
    let other = GgufFile::from_bytes(builder.to_bytes()).unwrap();
    assert_eq!(
        refused(&other, &[], &plain()),
        "architecture \"gemma3\" is not supported: one of llama, qwen2, qwen3"
    );
}

#[test]
fn names_that_are_no_file_names() {
    let file = tiny("llama-plain");
    let dir = tempfile::tempdir().unwrap();
    for name in ["", "..", ".x", "a/b", "a b"] {
        let mut named = adapter(&file, &fixtures().join("models/lora/llama-plain/r8-patterns"));
        name.clone_into(&mut named.name);
        let options = ExportOptions { lora: LoraExport::Inputs, ..plain() };
        let error = export_onnx(&file, &[named], &options, &dir.path().join("out")).unwrap_err();
        assert!(error.to_string().starts_with(&format!("adapter name {name:?}")), "{error}");
    }
}

#[test]
fn what_is_there_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    export_onnx(&tiny("qwen2"), &[], &plain(), &out).unwrap();
    let error = export_onnx(&tiny("qwen2"), &[], &plain(), &out).unwrap_err().to_string();
    assert_eq!(error, format!("{} is there already, and is not an empty folder", out.display()));
    assert!(out.join(MODEL_FILE).is_file());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// The message of a verification that is refused.
fn not_verified(folder: &Path, file: &GgufFile, adapters: &[(&str, &str)]) -> String {
    let of = |&(name, folder): &(&str, &str)| {
        let mut named = adapter(file, &fixtures().join("models/lora/llama-plain").join(folder));
        name.clone_into(&mut named.name);
        named
    };
    let adapters: Vec<_> = adapters.iter().map(of).collect();
    let options = VerifyOptions { steps: 0, ..VerifyOptions::default() };
    verify_onnx(folder, file, &adapters, &runtime(), &options).unwrap_err().to_string()
}

#[test]
fn another_base_adapter_or_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let file = tiny("llama-plain");
    let named = adapter(&file, &fixtures().join("models/lora/llama-plain/r8-patterns"));
    let options = ExportOptions { lora: LoraExport::Inputs, ..plain() };
    export_onnx(&file, &[named], &options, &out).unwrap();

    let message = not_verified(&out, &tiny("llama-head-dim"), &[]);
    assert!(
        message.starts_with("wrong base: ") && message.contains("llama-head-dim.gguf"),
        "{message}"
    );
    let message = not_verified(&out, &file, &[("r8-patterns", "r256")]);
    assert!(message.starts_with("wrong adapter: ") && message.contains("r256"), "{message}");
    let message = not_verified(&out, &file, &[("pirate", "r256")]);
    assert_eq!(message, "the export has no adapter \"pirate\": it has r8-patterns");
    let message = not_verified(&out, &file, &[]);
    assert!(
        message.starts_with("adapter r8-patterns of the export is not where it was"),
        "{message}"
    );
    let message = not_verified(dir.path(), &file, &[]);
    assert!(message.ends_with("is no export of pleach: it has no pleach.json"), "{message}");

    let in_folder = out.join("adapters/r8-patterns.onnx_adapter");
    let mut bytes = fs::read(&in_folder).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&in_folder, bytes).unwrap();
    let message = not_verified(&out, &file, &[("r8-patterns", "r8-patterns")]);
    assert!(
        message.contains("onnx_adapter is not the file that was exported: SHA-256"),
        "{message}"
    );
    fs::write(out.join("model.onnx.data"), b"").unwrap();
    let message = not_verified(&out, &file, &[("r8-patterns", "r8-patterns")]);
    assert!(message.contains("is not the file that was exported"), "{message}");
}

#[test]
fn a_library_that_is_none_is_an_error_that_names_the_step() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Runtime::load(Some(&dir.path().join("none.so"))).unwrap_err();
    assert!(matches!(missing, VerifyError::LibraryMissing(_)));
    assert!(missing.to_string().contains("tools/fetch-onnxruntime"), "{missing}");
}
