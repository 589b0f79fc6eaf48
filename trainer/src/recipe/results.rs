//! What a training measured, as the CSV that `OpenAI` gives with a job.

use std::fmt::Write as _;

use super::Method;
use crate::StepReport;

/// Columns, in order.
const HEADER: &str = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n";
/// Those of a training by rewards, which has no right answers.
const REWARD_HEADER: &str = "step,train_loss,train_reward_mean,valid_loss,valid_reward_mean\n";

/// Losses and accuracies, or rewards, by step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Results(String);

impl Default for Results {
    fn default() -> Self {
        Self(HEADER.to_owned())
    }
}

/// Loss and share of what came out right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Of the objective.
    pub loss: f64,
    /// From 0 to 1; in a training by rewards, the mean reward.
    pub accuracy: f64,
}

impl Measured {
    /// A mean reward: more of it is a lower loss.
    pub fn of_reward(reward: f64) -> Self {
        Self { loss: -reward, accuracy: reward }
    }

    /// Of a step or an evaluation: the share of targets that were the likeliest token; of pairs and thumbs, of those that
    /// were told right.
    pub fn of(report: &StepReport) -> Self {
        let is_judged = report.sample_accuracy > 0.0;
        let accuracy = if is_judged { report.sample_accuracy } else { report.token_accuracy };
        Self { loss: report.loss, accuracy }
    }
}

impl Results {
    /// Of a training by this method, before its first step.
    pub fn new(method: Method) -> Self {
        let is_by_rewards = method == Method::Reinforcement;
        Self(if is_by_rewards { REWARD_HEADER } else { HEADER }.to_owned())
    }

    /// What an earlier part of the same training wrote.
    pub fn resumed(csv: String) -> Self {
        Self(csv)
    }

    /// Adds a step, from 1, and what was measured on validation rows after it, if anything was.
    pub fn push(&mut self, step: u64, train: Measured, valid: Option<Measured>) {
        // Writing to a string cannot fail.
        let _ = write!(self.0, "{step},{:.5},{:.5},", train.loss, train.accuracy);
        if let Some(valid) = valid {
            let _ = write!(self.0, "{:.5},{:.5}", valid.loss, valid.accuracy);
        } else {
            self.0.push(',');
        }
        self.0.push('\n');
    }

    /// The text.
    pub fn csv(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_every_column() {
        let mut results = Results::default();
        let train = Measured { loss: 1.25, accuracy: 0.5 };
        results.push(1, train, None);
        results.push(2, train, Some(Measured { loss: 2.0, accuracy: 1.0 }));
        let csv = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n\
                   1,1.25000,0.50000,,\n2,1.25000,0.50000,2.00000,1.00000\n";
        assert_eq!(results.csv(), csv);
        assert!(csv.lines().all(|line| line.matches(',').count() == 4));
        assert_eq!(REWARD_HEADER.matches(',').count(), 4);
        assert_eq!(Results::new(Method::Dpo), Results::default());
    }
}
