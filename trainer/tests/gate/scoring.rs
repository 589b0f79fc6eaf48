//! Scores against the learner's, and against log-probabilities that the serving half computes.

use std::sync::Arc;

use pleach_engine::{
    adapter_weights::AdapterWeights,
    backend::StepRunner,
    cpu::{CpuBackend, Isa},
    gguf::GgufFile,
    kv::KvBlockId,
    model::{Activations, CpuOptions, Decoder, load_cpu},
    sampler::SamplingParams,
    site::{Site, TargetModule},
    step_batch::{AdapterSlot, SampleRow, StepBatch, StepSequence},
    train::{ProductPrecision, Progress, TrainOptions},
};
use pleach_trainer::{
    Learner, LearnerSettings, LoraSettings, Objective, OptimizerSettings, Sample, SampleScore,
    Scorer, Targeted, divergence,
    objective::{Dpo, Kto},
};

use crate::Random;

fn model() -> Decoder<CpuBackend> {
    let path = pleach_test_setup::fixtures().join("models/llama-plain.gguf");
    let options = CpuOptions {
        isa: Isa::detect(),
        threads: 1,
        activations: Activations::F32,
        kv_bytes: 4 << 20,
        adapter_bytes: 16 << 20,
        max_rows: 64,
    };
    load_cpu(&GgufFile::open(&path).unwrap(), options).unwrap()
}

fn options(rows_max: usize) -> TrainOptions {
    TrainOptions {
        precision: ProductPrecision::F32,
        isa: Isa::detect(),
        threads: 2,
        rows_max,
        activation_bytes: 64 << 20,
        unit_work: 100_000,
    }
}

/// An adapter that changes much: some sites, of several ranks.
fn partial(model: &Decoder<CpuBackend>) -> AdapterWeights {
    let base = model.frozen_base();
    let mut settings = LoraSettings::all_linear(4);
    settings.modules = vec![TargetModule::QProj, TargetModule::UpProj];
    settings.ranks = [
        (Site { layer: 0, module: TargetModule::QProj }, 0),
        (Site { layer: 0, module: TargetModule::DownProj }, 3),
        (Site { layer: 1, module: TargetModule::UpProj }, 17),
    ]
    .into();
    moved(settings.fresh(base.spec(), 3).unwrap())
}

/// With a second factor that is not zero.
fn moved(mut adapter: AdapterWeights) -> AdapterWeights {
    let mut random = Random::new(8, 0);
    for value in adapter.sites.iter_mut().flat_map(|site| &mut site.b) {
        *value = random.small();
    }
    adapter
}

fn sequence(first: u32, step: u32, length: u32, prompt: u32) -> Targeted {
    let tokens: Vec<u32> = (0..length).map(|i| (first + i * step) % 320).collect();
    Targeted::new(&tokens, (0..length).map(|i| i >= prompt))
}

/// One of each kind, and one whose targets have weights.
fn samples() -> Vec<Sample> {
    let mut weighted = sequence(40, 11, 15, 5);
    weighted.weights.iter_mut().skip(9).for_each(|weight| *weight = 0.25);
    let rated = |desirable| Sample::Rated { answer: sequence(7, 3, 11, 4), desirable };
    vec![
        Sample::Supervised(sequence(3, 5, 12, 4)),
        Sample::Preference { preferred: sequence(90, 2, 20, 6), rejected: sequence(90, 3, 17, 6) },
        rated(true),
        rated(false),
        Sample::Supervised(weighted),
    ]
}

/// Log-probability of every target, from the half that serves.
fn served(
    model: &mut Decoder<CpuBackend>,
    sequence: &Targeted,
    adapter: Option<AdapterSlot>,
) -> Vec<f64> {
    let n = sequence.tokens.len();
    let params = Arc::new(SamplingParams {
        temperature: 0.0,
        logprobs: Some(0),
        ..SamplingParams::default()
    });
    let targets: Vec<usize> = (1..n).filter(|i| sequence.mask()[*i]).collect();
    let sample_row = |&target: &usize| SampleRow {
        row: target - 1,
        params: Arc::clone(&params),
        sample_index: 0,
        history: Arc::default(),
        n_prompt: 0,
        banned: Vec::new(),
        forced: Some(sequence.tokens[target]),
    };
    let blocks = (0..u32::try_from(n.div_ceil(16)).unwrap()).map(KvBlockId).collect();
    let batch = StepBatch {
        token_ids: sequence.tokens.to_vec(),
        positions: (0..n).collect(),
        sample_rows: targets.iter().map(sample_row).collect(),
        sequences: vec![StepSequence { rows: 0..n, block_table: blocks, adapter }],
    };
    let sampled = model.step(&batch).unwrap();
    sampled.into_iter().map(|sampled| f64::from(sampled.logprob)).collect()
}

