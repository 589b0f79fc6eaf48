//! `GET /v1/models`, and `GET` and `DELETE /v1/models/{id}`.

use std::{collections::BTreeSet, sync::Arc, time::UNIX_EPOCH};

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use pleach_adapters::{Alias, Expect, Resolution};
use pleach_store::Owner;

use super::{
    error::ApiError,
    state::AppState,
    wire::{
        list::ObjectDeleted,
        models::{ModelCard, ModelList, ModelPermission},
    },
};
use crate::{adapter_service::Target, tenants::Caller};

const OWNER: &str = "pleach";

/// Bases first, then names under which the base answers until they have an adapter, then adapters by name.
pub async fn list(State(state): State<Arc<AppState>>, caller: Caller) -> Json<ModelList> {
    let of_base = names_of_base(&state, &caller).await;
    Json(ModelList { object: "list", data: cards(&state, &caller, &of_base) })
}

/// A list that lacks some names is better than none: a store that fails is told elsewhere.
async fn names_of_base(state: &AppState, caller: &Caller) -> Vec<String> {
    let (space, registry) = (caller.namespace(), state.adapters.registry());
    let mut names = BTreeSet::new();
    for owner in [&caller.owner, &Owner::Shared] {
        match state.store.policies_of(owner).await {
            Ok(policies) => names.extend(policies.into_iter().filter_map(|policy| {
                let is_of_base = policy.body["begins_at_base"] == true
                    && registry.visible(&space, &policy.name).is_none();
                is_of_base.then_some(policy.name)
            })),
            Err(error) => tracing::warn!(%error, "a list of models lacks names"),
        }
        if caller.owner == Owner::Shared {
            break;
        }
    }
    names.into_iter().collect()
}

/// One card. An adapter also answers to `BASE:NAME`.
///
/// # Errors
/// [`ApiError::UnknownModel`]; [`ApiError::InvalidValue`] for a path that is not UTF-8.
pub async fn get(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelCard>, ApiError> {
    let Path(id) = id.map_err(|rejection| ApiError::invalid("model", rejection.body_text()))?;
    match state.adapters.registry().resolve(&caller.namespace(), &id) {
        Ok(Resolution::Base) => Ok(Json(base_card(&state, &id))),
        Ok(Resolution::Adapter(alias)) => Ok(Json(adapter_card(&state, &alias))),
        Err(error) => match state.of_base(&caller, &id).await? {
            Some(_) => Ok(Json(base_card(&state, &id))),
            None => Err(ApiError::from_registry(&error)),
        },
    }
}

/// Removes an adapter of the caller's, such as one that it trained. Requests that have begun end on it.
///
/// # Errors
/// When the caller has none of that name.
pub async fn delete(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<ObjectDeleted>, ApiError> {
    let Path(id) = id.map_err(|rejection| ApiError::invalid("model", rejection.body_text()))?;
    let who = caller.owner.to_string();
    let target = Target { owner: caller.owner, name: id.clone(), who };
    let removed = state.adapters.remove(target, Expect::Anything).await;
    removed.map_err(ApiError::from_service)?;
    Ok(Json(ObjectDeleted { id, object: "model", deleted: true }))
}

fn cards(state: &AppState, caller: &Caller, of_base: &[String]) -> Vec<ModelCard> {
    let registry = state.adapters.registry();
    let bases = registry.base_names().iter().chain(of_base);
    let bases = bases.map(|name| base_card(state, name));
    let adapters = registry.list_visible(&caller.namespace());
    bases.chain(adapters.iter().map(|alias| adapter_card(state, alias))).collect()
}

fn base_card(state: &AppState, name: &str) -> ModelCard {
    ModelCard {
        max_model_len: Some(state.engine.spec().context),
        ..card(name, state.base.loaded_unix, None, None)
    }
}

fn adapter_card(state: &AppState, alias: &Alias) -> ModelCard {
    let created = alias.created.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let parent = state.adapters.registry().base_names().first().cloned();
    card(&alias.name, created, parent, Some(alias.generation.digest.to_string()))
}

fn card(
    name: &str,
    created: u64,
    parent: Option<String>,
    pleach_generation: Option<String>,
) -> ModelCard {
    ModelCard {
        id: name.to_owned(),
        object: "model",
        created,
        owned_by: OWNER,
        root: name.to_owned(),
        parent,
        max_model_len: None,
        permission: [ModelPermission::new(name, created)],
        pleach_generation,
    }
}
