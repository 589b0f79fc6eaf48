//! Failures of a moment ago, so that a broken file is not parsed for every request that names it.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::{digest::GenerationDigest, residency::ResidencyError};

/// Most failures remembered; beyond it the oldest is forgotten early.
const FAILURES_MAX: usize = 256;

/// The newest failures, oldest first; each generation at most once.
#[derive(Debug)]
pub(super) struct Failures {
    kept: Duration,
    failures: VecDeque<(Instant, GenerationDigest, ResidencyError)>,
}

impl Failures {
    pub(super) fn new(kept: Duration) -> Self {
        Self { kept, failures: VecDeque::new() }
    }

    pub(super) fn get(&self, digest: GenerationDigest, now: Instant) -> Option<&ResidencyError> {
        self.failures
            .iter()
            .find(|(at, failed, _)| *failed == digest && now.duration_since(*at) < self.kept)
            .map(|(_, _, error)| error)
    }

    pub(super) fn put(&mut self, digest: GenerationDigest, error: ResidencyError, now: Instant) {
        self.remove(digest);
        while self.failures.len() >= FAILURES_MAX {
            self.failures.pop_front();
        }
        self.failures.push_back((now, digest, error));
    }

    pub(super) fn remove(&mut self, digest: GenerationDigest) {
        self.failures.retain(|(_, failed, _)| *failed != digest);
    }
}
