//! What `pleach train` writes is an adapter for PEFT: it opened the folders of `tests/fixtures/trained`, and what it computed
//! with them is there. Here the program trains them again, and pleach computes the same with them.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../engine/tests/support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use pleach_adapters::load_peft;
use pleach_engine::{
    adapter_weights::AdapterWeights,
    backend::StepRunner as _,
    cpu::Isa,
    gguf::GgufFile,
    model::{Activations, read_spec},
    site::{Site, TargetModule},
    spec::ModelSpec,
};
use pleach_trainer::{LoraSettings, Precision, save_peft};
use serde_json::Value;
use support::{Run, Tensors, default_model, fixtures, isas, load, prefill_all};

/// Largest difference of a log-probability from PEFT's, on the tiny and on the default model.
const TINY_TOLERANCE: f32 = 2e-4;
const TOLERANCE: f32 = 5e-4;
/// With other kernels than the fixture's, which add in another order: norm of the difference of updates by norm of the update,
/// both rounded to f16.
const UPDATE_TOLERANCE: f64 = 1e-3;
const SEED: u64 = 7;

/// A folder of `tests/fixtures/trained`, and how it is trained.
struct Folder {
    name: &'static str,
    model: PathBuf,
    tolerance: f32,
    /// Rows, method and settings.
    words: Vec<String>,
    /// Where the training begins.
    begins_at: AdapterWeights,
}

