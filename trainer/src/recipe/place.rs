//! How far a training is, and what is measured on its way.

use serde::{Deserialize, Serialize};

use super::Measured;
use crate::{StepReport, data::Position};

/// Where a training is: what a state keeps as its position, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The step that comes next.
    pub position: Position,
    /// Steps that were made, those that were skipped too.
    pub steps: u64,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// What was measured so far: the text of [`Results`](super::Results).
    pub csv: String,
}

impl Place {
    /// A step was made; `next` comes after it.
    pub fn advance(&mut self, next: Position, report: &StepReport) {
        self.position = next;
        self.steps += 1;
        self.tokens += report.rows as u64;
    }
}

/// Adds up what batches of validation rows come to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Validation {
    loss: f64,
    accuracy: f64,
    n_targets: f64,
}

impl Validation {
    /// Takes what a batch came to.
    pub fn add(&mut self, report: &StepReport) {
        let (measured, weight) = (Measured::of(report), report.targets as f64);
        self.loss += measured.loss * weight;
        self.accuracy += measured.accuracy * weight;
        self.n_targets += weight;
    }

    /// Means over all targets; `None` without any.
    pub fn measured(self) -> Option<Measured> {
        let Self { loss, accuracy, n_targets } = self;
        let measured = Measured { loss: loss / n_targets, accuracy: accuracy / n_targets };
        (n_targets > 0.0).then_some(measured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_count_by_their_targets() {
        let mut validation = Validation::default();
        assert_eq!(validation.measured(), None);
        let batch = |loss, targets, token_accuracy| StepReport {
            loss,
            targets,
            token_accuracy,
            ..StepReport::default()
        };
        validation.add(&batch(1.0, 30, 0.5));
        validation.add(&batch(3.0, 10, 1.0));
        assert_eq!(validation.measured(), Some(Measured { loss: 1.5, accuracy: 0.625 }));
    }
}
