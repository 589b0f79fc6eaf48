//! Equal bits: threads, slices, activations kept or not, sequences packed or alone, dropout.

use std::sync::Arc;

use pleach_engine::{
    adapter_weights::AdapterWeights,
    cpu::{FrozenBase, Isa, TrainPass},
    train::{
        AdapterGradients, Dropout, MicroBatch, ProductPrecision, Progress, Purpose, TrainOptions,
    },
};

use crate::{
    Example, adapter, base, kernels, learn, micro_batch, options, pass, sequences, slopes,
    support::random::{Random, case_seed},
};

const MODELS: [&str; 3] = ["llama-plain", "qwen2", "qwen3"];
/// One row to several query tiles and key chunks.
const LENGTHS: [usize; 5] = [2, 60, 25, 26, 3];

struct Case {
    base: FrozenBase,
    adapter: Arc<AdapterWeights>,
    examples: Vec<Example>,
    weights: Vec<f32>,
    isa: Isa,
    precision: ProductPrecision,
}

impl Case {
    fn new(name: &str, (isa, precision): (Isa, ProductPrecision), seed: usize) -> Self {
        let mut random = Random::new(case_seed(seed));
        let base = base(name, isa);
        let adapter = Arc::new(adapter(&mut random, base.spec(), 20));
        let examples = sequences(&mut random, base.spec(), &LENGTHS);
        let n_targets = micro_batch(&examples.iter().collect::<Vec<_>>()).targets().len();
        let weights = random.units(n_targets);
        Self { base, adapter, examples, weights, isa, precision }
    }

    fn batch(&self) -> MicroBatch {
        micro_batch(&self.examples.iter().collect::<Vec<_>>())
    }

    fn options(&self) -> TrainOptions {
        TrainOptions { precision: self.precision, ..options(self.isa, 1, usize::MAX) }
    }

    fn run(&self, options: TrainOptions, dropout: Option<Dropout>) -> (Vec<u32>, Vec<u32>) {
        let mut pass = pass(&self.base, &self.adapter, options);
        let zeros = AdapterGradients::zeros(&self.adapter);
        let (logps, gradients) =
            learn(&mut pass, &self.adapter, self.batch(), &self.weights, zeros, dropout);
        (bits(&logps), gradient_bits(&gradients))
    }
}