fn path(name: &str) -> String {
    fixtures().join(name).display().to_string()
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn spec(model: &Path) -> ModelSpec {
    read_spec(&GgufFile::open(model).unwrap()).unwrap()
}

fn tiny_model() -> PathBuf {
    fixtures().join("models/llama-plain.gguf")
}

/// Chats on all linears of the tiny model.
fn fresh() -> Folder {
    let model = tiny_model();
    let begins_at = LoraSettings::all_linear(2).fresh(&spec(&model), SEED).unwrap();
    let words = strings(&["--data", &path("trained/rows.jsonl"), "--rank", "2", "--epochs", "2"]);
    Folder { name: "fresh", model, tolerance: TINY_TOLERANCE, words, begins_at }
}

/// Preferences, from an adapter of several ranks and scales on.
fn onward() -> Folder {
    let model = tiny_model();
    let parent = path("models/lora/llama-plain/r8-rslora-patterns");
    let begins_at = load_peft(Path::new(&parent), &spec(&model)).unwrap().weights;
    let words = strings(&[
        "--data",
        &path("trained/pairs.jsonl"),
        "--adapter",
        &parent,
        "--epochs",
        "4",
        "--learning-rate-multiplier",
        "4",
    ]);
    Folder { name: "onward", model, tolerance: TINY_TOLERANCE, words, begins_at }
}

/// Chats on two linears of the default model's last layers: small enough to be kept. `parent` is a folder to make: an adapter
/// of these that changes nothing yet.
fn of_default_model(parent: &Path) -> Folder {
    const LAYERS: usize = 6;
    let model = default_model();
    let spec = spec(&model);
    let modules = vec![TargetModule::QProj, TargetModule::VProj];
    let others = (0..spec.n_layers - LAYERS)
        .flat_map(|layer| modules.iter().map(move |&module| (Site { layer, module }, 0)));
    let settings = LoraSettings {
        ranks: others.collect(),
        modules: modules.clone(),
        ..LoraSettings::all_linear(1)
    };
    let begins_at = settings.fresh(&spec, SEED).unwrap();
    save_peft(parent, &begins_at, &settings, &spec, "", Precision::F32).unwrap();
    let words = strings(&[
        "--data",
        &path("training/style.jsonl"),
        "--adapter",
        &parent.display().to_string(),
        "--epochs",
        "1",
        "--learning-rate-multiplier",
        "8",
    ]);
    Folder { name: "default", model, tolerance: TOLERANCE, words, begins_at }
}

impl Folder {
    fn fixture(&self) -> PathBuf {
        fixtures().join("trained").join(self.name)
    }

    /// The folder that the program trains with these kernels.
    fn train(&self, isa: Isa, out: &Path) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
        command.arg("train").arg("--model").arg(&self.model).arg("--out").arg(out);
        command.args(["--isa", &isa.to_string(), "--seed", &SEED.to_string(), "-q"]);
        let output = command.args(&self.words).env_remove("PLEACH_LOG").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// That a folder has the fixture's sites, ranks, scales, and its weights but for the order of sums.
    fn check_near(&self, what: &str, out: &Path) {
        assert_eq!(config(out), config(&self.fixture()), "{what}");
        let spec = spec(&self.model);
        let weights = |folder: &Path| load_peft(folder, &spec).unwrap().weights;
        let (found, expected) = (weights(out), weights(&self.fixture()));
        let distance = distance(&found, &expected) / distance(&expected, &self.begins_at);
        assert!(distance <= UPDATE_TOLERANCE, "{what}: off by {distance} of the update");
    }

    /// That pleach computes with the fixture what PEFT does.
    fn check_logits(&self, isa: Isa, expected: &Value) {
        let what = format!("{} on {isa}", self.name);
        let golden = Tensors::open(&fixtures().join("trained/logits.safetensors"));
        let mut runner = load(&self.model, isa, 2, Activations::F32);
        let weights = load_peft(&self.fixture(), runner.spec()).unwrap().weights;
        check_sites(&what, &weights, &expected["sites"]);
        let slot = runner.install_weights(&weights).unwrap();
        let vocab = u32::try_from(runner.spec().vocab).unwrap();
        for prompt in expected["prompts"].as_array().unwrap() {
            let prompt = prompt.as_str().unwrap();
            let tensor = |tensor: &str| format!("{}.{prompt}.{tensor}", self.name);
            let mut run = Run::new(&golden.u32s(&tensor("ids")), 0, Some(slot));
            let found = prefill_all(&mut runner, &mut run, 64, vocab);
            let (ids, logits) =
                (golden.u32s(&tensor("top20_ids")), golden.f32s(&tensor("top20_logits")));
            let sums = golden.f32s(&tensor("logsumexp"));
            assert_eq!((found.len(), ids.len()), (sums.len(), 20 * sums.len()), "{what} {prompt}");
            for (position, (found, sum)) in found.iter().zip(&sums).enumerate() {
                let found: BTreeMap<u32, f32> = found.top.iter().copied().collect();
                for at in 20 * position..20 * (position + 1) {
                    let (found, expected) = (found[&ids[at]], logits[at] - sum);
                    assert!(
                        (found - expected).abs() < self.tolerance,
                        "{what} {prompt} position {position} token {}: {found}, PEFT {expected}",
                        ids[at]
                    );
                }
            }
        }
    }
}

/// The settings, but for the base's name, which is that of its file.
fn config(folder: &Path) -> Value {
    let text = std::fs::read(folder.join("adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    assert!(config.as_object_mut().unwrap().remove("base_model_name_or_path").is_some());
    config
}

/// Norm of the difference of all factors.
fn distance(a: &AdapterWeights, b: &AdapterWeights) -> f64 {
    let sites = |weights: &AdapterWeights| -> Vec<(Site, usize, u32)> {
        weights.sites.iter().map(|s| (s.site, s.rank, s.lora_scale.to_bits())).collect()
    };
    assert_eq!(sites(a), sites(b));
    let values = a.arrays().flatten().zip(b.arrays().flatten());
    values.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

/// Rank and scale that PEFT itself used at every site.
fn check_sites(what: &str, weights: &AdapterWeights, expected: &Value) {
    let expected = expected.as_object().unwrap();
    assert_eq!(weights.sites.len(), expected.len(), "{what}: sites");
    for site in &weights.sites {
        let path = site.site.path();
        let of_peft = &expected[path.trim_start_matches("model.")];
        assert_eq!(of_peft["rank"], site.rank, "{what} {path}");
        let (found, scale) = (f64::from(site.lora_scale), of_peft["scale"].as_f64().unwrap());
        assert!((found - scale).abs() <= 1e-6 * scale, "{what} {path}: {found}, PEFT {scale}");
    }
}

/// What PEFT said of a folder.
fn expected(name: &str) -> Value {
    let text = std::fs::read(fixtures().join("trained/expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&text).unwrap();
    let rows = expected["folders"].as_array().unwrap();
    rows.iter().find(|row| row["name"] == name).unwrap().clone()
}

/// An empty folder for what a test trains, which is left there: to become a fixture, if it is meant to be another one.
fn scratch(test: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("trained").join(test);
    if path.exists() {
        std::fs::remove_dir_all(&path).unwrap();
    }
    std::fs::create_dir_all(&path).unwrap();
    path
}

#[test]
fn the_program_trains_the_folders_that_peft_opened() {
    let scratch = scratch("tiny");
    for folder in [fresh(), onward()] {
        for isa in isas() {
            let out = scratch.join(format!("{}-{isa}", folder.name));
            folder.train(isa, &out);
            if isa != Isa::Portable {
                folder.check_near(&format!("{} on {isa}", folder.name), &out);
                continue;
            }
            // The fixture's own kernels, which are everywhere.
            for file in ["adapter_config.json", "adapter_model.safetensors"] {
                let bytes = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
                let is_same = bytes(&out) == bytes(&folder.fixture());
                assert!(is_same, "{}: {file} has other bytes", out.display());
            }
        }
    }
}

#[test]
fn pleach_computes_with_them_what_peft_does() {
    for folder in [fresh(), onward()] {
        for isa in isas() {
            folder.check_logits(isa, &expected(folder.name));
        }
    }
}

#[test]
fn the_same_on_the_default_model() {
    let scratch = scratch("default");
    let folder = of_default_model(&scratch.join("parent"));
    let out = scratch.join("out");
    folder.train(Isa::detect(), &out);
    folder.check_near(folder.name, &out);
    folder.check_logits(Isa::detect(), &expected(folder.name));
}
