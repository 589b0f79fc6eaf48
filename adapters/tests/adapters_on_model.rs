//! Adapters on real models against PEFT's own outputs (`tests/fixtures`, made by the scripts there): each alone, and all of
//! them in one batch with base rows between.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

use std::{collections::BTreeMap, path::Path};

use pleach_adapters::{GenerationDigest, load_peft};
use pleach_engine::{
    adapter_weights::AdapterWeights,
    backend::StepRunner,
    cpu::{CpuBackend, Isa},
    model::{Activations, Decoder},
    sampler::SampledToken,
    site::Site,
    step_batch::AdapterSlot,
};
use serde_json::Value;
use support::{
    Run, Tensors, default_model, fixtures, isas, load, log_probs,
    mixed::{greedy, score},
    random::{Random, case_seed},
};

#[path = "../../engine/tests/support/mod.rs"]
mod support;

/// Largest difference of a log-probability on tiny models with f32 activations.
const TINY_TOLERANCE: f32 = 2e-4;
/// Mean Kullback–Leibler divergence on tiny models with int8 activations; 0.0011 seen.
const TINY_INT8_KL: f64 = 0.005;
/// Largest difference of a log-probability on the default model with f32 activations.
const TOLERANCE: f32 = 5e-4;
/// Greedy margin below which float32 itself may choose another token.
const MARGIN: f32 = 1e-3;
/// The same for int8 activations, which move log-probabilities of likely tokens by up to 0.35.
const INT8_MARGIN: f32 = 0.5;
/// Largest difference of a greedy token's log-probability with int8 activations; 0.41 seen under an adapter.
const INT8_TOLERANCE: f32 = 0.5;
/// Mean divergence of the next-token distribution of the default model with int8 activations.
const INT8_KL: f64 = 0.005;

fn json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join(path)).unwrap()).unwrap()
}

/// Installs a PEFT folder.
fn install(runner: &mut Decoder<CpuBackend>, folder: &Path) -> (AdapterSlot, AdapterWeights) {
    let loaded = load_peft(folder, runner.spec())
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    (runner.install_weights(&loaded.weights).unwrap(), loaded.weights)
}

/// One row of a golden table: an adapter (or none) on a prompt.
struct Golden {
    /// Prefix of its tensors.
    name: String,
    ids: Vec<u32>,
    slot: Option<AdapterSlot>,
}

/// Runs of all rows in blocks of their own, 16 each.
fn runs(goldens: &[&Golden]) -> Vec<Run> {
    let run = |(golden, index): (&&Golden, u32)| {
        Run::in_blocks(&golden.ids, 16 * index..16 * (index + 1), golden.slot)
    };
    goldens.iter().zip(0..).map(run).collect()
}

/// Folders of adapters for tiny models, and the models that they are for: plain `LoRA`, and all that is more.
const TINY: [(&str, &str); 4] = [
    ("lora", "llama-plain"),
    ("lora", "qwen2-untied"),
    ("kinds", "llama-plain"),
    ("kinds", "qwen2"),
];

/// A tiny model with all of its adapters, and the rows of both prompts with each adapter and with none.
fn tiny(
    folder: &str,
    base: &str,
    isa: Isa,
    activations: Activations,
) -> (Decoder<CpuBackend>, Vec<Golden>) {
    let models = fixtures().join("models");
    let mut runner = load(&models.join(format!("{base}.gguf")), isa, 2, activations);
    let of_base = Tensors::open(&models.join(format!("{base}.safetensors")));
    let mut goldens = Vec::new();
    let mut add = |name: &str, slot: Option<AdapterSlot>| {
        for prompt in ["short", "long"] {
            let ids = of_base.u32s(&format!("{prompt}.ids"));
            goldens.push(Golden { name: format!("{name}{prompt}"), ids, slot });
        }
    };
    add("", None);
    for expected in json(&format!("models/{folder}/expected.json"))
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["base"] == base)
    {
        let name = expected["name"].as_str().unwrap();
        let (slot, weights) = install(&mut runner, &models.join(folder).join(base).join(name));
        if let Some(digest) = expected["digest"].as_str() {
            assert_eq!(GenerationDigest::of(&weights).to_string(), digest, "{base}/{name}");
        }
        check_sites(&format!("{base}/{name}"), &weights, &expected["sites"]);
        add(&format!("{name}."), Some(slot));
    }
    (runner, goldens)
}

