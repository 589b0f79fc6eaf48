//! The losses of a training, as its results tell them.

/// Steps and losses, ascending by step. What was not finite is left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Curves {
    pub(super) train: Vec<(f64, f64)>,
    pub(super) validation: Vec<(f64, f64)>,
}

impl Curves {
    /// Of [`Results`](pleach_trainer::recipe::Results) as CSV.
    pub(super) fn of_csv(csv: &str) -> Self {
        let mut curves = Self::default();
        for line in csv.lines().skip(1) {
            let column = |index: usize| {
                let value = line.split(',').nth(index)?.parse().ok();
                value.filter(|value: &f64| value.is_finite())
            };
            let Some(step) = column(0) else { continue };
            curves.train.extend(column(1).map(|loss| (step, loss)));
            curves.validation.extend(column(3).map(|loss| (step, loss)));
        }
        curves
    }

    /// Mean training loss of the first and of the last tenth of the steps, at least one.
    pub(super) fn first_and_last(&self) -> Option<(f64, f64)> {
        let n = self.train.len().div_ceil(10);
        let mean = |points: &[(f64, f64)]| {
            points.iter().map(|point| point.1).sum::<f64>() / points.len() as f64
        };
        let first = self.train.get(..n).filter(|points| !points.is_empty())?;
        Some((mean(first), mean(&self.train[self.train.len() - n..])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_that_are_there_are_points() {
        let csv = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n\
                   1,4.00000,0.5,,\n2,NaN,0.5,3.50000,0.5\n3,2.00000,0.5,3.00000,0.5\n";
        let curves = Curves::of_csv(csv);
        assert_eq!(curves.train, [(1.0, 4.0), (3.0, 2.0)]);
        assert_eq!(curves.validation, [(2.0, 3.5), (3.0, 3.0)]);
        assert_eq!(curves.first_and_last(), Some((4.0, 2.0)));
        assert_eq!(Curves::default().first_and_last(), None);
    }
}
