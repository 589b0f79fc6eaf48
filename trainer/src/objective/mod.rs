//! What training minimizes: from log-probabilities of target tokens, or outputs of a head, to a loss and its derivatives.
//!
//! | objective | learns from | source |
//! |---|---|---|
//! | [`sft`] | answers, texts | cross-entropy over target tokens |
//! | [`dpo`] | pairs of answers | arXiv 2305.18290; `ipo`: arXiv 2310.12036 |
//! | [`kto`] | answers with thumbs up or down | arXiv 2402.01306, as TRL computes it |
//! | [`distillation`] | answers, and what a teacher says of every token | arXiv 1503.02531, over the teacher's likeliest tokens |
//! | [`policy_gradient`] | answers that an earlier generation sampled, with advantages | arXiv 1707.06347, 2503.14476 |
//! | [`outputs`] | texts with classes or numbers, pairs | cross-entropy, squared error, Bradley and Terry |
//!
//! Each is checked against losses and gradients of public implementations, see `tests/fixtures/training`.

pub mod distillation;
pub mod dpo;
pub mod kto;
mod outputs;
pub mod policy_gradient;
mod sample;
pub mod sft;

use pleach_engine::train::Likely;

use crate::{error::TrainerError, optimizer::narrow};

pub use distillation::Distillation;
pub use dpo::{Dpo, DpoLoss};
pub use kto::Kto;
pub use policy_gradient::{Clip, PolicyGradient, advantages};
pub use sample::{Sample, Targeted};

/// What is minimized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// Mean negative log-likelihood of the targets.
    Sft,
    /// Preferences against a reference.
    Dpo(Dpo),
    /// Ratings against a reference.
    Kto(Kto),
    /// Mean divergence from a teacher, the reference.
    Distillation(Distillation),
    /// Advantages of sampled answers.
    PolicyGradient(PolicyGradient),
    /// Classes, by a head.
    Classification {
        /// Classes.
        n_labels: usize,
    },
    /// Numbers, by a head.
    Regression,
    /// Preferences, by a head.
    Reward,
}

/// Classes of a head at most.
pub const LABELS_MAX: usize = 4096;

/// What a pass is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Log-probabilities of targets.
    Targets,
    /// Those, and of a teacher's likeliest tokens at the same rows.
    Candidates { top_k: usize },
    /// Outputs of the head at the last token.
    Outputs,
}

