//! Every refusal that a client can get, and the status, type and code that it has on the wire.
//!
//! Handlers return [`ApiError`]; nothing else decides a status.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use pleach_engine::engine::SubmitError;
use pleach_store::{Scope, Scopes};

use super::{
    adapter_refusal::AdapterRefusal,
    stored_refusal::StoredRefusal,
    tenant_refusal::TenantRefusal,
    wire::error::{ErrorBody, ErrorEnvelope},
};
use crate::tenants::Refusal;

/// What a client is told to wait when nobody knows how long, as when the queue is full. That moves by a step every few
/// milliseconds, so this is the shortest wait that the header can say.
const RETRY_AFTER_SECONDS: &str = "1";

/// Why a request was not answered with what it asked for.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// The body is no JSON.
    #[error("the body is not valid JSON: {detail}")]
    MalformedJson {
        /// The parser's words, with line and column.
        detail: String,
    },
    /// The body is JSON, but no object.
    #[error("the body must be a JSON object, not {found}")]
    NotAnObject {
        /// Kind of the value found.
        found: &'static str,
    },
    /// The body is not UTF-8.
    #[error("the body is not valid UTF-8: first bad byte at {offset}")]
    InvalidUtf8 {
        /// Valid bytes before it.
        offset: usize,
    },
    /// Another content type than JSON.
    #[error("the content type must be application/json, not {found:?}")]
    ContentType {
        /// The header, or an empty string.
        found: String,
    },
    /// Too many bytes.
    #[error("the body is larger than {bytes_max} bytes")]
    BodyTooLarge {
        /// Most bytes accepted.
        bytes_max: usize,
    },
    /// The body came too slowly.
    #[error("the body did not arrive within {seconds} s")]
    BodyTimeout {
        /// Time that it had.
        seconds: u64,
    },
    /// The connection broke inside the body.
    #[error("the body ended early: {detail}")]
    BodyBroken {
        /// The transport's words.
        detail: String,
    },
    /// A required field is not there.
    #[error("missing required parameter: '{param}'")]
    Missing {
        /// The field.
        param: String,
    },
    /// A field of the wrong JSON type.
    #[error("invalid type for '{param}': expected {expected}, but got {found} instead")]
    InvalidType {
        /// The field.
        param: String,
        /// What it takes.
        expected: &'static str,
        /// What it was.
        found: &'static str,
    },
    /// A number outside its range.
    #[error("invalid '{param}': expected a value {bounds}, but got {found} instead")]
    OutOfRange {
        /// The field.
        param: String,
        /// The range in words.
        bounds: String,
        /// The value.
        found: String,
    },
    /// A value of the right type that makes no sense.
    #[error("invalid '{param}': {reason}")]
    InvalidValue {
        /// The field.
        param: String,
        /// Why.
        reason: String,
    },
    /// A known field that this server does not implement.
    #[error("'{param}' is not supported by this server{hint}")]
    Unsupported {
        /// The field.
        param: String,
        /// Empty, or what to do instead, with a leading separator.
        hint: &'static str,
    },
    /// The prompt leaves no room for one token.
    #[error(
        "this model takes at most {tokens_max} prompt tokens, but '{param}' has {tokens}; please reduce its length"
    )]
    ContextLength {
        /// `messages` or `prompt`.
        param: &'static str,
        /// Tokens of the prompt.
        tokens: usize,
        /// Most tokens of a prompt.
        tokens_max: usize,
    },
    /// The chat template refused the messages, failed, or is not there.
    #[error("{detail}")]
    Template {
        /// The error of the template, a sentence of its own.
        detail: String,
    },
    /// No such base or adapter.
    #[error("the model '{name}' does not exist")]
    UnknownModel {
        /// The name asked for.
        name: String,
    },
    /// No key where one is needed.
    #[error("no API key was given: send it in an 'Authorization: Bearer KEY' header")]
    MissingKey,
    /// Another key.
    #[error("the API key is not valid")]
    WrongKey,
    /// A key that may not do this.
    #[error("this needs an API key with the scope {}", scope_names(*.needed))]
    InsufficientScope {
        /// Each of them is enough.
        needed: Scopes,
    },
    /// A limit of the tenant.
    #[error(transparent)]
    Limit(#[from] Refusal),
    /// Something about tenants, their keys or what they may own.
    #[error("{message}")]
    Tenant {
        /// What kind of refusal it is.
        refusal: TenantRefusal,
        /// The words of what refused.
        message: String,
    },
    /// What survives the process cannot be read or written just now.
    #[error("the server's database cannot be used at the moment")]
    StoreUnavailable,
    /// No such path.
    #[error("no such endpoint: {method} {path}")]
    NotFound {
        /// The method.
        method: String,
        /// The path.
        path: String,
    },
    /// A path that takes other methods.
    #[error("{path} does not take {method}")]
    MethodNotAllowed {
        /// The method.
        method: String,
        /// The path.
        path: String,
    },
    /// The engine's queue is full.
    #[error("the server is busy: {queued} sequences are waiting already")]
    QueueFull {
        /// Sequences waiting.
        queued: usize,
    },
    /// Too many large bodies wait to be read.
    #[error("the server is busy: requests of {held_bytes} bytes are being read already")]
    Busy {
        /// Bytes of their bodies.
        held_bytes: usize,
    },
    /// Something about an adapter that was asked for.
    #[error("{message}")]
    Adapter {
        /// What kind of refusal it is.
        refusal: AdapterRefusal,
        /// The words of what refused.
        message: String,
    },
    /// Something about a file, an upload, a kept completion, feedback or a job.
    #[error("{message}")]
    Stored {
        /// What kind of refusal it is.
        refusal: StoredRefusal,
        /// The words of what refused.
        message: String,
    },
    /// The server stops, or stopped while the request ran.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// A fault of the server.
    #[error("the server failed to run this request: {detail}")]
    Internal {
        /// What is fit to be told.
        detail: String,
    },
}

