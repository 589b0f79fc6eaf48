//! Who may ask for what: the key check of `/v1`, and scopes by route.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::header,
    middleware::Next,
    response::{IntoResponse, Response},
};
use pleach_store::Scope;

use super::{
    error::{ApiError, RefusedFor},
    state::AppState,
};
use crate::tenants::Caller;

/// Lets requests pass that have a good key, or need none, and tells handlers who calls; counts what each tenant was
/// answered. Guards `/v1`; probes and `/metrics` stay open, as in vLLM, because orchestrators and scrapers send no key.
pub async fn require_key(
    State(state): State<Arc<AppState>>,
    mut request: Request,
    next: Next,
) -> Response {
    let caller = match state.tenants.caller(request.headers().get(header::AUTHORIZATION)).await {
        Ok(caller) => caller,
        Err(error) => return error.into_response(),
    };
    let series = state.tenants.series_of(&caller);
    request.extensions_mut().insert(caller);
    let response = next.run(request).await;
    series.count_response(response.status().as_u16());
    if let Some(RefusedFor(reason)) = response.extensions().get() {
        series.count_refusal(reason);
    }
    response
}

/// Lets callers pass that have one of these scopes, before their body is read.
///
/// # Errors
/// [`ApiError::InsufficientScope`].
pub async fn require_scope(
    State(any_of): State<&'static [Scope]>,
    caller: Caller,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    caller.require_any(any_of)?;
    Ok(next.run(request).await)
}