/// Rank and scale that PEFT itself used at every site.
fn check_sites(what: &str, weights: &AdapterWeights, expected: &Value) {
    let path = |site: Site| site.path().trim_start_matches("model.").to_owned();
    let found: BTreeMap<String, (u64, f32)> = weights
        .sites
        .iter()
        .map(|site| (path(site.site), (site.rank as u64, site.lora_scale)))
        .collect();
    let expected = expected.as_object().unwrap();
    assert_eq!(found.len(), expected.len(), "{what}: sites");
    for (site, expected) in expected {
        let (rank, scale) = found[site];
        assert_eq!(rank, expected["rank"].as_u64().unwrap(), "{what} {site}");
        let peft = expected["scale"].as_f64().unwrap();
        assert!(
            (f64::from(scale) - peft).abs() <= 1e-6 * peft,
            "{what} {site}: {scale}, PEFT {peft}"
        );
    }
}

/// The row's tensors: of the base model's file or of the adapters'.
fn tiny_tensors(folder: &str, base: &str) -> impl Fn(&Golden, &str) -> (Tensors, String) {
    move |golden, tensor| {
        let folder = if golden.slot.is_some() { folder } else { "" };
        let file = fixtures().join("models").join(folder).join(format!("{base}.safetensors"));
        let file = Tensors::open(&file);
        (file, format!("{}.{tensor}", golden.name))
    }
}

fn check_tiny(
    what: &str,
    (folder, base): (&str, &str),
    golden: &Golden,
    activations: Activations,
    found: &[SampledToken],
) -> f64 {
    let (file, name) = tiny_tensors(folder, base)(golden, "logits");
    let expected = log_probs(&file.f32s(&name), file.shape(&name)[1]);
    assert_eq!(found.len(), expected.len(), "{what}");
    let mut kl = 0.0;
    for (position, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found.top.len(), expected.len(), "{what}");
        for &(token, logprob) in &found.top {
            let reference = expected[token as usize];
            let error = (f64::from(logprob) - reference).abs();
            kl += reference.exp() * (reference - f64::from(logprob));
            let exact = activations == Activations::F32;
            assert!(
                !exact || error <= f64::from(TINY_TOLERANCE),
                "{what} position {position} token {token}: off by {error}"
            );
        }
    }
    kl / found.len() as f64
}

#[test]
fn f32_equals_peft_on_tiny_models() {
    let mut random = Random::new(case_seed(0));
    for (folder, base) in TINY {
        for isa in isas() {
            let (mut runner, goldens) = tiny(folder, base, isa, Activations::F32);
            assert!(goldens.len() >= 2 * 5, "adapters of {base} are missing");
            let vocab = u32::try_from(runner.spec().vocab).unwrap();
            let all: Vec<&Golden> = goldens.iter().collect();
            // Each alone, then all in one batch.
            for group in all.chunks(1).chain([&all[..]]) {
                let mut prompts = runs(group);
                let scores = score(&mut runner, &mut prompts, &mut random, vocab);
                let tokens = greedy(&mut runner, &mut runs(group), 16);
                for ((golden, scores), tokens) in group.iter().zip(scores).zip(tokens) {
                    let what =
                        format!("{folder} {base} {isa} {:?}, one of {}", golden.name, group.len());
                    check_tiny(&what, (folder, base), golden, Activations::F32, &scores);
                    let (file, name) = tiny_tensors(folder, base)(golden, "greedy_ids");
                    let tokens: Vec<u32> = tokens.into_iter().map(|(token, _)| token).collect();
                    assert_eq!(tokens, file.u32s(&name), "{what}");
                }
            }
        }
    }
}

