//! What training minimizes: from log-probabilities of target tokens to a loss and its derivatives.
//!
//! | objective | learns from | source |
//! |---|---|---|
//! | [`sft`] | answers | cross-entropy over target tokens |
//! | [`dpo`] | pairs of answers | arXiv 2305.18290; `ipo`: arXiv 2310.12036 |
//! | [`kto`] | answers with thumbs up or down | arXiv 2402.01306, as TRL computes it |
//!
//! Each is checked against losses and gradient norms of a public implementation, see `tests/fixtures/training`.

pub mod dpo;
pub mod kto;
pub mod sft;

use crate::error::TrainerError;

pub use dpo::{Dpo, DpoLoss};
pub use kto::Kto;

/// A sequence of tokens and the weight of each as a target; 0 where it is none. The first token can be no target.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targeted {
    /// Token ids, `[T]`.
    pub tokens: Box<[u32]>,
    /// `[T]`, finite, no unit.
    pub weights: Box<[f32]>,
}

impl Targeted {
    /// A sequence whose flagged tokens are targets of weight 1.
    ///
    /// # Panics
    /// When there are not as many flags as tokens.
    pub fn new(tokens: &[u32], is_target: impl IntoIterator<Item = bool>) -> Self {
        let weights: Box<[f32]> =
            is_target.into_iter().map(|flag| f32::from(u8::from(flag))).collect();
        assert_eq!(tokens.len(), weights.len(), "one flag per token");
        Self { tokens: tokens.into(), weights }
    }

    /// Whether each token is a target.
    pub fn mask(&self) -> Vec<bool> {
        self.weights.iter().enumerate().map(|(i, weight)| i > 0 && *weight != 0.0).collect()
    }

    /// Weights of the targets, in order.
    pub(crate) fn target_weights(&self) -> impl Iterator<Item = f32> {
        self.weights.iter().skip(1).copied().filter(|weight| *weight != 0.0)
    }

    /// The answer of `self`, from its first target on, behind the prompt of `other`: what KTO estimates a KL divergence
    /// from.
    pub fn after_prompt_of(&self, other: &Self) -> Self {
        let prompt = |sequence: &Self| {
            sequence.mask().iter().position(|flag| *flag).unwrap_or(sequence.tokens.len())
        };
        let (prompt_end, answer) = (prompt(other), prompt(self));
        let tokens = [&other.tokens[..prompt_end], &self.tokens[answer..]].concat();
        let mut weights = vec![0.0; prompt_end];
        weights.extend_from_slice(&self.weights[answer..]);
        Self { tokens: tokens.into(), weights: weights.into() }
    }
}

/// What a batch consists of.
#[derive(Clone, Debug, PartialEq)]
pub enum Sample {
    /// Targets to be predicted.
    Supervised(Targeted),
    /// Two answers to one prompt; their targets are the answers.
    Preference {
        /// The better one.
        preferred: Targeted,
        /// The worse one.
        rejected: Targeted,
    },
    /// An answer and whether it was liked; its targets are the answer.
    Rated {
        /// Prompt and answer.
        answer: Targeted,
        /// Thumbs up.
        desirable: bool,
    },
}

impl Sample {
    /// In words.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Supervised(_) => "a supervised sequence",
            Self::Preference { .. } => "a preference pair",
            Self::Rated { .. } => "a rated answer",
        }
    }

    /// The sequences that gradients flow through.
    pub(crate) fn sequences(&self) -> Vec<&Targeted> {
        match self {
            Self::Supervised(sequence) | Self::Rated { answer: sequence, .. } => vec![sequence],
            Self::Preference { preferred, rejected } => vec![preferred, rejected],
        }
    }
}

/// What is minimized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// Mean negative log-likelihood of the targets.
    Sft,
    /// Preferences against a reference.
    Dpo(Dpo),
    /// Ratings against a reference.
    Kto(Kto),
}

