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
use pleach_store::Scope;

use super::{
    error::{ApiError, ErrorCode},
    json_body::JsonBody,
    state::AppState,
    wire::{
        error::{VllmErrorBody, VllmErrorEnvelope},
        fields::Fields,
    },
};
use crate::{
    adapter_service::{ServiceError, Target},
    tenants::Caller,
};

/// A refusal in vLLM's words.
#[derive(Debug)]
pub struct VllmError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    /// Our code, for the count of errors.
    code: &'static str,
}

/// What is to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadRequest {
    /// The name; not empty.
    pub name: String,
    /// The folder; not empty.
    pub path: String,
    /// What the name must be for that.
    pub expect: Expect,
}

impl LoadRequest {
    /// Reads and checks the fields.
    ///
    /// # Errors
    /// The first field that is missing, of wrong type or not supported.
    pub fn read(fields: &Fields) -> Result<Self, VllmError> {
        let (name, path) = (required(fields, "lora_name")?, required(fields, "lora_path")?);
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
        Ok(Self { name: name.to_owned(), path: path.to_owned(), expect })
    }
}

/// What is to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnloadRequest {
    /// The name; not empty.
    pub name: String,
    /// What it must be for that.
    pub expect: Expect,
}

impl UnloadRequest {
    /// Reads and checks the fields.
    ///
    /// # Errors
    /// The first field that is missing or of wrong type.
    pub fn read(fields: &Fields) -> Result<Self, VllmError> {
        let name = required(fields, "lora_name")?;
        if name.is_empty() {
            return Err(invalid("'lora_name' needs to be provided to unload a LoRA adapter."));
        }
        Ok(Self { name: name.to_owned(), expect: fields.expected_generation()? })
    }
}

/// Makes an adapter from a folder of the server.
///
/// # Errors
/// [`VllmError`]; nothing changed then.
pub async fn load(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    body: Result<JsonBody, ApiError>,
) -> Result<String, VllmError> {
    caller.require(Scope::Train)?;
    let LoadRequest { name, path, expect } = LoadRequest::read(&body?.fields)?;
    let target = own_name(&caller, &name);
    let registered = state.adapters.register_path(target, &path, expect).await;
    registered.map_err(|error| VllmError::from_load(error, &name))?;
    Ok(format!("Success: LoRA adapter '{name}' added successfully."))
}

/// Removes an adapter's name.
///
/// # Errors
/// [`VllmError`]; nothing changed then.
pub async fn unload(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    body: Result<JsonBody, ApiError>,
) -> Result<String, VllmError> {
    caller.require(Scope::Train)?;
    let UnloadRequest { name, expect } = UnloadRequest::read(&body?.fields)?;
    let removed = state.adapters.remove(own_name(&caller, &name), expect).await;
    removed.map_err(|error| {
        if matches!(error, ServiceError::Registry(RegistryError::UnknownAlias { .. })) {
            return VllmError::new(
                StatusCode::NOT_FOUND,
                "NotFoundError",
                format!("The lora adapter '{name}' cannot be found."),
                "adapter_not_found",
            );
        }
        ApiError::from_service(error).into()
    })?;
    Ok(format!("Success: LoRA adapter '{name}' removed successfully."))
}

/// What these endpoints change is the caller's own.
fn own_name(caller: &Caller, name: &str) -> Target {
    let owner = caller.owner.clone();
    Target { who: owner.to_string(), owner, name: name.to_owned() }
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
            | ServiceError::Store(_)
            | ServiceError::StoredFile(_)
            | ServiceError::Remote { .. }
            | ServiceError::ConfiguredChanged { .. }
            | ServiceError::NotKept
            | ServiceError::OtherBase { .. }
            | ServiceError::Composition(_)
            | ServiceError::BaseAsPart { .. }
            | ServiceError::PartTwice { .. }
            | ServiceError::NotComposable { .. }
            | ServiceError::Residency { .. }
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
            StatusCode::FORBIDDEN => "PermissionDeniedError",
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
