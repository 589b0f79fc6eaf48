//! How long steps take: some are made, of short and of long batches, and a line is laid through them.

use std::time::Instant;

use pleach_trainer::{
    Learner, Sample,
    data::{Position, StepPlan},
    recipe::Prepared,
};
use serde::Serialize;

/// Steps that are timed at least, the first of which does not count: it touches memory for the first time.
const STEPS_MIN: usize = 4;
/// Steps that are timed at most.
const STEPS_MAX: usize = 24;

/// Seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Timing {
    /// Of the whole training.
    pub(super) total_s: f64,
    /// Of these, steps.
    pub(super) steps_s: f64,
    /// Of these, measuring on validation rows.
    pub(super) validation_s: f64,
    /// A step takes so long for each token …
    pub(super) token_s: f64,
    /// … and so long besides.
    pub(super) step_s: f64,
    /// Tokens of samples by time, those of references not counted.
    pub(super) tokens_per_second: f64,
    /// How many steps were timed.
    pub(super) timed_steps: usize,
}

/// Makes steps for about `seconds`.
pub(super) fn measure(
    prepared: &Prepared,
    learner: &mut Learner,
    seconds: f64,
) -> anyhow::Result<Timing> {
    let rows = prepared.rows_of_steps();
    let plans: Vec<StepPlan> = prepared.steps_from(Position::default()).collect();
    let order = spread(&rows);
    let began = Instant::now();
    let mut timed: Vec<(f64, f64)> = Vec::new();
    // The one that warms up is a long one: it touches what all touch.
    let longest = (0..rows.len()).max_by_key(|&index| rows[index]);
    for (n, index) in longest.into_iter().chain(order.into_iter().cycle()).enumerate() {
        let is_enough = n >= STEPS_MIN && began.elapsed().as_secs_f64() >= seconds;
        if is_enough || n > STEPS_MAX {
            break;
        }
        let before = Instant::now();
        learner.step(prepared.batch(&plans[index]))?;
        if n > 0 {
            timed.push((rows[index] as f64, before.elapsed().as_secs_f64()));
        }
    }
    let (of_step, of_token) = line(&timed);
    let all_rows: f64 = rows.iter().map(|&n| n as f64).sum();
    let steps_s = rows.len() as f64 * of_step + all_rows * of_token;
    let validation_s = match prepared.validation().first() {
        None => 0.0,
        Some(batch) => {
            let n_samples = |batch: &[Sample]| batch.len() as f64;
            let before = Instant::now();
            learner.evaluate(batch.clone())?;
            let one = before.elapsed().as_secs_f64() / n_samples(batch);
            let all: f64 = prepared.validation().iter().map(|batch| n_samples(batch)).sum();
            one * all * f64::from(prepared.resolved().n_epochs)
        }
    };
    Ok(Timing {
        total_s: steps_s + validation_s,
        steps_s,
        validation_s,
        token_s: of_token,
        step_s: of_step,
        tokens_per_second: all_rows / steps_s,
        timed_steps: timed.len(),
    })
}

/// Indices of steps by length, so that any first few of them are spread over all lengths: the halves' middles, then the
/// quarters', and so on.
fn spread(rows: &[usize]) -> Vec<usize> {
    let mut sorted: Vec<usize> = (0..rows.len()).collect();
    sorted.sort_by_key(|&index| (rows[index], index));
    let mut order = Vec::new();
    let mut parts = 2;
    while order.len() < STEPS_MAX.min(sorted.len()) {
        for part in (1..parts).step_by(2) {
            let index = sorted[(sorted.len() * part / parts).min(sorted.len() - 1)];
            if !order.contains(&index) {
                order.push(index);
            }
        }
        parts *= 2;
        if parts > 4 * sorted.len().next_power_of_two() {
            break;
        }
    }
    order
}

/// Offset and slope of the line of least squares through `(x, y)`, neither below zero. Of points that all have one `x`, and
/// of those that would have a negative offset, it goes through the origin.
fn line(points: &[(f64, f64)]) -> (f64, f64) {
    let n = points.len().max(1) as f64;
    let sum = |of: &dyn Fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>();
    let (mean_x, mean_y) = (sum(&|point| point.0) / n, sum(&|point| point.1) / n);
    let spread = sum(&|point| (point.0 - mean_x).powi(2));
    let slope = if spread > 0.0 {
        sum(&|point| (point.0 - mean_x) * (point.1 - mean_y)) / spread
    } else {
        f64::NAN
    };
    let offset = mean_y - slope * mean_x;
    if slope >= 0.0 && offset >= 0.0 {
        (offset, slope)
    } else if slope < 0.0 {
        (mean_y, 0.0)
    } else {
        (0.0, mean_y / mean_x.max(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_through_what_was_timed() {
        let (offset, slope) = line(&[(100.0, 0.7), (200.0, 1.2), (400.0, 2.2)]);
        assert!((offset - 0.2).abs() < 1e-12 && (slope - 0.005).abs() < 1e-12);
        let (offset, slope) = line(&[(100.0, 1.0), (100.0, 3.0)]);
        assert!(offset.abs() < 1e-12 && (slope - 0.02).abs() < 1e-12);
        // Steps that are faster the longer they are were disturbed.
        assert_eq!(line(&[(100.0, 3.0), (200.0, 1.0)]), (2.0, 0.0));
        let (offset, slope) = line(&[(100.0, 0.1), (200.0, 1.1)]);
        assert!(offset.abs() < 1e-12 && (slope - 0.004).abs() < 1e-12);
    }

    #[test]
    fn few_steps_are_spread_over_all_lengths() {
        let rows: Vec<usize> = (0..100).rev().collect();
        let order = spread(&rows);
        let lengths: Vec<usize> = order.iter().map(|&index| rows[index]).collect();
        assert_eq!(lengths[..7], [50, 25, 75, 12, 37, 62, 87]);
        assert!(order.len() >= STEPS_MAX);
        assert_eq!(spread(&[5]), [0]);
        assert_eq!(spread(&[7, 7, 7]).len(), 3);
        assert!(spread(&[]).is_empty());
    }
}
