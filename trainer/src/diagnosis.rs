//! What the numbers of a run say about it: overfitting, a learning rate that is too high or too low, gradients that
//! explode. A [`Diagnosis`] watches step reports and validation losses and says each thing once, until it is over.

use std::collections::VecDeque;

use crate::StepReport;

/// Validation losses and training losses that slopes are taken over.
const SLOPE_POINTS: usize = 5;
/// Points before overfitting can be told.
const POINTS_MIN: usize = 10;
/// Least slope that is one, as a share of the loss for each point.
const SLOPE_MIN: f64 = 0.01;
/// A loss above so many times that of the first steps has diverged.
const DIVERGED: f64 = 2.0;
/// Steps that are averaged.
const WINDOW: usize = 10;
/// Steps after which a loss should have moved.
const STEPS_MIN: usize = 50;
/// Least fall of the loss in [`STEPS_MIN`] steps, as a share of it.
const FALL_MIN: f64 = 0.01;
/// Norm of gradients before clipping that is never usual.
const NORM_MAX: f64 = 100.0;
/// The same, as a multiple of the median of the last steps.
const NORM_RATIO_MAX: f64 = 20.0;

/// What is the matter with a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Symptom {
    /// The training loss falls while the validation loss rises, each by at least 1 % a point over five points.
    Overfitting {
        /// Change of the training loss a point, as a share of it.
        train_slope: f64,
        /// Of the validation loss.
        validation_slope: f64,
    },
    /// The mean loss of ten steps is above twice that of the first ten: a tenth of the learning rate may do.
    RateTooHigh {
        /// Mean loss of the last steps.
        loss: f64,
        /// Of the first.
        first: f64,
    },
    /// In fifty steps the mean loss fell by less than 1 %: ten times the learning rate may do.
    RateTooLow {
        /// Mean loss of the last steps.
        loss: f64,
        /// Of the first.
        first: f64,
    },
    /// The norm of all gradients before clipping is above 100 and twenty times the usual one, or not finite.
    ExplodingGradients {
        /// The norm.
        norm: f64,
        /// Median of the steps before.
        usual: f64,
    },
}

impl Symptom {
    fn kind(self) -> usize {
        match self {
            Self::Overfitting { .. } => 0,
            Self::RateTooHigh { .. } => 1,
            Self::RateTooLow { .. } => 2,
            Self::ExplodingGradients { .. } => 3,
        }
    }
}

impl std::fmt::Display for Symptom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Overfitting { train_slope, validation_slope } => write!(
                f,
                "overfitting: the training loss changes by {:.1} % a point, the validation loss by {:+.1} %",
                100.0 * train_slope,
                100.0 * validation_slope
            ),
            Self::RateTooHigh { loss, first } => write!(
                f,
                "the learning rate may be too high: the loss is {loss:.3}, it was {first:.3}; try a tenth"
            ),
            Self::RateTooLow { loss, first } => write!(
                f,
                "the learning rate may be too low: the loss is {loss:.3}, it was {first:.3}; try ten times as much"
            ),
            Self::ExplodingGradients { norm, usual } => {
                write!(f, "exploding gradients: norm {norm:.1}, usually {usual:.2}")
            }
        }
    }
}

/// Watches one run.
#[derive(Clone, Debug, Default)]
pub struct Diagnosis {
    /// Losses of the first steps.
    first: Vec<f64>,
    /// Of the last.
    last: VecDeque<f64>,
    norms: VecDeque<f64>,
    steps: usize,
    /// Mean training loss since the last validation: sum and number.
    since: (f64, u32),
    /// Training and validation loss of each validation.
    points: Vec<(f64, f64)>,
    /// Symptoms that were told and are not over.
    told: [bool; 4],
}

impl Diagnosis {
    /// Takes a step; returns what is new.
    pub fn step(&mut self, report: &StepReport) -> Vec<Symptom> {
        let mut found = Vec::new();
        let usual = median(&self.norms);
        let jumped = self.norms.len() == WINDOW
            && report.grad_norm > NORM_MAX
            && report.grad_norm > NORM_RATIO_MAX * usual;
        self.weigh(
            &mut found,
            report.skipped || jumped,
            Symptom::ExplodingGradients { norm: report.grad_norm, usual },
        );
        if report.skipped {
            return found;
        }
        push(&mut self.norms, report.grad_norm);
        push(&mut self.last, report.loss);
        if self.first.len() < WINDOW {
            self.first.push(report.loss);
        }
        self.steps += 1;
        self.since = (self.since.0 + report.loss, self.since.1 + 1);
        if self.steps < 2 * WINDOW {
            return found;
        }
        let (first, loss) = (mean(&self.first), mean(self.last.make_contiguous()));
        // Losses that begin below zero or at zero have no share to rise by.
        let is_high = first > 0.0 && loss > DIVERGED * first;
        self.weigh(&mut found, is_high, Symptom::RateTooHigh { loss, first });
        let is_low = self.steps >= STEPS_MIN
            && (first - loss).abs() < FALL_MIN * first.abs()
            && report.learning_rate > 0.0;
        self.weigh(&mut found, is_low, Symptom::RateTooLow { loss, first });
        found
    }

