//! Kahneman–Tversky optimization (arXiv 2402.01306), as TRL computes it. With `r = logp − reference logp` of an answer,
//! sums over its targets, and `kl` an estimate of the divergence from the reference:
//!
//! ```text
//! thumbs up:    L = λ_up (1 − σ(β (r − kl)))
//! thumbs down:  L = λ_down (1 − σ(β (kl − r)))
//! kl = max(0, mean of r over mismatched rows): prompt k with the answer of row k − 1 of the batch
//! ```
//! No gradient flows through `kl`. The loss of a batch is the mean over its rows.

use super::sigmoid;

/// Settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kto {
    /// Strength of the reference; 0.1 is usual.
    pub beta: f64,
    /// `λ_up`. (Weight × number of rows should be within 1:1 to 4:3 for the two kinds.)
    pub desirable_weight: f64,
    /// `λ_down`.
    pub undesirable_weight: f64,
}

impl Default for Kto {
    fn default() -> Self {
        Self { beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.0 }
    }
}

/// What a row comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowLoss {
    /// Its loss.
    pub loss: f64,
    /// `dL/dlogp` of the answer's sum.
    pub slope: f64,
    /// `β r`.
    pub reward: f64,
}

impl Kto {
    /// The estimate of a batch from `r` of its mismatched rows.
    pub fn divergence(ratios: &[f64]) -> f64 {
        let mean = ratios.iter().sum::<f64>() / ratios.len().max(1) as f64;
        mean.max(0.0)
    }

    /// Loss of one row.
    pub fn row(&self, ratio: f64, divergence: f64, desirable: bool) -> RowLoss {
        let (weight, sign) =
            if desirable { (self.desirable_weight, 1.0) } else { (self.undesirable_weight, -1.0) };
        let value = sigmoid(sign * self.beta * (ratio - divergence));
        RowLoss {
            loss: weight * (1.0 - value),
            slope: -weight * sign * self.beta * value * (1.0 - value),
            reward: self.beta * ratio,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_derivatives() {
        let kto = Kto { beta: 0.3, desirable_weight: 1.5, undesirable_weight: 0.5 };
        for desirable in [true, false] {
            let at = |ratio| kto.row(ratio, 0.4, desirable);
            let difference = (at(2.0 + 1e-5).loss - at(2.0 - 1e-5).loss) / 2e-5;
            assert!((at(2.0).slope - difference).abs() < 1e-8);
        }
        assert!((kto.row(0.4, 0.4, true).loss - 0.75).abs() < 1e-12);
    }

    #[test]
    fn a_negative_estimate_is_zero() {
        assert!(Kto::divergence(&[-3.0, 1.0]).abs() < 1e-300);
        assert!((Kto::divergence(&[3.0, 1.0]) - 2.0).abs() < 1e-12);
    }
}
