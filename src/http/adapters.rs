//! `/v1/adapters`: what is registered, and changing it.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{FromRequest, Path, Query, Request, State, rejection::PathRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use pleach_adapters::{Expect, Namespace, RegistryError};
use pleach_store::{Owner, Scope};

use super::{
    adapter_upload,
    error::ApiError,
    json_body::JsonBody,
    state::AppState,
    wire::{
        adapters::{AdapterCard, AdapterDeleted, AdapterList},
        fields::{Fields, as_generation, as_string},
    },
};
use crate::{adapter_service::Target, tenants::Caller};

/// What follows the question mark, by name.
pub(super) type QueryFields = BTreeMap<String, String>;

const EXPECTED: &str = "expected_generation";
const OWNER: &str = "owner";
const PINNED: &str = "pinned";

/// Everything that the caller may use, by name; with `?owner=own` or `?owner=shared` only those.
///
/// # Errors
/// When the query makes no sense.
pub async fn list(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    query: Query<QueryFields>,
) -> Result<Json<AdapterList>, ApiError> {
    let namespace = caller.namespace();
    let views = match read_space(&caller, &query)? {
        Some(space) => state.adapters.views_in(&namespace, &space),
        None => state.adapters.views(&namespace),
    };
    let data = views.into_iter().map(AdapterCard::from).collect();
    Ok(Json(AdapterList { object: "list", data }))
}

/// One adapter: the caller's own of that name, else the shared one.
///
/// # Errors
/// When there is none of that name.
pub async fn get(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
    query: Query<QueryFields>,
) -> Result<Json<AdapterCard>, ApiError> {
    let name = read_name(name)?;
    let (namespace, space) = (caller.namespace(), read_space(&caller, &query)?);
    let view = match space {
        Some(space) => state.adapters.view_in(&namespace, &space, &name),
        None => state.adapters.view(&namespace, &name),
    };
    let view = view.ok_or_else(|| unknown(&name))?;
    Ok(Json(view.into()))
}

/// Makes an adapter or points it at new weights: `{"path": …}` below an allowed root, or an upload. Pins it or lets it go:
/// `{"pinned": …}`, alone or with weights. 201 when the name is new.
///
/// # Errors
/// See [`ApiError`]; nothing changed then, but when only the pinning failed.
pub async fn put(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
    query: Query<QueryFields>,
    request: Request,
) -> Result<Response, ApiError> {
    let target = read_target(&caller, name, &query)?;
    let mut expect = read_expected(&query)?;
    let mut pinned = read_pinned(&query)?;
    let mut is_new = false;
    if is_multipart(&request) {
        // Refused before megabytes are read.
        may_pin(&caller, pinned)?;
        is_new = adapter_upload::put(&state, target.clone(), request, expect).await?.is_new;
    } else {
        let JsonBody { fields, .. } = JsonBody::from_request(request, &state).await?;
        pinned = fields.boolean(PINNED)?.or(pinned);
        may_pin(&caller, pinned)?;
        if expect == Expect::Anything {
            expect = fields.expected_generation()?;
        }
        if let Some(path) = read_path(&fields, pinned)? {
            let registered = state.adapters.register_path(target.clone(), path, expect).await;
            is_new = registered.map_err(ApiError::from_service)?.is_new;
            expect = Expect::Anything;
        }
    }
    if let Some(pinned) = pinned {
        let changed = state.adapters.pin(target.clone(), pinned, expect).await;
        changed.map_err(ApiError::from_service)?;
    }
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, card(&state, &caller, &target)?).into_response())
}

/// Removes an adapter's name. Requests that have begun end on it.
///
/// # Errors
/// When there is none of that name, or it is not as expected.
pub async fn delete(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
    query: Query<QueryFields>,
) -> Result<Json<AdapterDeleted>, ApiError> {
    let target = read_target(&caller, name, &query)?;
    let name = target.name.clone();
    let removed = state.adapters.remove(target, read_expected(&query)?).await;
    let removed = removed.map_err(ApiError::from_service)?;
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
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
    query: Query<QueryFields>,
    body: JsonBody,
) -> Result<Json<AdapterCard>, ApiError> {
    let target = read_target(&caller, name, &query)?;
    let to = body.fields.generation("generation")?;
    let expect = body.fields.expected_generation()?;
    let moved = state.adapters.roll_back(target.clone(), to, expect).await;
    moved.map_err(ApiError::from_service)?;
    card(&state, &caller, &target)
}

fn card(state: &AppState, caller: &Caller, target: &Target) -> Result<Json<AdapterCard>, ApiError> {
    let view = state.adapters.view_in(&caller.namespace(), &target.space(), &target.name);
    let view = view.ok_or_else(|| unknown(&target.name))?;
    Ok(Json(view.into()))
}

fn unknown(name: &str) -> ApiError {
    ApiError::from_registry(&RegistryError::UnknownAlias { alias: name.to_owned() })
}

pub(super) fn read_name(name: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    let Path(name) = name.map_err(|rejection| ApiError::invalid("name", rejection.body_text()))?;
    Ok(name)
}

/// The name that is to be changed: the caller's own, or with `?owner=shared` the shared one.
fn read_target(
    caller: &Caller,
    name: Result<Path<String>, PathRejection>,
    query: &Query<QueryFields>,
) -> Result<Target, ApiError> {
    let owner = read_owner(caller, query)?.unwrap_or_else(|| caller.owner.clone());
    let is_own = owner == caller.owner;
    caller.require(if is_own { Scope::Train } else { Scope::Admin })?;
    Ok(Target { owner, name: read_name(name)?, who: caller.owner.to_string() })
}

fn read_owner(caller: &Caller, query: &Query<QueryFields>) -> Result<Option<Owner>, ApiError> {
    match query.get(OWNER).map(String::as_str) {
        None => Ok(None),
        Some("own") => Ok(Some(caller.owner.clone())),
        Some("shared") => Ok(Some(Owner::Shared)),
        Some(_) => Err(ApiError::invalid(OWNER, "it is neither own nor shared")),
    }
}

/// The namespace that a reader asks about; `None` is what the caller means by a name.
pub(super) fn read_space(
    caller: &Caller,
    query: &Query<QueryFields>,
) -> Result<Option<Namespace>, ApiError> {
    let owner = read_owner(caller, query)?;
    Ok(owner.map(|owner| Namespace::new(owner.as_str())))
}

fn read_expected(query: &Query<QueryFields>) -> Result<Expect, ApiError> {
    let expected = query.get(EXPECTED).map(|text| as_generation(text, EXPECTED)).transpose()?;
    Ok(expected.map_or(Expect::Anything, Expect::Generation))
}

fn read_pinned(query: &Query<QueryFields>) -> Result<Option<bool>, ApiError> {
    let parse = |text: &String| {
        text.parse().map_err(|_| ApiError::invalid(PINNED, "it is neither true nor false"))
    };
    query.get(PINNED).map(parse).transpose()
}

/// Required, unless the adapter is only to be pinned or let go.
fn read_path(fields: &Fields, pinned: Option<bool>) -> Result<Option<&str>, ApiError> {
    if pinned.is_some() {
        return fields.string("path");
    }
    as_string(fields.require("path")?, "path").map(Some)
}

/// Pinned adapters take memory that is everybody's.
fn may_pin(caller: &Caller, pinned: Option<bool>) -> Result<(), ApiError> {
    if pinned == Some(true) { caller.require(Scope::Admin) } else { Ok(()) }
}

fn is_multipart(request: &Request) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    content_type
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.trim_start().to_ascii_lowercase().starts_with("multipart/"))
}