impl Objective {
    /// Its name in settings and messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Dpo(_) => "dpo",
            Self::Kto(_) => "kto",
        }
    }

    /// Whether it compares with a reference model.
    pub fn needs_reference(&self) -> bool {
        matches!(self, Self::Dpo(_) | Self::Kto(_))
    }

    /// Checks its numbers.
    ///
    /// # Errors
    /// [`TrainerError::Setting`].
    pub(crate) fn check(&self) -> Result<(), TrainerError> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let fits = |setting, value: f64, fits: bool, expected| {
            let error = TrainerError::Setting { setting, value, expected };
            if fits { Ok(()) } else { Err(error) }
        };
        match self {
            Self::Sft => Ok(()),
            Self::Dpo(dpo) => {
                fits("beta", dpo.beta, positive(dpo.beta), "above 0")?;
                let smooth = dpo.label_smoothing;
                let expected = "at least 0 and below 0.5";
                fits("label_smoothing", smooth, (0.0..0.5).contains(&smooth), expected)
            }
            Self::Kto(kto) => {
                fits("beta", kto.beta, positive(kto.beta), "above 0")?;
                for (setting, value) in [
                    ("desirable_weight", kto.desirable_weight),
                    ("undesirable_weight", kto.undesirable_weight),
                ] {
                    fits(setting, value, value == 0.0 || positive(value), "at least 0")?;
                }
                Ok(())
            }
        }
    }

    /// The kind of sample that it learns from, in words.
    pub(crate) fn expects(&self) -> &'static str {
        match self {
            Self::Sft => "supervised sequences",
            Self::Dpo(_) => "preference pairs",
            Self::Kto(_) => "rated answers",
        }
    }

    /// Whether it learns from this kind of sample.
    pub(crate) fn takes(&self, sample: &Sample) -> bool {
        matches!(
            (self, sample),
            (Self::Sft, Sample::Supervised(_))
                | (Self::Dpo(_), Sample::Preference { .. })
                | (Self::Kto(_), Sample::Rated { .. })
        )
    }
}

/// One sequence's scores.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// `Σ w logp` over its targets.
    pub logp: f64,
    /// The same under the reference; 0 where there is none.
    pub reference: f64,
    /// `Σ w`: the number of targets, where all weights are 1.
    pub weight: f64,
}

/// What the loss of a sample depends on beyond it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct BatchFacts {
    /// Samples of the batch.
    pub(crate) n_samples: f64,
    /// Weights of all targets of all its sequences.
    pub(crate) total_weight: f64,
    /// KTO's estimate.
    pub(crate) divergence: f64,
}

/// What a sample adds to its batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) loss: f64,
    /// `dL/d(Σ w logp)` of each of its sequences.
    pub(crate) slopes: [f64; 2],
    /// The reward: of a pair its margin, of a rated answer its own.
    pub(crate) reward: f64,
}

impl Objective {
    /// What a sample adds to the loss of its batch. `scores` are those of its sequences.
    pub(crate) fn outcome(&self, sample: &Sample, scores: &[Score], batch: BatchFacts) -> Outcome {
        let first = scores[0];
        match (self, sample) {
            (Self::Dpo(dpo), Sample::Preference { .. }) => {
                let pair = dpo.pair(first, scores[1]);
                let slopes = [pair.preferred_slope, pair.rejected_slope];
                Outcome {
                    loss: pair.loss / batch.n_samples,
                    slopes: slopes.map(|slope| slope / batch.n_samples),
                    reward: pair.margin,
                }
            }
            (Self::Kto(kto), Sample::Rated { desirable, .. }) => {
                let row = kto.row(first.logp - first.reference, batch.divergence, *desirable);
                let slopes = [row.slope / batch.n_samples, 0.0];
                Outcome { loss: row.loss / batch.n_samples, slopes, reward: row.reward }
            }
            // Other combinations were refused when the batch was given.
            _ => {
                let (loss, slope) = sft::loss(first.logp, batch.total_weight);
                Outcome { loss, slopes: [slope, 0.0], reward: 0.0 }
            }
        }
    }
}

/// `ln σ(x)`, without overflow.
pub(crate) fn log_sigmoid(x: f64) -> f64 {
    if x >= 0.0 { -(-x).exp().ln_1p() } else { x - x.exp().ln_1p() }
}

/// `σ(x)`.
pub(crate) fn sigmoid(x: f64) -> f64 {
    log_sigmoid(x).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_moves_behind_another_prompt() {
        let sequence = |tokens: &[u32], first: usize| {
            Targeted::new(tokens, (0..tokens.len()).map(|i| i >= first))
        };
        let moved = sequence(&[1, 2, 30, 31], 2).after_prompt_of(&sequence(&[5, 6, 7, 40], 3));
        assert_eq!(moved, sequence(&[5, 6, 7, 30, 31], 3));
    }

    #[test]
    fn sigmoids_of_large_numbers() {
        assert!((log_sigmoid(0.0) + std::f64::consts::LN_2).abs() < 1e-15);
        assert!((log_sigmoid(-800.0) + 800.0).abs() < 1e-9);
        assert!(
            log_sigmoid(800.0).abs() < 1e-300 && (sigmoid(1.0) + sigmoid(-1.0) - 1.0).abs() < 1e-15
        );
    }
}
