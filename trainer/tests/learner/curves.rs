//! Training curves of the default model against transformers and PEFT, step by step, with the tolerances that the
//! reference states (`tests/fixtures/README.md`).

use pleach_engine::{
    adapter_weights::AdapterWeights,
    cpu::Isa,
    train::{ProductPrecision, TrainOptions},
};
use pleach_trainer::{
    Learner, LearnerSettings, Objective, OptimizerSettings, Sample,
    objective::{Dpo, Kto},
};
use serde_json::Value;

use crate::{
    base, options,
    reference::{curve, indices, initial_adapter, targeted, tensors},
};

/// Loss and norm of gradients at any step of SFT, relative.
const STEP_TOLERANCE: f64 = 1e-3;
/// A tensor of gradients at step 0, in float64: norm of the difference by norm.
const GRADIENT_TOLERANCE: f64 = 1e-4;
/// The same at step 5, after five updates in float32 (0.00005 seen).
const LATER_GRADIENT_TOLERANCE: f64 = 1e-3;
/// Norm of the difference of final updates by norm of the update.
const SFT_FINAL_TOLERANCE: f64 = 0.01;
/// The same where the reference is rounded to float16.
const FINAL_TOLERANCE: f64 = 0.02;

/// Steps to run: a few, or all with `PLEACH_TEST_CASES`.
fn steps(n: usize, all: usize) -> usize {
    let cases = std::env::var("PLEACH_TEST_CASES").ok().and_then(|text| text.parse().ok());
    (n * cases.unwrap_or(1)).min(all)
}

fn learner(objective: Objective) -> Learner {
    learner_in(objective, ProductPrecision::F32)
}

fn learner_in(objective: Objective, precision: ProductPrecision) -> Learner {
    let base = base(&pleach_test_setup::default_model());
    let adapter = initial_adapter(base.spec());
    let settings = LearnerSettings {
        objective,
        optimizer: OptimizerSettings::default(),
        dropout: 0.0,
        seed: 0,
    };
    let mut options = TrainOptions { precision, ..options(512) };
    if objective == Objective::Sft {
        // Enough for the logits too; the others compute them again.
        options.activation_bytes = 1 << 30;
    }
    Learner::new(&base, adapter, None, settings, options).unwrap()
}

fn close(what: &str, found: f64, expected: &Value, tolerance: f64) {
    let expected = expected.as_f64().unwrap();
    assert!((found - expected).abs() <= tolerance, "{what}: {found}, expected {expected}");
}

fn relative(what: &str, found: f64, expected: &Value, tolerance: f64) {
    close(what, found, expected, tolerance * expected.as_f64().unwrap().abs());
}

/// Norm of `found − expected` by norm of `expected − from`.
fn distance(found: &[f32], expected: &[f32], from: Option<&[f32]>) -> f64 {
    assert_eq!(found.len(), expected.len());
    let zeros = vec![0.0; expected.len()];
    let norm = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
    };
    norm(found, expected) / norm(expected, from.unwrap_or(&zeros))
}

fn check_gradients(learner: &Learner, step: usize) {
    let (gradients, golden) = (&learner.gradients().sites, tensors("tensors"));
    for site in gradients {
        let layer = site.site.layer;
        let compared: &[usize] = if step == 0 { &[0, 15, 29] } else { &[15] };
        if !compared.contains(&layer) {
            continue;
        }
        let path = site.site.path();
        let name = format!("step{step}.{}", path.trim_start_matches("model."));
        let check = |factor: &str, found: &[f32], tolerance: f64| {
            let distance = distance(found, &golden[&format!("{name}.{factor}")], None);
            assert!(distance <= tolerance, "{name}.{factor}: off by {distance}");
        };
        if step == 0 {
            check("lora_B", &site.b, GRADIENT_TOLERANCE);
            assert!(site.a.iter().all(|value| value.abs() < f32::MIN_POSITIVE), "B is zero");
        } else {
            check("lora_A", &site.a, LATER_GRADIENT_TOLERANCE);
            check("lora_B", &site.b, LATER_GRADIENT_TOLERANCE);
        }
    }
}

fn check_final(objective: &str, learner: &Learner, initial: &AdapterWeights, tolerance: f64) {
    let golden = tensors("tensors");
    for (site, initial) in learner.adapter().sites.iter().zip(&initial.sites) {
        if site.site.layer != 15 {
            continue;
        }
        let path = site.site.path();
        let name = format!("{objective}_final.{}", path.trim_start_matches("model."));
        for (factor, found, from) in
            [("lora_A", &site.a, &initial.a), ("lora_B", &site.b, &initial.b)]
        {
            let distance = distance(found, &golden[&format!("{name}.{factor}")], Some(from));
            assert!(distance <= tolerance, "{name}.{factor}: off by {distance}");
        }
    }
}

