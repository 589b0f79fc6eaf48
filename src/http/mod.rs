//! The HTTP surface: an `OpenAI`-compatible API, probes and metrics.
//!
//! ```text
//! server (sockets) ──> request_context ──> auth ──> rate_limits ──> json_body ──> chat | completions
//!     ──> generate: submit to the engine ──> choice: tokens to text ──> sse or one JSON body
//! ```
//!
//! `wire/` holds every type that is JSON; `error` maps every refusal to its status.

pub mod adapter_download;
pub mod adapter_refusal;
pub mod adapter_upload;
pub mod adapters;
pub mod admin_keys;
pub mod admin_tenants;
pub mod auth;
pub mod chat;
pub mod choice;
pub mod completions;
pub mod cpu_work;
pub mod error;
pub mod feedback;
pub mod files;
pub mod fine_tuning;
mod form;
pub mod generate;
pub mod graders;
pub mod head;
pub mod ids;
pub mod json_body;
pub mod lineage;
pub mod lora;
pub mod models;
pub mod observe;
mod paging;
pub mod policies;
pub mod probes;
pub mod rate_limits;
pub mod request_context;
pub mod rounds;
pub mod scores;
pub mod server;
pub mod sse;
pub mod state;
pub mod stored_completions;
pub mod stored_refusal;
pub mod tenant_refusal;
pub mod uploads;
pub mod wire;

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    middleware::{from_fn, from_fn_with_state},
    routing::{delete, get, patch, post, put},
};
use pleach_store::Scope;

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
        .merge(completions(&[Scope::Infer]))
        .merge(models(&[Scope::Infer]))
        .merge(adapters_seen(&[Scope::Infer, Scope::Train]))
        // Shared ones are the administrator's, which the handlers tell apart.
        .merge(adapters_changed(&[Scope::Train, Scope::Admin]))
        .merge(adapters_loaded(&[Scope::Train]))
        .merge(lineage(&[Scope::Train]))
        .merge(files(&[Scope::Train]))
        .merge(models_changed(&[Scope::Train]))
        .merge(fine_tuning(&[Scope::Train]))
        .merge(learning(&[Scope::Train]))
        .merge(stored_completions(&[Scope::Train]))
        .merge(feedback_given(&[Scope::Feedback]))
        .merge(feedback_read(&[Scope::Train]))
        .merge(administration(&[Scope::Admin]))
}

/// Routes of the API, for callers with one of some scopes.
type Routes = Router<Arc<AppState>>;
type AnyOf = &'static [Scope];

fn completions(scopes: AnyOf) -> Routes {
    Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route_layer(from_fn_with_state(scopes, auth::require_scope))
        .route_layer(from_fn(rate_limits::tell))
}

fn models(scopes: AnyOf) -> Routes {
    Router::new()
        .route("/v1/models", get(models::list))
        // Names may hold slashes.
        .route("/v1/models/{*id}", get(models::get))
        .route("/v1/latency", get(observe::latency))
        .route_layer(from_fn_with_state(scopes, auth::require_scope))
}

fn models_changed(scopes: AnyOf) -> Routes {
    Router::new()
        .route("/v1/models/{*id}", delete(models::delete))
        .route_layer(from_fn_with_state(scopes, auth::require_scope))
}

fn adapters_seen(scopes: AnyOf) -> Routes {
    Router::new()
        .route("/v1/adapters", get(adapters::list))
        .route("/v1/adapters/{name}", get(adapters::get))
        .route("/v1/adapters/{name}/download", get(adapter_download::get))
        .route_layer(from_fn_with_state(scopes, auth::require_scope))
}

fn adapters_changed(scopes: AnyOf) -> Routes {
    // An upload has limits of its own, file by file.
    let put = put(adapters::put).layer(DefaultBodyLimit::disable());
    Router::new()
        .route("/v1/adapters/{name}", put.delete(adapters::delete))
        .route("/v1/adapters/{name}/rollback", post(adapters::roll_back))
        .route_layer(from_fn_with_state(scopes, auth::require_scope))
}

fn adapters_loaded(scopes: AnyOf) -> Routes {
    Router::new()
        .route("/v1/load_lora_adapter", post(lora::load))
        .route("/v1/unload_lora_adapter", post(lora::unload))
        .route_layer(from_fn_with_state(scopes, auth::require_scope))
}

/// What adapters were made of.
fn lineage(scopes: AnyOf) -> Routes {
    let path = |what: &str| format!("/v1/adapters/{{name}}/generations/{{generation}}/{what}");
    Router::new()
        .route(&path("lineage"), get(lineage::get))
        .route(&path("card"), get(lineage::card))
        .route_layer(from_fn_with_state(scopes, auth::require_scope))
}

