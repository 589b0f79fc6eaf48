//! The series of tenants.

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts};

use super::{metrics::Maker, names};

const PROMPT: &str = "prompt";
const COMPLETION: &str = "completion";

/// All series by tenant.
#[derive(Clone, Debug)]
pub(super) struct TenantVectors {
    requests: IntCounterVec,
    tokens: IntCounterVec,
    refused: IntCounterVec,
    ttft: HistogramVec,
}

/// What is measured of one tenant.
#[derive(Debug)]
pub struct TenantSeries {
    label: String,
    vectors: TenantVectors,
    prompt_tokens: IntCounter,
    completion_tokens: IntCounter,
    pub(super) ttft: Histogram,
}

impl TenantVectors {
    pub(super) fn new(make: &Maker) -> prometheus::Result<Self> {
        let counters = |name, help, label| {
            make.register(IntCounterVec::new(Opts::new(name, help), &[names::LABEL_TENANT, label])?)
        };
        let ttft = HistogramOpts::new(
            names::TENANT_TTFT,
            "Seconds from arrival to the first token, by tenant.",
        )
        .buckets(names::FINE_BUCKETS.to_vec());
        Ok(Self {
            requests: counters(
                names::TENANT_REQUESTS,
                "Requests under /v1 by tenant and status.",
                names::LABEL_STATUS,
            )?,
            tokens: counters(names::TENANT_TOKENS, "Tokens used by tenant.", names::LABEL_KIND)?,
            refused: counters(
                names::TENANT_REFUSED,
                "Requests refused for a limit or a missing scope, by tenant.",
                names::LABEL_REASON,
            )?,
            ttft: make.register(HistogramVec::new(ttft, &[names::LABEL_TENANT])?)?,
        })
    }
}

impl TenantSeries {
    pub(super) fn new(label: &str, vectors: &TenantVectors) -> Self {
        let tokens = |kind| vectors.tokens.with_label_values(&[label, kind]);
        Self {
            label: label.to_owned(),
            prompt_tokens: tokens(PROMPT),
            completion_tokens: tokens(COMPLETION),
            ttft: vectors.ttft.with_label_values(&[label]),
            vectors: vectors.clone(),
        }
    }

    pub(super) fn like(&self, label: &str) -> Self {
        Self::new(label, &self.vectors)
    }

    /// A request was answered.
    pub fn count_response(&self, status: u16) {
        self.vectors.requests.with_label_values(&[&self.label, &status.to_string()]).inc();
    }

    /// A request was refused, for one of a closed set of reasons.
    pub fn count_refusal(&self, reason: &str) {
        self.vectors.refused.with_label_values(&[self.label.as_str(), reason]).inc();
    }

    /// Prompt tokens were computed or found in the prefix cache.
    pub fn count_prompt(&self, n_tokens: u64) {
        self.prompt_tokens.inc_by(n_tokens);
    }

    /// Completion tokens were chosen.
    pub fn count_completion(&self, n_tokens: u64) {
        self.completion_tokens.inc_by(n_tokens);
    }
}