#[test]
fn sft_equals_transformers_and_peft() {
    let golden = curve("sft");
    let mut learner = learner(Objective::Sft);
    let initial = AdapterWeights::clone(learner.adapter());
    let rows = golden["curve"].as_array().unwrap();
    let n = steps(6, rows.len());
    for (step, row) in rows.iter().take(n).enumerate() {
        let examples = indices(&row["examples"]).into_iter();
        let batch = examples.map(|i| Sample::Supervised(targeted(&golden["tokens"][i]))).collect();
        let report = learner.step(batch).unwrap();
        assert_eq!(report.targets as u64, row["targets"].as_u64().unwrap());
        if step == 0 {
            close("loss at step 0", report.loss, &row["loss"], 2e-5);
        }
        relative(&format!("loss at step {step}"), report.loss, &row["loss"], STEP_TOLERANCE);
        let what = format!("gradient norm at step {step}");
        relative(&what, report.grad_norm, &row["grad_norm"], STEP_TOLERANCE);
        if step == 0 || step == 5 {
            check_gradients(&learner, step);
        }
    }
    if n == rows.len() {
        check_final("sft", &learner, &initial, SFT_FINAL_TOLERANCE);
    }
}

/// With products of bf16, in which factors are off by up to 2⁻⁹: loss, relative.
const BF16_LOSS_TOLERANCE: f64 = 0.01;
/// Norm of the gradient, relative.
const BF16_NORM_TOLERANCE: f64 = 0.05;
/// Norm of the difference of the final updates by norm of the update.
const BF16_FINAL_TOLERANCE: f64 = 0.2;

#[test]
fn sft_in_bf16_stays_near_the_reference() {
    if ProductPrecision::Bf16.check(Isa::detect()).is_err() {
        eprintln!("skipped: no AVX512-BF16 on this processor");
        return;
    }
    let golden = curve("sft");
    let mut learner = learner_in(Objective::Sft, ProductPrecision::Bf16);
    let initial = AdapterWeights::clone(learner.adapter());
    let rows = golden["curve"].as_array().unwrap();
    let n = steps(6, rows.len());
    for (step, row) in rows.iter().take(n).enumerate() {
        let examples = indices(&row["examples"]).into_iter();
        let batch = examples.map(|i| Sample::Supervised(targeted(&golden["tokens"][i]))).collect();
        let report = learner.step(batch).unwrap();
        let off = |found: f64, name: &str| found / row[name].as_f64().unwrap() - 1.0;
        let (loss, norm) = (off(report.loss, "loss"), off(report.grad_norm, "grad_norm"));
        eprintln!("step {step}: loss off by {loss:+.1e}, norm of the gradient by {norm:+.1e}");
        assert!(loss.abs() <= BF16_LOSS_TOLERANCE, "loss at step {step}: {loss:+.1e}");
        assert!(norm.abs() <= BF16_NORM_TOLERANCE, "gradient norm at step {step}: {norm:+.1e}");
    }
    if n == rows.len() {
        check_final("sft", &learner, &initial, BF16_FINAL_TOLERANCE);
    }
}

/// Tolerance of a DPO or KTO loss at a step.
fn loss_tolerance(step: usize) -> f64 {
    match step {
        0 => 1e-6,
        1..5 => 1e-5,
        _ => 1e-3,
    }
}

#[test]
fn dpo_equals_the_reference() {
    let golden = curve("dpo");
    let mut learner = learner(Objective::Dpo(Dpo::default()));
    let initial = AdapterWeights::clone(learner.adapter());
    let rows = golden["curve"].as_array().unwrap();
    let n = steps(3, rows.len());
    for (step, row) in rows.iter().take(n).enumerate() {
        let pair = |i: usize| Sample::Preference {
            preferred: targeted(&golden["tokens"][i]["chosen"]),
            rejected: targeted(&golden["tokens"][i]["rejected"]),
        };
        let batch = indices(&row["pairs"]).into_iter().map(pair).collect();
        let report = learner.step(batch).unwrap();
        close(&format!("loss at step {step}"), report.loss, &row["loss"], loss_tolerance(step));
        close(&format!("margin at step {step}"), report.reward, &row["reward_margin"], 1e-3);
        let what = format!("accuracy at step {step}");
        close(&what, report.sample_accuracy, &row["accuracy"], 1e-9);
        let what = format!("gradient norm at step {step}");
        relative(&what, report.grad_norm, &row["grad_norm"], STEP_TOLERANCE);
    }
    if n == rows.len() {
        check_final("dpo", &learner, &initial, FINAL_TOLERANCE);
    }
}

#[test]
fn kto_equals_the_reference() {
    let golden = curve("kto");
    let mut learner = learner(Objective::Kto(Kto::default()));
    let initial = AdapterWeights::clone(learner.adapter());
    let rows = golden["curve"].as_array().unwrap();
    let n = steps(3, rows.len());
    for (step, row) in rows.iter().take(n).enumerate() {
        let labels = row["labels"].as_array().unwrap().iter().map(|label| label.as_bool().unwrap());
        let rated = indices(&row["examples"]).into_iter().zip(labels);
        let batch = rated
            .map(|(i, desirable)| Sample::Rated {
                answer: targeted(&golden["tokens"][i]),
                desirable,
            })
            .collect();
        let report = learner.step(batch).unwrap();
        close(&format!("loss at step {step}"), report.loss, &row["loss"], loss_tolerance(step));
        close(&format!("divergence at step {step}"), report.divergence, &row["kl"], 2e-3);
        let what = format!("gradient norm at step {step}");
        relative(&what, report.grad_norm, &row["grad_norm"], STEP_TOLERANCE);
    }
    if n == rows.len() {
        check_final("kto", &learner, &initial, FINAL_TOLERANCE);
    }
}
