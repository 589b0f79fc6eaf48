//! Refusals that have to do with tenants, their keys and what they may own.

use axum::http::StatusCode;
use pleach_store::StoreError;

use super::error::ApiError;
use crate::tenants::Quota;

/// Kinds of refusals that have to do with tenants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TenantRefusal {
    /// No tenant of that id.
    UnknownTenant,
    /// The name is another's.
    NameTaken,
    /// No key of that id.
    UnknownKey,
    /// Beyond what the tenant may own. To wait would not help: something must be removed.
    Quota(Quota),
}

impl TenantRefusal {
    pub(super) fn status_and_code(self) -> (StatusCode, &'static str) {
        match self {
            Self::UnknownTenant => (StatusCode::NOT_FOUND, "tenant_not_found"),
            Self::NameTaken => (StatusCode::CONFLICT, "tenant_name_taken"),
            Self::UnknownKey => (StatusCode::NOT_FOUND, "key_not_found"),
            Self::Quota(_) => (StatusCode::FORBIDDEN, "quota_exceeded"),
        }
    }
}

impl ApiError {
    /// More than a tenant may own: `quota` as the store names it.
    pub(super) fn beyond_quota(quota: &str, limit: u64, wanted: u64) -> Self {
        let message = format!("this would make {wanted} {quota}, the quota is {limit}");
        let quota = match quota {
            "adapters" => Quota::Adapters,
            "file bytes" => Quota::FileBytes,
            "training jobs" => Quota::TrainingJobs,
            _ => Quota::AdapterBytes,
        };
        Self::Tenant { refusal: TenantRefusal::Quota(quota), message }
    }

    /// Why tenants or keys could not be read or changed.
    pub fn from_tenants(error: &StoreError) -> Self {
        let told = |refusal| Self::Tenant { refusal, message: error.to_string() };
        if matches!(error, StoreError::UnknownTenant { .. }) {
            return told(TenantRefusal::UnknownTenant);
        }
        if matches!(error, StoreError::TenantNameTaken { .. }) {
            return told(TenantRefusal::NameTaken);
        }
        if matches!(error, StoreError::UnknownKey { .. }) {
            return told(TenantRefusal::UnknownKey);
        }
        if let StoreError::InvalidText { reason, .. } = error {
            return Self::invalid("name", format!("it {reason}"));
        }
        // Its words may tell of the server's surroundings.
        tracing::error!(%error, "the store failed");
        Self::StoreUnavailable
    }
}
