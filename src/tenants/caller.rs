//! Who sent a request, and what they may do.

use axum::{extract::FromRequestParts, http::request::Parts};
use pleach_adapters::Namespace;
use pleach_store::{Owner, Scope, Scopes};

use crate::http::error::ApiError;

/// Who sent a request. Made once, when its key is checked; handlers take it as an argument.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Whose adapters it changes, and sees beside the shared ones.
    pub owner: Owner,
    /// What it may do.
    pub scopes: Scopes,
}

impl Caller {
    /// Whoever runs the server: may do everything, and what it makes is for all.
    pub fn operator() -> Self {
        Self { owner: Owner::Shared, scopes: Scope::ALL.into_iter().collect() }
    }

    /// Refuses a request that its key does not allow.
    ///
    /// # Errors
    /// [`ApiError::Forbidden`], with the scope that is missing.
    pub fn require(&self, scope: Scope) -> Result<(), ApiError> {
        if self.scopes.contains(scope) { Ok(()) } else { Err(ApiError::Forbidden { scope }) }
    }

    /// Whose names it uses first; the shared ones come after.
    pub fn namespace(&self) -> Namespace {
        Namespace::new(self.owner.as_str())
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
