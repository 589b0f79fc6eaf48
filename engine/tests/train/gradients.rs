//! Gradients of whole models against finite differences.

use std::sync::Arc;

use pleach_engine::{
    cpu::Isa,
    train::{AdapterGradients, ProductPrecision, TrainOptions},
};

use crate::{
    adapter, base, kernels, learn, micro_batch, options, pass,
    plain::{Plain, PlainSite, plain_sites, widen},
    sequences,
    support::{
        isas,
        random::{Random, case_seed},
    },
    tiny,
};

/// Largest error of a gradient, as a share of its norm (0.00002 seen).
const TOLERANCE: f64 = 1e-3;
/// Largest error of a log-probability.
const LOGP_TOLERANCE: f64 = 1e-4;

const ARCHITECTURES: [&str; 12] = [
    "llama-plain",
    "llama-head-dim",
    "mistral",
    "llama-rope-linear",
    "llama-rope-llama3",
    "llama-rope-yarn",
    "llama-rope-yarn-explicit",
    "qwen2",
    "qwen2-untied",
    "qwen2-rope-yarn",
    "qwen3",
    "qwen3-untied",
];

const FORMATS: [&str; 14] = [
    "f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k",
    "q6_k", "mixed",
];

/// Of finite differences.
const STEP: f64 = 1e-4;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Every tensor of an adapter: the derivative along its own gradient, and along a random direction.
fn check(name: &str, isa: Isa, seed: usize, skip_percent: usize) {
    let mut random = Random::new(case_seed(seed));
    let (plain, base) = (Plain::open(&tiny(name)), base(name, isa));
    let spec = base.spec();
    let weights = Arc::new(adapter(&mut random, spec, skip_percent));
    // More than one query tile in one of them.
    let examples = sequences(&mut random, spec, &[7, 31]);
    let batch = micro_batch(&examples.iter().collect::<Vec<_>>());
    let loss_weights = random.units(batch.targets().len());
    let mut pass = pass(&base, &weights, options(isa, 2, usize::MAX));
    let zeros = AdapterGradients::zeros(&weights);
    let (logps, gradients) = learn(&mut pass, &weights, batch, &loss_weights, zeros, None);

    let targets = |sites: &[PlainSite]| -> Vec<f64> {
        let of_example = |example: &crate::Example| {
            let logps = plain.logps(sites, &example.tokens);
            let flags = example.is_target[1..].to_vec();
            logps.into_iter().zip(flags).filter(|(_, is_target)| *is_target).map(|(logp, _)| logp)
        };
        examples.iter().flat_map(of_example).collect()
    };
    let mut sites = plain_sites(&weights);
    for (index, (found, expected)) in logps.iter().zip(targets(&sites)).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        assert!(error <= LOGP_TOLERANCE, "{name} {isa}, target {index}: {found} {expected}");
    }
    let loss_weights = widen(&loss_weights);
    let mut derivative = |index: usize, is_a: bool, direction: &[f64]| {
        let mut loss_at = |by: f64| {
            let site = &mut sites[index];
            let values = if is_a { &mut site.a } else { &mut site.b };
            let saved = values.clone();
            values.iter_mut().zip(direction).for_each(|(value, d)| *value += by * d);
            let loss = dot(&targets(&sites), &loss_weights);
            let site = &mut sites[index];
            *(if is_a { &mut site.a } else { &mut site.b }) = saved;
            loss
        };
        (loss_at(STEP) - loss_at(-STEP)) / (2.0 * STEP)
    };
    for (index, site) in gradients.sites.iter().enumerate() {
        for (is_a, gradient) in [(true, widen(&site.a)), (false, widen(&site.b))] {
            let what = format!("{name} {isa} {} {}", site.site, if is_a { "A" } else { "B" });
            let norm = dot(&gradient, &gradient).sqrt();
            assert!(norm > 0.0, "{what}: no gradient");
            let along: Vec<f64> = gradient.iter().map(|value| value / norm).collect();
            let found = derivative(index, is_a, &along);
            assert!((found - norm).abs() <= TOLERANCE * norm, "{what}: {norm}, derivative {found}");
            // A random direction sees a random share of an error: 1 / sqrt(n) of it.
            let length = (gradient.len() as f64).sqrt();
            let aside: Vec<f64> = random
                .units(gradient.len())
                .iter()
                .map(|v| f64::from(v.signum()) / length)
                .collect();
            let (found, expected) = (derivative(index, is_a, &aside), dot(&gradient, &aside));
            assert!(
                (found - expected).abs() <= 4.0 * TOLERANCE * norm / length,
                "{what}, aside: {expected}, derivative {found}"
            );
        }
    }
}

