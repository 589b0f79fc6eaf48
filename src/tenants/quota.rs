//! The quotas by name: one table for the API, the command line and the labels of metrics.

use pleach_store::Quotas;

/// One of a tenant's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    /// Requests accepted in a minute.
    RequestsPerMinute,
    /// Tokens of prompts and completions in a minute.
    TokensPerMinute,
    /// Requests in progress.
    ConcurrentRequests,
    /// Requests that wait for their adapter or the engine.
    QueuedRequests,
    /// Names of adapters.
    Adapters,
    /// Bytes of their files.
    AdapterBytes,
    /// Bytes of files to train on, and of unfinished uploads.
    FileBytes,
    /// Training jobs that wait or run.
    TrainingJobs,
}

impl Quota {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 8] = [
        Self::RequestsPerMinute,
        Self::TokensPerMinute,
        Self::ConcurrentRequests,
        Self::QueuedRequests,
        Self::Adapters,
        Self::AdapterBytes,
        Self::FileBytes,
        Self::TrainingJobs,
    ];

    /// Its name in JSON and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestsPerMinute => "requests_per_minute",
            Self::TokensPerMinute => "tokens_per_minute",
            Self::ConcurrentRequests => "concurrent_requests",
            Self::QueuedRequests => "queued_requests",
            Self::Adapters => "adapters",
            Self::AdapterBytes => "adapter_bytes",
            Self::FileBytes => "file_bytes",
            Self::TrainingJobs => "training_jobs",
        }
    }

    /// The quota of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|quota| quota.name() == name)
    }

    /// Its limit; `None` is no limit.
    pub fn limit_in(self, quotas: &Quotas) -> Option<u64> {
        *self.field(&mut quotas.clone())
    }

    /// Changes its limit.
    pub fn set_in(self, quotas: &mut Quotas, limit: Option<u64>) {
        *self.field(quotas) = limit;
    }

    fn field(self, quotas: &mut Quotas) -> &mut Option<u64> {
        match self {
            Self::RequestsPerMinute => &mut quotas.requests_per_minute,
            Self::TokensPerMinute => &mut quotas.tokens_per_minute,
            Self::ConcurrentRequests => &mut quotas.concurrent_requests,
            Self::QueuedRequests => &mut quotas.queued_requests,
            Self::Adapters => &mut quotas.adapters,
            Self::AdapterBytes => &mut quotas.adapter_bytes,
            Self::FileBytes => &mut quotas.file_bytes,
            Self::TrainingJobs => &mut quotas.training_jobs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_quota_is_one_field_with_one_name() {
        let mut quotas = Quotas::default();
        for (quota, limit) in Quota::ALL.into_iter().zip(1..) {
            assert_eq!((Quota::named(quota.name()), quota.limit_in(&quotas)), (Some(quota), None));
            quota.set_in(&mut quotas, Some(limit));
        }
        let limits: Vec<_> = Quota::ALL.iter().map(|quota| quota.limit_in(&quotas)).collect();
        assert_eq!(limits, (1..=8).map(Some).collect::<Vec<_>>());
        assert_eq!(Quota::named("requests"), None);
    }
}