impl Objective {
    /// Its name in settings and messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Dpo(_) => "dpo",
            Self::Kto(_) => "kto",
            Self::Distillation(_) => "distillation",
            Self::PolicyGradient(_) => "policy_gradient",
            Self::Classification { .. } => "classification",
            Self::Regression => "regression",
            Self::Reward => "reward",
        }
    }

    /// Whether it compares with a reference model.
    pub fn needs_reference(&self) -> bool {
        match self {
            Self::Dpo(_) | Self::Kto(_) => true,
            Self::Distillation(distillation) => distillation.kl_weight > 0.0,
            Self::PolicyGradient(gradient) => gradient.kl_weight > 0.0,
            Self::Sft | Self::Classification { .. } | Self::Regression | Self::Reward => false,
        }
    }

    /// Outputs of the head that it trains; `None` for objectives over tokens.
    pub fn n_outputs(&self) -> Option<usize> {
        match self {
            Self::Classification { n_labels } => Some(*n_labels),
            Self::Regression | Self::Reward => Some(1),
            Self::Sft
            | Self::Dpo(_)
            | Self::Kto(_)
            | Self::Distillation(_)
            | Self::PolicyGradient(_) => None,
        }
    }

    pub(crate) fn asks(&self) -> Asked {
        match self {
            Self::Distillation(distillation) if distillation.kl_weight > 0.0 => {
                Asked::Candidates { top_k: distillation.top_k }
            }
            Self::Classification { .. } | Self::Regression | Self::Reward => Asked::Outputs,
            Self::Sft
            | Self::Dpo(_)
            | Self::Kto(_)
            | Self::Distillation(_)
            | Self::PolicyGradient(_) => Asked::Targets,
        }
    }

    /// Checks its numbers.
    ///
    /// # Errors
    /// [`TrainerError::Setting`].
    pub(crate) fn check(&self) -> Result<(), TrainerError> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let from_zero = |value: f64| value.is_finite() && value >= 0.0;
        let fits = |setting, value: f64, fits: bool, expected| {
            let error = TrainerError::Setting { setting, value, expected };
            if fits { Ok(()) } else { Err(error) }
        };
        match self {
            Self::Sft | Self::Regression | Self::Reward => Ok(()),
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
                    fits(setting, value, from_zero(value), "at least 0")?;
                }
                Ok(())
            }
            Self::Distillation(Distillation { top_k, kl_weight, nll_weight }) => {
                let within = (1..=Distillation::TOP_K_MAX).contains(top_k);
                fits("top_k", *top_k as f64, within, "1 to 256")?;
                fits("kl_weight", *kl_weight, from_zero(*kl_weight), "at least 0")?;
                fits("nll_weight", *nll_weight, from_zero(*nll_weight), "at least 0")?;
                fits("kl_weight", *kl_weight, kl_weight + nll_weight > 0.0, "or nll_weight above 0")
            }
            Self::PolicyGradient(PolicyGradient { clip, kl_weight }) => {
                fits("kl_weight", *kl_weight, from_zero(*kl_weight), "at least 0")?;
                let Some(Clip { low, high }) = *clip else { return Ok(()) };
                fits("clip.low", low, (0.0..1.0).contains(&low), "at least 0 and below 1")?;
                fits("clip.high", high, from_zero(high), "at least 0")
            }
            Self::Classification { n_labels } => {
                let within = (2..=LABELS_MAX).contains(n_labels);
                fits("n_labels", *n_labels as f64, within, "2 to 4096")
            }
        }
    }

    /// The kind of sample that it learns from, in words.
    pub(crate) fn expects(&self) -> &'static str {
        match self {
            Self::Sft | Self::Distillation(_) => "supervised sequences",
            Self::Dpo(_) | Self::Reward => "preference pairs",
            Self::Kto(_) => "rated answers",
            Self::PolicyGradient(_) => "rollouts",
            Self::Classification { .. } => "labelled texts",
            Self::Regression => "scored texts",
        }
    }

    /// Whether it learns from this kind of sample.
    pub(crate) fn takes(&self, sample: &Sample) -> bool {
        matches!(
            (self, sample),
            (Self::Sft | Self::Distillation(_), Sample::Supervised(_))
                | (Self::Dpo(_) | Self::Reward, Sample::Preference { .. })
                | (Self::Kto(_), Sample::Rated { .. })
                | (Self::PolicyGradient(_), Sample::Rollout { .. })
                | (Self::Classification { .. }, Sample::Labelled { .. })
                | (Self::Regression, Sample::Scored { .. })
        )
    }

    /// What is wrong with a sample of the right kind.
    pub(crate) fn problem_of(&self, sample: &Sample) -> Option<&'static str> {
        let has_no_tokens = || sample.sequences().iter().any(|text| text.tokens.is_empty());
        match (self, sample) {
            (Self::Classification { n_labels }, Sample::Labelled { label, weight, .. }) => {
                if label >= n_labels {
                    return Some("its label is beyond the classes");
                }
                if !(weight.is_finite() && *weight >= 0.0) {
                    return Some("its weight is negative or not finite");
                }
            }
            (Self::Regression, Sample::Scored { score, .. }) if !score.is_finite() => {
                return Some("its score is not finite");
            }
            (_, Sample::Rollout { answer, sampled_logps, advantage }) => {
                if sampled_logps.len() != answer.target_weights().count() {
                    return Some("it has not as many sampled log-probabilities as targets");
                }
                if !(advantage.is_finite() && sampled_logps.iter().all(|logp| logp.is_finite())) {
                    return Some("its advantage or a sampled log-probability is not finite");
                }
            }
            _ => {}
        }
        (self.asks() == Asked::Outputs && has_no_tokens()).then_some("it has no tokens")
    }
}