#[test]
fn every_architecture_against_finite_differences() {
    for (index, name) in ARCHITECTURES.into_iter().enumerate() {
        check(name, Isa::detect(), 500 + index, 0);
    }
}

#[test]
fn every_block_format_and_missing_sites_against_finite_differences() {
    for (index, format) in FORMATS.into_iter().enumerate() {
        check(&format!("format-{format}"), Isa::detect(), 520 + index, 40);
    }
}

#[test]
fn every_instruction_set_against_finite_differences() {
    for isa in isas() {
        check("qwen3", isa, 540, 20);
        check("llama-plain", isa, 541, 20);
    }
}

/// Largest difference of a gradient with products of bf16, as a share of its norm: a rounding is of 2⁻⁹, and layers add
/// theirs up (0.035 seen).
const BF16_TOLERANCE: f64 = 0.05;
/// Of a log-probability.
const BF16_LOGP_TOLERANCE: f64 = 0.1;

#[test]
fn in_bf16_they_are_those_of_f32_but_for_rounding() {
    let mut largest = (0.0f64, 0.0f64);
    for (index, name) in ["llama-plain", "qwen2", "qwen3", "format-q4_k"].into_iter().enumerate() {
        let mut random = Random::new(case_seed(550 + index));
        let base = base(name, Isa::detect());
        let weights = Arc::new(adapter(&mut random, base.spec(), 10));
        let examples = sequences(&mut random, base.spec(), &[7, 31]);
        let batch = || micro_batch(&examples.iter().collect::<Vec<_>>());
        let loss_weights = random.units(batch().targets().len());
        let run = |isa, precision| {
            let options = TrainOptions { precision, ..options(isa, 2, usize::MAX) };
            let mut pass = pass(&base, &weights, options);
            let zeros = AdapterGradients::zeros(&weights);
            learn(&mut pass, &weights, batch(), &loss_weights, zeros, None)
        };
        let (exact_logps, exact) = run(Isa::detect(), ProductPrecision::F32);
        for (isa, precision) in kernels() {
            if precision == ProductPrecision::F32 {
                continue;
            }
            let (logps, gradients) = run(isa, precision);
            for (found, expected) in logps.iter().zip(&exact_logps) {
                let error = f64::from((found - expected).abs());
                largest.0 = largest.0.max(error);
                assert!(error <= BF16_LOGP_TOLERANCE, "{name} {isa}: {found}, f32 {expected}");
            }
            assert!(logps != exact_logps, "{name} {isa}: nothing was rounded");
            for (site, of_site) in gradients.sites.iter().zip(&exact.sites) {
                for (found, expected) in [(&site.a, &of_site.a), (&site.b, &of_site.b)] {
                    let difference: Vec<f64> =
                        found.iter().zip(expected).map(|(a, b)| f64::from(a - b)).collect();
                    let expected = widen(expected);
                    let share = dot(&difference, &difference) / dot(&expected, &expected);
                    largest.1 = largest.1.max(share.sqrt());
                    let what = format!("{name} {isa} {}", site.site);
                    assert!(share.sqrt() <= BF16_TOLERANCE, "{what}: off by {}", share.sqrt());
                }
            }
        }
    }
    eprintln!("off by at most {:.3} (log-probability), {:.4} (gradient)", largest.0, largest.1);
}
