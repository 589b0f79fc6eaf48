//! `GET /metrics` and `GET /v1/latency`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};

use pleach_adapters::{Tier, registry::is_hidden};

use super::{error::ApiError, state::AppState, wire::latency::LatencyReport};
use crate::{telemetry::AdapterFacts, tenants::Caller};

/// Prometheus' text format.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All series.
///
/// # Errors
/// [`ApiError::Internal`] when a series cannot be written.
pub async fn metrics(State(state): State<Arc<AppState>>) -> Result<Response, ApiError> {
    let adapters: Vec<_> = state
        .adapters
        .registry()
        .list_all()
        .into_iter()
        .filter(|alias| !is_hidden(&alias.name))
        .map(|alias| AdapterFacts {
            resident: state.adapters.tier(alias.generation.digest) == Tier::Device,
            generation: alias.generation.digest.to_string(),
            waiting: state.telemetry.is_waiting(&alias.label),
            alias: alias.label.to_string(),
        })
        .collect();
    let text = state
        .telemetry
        .render(&state.engine.stats(), &adapters, &state.adapters.tier_facts())
        .map_err(|error| ApiError::Internal { detail: error.to_string() })?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

/// Percentiles by adapter and window: everything for the operator, for a tenant those of its own adapters.
pub async fn latency(State(state): State<Arc<AppState>>, caller: Caller) -> Json<LatencyReport> {
    Json(state.telemetry.report(&caller.namespace()))
}
