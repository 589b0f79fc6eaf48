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