/// The score of a sample by its definition.
fn by_hand(sample: &Sample, logps: &mut dyn FnMut(&Targeted) -> Vec<f64>) -> f64 {
    let mut sums = |sequence: &Targeted| {
        let weights = sequence.weights.iter().skip(1).filter(|weight| **weight != 0.0);
        let weights: Vec<f64> = weights.map(|weight| f64::from(*weight)).collect();
        let sum: f64 = logps(sequence).iter().zip(&weights).map(|(logp, w)| logp * w).sum();
        (sum, weights.iter().sum::<f64>())
    };
    match sample {
        Sample::Supervised(sequence) => sums(sequence).0 / sums(sequence).1,
        Sample::Rated { answer, desirable } => {
            let mean = sums(answer).0 / sums(answer).1;
            if *desirable { mean } else { -mean }
        }
        Sample::Preference { preferred, rejected } => sums(preferred).0 - sums(rejected).0,
        Sample::Rollout { .. } | Sample::Labelled { .. } | Sample::Scored { .. } => {
            panic!("{sample:?}")
        }
    }
}

#[test]
fn scores_are_those_of_the_half_that_serves() {
    let mut model = model();
    let base = model.frozen_base();
    let partial = partial(&model);
    let full = moved(LoraSettings::all_linear(4).fresh(base.spec(), 7).unwrap());
    let mut seen = Vec::new();
    for adapter in [None, Some(partial), Some(full)] {
        let slot = adapter.as_ref().map(|adapter| model.install_weights(adapter).unwrap());
        let mut scorer = Scorer::new(&base, adapter.map(Arc::new), options(64)).unwrap();
        let found = scorer.score(samples()).unwrap();
        for (index, (sample, score)) in samples().iter().zip(&found).enumerate() {
            let expected = by_hand(sample, &mut |sequence| served(&mut model, sequence, slot));
            // A pair's score is a sum over 25 targets.
            assert!((score.score - expected).abs() < 1e-3, "{index}: {} {expected}", score.score);
        }
        let n_targets: Vec<usize> = found.iter().map(|score| score.n_targets).collect();
        assert_eq!(n_targets, [8, 25, 7, 7, 10]);
        assert!((found[2].score + found[3].score).abs() < 1e-12);
        let logp = found[0].logp();
        assert!((logp / 8.0 - found[0].score).abs() < 1e-12);
        seen.push(found[0].score);
    }
    assert!((seen[0] - seen[1]).abs() > 0.01 && (seen[1] - seen[2]).abs() > 0.01, "{seen:?}");
}

fn learner(adapter: AdapterWeights, objective: Objective) -> Learner {
    let optimizer = OptimizerSettings { learning_rate: 1e-2, ..OptimizerSettings::default() };
    let settings = LearnerSettings { objective, optimizer, dropout: 0.0, seed: 1 };
    Learner::new(&model().frozen_base(), adapter, None, settings, options(128)).unwrap()
}

/// Whether samples are of an objective's kind.
type IsOfKind = fn(&Sample) -> bool;

#[test]
fn scores_are_those_of_the_learner_to_the_bit() {
    let model = model();
    let base = model.frozen_base();
    let kinds: [(Objective, IsOfKind); 3] = [
        (Objective::Sft, |sample| matches!(sample, Sample::Supervised(_))),
        (Objective::Dpo(Dpo::default()), |sample| matches!(sample, Sample::Preference { .. })),
        (Objective::Kto(Kto::default()), |sample| matches!(sample, Sample::Rated { .. })),
    ];
    for (objective, is_of_kind) in kinds {
        let samples: Vec<Sample> = samples().into_iter().filter(is_of_kind).collect();
        let mut learner = learner(partial(&model), objective);
        learner.step(samples.clone()).unwrap();
        let adapter = Arc::clone(learner.adapter());
        let mut scorer = Scorer::new(&base, Some(adapter), options(32)).unwrap();
        let of_adapter = scorer.score(samples.clone()).unwrap();
        let report = learner.evaluate(samples.clone()).unwrap();
        let found: Vec<&Vec<f32>> =
            of_adapter.iter().flat_map(|score| &score.sequences).map(|s| &s.logps).collect();
        let expected: Vec<&Vec<f32>> = learner.scores().iter().map(|s| &s.logps).collect();
        assert_eq!(found, expected, "{}", objective.name());
        let mut of_base = Scorer::new(&base, None, options(32)).unwrap();
        let of_base = of_base.score(samples.clone()).unwrap();
        if objective.needs_reference() {
            let found: Vec<&Vec<f32>> =
                of_base.iter().flat_map(|score| &score.sequences).map(|s| &s.logps).collect();
            let expected: Vec<&Vec<f32>> = learner.scores().iter().map(|s| &s.reference).collect();
            assert_eq!(found, expected, "{}: the base", objective.name());
        } else {
            // The loss is about all targets, a score about those of one sample.
            let total: f64 = of_adapter.iter().map(SampleScore::logp).sum();
            let weights = of_adapter.iter().flat_map(|score| &score.sequences);
            let weights: f64 = weights.map(|sequence| sequence.total().weight).sum();
            assert!((total / weights + report.loss).abs() < 1e-9);
        }
    }
}

