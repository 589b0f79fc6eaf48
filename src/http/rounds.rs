//! `/v1/adapters/{name}/rounds`: rounds of the learning loop.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use pleach_adapters::GenerationDigest;
use pleach_store::{Decision, StoreError, StoredRound};

use super::{
    adapters::read_name,
    error::ApiError,
    json_body::JsonBody,
    paging::{QueryFields, list as page_of, read_page},
    policies::{must_have, must_learn},
    state::AppState,
    wire::{learning::RoundCard, list::ObjectList},
};
use crate::{
    adapter_service::Target,
    learning::{Begin, Policy, Trigger, begin, clean_up, round_that_made},
    tenants::Caller,
};

/// Rows of a page unless told otherwise.
const PAGE_ROWS: u32 = 20;
/// Longest reason of a decision, characters.
const REASON_CHARS_MAX: usize = 512;

type RoundPath = Result<Path<(String, String)>, PathRejection>;

/// Begins a round now, by the policy that there is, whether or not that is on.
///
/// # Errors
/// An adapter that the caller has not or that has no policy; a round of it that is open; a server that does not train.
pub async fn create(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
    body: JsonBody,
) -> Result<Json<RoundCard>, ApiError> {
    let name = read_name(name)?;
    body.fields.only(&["rebuild_of"])?;
    let rebuild_of = body.fields.generation("rebuild_of")?;
    let target = must_learn(&state, &caller.owner, &name).await?;
    if !state.training.is_on() || !state.learning.is_on() {
        let hint = ": it trains on the CPU only (--device cpu)";
        return Err(ApiError::Unsupported { param: "rounds".to_owned(), hint });
    }
    if let Some(generation) = rebuild_of {
        must_be_rebuildable(&state, &target, generation).await?;
    }
    if state.adapters.kept(&target).is_some() {
        // An adapter of another base serves nobody.
        let resolved = state.adapters.resolve(&caller.namespace(), &name, None);
        resolved.map_err(ApiError::from_service)?;
    }
    let stored = state.store.policy(&caller.owner, &name).await.map_err(ApiError::from_stored)?;
    let policy: Policy = serde_json::from_value(stored.body)
        .map_err(|error| ApiError::Internal { detail: format!("its policy: {error}") })?;
    let wanted = Begin { policy, trigger: Trigger::Manual, rebuild_of };
    let made = begin(&state, &caller.owner, &name, wanted).await.map_err(ApiError::from_stored)?;
    match made {
        Some(round) => Ok(Json(round.into())),
        // Removed in between.
        None => {
            Err(must_have(&state, &caller.owner, &name).err().unwrap_or(ApiError::ShuttingDown))
        }
    }
}

/// Refuses to make a generation again that does not serve, as what is made is judged by what it replaces, or of which nobody
/// knows what it learned from.
async fn must_be_rebuildable(
    state: &AppState,
    target: &Target,
    generation: GenerationDigest,
) -> Result<(), ApiError> {
    let refused = |reason: &str| Err(ApiError::invalid("rebuild_of", reason));
    let Target { owner, name, .. } = target;
    // Of this name, now or before.
    let found = state.adapters.registry().resolve_generation(&target.space(), name, generation);
    found.map_err(|error| ApiError::from_registry(&error))?;
    let here = state.adapters.kept(target).map(|alias| alias.generation.digest);
    if here != Some(generation) {
        return refused(
            "the name points at another generation, and a rebuild replaces what serves",
        );
    }
    let made_by = round_that_made(&state.store, owner, name, generation).await;
    if made_by.map_err(ApiError::from_stored)?.is_none() {
        return refused("no round made it: nobody knows what it learned from");
    }
    Ok(())
}

/// Rounds of one of the caller's adapters, newest first.
///
/// # Errors
/// An adapter that the caller has not and had not; a page that cannot be asked for.
pub async fn list(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
    query: QueryFields,
) -> Result<Json<ObjectList<RoundCard>>, ApiError> {
    let name = read_name(name)?;
    let page = read_page(&query, PAGE_ROWS)?;
    let found = state.store.rounds(&caller.owner, &name, &page).await;
    let found = found.map_err(ApiError::from_stored)?;
    if found.items.is_empty() {
        must_learn(&state, &caller.owner, &name).await?;
    }
    Ok(Json(page_of(found, |card: &RoundCard| &card.id)))
}

/// One round.
///
/// # Errors
/// When the caller has none of that id and adapter.
pub async fn get(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    path: RoundPath,
) -> Result<Json<RoundCard>, ApiError> {
    Ok(Json(find(&state, &caller, path).await?.into()))
}

/// Lets a candidate go on that waits for it.
///
/// # Errors
/// When the caller has none of that id, or it does not wait.
pub async fn approve(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    path: RoundPath,
    body: JsonBody,
) -> Result<Json<RoundCard>, ApiError> {
    decide(&state, &caller, path, &body, Decision::Approve).await
}

/// Takes a candidate out, before it is in service or after.
///
/// # Errors
/// When the caller has none of that id, or it has not come to a candidate or ended otherwise.
pub async fn veto(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    path: RoundPath,
    body: JsonBody,
) -> Result<Json<RoundCard>, ApiError> {
    decide(&state, &caller, path, &body, Decision::Veto).await
}

/// Ends a round that has not ended.
///
/// # Errors
/// When the caller has none of that id, or it has ended.
pub async fn cancel(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    path: RoundPath,
    body: JsonBody,
) -> Result<Json<RoundCard>, ApiError> {
    decide(&state, &caller, path, &body, Decision::Cancel).await
}

async fn decide(
    state: &Arc<AppState>,
    caller: &Caller,
    path: RoundPath,
    body: &JsonBody,
    decision: Decision,
) -> Result<Json<RoundCard>, ApiError> {
    body.fields.only(&["reason"])?;
    let reason = body.fields.string("reason")?.unwrap_or_default();
    if reason.chars().count() > REASON_CHARS_MAX || reason.chars().any(char::is_control) {
        let why = format!(
            "it has to be at most {REASON_CHARS_MAX} characters, and none of them a line break or another control character"
        );
        return Err(ApiError::invalid("reason", why));
    }
    let round = find(state, caller, path).await?;
    let by = caller.to_string();
    let decided = state.store.decide_round(&round.owner, &round.id, decision, &by, reason).await;
    let decided = decided.map_err(ApiError::from_stored)?;
    tracing::info!(round = decided.id, by, ?decision, "somebody decided");
    if decided.state.is_final() {
        state.telemetry.count_round(decided.state.name());
        // Goes on when whoever asked has left; who asks gets the answer when it is done.
        let (state, ended) = (Arc::clone(state), decided.clone());
        let cleaned = tokio::spawn(async move { clean_up(&state, &ended).await });
        if cleaned.await.is_err() {
            return Err(ApiError::Internal { detail: "the clean-up panicked".to_owned() });
        }
    }
    state.learning.wake.all();
    Ok(Json(decided.into()))
}

async fn find(state: &AppState, caller: &Caller, path: RoundPath) -> Result<StoredRound, ApiError> {
    let Path((name, id)) =
        path.map_err(|rejection| ApiError::invalid("id", rejection.body_text()))?;
    let found = state.store.round(&caller.owner, &id).await.map_err(ApiError::from_stored)?;
    if found.name != name {
        return Err(ApiError::from_stored(StoreError::NotFound { kind: "round", id }));
    }
    Ok(found)
}
