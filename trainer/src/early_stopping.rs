//! When to stop: a metric of the validation set that no longer gets better.

/// Which way a metric gets better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// A loss.
    Lower,
    /// An accuracy.
    Higher,
}

/// What a value of the metric means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopSignal {
    /// The best so far: a checkpoint worth keeping.
    Best,
    /// Not better; there is patience left.
    Wait,
    /// Not better for too long.
    Stop,
}

/// Watches one metric.
#[derive(Clone, Debug, PartialEq)]
pub struct EarlyStopping {
    better: Better,
    patience: u32,
    min_delta: f64,
    best: Option<f64>,
    waited: u32,
}

impl EarlyStopping {
    /// Values without progress that are usual.
    pub const PATIENCE: u32 = 5;
    /// Progress that is usually asked for.
    pub const MIN_DELTA: f64 = 0.001;

    /// Stops after `patience` values in a row that are not better than the best one by more than `min_delta`.
    pub fn new(better: Better, patience: u32, min_delta: f64) -> Self {
        Self { better, patience, min_delta, best: None, waited: 0 }
    }

    /// The best value so far.
    pub fn best(&self) -> Option<f64> {
        self.best
    }

    /// Takes the next value; one that is not finite is never better.
    pub fn observe(&mut self, value: f64) -> StopSignal {
        let gain = self.best.map(|best| match self.better {
            Better::Lower => best - value,
            Better::Higher => value - best,
        });
        if value.is_finite() && gain.is_none_or(|gain| gain > self.min_delta) {
            self.best = Some(value);
            self.waited = 0;
            return StopSignal::Best;
        }
        self.waited += 1;
        if self.waited >= self.patience { StopSignal::Stop } else { StopSignal::Wait }
    }
}

#[cfg(test)]
mod tests {
    use super::{StopSignal::*, *};

    fn signals(better: Better, values: &[f64]) -> Vec<StopSignal> {
        let mut watch = EarlyStopping::new(better, 3, 0.01);
        values.iter().map(|value| watch.observe(*value)).collect()
    }

    #[test]
    fn stops_after_its_patience() {
        let values = [1.0, 0.5, 0.495, 0.6, 0.4, f64::NAN, 0.4, 0.395];
        let expected = [Best, Best, Wait, Wait, Best, Wait, Wait, Stop];
        assert_eq!(signals(Better::Lower, &values), expected);
        let values = [0.2, 0.1, 0.3, 0.305, 0.305, 0.3];
        assert_eq!(signals(Better::Higher, &values), [Best, Wait, Best, Wait, Wait, Stop]);
        assert_eq!(signals(Better::Higher, &[f64::NAN, 1.0]), [Wait, Best]);
    }
}