/// Sums over a sequence's targets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// `Σ w logp`.
    pub logp: f64,
    /// The same under the reference; 0 where there is none.
    pub reference: f64,
    /// `Σ w`: the number of targets, where all weights are 1.
    pub weight: f64,
}

/// All that a step found out about one sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SequenceScores {
    /// Weight of every target.
    pub weights: Vec<f32>,
    /// Log-probability of every target; for distillation those of a target and of the teacher's tokens, in turn.
    pub logps: Vec<f32>,
    /// Whether every target was the likeliest token.
    pub hits: Vec<bool>,
    /// Log-probability of every target under the reference; empty where there is none.
    pub reference: Vec<f32>,
    /// A teacher's likeliest tokens, `[targets, k]`.
    pub teacher: Vec<Likely>,
    /// Outputs of the head.
    pub outputs: Vec<f64>,
}

impl SequenceScores {
    /// Their sums.
    pub fn total(&self) -> Score {
        let per_target = self.logps.len() / self.weights.len().max(1);
        let sum = |logps: &mut dyn Iterator<Item = &f32>| {
            let terms = logps.zip(&self.weights);
            terms.map(|(logp, weight)| f64::from(*logp) * f64::from(*weight)).sum()
        };
        Score {
            logp: sum(&mut self.logps.iter().step_by(per_target.max(1))),
            reference: sum(&mut self.reference.iter()),
            weight: self.weights.iter().copied().map(f64::from).sum(),
        }
    }
}

/// What the loss of a sample depends on beyond it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct BatchFacts {
    /// Samples of the batch.
    pub(crate) n_samples: f64,
    /// Weights of all targets of all its sequences, or of labelled texts.
    pub(crate) total_weight: f64,
    /// KTO's estimate.
    pub(crate) divergence: f64,
}

/// What a sample adds to its batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) loss: f64,
    /// Of each of its sequences: `dL/d` of each log-probability, or of each output.
    pub(crate) slopes: Vec<Vec<f32>>,
    /// The reward: of a pair its margin, of a rated answer its own.
    pub(crate) reward: f64,
    /// What it adds to the batch's mean divergence from the reference.
    pub(crate) divergence: f64,
    /// A pair in its order, a rating of the right sign, the right label.
    pub(crate) is_right: bool,
}

