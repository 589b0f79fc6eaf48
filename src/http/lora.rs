//! `POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`, as vLLM has them: bodies, statuses, texts and error types
//! are its own, because control planes compare them. `expected_generation` is ours.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use pleach_adapters::{Expect, RegistryError};

use super::{
    error::{ApiError, ErrorCode},
    json_body::JsonBody,
    state::AppState,
    wire::{
        error::{VllmErrorBody, VllmErrorEnvelope},
        fields::Fields,
    },
};
use crate::adapter_service::ServiceError;

/// A refusal in vLLM's words.
#[derive(Debug)]
pub struct VllmError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    /// Our code, for the count of errors.
    code: &'static str,
}

/// Makes an adapter from a folder of the server.
///
/// # Errors
/// [`VllmError`]; nothing changed then.
pub async fn load(
    State(state): State<Arc<AppState>>,
    body: Result<JsonBody, ApiError>,
) -> Result<String, VllmError> {
    let fields = body?.fields;
    let (name, path) = (required(&fields, "lora_name")?, required(&fields, "lora_path")?);
    if name.is_empty() || path.is_empty() {
        return Err(invalid("Both 'lora_name' and 'lora_path' must be provided."));
    }
    if fields.flag("is_3d_lora_weight")? {
        return Err(invalid("'is_3d_lora_weight' is not supported: only 2D weights are read."));
    }
    let in_place = fields.flag("load_inplace")?;
    // Who says what is to be replaced wants to replace.
    let mut expect = fields.expected_generation()?;
    if expect == Expect::Anything && !in_place {
        expect = Expect::Absent;
    }
    let registered = state.adapters.register_path(name, path, expect).await;
    registered.map_err(|error| VllmError::from_load(error, name))?;
    Ok(format!("Success: LoRA adapter '{name}' added successfully."))
}

/// Removes an adapter's name.
///
/// # Errors
/// [`VllmError`]; nothing changed then.
pub async fn unload(
    State(state): State<Arc<AppState>>,
    body: Result<JsonBody, ApiError>,
) -> Result<String, VllmError> {
    let fields = body?.fields;
    let name = required(&fields, "lora_name")?;
    if name.is_empty() {
        return Err(invalid("'lora_name' needs to be provided to unload a LoRA adapter."));
    }
    state.adapters.remove(name, fields.expected_generation()?).map_err(|error| {
        if matches!(error, RegistryError::UnknownAlias { .. }) {
            return VllmError::new(
                StatusCode::NOT_FOUND,
                "NotFoundError",
                format!("The lora adapter '{name}' cannot be found."),
                "adapter_not_found",
            );
        }
        ApiError::from_registry(&error).into()
    })?;
    Ok(format!("Success: LoRA adapter '{name}' removed successfully."))
}

fn required<'f>(fields: &'f Fields, param: &str) -> Result<&'f str, ApiError> {
    fields.string(param)?.ok_or_else(|| ApiError::Missing { param: param.to_owned() })
}

fn invalid(message: impl Into<String>) -> VllmError {
    VllmError::new(StatusCode::BAD_REQUEST, "InvalidUserInput", message.into(), "invalid_value")
}

impl VllmError {
    fn new(status: StatusCode, kind: &'static str, message: String, code: &'static str) -> Self {
        Self { status, kind, message, code }
    }

    fn from_load(error: ServiceError, name: &str) -> Self {
        let failed = |error: &ServiceError| format!("Loading lora {name} failed: {error}");
        match &error {
            ServiceError::Registry(RegistryError::AliasExists { .. }) => invalid(format!(
                "The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set \
                 'load_inplace' to True."
            )),
            ServiceError::Registry(RegistryError::AliasIsBase { .. }) => invalid(format!(
                "The lora adapter name '{name}' conflicts with a served base model."
            )),
            ServiceError::NoAdapter { path } => Self::new(
                StatusCode::NOT_FOUND,
                "NotFoundError",
                format!("Loading lora {name} failed: No adapter found for {path}"),
                "adapter_files_not_found",
            ),
            ServiceError::NoRoots | ServiceError::OutsideRoots { .. } => invalid(failed(&error)),
            ServiceError::Adapter(_)
            | ServiceError::RankTooLarge { .. }
            | ServiceError::NeverFits { .. }
            | ServiceError::Pack(_)
            | ServiceError::UploadTooLarge { .. } => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "InternalServerError",
                failed(&error),
                "invalid_adapter",
            ),
            ServiceError::Registry(_)
            | ServiceError::Spool(_)
            | ServiceError::SpoolFull { .. }
            | ServiceError::Busy { .. }
            | ServiceError::Panicked => ApiError::from_service(error).into(),
        }
    }
}

impl From<ApiError> for VllmError {
    fn from(error: ApiError) -> Self {
        let status = error.status();
        let kind = match status {
            StatusCode::BAD_REQUEST => "BadRequestError",
            StatusCode::NOT_FOUND => "NotFoundError",
            StatusCode::CONFLICT => "ConflictError",
            StatusCode::TOO_MANY_REQUESTS => "RateLimitError",
            status if status.is_server_error() => "InternalServerError",
            _ => "InvalidUserInput",
        };
        Self::new(status, kind, error.to_string(), error.code())
    }
}

impl IntoResponse for VllmError {
    fn into_response(self) -> Response {
        let error = VllmErrorBody {
            message: self.message,
            kind: self.kind,
            param: None,
            code: self.status.as_u16(),
        };
        let mut response = (self.status, Json(VllmErrorEnvelope { error })).into_response();
        response.extensions_mut().insert(ErrorCode(self.code));
        response
    }
}