impl ApiError {
    /// A value that makes no sense.
    pub fn invalid(param: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::InvalidValue { param: param.into(), reason: reason.into() }
    }

    /// The status of the response.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::MalformedJson { .. }
            | Self::NotAnObject { .. }
            | Self::InvalidUtf8 { .. }
            | Self::BodyBroken { .. }
            | Self::Missing { .. }
            | Self::InvalidType { .. }
            | Self::OutOfRange { .. }
            | Self::InvalidValue { .. }
            | Self::Unsupported { .. }
            | Self::ContextLength { .. }
            | Self::Template { .. }
            | Self::Limit(Refusal::MoreThanTheLimit { .. }) => StatusCode::BAD_REQUEST,
            Self::MissingKey | Self::WrongKey => StatusCode::UNAUTHORIZED,
            Self::InsufficientScope { .. } => StatusCode::FORBIDDEN,
            Self::Tenant { refusal, .. } => refusal.status_and_code().0,
            Self::UnknownModel { .. } | Self::NotFound { .. } => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::ContentType { .. } => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Limit(_) | Self::QueueFull { .. } | Self::Busy { .. } => {
                StatusCode::TOO_MANY_REQUESTS
            }
            Self::Adapter { refusal, .. } => refusal.status_and_code().0,
            Self::Stored { refusal, .. } => refusal.status_and_code().0,
            Self::StoreUnavailable | Self::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The envelope's `code`: one of a closed set, so that it can be a metric label.
    pub fn code(&self) -> &'static str {
        match self {
            Self::MalformedJson { .. } | Self::NotAnObject { .. } => "invalid_json",
            Self::InvalidUtf8 { .. } => "invalid_utf8",
            Self::ContentType { .. } => "unsupported_media_type",
            Self::BodyTooLarge { .. } => "request_too_large",
            Self::BodyTimeout { .. } => "request_timeout",
            Self::BodyBroken { .. } => "incomplete_body",
            Self::Missing { .. } => "missing_required_parameter",
            Self::InvalidType { .. } => "invalid_type",
            Self::OutOfRange { .. } | Self::InvalidValue { .. } => "invalid_value",
            Self::Unsupported { .. } => "unsupported_parameter",
            Self::ContextLength { .. } => "context_length_exceeded",
            Self::Template { .. } => "template_error",
            Self::UnknownModel { .. } => "model_not_found",
            Self::MissingKey | Self::WrongKey => "invalid_api_key",
            Self::NotFound { .. } => "unknown_url",
            Self::MethodNotAllowed { .. } => "method_not_allowed",
            Self::InsufficientScope { .. } => "insufficient_scope",
            Self::Limit(Refusal::MoreThanTheLimit { .. }) => "request_exceeds_limit",
            Self::Limit(_) | Self::QueueFull { .. } | Self::Busy { .. } => "rate_limit_exceeded",
            Self::Tenant { refusal, .. } => refusal.status_and_code().1,
            Self::StoreUnavailable => "store_unavailable",
            Self::Adapter { refusal, .. } => refusal.status_and_code().1,
            Self::Stored { refusal, .. } => refusal.status_and_code().1,
            Self::ShuttingDown => "shutting_down",
            Self::Internal { .. } => "internal_error",
        }
    }

    /// The JSON that is sent, also as an event inside a stream.
    pub fn envelope(&self) -> ErrorEnvelope {
        ErrorEnvelope {
            error: ErrorBody {
                message: self.to_string(),
                kind: self.kind(),
                param: self.param().map(str::to_owned),
                code: self.code(),
            },
        }
    }

    fn kind(&self) -> &'static str {
        let status = self.status();
        if status == StatusCode::TOO_MANY_REQUESTS {
            "rate_limit_error"
        } else if status.is_server_error() {
            "server_error"
        } else {
            "invalid_request_error"
        }
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::Missing { param }
            | Self::InvalidType { param, .. }
            | Self::OutOfRange { param, .. }
            | Self::InvalidValue { param, .. }
            | Self::Unsupported { param, .. } => Some(param),
            Self::ContextLength { param, .. } => Some(param),
            Self::Template { .. } => Some("messages"),
            Self::UnknownModel { .. } => Some("model"),
            Self::Stored { refusal: StoredRefusal::File, .. } => Some("file"),
            Self::MalformedJson { .. }
            | Self::NotAnObject { .. }
            | Self::InvalidUtf8 { .. }
            | Self::ContentType { .. }
            | Self::BodyTooLarge { .. }
            | Self::BodyTimeout { .. }
            | Self::BodyBroken { .. }
            | Self::MissingKey
            | Self::WrongKey
            | Self::InsufficientScope { .. }
            | Self::Limit(_)
            | Self::Tenant { .. }
            | Self::StoreUnavailable
            | Self::NotFound { .. }
            | Self::MethodNotAllowed { .. }
            | Self::QueueFull { .. }
            | Self::Busy { .. }
            | Self::Adapter { .. }
            | Self::Stored { .. }
            | Self::ShuttingDown
            | Self::Internal { .. } => None,
        }
    }

    /// What a tenant's request was refused for, if that was its limits, its scopes, or want of room; one of a closed set,
    /// so that it can be a metric label.
    pub fn refused_for(&self) -> Option<&'static str> {
        if let Self::Limit(refusal) = self {
            return Some(refusal.reason());
        }
        if let Self::Tenant { refusal: TenantRefusal::Quota(quota), .. } = self {
            return Some(quota.name());
        }
        if matches!(self, Self::InsufficientScope { .. }) {
            return Some("scope");
        }
        (self.status() == StatusCode::TOO_MANY_REQUESTS).then_some("server_busy")
    }

    /// When a client is told to come again, in seconds.
    fn retry_after(&self) -> Option<HeaderValue> {
        if let Self::Limit(refusal) = self
            && let Some(time) = refusal.retry_after()
        {
            // Rounded up, so that it is not too early.
            let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
            return Some(HeaderValue::from(seconds.max(1)));
        }
        let may_pass = self.status() == StatusCode::TOO_MANY_REQUESTS
            || matches!(self, Self::ShuttingDown | Self::StoreUnavailable);
        may_pass.then(|| HeaderValue::from_static(RETRY_AFTER_SECONDS))
    }

    /// What the engine's refusal is to a client whose prompt came in `param`.
    pub fn from_submit(error: SubmitError, param: &'static str) -> Self {
        match error {
            SubmitError::QueueFull { queued } => Self::QueueFull { queued },
            SubmitError::TooLong { prompt, limit } => {
                Self::ContextLength { param, tokens: prompt, tokens_max: limit }
            }
            SubmitError::InvalidPrompt(reason) => Self::invalid(param, reason),
            SubmitError::ShuttingDown => Self::ShuttingDown,
        }
    }
}

