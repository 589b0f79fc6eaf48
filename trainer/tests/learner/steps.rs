//! Steps on a tiny model: equal bits in slices, in micro-batches of any size and after a restart; what is refused and what
//! is skipped; and that learning learns.

use pleach_engine::{adapter_weights::AdapterWeights, train::Progress};
use pleach_trainer::{
    Head, Learner, LearnerSettings, LoraSettings, Objective, Sample, StepReport, Targeted,
    TrainState,
    objective::{Distillation, Dpo, DpoLoss, Kto, PolicyGradient},
    save_peft_classifier,
};

use crate::{
    bf16_options, labelled, learner, learner_with, options, preferences, rated, rollouts, scored,
    sequence, settings, supervised, tiny,
};

const DISTILLATION: Distillation = Distillation { top_k: 5, kl_weight: 0.5, nll_weight: 1.0 };
const GRADIENT: PolicyGradient = PolicyGradient { clip: None, kl_weight: 0.1 };
const IPO: Dpo = Dpo { beta: 0.1, loss: DpoLoss::Ipo, label_smoothing: 0.0 };

fn objectives() -> Vec<(Objective, Vec<Sample>)> {
    vec![
        (Objective::Sft, supervised()),
        (Objective::Dpo(Dpo::default()), preferences()),
        (Objective::Dpo(IPO), preferences()),
        (Objective::Kto(Kto::default()), rated()),
        (Objective::Distillation(DISTILLATION), supervised()),
        (Objective::PolicyGradient(GRADIENT), rollouts()),
        (Objective::Classification { n_labels: 3 }, labelled()),
        (Objective::Regression, scored()),
        (Objective::Reward, preferences()),
    ]
}

fn bits(weights: &AdapterWeights) -> Vec<u32> {
    weights.arrays().flatten().map(|value| value.to_bits()).collect()
}

fn after(learner: &mut Learner, batch: &[Sample], steps: usize) -> (Vec<StepReport>, Vec<u32>) {
    let reports = (0..steps).map(|_| learner.step(batch.to_vec()).unwrap()).collect();
    (reports, bits(learner.adapter()))
}

#[test]
fn every_objective_falls_and_its_first_loss_is_known() {
    for (objective, batch) in objectives() {
        let mut learner = learner(settings(objective, 0.0), 128);
        let (reports, _) = after(&mut learner, &batch, 30);
        let (first, last) = (reports[0], reports[29]);
        // A fresh adapter is its own reference.
        let expected = match objective {
            Objective::Dpo(dpo) if dpo.loss == DpoLoss::Ipo => Some(25.0),
            Objective::Dpo(_) => Some(std::f64::consts::LN_2),
            Objective::Kto(_) => Some(0.5),
            Objective::Sft
            | Objective::Distillation(_)
            | Objective::PolicyGradient(_)
            | Objective::Classification { .. }
            | Objective::Regression
            | Objective::Reward => None,
        };
        if let Some(expected) = expected {
            assert!((first.loss - expected).abs() < 1e-9, "{objective:?}: {}", first.loss);
        }
        let judges = !matches!(
            objective,
            Objective::Sft
                | Objective::Distillation(_)
                | Objective::PolicyGradient(_)
                | Objective::Regression
        );
        assert!(!judges || last.sample_accuracy > 0.99, "{objective:?}: {last:?}");
        if let Objective::Distillation(_) | Objective::PolicyGradient(_) = objective {
            assert!(first.divergence.abs() < 1e-6 && last.divergence > 0.01, "{first:?} {last:?}");
        }
        let fallen = if let Objective::PolicyGradient(_) = objective {
            last.loss < first.loss - 0.5
        } else {
            last.loss < 0.6 * first.loss
        };
        assert!(fallen, "{objective:?}: {} to {}", first.loss, last.loss);
        assert!(first.update_norm > 0.0 && first.grad_norm > 0.0 && !first.skipped);
        assert_eq!((learner.optimizer_steps(), learner.skipped_steps()), (30, 0));
    }
}

