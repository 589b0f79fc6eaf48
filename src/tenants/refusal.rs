//! Why a tenant's request is not taken, though it is well-formed.

use std::time::Duration;

use super::Quota;

/// A limit that a request met.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too many requests in the last minute.
    #[error("the limit of {limit} requests a minute is reached")]
    RequestsPerMinute {
        /// The limit.
        limit: u64,
        /// When one may come again.
        retry_after: Duration,
    },
    /// Too many tokens in the last minute.
    #[error(
        "the limit of {limit} tokens a minute is reached: {remaining} are left, and this request may take {requested}"
    )]
    TokensPerMinute {
        /// The limit.
        limit: u64,
        /// What is left now.
        remaining: u64,
        /// Tokens of the prompt and of the longest completion.
        requested: u64,
        /// When there will be enough.
        retry_after: Duration,
    },
    /// More tokens than a minute has: to wait would not help.
    #[error(
        "this request may take {requested} tokens, the limit is {limit} a minute: it can never pass, so shorten the \
         prompt or lower 'max_tokens' or 'n'"
    )]
    MoreThanTheLimit {
        /// The limit.
        limit: u64,
        /// Tokens of the prompt and of the longest completion.
        requested: u64,
    },
    /// Too many at the same time.
    #[error("the limit of {limit} requests at the same time is reached")]
    ConcurrentRequests {
        /// The limit.
        limit: u64,
    },
    /// Too many wait.
    #[error("the limit of {limit} waiting requests is reached")]
    QueuedRequests {
        /// The limit.
        limit: u64,
    },
    /// The rest of the server's queue is kept for others.
    #[error("the server is busy: {waiting} sequences of this tenant are waiting already")]
    QueueShare {
        /// Sequences of the tenant that wait.
        waiting: usize,
    },
}

impl Refusal {
    /// Which limit it was: one of a closed set, so that it can be a metric label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::RequestsPerMinute { .. } => Quota::RequestsPerMinute.name(),
            Self::TokensPerMinute { .. } | Self::MoreThanTheLimit { .. } => {
                Quota::TokensPerMinute.name()
            }
            Self::ConcurrentRequests { .. } => Quota::ConcurrentRequests.name(),
            Self::QueuedRequests { .. } => Quota::QueuedRequests.name(),
            Self::QueueShare { .. } => "queue_share",
        }
    }

    /// When to try again, where that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RequestsPerMinute { retry_after, .. }
            | Self::TokensPerMinute { retry_after, .. } => Some(*retry_after),
            Self::MoreThanTheLimit { .. }
            | Self::ConcurrentRequests { .. }
            | Self::QueuedRequests { .. }
            | Self::QueueShare { .. } => None,
        }
    }
}
