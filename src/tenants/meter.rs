//! The tokens that one request has used, as they come.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::telemetry::TenantSeries;

/// Counts what `usage` counts, for quotas and metrics: each prompt once, whatever its choices, and every token chosen.
#[derive(Debug)]
pub struct Meter {
    series: Arc<TenantSeries>,
    n_used: AtomicU64,
}

impl Meter {
    /// Nothing was used.
    pub(super) fn new(series: Arc<TenantSeries>) -> Self {
        Self { series, n_used: AtomicU64::new(0) }
    }

    /// A prompt of so many tokens has begun to run.
    pub(super) fn prompt(&self, n_tokens: u64) {
        self.n_used.fetch_add(n_tokens, Ordering::Relaxed);
        self.series.count_prompt(n_tokens);
    }

    /// A token was chosen.
    pub(super) fn token(&self) {
        self.n_used.fetch_add(1, Ordering::Relaxed);
        self.series.count_completion(1);
    }

    /// Prompt and completion tokens so far.
    pub(super) fn n_used(&self) -> u64 {
        self.n_used.load(Ordering::Relaxed)
    }

    /// What is measured of the request's tenant.
    pub fn series(&self) -> &Arc<TenantSeries> {
        &self.series
    }
}
