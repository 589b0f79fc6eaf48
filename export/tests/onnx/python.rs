//! The real clients: `onnx.checker`, `onnxruntime` and `onnxruntime-genai` in Python. `tests/python/onnx_client.py` asserts.

use std::{collections::BTreeSet, fmt::Write as _, path::Path};

use pleach_engine::site::TargetModule;
use pleach_export::{ExportOptions, Form, LoraExport, Precision, export_onnx};
use serde_json::{Value, json};

use crate::support::{adapter, default_model, fixtures, options, reference_adapters, tiny};

/// So many tokens of the reference's greedy answers are asked for.
const GREEDY_TOKENS: usize = 24;

fn run(words: &[&str], folder: &Path, input: &Value) {
    let script = pleach_test_setup::workspace().join("tests/python/onnx_client.py");
    let expected = folder.join("expected.json");
    std::fs::write(&expected, input.to_string()).unwrap();
    let mut python = pleach_test_setup::onnx().python();
    let output = python.arg(script).args(words).arg(folder).arg(&expected).output().unwrap();
    let mut said = String::new();
    write!(said, "{}", String::from_utf8_lossy(&output.stdout)).unwrap();
    write!(said, "{}", String::from_utf8_lossy(&output.stderr)).unwrap();
    assert!(output.status.success() && said.contains("all checks passed"), "{words:?}: {said}");
}

fn tensor(file: &safetensors::SafeTensors<'_>, name: &str) -> Vec<[u8; 4]> {
    let tensor = file.tensor(name).unwrap();
    let (values, rest) = tensor.data().as_chunks::<4>();
    assert!(rest.is_empty());
    values.to_vec()
}

/// The reference's greedy answers, which are those of `pleach --activations f32` (`adapters/tests/adapters_on_model.rs`).
fn greedy() -> Vec<Value> {
    let bytes = std::fs::read(fixtures().join("reference/adapter_logits.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ids =
        |name: &str| tensor(&file, name).into_iter().map(i32::from_le_bytes).collect::<Vec<_>>();
    let mut rows = Vec::new();
    for prompt in ["question", "order", "plain", "two_turns"] {
        for name in ["base", "pirate", "extract"] {
            let row = format!("{prompt}.{name}");
            let margins: Vec<f32> = tensor(&file, &format!("{row}.greedy_margin"))
                .into_iter()
                .map(f32::from_le_bytes)
                .collect();
            rows.push(json!({
                "adapter": (name != "base").then_some(name),
                "ids": ids(&format!("{row}.ids")),
                "greedy": &ids(&format!("{row}.greedy_ids"))[..GREEDY_TOKENS],
                "margin": &margins[..GREEDY_TOKENS],
            }));
        }
    }
    rows
}

fn lines(path: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(fixtures().join(path)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Opens the folder, gives the reference's tokens under the base and both adapters, and the model's own tokenization and
/// chats.
#[test]
fn onnxruntime_genai_gives_the_same_greedy_tokens() {
    let file = default_model();
    let dir = tempfile::tempdir().unwrap();
    let options =
        ExportOptions { lora: LoraExport::Inputs, ..options(Form::Genai, Precision::F32) };
    export_onnx(&file, &reference_adapters(&file), &options, &dir.path().join("out")).unwrap();
    let tokenization: Vec<Value> = lines("text/tokenization.jsonl")
        .into_iter()
        .filter(|row| row["parse_special"] == true)
        .collect();
    let input = json!({ "rows": greedy(), "tokenization": tokenization, "chats": lines("text/chat.jsonl") });
    run(&["genai"], dir.path(), &input);
}

#[test]
fn the_checker_passes_the_standard_form() {
    for name in ["llama-plain", "qwen2", "qwen3", "llama-rope-yarn", "format-q4_k"] {
        let file = tiny(name);
        for precision in [Precision::F32, Precision::Int4, Precision::Int8] {
            let dir = tempfile::tempdir().unwrap();
            let mut options = options(Form::Standard, precision);
            let mut adapters = Vec::new();
            if name == "llama-plain" {
                adapters
                    .push(adapter(&file, &fixtures().join("models/lora/llama-plain/r8-patterns")));
                options.lora = LoraExport::Inputs;
            }
            export_onnx(&file, &adapters, &options, &dir.path().join("out")).unwrap();
            run(&["checker"], dir.path(), &json!({}));
        }
    }
}

#[test]
fn the_checker_passes_the_default_model_with_its_adapters() {
    let file = default_model();
    let dir = tempfile::tempdir().unwrap();
    let options = ExportOptions {
        accuracy_level: 4,
        f32_activations: BTreeSet::from([TargetModule::VProj]),
        lora: LoraExport::Inputs,
        ..options(Form::Standard, Precision::Int4)
    };
    export_onnx(&file, &reference_adapters(&file), &options, &dir.path().join("out")).unwrap();
    run(&["checker"], dir.path(), &json!({}));
}

/// What `onnxruntime.AdapterFormat` reads is PEFT's matrices, turned around and scaled.
#[test]
fn onnxruntime_reads_the_adapter_files() {
    let file = tiny("llama-plain");
    let dir = tempfile::tempdir().unwrap();
    let folder = fixtures().join("models/lora/llama-plain/r8-patterns");
    let named = adapter(&file, &folder);
    let factors: Vec<Value> = named
        .adapter
        .weights
        .sites
        .iter()
        .map(|site| {
            json!({
                "path": site.site.path(), "rank": site.rank, "scale": site.lora_scale,
                "a": site.a, "b": site.b,
            })
        })
        .collect();
    let options =
        ExportOptions { lora: LoraExport::Inputs, ..options(Form::Genai, Precision::F32) };
    let name = named.name.clone();
    export_onnx(&file, &[named], &options, &dir.path().join("out")).unwrap();
    run(&["adapter", &name], dir.path(), &json!({ "factors": factors }));
}
