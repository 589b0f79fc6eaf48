//! The tenants of this process: which there are, what they may, and how the engine shares itself among them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use pleach_engine::engine::EngineHandle;
use pleach_store::{Store, StoreError, Tenant, TenantId};
use tokio::time::{Instant, sleep};

use super::{
    Caller, FlowSetting, FlowSettings, LiveTenant, OperatorKey, QueueShare,
    authentication::KeysExist, key_cache::KeyCache, live_tenant::flow_setting,
};
use crate::telemetry::{Telemetry, TenantSeries};

/// How often the settings of tenants with requests in progress are read again: another process may have changed them.
/// Those of others are read when their keys are checked.
const REFRESH_EVERY: Duration = Duration::from_secs(2);
/// How often the times at which keys were used are written.
const FLUSH_EVERY: Duration = Duration::from_secs(30);

/// See the module. What the store says of a tenant is read with its keys, so about once a second while it sends anything.
#[derive(Debug)]
pub struct Tenants {
    pub(super) store: Store,
    operator_key: RwLock<Option<OperatorKey>>,
    pub(super) keys: KeyCache,
    pub(super) keys_exist: KeysExist,
    /// One change of a tenant at a time: each reads settings and writes them back.
    pub(super) changes: tokio::sync::Mutex<()>,
    telemetry: Arc<Telemetry>,
    flows: Arc<FlowSettings>,
    queue: Arc<QueueShare>,
    n_batch_max: usize,
    // A std mutex: held for a look-up, never over an await.
    live: Mutex<HashMap<TenantId, Arc<LiveTenant>>>,
}

impl Tenants {
    /// The tenants of a store, on an engine whose queue has `flows` for its fair order.
    pub fn new(
        store: Store,
        operator_key: Option<OperatorKey>,
        engine: &EngineHandle,
        flows: Arc<FlowSettings>,
        telemetry: Arc<Telemetry>,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            operator_key: RwLock::new(operator_key),
            keys: KeyCache::default(),
            keys_exist: KeysExist::default(),
            changes: tokio::sync::Mutex::default(),
            telemetry,
            flows,
            queue: QueueShare::of(engine),
            n_batch_max: engine.limits().max_batch,
            live: Mutex::default(),
        })
    }

    /// The operator's key, as it is now.
    pub(super) fn operator_key(&self) -> Option<OperatorKey> {
        self.operator_key.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the operator's key for requests that come from now on.
    pub fn set_operator_key(&self, key: Option<OperatorKey>) {
        *self.operator_key.write().unwrap_or_else(PoisonError::into_inner) = key;
    }

    /// The server's queue and everybody's part of it.
    pub fn queue(&self) -> &Arc<QueueShare> {
        &self.queue
    }

    /// What is measured of a caller.
    pub fn series_of(&self, caller: &Caller) -> Arc<TenantSeries> {
        caller.tenant().map_or_else(|| self.telemetry.tenant(None), |tenant| tenant.series())
    }

    /// Keeps settings and the last uses of keys up to date, for as long as anybody else holds the tenants.
    pub fn maintain(self: &Arc<Self>) {
        let tenants = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut flushed = Instant::now();
            loop {
                sleep(REFRESH_EVERY).await;
                let Some(tenants) = tenants.upgrade() else { return };
                if let Err(error) = tenants.refresh().await {
                    tracing::warn!(%error, "settings of tenants cannot be read");
                }
                if flushed.elapsed() >= FLUSH_EVERY {
                    flushed = Instant::now();
                    if let Err(error) = tenants.store.flush_key_uses().await {
                        tracing::warn!(%error, "last uses of keys cannot be written");
                    }
                }
            }
        });
    }

    /// Reads the settings of tenants with requests in progress.
    ///
    /// # Errors
    /// When the store cannot be read; the next call reads the rest.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let busy: Vec<_> = {
            let live = self.live();
            let busy = live.values().filter(|tenant| tenant.limiter().is_busy());
            busy.map(|tenant| tenant.id.clone()).collect()
        };
        for id in busy {
            let tenant = self.store.tenant(&id).await?;
            self.take_over(tenant);
        }
        Ok(())
    }

    /// The tenant as this process knows it, with what the store just said.
    pub(super) fn take_over(&self, tenant: Tenant) -> Arc<LiveTenant> {
        let series_of = |name: &str| self.telemetry.tenant(Some(name));
        let (id, setting) = (tenant.id.clone(), flow_setting(&tenant.settings));
        let mut live = self.live();
        let known = if let Some(known) = live.get(&id) {
            known.set(tenant.settings, series_of);
            Arc::clone(known)
        } else {
            let series = series_of(&tenant.settings.name);
            let known = Arc::new(LiveTenant::new(tenant, series, self.n_batch_max));
            live.insert(id, Arc::clone(&known));
            known
        };
        // Under the lock, so that of two answers of the store the same one wins everywhere.
        if self.flows.get(known.flow) != setting {
            if setting == FlowSetting::default() {
                self.flows.remove(known.flow);
            } else {
                self.flows.set(known.flow, setting);
            }
        }
        known
    }

    /// [`Self::take_over`], for one that this process knows already.
    pub(super) fn take_over_known(&self, tenant: &Tenant) {
        let is_known = self.live().contains_key(&tenant.id);
        if is_known {
            self.take_over(tenant.clone());
        }
    }

    fn live(&self) -> MutexGuard<'_, HashMap<TenantId, Arc<LiveTenant>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