#[test]
fn one_batch_is_learned_by_heart() {
    let mut learner = learner(settings(Objective::Sft, 0.0), 128);
    let (reports, _) = after(&mut learner, &supervised(), 150);
    assert!(reports[149].loss < 0.05, "loss {}", reports[149].loss);
    assert!(reports[149].token_accuracy > 0.99 && reports[0].token_accuracy < 0.5);
    let report = learner.evaluate(supervised()).unwrap();
    assert!(report.loss < 0.05 && report.grad_norm == 0.0);
    assert_eq!(learner.optimizer_steps(), 150);
}

#[test]
fn an_evaluation_is_the_loss_of_the_next_step() {
    for (objective, batch) in objectives() {
        let mut learner = learner(settings(objective, 0.0), 128);
        after(&mut learner, &batch, 2);
        let evaluated = learner.evaluate(batch.clone()).unwrap();
        let stepped = learner.step(batch).unwrap();
        assert_eq!(evaluated.loss.to_bits(), stepped.loss.to_bits(), "{objective:?}");
        assert_eq!(evaluated.reward.to_bits(), stepped.reward.to_bits(), "{objective:?}");
        assert_eq!(evaluated.targets, stepped.targets);
    }
}

#[test]
fn equal_bits_in_slices_and_in_micro_batches_of_any_size() {
    for (objective, batch) in objectives() {
        let expected = after(&mut learner(settings(objective, 0.1), 256), &batch, 3).1;
        // The longest pair has 26 rows.
        let small = after(&mut learner(settings(objective, 0.1), 30), &batch, 3).1;
        assert!(small == expected, "{objective:?}: micro-batches differ");
        let mut sliced = learner(settings(objective, 0.1), 256);
        let mut pauses = 0;
        for _ in 0..3 {
            sliced.begin(batch.clone()).unwrap();
            loop {
                let mut units = 0;
                let progress = sliced.advance(|_| {
                    units += 1;
                    units <= 7
                });
                if progress.unwrap() == Progress::Done {
                    break;
                }
                pauses += 1;
                assert!(sliced.finish().is_err(), "finished in the middle");
            }
            sliced.finish().unwrap();
        }
        assert!(bits(sliced.adapter()) == expected, "{objective:?}: slices differ");
        assert!(pauses > 30, "{objective:?}: {pauses} pauses");
    }
}

#[test]
fn in_bf16_equal_bits_in_micro_batches_of_any_size_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let spec = tiny().spec().clone();
    for (objective, batch) in objectives() {
        let new = |rows_max| learner_with(settings(objective, 0.1), bf16_options(rows_max));
        let (reports, expected) = after(&mut new(256), &batch, 4);
        assert!(reports[3].loss < reports[0].loss, "{objective:?}: {reports:?}");
        let small = after(&mut new(30), &batch, 4).1;
        assert!(small == expected, "{objective:?}: micro-batches differ");
        let exact = after(&mut learner(settings(objective, 0.1), 256), &batch, 4).1;
        assert!(exact != expected, "{objective:?}: nothing was rounded");
        let mut first = new(256);
        after(&mut first, &batch, 2);
        first.state("").save(&path, &spec).unwrap();
        let mut second = new(30);
        let n_outputs = second.head().map(Head::n_outputs);
        let state = TrainState::load(&path, &spec, second.adapter(), n_outputs).unwrap();
        second.restore(state);
        let gone_on = after(&mut second, &batch, 2).1;
        assert!(gone_on == expected, "{objective:?}: a restart differs");
    }
}

#[test]
fn a_restart_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let (objective, spec) = (Objective::Sft, tiny().spec().clone());
    let expected = after(&mut learner(settings(objective, 0.2), 128), &supervised(), 6).1;
    let mut first = learner(settings(objective, 0.2), 128);
    after(&mut first, &supervised(), 3);
    first.state("epoch 0, batch 3").save(&path, &spec).unwrap();
    // What is in the middle of a step is lost, and the step done again.
    first.begin(supervised()).unwrap();
    first.advance(|_| false).unwrap();
    drop(first);
    let mut second = learner(settings(objective, 0.2), 128);
    let state = TrainState::load(&path, &spec, second.adapter(), None).unwrap();
    assert_eq!((state.position.as_str(), state.optimizer_steps), ("epoch 0, batch 3", 3));
    second.restore(state);
    assert!(after(&mut second, &supervised(), 3).1 == expected, "a restart changes the run");
}

