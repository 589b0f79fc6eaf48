//! `multipart/form-data`, part by part.

use std::time::Duration;

use axum::extract::{
    FromRequest, Multipart, Request,
    multipart::{Field, MultipartError},
};
use pleach_store::{StagedBlob, Store};
use tokio::time::timeout;

use super::{error::ApiError, state::AppState};

/// Longest text among the parts.
const TEXT_BYTES_MAX: usize = 4096;

/// A form that is being read.
#[derive(Debug)]
pub(super) struct Form {
    parts: Multipart,
    /// How long the next bytes may take.
    patience: Duration,
}

impl Form {
    pub(super) async fn begin(state: &AppState, request: Request) -> Result<Self, ApiError> {
        let parts = Multipart::from_request(request, state)
            .await
            .map_err(|rejection| ApiError::BodyBroken { detail: rejection.body_text() })?;
        Ok(Self { parts, patience: state.limits().body_time_max })
    }

    /// The next part; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Part<'_>>, ApiError> {
        let field = wait(self.patience, self.parts.next_field()).await?;
        Ok(field.map(|field| Part { field, patience: self.patience }))
    }
}

/// A part.
#[derive(Debug)]
pub(super) struct Part<'f> {
    field: Field<'f>,
    patience: Duration,
}

impl Part<'_> {
    pub(super) fn name(&self) -> &str {
        self.field.name().unwrap_or_default()
    }

    pub(super) fn file_name(&self) -> Option<&str> {
        self.field.file_name()
    }

    /// All of it, which is short.
    pub(super) async fn text(mut self) -> Result<String, ApiError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = wait(self.patience, self.field.chunk()).await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > TEXT_BYTES_MAX {
                return Err(ApiError::invalid(
                    self.name(),
                    format!("longer than {TEXT_BYTES_MAX} bytes"),
                ));
            }
        }
        String::from_utf8(bytes)
            .map_err(|error| ApiError::InvalidUtf8 { offset: error.utf8_error().valid_up_to() })
    }

    /// Writes it as a blob of at most `bytes_max` bytes.
    pub(super) async fn into_blob(
        mut self,
        store: &Store,
        bytes_max: u64,
    ) -> Result<StagedBlob, ApiError> {
        let mut blob = store.blob_writer(bytes_max).map_err(ApiError::from_stored)?;
        while let Some(chunk) = wait(self.patience, self.field.chunk()).await? {
            blob.write(chunk).await.map_err(ApiError::from_stored)?;
        }
        blob.finish().await.map_err(ApiError::from_stored)
    }
}

/// What a client sends next, unless it takes too long.
pub(super) async fn wait<T>(
    patience: Duration,
    next: impl Future<Output = Result<T, MultipartError>>,
) -> Result<T, ApiError> {
    match timeout(patience, next).await {
        Err(_) => Err(ApiError::BodyTimeout { seconds: patience.as_secs() }),
        Ok(next) => next.map_err(|error| ApiError::BodyBroken { detail: error.body_text() }),
    }
}
