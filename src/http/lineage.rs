//! `/v1/adapters/{name}/generations/{generation}/…`: what the caller's adapters came from.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use pleach_store::{GenerationDigest, Owner, Seen};

use super::{
    error::ApiError,
    state::AppState,
    wire::{
        fields::as_generation,
        lineage::{LearnedCard, LineageCard},
    },
};
use crate::{
    learning::{Provenance, model_card},
    tenants::Caller,
};

const MARKDOWN: &str = "text/markdown; charset=utf-8";

/// A name and a generation.
type Named = Result<Path<(String, String)>, PathRejection>;

/// Where a generation came from, also one that is there no more.
///
/// # Errors
/// When the caller has no such name, or that never had such a generation that was trained here.
pub async fn get(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    named: Named,
) -> Result<Json<LineageCard>, ApiError> {
    let (name, provenance) = find(&state, &caller, named).await?;
    Ok(Json(LineageCard::new(name, provenance)))
}

/// The same, for people: a model card in Markdown.
///
/// # Errors
/// As [`get`].
pub async fn card(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    named: Named,
) -> Result<Response, ApiError> {
    let (name, provenance) = find(&state, &caller, named).await?;
    let card = model_card(&name, base_name(&state), &provenance);
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(MARKDOWN))], card).into_response())
}

/// What has learned from something of an owner's.
pub(super) async fn learned(
    state: &AppState,
    owner: &Owner,
    seen: Seen<'_>,
) -> Result<Vec<LearnedCard>, ApiError> {
    let found = state.store.generations_that_saw(owner, seen).await;
    Ok(found.map_err(ApiError::from_stored)?.iter().map(LearnedCard::from).collect())
}

/// What the base is called.
pub(super) fn base_name(state: &AppState) -> &str {
    state.adapters.registry().base_names().first().map_or("", String::as_str)
}

async fn find(
    state: &AppState,
    caller: &Caller,
    named: Named,
) -> Result<(String, Provenance), ApiError> {
    let Path((name, generation)) =
        named.map_err(|rejection| ApiError::invalid("name", rejection.body_text()))?;
    let generation = GenerationDigest(as_generation(&generation, "generation")?.0);
    let lineage = state.store.lineage_under(&caller.owner, &name, &generation).await;
    let lineage = lineage.map_err(ApiError::from_stored)?;
    let provenance = Provenance::behind(&state.store, &caller.owner, lineage).await;
    Ok((name, provenance.map_err(ApiError::from_stored)?))
}
