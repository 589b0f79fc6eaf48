//! The learner: equal to a public implementation on the default model, equal to itself however it is run, and files
//! that are read back.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests")]

mod curves;
mod files;
mod objectives;
mod recipe;
mod reference;
mod steps;

use std::path::Path;

use pleach_engine::{
    cpu::{FrozenBase, Isa},
    gguf::GgufFile,
    model::{Activations, CpuOptions, load_cpu},
    train::{ProductPrecision, TrainOptions},
};
use pleach_trainer::{
    Learner, LearnerSettings, LoraSettings, Objective, OptimizerSettings, Sample, Targeted,
};

/// The weights of a model that could serve.
pub(crate) fn base(path: &Path) -> FrozenBase {
    let file = GgufFile::open(path).unwrap();
    let options = CpuOptions {
        isa: Isa::detect(),
        threads: 1,
        activations: Activations::Int8,
        kv_bytes: 4 << 20,
        adapter_bytes: 0,
        max_rows: 16,
    };
    load_cpu(&file, options).unwrap().frozen_base()
}

pub(crate) fn tiny() -> FrozenBase {
    base(&pleach_test_setup::fixtures().join("models/llama-plain.gguf"))
}

pub(crate) fn options(rows_max: usize) -> TrainOptions {
    TrainOptions {
        isa: Isa::detect(),
        precision: ProductPrecision::F32,
        threads: 2,
        rows_max,
        activation_bytes: 256 << 20,
        unit_work: TrainOptions::UNIT_WORK,
    }
}

pub(crate) fn settings(objective: Objective, dropout: f32) -> LearnerSettings {
    let optimizer = OptimizerSettings { learning_rate: 3e-3, ..OptimizerSettings::default() };
    LearnerSettings { objective, optimizer, dropout, seed: 11 }
}

/// With products of bf16 where this processor has them, in plain Rust elsewhere.
pub(crate) fn bf16_options(rows_max: usize) -> TrainOptions {
    let precision = ProductPrecision::Bf16;
    let isa = Isa::detect();
    let isa = if precision.check(isa).is_ok() { isa } else { Isa::Portable };
    TrainOptions { isa, precision, ..options(rows_max) }
}

pub(crate) fn learner(settings: LearnerSettings, rows_max: usize) -> Learner {
    learner_with(settings, options(rows_max))
}

pub(crate) fn learner_with(settings: LearnerSettings, options: TrainOptions) -> Learner {
    let base = tiny();
    let adapter = LoraSettings::all_linear(4).fresh(base.spec(), 7).unwrap();
    Learner::new(&base, adapter, None, settings, options).unwrap()
}

/// A sequence that goes on from `first` by `step`; targets are tokens from `prompt` on.
pub(crate) fn sequence(first: u32, step: u32, length: u32, prompt: u32) -> Targeted {
    let tokens: Vec<u32> = (0..length).map(|i| (first + i * step) % 320).collect();
    Targeted::new(&tokens, (0..length).map(|i| i >= prompt))
}

pub(crate) fn supervised() -> Vec<Sample> {
    let sequences = [(3, 5, 12, 4), (90, 2, 20, 6), (200, 7, 9, 2), (40, 11, 15, 5)];
    sequences.map(|(a, b, c, d)| Sample::Supervised(sequence(a, b, c, d))).to_vec()
}

pub(crate) fn preferences() -> Vec<Sample> {
    let pairs = [(3, 5, 8), (90, 2, 12), (200, 7, 9)];
    pairs
        .map(|(first, step, length)| Sample::Preference {
            preferred: sequence(first, step, length, 4),
            rejected: sequence(first, step + 1, length + 3, 4),
        })
        .to_vec()
}

pub(crate) fn rated() -> Vec<Sample> {
    let rows = [(3, 5, 8), (90, 2, 12), (200, 7, 9), (7, 3, 11)];
    rows.map(|(first, step, length)| Sample::Rated {
        answer: sequence(first, step, length, 4),
        desirable: step % 2 == 1,
    })
    .to_vec()
}

pub(crate) fn rollouts() -> Vec<Sample> {
    let rows = [(3, 5, 8, 1.0), (90, 2, 12, -0.5), (200, 7, 9, 0.5)];
    rows.map(|(first, step, length, advantage)| Sample::Rollout {
        answer: sequence(first, step, length, 4),
        sampled_logps: vec![-5.0; length as usize - 4].into(),
        advantage,
    })
    .to_vec()
}

pub(crate) fn labelled() -> Vec<Sample> {
    let rows = [(3, 5, 8, 0), (90, 2, 12, 2), (200, 7, 1, 1), (7, 3, 11, 0)];
    rows.map(|(first, step, length, label)| Sample::Labelled {
        tokens: sequence(first, step, length, 0).tokens,
        label,
        weight: 1.0 + label as f32,
    })
    .to_vec()
}

pub(crate) fn scored() -> Vec<Sample> {
    let rows = [(3, 5, 8, 0.5), (90, 2, 12, -1.0), (200, 7, 9, 2.0)];
    rows.map(|(first, step, length, score)| Sample::Scored {
        tokens: sequence(first, step, length, 0).tokens,
        score,
    })
    .to_vec()
}
