//! Changing tenants and keys in this process: what is changed is so for the next request.

use std::num::NonZeroU32;

use pleach_store::{
    ApiKey, ApiKeyText, NewApiKey, Store, StoreError, Tenant, TenantId, TenantSettings,
};

use super::{Quota, Tenants};

/// Highest priority: the classes of the engine's queue.
pub const PRIORITY_MAX: u8 = u8::MAX;
/// Longest time that completions are kept: ten years.
pub const KEEP_DAYS_MAX: u32 = 3660;

/// What is to be changed about a tenant; `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantChange {
    /// Another name.
    pub name: Option<String>,
    /// Share among the tenants of the same priority.
    pub weight: Option<NonZeroU32>,
    /// Class; higher ones come first.
    pub priority: Option<u8>,
    /// New limits; `None` is no limit.
    pub quotas: Vec<(Quota, Option<u64>)>,
    /// Whether completions are kept that did not ask for it.
    pub capture: Option<bool>,
    /// Days that completions are kept.
    pub keep_days: Option<u32>,
}

impl TenantChange {
    /// Changes settings.
    pub fn apply(&self, settings: &mut TenantSettings) {
        if let Some(name) = &self.name {
            settings.name.clone_from(name);
        }
        settings.weight = self.weight.unwrap_or(settings.weight);
        settings.priority = self.priority.map_or(settings.priority, i32::from);
        settings.capture = self.capture.unwrap_or(settings.capture);
        settings.keep_days = self.keep_days.unwrap_or(settings.keep_days);
        for &(quota, limit) in &self.quotas {
            quota.set_in(&mut settings.quotas, limit);
        }
    }

    /// The settings of a new tenant; it has the default of what is not given.
    pub fn into_settings(self) -> TenantSettings {
        let mut settings = TenantSettings::named(self.name.clone().unwrap_or_default());
        self.apply(&mut settings);
        settings
    }

    /// Changes a tenant of a store.
    ///
    /// # Errors
    /// When there is no such tenant, or the name is taken or cannot be one.
    pub async fn write(&self, store: &Store, id: &TenantId) -> Result<Tenant, StoreError> {
        let mut tenant = store.tenant(id).await?;
        self.apply(&mut tenant.settings);
        store.change_tenant(id, &tenant.settings).await?;
        Ok(tenant)
    }
}

impl Tenants {
    /// The store, for what only reads.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Makes a tenant.
    ///
    /// # Errors
    /// When the name is taken or cannot be one.
    pub async fn create(&self, settings: TenantSettings) -> Result<Tenant, StoreError> {
        self.store.create_tenant(settings).await
    }

    /// Changes a tenant: limits, weight and priority hold for the next request, and for what waits.
    ///
    /// # Errors
    /// When there is no such tenant, or the name is taken or cannot be one.
    pub async fn change(&self, id: &TenantId, change: &TenantChange) -> Result<Tenant, StoreError> {
        let _one_at_a_time = self.changes.lock().await;
        let tenant = change.write(&self.store, id).await?;
        self.take_over_known(&tenant);
        Ok(tenant)
    }

    /// Disables a tenant, so that its keys are refused from the next request on, or enables it again.
    ///
    /// # Errors
    /// When there is no such tenant.
    pub async fn set_enabled(&self, id: &TenantId, enabled: bool) -> Result<Tenant, StoreError> {
        self.store.set_tenant_enabled(id, enabled).await?;
        self.keys.clear();
        self.store.tenant(id).await
    }

    /// Makes a key. Its text cannot be had again.
    ///
    /// # Errors
    /// When there is no such tenant, or the name cannot be one.
    pub async fn create_key(&self, key: NewApiKey) -> Result<(ApiKey, ApiKeyText), StoreError> {
        let made = self.store.create_key(key).await?;
        self.keys_exist.found();
        Ok(made)
    }

    /// Revokes a key: it is refused from the next request on.
    ///
    /// # Errors
    /// When the tenant has no such key.
    pub async fn revoke_key(&self, tenant: &TenantId, id: &str) -> Result<(), StoreError> {
        self.store.revoke_key(tenant, id).await?;
        self.keys.clear();
        Ok(())
    }
}
