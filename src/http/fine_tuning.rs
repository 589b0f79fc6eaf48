//! `/v1/fine_tuning/jobs`: trainings of the caller's.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use pleach_adapters::Resolution;
use pleach_store::{GenerationDigest, NewJob, Page, StoreError, StoredJob};

use super::{
    error::ApiError,
    files::read_id,
    json_body::JsonBody,
    paging::{QueryFields, list as page_of, read_metadata, read_page},
    state::AppState,
    wire::{
        fine_tuning::{JobCard, JobCheckpointCard, JobEventCard, JobRequest, event_number},
        list::ObjectList,
    },
};
use crate::{
    tenants::Caller,
    training::{Auto, JobSpec, read_parent},
};

/// Rows of a page unless told otherwise (`OpenAI`'s default).
const PAGE_ROWS: u32 = 20;
/// Checkpoints of a page unless told otherwise (`OpenAI`'s default).
const CHECKPOINT_ROWS: u32 = 10;

/// Begins a training, which waits for its turn.
///
/// # Errors
/// A field that cannot be used, a model that cannot be trained, files that the caller has not, or a quota.
pub async fn create(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    body: JsonBody,
) -> Result<Json<JobCard>, ApiError> {
    let request = JobRequest::read(&body.fields)?;
    if !state.training.is_on() {
        let hint = ": it trains on the CPU only (--device cpu)";
        return Err(ApiError::Unsupported { param: "fine_tuning".to_owned(), hint });
    }
    let mut spec = JobSpec { precision: state.training.precision(), ..request.spec };
    if let Some((digest, rank)) = parent(&state, &caller, &request.model).await? {
        spec.parent = Some(digest);
        if let Auto::Set(asked) = spec.hyperparameters.lora_rank
            && asked as usize != rank
        {
            let reason = format!("the adapter that the training goes on from has rank {rank}");
            return Err(ApiError::invalid("hyperparameters.lora_rank", reason));
        }
    }
    let spec = serde_json::to_string(&spec)
        .map_err(|error| ApiError::Internal { detail: error.to_string() })?;
    let job = NewJob {
        model: request.model,
        training_file: request.training_file,
        validation_file: request.validation_file,
        spec,
        metadata: request.metadata,
    };
    let made = state.store.create_job(&caller.owner, &job).await.map_err(ApiError::from_stored)?;
    state.training.wake();
    Ok(Json(made.into()))
}

/// The generation that a training goes on from, and its rank; `None` is the base.
///
/// # Errors
/// Names that mean nothing to the caller or what is another's, and adapters of a kind that cannot be trained.
async fn parent(
    state: &AppState,
    caller: &Caller,
    model: &str,
) -> Result<Option<(GenerationDigest, usize)>, ApiError> {
    let refused = |reason: String| ApiError::invalid("model", reason);
    let space = caller.namespace();
    let registry = state.adapters.registry();
    let resolved = registry.resolve(&space, model);
    let alias = match resolved.map_err(|error| ApiError::from_registry(&error))? {
        Resolution::Base => return Ok(None),
        Resolution::Adapter(alias) => alias,
    };
    if alias.namespace != space {
        let reason = format!("{model:?} is shared: only the operator trains on from it");
        return Err(refused(reason));
    }
    state.adapters.resolve(&space, model, None).map_err(ApiError::from_service)?;
    let (digest, spec) = (alias.generation.digest, state.engine.spec().clone());
    let read = move || read_parent(&alias.generation, &spec).map(|parent| parent.lora().rank);
    let read = tokio::task::spawn_blocking(read).await;
    let read = read.map_err(|error| ApiError::Internal { detail: error.to_string() })?;
    let rank = read.map_err(|error| refused(format!("{model:?} cannot be trained on: {error}")))?;
    Ok(Some((GenerationDigest(digest.0), rank)))
}

/// The caller's jobs, newest first; with `?metadata[name]=value` only those.
///
/// # Errors
/// A page that cannot be asked for; [`ApiError::StoreUnavailable`].
pub async fn list(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    query: QueryFields,
) -> Result<Json<ObjectList<JobCard>>, ApiError> {
    let page = read_page(&query, PAGE_ROWS)?;
    let jobs = state.store.jobs(&caller.owner, &read_metadata(&query), &page).await;
    Ok(Json(page_of(jobs.map_err(ApiError::from_stored)?, |card: &JobCard| &card.id)))
}

/// One job.
///
/// # Errors
/// When the caller has none of that id.
pub async fn get(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<JobCard>, ApiError> {
    answer(state.store.job(&caller.owner, &read_id(id)?).await)
}

/// Ends a job that has not ended.
///
/// # Errors
/// When the caller has none of that id, or it has ended.
pub async fn cancel(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<JobCard>, ApiError> {
    answer(state.store.cancel_job(&caller.owner, &read_id(id)?).await)
}

/// Stops a job for a while: it goes on from there.
///
/// # Errors
/// When the caller has none of that id, or it has ended or is paused.
pub async fn pause(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<JobCard>, ApiError> {
    answer(state.store.pause_job(&caller.owner, &read_id(id)?).await)
}

/// Lets a paused job go on.
///
/// # Errors
/// When the caller has none of that id, or it is not paused.
pub async fn resume(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<JobCard>, ApiError> {
    let resumed = state.store.resume_job(&caller.owner, &read_id(id)?).await;
    state.training.wake();
    answer(resumed)
}

/// What a job told, newest first.
///
/// # Errors
/// When the caller has none of that id.
pub async fn events(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
    query: QueryFields,
) -> Result<Json<ObjectList<JobEventCard>>, ApiError> {
    let page = read_page(&query, PAGE_ROWS)?;
    // An id that is none is after all.
    let after = page.after.map(|id| event_number(id).unwrap_or("1"));
    let page = Page { after, ..page };
    let events = state.store.job_events(&caller.owner, &read_id(id)?, &page).await;
    Ok(Json(page_of(events.map_err(ApiError::from_stored)?, |card: &JobEventCard| &card.id)))
}

/// Models on the way, newest first.
///
/// # Errors
/// When the caller has none of that id.
pub async fn checkpoints(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
    query: QueryFields,
) -> Result<Json<ObjectList<JobCheckpointCard>>, ApiError> {
    let page = read_page(&query, CHECKPOINT_ROWS)?;
    let found = state.store.job_checkpoints(&caller.owner, &read_id(id)?, &page).await;
    let found = found.map_err(ApiError::from_stored)?;
    Ok(Json(page_of(found, |card: &JobCheckpointCard| &card.id)))
}

fn answer(job: Result<StoredJob, StoreError>) -> Result<Json<JobCard>, ApiError> {
    job.map(|job| Json(job.into())).map_err(ApiError::from_stored)
}
