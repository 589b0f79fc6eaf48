//! Root mean square norm (arXiv 1910.07467).

/// `out[i] = weight[i] x[i] / sqrt(Σ_j x[j]² / N + eps)`; all `[N]`. Qwen3 applies it to every head of q and k.
///
/// # Panics
/// When `x` and `weight` differ in length.
pub fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    assert_eq!(x.len(), weight.len(), "one weight per value");
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, w)| w * x / (mean + eps).sqrt()).collect()
}