#[test]
fn equal_bits_in_slices_and_with_any_neighbours() {
    let model = model();
    let adapter = Arc::new(partial(&model));
    let scorer = |rows_max, threads| {
        let options = TrainOptions { threads, ..options(rows_max) };
        Scorer::new(&model.frozen_base(), Some(Arc::clone(&adapter)), options).unwrap()
    };
    let whole = scorer(256, 2).score(samples()).unwrap();
    let mut narrow = scorer(20, 1);
    narrow.begin(samples()).unwrap();
    let (mut paused, mut asked) = (0, 0_u32);
    while narrow
        .advance(|_| {
            asked += 1;
            asked % 3 > 0
        })
        .unwrap()
        == Progress::Paused
    {
        paused += 1;
        assert!(narrow.finish().is_err(), "it is not done");
    }
    assert!(paused > 10, "{paused} pauses");
    assert_eq!(narrow.finish().unwrap(), whole);
    for (sample, expected) in samples().into_iter().zip(&whole) {
        assert_eq!(narrow.score(vec![sample]).unwrap(), std::slice::from_ref(expected));
    }
    // What was forgotten half-way leaves nothing behind.
    narrow.begin(samples()).unwrap();
    narrow.advance(|_| false).unwrap();
    narrow.begin(samples()).unwrap();
    narrow.advance(|_| true).unwrap();
    assert_eq!(narrow.finish().unwrap(), whole);
    assert_eq!(narrow.score(Vec::new()).unwrap(), []);
}

#[test]
fn what_has_no_score_is_refused_by_its_place() {
    let model = model();
    let mut scorer = Scorer::new(&model.frozen_base(), None, options(16)).unwrap();
    let first = Sample::Supervised(sequence(3, 5, 12, 4));
    let message = |scorer: &mut Scorer, sample| {
        scorer.score(vec![first.clone(), sample]).unwrap_err().to_string()
    };
    let number = Sample::Scored { tokens: [1, 2].into(), score: 1.0 };
    assert_eq!(
        message(&mut scorer, number),
        "sample 1 is a scored text, scored are supervised sequences, preference pairs and rated answers"
    );
    assert_eq!(
        message(&mut scorer, Sample::Supervised(sequence(3, 5, 12, 12))),
        "sample 1: a sequence has no targets, or their weights sum up to nothing"
    );
    assert_eq!(
        message(&mut scorer, Sample::Supervised(sequence(3, 5, 18, 4))),
        "sample 1 has 17 rows, a micro-batch has at most 16"
    );
    let order = scorer.finish().unwrap_err().to_string();
    assert_eq!(order, "finish needs samples that were scored");
    assert!(scorer.advance(|_| true).is_err());
    // Of what was refused nothing stays.
    assert_eq!(scorer.score(vec![first]).unwrap().len(), 1);
}

#[test]
fn adapters_of_other_kinds_are_refused_at_once() {
    let model = model();
    let mut adapter = partial(&model);
    adapter.sites[1].bias = Some(vec![0.0; adapter.sites[1].b.len() / adapter.sites[1].rank]);
    let refused = Scorer::new(&model.frozen_base(), Some(Arc::new(adapter)), options(16));
    let message = refused.unwrap_err().to_string();
    assert!(
        message.contains("layers.0.mlp.down_proj") && message.contains("lora_bias"),
        "{message}"
    );
}

#[test]
fn it_takes_less_than_a_learner() {
    let model = model();
    let adapter = Arc::new(partial(&model));
    let scorer = Scorer::new(&model.frozen_base(), Some(adapter), options(64)).unwrap();
    let learner = learner(partial(&model), Objective::Sft);
    assert_eq!(scorer.memory().kept_layers, 0);
    assert!(scorer.memory().total_bytes() < learner.pass().memory().total_bytes());
}

#[test]
fn divergence_is_the_mean_over_tokens() {
    let model = model();
    let base = model.frozen_base();
    let answers: Vec<Sample> = [(3, 5, 12, 4), (90, 2, 20, 6)]
        .map(|(a, b, c, d)| Sample::Supervised(sequence(a, b, c, d)))
        .into();
    let mut of_base = Scorer::new(&base, None, options(64)).unwrap();
    let of_base = of_base.score(answers.clone()).unwrap();
    let adapter = Some(Arc::new(partial(&model)));
    let mut of_adapter = Scorer::new(&base, adapter, options(64)).unwrap();
    let of_adapter = of_adapter.score(answers).unwrap();
    assert!(divergence(&of_base, &of_base).abs() < 1e-12);
    // Means of 8 and 14 tokens.
    let sum: f64 = [(0, 8.0), (1, 14.0)]
        .map(|(i, n): (usize, f64)| n * (of_adapter[i].score - of_base[i].score))
        .iter()
        .sum();
    let found = divergence(&of_adapter, &of_base);
    assert!((found - sum / 22.0).abs() < 1e-9 && found.abs() > 1e-3, "{found}");
    assert!(divergence(&[], &[]).is_nan());
}
