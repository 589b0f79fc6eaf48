//! Training passes: gradients of whole models against finite differences of a decoder in f64, and equal bits however a
//! pass is run.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests")]

mod equal_bits;
mod gradients;
mod plain;
mod refused;
#[path = "../support/mod.rs"]
mod support;

use std::{path::PathBuf, sync::Arc};

use pleach_engine::{
    adapter_weights::{AdapterWeights, SiteWeights},
    cpu::{FrozenBase, Isa, TrainPass},
    model::Activations,
    site::{Site, TargetModule},
    spec::ModelSpec,
    train::{
        AdapterGradients, AdapterShape, Dropout, MicroBatch, ProductPrecision, Purpose, Slopes,
        TrainOptions,
    },
};
use support::random::Random;

/// A tiny model of `tests/fixtures/models`.
pub(crate) fn tiny(name: &str) -> PathBuf {
    support::fixtures().join(format!("models/{name}.gguf"))
}

pub(crate) fn base(name: &str, isa: Isa) -> FrozenBase {
    // Serving with int8 activations: training must not care.
    support::load(&tiny(name), isa, 1, Activations::Int8).frozen_base()
}

/// Kernels of this processor, and the precisions that they have.
pub(crate) fn kernels() -> Vec<(Isa, ProductPrecision)> {
    let all = support::isas().into_iter().flat_map(|isa| ProductPrecision::ALL.map(|p| (isa, p)));
    let (here, missing): (Vec<_>, Vec<_>) =
        all.partition(|(isa, precision)| precision.check(*isa).is_ok());
    for (isa, precision) in missing {
        eprintln!("skipped: no {precision} with {isa} here");
    }
    here
}

pub(crate) fn options(isa: Isa, threads: usize, activation_bytes: usize) -> TrainOptions {
    TrainOptions {
        isa,
        precision: ProductPrecision::F32,
        threads,
        rows_max: 160,
        activation_bytes,
        unit_work: TrainOptions::UNIT_WORK,
    }
}

/// Low-rank weights of several ranks; every site of a layer but for some that are left out at random.
pub(crate) fn adapter(
    random: &mut Random,
    spec: &ModelSpec,
    skip_percent: usize,
) -> AdapterWeights {
    let mut sites = Vec::new();
    for layer in 0..spec.n_layers {
        for module in TargetModule::ALL {
            let rank = [1, 3, 4, 8, 16, 17][random.below(6)];
            if random.chance(skip_percent) {
                continue;
            }
            let (n_out, n_in) = spec.linear_shape(module);
            let scaled = |values: Vec<f32>, by: usize| -> Vec<f32> {
                values.iter().map(|v| v / (by as f32).sqrt()).collect()
            };
            let a = scaled(random.units(rank * n_in), n_in);
            let b = scaled(random.units(n_out * rank), 4 * rank);
            sites.push(SiteWeights::lora(Site { layer, module }, rank, 0.7, a, b));
        }
    }
    AdapterWeights { sites, ..AdapterWeights::default() }
}

/// Some sequences of random tokens; about half of the tokens are targets.
pub(crate) fn sequences(random: &mut Random, spec: &ModelSpec, lengths: &[usize]) -> Vec<Example> {
    let example = |&length: &usize| Example {
        tokens: (0..length).map(|_| u32::try_from(random.below(spec.vocab)).unwrap()).collect(),
        is_target: (0..length).map(|i| i == length - 1 || random.chance(50)).collect(),
    };
    lengths.iter().map(example).collect()
}

pub(crate) struct Example {
    pub(crate) tokens: Vec<u32>,
    pub(crate) is_target: Vec<bool>,
}

pub(crate) fn micro_batch(examples: &[&Example]) -> MicroBatch {
    let mut batch = MicroBatch::default();
    for (example, stream) in examples.iter().zip(0..) {
        batch.push(&example.tokens, &example.is_target, stream);
    }
    batch
}

/// Scores and gradients of one pass; the gradient of target `i` is `weights[i]`.
pub(crate) fn learn(
    pass: &mut TrainPass,
    adapter: &Arc<AdapterWeights>,
    batch: MicroBatch,
    weights: &[f32],
    gradients: AdapterGradients,
    dropout: Option<Dropout>,
) -> (Vec<f32>, AdapterGradients) {
    pass.begin(batch, Some(Arc::clone(adapter)), Purpose::Learn { dropout }).unwrap();
    pass.run();
    let logps = pass.logps().unwrap().to_vec();
    pass.begin_backward(slopes(weights), gradients).unwrap();
    pass.run();
    (logps, pass.take_gradients().unwrap())
}

pub(crate) fn pass(
    base: &FrozenBase,
    adapter: &AdapterWeights,
    options: TrainOptions,
) -> TrainPass {
    TrainPass::new(base, &AdapterShape::of(adapter), options).unwrap()
}

/// Slopes of log-probabilities alone.
pub(crate) fn slopes(logps: &[f32]) -> Slopes<'_> {
    Slopes { logps, features: &[] }
}
