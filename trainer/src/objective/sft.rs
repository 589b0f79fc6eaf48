//! Supervised fine-tuning: `L = − Σ w logp / W` over the targets of a batch, `W` the sum of their weights.
//!
//! `W` is that of the whole batch, known before its first micro-batch, so gradients add up to those of the batch as one.

/// What a sequence adds to the loss of its batch, and `dL/d(Σ w logp)`. `logp` is `Σ w logp` of its targets.
pub(crate) fn loss(logp: f64, total_weight: f64) -> (f64, f64) {
    (-logp / total_weight, -1.0 / total_weight)
}
