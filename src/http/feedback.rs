//! `/v1/feedback`: what people say about completions and episodes.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::HeaderMap,
};
use pleach_adapters::{GenerationDigest, Namespace};
use pleach_store::{
    FeedbackFilter, FeedbackTarget, IdempotencyKey, NewFeedback, Order, Owner, Page, Seen,
    StoreError, StoredFeedback,
};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{
    error::ApiError,
    files::read_id,
    json_body::JsonBody,
    lineage::learned,
    paging::{QueryFields, list as page_of, read_order, read_page},
    state::AppState,
    stored_completions::{body, find},
    wire::{
        feedback::{
            FeedbackCard, FeedbackGiven, FeedbackRequest, FeedbackWithdrawn, Said, UserErased,
            read_key, read_said,
        },
        lineage::LearnedCard,
        list::ObjectList,
        metadata::read_metadata,
    },
};
use crate::{feedback::user_digest, hex::hex, learning::clean_up, tenants::Caller};

/// Rows of a page unless told otherwise.
const PAGE_ROWS: u32 = 100;
/// As clients of `OpenAI` and Stripe send it.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Takes feedback. A request that is sent again with its idempotency key has one effect, and one answer.
///
/// # Errors
/// See [`ApiError`]; a completion or episode that the caller has not is told like one that nobody has.
pub async fn create(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    headers: HeaderMap,
    request: JsonBody,
) -> Result<Json<FeedbackGiven>, ApiError> {
    let mut sent = FeedbackRequest::read(&request.fields)?;
    if sent.idempotency_key.is_none()
        && let Some(key) = headers.get(IDEMPOTENCY_KEY)
    {
        let key = key.to_str().map_err(|_| ApiError::invalid("idempotency_key", "it is no text"));
        sent.idempotency_key = Some(read_key(key?)?);
    }
    let request_sha256 = digest(&sent);
    check_target(&state, &caller.owner, &sent.target, &sent.said).await?;
    redact(&state, &mut sent.said).await?;
    let feedback = NewFeedback {
        target: sent.target,
        metric: sent.metric,
        kind: sent.said.kind(),
        value: sent.said.to_json(),
        rejected: sent.said.rejected().map(str::to_owned),
        tags: sent.tags,
        user_sha256: sent.user.map(|user| user_digest(&caller.owner, &user)),
        idempotency: sent.idempotency_key.map(|key| IdempotencyKey { key, request_sha256 }),
    };
    let kept = state.store.put_feedback(&caller.owner, &feedback, sent.dry_run).await;
    let (kept, is_new) = kept.map_err(ApiError::from_stored)?;
    if is_new && !sent.dry_run {
        state.telemetry.count_feedback(kept.kind.name());
        learn(&state, &caller.owner, &kept).await;
    }
    Ok(Json(FeedbackGiven { feedback_id: kept.id }))
}

/// The caller's feedback, oldest first; with `?inference_id=`, `?episode_id=`, `?metric_name=` only that.
///
/// # Errors
/// A page that cannot be asked for; [`ApiError::StoreUnavailable`].
pub async fn list(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    query: QueryFields,
) -> Result<Json<ObjectList<FeedbackCard>>, ApiError> {
    let field = |name: &str| query.get(name).map(String::as_str);
    let filter = FeedbackFilter {
        completion: field("inference_id"),
        episode: field("episode_id"),
        metric: field("metric_name"),
    };
    let (page, order) = (read_page(&query, PAGE_ROWS)?, read_order(&query, Order::Ascending)?);
    let found = state.store.all_feedback(&caller.owner, filter, &page, order).await;
    Ok(Json(page_of(found.map_err(ApiError::from_stored)?, |card: &FeedbackCard| &card.id)))
}

