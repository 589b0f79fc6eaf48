//! `/v1/admin/tenants/{id}/keys`: what clients of a tenant send. Every change is a line in the log.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::StatusCode,
};
use pleach_store::NewApiKey;

use super::{
    admin_tenants::{AUDIT, QueryFields, cards, parse_id, read_id, read_page},
    error::ApiError,
    json_body::JsonBody,
    state::AppState,
    wire::tenants::{ApiKeyCard, ApiKeyRevoked, CardList, NewApiKeyCard, read_key},
};
use crate::{telemetry::unix_time, tenants::Caller};

/// One page of a tenant's keys, by id; revoked and expired ones too.
///
/// # Errors
/// When there is no such tenant.
pub async fn list(
    State(state): State<Arc<AppState>>,
    id: Result<Path<String>, PathRejection>,
    query: QueryFields,
) -> Result<Json<CardList<ApiKeyCard>>, ApiError> {
    let (id, page) = (read_id(id)?, read_page(&query)?);
    let store = state.tenants.store();
    let keys = async {
        // The keys of nobody would be an empty list.
        store.tenant(&id).await?;
        store.keys(&id, &page).await
    };
    Ok(Json(cards(keys.await.map_err(|error| ApiError::from_tenants(&error))?)))
}

/// Makes a key. The answer is the only one that holds its text.
///
/// # Errors
/// A field that cannot be used, or no such tenant.
pub async fn create(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
    body: JsonBody,
) -> Result<(StatusCode, Json<NewApiKeyCard>), ApiError> {
    let tenant = read_id(id)?;
    let now_ms = i64::try_from(unix_time().as_millis()).unwrap_or(i64::MAX);
    let wanted = read_key(&body.fields, now_ms)?;
    let (name, scopes, expires_ms) = (wanted.name, wanted.scopes, wanted.expires_ms);
    let key = NewApiKey { tenant, name, scopes, expires_ms };
    let made = state.tenants.create_key(key).await;
    let (key, text) = made.map_err(|error| ApiError::from_tenants(&error))?;
    tracing::info!(
        target: AUDIT, %caller, tenant = %key.tenant, key = key.id, name = key.name, scopes = %key.scopes,
        expires_ms = key.expires_ms, "made a key"
    );
    Ok((StatusCode::CREATED, Json(NewApiKeyCard { card: key.into(), key: text.reveal() })))
}

/// Revokes a key for good.
///
/// # Errors
/// When the tenant has no such key.
pub async fn revoke(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Json<ApiKeyRevoked>, ApiError> {
    let Path((tenant, id)) =
        path.map_err(|rejection| ApiError::invalid("id", rejection.body_text()))?;
    let tenant = parse_id(&tenant)?;
    let revoked = state.tenants.revoke_key(&tenant, &id).await;
    revoked.map_err(|error| ApiError::from_tenants(&error))?;
    tracing::info!(target: AUDIT, %caller, %tenant, key = id, "revoked a key");
    Ok(Json(ApiKeyRevoked { id, object: "api_key", revoked: true }))
}
