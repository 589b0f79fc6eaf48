//! Learning rate by optimizer step.

use std::f64::consts::PI;

/// Shape of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// As it is.
    Constant,
    /// To zero in a straight line.
    Linear,
    /// To zero along half a cosine.
    Cosine,
}

impl Schedule {
    /// Share of the peak learning rate at step `step` of `steps`, counted from 0. The first `warmup` steps rise in a
    /// straight line; the first of them takes `1 / warmup`, so that no step is lost.
    pub fn factor(self, step: u64, warmup: u64, steps: u64) -> f64 {
        if step < warmup {
            return (step + 1) as f64 / warmup as f64;
        }
        let left = steps.saturating_sub(warmup).max(1);
        let done = ((step - warmup) as f64 / left as f64).min(1.0);
        match self {
            Self::Constant => 1.0,
            Self::Linear => 1.0 - done,
            Self::Cosine => 0.5 * (1.0 + (PI * done).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_and_falls() {
        let factors =
            |schedule: Schedule| [0, 1, 2, 4, 6, 9].map(|step| schedule.factor(step, 2, 6));
        assert_eq!(factors(Schedule::Constant), [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(factors(Schedule::Linear), [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]);
        let [first, second, third, middle, end, beyond] = factors(Schedule::Cosine);
        assert!((first - 0.5).abs() < 1e-12 && (second - 1.0).abs() < 1e-12);
        assert!((third - 1.0).abs() < 1e-12 && (middle - 0.5).abs() < 1e-12);
        assert!(end.abs() < 1e-12 && beyond.abs() < 1e-12);
        assert!((Schedule::Linear.factor(0, 0, 0) - 1.0).abs() < 1e-12);
    }
}
