//! Derivatives of the operations of a decoder: what comes back to an input, given what comes back to the output.

use super::attention::weights;

/// Of [`super::norm::rms_norm`]: with `r = sqrt(Σ_j x[j]² / N + eps)`,
/// `dx[i] = w[i] dy[i] / r − x[i] / (N r³) Σ_j w[j] x[j] dy[j]`; all `[N]`.
///
/// # Panics
/// When the lengths differ.
pub fn rms_norm(x: &[f64], weight: &[f64], eps: f64, dy: &[f64]) -> Vec<f64> {
    assert!(
        x.len() == weight.len() && x.len() == dy.len(),
        "one weight and one gradient per value"
    );
    let n = x.len() as f64;
    let r = (x.iter().map(|x| x * x).sum::<f64>() / n + eps).sqrt();
    let dot: f64 = x.iter().zip(weight).zip(dy).map(|((x, w), dy)| x * w * dy).sum();
    let terms = x.iter().zip(weight).zip(dy);
    terms.map(|((x, w), dy)| w * dy / r - x * dot / (n * r * r * r)).collect()
}

/// Of [`super::swiglu::swiglu`]: gradients of gate and up.
pub fn swiglu(gate: f64, up: f64, dy: f64) -> (f64, f64) {
    let sigmoid = 1.0 / (1.0 + (-gate).exp());
    (dy * up * sigmoid * (1.0 + gate * (1.0 - sigmoid)), dy * gate * sigmoid)
}

/// Gradients of one query vector's attention, see [`super::attention::attention`].
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionGradients {
    /// `[D]`.
    pub q: Vec<f64>,
    /// `[S, D]`.
    pub k: Vec<f64>,
    /// `[S, D]`.
    pub v: Vec<f64>,
}

/// Of [`super::attention::attention`]; `d_out` is `[D]`.
pub fn attention(q: &[f64], k: &[f64], v: &[f64], scale: f64, d_out: &[f64]) -> AttentionGradients {
    let dim = q.len();
    let p = weights(q, k, scale);
    let dp: Vec<f64> =
        v.chunks_exact(dim).map(|v| v.iter().zip(d_out).map(|(v, d)| v * d).sum()).collect();
    let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
    let ds: Vec<f64> = p.iter().zip(&dp).map(|(p, dp)| p * (dp - mean) * scale).collect();
    let mut gradients = AttentionGradients { q: vec![0.0; dim], k: Vec::new(), v: Vec::new() };
    for ((k, ds), p) in k.chunks_exact(dim).zip(&ds).zip(&p) {
        gradients.q.iter_mut().zip(k).for_each(|(dq, k)| *dq += ds * k);
        gradients.k.extend(q.iter().map(|q| ds * q));
        gradients.v.extend(d_out.iter().map(|d| p * d));
    }
    gradients
}

/// Of the log-probability of `target` under logits `[V]`: `1[v = target] − p[v]`.
pub fn log_probability(logits: &[f64], target: usize) -> Vec<f64> {
    let p = weights(&[1.0], logits, 1.0);
    p.into_iter().enumerate().map(|(v, p)| f64::from(u8::from(v == target)) - p).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;

    /// A smooth sequence of values, no two alike.
    fn values(n: usize, seed: f64) -> Vec<f64> {
        (0..n).map(|i| (i as f64 * 1.7 + seed).sin() * 1.3).collect()
    }

    /// `gradient` against differences of `loss` at `x`.
    fn check(what: &str, x: &[f64], gradient: &[f64], loss: impl Fn(&[f64]) -> f64) {
        for (i, gradient) in gradient.iter().enumerate() {
            let at = |by: f64| {
                let mut moved = x.to_vec();
                moved[i] += by;
                loss(&moved)
            };
            let found = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((found - gradient).abs() < 1e-8, "{what} {i}: {gradient}, difference {found}");
        }
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn derivatives_are_limits_of_differences() {
        let (x, w, dy) = (values(7, 0.1), values(7, 0.2), values(7, 0.3));
        check("norm", &x, &rms_norm(&x, &w, 1e-3, &dy), |x| {
            dot(&reference::norm::rms_norm(x, &w, 1e-3), &dy)
        });
        for (gate, up) in [(-3.0, 0.7), (0.2, -1.0), (5.0, 2.0)] {
            let (d_gate, d_up) = swiglu(gate, up, 1.5);
            let loss = |x: &[f64]| 1.5 * reference::swiglu::swiglu(x[0], x[1]);
            check("swiglu", &[gate, up], &[d_gate, d_up], loss);
        }
        let (q, k, v, d) = (values(4, 0.4), values(20, 0.5), values(20, 0.6), values(4, 0.7));
        let found = attention(&q, &k, &v, 0.5, &d);
        let loss = |q: &[f64], k: &[f64], v: &[f64]| {
            dot(&reference::attention::attention(q, k, v, 0.5), &d)
        };
        check("q", &q, &found.q, |q| loss(q, &k, &v));
        check("k", &k, &found.k, |k| loss(&q, k, &v));
        check("v", &v, &found.v, |v| loss(&q, &k, v));
        let logits = values(9, 0.8);
        check("logits", &logits, &log_probability(&logits, 4), |logits| {
            logits[4] - logits.iter().map(|logit| logit.exp()).sum::<f64>().ln()
        });
    }
}