/// Rides in the response's extensions, so that telemetry can count errors without reading bodies.
#[derive(Clone, Copy, Debug)]
pub struct ErrorCode(pub &'static str);

/// Rides beside it when [`ApiError::refused_for`] says something.
#[derive(Clone, Copy, Debug)]
pub struct RefusedFor(pub &'static str);

/// `'infer' or 'train'`.
fn scope_names(scopes: Scopes) -> String {
    let names = Scope::ALL.into_iter().filter(|&scope| scopes.contains(scope));
    names.map(|scope| format!("'{}'", scope.name())).collect::<Vec<_>>().join(" or ")
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if let Self::Internal { detail } = &self {
            tracing::error!(detail, "request failed");
        }
        let mut response = (self.status(), axum::Json(self.envelope())).into_response();
        response.extensions_mut().insert(ErrorCode(self.code()));
        if let Some(reason) = self.refused_for() {
            response.extensions_mut().insert(RefusedFor(reason));
        }
        let headers = response.headers_mut();
        if let Some(retry_after) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, retry_after);
        }
        if matches!(self, Self::MissingKey | Self::WrongKey) {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // The rest of an unread body would be taken for the next request.
        if matches!(
            self,
            Self::BodyTooLarge { .. } | Self::BodyTimeout { .. } | Self::BodyBroken { .. }
        ) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
