//! Low-rank adapters: `Δy[n] = lora_scale Σ_r b[n, r] Σ_k a[r, k] x[k]` (arXiv 2106.09685).

use crate::adapter_weights::SiteWeights;

use super::matmul::matmul;

/// What one plain adapter adds to the output of one linear for one row; a row without an adapter adds nothing.
///
/// | buffer | shape | type |
/// |---|---|---|
/// | `weights.a` | `[R, K]`, row-major | f32 |
/// | `weights.b` | `[N, R]`, row-major | f32 |
/// | `x` | `[K]` | f64 |
/// | result | `[N]` | f64 |
///
/// # Panics
/// When `a` has not `R · K` values.
pub fn lora(weights: &SiteWeights, x: &[f64]) -> Vec<f64> {
    assert_eq!(weights.a.len(), weights.rank * x.len(), "lora_A is [rank, {}]", x.len());
    let v = matmul(&widen(&weights.a), x, x.len());
    let delta = matmul(&widen(&weights.b), &v, weights.rank);
    delta.into_iter().map(|value| f64::from(weights.lora_scale) * value).collect()
}

/// `|lora_scale| Σ_r |b[n, r]| Σ_k |a[r, k] x[k]|`, `[N]`: what the rounding error of [`lora`] is proportional to.
///
/// # Panics
/// As [`lora`].
pub fn lora_magnitude(weights: &SiteWeights, x: &[f64]) -> Vec<f64> {
    let absolute = |values: &[f32]| values.iter().map(|v| v.abs()).collect();
    let (scale, a, b) = (weights.lora_scale.abs(), absolute(&weights.a), absolute(&weights.b));
    let absolute = SiteWeights::lora(weights.site, weights.rank, scale, a, b);
    lora(&absolute, &x.iter().map(|v| v.abs()).collect::<Vec<_>>())
}

/// `DoRA`'s `m[n] / ||W[n] + lora_scale (B A)[n]||` (arXiv 2402.09353), `[N]`: what row `n` of the adapted weight is scaled
/// by. `w` is `[N, K]`, row-major.
///
/// # Panics
/// When the weights have no magnitudes, or `w` has not `N · K` values.
pub fn dora_gains(weights: &SiteWeights, w: &[f64]) -> Vec<f64> {
    let magnitude = weights.magnitude.as_deref().expect("weights of DoRA have magnitudes");
    let n_in = weights.a.len() / weights.rank;
    assert_eq!(w.len(), magnitude.len() * n_in, "W is [{}, {n_in}]", magnitude.len());
    let rows = w.chunks_exact(n_in).zip(weights.b.chunks_exact(weights.rank));
    let norms = rows.map(|(w, b)| {
        let adapted = w.iter().enumerate().map(|(k, w)| {
            let delta: f64 = b
                .iter()
                .enumerate()
                .map(|(r, b)| f64::from(*b) * f64::from(weights.a[r * n_in + k]))
                .sum();
            w + f64::from(weights.lora_scale) * delta
        });
        adapted.map(|value| value * value).sum::<f64>().sqrt()
    });
    magnitude.iter().zip(norms).map(|(magnitude, norm)| f64::from(*magnitude) / norm).collect()
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}