impl Objective {
    /// What a sample adds to the loss of its batch. `scores` are those of its sequences.
    pub(crate) fn outcome(
        &self,
        sample: &Sample,
        scores: &[SequenceScores],
        batch: BatchFacts,
    ) -> Outcome {
        let (first, n) = (&scores[0], batch.n_samples);
        // The same slope for `w logp` of all targets.
        let even = |scores: &SequenceScores, slope: f64| -> Vec<f32> {
            scores.weights.iter().map(|weight| narrow(slope * f64::from(*weight))).collect()
        };
        let of_outputs = |loss: outputs::OutputLoss, share: f64| Outcome {
            loss: loss.loss * share,
            slopes: vec![loss.slopes.iter().map(|slope| narrow(slope * share)).collect()],
            ..Outcome::default()
        };
        match (self, sample) {
            (Self::Dpo(dpo), Sample::Preference { .. }) => {
                let pair = dpo.pair(first.total(), scores[1].total());
                Outcome {
                    loss: pair.loss / n,
                    slopes: vec![
                        even(first, pair.preferred_slope / n),
                        even(&scores[1], pair.rejected_slope / n),
                    ],
                    reward: pair.margin,
                    is_right: pair.margin > 0.0,
                    ..Outcome::default()
                }
            }
            (Self::Kto(kto), Sample::Rated { desirable, .. }) => {
                let total = first.total();
                let row = kto.row(total.logp - total.reference, batch.divergence, *desirable);
                Outcome {
                    loss: row.loss / n,
                    slopes: vec![even(first, row.slope / n)],
                    reward: row.reward,
                    is_right: if *desirable { row.reward > 0.0 } else { row.reward < 0.0 },
                    ..Outcome::default()
                }
            }
            (Self::Distillation(distillation), Sample::Supervised(_))
                if distillation.kl_weight > 0.0 =>
            {
                distill(distillation, first, batch.total_weight)
            }
            (Self::Distillation(distillation), Sample::Supervised(_)) => {
                let total = batch.total_weight / distillation.nll_weight;
                let (loss, slope) = sft::loss(first.total().logp, total);
                Outcome { loss, slopes: vec![even(first, slope)], ..Outcome::default() }
            }
            (Self::PolicyGradient(objective), Sample::Rollout { sampled_logps, advantage, .. }) => {
                rollout(objective, first, sampled_logps, *advantage, batch.total_weight)
            }
            (Self::Classification { .. }, Sample::Labelled { label, weight, .. }) => {
                let loss = outputs::classification(&first.outputs, *label);
                let is_right = outputs::likeliest(&first.outputs) == *label;
                let share = f64::from(*weight) / batch.total_weight;
                Outcome { is_right, ..of_outputs(loss, share) }
            }
            (Self::Regression, Sample::Scored { score, .. }) => {
                of_outputs(outputs::regression(first.outputs[0], f64::from(*score)), 1.0 / n)
            }
            (Self::Reward, Sample::Preference { .. }) => {
                let margin = first.outputs[0] - scores[1].outputs[0];
                let mut outcome = of_outputs(outputs::reward(margin), 1.0 / n);
                let of_rejected = outcome.slopes[0].iter().map(|slope| -slope).collect();
                outcome.slopes.push(of_rejected);
                Outcome { reward: margin, is_right: margin > 0.0, ..outcome }
            }
            // Other combinations were refused when the batch was given.
            _ => {
                let (loss, slope) = sft::loss(first.total().logp, batch.total_weight);
                Outcome { loss, slopes: vec![even(first, slope)], ..Outcome::default() }
            }
        }
    }
}

fn distill(objective: &Distillation, scores: &SequenceScores, total_weight: f64) -> Outcome {
    let n_targets = scores.weights.len().max(1);
    let (per_target, top_k) = (scores.logps.len() / n_targets, scores.teacher.len() / n_targets);
    let mut outcome = Outcome { slopes: vec![Vec::new()], ..Outcome::default() };
    for (index, weight) in scores.weights.iter().enumerate() {
        let logps = &scores.logps[index * per_target..][..per_target];
        let target = objective.target(logps, &scores.teacher[index * top_k..][..top_k]);
        let share = f64::from(*weight) / total_weight;
        outcome.loss += target.loss * share;
        outcome.divergence += target.divergence * share;
        outcome.slopes[0].extend(target.slopes.iter().map(|slope| narrow(slope * share)));
    }
    outcome
}

fn rollout(
    objective: &PolicyGradient,
    scores: &SequenceScores,
    sampled_logps: &[f32],
    advantage: f32,
    total_weight: f64,
) -> Outcome {
    let mut outcome = Outcome { slopes: vec![Vec::new()], ..Outcome::default() };
    for (index, (weight, logp)) in scores.weights.iter().zip(&scores.logps).enumerate() {
        let reference = scores.reference.get(index).copied().map_or(0.0, f64::from);
        let sampled = f64::from(sampled_logps[index]);
        let target = objective.target(f64::from(*logp), sampled, reference, f64::from(advantage));
        let share = f64::from(*weight) / total_weight;
        outcome.loss += target.loss * share;
        outcome.divergence += target.divergence * share;
        outcome.slopes[0].push(narrow(target.slope * share));
    }
    outcome
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
    fn sigmoids_of_large_numbers() {
        assert!((log_sigmoid(0.0) + std::f64::consts::LN_2).abs() < 1e-15);
        assert!((log_sigmoid(-800.0) + 800.0).abs() < 1e-9);
        assert!(
            log_sigmoid(800.0).abs() < 1e-300 && (sigmoid(1.0) + sigmoid(-1.0) - 1.0).abs() < 1e-15
        );
    }
}