#[test]
fn int8_stays_near_peft_on_tiny_models() {
    let mut random = Random::new(case_seed(1));
    let mut worst = 0f64;
    for (folder, base) in TINY {
        for isa in isas() {
            let (mut runner, goldens) = tiny(folder, base, isa, Activations::Int8);
            let vocab = u32::try_from(runner.spec().vocab).unwrap();
            let all: Vec<&Golden> = goldens.iter().collect();
            let mut prompts = runs(&all);
            let scores = score(&mut runner, &mut prompts, &mut random, vocab);
            for (golden, scores) in all.iter().zip(scores) {
                let what = format!("{folder} {base} {isa} {:?}", golden.name);
                let kl = check_tiny(&what, (folder, base), golden, Activations::Int8, &scores);
                assert!(kl <= TINY_INT8_KL, "{what}: mean divergence {kl}");
                worst = worst.max(kl);
            }
        }
    }
    eprintln!("int8 on tiny models: mean divergence at most {worst:.5}");
}

const PROMPTS: [&str; 4] = ["question", "order", "plain", "two_turns"];

/// The default model with both reference adapters, and all rows of the golden table.
fn reference(activations: Activations) -> (Decoder<CpuBackend>, Tensors, Vec<Golden>) {
    let mut runner = load(&default_model(), Isa::detect(), 2, activations);
    let file = Tensors::open(&fixtures().join("reference/adapter_logits.safetensors"));
    let mut slots = vec![("base", None)];
    for name in ["pirate", "extract"] {
        slots.push((name, Some(install(&mut runner, &fixtures().join("adapters").join(name)).0)));
    }
    let mut goldens = Vec::new();
    for prompt in PROMPTS {
        for &(adapter, slot) in &slots {
            let name = format!("{prompt}.{adapter}");
            goldens.push(Golden { ids: file.u32s(&format!("{name}.ids")), name, slot });
        }
    }
    (runner, file, goldens)
}

/// The rows of the mixed batch that the reference computed.
fn mixed(goldens: &[Golden]) -> Vec<&Golden> {
    let expected = json("reference/adapter_expected.json");
    let names = expected["mixed_batch"]["rows"].as_array().unwrap();
    let find =
        |name: &Value| goldens.iter().find(|golden| golden.name == name.as_str().unwrap()).unwrap();
    let rows: Vec<&Golden> = names.iter().map(find).collect();
    assert!(
        rows.len() >= 6 && rows.iter().any(|row| row.slot.is_none()),
        "the mixed batch is missing"
    );
    rows
}

/// Tokens and log-probabilities equal the reference up to the first other token, which needs a margin below `margin`.
fn check_greedy(
    what: &str,
    file: &Tensors,
    golden: &Golden,
    tokens: &[(u32, f32)],
    margin: f32,
    tolerance: f32,
) {
    let ids = file.u32s(&format!("{}.greedy_ids", golden.name));
    let logprobs = file.f32s(&format!("{}.greedy_logprobs", golden.name));
    let margins = file.f32s(&format!("{}.greedy_margin", golden.name));
    assert_eq!(tokens.len(), ids.len(), "{what}");
    for (i, &(token, logprob)) in tokens.iter().enumerate() {
        if token != ids[i] {
            assert!(
                margins[i] < margin,
                "{what} token {i}: {token}, expected {} by {}",
                ids[i],
                margins[i]
            );
            return;
        }
        let expected = logprobs[i];
        assert!(
            (logprob - expected).abs() < tolerance,
            "{what} token {i}: log-probability {logprob}, expected {expected}"
        );
    }
}

