//! Who calls, and how much they may.

use std::num::NonZeroU32;

use sqlx::{Any, any::AnyArguments, any::AnyRow, query::Query};

use crate::{
    checks::check_name,
    clock::now_ms,
    error::StoreError,
    owner::{Owner, TenantId},
    page::{Listing, Page},
    row::{Fields, stored},
    store::Store,
};

/// Limits of one tenant; `None` is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Requests accepted in a minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens of prompts and completions in a minute.
    pub tokens_per_minute: Option<u64>,
    /// Requests in progress.
    pub concurrent_requests: Option<u64>,
    /// Aliases. Kept by [`Store::register`] and [`Store::move_alias`].
    pub adapters: Option<u64>,
    /// Bytes of the files of all generations. Kept by [`Store::register`].
    pub adapter_bytes: Option<u64>,
    /// Training jobs that wait or run.
    pub training_jobs: Option<u64>,
    /// Requests that wait.
    pub queued_requests: Option<u64>,
    /// Bytes of files and of unfinished uploads. Kept by [`Store::create_file`] and [`Store::add_part`].
    pub file_bytes: Option<u64>,
}

/// Days that completions are kept unless a tenant says otherwise.
pub const KEEP_DAYS: u32 = 30;

/// What can be changed about a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantSettings {
    /// For people; no two tenants have the same.
    pub name: String,
    /// Share of the machine among those that wait, relative to the others'.
    pub weight: NonZeroU32,
    /// Higher is served first.
    pub priority: i32,
    /// Limits.
    pub quotas: Quotas,
    /// Whether completions are kept that did not ask for it.
    pub capture: bool,
    /// Days that completions are kept, and feedback on them.
    pub keep_days: u32,
}

impl TenantSettings {
    /// Weight 1, priority 0, no limits, nothing kept unasked, [`KEEP_DAYS`].
    pub fn named(name: impl Into<String>) -> Self {
        let quotas = Quotas::default();
        Self {
            name: name.into(),
            weight: NonZeroU32::MIN,
            priority: 0,
            quotas,
            capture: false,
            keep_days: KEEP_DAYS,
        }
    }
}

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// What can be changed.
    pub settings: TenantSettings,
    /// When it was made, Unix ms.
    pub created_ms: i64,
    /// Since when none of its keys is accepted, Unix ms.
    pub disabled_ms: Option<i64>,
}

const TENANT: &str = "SELECT * FROM tenants WHERE id = $1";
const TENANT_NAMED: &str = "SELECT * FROM tenants WHERE name = $1 AND id <> 'shared'";
const TENANTS: &str = "SELECT * FROM tenants WHERE id > $1 AND id <> 'shared' ORDER BY id LIMIT $2";
const NEW_TENANT: &str = "INSERT INTO tenants (name, weight, priority, requests_per_minute, \
     tokens_per_minute, concurrent_requests, adapters, adapter_bytes, training_jobs, \
     queued_requests, file_bytes, capture, keep_days, id, created_ms) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)";
const CHANGE_TENANT: &str = "UPDATE tenants SET name = $1, weight = $2, priority = $3, \
     requests_per_minute = $4, tokens_per_minute = $5, concurrent_requests = $6, adapters = $7, \
     adapter_bytes = $8, training_jobs = $9, queued_requests = $10, file_bytes = $11, \
     capture = $12, keep_days = $13 WHERE id = $14";

impl Store {
    /// Makes a tenant.
    ///
    /// # Errors
    /// When the name is taken or cannot be one.
    pub async fn create_tenant(&self, settings: TenantSettings) -> Result<Tenant, StoreError> {
        check_name("name of a tenant", &settings.name)?;
        let (id, created_ms) = (TenantId::random()?, now_ms());
        bind_settings(sqlx::query(NEW_TENANT), &settings)
            .bind(id.as_str())
            .bind(created_ms)
            .execute(self.database.writers())
            .await
            .map_err(|source| name_taken("make a tenant", &settings.name, source))?;
        Ok(Tenant { id, settings, created_ms, disabled_ms: None })
    }

    /// Replaces all settings of a tenant.
    ///
    /// # Errors
    /// When there is no such tenant, or the name is taken or cannot be one.
    pub async fn change_tenant(
        &self,
        id: &TenantId,
        settings: &TenantSettings,
    ) -> Result<(), StoreError> {
        check_name("name of a tenant", &settings.name)?;
        let changed = bind_settings(sqlx::query(CHANGE_TENANT), settings)
            .bind(id.as_str())
            .execute(self.database.writers())
            .await
            .map_err(|source| name_taken("change a tenant", &settings.name, source))?;
        must_exist(id, changed.rows_affected())
    }

