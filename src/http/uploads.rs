//! `/v1/uploads`: files that come in parts.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Request, State, rejection::PathRejection},
};
use md5::{Digest as _, Md5};
use pleach_store::{NewUpload, StagedBlob, UploadPart};

use super::{
    error::ApiError,
    files::{check, discard, read_id},
    form::Form,
    json_body::JsonBody,
    state::AppState,
    wire::files::{
        PART_BYTES_MAX, PartCard, UPLOAD_BYTES_MAX, UploadCard, UploadRequest, read_complete,
    },
};
use crate::{hex::hex, tenants::Caller};

/// Begins an upload.
///
/// # Errors
/// A field that cannot be used, or more bytes than the caller may have.
pub async fn create(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    body: JsonBody,
) -> Result<Json<UploadCard>, ApiError> {
    let UploadRequest { filename, purpose, bytes, keep_ms } = UploadRequest::read(&body.fields)?;
    let upload = NewUpload { owner: caller.owner, filename, purpose, bytes, file_keep_ms: keep_ms };
    let made = state.store.create_upload(&upload).await.map_err(ApiError::from_stored)?;
    Ok(Json(UploadCard::new(made, None)))
}

/// Takes a part, `data`.
///
/// # Errors
/// See [`ApiError`]; nothing is kept then.
pub async fn add_part(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<PartCard>, ApiError> {
    let id = read_id(id)?;
    // Before megabytes are read for nothing.
    state.store.parts(&caller.owner, &id, &[]).await.map_err(ApiError::from_stored)?;
    let mut form = Form::begin(&state, request).await?;
    let Some(part) = form.next().await? else {
        return Err(ApiError::Missing { param: "data".to_owned() });
    };
    if part.name() != "data" {
        return Err(ApiError::invalid(part.name(), "a part is called data"));
    }
    let blob = part.into_blob(&state.store, PART_BYTES_MAX).await?;
    match state.store.add_part(&caller.owner, &id, &blob).await {
        Ok(part) => Ok(Json(PartCard::new(part, id))),
        Err(error) => {
            discard(&state, blob).await;
            Err(ApiError::from_stored(error))
        }
    }
}

/// Joins parts to a file, whose every row is read before it is acknowledged.
///
/// # Errors
/// See [`ApiError`]; the upload stays as it was then.
pub async fn complete(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
    body: JsonBody,
) -> Result<Json<UploadCard>, ApiError> {
    let id = read_id(id)?;
    let (part_ids, md5) = read_complete(&body.fields)?;
    let (upload, _) =
        state.store.upload(&caller.owner, &id).await.map_err(ApiError::from_stored)?;
    let parts = state.store.parts(&caller.owner, &id, &part_ids).await;
    let parts = parts.map_err(ApiError::from_stored)?;
    let bytes: u64 = parts.iter().map(|part| part.bytes).sum();
    if bytes != upload.bytes {
        let reason = format!("these have {bytes} bytes, {} were announced", upload.bytes);
        return Err(ApiError::invalid("part_ids", reason));
    }
    let (blob, found) = join(&state, &parts).await?;
    let kept = async {
        if md5.is_some_and(|md5| md5 != found) {
            return Err(ApiError::invalid("md5", format!("that of the parts is {found}")));
        }
        check(&state, &upload.purpose, &blob, UPLOAD_BYTES_MAX).await?;
        let done = state.store.complete_upload(&caller.owner, &id, &blob).await;
        done.map_err(ApiError::from_stored)
    };
    match kept.await {
        Ok((upload, file)) => Ok(Json(UploadCard::new(upload, Some(file)))),
        Err(error) => {
            discard(&state, blob).await;
            Err(error)
        }
    }
}

/// Gives an upload up.
///
/// # Errors
/// When the caller has none of that id, or it has ended.
pub async fn cancel(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<UploadCard>, ApiError> {
    let cancelled = state.store.cancel_upload(&caller.owner, &read_id(id)?).await;
    Ok(Json(UploadCard::new(cancelled.map_err(ApiError::from_stored)?, None)))
}

/// One blob of the bytes of all parts, and their MD5.
async fn join(state: &AppState, parts: &[UploadPart]) -> Result<(StagedBlob, String), ApiError> {
    let mut whole = state.store.blob_writer(UPLOAD_BYTES_MAX).map_err(ApiError::from_stored)?;
    let mut md5 = Md5::new();
    for part in parts {
        let mut reader =
            state.store.blob_reader(&part.blob).await.map_err(ApiError::from_stored)?;
        while let Some(piece) = reader.next().await.map_err(ApiError::from_stored)? {
            md5.update(&piece);
            whole.write(piece).await.map_err(ApiError::from_stored)?;
        }
    }
    let blob = whole.finish().await.map_err(ApiError::from_stored)?;
    Ok((blob, hex(&md5.finalize())))
}
