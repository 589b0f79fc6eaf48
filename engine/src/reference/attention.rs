//! Causal attention (arXiv 1706.03762) with grouped queries (arXiv 2305.13245).

/// Attention of one query vector: `out[d] = Σ_t p[t] v[t, d]`, `p = softmax_t(softmax_scale Σ_d q[d] k[t, d])`.
///
/// | buffer | shape | note |
/// |---|---|---|
/// | `q` | `[D]` | |
/// | `k`, `v` | `[S, D]`, row-major | the tokens that the query sees: causality is the caller's `S` |
/// | result | `[D]` | |
///
/// Query head `h` of `H` reads key and value head `h / (H / H_kv)`.
///
/// # Panics
/// When there is no token, or `k` and `v` differ in shape.
pub fn attention(q: &[f64], k: &[f64], v: &[f64], softmax_scale: f64) -> Vec<f64> {
    let p = weights(q, k, softmax_scale);
    assert!(k.len() == v.len() && !p.is_empty(), "as many values as keys, at least one");
    let mut out = vec![0.0; q.len()];
    for (p, v) in p.iter().zip(v.chunks_exact(q.len())) {
        for (out, v) in out.iter_mut().zip(v) {
            *out += p * v;
        }
    }
    out
}

/// The weights `p`, `[S]`: positive, with sum 1.
pub fn weights(q: &[f64], k: &[f64], softmax_scale: f64) -> Vec<f64> {
    let score = |k: &[f64]| softmax_scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
    let scores: Vec<f64> = k.chunks_exact(q.len()).map(score).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|exp| exp / sum).collect()
}
