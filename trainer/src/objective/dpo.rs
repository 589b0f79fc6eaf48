//! Direct preference optimization (arXiv 2305.18290). With `r = β (logp − reference logp)` of an answer, sums over its
//! targets, and `d = r_preferred − r_rejected` (the reward margin):
//!
//! ```text
//! sigmoid:  L = −(1 − ε) ln σ(d) − ε ln σ(−d)           ε is the share of labels that may be wrong
//! ipo:      L = (d/β − 1/(2β))²                         with means over targets instead of sums (arXiv 2310.12036)
//! ```
//! The loss of a batch is the mean over its pairs.

use super::{Score, log_sigmoid, sigmoid};

/// Form of the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DpoLoss {
    /// Logistic.
    Sigmoid,
    /// Squared, about a margin that `β` sets: does not drive margins to infinity.
    Ipo,
}

/// Settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dpo {
    /// Strength of the reference; 0.1 is usual.
    pub beta: f64,
    /// Form.
    pub loss: DpoLoss,
    /// `ε`, `0..0.5`; 0 is off. Only for [`DpoLoss::Sigmoid`].
    pub label_smoothing: f64,
}

impl Default for Dpo {
    fn default() -> Self {
        Self { beta: 0.1, loss: DpoLoss::Sigmoid, label_smoothing: 0.0 }
    }
}

/// What a pair comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairLoss {
    /// Its loss.
    pub loss: f64,
    /// `dL/dlogp` of the preferred answer's sum.
    pub preferred_slope: f64,
    /// `dL/dlogp` of the rejected answer's sum.
    pub rejected_slope: f64,
    /// `r_preferred − r_rejected`.
    pub margin: f64,
}

impl Dpo {
    /// Loss of one pair.
    pub fn pair(&self, preferred: Score, rejected: Score) -> PairLoss {
        let ratio = |answer: Score| answer.logp - answer.reference;
        let margin = self.beta * (ratio(preferred) - ratio(rejected));
        match self.loss {
            DpoLoss::Sigmoid => {
                let smooth = self.label_smoothing;
                let slope =
                    self.beta * (smooth * sigmoid(margin) - (1.0 - smooth) * sigmoid(-margin));
                PairLoss {
                    loss: -(1.0 - smooth) * log_sigmoid(margin) - smooth * log_sigmoid(-margin),
                    preferred_slope: slope,
                    rejected_slope: -slope,
                    margin,
                }
            }
            DpoLoss::Ipo => {
                let mean = |answer: Score| ratio(answer) / answer.weight.max(1.0);
                let off = mean(preferred) - mean(rejected) - 0.5 / self.beta;
                PairLoss {
                    loss: off * off,
                    preferred_slope: 2.0 * off / preferred.weight.max(1.0),
                    rejected_slope: -2.0 * off / rejected.weight.max(1.0),
                    margin,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_derivatives() {
        let answer = |logp, weight| Score { logp, reference: -11.0, weight };
        for loss in [DpoLoss::Sigmoid, DpoLoss::Ipo] {
            for label_smoothing in [0.0, 0.2] {
                let dpo = Dpo { beta: 0.3, loss, label_smoothing };
                let at = |a: f64, b: f64| dpo.pair(answer(a, 4.0), answer(b, 7.0));
                let found = at(-10.0, -14.0);
                let step = 1e-5;
                let slope =
                    |plus: PairLoss, minus: PairLoss| (plus.loss - minus.loss) / (2.0 * step);
                let preferred = slope(at(-10.0 + step, -14.0), at(-10.0 - step, -14.0));
                let rejected = slope(at(-10.0, -14.0 + step), at(-10.0, -14.0 - step));
                assert!((found.preferred_slope - preferred).abs() < 1e-8, "{dpo:?}");
                assert!((found.rejected_slope - rejected).abs() < 1e-8, "{dpo:?}");
                assert!((found.margin - 0.3 * 4.0).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn no_difference_costs_ln_2_and_ipo_rests_at_its_margin() {
        let answer = |logp| Score { logp, reference: -5.0, weight: 2.0 };
        let loss = Dpo::default().pair(answer(-5.0), answer(-5.0)).loss;
        assert!((loss - std::f64::consts::LN_2).abs() < 1e-12);
        // 1 / (2 · 0.1) = 5 nats per target.
        let ipo = Dpo { loss: DpoLoss::Ipo, ..Dpo::default() };
        assert!(ipo.pair(answer(5.0), answer(-5.0)).loss < 1e-20);
    }
}