fn files(scopes: AnyOf) -> Routes {
    // Uploads have limits of their own, part by part.
    let unlimited = DefaultBodyLimit::disable;
    Router::new()
        .route("/v1/files", get(files::list).merge(post(files::create).layer(unlimited())))
        .route("/v1/files/{id}", get(files::get).delete(files::delete))
        .route("/v1/files/{id}/content", get(files::content))
        .route("/v1/uploads", post(uploads::create))
        .route("/v1/uploads/{id}/parts", post(uploads::add_part).layer(unlimited()))
        .route("/v1/uploads/{id}/complete", post(uploads::complete))
        .route("/v1/uploads/{id}/cancel", post(uploads::cancel))
        .route_layer(from_fn_with_state(scopes, auth::require_scope))
}

fn fine_tuning(scopes: AnyOf) -> Routes {
    Router::new()
        .route("/v1/fine_tuning/jobs", get(fine_tuning::list).post(fine_tuning::create))
        .route("/v1/fine_tuning/jobs/{id}", get(fine_tuning::get))
        .route("/v1/fine_tuning/jobs/{id}/cancel", post(fine_tuning::cancel))
        .route("/v1/fine_tuning/jobs/{id}/pause", post(fine_tuning::pause))
        .route("/v1/fine_tuning/jobs/{id}/resume", post(fine_tuning::resume))
        .route("/v1/fine_tuning/jobs/{id}/events", get(fine_tuning::events))
        .route("/v1/fine_tuning/jobs/{id}/checkpoints", get(fine_tuning::checkpoints))
        .route("/v1/fine_tuning/alpha/graders/validate", post(graders::validate))
        .route("/v1/fine_tuning/alpha/graders/run", post(graders::run))
        .route_layer(from_fn_with_state(scopes, auth::require_scope))
}

fn learning(scopes: AnyOf) -> Routes {
    let policy = get(policies::get).put(policies::put).delete(policies::delete);
    Router::new()
        .route("/v1/adapters/{name}/policy", policy)
        .route("/v1/adapters/{name}/rounds", get(rounds::list).post(rounds::create))
        .route("/v1/adapters/{name}/rounds/{id}", get(rounds::get))
        .route("/v1/adapters/{name}/rounds/{id}/approve", post(rounds::approve))
        .route("/v1/adapters/{name}/rounds/{id}/veto", post(rounds::veto))
        .route("/v1/adapters/{name}/rounds/{id}/cancel", post(rounds::cancel))
        .route_layer(from_fn_with_state(scopes, auth::require_scope))
}

/// They hold what all users of a tenant asked.
fn stored_completions(scopes: AnyOf) -> Routes {
    let one = get(stored_completions::get).post(stored_completions::update);
    Router::new()
        .route("/v1/chat/completions", get(stored_completions::list))
        .route("/v1/chat/completions/{id}", one.delete(stored_completions::delete))
        .route("/v1/chat/completions/{id}/messages", get(stored_completions::messages))
        .route_layer(from_fn_with_state(scopes, auth::require_scope))
}

fn feedback_given(scopes: AnyOf) -> Routes {
    let one = patch(feedback::change).delete(feedback::withdraw);
    Router::new()
        .route("/v1/feedback", post(feedback::create))
        .route("/v1/feedback/{id}", one)
        .route_layer(from_fn_with_state(scopes, auth::require_scope))
}

fn feedback_read(scopes: AnyOf) -> Routes {
    Router::new()
        .route("/v1/feedback", get(feedback::list))
        .route("/v1/feedback/{id}", get(feedback::get))
        .route("/v1/feedback/users/{user}", delete(feedback::erase_user))
        .route_layer(from_fn_with_state(scopes, auth::require_scope))
}

fn administration(scopes: AnyOf) -> Routes {
    Router::new()
        .route("/v1/admin/tenants", get(admin_tenants::list).post(admin_tenants::create))
        .route(
            "/v1/admin/tenants/{id}",
            get(admin_tenants::get).patch(admin_tenants::change).delete(admin_tenants::disable),
        )
        .route("/v1/admin/tenants/{id}/enable", post(admin_tenants::enable))
        .route("/v1/admin/tenants/{id}/keys", get(admin_keys::list).post(admin_keys::create))
        .route("/v1/admin/tenants/{id}/keys/{key_id}", delete(admin_keys::revoke))
        .route_layer(from_fn_with_state(scopes, auth::require_scope))
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
