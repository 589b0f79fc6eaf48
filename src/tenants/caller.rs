//! Who sent a request, and what they may do.

use std::{fmt, sync::Arc};

use axum::{extract::FromRequestParts, http::request::Parts};
use pleach_adapters::Namespace;
use pleach_store::{Owner, Scope, Scopes};

use super::LiveTenant;
use crate::http::error::ApiError;

/// Who sent a request. Made once, when its key is checked; handlers take it as an argument. Shown as the log names it:
/// without secrets.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Whose adapters it changes, and sees beside the shared ones.
    pub owner: Owner,
    /// What it may do.
    pub scopes: Scopes,
    /// `None` for whoever runs the server.
    key: Option<CallerKey>,
}

#[derive(Clone, Debug)]
struct CallerKey {
    id: Arc<str>,
    tenant: Arc<LiveTenant>,
}

impl Caller {
    /// Whoever runs the server: may do everything, and what it makes is for all.
    pub fn operator() -> Self {
        Self { owner: Owner::Shared, scopes: Scope::ALL.into_iter().collect(), key: None }
    }

    /// A tenant, by one of its keys.
    pub fn tenant_key(tenant: Arc<LiveTenant>, key_id: Arc<str>, scopes: Scopes) -> Self {
        let owner = Owner::Tenant(tenant.id.clone());
        Self { owner, scopes, key: Some(CallerKey { id: key_id, tenant }) }
    }

    /// Whose names it uses first; the shared ones come after.
    pub fn namespace(&self) -> Namespace {
        Namespace::new(self.owner.as_str())
    }

    /// The tenant; `None` for the operator.
    pub fn tenant(&self) -> Option<&Arc<LiveTenant>> {
        self.key.as_ref().map(|key| &key.tenant)
    }

    /// Whether it runs the server.
    pub fn is_operator(&self) -> bool {
        self.key.is_none()
    }

    /// Passes whoever has the scope.
    ///
    /// # Errors
    /// [`ApiError::InsufficientScope`].
    pub fn require(&self, scope: Scope) -> Result<(), ApiError> {
        self.require_any(&[scope])
    }

    /// Passes whoever has one of the scopes.
    ///
    /// # Errors
    /// [`ApiError::InsufficientScope`].
    pub fn require_any(&self, scopes: &[Scope]) -> Result<(), ApiError> {
        if scopes.iter().any(|&scope| self.scopes.contains(scope)) {
            return Ok(());
        }
        Err(ApiError::InsufficientScope { needed: scopes.iter().copied().collect() })
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            None => f.write_str("operator"),
            Some(CallerKey { id, tenant }) => {
                write!(f, "key {id} of {}", tenant.id)
            }
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| ApiError::Internal {
            detail: "a route that needs a caller is not behind the key check".to_owned(),
        })
    }
}