#[test]
fn a_head_is_in_the_state_and_in_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let spec = tiny().spec().clone();
    let settings = settings(Objective::Classification { n_labels: 3 }, 0.1);
    let bits = |learner: &Learner| {
        let head = learner.head().unwrap().weights().iter().map(|value| value.to_bits());
        [bits(learner.adapter()), head.collect()].concat()
    };
    let mut whole = learner(settings, 128);
    after(&mut whole, &labelled(), 6);
    let mut first = learner(settings, 128);
    after(&mut first, &labelled(), 3);
    first.state("").save(&path, &spec).unwrap();
    let mut second = learner(settings, 128);
    let state = TrainState::load(&path, &spec, second.adapter(), Some(3)).unwrap();
    second.restore(state);
    after(&mut second, &labelled(), 3);
    assert!(bits(&second) == bits(&whole), "a restart changes the run");
    let error = TrainState::load(&path, &spec, second.adapter(), Some(2)).unwrap_err();
    assert_eq!(error.to_string(), "the training state has no tensor score of shape [2, 64]");

    let (adapter, head) = (second.adapter(), second.head().unwrap());
    let lora = LoraSettings::all_linear(4);
    save_peft_classifier(folder.path(), adapter, head, &lora, &spec, "a-base").unwrap();
    assert_eq!(&Head::load(folder.path(), spec.hidden).unwrap(), head);
    let config = std::fs::read(folder.path().join("adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["task_type"], "SEQ_CLS");
    assert_eq!(config["modules_to_save"], serde_json::json!(["classifier", "score"]));
    let error = second.set_head(Head::fresh(2, spec.hidden, 0)).unwrap_err();
    assert_eq!(error.to_string(), "a head of 2 outputs, the objective classification has 3");
}

#[test]
fn scores_are_kept_by_sequence() {
    let mut learner = learner(settings(Objective::Dpo(Dpo::default()), 0.0), 128);
    let report = learner.evaluate(preferences()).unwrap();
    let scores = learner.scores();
    assert_eq!(scores.len(), 6);
    assert_eq!(scores.iter().map(|scores| scores.logps.len()).sum::<usize>(), report.targets);
    // A fresh adapter is its own reference.
    assert!(scores.iter().all(|scores| scores.logps == scores.reference));
}

#[test]
fn a_step_that_is_given_up_leaves_nothing() {
    let expected = after(&mut learner(settings(Objective::Sft, 0.0), 128), &supervised(), 2).1;
    // Given up after so many units: forward, backward, while weights move.
    for units in [3, 150, 400] {
        let mut learner = learner(settings(Objective::Sft, 0.0), 128);
        let mut other = supervised();
        other.truncate(2);
        learner.begin(other).unwrap();
        let mut done = 0;
        let progress = learner.advance(|_| {
            done += 1;
            done <= units
        });
        if progress.unwrap() == Progress::Paused && learner.optimizer_steps() == 0 {
            assert!(after(&mut learner, &supervised(), 2).1 == expected, "{units} units");
        }
    }
}

#[test]
fn a_step_that_is_not_finite_is_skipped_and_counted() {
    let base = tiny();
    let mut adapter = LoraSettings::all_linear(4).fresh(base.spec(), 7).unwrap();
    // Finite weights, and logits that are not.
    adapter.sites.iter_mut().for_each(|site| site.b.fill(1e30));
    let before = bits(&adapter);
    let settings = settings(Objective::Sft, 0.0);
    let mut learner = Learner::new(&base, adapter, None, settings, options(128)).unwrap();
    let report = learner.step(supervised()).unwrap();
    assert!(report.skipped && report.update_norm == 0.0);
    assert_eq!((learner.optimizer_steps(), learner.skipped_steps()), (0, 1));
    assert!(bits(learner.adapter()) == before, "weights moved");
}

#[test]
fn weights_of_targets_are_factors_of_their_loss() {
    let mut learner = learner(settings(Objective::Sft, 0.0), 128);
    let sequence = sequence(3, 5, 12, 4);
    let loss = |learner: &mut Learner, weights: &[(usize, f32)]| {
        let mut sequence = sequence.clone();
        sequence.weights.fill(0.0);
        for (index, weight) in weights {
            sequence.weights[*index] = *weight;
        }
        learner.evaluate(vec![Sample::Supervised(sequence)]).unwrap().loss
    };
    let (first, second) = (loss(&mut learner, &[(5, 1.0)]), loss(&mut learner, &[(9, 1.0)]));
    let both = loss(&mut learner, &[(5, 0.5), (9, 2.0)]);
    assert!((both - (0.5 * first + 2.0 * second) / 2.5).abs() < 1e-6);
}

#[test]
fn batches_that_cannot_be_learned_from_are_refused_by_sample() {
    let mut sft = learner(settings(Objective::Sft, 0.0), 30);
    let mut refused = |batch: Vec<Sample>| sft.begin(batch).unwrap_err().to_string();
    let mut mixed = supervised();
    mixed.extend(rated());
    assert_eq!(
        refused(mixed),
        "sample 4 is a rated answer, the objective sft learns from supervised sequences"
    );
    let mut long = supervised();
    long.push(Sample::Supervised(sequence(1, 1, 40, 4)));
    assert_eq!(refused(long), "sample 4 has 39 rows, a micro-batch has at most 30");
    let none = Sample::Supervised(Targeted::new(&[1, 2, 3], [false; 3]));
    assert_eq!(refused(vec![none]), "the batch has no targets");
    assert_eq!(refused(Vec::new()), "the batch has no targets");
    assert_eq!(
        sft.advance(|_| true).unwrap_err().to_string(),
        "advance needs a step that was begun"
    );
    let labels = Objective::Classification { n_labels: 2 };
    let error = learner(settings(labels, 0.0), 30).begin(labelled()).unwrap_err();
    assert_eq!(error.to_string(), "sample 1: its label is beyond the classes");
    // Mismatched rows count too: prompt of one, answer of the other.
    let mut kto = learner(settings(Objective::Kto(Kto::default()), 0.0), 30);
    let row = |first, length, prompt| Sample::Rated {
        answer: sequence(first, 1, length, prompt),
        desirable: true,
    };
    let error = kto.begin(vec![row(1, 28, 24), row(50, 28, 4)]).unwrap_err();
    assert_eq!(error.to_string(), "sample 0 has 47 rows, a micro-batch has at most 30");
}

#[test]
fn settings_out_of_range_are_named() {
    let base = tiny();
    let refused = |settings: LearnerSettings| {
        let adapter = LoraSettings::all_linear(4).fresh(base.spec(), 7).unwrap();
        Learner::new(&base, adapter, None, settings, options(30)).unwrap_err().to_string()
    };
    let of = |objective| settings(objective, 0.0);
    let dpo =
        |beta, label_smoothing| of(Objective::Dpo(Dpo { beta, label_smoothing, ..Dpo::default() }));
    let kto = Kto { undesirable_weight: -1.0, ..Kto::default() };
    for (settings, expected) in [
        (settings(Objective::Sft, 1.0), "dropout is 1, expected at least 0 and below 1"),
        (dpo(0.0, 0.0), "beta is 0, expected above 0"),
        (dpo(0.1, 0.5), "label_smoothing is 0.5, expected at least 0 and below 0.5"),
        (of(Objective::Kto(kto)), "undesirable_weight is -1, expected at least 0"),
    ] {
        assert_eq!(refused(settings), expected);
    }
}

#[test]
fn another_generation_can_be_the_reference() {
    let base = tiny();
    let batch = preferences();
    let mut first = learner(settings(Objective::Dpo(Dpo::default()), 0.0), 128);
    after(&mut first, &batch, 5);
    let adapter = AdapterWeights::clone(first.adapter());
    let reference = Some(std::sync::Arc::clone(first.adapter()));
    let settings = settings(Objective::Dpo(Dpo::default()), 0.0);
    let mut second = Learner::new(&base, adapter, reference, settings, options(128)).unwrap();
    let report = second.step(batch).unwrap();
    assert!((report.loss - std::f64::consts::LN_2).abs() < 1e-9 && report.reward.abs() < 1e-9);
}
