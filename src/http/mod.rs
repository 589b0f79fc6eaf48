//! The HTTP surface: an `OpenAI`-compatible API, probes and metrics.
//!
//! ```text
//! server (sockets) ──> request_context ──> auth ──> json_body ──> chat | completions
//!     ──> generate: submit to the engine ──> choice: tokens to text ──> sse or one JSON body
//! ```
//!
//! `wire/` holds every type that is JSON; `error` maps every refusal to its status.

pub mod adapter_download;
pub mod adapter_refusal;
pub mod adapter_upload;
pub mod adapters;
pub mod auth;
pub mod chat;
pub mod choice;
pub mod completions;
pub mod cpu_work;
pub mod error;
pub mod generate;
pub mod head;
pub mod ids;
pub mod json_body;
pub mod lora;
pub mod models;
pub mod observe;
pub mod probes;
pub mod request_context;
pub mod scores;
pub mod server;
pub mod sse;
pub mod state;
pub mod wire;

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    middleware::from_fn_with_state,
    routing::{get, post},
};

use error::ApiError;
use state::AppState;

/// Every route. Tests call it without a socket.
pub fn router(state: Arc<AppState>) -> Router {
    let guarded =
        v1_routes().route_layer(from_fn_with_state(Arc::clone(&state), auth::require_key));
    Router::new()
        .merge(guarded)
        .route("/health", get(probes::health))
        .route("/ping", get(probes::health))
        .route("/version", get(probes::version))
        .route("/metrics", get(observe::metrics))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(Arc::clone(&state), request_context::around))
        .with_state(state)
}

/// The routes for those who have a [`Caller`](crate::tenants::Caller): whoever guards them says who that is.
pub fn v1_routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/models", get(models::list))
        // Names may hold slashes.
        .route("/v1/models/{*id}", get(models::get))
        .route("/v1/latency", get(observe::latency))
        .route("/v1/load_lora_adapter", post(lora::load))
        .route("/v1/unload_lora_adapter", post(lora::unload))
        .route("/v1/adapters", get(adapters::list))
        .route(
            "/v1/adapters/{name}",
            get(adapters::get)
                .put(adapters::put)
                .delete(adapters::delete)
                // An upload has limits of its own, file by file.
                .layer(DefaultBodyLimit::disable()),
        )
        .route("/v1/adapters/{name}/rollback", post(adapters::roll_back))
        .route("/v1/adapters/{name}/download", get(adapter_download::get))
}

async fn not_found(request: Request) -> ApiError {
    ApiError::NotFound {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
    }
}

async fn method_not_allowed(request: Request) -> ApiError {
    ApiError::MethodNotAllowed {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
    }
}
