//! `/v1/admin/tenants`: who calls, how much they may, and whether they may at all. Every change is a line in the log.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{Path, Query, State, rejection::PathRejection},
    http::StatusCode,
};
use pleach_store::{Listing, PAGE_ROWS_MAX, Page, StoreError, Tenant, TenantId};

use super::{
    error::ApiError,
    json_body::JsonBody,
    state::AppState,
    tenant_refusal::TenantRefusal,
    wire::tenants::{CardList, TenantCard, read_change},
};
use crate::tenants::Caller;

/// Where lines about changes go, so that they can be kept apart.
pub(super) const AUDIT: &str = "pleach::audit";
/// Rows of a page unless told otherwise.
const PAGE_ROWS: u32 = 100;

/// What follows the question mark, by name.
pub(super) type QueryFields = Query<BTreeMap<String, String>>;

/// One page of all tenants, by id.
///
/// # Errors
/// A page that cannot be asked for; [`ApiError::StoreUnavailable`].
pub async fn list(
    State(state): State<Arc<AppState>>,
    query: QueryFields,
) -> Result<Json<CardList<TenantCard>>, ApiError> {
    let tenants = state.tenants.store().tenants(&read_page(&query)?).await;
    Ok(Json(cards(tenants.map_err(|error| ApiError::from_tenants(&error))?)))
}

/// Makes a tenant.
///
/// # Errors
/// A field that cannot be used, or a name that is taken.
pub async fn create(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    body: JsonBody,
) -> Result<(StatusCode, Json<TenantCard>), ApiError> {
    body.fields.require("name")?;
    let change = read_change(&body.fields)?;
    let made = state.tenants.create(change.into_settings()).await;
    let tenant = made.map_err(|error| ApiError::from_tenants(&error))?;
    let settings = &tenant.settings;
    tracing::info!(target: AUDIT, %caller, tenant = %tenant.id, ?settings, "made a tenant");
    Ok((StatusCode::CREATED, Json(tenant.into())))
}

/// One tenant.
///
/// # Errors
/// When there is none of that id.
pub async fn get(
    State(state): State<Arc<AppState>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<TenantCard>, ApiError> {
    let tenant = state.tenants.store().tenant(&read_id(id)?).await;
    answer(tenant)
}

/// Changes what the body names.
///
/// # Errors
/// A field that cannot be used, no such tenant, or a name that is taken.
pub async fn change(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
    body: JsonBody,
) -> Result<Json<TenantCard>, ApiError> {
    let id = read_id(id)?;
    let change = read_change(&body.fields)?;
    let changed = state.tenants.change(&id, &change).await;
    if changed.is_ok() {
        tracing::info!(target: AUDIT, %caller, tenant = %id, ?change, "changed a tenant");
    }
    answer(changed)
}

/// Disables a tenant: none of its keys is accepted until it is enabled again. All it has stays.
///
/// # Errors
/// When there is none of that id.
pub async fn disable(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<TenantCard>, ApiError> {
    let id = read_id(id)?;
    let disabled = state.tenants.set_enabled(&id, false).await;
    if disabled.is_ok() {
        tracing::info!(target: AUDIT, %caller, tenant = %id, "disabled a tenant");
    }
    answer(disabled)
}

/// Enables a tenant again.
///
/// # Errors
/// When there is none of that id.
pub async fn enable(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<TenantCard>, ApiError> {
    let id = read_id(id)?;
    let enabled = state.tenants.set_enabled(&id, true).await;
    if enabled.is_ok() {
        tracing::info!(target: AUDIT, %caller, tenant = %id, "enabled a tenant");
    }
    answer(enabled)
}

fn answer(tenant: Result<Tenant, StoreError>) -> Result<Json<TenantCard>, ApiError> {
    tenant.map(|tenant| Json(tenant.into())).map_err(|error| ApiError::from_tenants(&error))
}

/// `after` and `limit`.
pub(super) fn read_page(query: &QueryFields) -> Result<Page<'_>, ApiError> {
    let rows_max = query.get("limit").map(|text| {
        let rows = text.parse().ok().filter(|rows| (1..=PAGE_ROWS_MAX).contains(rows));
        rows.ok_or_else(|| ApiError::OutOfRange {
            param: "limit".to_owned(),
            bounds: format!("from 1 to {PAGE_ROWS_MAX}"),
            found: text.clone(),
        })
    });
    let after = query.get("after").map(String::as_str);
    Ok(Page { after, rows_max: rows_max.transpose()?.unwrap_or(PAGE_ROWS) })
}

pub(super) fn cards<T, C: From<T>>(listing: Listing<T>) -> CardList<C> {
    CardList {
        object: "list",
        data: listing.items.into_iter().map(C::from).collect(),
        has_more: listing.next.is_some(),
        next: listing.next,
    }
}

/// A text that is no id is the id of no tenant.
pub(super) fn read_id(id: Result<Path<String>, PathRejection>) -> Result<TenantId, ApiError> {
    let Path(id) = id.map_err(|rejection| ApiError::invalid("id", rejection.body_text()))?;
    parse_id(&id)
}

pub(super) fn parse_id(id: &str) -> Result<TenantId, ApiError> {
    TenantId::parse(id).ok_or_else(|| ApiError::Tenant {
        refusal: TenantRefusal::UnknownTenant,
        message: format!("tenant {id} does not exist"),
    })
}
