//! The default model against transformers (`tests/fixtures/reference`): logits, greedy tokens and perplexity with f32
//! activations within float32 tolerances, with int8 activations within those of int8.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a missing fixture ends the test")]

mod support;

use pleach_engine::{
    cpu::{CpuBackend, Isa},
    model::{Activations, Decoder},
};
use support::{Run, Tensors, default_model, fixtures, greedy, load, prefill_all, step};

const PROMPTS: [&str; 6] = ["short", "long", "code", "unicode", "chat_single", "chat_multi"];
const VOCAB: u32 = 49152;

fn model(activations: Activations) -> Decoder<CpuBackend> {
    load(&default_model(), Isa::detect(), 2, activations)
}

#[test]
fn f32_activations_equal_transformers() {
    let golden = Tensors::open(&fixtures().join("reference/base_logits.safetensors"));
    let mut runner = model(Activations::F32);
    for name in PROMPTS {
        let ids = golden.u32s(&format!("{name}.ids"));
        let mut run = Run::new(&ids, 0, None);
        let sampled = prefill_all(&mut runner, &mut run, 64, 20);
        let top_ids = golden.u32s(&format!("{name}.top20_ids"));
        let top_logits = golden.f32s(&format!("{name}.top20_logits"));
        let sums = golden.f32s(&format!("{name}.logsumexp"));
        for (position, sampled) in sampled.iter().enumerate() {
            for (i, &(token, logprob)) in sampled.top.iter().enumerate() {
                let at = position * 20 + i;
                let expected = top_logits[at] - sums[position];
                assert!(
                    (logprob - expected).abs() < 5e-4,
                    "{name} position {position} rank {i}: {logprob} {expected}"
                );
                let close = (i > 0 && top_logits[at - 1] - top_logits[at] < 1e-3)
                    || (i < 19 && top_logits[at] - top_logits[at + 1] < 1e-3)
                    || i == 19;
                assert!(
                    token == top_ids[at] || close,
                    "{name} position {position} rank {i}: token {token}"
                );
            }
        }
        let mut run = Run::new(&ids, 0, None);
        let n = ids.len();
        if n > 1 {
            step(&mut runner, &mut [&mut run], &[n.min(256) - 1], 0, false);
        }
        while run.done < n {
            let chunk = (n - run.done).min(256);
            let sampled = step(&mut runner, &mut [&mut run], &[chunk], VOCAB, false).remove(0);
            if run.done == n {
                let logits = golden.f32s(&format!("{name}.final_logits"));
                let sum = sums[n - 1];
                for (token, logprob) in sampled.top {
                    let expected = logits[token as usize] - sum;
                    assert!(
                        (logprob - expected).abs() < 5e-4,
                        "{name} final logit {token}: {logprob} {expected}"
                    );
                }
            }
        }
        let mut run = Run::new(&ids, 0, None);
        let tokens = greedy(&mut runner, &mut run, 100, 48);
        check_greedy(&golden, name, &tokens, 1e-3, 5e-4);
    }
}

/// Tokens and log-probabilities equal the reference up to the first step whose margin is below `margin`.
fn check_greedy(golden: &Tensors, name: &str, tokens: &[(u32, f32)], margin: f32, tolerance: f32) {
    let ids = golden.u32s(&format!("{name}.greedy_ids"));
    let logprobs = golden.f32s(&format!("{name}.greedy_logprobs"));
    let margins = golden.f32s(&format!("{name}.greedy_margin"));
    for (i, &(token, logprob)) in tokens.iter().enumerate() {
        if token != ids[i] {
            assert!(
                margins[i] < margin,
                "{name} token {i}: {token}, expected {} by {}",
                ids[i],
                margins[i]
            );
            return;
        }
        assert!(
            (logprob - logprobs[i]).abs() < tolerance,
            "{name} token {i}: {logprob} {}",
            logprobs[i]
        );
    }
}

#[test]
fn int8_activations_stay_within_int8_tolerances() {
    let golden = Tensors::open(&fixtures().join("reference/base_logits.safetensors"));
    let mut runner = model(Activations::Int8);
    let (mut kl, mut positions, mut same) = (0f64, 0usize, 0usize);
    for name in PROMPTS {
        let ids = golden.u32s(&format!("{name}.ids"));
        let mut run = Run::new(&ids, 0, None);
        let sampled = prefill_all(&mut runner, &mut run, 128, VOCAB);
        let top_ids = golden.u32s(&format!("{name}.top20_ids"));
        let top_logits = golden.f32s(&format!("{name}.top20_logits"));
        let sums = golden.f32s(&format!("{name}.logsumexp"));
        for (position, sampled) in sampled.iter().enumerate() {
            let ours: std::collections::HashMap<u32, f32> = sampled.top.iter().copied().collect();
            // The divergence over the twenty likeliest tokens and the rest as one.
            let (mut p_rest, mut q_rest) = (1f64, 1f64);
            for i in 0..20 {
                let p = f64::from(top_logits[position * 20 + i] - sums[position]).exp();
                let q = f64::from(ours[&top_ids[position * 20 + i]]).exp();
                kl += p * (p / q).ln();
                p_rest -= p;
                q_rest -= q;
            }
            if p_rest > 1e-6 && q_rest > 1e-6 {
                kl += p_rest * (p_rest / q_rest).ln();
            }
            positions += 1;
            same += usize::from(sampled.token == top_ids[position * 20]);
        }
        let mut run = Run::new(&ids, 0, None);
        let tokens = greedy(&mut runner, &mut run, 128, 48);
        check_greedy(&golden, name, &tokens, 0.5, 0.4);
    }
    let (kl, same) = (kl / positions as f64, same as f64 / positions as f64);
    eprintln!("int8: mean KL {kl:.5}, same likeliest token {same:.4} of {positions}");
    assert!(kl < 0.005, "mean KL divergence {kl}");
    assert!(same > 0.95, "same likeliest token {same}");
}

/// Mean negative log-likelihood of `inputs/text.txt` in windows of 1024 tokens; the token ids come from the fixtures.
fn perplexity(activations: Activations, n_windows: usize) -> f64 {
    let ids: Vec<u32> =
        serde_json::from_slice(&std::fs::read(fixtures().join("reference/text_ids.json")).unwrap())
            .unwrap();
    let mut runner = model(activations);
    let (mut nll, mut n) = (0f64, 0usize);
    for window in ids.chunks_exact(1024).take(n_windows) {
        let mut run = Run::new(window, 0, None);
        let mut scores = Vec::new();
        while run.done < window.len() {
            scores.extend(support::score(&mut runner, &mut run, 256));
        }
        nll -= scores.iter().map(|&s| f64::from(s)).sum::<f64>();
        n += scores.len();
    }
    (nll / n as f64).exp()
}

#[test]
fn perplexity_equals_the_reference() {
    let expected: serde_json::Value = serde_json::from_slice(
        &std::fs::read(fixtures().join("reference/perplexity.json")).unwrap(),
    )
    .unwrap();
    let expected = expected["ppl_all"].as_f64().unwrap();
    let f32 = perplexity(Activations::F32, 8);
    let int8 = perplexity(Activations::Int8, 8);
    eprintln!("perplexity: reference {expected:.4}, f32 {f32:.4}, int8 {int8:.4}");
    assert!((f32 / expected - 1.0).abs() < 1e-4, "{f32} {expected}");
    assert!((int8 / expected - 1.0).abs() < 1e-2, "{int8} {expected}");
}