    /// Disables a tenant, so that none of its keys is accepted, or enables it again. Its data stays.
    ///
    /// # Errors
    /// When there is no such tenant.
    pub async fn set_tenant_enabled(&self, id: &TenantId, enabled: bool) -> Result<(), StoreError> {
        // Who is disabled already stays so since then.
        let changed = sqlx::query(
            "UPDATE tenants SET disabled_ms = CASE WHEN $2 = 1 THEN NULL \
             ELSE COALESCE(disabled_ms, $3) END WHERE id = $1",
        )
        .bind(id.as_str())
        .bind(i64::from(enabled))
        .bind(now_ms())
        .execute(self.database.writers())
        .await
        .map_err(|source| StoreError::database(format!("change tenant {id}"), source))?;
        must_exist(id, changed.rows_affected())
    }

    /// One tenant.
    ///
    /// # Errors
    /// When there is no such tenant.
    pub async fn tenant(&self, id: &TenantId) -> Result<Tenant, StoreError> {
        let row = sqlx::query(TENANT)
            .bind(id.as_str())
            .fetch_optional(self.database.readers())
            .await
            .map_err(|source| StoreError::database(format!("read tenant {id}"), source))?;
        row.as_ref().map_or_else(|| Err(unknown(id)), tenant_in)
    }

    /// The tenant of that name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn find_tenant(&self, name: &str) -> Result<Option<Tenant>, StoreError> {
        let row = sqlx::query(TENANT_NAMED)
            .bind(name)
            .fetch_optional(self.database.readers())
            .await
            .map_err(|source| StoreError::database(format!("find tenant {name:?}"), source))?;
        row.as_ref().map(tenant_in).transpose()
    }

    /// Tenants, ordered by id.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn tenants(&self, page: &Page<'_>) -> Result<Listing<Tenant>, StoreError> {
        let rows = sqlx::query(TENANTS)
            .bind(page.after())
            .bind(page.limit())
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| StoreError::database("list tenants", source))?;
        let tenants = rows.iter().map(tenant_in).collect::<Result<_, _>>()?;
        Ok(Listing::new(tenants, page, |tenant| tenant.id.to_string()))
    }
}

/// Reads a row of `tenants`.
fn tenant_in(row: &AnyRow) -> Result<Tenant, StoreError> {
    let fields = Fields { row, table: "tenants" };
    let id = fields.text("id")?;
    let weight: u32 = fields.number("weight")?;
    Ok(Tenant {
        id: TenantId::parse(&id).ok_or_else(|| fields.corrupt("id", "it is no id"))?,
        settings: TenantSettings {
            name: fields.text("name")?,
            weight: NonZeroU32::new(weight).ok_or_else(|| fields.corrupt("weight", "it is 0"))?,
            priority: fields.number("priority")?,
            quotas: Quotas {
                requests_per_minute: fields.maybe_number("requests_per_minute")?,
                tokens_per_minute: fields.maybe_number("tokens_per_minute")?,
                concurrent_requests: fields.maybe_number("concurrent_requests")?,
                adapters: fields.maybe_number("adapters")?,
                adapter_bytes: fields.maybe_number("adapter_bytes")?,
                training_jobs: fields.maybe_number("training_jobs")?,
                queued_requests: fields.maybe_number("queued_requests")?,
                file_bytes: fields.maybe_number("file_bytes")?,
            },
            capture: fields.int("capture")? != 0,
            keep_days: fields.number("keep_days")?,
        },
        created_ms: fields.int("created_ms")?,
        disabled_ms: fields.maybe_int("disabled_ms")?,
    })
}

/// Binds $1 to $13.
fn bind_settings<'q>(
    query: Query<'q, Any, AnyArguments>,
    settings: &TenantSettings,
) -> Query<'q, Any, AnyArguments> {
    let quotas = &settings.quotas;
    query
        .bind(settings.name.clone())
        .bind(i64::from(settings.weight.get()))
        .bind(i64::from(settings.priority))
        .bind(quotas.requests_per_minute.map(stored))
        .bind(quotas.tokens_per_minute.map(stored))
        .bind(quotas.concurrent_requests.map(stored))
        .bind(quotas.adapters.map(stored))
        .bind(quotas.adapter_bytes.map(stored))
        .bind(quotas.training_jobs.map(stored))
        .bind(quotas.queued_requests.map(stored))
        .bind(quotas.file_bytes.map(stored))
        .bind(i64::from(settings.capture))
        .bind(i64::from(settings.keep_days))
}

fn name_taken(action: &str, name: &str, source: sqlx::Error) -> StoreError {
    let is_taken =
        source.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation);
    if is_taken {
        return StoreError::TenantNameTaken { name: name.to_owned() };
    }
    StoreError::database(format!("{action} named {name:?}"), source)
}

fn must_exist(id: &TenantId, rows_affected: u64) -> Result<(), StoreError> {
    if rows_affected == 0 { Err(unknown(id)) } else { Ok(()) }
}

fn unknown(id: &TenantId) -> StoreError {
    StoreError::UnknownTenant { owner: Owner::Tenant(id.clone()) }
}
