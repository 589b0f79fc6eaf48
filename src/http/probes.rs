//! `/health`, `/ping` and `/version`: for orchestrators, without a key.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{error::ApiError, state::AppState};

/// 200 while requests are taken, 503 while the server stops.
pub async fn health(State(state): State<Arc<AppState>>) -> Response {
    if state.is_serving() {
        Json(json!({"status": "ok"})).into_response()
    } else {
        ApiError::ShuttingDown.into_response()
    }
}

/// The version, where vLLM puts its own.
pub async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}
