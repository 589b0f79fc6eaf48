//! Several adapters as one: weights against the sum of the parts' deltas, rows of a model under compositions against rows
//! under that sum, and merged adapters against PEFT's (`tests/fixtures/merge`).
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod golden;
mod on_model;
mod sums;

#[path = "../../../engine/tests/support/mod.rs"]
mod support;

use pleach_adapters::{
    LoadedAdapter,
    compose::Part,
    peft::{PeftFiles, Shapes},
};
use pleach_engine::{adapter_weights::SiteWeights, spec::ModelSpec};

/// Adapters of `tests/fixtures/merge`, and the toy model that they fit.
fn toy(names: &[&str]) -> (Vec<LoadedAdapter>, ModelSpec) {
    let mut shapes = Shapes::default();
    let read = |name: &&str| {
        let files =
            PeftFiles::read(&support::fixtures().join("merge").join(name), 1 << 20).unwrap();
        shapes.learn(&files).unwrap();
        files
    };
    let files: Vec<_> = names.iter().map(read).collect();
    let spec = shapes.spec();
    (files.iter().map(|files| files.load(&spec).unwrap()).collect(), spec)
}

/// Adapters with their scales.
fn parts<'a>(adapters: &'a [LoadedAdapter], scales: &[f32]) -> Vec<Part<'a>> {
    assert_eq!(adapters.len(), scales.len());
    let pairs = adapters.iter().zip(scales);
    pairs.map(|(adapter, &scale)| Part { weights: &adapter.weights, scale }).collect()
}

/// `lora_scale * B A`, `[N, K]`, and the sum of the magnitudes of its products.
fn delta(site: &SiteWeights) -> (Vec<f64>, Vec<f64>) {
    let n_in = site.a.len() / site.rank;
    let (mut delta, mut magnitude) = (Vec::new(), Vec::new());
    for b in site.b.chunks_exact(site.rank) {
        for k in 0..n_in {
            let terms = b.iter().enumerate().map(|(r, &b)| {
                f64::from(site.lora_scale) * f64::from(b) * f64::from(site.a[r * n_in + k])
            });
            let (sum, total) = terms.fold((0.0, 0.0), |(sum, total), t| (sum + t, total + t.abs()));
            delta.push(sum);
            magnitude.push(total);
        }
    }
    (delta, magnitude)
}