    /// Takes a validation loss, to be compared with the training loss since the one before; returns what is new.
    pub fn validation(&mut self, loss: f64) -> Option<Symptom> {
        let (sum, n) = std::mem::take(&mut self.since);
        if n == 0 || !loss.is_finite() {
            return None;
        }
        self.points.push((sum / f64::from(n), loss));
        if self.points.len() < POINTS_MIN {
            return None;
        }
        let last = &self.points[self.points.len() - SLOPE_POINTS..];
        let train_slope = slope(last.iter().map(|point| point.0));
        let validation_slope = slope(last.iter().map(|point| point.1));
        let is_so = train_slope < -SLOPE_MIN && validation_slope > SLOPE_MIN;
        let mut found = Vec::new();
        let symptom = Symptom::Overfitting { train_slope, validation_slope };
        self.weigh(&mut found, is_so, symptom);
        found.pop()
    }

    /// Tells a symptom when it begins.
    fn weigh(&mut self, found: &mut Vec<Symptom>, is_so: bool, symptom: Symptom) {
        let told = &mut self.told[symptom.kind()];
        if is_so && !*told {
            found.push(symptom);
        }
        *told = is_so;
    }
}

fn push(values: &mut VecDeque<f64>, value: f64) {
    if values.len() == WINDOW {
        values.pop_front();
    }
    values.push_back(value);
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn median(values: &VecDeque<f64>) -> f64 {
    let mut sorted: Vec<f64> = values.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// Slope of the line of least squares through equally distant values, as a share of their mean.
fn slope(values: impl ExactSizeIterator<Item = f64> + Clone) -> f64 {
    let n = values.len() as f64;
    let (middle, mean) = ((n - 1.0) / 2.0, values.clone().sum::<f64>() / n);
    let (mut up, mut down) = (0.0, 0.0);
    for (index, value) in values.enumerate() {
        let x = index as f64 - middle;
        (up, down) = (up + x * (value - mean), down + x * x);
    }
    up / down / mean.abs().max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(loss: f64, grad_norm: f64) -> StepReport {
        StepReport { loss, grad_norm, learning_rate: 1e-4, ..StepReport::default() }
    }

    /// The steps at which something is new, and what.
    fn kinds(losses: impl IntoIterator<Item = f64>) -> Vec<(usize, usize)> {
        let mut diagnosis = Diagnosis::default();
        let steps = losses.into_iter().enumerate();
        let found = steps.flat_map(|(step, loss)| {
            let found = diagnosis.step(&report(loss, 1.0));
            found.into_iter().map(move |symptom| (step, symptom.kind())).collect::<Vec<_>>()
        });
        found.collect()
    }

    #[test]
    fn a_run_that_learns_is_well() {
        assert_eq!(kinds((0..200).map(|step| 3.0 * (-f64::from(step) / 60.0).exp() + 0.5)), []);
    }

    #[test]
    fn a_rate_is_too_high_or_too_low() {
        let diverging = |step: i32| if step < 30 { 2.0 } else { 2.0 + 0.5 * f64::from(step - 30) };
        let found = kinds((0..60).map(diverging));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].1 == 1 && (36..42).contains(&found[0].0), "{found:?}");
        assert_eq!(kinds((0..120).map(|step| 2.0 + 0.001 * f64::from(step % 3))), [(49, 2)]);
        // It comes back once it was over.
        let twice = (0..150).map(|step| if (60..80).contains(&step) { 1.0 } else { 2.0 });
        assert_eq!(kinds(twice).iter().filter(|found| found.1 == 2).count(), 2);
    }

    #[test]
    fn gradients_explode_or_are_not_finite() {
        let mut diagnosis = Diagnosis::default();
        // Large from the start is not an explosion.
        for _ in 0..15 {
            assert_eq!(diagnosis.step(&report(1.0, 150.0)), []);
        }
        let exploding = |symptoms: &[Symptom]| matches!(symptoms, [Symptom::ExplodingGradients { usual, .. }] if *usual > 149.0);
        assert!(exploding(&diagnosis.step(&report(1.0, 1e4))));
        assert_eq!(diagnosis.step(&report(1.0, 1e4)), []);
        assert_eq!(diagnosis.step(&report(1.0, 150.0)), []);
        let skipped = StepReport { skipped: true, ..report(f64::NAN, f64::INFINITY) };
        assert!(exploding(&diagnosis.step(&skipped)));
        assert!(diagnosis.last.iter().all(|loss| loss.is_finite()));
    }

    #[test]
    fn overfitting_is_a_matter_of_both_slopes() {
        let run = |train: f64, validation: f64, points: i32| {
            let mut diagnosis = Diagnosis::default();
            let mut found = 0;
            for point in 0..points {
                for _ in 0..3 {
                    diagnosis.step(&report(1.0 + train * f64::from(point), 1.0));
                }
                let loss = 1.0 + validation * f64::from(point);
                found += usize::from(diagnosis.validation(loss).is_some());
            }
            found
        };
        assert_eq!(run(-0.03, 0.03, 15), 1);
        assert_eq!(run(-0.03, 0.03, 9), 0, "too few points");
        assert_eq!(run(-0.03, -0.02, 15), 0, "it learns");
        assert_eq!(run(0.03, 0.03, 15), 0, "both rise");
        assert_eq!(run(-0.03, 0.001, 15), 0, "noise");
    }

    #[test]
    fn symptoms_have_words() {
        let symptom = Symptom::RateTooHigh { loss: 4.2, first: 2.0 };
        assert_eq!(
            symptom.to_string(),
            "the learning rate may be too high: the loss is 4.200, it was 2.000; try a tenth"
        );
    }
}
