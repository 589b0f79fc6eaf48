//! Distillation from a teacher of the same vocabulary, the base or an earlier generation (arXiv 1503.02531), beside the
//! usual loss. At every target, with the teacher's `k` likeliest tokens and all others together as one more outcome:
//!
//! ```text
//! KL = Σ_j p_j ln(p_j / q_j) + p_rest ln(p_rest / q_rest)          p the teacher's, q the adapter's probabilities
//! L  = Σ w (a KL − b ln q(target)) / Σ w
//! ```
//! This is the divergence of two distributions over `k + 1` outcomes: below that of the whole vocabulary (data processing
//! inequality), zero where the two agree, and a function of `k` log-probabilities only. With the base as its teacher and
//! `b = 1` it is supervised fine-tuning that stays near the base.

use pleach_engine::train::Likely;

/// Least probability of all other tokens: below, f32 log-probabilities say nothing about it.
const REST_MIN: f64 = 1e-6;

/// Settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distillation {
    /// `k`; 20 is close to the whole vocabulary.
    pub top_k: usize,
    /// `a`.
    pub kl_weight: f64,
    /// `b`; 0 learns from the teacher alone.
    pub nll_weight: f64,
}

impl Distillation {
    /// Most tokens of a teacher's distribution.
    pub const TOP_K_MAX: usize = 256;
}

impl Default for Distillation {
    fn default() -> Self {
        Self { top_k: 20, kl_weight: 1.0, nll_weight: 0.0 }
    }
}

/// What a target comes to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TargetLoss {
    pub(crate) loss: f64,
    pub(crate) divergence: f64,
    /// `dL/dlogp` of the target, then of the teacher's tokens.
    pub(crate) slopes: Vec<f64>,
}

impl Distillation {
    /// `logps` are those of the target and of the teacher's tokens.
    pub(crate) fn target(&self, logps: &[f32], teacher: &[Likely]) -> TargetLoss {
        let (target, logps) = (f64::from(logps[0]), &logps[1..]);
        let mut slopes = vec![-self.nll_weight];
        let (mut divergence, mut p_sum, mut q_sum) = (0.0, 0.0, 0.0);
        for (teacher, &logp) in teacher.iter().zip(logps) {
            let (teacher, logp) = (f64::from(teacher.logp), f64::from(logp));
            let p = teacher.exp();
            divergence += p * (teacher - logp);
            (p_sum, q_sum) = (p_sum + p, q_sum + logp.exp());
        }
        let (p_rest, q_rest) = ((1.0 - p_sum).max(REST_MIN), (1.0 - q_sum).max(REST_MIN));
        divergence += p_rest * (p_rest / q_rest).ln();
        // q_rest falls as any of the others rises, unless it is held at its least.
        let of_rest = if q_rest > REST_MIN { p_rest / q_rest } else { 0.0 };
        for (teacher, &logp) in teacher.iter().zip(logps) {
            let (p, q) = (f64::from(teacher.logp).exp(), f64::from(logp).exp());
            slopes.push(self.kl_weight * (q * of_rest - p));
        }
        let loss = self.kl_weight * divergence - self.nll_weight * target;
        TargetLoss { loss, divergence, slopes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn likely(probabilities: &[f64]) -> Vec<Likely> {
        let of = |(token, p): (u32, &f64)| Likely { token, logp: crate::optimizer::narrow(p.ln()) };
        (0..).zip(probabilities).map(of).collect()
    }

    fn logps(probabilities: &[f64]) -> Vec<f32> {
        probabilities.iter().map(|p| crate::optimizer::narrow(p.ln())).collect()
    }

    #[test]
    fn slopes_are_derivatives_and_agreement_costs_nothing() {
        let distillation = Distillation { top_k: 3, kl_weight: 0.7, nll_weight: 0.3 };
        let (teacher, at) = (likely(&[0.5, 0.2, 0.1]), logps(&[0.05, 0.3, 0.3, 0.15]));
        let found = distillation.target(&at, &teacher);
        for index in 0..at.len() {
            let loss_at = |by: f32| {
                let mut at = at.clone();
                at[index] += by;
                (distillation.target(&at, &teacher).loss, f64::from(at[index]))
            };
            let ((plus, x_plus), (minus, x_minus)) = (loss_at(1e-3), loss_at(-1e-3));
            let slope = (plus - minus) / (x_plus - x_minus);
            assert!((found.slopes[index] - slope).abs() < 1e-5, "{index}: {slope}");
        }
        let same = distillation.target(&logps(&[0.05, 0.5, 0.2, 0.1]), &teacher);
        assert!(same.divergence.abs() < 1e-6 && found.divergence > 0.05);
        assert!(same.slopes[1..].iter().all(|slope| slope.abs() < 1e-6), "{:?}", same.slopes);
    }

    #[test]
    fn a_teacher_that_is_sure_gives_finite_numbers() {
        let distillation = Distillation::default();
        let found = distillation.target(&logps(&[1.0, 1.0]), &likely(&[1.0]));
        assert!(found.divergence.abs() < 1e-9 && found.slopes.iter().all(|s| s.is_finite()));
        let other = distillation.target(&[-90.0, -90.0], &likely(&[1.0]));
        assert!((other.divergence - 90.0).abs() < 1e-3, "{}", other.divergence);
    }
}
