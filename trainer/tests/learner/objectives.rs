//! Loss and gradients of every objective on a tiny model against transformers and PEFT
//! (`tests/fixtures/training/scripts/objectives.py`).

use std::{path::PathBuf, sync::Arc};

use pleach_adapters::load_peft;
use pleach_engine::adapter_weights::AdapterWeights;
use pleach_trainer::{
    Head, Learner, LearnerSettings, Objective, OptimizerSettings, Sample, Targeted,
    objective::{Clip, Distillation, Dpo, DpoLoss, PolicyGradient},
};
use serde_json::Value;

use crate::{options, reference::tensors, tiny};

/// Loss and norm of gradients, relative (0.000002 seen).
const TOLERANCE: f64 = 2e-5;
/// A tensor of gradients: norm of the difference by norm (0.00002 seen).
const GRADIENT_TOLERANCE: f64 = 1e-4;

fn folder() -> PathBuf {
    pleach_test_setup::fixtures().join("models/lora/llama-plain/r3-all-linear")
}

fn golden(name: &str) -> Value {
    let path = pleach_test_setup::fixtures().join("training/objectives.json");
    let all: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    all[name].clone()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn ids(value: &Value) -> Box<[u32]> {
    let id = |id: &Value| u32::try_from(id.as_u64().unwrap()).unwrap();
    value["ids"].as_array().unwrap().iter().map(id).collect()
}

#[expect(clippy::cast_possible_truncation, reason = "numbers that are exact in f32")]
fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|value| number(value) as f32).collect()
}

fn targeted(value: &Value) -> Targeted {
    let (ids, first) = (ids(value), value["first"].as_u64().unwrap());
    Targeted::new(&ids, (0..ids.len() as u64).map(|i| i >= first))
}

fn samples(row: &Value, key: &str, sample: impl Fn(&Value) -> Sample) -> Vec<Sample> {
    row[key].as_array().unwrap().iter().map(sample).collect()
}

fn pairs(row: &Value) -> Vec<Sample> {
    samples(row, "pairs", |pair| Sample::Preference {
        preferred: targeted(&pair["chosen"]),
        rejected: targeted(&pair["rejected"]),
    })
}

/// The adapter, and with `B` times −1/2 its parent.
fn policy() -> (AdapterWeights, Arc<AdapterWeights>) {
    let policy = load_peft(&folder(), tiny().spec()).unwrap().weights;
    let mut parent = policy.clone();
    parent.sites.iter_mut().flat_map(|site| &mut site.b).for_each(|value| *value *= -0.5);
    (policy, Arc::new(parent))
}

fn check(name: &str, objective: Objective, with_parent: bool, batch: Vec<Sample>) {
    let row = golden(name);
    let (policy, parent) = policy();
    let settings = LearnerSettings {
        objective,
        optimizer: OptimizerSettings::default(),
        dropout: 0.0,
        seed: 1,
    };
    let reference = with_parent.then_some(parent);
    let mut learner = Learner::new(&tiny(), policy, reference, settings, options(64)).unwrap();
    if objective.n_outputs().is_some() {
        let head = Head::new(tiny().spec().hidden, floats(&row["head"])).unwrap();
        learner.set_head(head).unwrap();
    }
    let report = learner.step(batch).unwrap();
    for (what, found, expected) in [
        ("loss", report.loss, number(&row["loss"])),
        ("norm", report.grad_norm, number(&row["grad_norm"])),
    ] {
        assert!(
            (found - expected).abs() <= TOLERANCE * expected.abs(),
            "{name}, {what}: {found}, expected {expected}"
        );
    }
    let golden = tensors("objectives");
    let distance = |key: &str, found: &[f32]| {
        let expected = &golden[&format!("{name}.{key}")];
        assert_eq!(found.len(), expected.len(), "{name}.{key}");
        let norm = |values: &mut dyn Iterator<Item = f32>| {
            values.map(|value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt()
        };
        let off = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
        let share = off / norm(&mut expected.iter().copied());
        assert!(share <= GRADIENT_TOLERANCE, "{name}.{key}: off by {share}");
    };
    for site in &learner.gradients().sites {
        let path = site.site.path();
        distance(&format!("{path}.lora_A"), &site.a);
        distance(&format!("{path}.lora_B"), &site.b);
    }
    if learner.head().is_some() {
        distance("score", learner.head_gradient());
    }
}

#[test]
fn preferences() {
    let row = golden("ipo");
    let ipo = Dpo { beta: number(&row["beta"]), loss: DpoLoss::Ipo, label_smoothing: 0.0 };
    check("ipo", Objective::Dpo(ipo), false, pairs(&row));
    let row = golden("dpo_smooth");
    let label_smoothing = number(&row["label_smoothing"]);
    let dpo = Dpo { beta: number(&row["beta"]), loss: DpoLoss::Sigmoid, label_smoothing };
    check("dpo_smooth", Objective::Dpo(dpo), true, pairs(&row));
}

#[test]
fn distillation_from_the_base_and_from_a_parent() {
    for (name, with_parent) in [("distill_base", false), ("distill_parent", true)] {
        let row = golden(name);
        let distillation = Distillation {
            top_k: usize::try_from(row["top_k"].as_u64().unwrap()).unwrap(),
            kl_weight: number(&row["kl_weight"]),
            nll_weight: number(&row["nll_weight"]),
        };
        let batch = samples(&row, "examples", |example| Sample::Supervised(targeted(example)));
        check(name, Objective::Distillation(distillation), with_parent, batch);
    }
}

#[test]
fn policy_gradients() {
    for name in ["policy_gradient", "policy_gradient_clip"] {
        let row = golden(name);
        let clip = row["clip"].as_array();
        let clip = clip.map(|clip| Clip { low: number(&clip[0]), high: number(&clip[1]) });
        let objective = PolicyGradient { clip, kl_weight: number(&row["kl_weight"]) };
        let batch = samples(&row, "rollouts", |rollout| Sample::Rollout {
            answer: targeted(rollout),
            sampled_logps: floats(&rollout["sampled_logps"]).into(),
            advantage: floats(&serde_json::json!([rollout["advantage"]]))[0],
        });
        check(name, Objective::PolicyGradient(objective), false, batch);
    }
}

#[test]
fn heads() {
    for name in ["classification", "classification_weighted"] {
        let row = golden(name);
        let weights = row["class_weights"].as_array().map(|_| floats(&row["class_weights"]));
        let batch = samples(&row, "examples", |example| {
            let label = usize::try_from(example["label"].as_u64().unwrap()).unwrap();
            let weight = weights.as_ref().map_or(1.0, |weights| weights[label]);
            Sample::Labelled { tokens: ids(example), label, weight }
        });
        check(name, Objective::Classification { n_labels: 3 }, false, batch);
    }
    let row = golden("regression");
    let batch = samples(&row, "examples", |example| Sample::Scored {
        tokens: ids(example),
        score: floats(&serde_json::json!([example["score"]]))[0],
    });
    check("regression", Objective::Regression, false, batch);
    let row = golden("reward");
    check("reward", Objective::Reward, false, pairs(&row));
}