/// One feedback.
///
/// # Errors
/// When the caller has none of that id.
pub async fn get(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<FeedbackCard>, ApiError> {
    let found = state.store.feedback(&caller.owner, &read_id(id)?).await;
    Ok(Json(found.map_err(ApiError::from_stored)?.into()))
}

/// Changes what was said: `value`, `tags`, or both.
///
/// # Errors
/// When the caller has none of that id, it was withdrawn, or the value is of another kind.
pub async fn change(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
    request: JsonBody,
) -> Result<Json<FeedbackCard>, ApiError> {
    let id = read_id(id)?;
    let fields = &request.fields;
    fields.only(&["value", "tags"])?;
    let found = state.store.feedback(&caller.owner, &id).await.map_err(ApiError::from_stored)?;
    let value = match fields.get("value") {
        None => None,
        Some(value) => {
            let mut said = read_said(&found.metric, &found.target, value)?;
            if said.kind() != found.kind || said.rejected() != found.rejected.as_deref() {
                let reason = format!("a {} stays one, about the same answers", found.kind.name());
                return Err(ApiError::invalid("value", reason));
            }
            check_target(&state, &caller.owner, &found.target, &said).await?;
            redact(&state, &mut said).await?;
            Some(said.to_json())
        }
    };
    let tags = fields.get("tags").map(|_| read_metadata(fields, "tags")).transpose()?;
    let changed =
        state.store.change_feedback(&caller.owner, &id, value.as_ref(), tags.as_ref()).await;
    Ok(Json(changed.map_err(ApiError::from_stored)?.into()))
}

/// Withdraws feedback: nothing is left of what was said, but in the weights that learned from it, which are told.
///
/// # Errors
/// When the caller has none of that id.
pub async fn withdraw(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<FeedbackWithdrawn>, ApiError> {
    let id = read_id(id)?;
    let withdrawn = state.store.withdraw_feedback(&caller.owner, &id).await;
    let card = withdrawn.map_err(ApiError::from_stored)?.into();
    let generations = learned(&state, &caller.owner, Seen::Feedback(&id)).await?;
    Ok(Json(FeedbackWithdrawn { card, generations }))
}

/// Deletes what an end user (`safety_identifier` or `user` of completions, `user` of feedback) asked, was answered and said,
/// and tells what has learned from it.
///
/// # Errors
/// [`ApiError::StoreUnavailable`]; nothing is deleted then.
pub async fn erase_user(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    user: Result<Path<String>, PathRejection>,
) -> Result<Json<UserErased>, ApiError> {
    let user = user_digest(&caller.owner, &read_id(user)?);
    // What is on its way belongs to it.
    state.capture.settled().await;
    let erased = state.store.erase_user(&caller.owner, &user).await;
    let erased = erased.map_err(ApiError::from_stored)?;
    tracing::info!(%caller, completions = erased.completions, feedback = erased.feedback, "erased a user");
    for id in &erased.rounds {
        end_round(&state, &caller.owner, id).await;
    }
    Ok(Json(UserErased {
        object: "user.erased",
        completions: erased.completions,
        feedback: erased.feedback,
        generations: erased.generations.iter().map(LearnedCard::from).collect(),
        rounds: erased.rounds,
    }))
}

/// Ends what a round that was cancelled is at. What fails is done later, by whoever ends rounds.
async fn end_round(state: &Arc<AppState>, owner: &Owner, id: &str) {
    match state.store.round(owner, id).await {
        Ok(round) => {
            state.telemetry.count_round(round.state.name());
            clean_up(state, &round).await;
            state.learning.wake.all();
        }
        Err(error) => tracing::warn!(round = id, %error, "what a round kept is removed later"),
    }
}

/// The learning loop hears of what was said. What fails is found when it looks by itself.
async fn learn(state: &AppState, owner: &Owner, kept: &StoredFeedback) {
    state.learning.fed.all();
    let FeedbackTarget::Completion { id, .. } = &kept.target else { return };
    let rollouts = &state.learning.rollouts;
    if rollouts.is_empty() {
        return;
    }
    // An answer counts once, by what was said of it first: nobody takes a candidate back by saying the same again and again.
    let about = FeedbackFilter { completion: Some(id), episode: None, metric: Some(&kept.metric) };
    let said = state.store.all_feedback(owner, about, &Page::FIRST, Order::Ascending).await;
    let first = said
        .ok()
        .and_then(|said| said.items.into_iter().find(|feedback| feedback.target == kept.target));
    if first.is_none_or(|first| first.id != kept.id) {
        return;
    }
    let Ok(completion) = state.store.completion(owner, id).await else { return };
    let generation = completion.generation.map(|generation| GenerationDigest(generation.0));
    let (own, name) = (Namespace::new(owner.as_str()), &completion.model);
    // A name that the owner has not itself is a shared one; what answers under it is on trial by everybody's requests.
    let is_own = rollouts.trial_of(&own, name).is_some()
        || state.adapters.registry().get(&own, name).is_some();
    let space = if is_own { own } else { Namespace::new(Owner::Shared.as_str()) };
    rollouts.judged(&space, name, generation, &kept.metric, &kept.value);
}

/// The caller has what is spoken of, and a comparison is of two answers to the same messages.
async fn check_target(
    state: &AppState,
    owner: &Owner,
    target: &FeedbackTarget,
    said: &Said,
) -> Result<(), ApiError> {
    let (id, choice) = match target {
        FeedbackTarget::Completion { id, choice } => (id, *choice),
        FeedbackTarget::Episode(episode) => return check_episode(state, owner, episode).await,
    };
    let answered = body(&find(state, owner, id).await?)?;
    check_choice(choice, answered.choices.len(), "choice")?;
    if let Said::BetterThan { id: worse, choice } = said {
        let other = body(&find(state, owner, worse).await?)?;
        check_choice(*choice, other.choices.len(), "value.choice")?;
        if other.messages != answered.messages {
            return Err(ApiError::invalid("value", "it is no answer to the same messages"));
        }
    }
    Ok(())
}

async fn check_episode(state: &AppState, owner: &Owner, episode: &str) -> Result<(), ApiError> {
    // Asked first, as in `find`.
    let is_busy = state.capture.is_busy();
    let mut found = state.store.has_episode(owner, episode).await;
    if matches!(found, Ok(false)) && is_busy {
        state.capture.settled().await;
        found = state.store.has_episode(owner, episode).await;
    }
    if found.map_err(ApiError::from_stored)? {
        return Ok(());
    }
    Err(ApiError::from_stored(StoreError::NotFound { kind: "episode", id: episode.to_owned() }))
}

fn check_choice(choice: u32, n_choices: usize, param: &str) -> Result<(), ApiError> {
    if (choice as usize) < n_choices {
        return Ok(());
    }
    Err(ApiError::invalid(param, format!("there are {n_choices} answers, counted from 0")))
}

/// Takes personal data and secrets out of words.
async fn redact(state: &AppState, said: &mut Said) -> Result<(), ApiError> {
    let Some(text) = said.text_mut() else { return Ok(()) };
    let given = std::mem::take(text);
    let redacted = state.capture.redact(given).await;
    *text = redacted.map_err(|detail| ApiError::Internal { detail })?;
    Ok(())
}

/// SHA-256 of what a request says, 64 hex digits.
fn digest(sent: &FeedbackRequest) -> String {
    let target = match &sent.target {
        FeedbackTarget::Completion { id, choice } => json!([id, choice]),
        FeedbackTarget::Episode(episode) => json!([episode]),
    };
    let said = sent.said.to_json();
    let all = json!([target, sent.metric, said, sent.tags, sent.user, sent.dry_run]).to_string();
    hex(&Sha256::digest(all))
}
