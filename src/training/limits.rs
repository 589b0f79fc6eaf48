//! What a training may take from what is served.

use std::time::Duration;

use super::run::RunError;
use crate::memory::{free_bytes, show_bytes};

/// Unless told otherwise, a training may take one part in so many of the free memory: the rest is for keys, values and
/// adapters that are yet to come.
const SHARE_OF_FREE: u64 = 2;

/// Limits of trainings beside what is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrainingLimits {
    /// Longest time between two tokens of what is served; otherwise it follows from those without a training.
    pub itl_budget: Option<Duration>,
    /// Most memory of a training, bytes; otherwise half of what is free when it begins.
    pub memory_bytes: Option<u64>,
}

impl TrainingLimits {
    /// Whether a training that takes so much memory may begin.
    ///
    /// # Errors
    /// The job's, with both amounts.
    pub(super) fn check_memory(self, need: u64) -> Result<(), RunError> {
        let (most, of_what) = match (self.memory_bytes, free_bytes()) {
            (Some(bytes), _) => (bytes, "--training-memory is"),
            (None, Some(free)) => (free / SHARE_OF_FREE, "half of the server's free memory is"),
            (None, None) => return Ok(()),
        };
        if need <= most {
            return Ok(());
        }
        let (need, most) = (show_bytes(need), show_bytes(most));
        let message = format!(
            "the training takes {need} of memory, {of_what} {most}: a lower lora_rank or shorter examples take less"
        );
        Err(RunError::job("insufficient_memory", message, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_training_that_is_too_large_is_told_both_amounts() {
        let limits = TrainingLimits { memory_bytes: Some(3 << 20), ..TrainingLimits::default() };
        assert!(limits.check_memory(3 << 20).is_ok());
        let RunError::Job(error) = limits.check_memory(4 << 20).unwrap_err() else {
            panic!("it is the job's");
        };
        assert_eq!(error.code, "insufficient_memory");
        let expected = "the training takes 4.0 MiB of memory, --training-memory is 3.0 MiB";
        assert!(error.message.starts_with(expected), "{}", error.message);
        assert!(TrainingLimits::default().check_memory(1 << 10).is_ok());
        assert!(TrainingLimits::default().check_memory(1 << 60).is_err());
    }
}
