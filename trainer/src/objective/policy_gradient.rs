//! Importance-weighted policy gradient: answers that an earlier generation sampled, with its log-probabilities `μ` and
//! an advantage `A` for each answer. At every target, with `ρ = exp(logp − μ)`:
//!
//! ```text
//! gain = ρ A        clipped:  min(ρ A, clamp(ρ, 1 − low, 1 + high) A)           arXiv 1707.06347
//! k3   = exp(ref − logp) − (ref − logp) − 1                                     an estimate of KL(adapter ‖ reference)
//! L    = Σ w (−gain + b k3) / Σ w
//! ```
//! The mean is over all targets of a batch, so long answers do not count less (arXiv 2503.14476).

use crate::optimizer::narrow;

/// Settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PolicyGradient {
    /// How far `ρ` may go before it counts no more; `None` is the plain importance weight.
    pub clip: Option<Clip>,
    /// `b`; with 0, no reference is run.
    pub kl_weight: f64,
}

/// Bounds of importance weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    /// Below 1, `0..1`.
    pub low: f64,
    /// Above 1.
    pub high: f64,
}

impl Default for PolicyGradient {
    fn default() -> Self {
        Self { clip: Some(Clip { low: 0.2, high: 0.2 }), kl_weight: 0.0 }
    }
}

/// Least deviation that rewards are divided by: answers that are all worth the same teach nothing.
const DEVIATION_MIN: f64 = 1e-6;

/// How much better each of several answers to one prompt is than usual, in standard deviations of their rewards (arXiv
/// 2402.03300). All zero where none is better.
pub fn advantages(rewards: &[f64]) -> Vec<f32> {
    let n = rewards.len().max(1) as f64;
    let mean = rewards.iter().sum::<f64>() / n;
    let deviation = (rewards.iter().map(|reward| (reward - mean).powi(2)).sum::<f64>() / n).sqrt();
    if deviation < DEVIATION_MIN {
        return vec![0.0; rewards.len()];
    }
    rewards.iter().map(|reward| narrow((reward - mean) / deviation)).collect()
}

/// What a target comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TargetLoss {
    pub(crate) loss: f64,
    pub(crate) slope: f64,
    /// `k3`.
    pub(crate) divergence: f64,
}

impl PolicyGradient {
    /// `reference` is not looked at without a KL weight.
    pub(crate) fn target(
        &self,
        logp: f64,
        sampled: f64,
        reference: f64,
        advantage: f64,
    ) -> TargetLoss {
        let ratio = (logp - sampled).exp();
        let bounded = self.clip.map_or(ratio, |clip| ratio.clamp(1.0 - clip.low, 1.0 + clip.high));
        let (gain, bound) = (ratio * advantage, bounded * advantage);
        // Where the bound is the smaller one, nothing is gained by going further.
        let (mut loss, mut slope) = if bound < gain { (-bound, 0.0) } else { (-gain, -gain) };
        let mut divergence = 0.0;
        if self.kl_weight > 0.0 {
            let difference = reference - logp;
            divergence = difference.exp() - difference - 1.0;
            loss += self.kl_weight * divergence;
            slope += self.kl_weight * (1.0 - difference.exp());
        }
        TargetLoss { loss, slope, divergence }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_derivatives() {
        let clip = Some(Clip { low: 0.2, high: 0.3 });
        for clip in [None, clip] {
            let objective = PolicyGradient { clip, kl_weight: 0.1 };
            for advantage in [1.5, -0.5] {
                for logp in [-3.0, -2.05, -1.9, -1.0] {
                    let at = |logp| objective.target(logp, -2.0, -1.5, advantage);
                    let slope = (at(logp + 1e-6).loss - at(logp - 1e-6).loss) / 2e-6;
                    assert!((at(logp).slope - slope).abs() < 1e-7, "{objective:?} {logp}");
                }
            }
        }
    }

    #[test]
    fn advantages_are_relative_to_the_group() {
        assert_eq!(advantages(&[1.0, 0.0, 0.0, 1.0]), [1.0, -1.0, -1.0, 1.0]);
        assert_eq!(advantages(&[0.3; 8]), [0.0; 8]);
        assert_eq!(advantages(&[]), [0.0f32; 0]);
        let found = advantages(&[10.0, 20.0, 60.0]);
        assert!(found.iter().sum::<f32>().abs() < 1e-6 && found[2] > 1.0, "{found:?}");
    }

    #[test]
    fn beyond_the_bounds_only_the_way_back_counts() {
        let objective = PolicyGradient::default();
        let slope = |logp, advantage| objective.target(logp, -2.0, 0.0, advantage).slope;
        assert!(slope(-1.0, 1.0).abs() < 1e-300 && slope(-1.0, -1.0) > 1.0);
        assert!(slope(-3.0, -1.0).abs() < 1e-300 && slope(-3.0, 1.0) < 0.0);
    }
}
