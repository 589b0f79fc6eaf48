//! An adapter that comes as a `multipart/form-data` body: its two files, each under its own name.

use std::{sync::Arc, time::Duration};

use axum::extract::{FromRequest, Multipart, Request, multipart::Field};
use pleach_adapters::{
    Expect, Moved,
    peft::{CONFIG_FILE, TENSOR_FILE},
};

use super::{error::ApiError, form::wait, state::AppState};
use crate::adapter_service::{ServiceError, SpoolFolder, Target};

/// Reads the files into a folder of their own and registers them; what became of the name.
///
/// # Errors
/// See [`ApiError`]; nothing changed then, and nothing of the upload is left.
pub async fn put(
    state: &Arc<AppState>,
    target: Target,
    request: Request,
    expect: Expect,
) -> Result<Moved, ApiError> {
    // Before megabytes are read for nothing.
    state.adapters.check(&target, expect).map_err(ApiError::from_service)?;
    let mut parts = Multipart::from_request(request, state)
        .await
        .map_err(|rejection| ApiError::BodyBroken { detail: rejection.body_text() })?;
    let mut folder = state.adapters.new_folder().map_err(ApiError::from_service)?;
    let patience = state.limits().body_time_max;
    let mut files = Vec::new();
    while let Some(part) = wait(patience, parts.next_field()).await? {
        // Clients that name no part by its file name it in the file's name.
        let given = part.name().or(part.file_name()).unwrap_or_default().to_owned();
        let file = [part.name(), part.file_name()]
            .into_iter()
            .flatten()
            .find_map(|name| state.adapters.file_bytes_max(name));
        let Some((file, bytes_max)) = file else {
            return Err(ApiError::invalid(
                given,
                format!("an upload has two parts, {CONFIG_FILE} and {TENSOR_FILE}"),
            ));
        };
        if files.contains(&file) {
            return Err(ApiError::invalid(file, "it came twice"));
        }
        files.push(file);
        folder = read(part, folder, file, bytes_max, patience).await?;
    }
    if let Some(missing) = [CONFIG_FILE, TENSOR_FILE].into_iter().find(|file| !files.contains(file))
    {
        return Err(ApiError::Missing { param: missing.to_owned() });
    }
    let registered = state.adapters.register_upload(target, folder, expect).await;
    registered.map_err(ApiError::from_service)
}

/// Reads one file. The folder travels to the thread that writes and back.
async fn read(
    mut part: Field<'_>,
    mut folder: SpoolFolder,
    name: &'static str,
    bytes_max: u64,
    patience: Duration,
) -> Result<SpoolFolder, ApiError> {
    let mut file = folder.create(name, bytes_max).map_err(ApiError::from_service)?;
    while let Some(chunk) = wait(patience, part.chunk()).await? {
        let write = move || {
            let written = folder.write(&mut file, &chunk);
            written.map(|()| (folder, file))
        };
        let written = tokio::task::spawn_blocking(write).await;
        (folder, file) = written.unwrap_or(Err(ServiceError::Panicked)).map_err(|error| {
            if let ServiceError::UploadTooLarge { bytes_max, .. } = error {
                let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
                return ApiError::BodyTooLarge { bytes_max };
            }
            ApiError::from_service(error)
        })?;
    }
    Ok(folder)
}
