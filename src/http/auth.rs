//! The single API key.

use std::{fmt, sync::Arc};

use axum::{
    extract::{Request, State},
    http::header,
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};

use super::{error::ApiError, state::AppState};
use crate::tenants::Caller;

/// A key, kept as its digest: comparing digests takes the same time wherever they differ, and nothing that prints the
/// server's state can print the key.
#[derive(Clone)]
pub struct ApiKey([u8; 32]);

impl ApiKey {
    /// Keeps a key.
    pub fn new(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    /// Whether this is the key.
    pub fn matches(&self, key: &str) -> bool {
        let other: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        self.0.iter().zip(other).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(hidden)")
    }
}

/// Lets requests with the key pass; all of them if there is none. Guards `/v1`; probes and `/metrics` stay open, as in
/// vLLM, because orchestrators and scrapers send no key.
pub async fn require_key(
    State(state): State<Arc<AppState>>,
    mut request: Request,
    next: Next,
) -> Response {
    match check(&state, &request) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

fn check(state: &AppState, request: &Request) -> Result<Caller, ApiError> {
    let Some(key) = &state.api_key else { return Ok(Caller::operator()) };
    let given = request.headers().get(header::AUTHORIZATION).ok_or(ApiError::MissingKey)?;
    let given = given.to_str().map_err(|_| ApiError::WrongKey)?;
    let (scheme, given) = given.split_once(' ').ok_or(ApiError::WrongKey)?;
    if scheme.eq_ignore_ascii_case("bearer") && key.matches(given.trim()) {
        Ok(Caller::operator())
    } else {
        Err(ApiError::WrongKey)
    }
}

#[cfg(test)]
mod tests {
    use super::ApiKey;

    #[test]
    fn only_the_key_matches_and_debug_hides_it() {
        let key = ApiKey::new("secret");
        assert!(key.matches("secret"));
        for other in ["", "secre", "secret ", "Secret", "secrets"] {
            assert!(!key.matches(other), "{other:?}");
        }
        assert!(!format!("{key:?}").contains("secret"));
    }
}
