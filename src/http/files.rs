//! `/v1/files`: rows to train on, and what training wrote.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Path, Request, State, rejection::PathRejection},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use pleach_store::{NewFile, Order, Owner, StagedBlob, StoreError};

use super::{
    error::ApiError,
    form::Form,
    paging::{QueryFields, list as page_of, read_order, read_page},
    state::AppState,
    stored_refusal::StoredRefusal,
    wire::{
        files::{FILE_BYTES_MAX, FINE_TUNE, FileCard, check_purpose, keep_ms},
        list::{ObjectDeleted, ObjectList},
    },
};
use crate::{tenants::Caller, training::FileProblem};

/// Files of a page unless told otherwise.
const PAGE_ROWS: u32 = 10_000;
const BYTES: &str = "application/octet-stream";

/// Takes a file: `purpose`, `file` and, if it is not to be kept for good, `expires_after[anchor]` and
/// `expires_after[seconds]`. Every row is read before it is acknowledged.
///
/// # Errors
/// See [`ApiError`]; nothing is kept then.
pub async fn create(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    request: Request,
) -> Result<Json<FileCard>, ApiError> {
    let mut sent = Sent::default();
    let read = sent.read(&state, request).await;
    let kept = match read {
        Ok(()) => sent.keep(&state, caller.owner).await,
        Err(error) => Err(error),
    };
    if kept.is_err()
        && let Some(blob) = sent.blob
    {
        discard(&state, blob).await;
    }
    Ok(Json(kept?.into()))
}

/// What a form said so far.
#[derive(Debug, Default)]
struct Sent {
    purpose: Option<String>,
    filename: Option<String>,
    blob: Option<StagedBlob>,
    anchor: Option<String>,
    seconds: Option<i64>,
}

impl Sent {
    async fn read(&mut self, state: &AppState, request: Request) -> Result<(), ApiError> {
        let mut form = Form::begin(state, request).await?;
        while let Some(part) = form.next().await? {
            match part.name() {
                "purpose" => {
                    let purpose = part.text().await?;
                    // Before megabytes are read for nothing.
                    check_purpose(&purpose)?;
                    self.purpose = Some(purpose);
                }
                "file" => {
                    if self.blob.is_some() {
                        return Err(ApiError::invalid("file", "it came twice"));
                    }
                    self.filename = part.file_name().map(str::to_owned);
                    self.blob = Some(part.into_blob(&state.store, FILE_BYTES_MAX).await?);
                }
                "expires_after[anchor]" => self.anchor = Some(part.text().await?),
                "expires_after[seconds]" => {
                    let text = part.text().await?;
                    self.seconds = Some(text.trim().parse().map_err(|_| {
                        ApiError::invalid("expires_after.seconds", "it is no number")
                    })?);
                }
                other => {
                    return Err(ApiError::invalid(other, "there is no such field"));
                }
            }
        }
        Ok(())
    }

    async fn keep(
        &self,
        state: &AppState,
        owner: Owner,
    ) -> Result<pleach_store::StoredFile, ApiError> {
        let missing = |param: &str| ApiError::Missing { param: param.to_owned() };
        let purpose = self.purpose.clone().ok_or_else(|| missing("purpose"))?;
        let blob = self.blob.ok_or_else(|| missing("file"))?;
        let keep_ms = match (self.anchor.as_deref(), self.seconds) {
            (None, None) => None,
            (anchor, Some(seconds)) => Some(keep_ms(anchor, seconds)?),
            (Some(_), None) => return Err(missing("expires_after.seconds")),
        };
        check(state, &purpose, &blob, FILE_BYTES_MAX).await?;
        let filename = self.filename.clone().unwrap_or_else(|| "upload.jsonl".to_owned());
        let file = NewFile { owner, filename, purpose, blob, keep_ms };
        state.store.create_file(&file).await.map_err(ApiError::from_stored)
    }
}

/// Reads every row of a file that is to be trained on.
pub(super) async fn check(
    state: &AppState,
    purpose: &str,
    blob: &StagedBlob,
    bytes_max: u64,
) -> Result<(), ApiError> {
    if purpose != FINE_TUNE {
        return Ok(());
    }
    let checked = state.file_checks.check(&state.store, &blob.digest, bytes_max).await;
    match checked {
        Ok(_) => Ok(()),
        Err(FileProblem::Data(problem)) => {
            let message = format!("the file cannot be trained on: {problem}");
            Err(ApiError::Stored { refusal: StoredRefusal::File, message })
        }
        Err(FileProblem::Store(error)) => Err(ApiError::from_stored(error)),
        Err(error @ FileProblem::Panicked) => Err(ApiError::Internal { detail: error.to_string() }),
    }
}

/// Lets go of bytes that are not kept after all.
pub(super) async fn discard(state: &AppState, blob: StagedBlob) {
    if let Err(error) = state.store.discard_blobs(&[blob]).await {
        tracing::warn!(%error, "what is left of a refused file waits for the next sweep");
    }
}

/// The caller's files, newest first; with `?purpose=` only those.
///
/// # Errors
/// A page that cannot be asked for; [`ApiError::StoreUnavailable`].
pub async fn list(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    query: QueryFields,
) -> Result<Json<ObjectList<FileCard>>, ApiError> {
    let purpose = query.get("purpose").map(String::as_str);
    let (page, order) = (read_page(&query, PAGE_ROWS)?, read_order(&query, Order::Descending)?);
    let files = state.store.files(&caller.owner, purpose, &page, order).await;
    Ok(Json(page_of(files.map_err(ApiError::from_stored)?, |card: &FileCard| &card.id)))
}

/// One file.
///
/// # Errors
/// When the caller has none of that id.
pub async fn get(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<FileCard>, ApiError> {
    let file = state.store.file(&caller.owner, &read_id(id)?).await;
    Ok(Json(file.map_err(ApiError::from_stored)?.into()))
}

/// Deletes a file.
///
/// # Errors
/// When the caller has none of that id, or a job needs it.
pub async fn delete(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<ObjectDeleted>, ApiError> {
    let id = read_id(id)?;
    state.store.delete_file(&caller.owner, &id).await.map_err(ApiError::from_stored)?;
    Ok(Json(ObjectDeleted { id, object: "file", deleted: true }))
}

/// The bytes of a file. The length is told at first: a body that is cut short was not all.
///
/// # Errors
/// When the caller has none of that id, or it cannot be read.
pub async fn content(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let file = state.store.file(&caller.owner, &read_id(id)?).await;
    let file = file.map_err(ApiError::from_stored)?;
    let reader = state.store.blob_reader(&file.blob).await.map_err(ApiError::from_stored)?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(BYTES)),
        (header::CONTENT_LENGTH, HeaderValue::from(file.bytes)),
    ];
    let pieces = stream::try_unfold(reader, async |mut reader| {
        let piece = reader.next().await.inspect_err(|error| {
            tracing::warn!(%error, "the content of a file is broken off");
        })?;
        Ok::<_, StoreError>(piece.map(|piece| (piece, reader)))
    });
    Ok((headers, Body::from_stream(pieces)).into_response())
}

pub(super) fn read_id(id: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    let Path(id) = id.map_err(|rejection| ApiError::invalid("id", rejection.body_text()))?;
    Ok(id)
}
