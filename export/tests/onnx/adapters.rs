//! Adapters as inputs and merged, on tiny models.

use std::path::PathBuf;

use pleach_adapters::load_peft;
use pleach_engine::{gguf::GgufFile, model::read_spec};
use pleach_export::{
    ExportError, ExportOptions, Form, Lora, LoraExport, Manifest, NamedAdapter, Precision,
    export_onnx,
};

use crate::support::{adapter, exported_and_verified, fixtures, options, tiny, told};

fn folders(kind: &str, base: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(fixtures().join("models").join(kind).join(base)).unwrap();
    let mut folders: Vec<PathBuf> =
        entries.map(|entry| entry.unwrap().path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    assert!(folders.len() >= 4, "adapters are missing: {folders:?}");
    folders
}

fn all(file: &GgufFile, kind: &str, base: &str) -> Vec<NamedAdapter> {
    folders(kind, base).iter().map(|folder| adapter(file, folder)).collect()
}

/// Ranks of 1 to 256, rsLoRA, patterns, some modules and layers only: all in one graph.
#[test]
fn partial_adapters_of_mixed_ranks_share_a_graph() {
    for base in ["llama-plain", "qwen2-untied"] {
        let file = tiny(base);
        let adapters = all(&file, "lora", base);
        let ranks: std::collections::BTreeSet<usize> =
            adapters.iter().map(|named| named.adapter.rank_max).collect();
        assert!(ranks.len() >= 3, "{ranks:?}");
        for form in [Form::Genai, Form::Standard] {
            let options =
                ExportOptions { lora: LoraExport::Inputs, ..options(form, Precision::F32) };
            let merged = form == Form::Genai;
            let (dir, report) = exported_and_verified(&file, &adapters, &options, merged);
            assert!(report.passed, "{base} {form}:\n{}", told(&report));
            let per_adapter = if merged { 5 } else { 4 };
            assert_eq!(report.checks.len(), 4 + per_adapter * adapters.len());
            let manifest = Manifest::read(&dir.path().join("out")).unwrap();
            assert_eq!(manifest.lora, Lora::Inputs);
            for named in &adapters {
                let file = manifest.adapters[&named.name].file.as_ref().unwrap();
                assert!(manifest.files.contains_key(file), "{file}");
            }
        }
        let int8 =
            ExportOptions { lora: LoraExport::Inputs, ..options(Form::Genai, Precision::Int8) };
        let (_dir, report) = exported_and_verified(&file, &adapters[..2], &int8, false);
        assert!(report.passed, "{base} int8:\n{}", told(&report));
    }
}

/// `DoRA`, `lora_bias`, adapters of the embedding and the head, whole matrices.
#[test]
fn other_kinds_are_merged_or_refused_by_name() {
    for base in ["llama-plain", "qwen2"] {
        let file = tiny(base);
        for folder in folders("kinds", base) {
            let named = [adapter(&file, &folder)];
            let name = named[0].name.clone();
            for form in [Form::Genai, Form::Standard] {
                let merged = ExportOptions {
                    lora: LoraExport::Merged(name.clone()),
                    ..options(form, Precision::F32)
                };
                let (_dir, report) = exported_and_verified(&file, &named, &merged, false);
                assert!(report.passed, "{base} {name} {form}:\n{}", told(&report));
                assert_eq!(report.checks.len(), 4);
            }
            let dir = tempfile::tempdir().unwrap();
            let inputs =
                ExportOptions { lora: LoraExport::Inputs, ..options(Form::Genai, Precision::F32) };
            let error = export_onnx(&file, &named, &inputs, &dir.path().join("out")).unwrap_err();
            assert!(matches!(error, ExportError::NoInput { .. }), "{name}: {error}");
            assert!(
                error.to_string().contains(&format!("only merged (--lora merged:{name})")),
                "{error}"
            );
        }
    }
}

/// Quantized anew where the adapter acts, and as the file has it elsewhere.
#[test]
fn merged_codes_tell_what_is_lost() {
    let file = tiny("llama-plain");
    let folder = fixtures().join("models/lora/llama-plain/r8-patterns");
    let named = [adapter(&file, &folder)];
    let merged = LoraExport::Merged(named[0].name.clone());
    let options = ExportOptions { lora: merged, ..options(Form::Genai, Precision::Int4) };
    let (_dir, report) = exported_and_verified(&file, &named, &options, false);
    assert!(report.passed, "{}", told(&report));
    let lost = report.weights.iter().find(|weights| weights.from.ends_with(" merged")).unwrap();
    assert_eq!((lost.to.as_str(), lost.exact), ("int8 by 32", false));
    assert!(lost.relative_error > 1e-4 && lost.relative_error < 0.02, "{lost:?}");
    let sites = load_peft(&folder, &read_spec(&file).unwrap()).unwrap().weights.sites.len();
    assert_eq!(lost.matrices, sites);
}