/// The fastest kernels with the least precision.
fn best() -> (Isa, ProductPrecision) {
    kernels().into_iter().next_back().unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn gradient_bits(gradients: &AdapterGradients) -> Vec<u32> {
    gradients.arrays().flat_map(bits).collect()
}

#[test]
fn on_any_number_of_threads_with_activations_kept_or_not() {
    for (index, name) in MODELS.into_iter().enumerate() {
        for kernels in kernels() {
            let case = Case::new(name, kernels, 600 + index);
            for dropout in [None, Some(Dropout { probability: 0.25, seed: 3 })] {
                let expected = case.run(case.options(), dropout);
                let all = case.options();
                let record = TrainPass::memory_need(case.base.spec(), &shape(&case), &all)
                    .kept_bytes
                    / case.base.spec().n_layers;
                for (threads, activation_bytes) in
                    [(2, usize::MAX), (3, 0), (1, 0), (2, record), (1, 2 * record)]
                {
                    let options = TrainOptions { threads, activation_bytes, ..all };
                    assert!(
                        case.run(options, dropout) == expected,
                        "{name} {kernels:?}: {threads} threads, {activation_bytes} bytes, {dropout:?}"
                    );
                }
            }
        }
    }
}

fn shape(case: &Case) -> pleach_engine::train::AdapterShape {
    pleach_engine::train::AdapterShape::of(&case.adapter)
}

#[test]
fn in_slices_of_any_size() {
    for kernels in kernels().into_iter().filter(|(isa, _)| *isa == Isa::detect()) {
        check_slices(&Case::new("qwen3", kernels, 610));
    }
}

fn check_slices(case: &Case) {
    let expected = case.run(case.options(), None);
    for unit_work in [1, 100_000] {
        let options = TrainOptions { unit_work, threads: 2, ..case.options() };
        let mut pass = pass(&case.base, &case.adapter, options);
        let purpose = Purpose::Learn { dropout: None };
        pass.begin(case.batch(), Some(Arc::clone(&case.adapter)), purpose).unwrap();
        let mut pauses = 0;
        let mut to_the_end = |pass: &mut TrainPass| {
            let mut left = pass.work_left();
            loop {
                let mut units = 0;
                let progress = pass.advance(|_| {
                    units += 1;
                    units <= 3
                });
                if progress == Progress::Done {
                    assert_eq!(pass.work_left(), 0);
                    return;
                }
                pauses += 1;
                assert!(pass.work_left() < left, "a slice without work");
                left = pass.work_left();
            }
        };
        to_the_end(&mut pass);
        let logps = bits(pass.logps().unwrap());
        let zeros = AdapterGradients::zeros(&case.adapter);
        pass.begin_backward(slopes(&case.weights), zeros).unwrap();
        to_the_end(&mut pass);
        let gradients = gradient_bits(&pass.take_gradients().unwrap());
        assert!((logps, gradients) == expected, "units of {unit_work}");
        assert!(pauses > 100, "{pauses} pauses");
    }
}

#[test]
fn packed_and_one_by_one() {
    for (index, name) in MODELS.into_iter().enumerate() {
        for kernels in kernels() {
            let case = Case::new(name, kernels, 620 + index);
            for dropout in [None, Some(Dropout { probability: 0.25, seed: 3 })] {
                let expected = case.run(case.options(), dropout);
                let mut pass = pass(&case.base, &case.adapter, case.options());
                let (mut logps, mut first) = (Vec::new(), 0);
                let mut gradients = AdapterGradients::zeros(&case.adapter);
                for (stream, example) in (0..).zip(&case.examples) {
                    let mut batch = MicroBatch::default();
                    batch.push(&example.tokens, &example.is_target, stream);
                    let weights = &case.weights[first..first + batch.targets().len()];
                    first += batch.targets().len();
                    let (scores, sum) =
                        learn(&mut pass, &case.adapter, batch, weights, gradients, dropout);
                    logps.extend(bits(&scores));
                    gradients = sum;
                }
                assert!(
                    (logps, gradient_bits(&gradients)) == expected,
                    "{name} {kernels:?} {dropout:?}: packed and alone differ"
                );
            }
        }
    }
}

#[test]
fn scores_alone_equal_those_of_learning_and_a_new_adapter_is_the_base() {
    let case = Case::new("qwen2", best(), 630);
    let mut pass = pass(&case.base, &case.adapter, case.options());
    let mut score = |adapter: Option<&Arc<AdapterWeights>>| {
        pass.begin(case.batch(), adapter.cloned(), Purpose::Score).unwrap();
        pass.run();
        bits(pass.logps().unwrap())
    };
    assert_eq!(score(Some(&case.adapter)), case.run(case.options(), None).0);
    let mut fresh = AdapterWeights::clone(&case.adapter);
    fresh.sites.iter_mut().for_each(|site| site.b.fill(0.0));
    assert_eq!(score(Some(&Arc::new(fresh))), score(None));
    assert_ne!(score(Some(&case.adapter)), score(None));
}

#[test]
fn the_base_is_as_it_was() {
    let case = Case::new("llama-plain", best(), 640);
    let before = case.base.weights_digest();
    case.run(case.options(), None);
    assert_eq!(case.base.weights_digest(), before);
}

#[test]
fn dropout_depends_on_seed_and_stream_and_its_gradient_is_that_of_the_masked_adapter() {
    let case = Case::new("llama-plain", (Isa::detect(), ProductPrecision::F32), 650);
    let dropout = |probability, seed| Some(Dropout { probability, seed });
    let of = |dropout| case.run(case.options(), dropout).0;
    assert_eq!(of(None), of(dropout(0.0, 1)));
    assert_ne!(of(None), of(dropout(0.5, 1)));
    assert_ne!(of(dropout(0.5, 1)), of(dropout(0.5, 2)));

    // Along the gradient, the loss under the same masks rises by the gradient's norm.
    let dropout = dropout(0.3, 9);
    let mut pass = pass(&case.base, &case.adapter, case.options());
    let zeros = AdapterGradients::zeros(&case.adapter);
    let (_, gradients) =
        learn(&mut pass, &case.adapter, case.batch(), &case.weights, zeros, dropout);
    let norm = gradients.norm();
    let mut loss_at = |by: f64| {
        let mut moved = AdapterWeights::clone(&case.adapter);
        for (site, gradient) in moved.sites.iter_mut().zip(&gradients.sites) {
            let values = site.a.iter_mut().chain(&mut site.b);
            for (value, g) in values.zip(gradient.a.iter().chain(&gradient.b)) {
                #[expect(clippy::cast_possible_truncation, reason = "a step in f32")]
                let step = (by / norm) as f32 * g;
                *value += step;
            }
        }
        pass.begin(case.batch(), Some(Arc::new(moved)), Purpose::Learn { dropout }).unwrap();
        pass.run();
        let terms = pass.logps().unwrap().iter().zip(&case.weights);
        terms.map(|(logp, weight)| f64::from(*logp) * f64::from(*weight)).sum::<f64>()
    };
    let step = 1e-3;
    let derivative = (loss_at(step) - loss_at(-step)) / (2.0 * step);
    assert!((derivative - norm).abs() < 5e-3 * norm, "norm {norm}, derivative {derivative}");
}
