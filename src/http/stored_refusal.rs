//! Refusals that have to do with files, uploads, kept completions, feedback and jobs.

use axum::http::StatusCode;
use pleach_store::{BlobError, StoreError};

use super::error::ApiError;

/// Kinds of such refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredRefusal {
    /// None of that id, or another's: nobody is told which.
    NotFound(&'static str),
    /// A job needs it.
    InUse,
    /// One of the adapter's rounds is open.
    RoundOpen,
    /// It has another revision than was expected.
    PolicyChanged,
    /// It has ended, or is not far enough.
    State,
    /// It can hold no more.
    Full,
    /// The key came with another request.
    KeyReused,
    /// A file with a bad line.
    File,
}

impl StoredRefusal {
    pub(super) fn status_and_code(self) -> (StatusCode, &'static str) {
        match self {
            Self::NotFound(kind) => (StatusCode::NOT_FOUND, not_found_code(kind)),
            Self::InUse => (StatusCode::CONFLICT, "file_in_use"),
            Self::RoundOpen => (StatusCode::CONFLICT, "round_open"),
            Self::PolicyChanged => (StatusCode::CONFLICT, "policy_conflict"),
            Self::State => (StatusCode::BAD_REQUEST, "invalid_state"),
            Self::Full => (StatusCode::BAD_REQUEST, "too_many"),
            // Not 409, which clients repeat by themselves.
            Self::KeyReused => (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused"),
            Self::File => (StatusCode::BAD_REQUEST, "invalid_file"),
        }
    }
}

fn not_found_code(kind: &'static str) -> &'static str {
    match kind {
        "file" => "file_not_found",
        "upload" => "upload_not_found",
        "part" => "part_not_found",
        "completion" => "completion_not_found",
        "episode" => "episode_not_found",
        "feedback" => "feedback_not_found",
        "job" => "job_not_found",
        "policy" => "policy_not_found",
        "round" => "round_not_found",
        "lineage" => "lineage_not_found",
        _ => "not_found",
    }
}

impl ApiError {
    /// Why something of a tenant's could not be kept, read or changed.
    // By value: it is what `map_err` gives.
    #[expect(clippy::needless_pass_by_value, reason = "an error at the end of its life")]
    pub(super) fn from_stored(error: StoreError) -> Self {
        let told = |refusal| Self::Stored { refusal, message: error.to_string() };
        if let StoreError::NotFound { kind, .. } = error {
            return told(StoredRefusal::NotFound(kind));
        }
        if matches!(error, StoreError::FileInUse { .. }) {
            return told(StoredRefusal::InUse);
        }
        if matches!(error, StoreError::RoundOpen { .. }) {
            return told(StoredRefusal::RoundOpen);
        }
        if matches!(error, StoreError::PolicyChanged { .. }) {
            return told(StoredRefusal::PolicyChanged);
        }
        if matches!(error, StoreError::WrongState { .. }) {
            return told(StoredRefusal::State);
        }
        if matches!(error, StoreError::TooMany { .. }) {
            return told(StoredRefusal::Full);
        }
        if matches!(error, StoreError::KeyReused { .. }) {
            return told(StoredRefusal::KeyReused);
        }
        if let StoreError::MetricKind { metric, kind } = &error {
            return Self::invalid("value", format!("values of {metric:?} are {kind}"));
        }
        if let StoreError::QuotaExceeded { quota, limit, wanted, .. } = &error {
            return Self::beyond_quota(quota, *limit, *wanted);
        }
        if let StoreError::Blob(BlobError::TooLarge { bytes_max }) = &error {
            let bytes_max = usize::try_from(*bytes_max).unwrap_or(usize::MAX);
            return Self::BodyTooLarge { bytes_max };
        }
        if let StoreError::InvalidText { what, reason, .. } = &error {
            let param = match *what {
                "name of a file" => "filename",
                "name of an adapter" => "name",
                "reason of a decision" => "reason",
                other => other,
            };
            return Self::invalid(param, format!("it {reason}"));
        }
        if matches!(error, StoreError::MetadataTooLong { .. }) {
            // Of what is kept so, clients send policies.
            return Self::invalid("policy", error.to_string());
        }
        // Its words may tell of the server's surroundings.
        tracing::error!(%error, "the store failed");
        Self::StoreUnavailable
    }
}
