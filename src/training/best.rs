//! Which of its models a training keeps: the last one, or the best one on its validation rows.

use std::sync::Arc;

use pleach_engine::adapter_weights::AdapterWeights;
use pleach_store::GenerationDigest;
use pleach_trainer::{Better, EarlyStopping, StopSignal};
use serde::{Deserialize, Serialize};

/// What is kept with a training's state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Seen {
    /// Validation losses so far; those that were not finite are `None`, as JSON has no such numbers.
    losses: Vec<Option<f64>>,
    /// The best model's step.
    step: u64,
    /// The checkpoint that it was served as.
    generation: Option<GenerationDigest>,
}

/// Watches validation losses, if a training is to keep its best model.
#[derive(Debug)]
pub(super) struct Best {
    watch: Option<EarlyStopping>,
    seen: Seen,
    /// Of the best model, if this process trained it.
    weights: Option<Arc<AdapterWeights>>,
    must_stop: bool,
}

impl Best {
    /// Stops after `patience` validations without progress; `None` keeps the last model. Goes on from what was `seen`.
    pub(super) fn new(patience: Option<u32>, seen: Seen) -> Self {
        let watch = patience
            .map(|patience| EarlyStopping::new(Better::Lower, patience, EarlyStopping::MIN_DELTA));
        let mut best = Self { watch, seen: Seen::default(), weights: None, must_stop: false };
        for loss in &seen.losses {
            best.judge(loss.unwrap_or(f64::NAN));
        }
        Self { seen, ..best }
    }

    fn judge(&mut self, loss: f64) -> bool {
        let signal = self.watch.as_mut().map(|watch| watch.observe(loss));
        self.must_stop = signal == Some(StopSignal::Stop);
        signal == Some(StopSignal::Best)
    }

    /// Takes the validation loss after a step; whether the model is to be kept for it.
    pub(super) fn observe(&mut self, step: u64, loss: f64, weights: &Arc<AdapterWeights>) -> bool {
        let is_best = self.judge(loss);
        self.seen.losses.push(loss.is_finite().then_some(loss));
        if is_best {
            (self.seen.step, self.seen.generation) = (step, None);
            self.weights = Some(Arc::clone(weights));
        }
        is_best
    }

    /// The best model is served as this, so that another process finds it.
    pub(super) fn served_as(&mut self, step: u64, generation: GenerationDigest) {
        if step == self.seen.step {
            self.seen.generation = Some(generation);
        }
    }

    /// Whether there was no progress for too long.
    pub(super) fn must_stop(&self) -> bool {
        self.must_stop
    }

    /// The step of the model to keep, if that is not the last one after `step`.
    pub(super) fn earlier_than(&self, step: u64) -> Option<u64> {
        let is_watched = self.watch.as_ref().is_some_and(|watch| watch.best().is_some());
        (is_watched && self.seen.step != step).then_some(self.seen.step)
    }

    /// Its weights, if this process trained it.
    pub(super) fn weights(&self) -> Option<&Arc<AdapterWeights>> {
        self.weights.as_ref()
    }

    /// What it was served as.
    pub(super) fn generation(&self) -> Option<GenerationDigest> {
        self.seen.generation
    }

    /// What to go on from.
    pub(super) fn seen(&self) -> &Seen {
        &self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_kept_and_the_rest_is_not_trained() {
        let weights = Arc::new(AdapterWeights::default());
        let mut best = Best::new(Some(2), Seen::default());
        assert_eq!(best.earlier_than(0), None);
        for (step, loss, is_best) in [(10, 2.0, true), (20, 1.0, true), (30, f64::NAN, false)] {
            assert_eq!(best.observe(step, loss, &weights), is_best, "{step}");
        }
        best.served_as(10, GenerationDigest([1; 32]));
        assert_eq!((best.generation(), best.must_stop()), (None, false));
        best.served_as(20, GenerationDigest([2; 32]));
        // Another process goes on, with the same patience.
        let text = serde_json::to_string(best.seen()).unwrap();
        let mut resumed = Best::new(Some(2), serde_json::from_str(&text).unwrap());
        assert_eq!(resumed.seen(), best.seen());
        assert!(resumed.weights().is_none() && !resumed.must_stop());
        assert!(!resumed.observe(40, 1.0, &weights));
        assert!(resumed.must_stop());
        assert_eq!(resumed.earlier_than(40), Some(20));
        assert_eq!(resumed.generation(), Some(GenerationDigest([2; 32])));
        // Told to stop, it still is when it was interrupted just then.
        assert!(Best::new(Some(2), resumed.seen().clone()).must_stop());
    }

    #[test]
    fn unless_it_was_asked_for_the_last_is_kept() {
        let weights = Arc::new(AdapterWeights::default());
        let mut last = Best::new(None, Seen::default());
        for loss in [1.0, 2.0, 3.0, 4.0] {
            assert!(!last.observe(1, loss, &weights));
        }
        assert_eq!((last.must_stop(), last.earlier_than(9)), (false, None));
    }
}
