//! Completions that were kept: `GET /v1/chat/completions` and below.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use pleach_adapters::Resolution;
use pleach_store::{CompletionFilter, Listing, Order, Owner, Seen, StoreError, StoredCompletion};

use super::{
    error::ApiError,
    files::read_id,
    json_body::JsonBody,
    lineage::learned,
    paging::{QueryFields, list as page_of, read_metadata, read_order, read_page},
    state::AppState,
    wire::{
        list::ObjectList,
        metadata,
        stored::{ChatDeleted, StoredChat, StoredMessage},
    },
};
use crate::{feedback::CompletionBody, tenants::Caller};

/// Rows of a page unless told otherwise (`OpenAI`'s default).
const PAGE_ROWS: u32 = 20;

/// The caller's completions, oldest first; with `?model=` and `?metadata[name]=value` only those.
///
/// # Errors
/// A page that cannot be asked for; [`ApiError::StoreUnavailable`].
pub async fn list(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    query: QueryFields,
) -> Result<Json<ObjectList<StoredChat>>, ApiError> {
    let model = query.get("model").map(|asked| {
        match state.adapters.registry().resolve(&caller.namespace(), asked) {
            Ok(Resolution::Adapter(alias)) => alias.name.to_string(),
            Ok(Resolution::Base) | Err(_) => asked.clone(),
        }
    });
    let filter = CompletionFilter { model, metadata: read_metadata(&query) };
    let (page, order) = (read_page(&query, PAGE_ROWS)?, read_order(&query, Order::Ascending)?);
    // Whoever asks right after an answer finds it.
    state.capture.settled().await;
    let found = state.store.completions(&caller.owner, &filter, &page, order).await;
    let Listing { items, next } = found.map_err(ApiError::from_stored)?;
    let items = items.into_iter().map(card).collect::<Result<Vec<_>, _>>()?;
    Ok(Json(page_of(Listing { items, next }, |card: &StoredChat| &card.id)))
}

/// One completion.
///
/// # Errors
/// When the caller has none of that id.
pub async fn get(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<StoredChat>, ApiError> {
    Ok(Json(card(find(&state, &caller.owner, &read_id(id)?).await?)?))
}

/// The messages that were asked.
///
/// # Errors
/// When the caller has none of that id.
pub async fn messages(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
    query: QueryFields,
) -> Result<Json<ObjectList<StoredMessage>>, ApiError> {
    let completion = find(&state, &caller.owner, &read_id(id)?).await?;
    let (page, order) = (read_page(&query, PAGE_ROWS)?, read_order(&query, Order::Ascending)?);
    let asked = body(&completion)?.messages.into_iter().enumerate();
    let mut all: Vec<_> =
        asked.map(|(index, message)| StoredMessage::new(&completion.id, index, message)).collect();
    if order == Order::Descending {
        all.reverse();
    }
    let n_before = page.after.map_or(0, |after| {
        all.iter().position(|message| message.id == after).map_or(all.len(), |place| place + 1)
    });
    let n_rows = page.rows_max as usize;
    let has_more = all.len() > n_before + n_rows;
    let items: Vec<_> = all.into_iter().skip(n_before).take(n_rows).collect();
    let next = items.last().filter(|_| has_more).map(|message| message.id.clone());
    Ok(Json(page_of(Listing { items, next }, |message: &StoredMessage| &message.id)))
}

/// Replaces the pairs of a completion.
///
/// # Errors
/// When the caller has none of that id, or they are too many or too long.
pub async fn update(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
    request: JsonBody,
) -> Result<Json<StoredChat>, ApiError> {
    let id = read_id(id)?;
    request.fields.only(&["metadata"])?;
    let metadata = metadata::read_metadata(&request.fields, "metadata")?;
    find(&state, &caller.owner, &id).await?;
    let changed = state.store.set_completion_metadata(&caller.owner, &id, &metadata).await;
    Ok(Json(card(changed.map_err(ApiError::from_stored)?)?))
}

/// Deletes a completion, and all feedback on it; tells what has learned from it.
///
/// # Errors
/// When the caller has none of that id.
pub async fn delete(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<ChatDeleted>, ApiError> {
    let id = read_id(id)?;
    find(&state, &caller.owner, &id).await?;
    state.store.delete_completion(&caller.owner, &id).await.map_err(ApiError::from_stored)?;
    let generations = learned(&state, &caller.owner, Seen::Completion(&id)).await?;
    Ok(Json(ChatDeleted { id, object: "chat.completion.deleted", deleted: true, generations }))
}

/// A completion of an owner's, also one that is on its way to the store.
pub(super) async fn find(
    state: &AppState,
    owner: &Owner,
    id: &str,
) -> Result<StoredCompletion, ApiError> {
    // Asked first: what is written between the two is neither found nor still on its way.
    let is_busy = state.capture.is_busy();
    let found = match state.store.completion(owner, id).await {
        Err(StoreError::NotFound { .. }) if is_busy => {
            state.capture.settled().await;
            state.store.completion(owner, id).await
        }
        found => found,
    };
    found.map_err(ApiError::from_stored)
}

/// What a completion's body says.
pub(super) fn body(completion: &StoredCompletion) -> Result<CompletionBody, ApiError> {
    serde_json::from_str(&completion.body).map_err(|error| {
        tracing::error!(id = completion.id, %error, "a kept completion is damaged");
        ApiError::StoreUnavailable
    })
}

fn card(completion: StoredCompletion) -> Result<StoredChat, ApiError> {
    StoredChat::new(completion).ok_or_else(|| {
        tracing::error!("a kept completion is damaged");
        ApiError::StoreUnavailable
    })
}
