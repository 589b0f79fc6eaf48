//! `/v1/adapters`: what is registered, and changing it.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{FromRequest, Path, Query, Request, State, rejection::PathRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use pleach_adapters::{Expect, RegistryError};

use super::{
    adapter_upload,
    error::ApiError,
    json_body::JsonBody,
    state::AppState,
    wire::{
        adapters::{AdapterCard, AdapterDeleted, AdapterList},
        fields::{as_generation, as_string},
    },
};

/// What follows the question mark, by name.
type QueryFields = BTreeMap<String, String>;

const EXPECTED: &str = "expected_generation";

/// Everything registered, by name.
pub async fn list(State(state): State<Arc<AppState>>) -> Json<AdapterList> {
    let data = state.adapters.views().into_iter().map(AdapterCard::from).collect();
    Json(AdapterList { object: "list", data })
}

/// One adapter.
///
/// # Errors
/// When there is none of that name.
pub async fn get(
    State(state): State<Arc<AppState>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<AdapterCard>, ApiError> {
    card(&state, &read_name(name)?)
}

/// Makes an adapter or points it at new weights: `{"path": …}` below an allowed root, or an upload. 201 when the name is
/// new.
///
/// # Errors
/// See [`ApiError`]; nothing changed then.
pub async fn put(
    State(state): State<Arc<AppState>>,
    name: Result<Path<String>, PathRejection>,
    query: Query<QueryFields>,
    request: Request,
) -> Result<Response, ApiError> {
    let name = read_name(name)?;
    let mut expect = read_expected(&query)?;
    let is_new = state.adapters.registry().get(&name).is_none();
    if is_multipart(&request) {
        adapter_upload::put(&state, &name, request, expect).await?;
    } else {
        let JsonBody { fields, .. } = JsonBody::from_request(request, &state).await?;
        let path = as_string(fields.require("path")?, "path")?;
        if expect == Expect::Anything {
            expect = fields.expected_generation()?;
        }
        let registered = state.adapters.register_path(&name, path, expect).await;
        registered.map_err(ApiError::from_service)?;
    }
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, card(&state, &name)?).into_response())
}

/// Removes an adapter's name. Requests that have begun end on it.
///
/// # Errors
/// When there is none of that name, or it is not as expected.
pub async fn delete(
    State(state): State<Arc<AppState>>,
    name: Result<Path<String>, PathRejection>,
    query: Query<QueryFields>,
) -> Result<Json<AdapterDeleted>, ApiError> {
    let name = read_name(name)?;
    let removed = state
        .adapters
        .remove(&name, read_expected(&query)?)
        .map_err(|error| ApiError::from_registry(&error))?;
    Ok(Json(AdapterDeleted {
        name,
        object: "adapter",
        deleted: true,
        generation: removed.generation.digest.to_string(),
    }))
}

/// Points an adapter back at its last generation, or at the `generation` of its history.
///
/// # Errors
/// When there is no such adapter or generation, or it is not as expected.
pub async fn roll_back(
    State(state): State<Arc<AppState>>,
    name: Result<Path<String>, PathRejection>,
    body: JsonBody,
) -> Result<Json<AdapterCard>, ApiError> {
    let name = read_name(name)?;
    let to = body.fields.generation("generation")?;
    let expect = body.fields.expected_generation()?;
    state.adapters.roll_back(&name, to, expect).map_err(|error| ApiError::from_registry(&error))?;
    card(&state, &name)
}

fn card(state: &AppState, name: &str) -> Result<Json<AdapterCard>, ApiError> {
    let view = state.adapters.view(name).ok_or_else(|| {
        ApiError::from_registry(&RegistryError::UnknownAlias { alias: name.to_owned() })
    })?;
    Ok(Json(view.into()))
}

fn read_name(name: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    let Path(name) = name.map_err(|rejection| ApiError::invalid("name", rejection.body_text()))?;
    Ok(name)
}

fn read_expected(query: &Query<QueryFields>) -> Result<Expect, ApiError> {
    let expected = query.get(EXPECTED).map(|text| as_generation(text, EXPECTED)).transpose()?;
    Ok(expected.map_or(Expect::Anything, Expect::Generation))
}

fn is_multipart(request: &Request) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    content_type
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.trim_start().to_ascii_lowercase().starts_with("multipart/"))
}
