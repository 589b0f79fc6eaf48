//! What the store's refusals are to a client.

use pleach_store::StoreError;

use super::error::{ApiError, TenantRefusal};
use crate::tenants::Quota;

impl ApiError {
    /// Why something about tenants could not be read or stored.
    pub fn from_store(error: &StoreError) -> Self {
        let refusal = match error {
            StoreError::UnknownTenant { .. } => TenantRefusal::UnknownTenant,
            StoreError::TenantNameTaken { .. } => TenantRefusal::NameTaken,
            StoreError::UnknownKey { .. } => TenantRefusal::UnknownKey,
            StoreError::QuotaExceeded { quota: "adapters", .. } => {
                TenantRefusal::Quota(Quota::Adapters)
            }
            StoreError::QuotaExceeded { .. } => TenantRefusal::Quota(Quota::AdapterBytes),
            StoreError::InvalidText { reason, .. } => {
                return Self::invalid("name", format!("it {reason}"));
            }
            // Its words may tell of the server's surroundings.
            _ => {
                tracing::error!(%error, "the store failed");
                return Self::StoreUnavailable;
            }
        };
        Self::Tenant { refusal, message: error.to_string() }
    }
}
