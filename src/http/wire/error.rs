//! The error envelope.

use serde::Serialize;

/// `{"error": {…}}`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ErrorEnvelope {
    /// The error.
    pub error: ErrorBody,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ErrorBody {
    /// For people.
    pub message: String,
    /// `invalid_request_error`, `rate_limit_error` or `server_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field at fault.
    pub param: Option<String>,
    /// For programs.
    pub code: &'static str,
}

/// vLLM's envelope, for the endpoints that are vLLM's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VllmErrorEnvelope {
    /// The error.
    pub error: VllmErrorBody,
}

/// What went wrong, in vLLM's shape.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VllmErrorBody {
    /// For people, and for programs that compare it.
    pub message: String,
    /// Such as `NotFoundError`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field at fault.
    pub param: Option<String>,
    /// The status of the response.
    pub code: u16,
}
