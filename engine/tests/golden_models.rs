//! Tiny random models of every architecture, `RoPE` scaling and block format, against transformers' float32 logits on
//! the dequantized weights (`tests/fixtures/models`, made by its `make.py`), with f32 and int8 activations, on every
//! instruction set.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a missing fixture ends the test")]

mod support;

use pleach_engine::{cpu::Isa, model::Activations};
use support::{Run, Tensors, fixtures, greedy, isas, load, log_probs, prefill_all};

/// Largest difference of a log-probability with f32 activations.
const F32_TOLERANCE: f32 = 2e-4;
/// Mean Kullback–Leibler divergence with int8 activations; tiny random models amplify rounding more than real ones.
const INT8_KL: f64 = 0.01;

fn models() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(fixtures().join("models"))
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            (path.extension()? == "gguf")
                .then(|| path.file_stem().unwrap().to_string_lossy().into_owned())
        })
        .collect();
    names.sort();
    assert!(names.len() >= 26, "golden models are missing: {names:?}");
    names
}

#[expect(clippy::cast_possible_truncation, reason = "a vocabulary fits u32")]
fn check(name: &str, isa: Isa, activations: Activations) {
    let path = fixtures().join("models").join(format!("{name}.gguf"));
    let golden = Tensors::open(&path.with_extension("safetensors"));
    let mut runner = load(&path, isa, 2, activations);
    for (index, prompt) in ["short", "long"].into_iter().enumerate() {
        let ids = golden.u32s(&format!("{prompt}.ids"));
        let vocab = golden.shape(&format!("{prompt}.logits"))[1];
        let expected = log_probs(&golden.f32s(&format!("{prompt}.logits")), vocab);
        let mut run = Run::new(&ids, 200 * index as u32, None);
        let sampled = prefill_all(&mut runner, &mut run, 7, vocab as u32);
        assert_eq!(sampled.len(), expected.len());
        let (mut worst, mut kl) = (0f32, 0f64);
        for (sampled, expected) in sampled.iter().zip(&expected) {
            assert_eq!(sampled.top.len(), vocab);
            for &(token, logprob) in &sampled.top {
                let reference = expected[token as usize];
                worst = worst.max((logprob - reference as f32).abs());
                kl += reference.exp() * (reference - f64::from(logprob));
            }
        }
        kl /= expected.len() as f64;
        match activations {
            Activations::F32 => {
                assert!(worst <= F32_TOLERANCE, "{name} {isa} {prompt}: off by {worst}");
                let mut run = Run::new(&ids, 400, None);
                let tokens: Vec<u32> =
                    greedy(&mut runner, &mut run, 64, 16).into_iter().map(|t| t.0).collect();
                assert_eq!(
                    tokens,
                    golden.u32s(&format!("{prompt}.greedy_ids")),
                    "{name} {isa} {prompt}"
                );
            }
            Activations::Int8 => assert!(kl <= INT8_KL, "{name} {isa} {prompt}: KL {kl}"),
        }
    }
}

#[test]
fn f32_activations_equal_transformers() {
    for name in models() {
        for isa in isas() {
            check(&name, isa, Activations::F32);
        }
    }
}

#[test]
fn int8_activations_stay_close() {
    for name in models() {
        for isa in isas() {
            check(&name, isa, Activations::Int8);
        }
    }
}