/// The twenty largest logits of every prompt row, and all of the last one where the reference has them.
fn check_logits(what: &str, file: &Tensors, golden: &Golden, scores: &[SampledToken]) {
    let name = &golden.name;
    let top_ids = file.u32s(&format!("{name}.top20_ids"));
    let top_logits = file.f32s(&format!("{name}.top20_logits"));
    let sums = file.f32s(&format!("{name}.logsumexp"));
    assert_eq!(scores.len(), sums.len(), "{what}");
    for (position, (scores, sum)) in scores.iter().zip(&sums).enumerate() {
        let found: BTreeMap<u32, f32> = scores.top.iter().copied().collect();
        for at in 20 * position..20 * (position + 1) {
            let (found, expected) = (found[&top_ids[at]], top_logits[at] - sum);
            assert!(
                (found - expected).abs() < TOLERANCE,
                "{what} position {position}: {found}, expected {expected}"
            );
        }
        if position + 1 == sums.len() && golden.slot.is_some() {
            let logits = file.f32s(&format!("{name}.final_logits"));
            assert_eq!(found.len(), logits.len(), "{what}");
            for (token, found) in &found {
                let expected = logits[*token as usize] - sum;
                assert!(
                    (found - expected).abs() < TOLERANCE,
                    "{what} last row, token {token}: {found}, expected {expected}"
                );
            }
        }
    }
}

#[test]
fn f32_equals_peft_on_the_default_model() {
    let (mut runner, file, goldens) = reference(Activations::F32);
    let vocab = u32::try_from(runner.spec().vocab).unwrap();
    let mut random = Random::new(case_seed(2));
    let all: Vec<&Golden> = goldens.iter().collect();
    let mixed = mixed(&goldens);
    for group in all.chunks(1).chain([&mixed[..]]) {
        let mut prompts = runs(group);
        let scores = score(&mut runner, &mut prompts, &mut random, vocab);
        let tokens = greedy(&mut runner, &mut runs(group), 48);
        for ((golden, scores), tokens) in group.iter().zip(scores).zip(tokens) {
            let what = format!("f32 {}, one of {}", golden.name, group.len());
            check_logits(&what, &file, golden, &scores);
            check_greedy(&what, &file, golden, &tokens, MARGIN, TOLERANCE);
        }
    }
}

/// Divergence of the twenty likeliest tokens and the rest as one, summed over positions.
fn divergence(file: &Tensors, golden: &Golden, scores: &[SampledToken]) -> f64 {
    let top_ids = file.u32s(&format!("{}.top20_ids", golden.name));
    let top_logits = file.f32s(&format!("{}.top20_logits", golden.name));
    let sums = file.f32s(&format!("{}.logsumexp", golden.name));
    let mut kl = 0.0;
    for (position, (scores, sum)) in scores.iter().zip(&sums).enumerate() {
        let found: BTreeMap<u32, f32> = scores.top.iter().copied().collect();
        let (mut p_rest, mut q_rest) = (1f64, 1f64);
        for at in 20 * position..20 * (position + 1) {
            let p = f64::from(top_logits[at] - sum).exp();
            let q = f64::from(found[&top_ids[at]]).exp();
            kl += p * (p / q).ln();
            p_rest -= p;
            q_rest -= q;
        }
        if p_rest > 1e-6 && q_rest > 1e-6 {
            kl += p_rest * (p_rest / q_rest).ln();
        }
    }
    kl
}

#[test]
fn int8_stays_near_peft_on_the_default_model() {
    let (mut runner, file, goldens) = reference(Activations::Int8);
    let vocab = u32::try_from(runner.spec().vocab).unwrap();
    let mut random = Random::new(case_seed(3));
    let (mut kl, mut positions) = (0.0, 0);
    let all: Vec<&Golden> = goldens.iter().collect();
    let mixed = mixed(&goldens);
    for group in all.chunks(4).chain([&mixed[..]]) {
        let mut prompts = runs(group);
        let scores = score(&mut runner, &mut prompts, &mut random, vocab);
        let tokens = greedy(&mut runner, &mut runs(group), 48);
        for ((golden, scores), tokens) in group.iter().zip(scores).zip(tokens) {
            let what = format!("int8 {}, one of {}", golden.name, group.len());
            kl += divergence(&file, golden, &scores);
            positions += scores.len();
            check_greedy(&what, &file, golden, &tokens, INT8_MARGIN, INT8_TOLERANCE);
        }
    }
    let kl = kl / f64::from(u32::try_from(positions).unwrap());
    eprintln!("int8 with adapters: mean divergence {kl:.5} over {positions} positions");
    assert!(kl < INT8_KL, "mean divergence {kl}");
}
