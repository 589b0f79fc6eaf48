//! `/v1/adapters/{name}/policy`: what the owner of an adapter wants of the learning loop.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use pleach_adapters::{Expect, RegistryError, registry::is_hidden};
use pleach_store::{Owner, StoreError};

use super::{
    adapters::read_name,
    error::ApiError,
    json_body::JsonBody,
    state::AppState,
    wire::{
        files::FINE_TUNE,
        learning::{PolicyCard, PolicyDeleted},
    },
};
use crate::{
    adapter_service::Target,
    learning::{ANCHOR_BYTES_MAX, Policy},
    tenants::Caller,
    training::FileProblem,
};

const EXPECTED: &str = "expected_revision";

/// Makes or replaces a policy of one of the caller's own adapters, or of a name that is to get one; with `expected_revision` only if it has that one (0:
/// none).
///
/// # Errors
/// The field that cannot be used; an adapter that the caller has not; a revision that is another.
pub async fn put(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
    body: JsonBody,
) -> Result<Json<PolicyCard>, ApiError> {
    let name = read_name(name)?;
    let expected = body.fields.integer(EXPECTED, 0..=i64::MAX)?;
    let policy = Policy::read(&body.fields.without(EXPECTED))
        .map_err(|problem| ApiError::invalid(problem.field, problem.reason))?;
    if policy.begins_at_base {
        may_begin(&state, &caller, &name)?;
    } else {
        must_have(&state, &caller.owner, &name)?;
    }
    if let Some(anchors) = &policy.anchors {
        check_anchors(&state, &caller.owner, anchors).await?;
    }
    let document = serde_json::to_value(&policy)
        .map_err(|error| ApiError::Internal { detail: error.to_string() })?;
    let stored = state.store.put_policy(&caller.owner, &name, &document, expected).await;
    let stored = stored.map_err(ApiError::from_stored)?;
    state.learning.fed.all();
    Ok(Json(stored.into()))
}

/// A policy of the caller's.
///
/// # Errors
/// When the caller has none of that adapter.
pub async fn get(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<PolicyCard>, ApiError> {
    let stored = state.store.policy(&caller.owner, &read_name(name)?).await;
    Ok(Json(stored.map_err(ApiError::from_stored)?.into()))
}

/// Removes a policy. The round that is open goes on by it.
///
/// # Errors
/// When the caller has none of that adapter.
pub async fn delete(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<PolicyDeleted>, ApiError> {
    let name = read_name(name)?;
    state.store.delete_policy(&caller.owner, &name).await.map_err(ApiError::from_stored)?;
    Ok(Json(PolicyDeleted { name, object: "adapter.policy", deleted: true }))
}

/// Refuses a file of trusted rows that rounds could not use.
async fn check_anchors(state: &AppState, owner: &Owner, id: &str) -> Result<(), ApiError> {
    let refused = |reason: String| ApiError::invalid("anchors", reason);
    let file = match state.store.file(owner, id).await {
        Ok(file) => file,
        Err(error @ StoreError::NotFound { .. }) => return Err(refused(error.to_string())),
        Err(error) => return Err(ApiError::from_stored(error)),
    };
    if file.purpose != FINE_TUNE {
        let purpose = file.purpose;
        return Err(refused(format!(
            "file {id:?} is for {purpose:?}, it has to be for {FINE_TUNE:?}"
        )));
    }
    if file.bytes > ANCHOR_BYTES_MAX {
        let bytes = file.bytes;
        return Err(refused(format!("file {id:?} has {bytes} bytes, at most {ANCHOR_BYTES_MAX}")));
    }
    match state.file_checks.check(&state.store, &file.blob, ANCHOR_BYTES_MAX).await {
        Ok(_) => Ok(()),
        Err(FileProblem::Data(error)) => Err(refused(format!("file {id:?}: {error}"))),
        Err(FileProblem::Store(error)) => Err(ApiError::from_stored(error)),
        Err(error @ FileProblem::Panicked) => Err(ApiError::Internal { detail: error.to_string() }),
    }
}

/// Refuses a name that the caller neither has nor may make, and one that others' adapter answers to: then the base would not.
fn may_begin(state: &AppState, caller: &Caller, name: &str) -> Result<(), ApiError> {
    let (space, registry) = (caller.namespace(), state.adapters.registry());
    if is_hidden(name) || registry.get(&space, name).is_some() {
        return must_have(state, &caller.owner, name).map(drop);
    }
    let checked = registry.check(&space, name, Expect::Absent);
    checked.map_err(|error| ApiError::from_registry(&error))?;
    if registry.visible(&space, name).is_some() {
        let reason = format!("{name:?} is a shared adapter: it answers under that name");
        return Err(ApiError::invalid("begins_at_base", reason));
    }
    Ok(())
}

/// Refuses a name that the owner neither has itself nor lets the base answer under.
pub(super) async fn must_learn(
    state: &AppState,
    owner: &Owner,
    name: &str,
) -> Result<Target, ApiError> {
    match must_have(state, owner, name) {
        Err(_) if state.begins_at_base(owner, name).await? => {
            Ok(Target { owner: owner.clone(), name: name.to_owned(), who: owner.to_string() })
        }
        had => had,
    }
}

/// Refuses a name that the owner has not itself.
pub(super) fn must_have(state: &AppState, owner: &Owner, name: &str) -> Result<Target, ApiError> {
    let target = Target { owner: owner.clone(), name: name.to_owned(), who: owner.to_string() };
    if is_hidden(name) || state.adapters.kept(&target).is_none() {
        let unknown = RegistryError::UnknownAlias { alias: name.to_owned() };
        return Err(ApiError::from_registry(&unknown));
    }
    Ok(target)
}
