//! A tenant as this process knows it: its settings, what it has in progress, and the lines that it waits in.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use pleach_engine::sequence::FlowId;
use pleach_store::{Tenant, TenantId, TenantSettings};
use tokio::sync::Semaphore;

use super::{BACKGROUND, FlowSetting, Limiter, Rates};
use crate::telemetry::TenantSeries;

/// Requests of one tenant that wait for adapters which are not on the device. More wait behind these, so that in the line
/// for the device nobody finds more than so many of each other tenant before them.
pub const COLD_TURNS: usize = 4;

/// Kept as long as the process runs, for every tenant that has sent it anything: a bucket must not be filled anew by
/// being forgotten.
#[derive(Debug)]
pub struct LiveTenant {
    /// Its id.
    pub id: TenantId,
    /// Its line in the engine's queue.
    pub flow: FlowId,
    /// Turns for the cold.
    pub(super) cold_turns: Arc<Semaphore>,
    /// Turns for the engine's queue: who has one may hold an adapter on the device while it waits.
    pub(super) turns: Arc<Semaphore>,
    /// All turns.
    pub(super) n_turns: usize,
    // Std mutexes: held for a few additions, never over an await.
    limiter: Mutex<Limiter>,
    known: Mutex<Known>,
}

/// What the store said last.
#[derive(Clone, Debug)]
struct Known {
    settings: Arc<TenantSettings>,
    series: Arc<TenantSeries>,
}

impl LiveTenant {
    /// A tenant with nothing in progress, on an engine that runs `n_batch_max` sequences at a time.
    pub(super) fn new(tenant: Tenant, series: Arc<TenantSeries>, n_batch_max: usize) -> Self {
        let Tenant { id, settings, .. } = tenant;
        // Cold requests hold a turn too, and must not take those of all others.
        let n_turns = n_batch_max + COLD_TURNS;
        Self {
            flow: flow_of(&id),
            id,
            cold_turns: Arc::new(Semaphore::new(COLD_TURNS)),
            turns: Arc::new(Semaphore::new(n_turns)),
            n_turns,
            limiter: Mutex::new(Limiter::new(&settings.quotas, Instant::now())),
            known: Mutex::new(Known { settings: Arc::new(settings), series }),
        }
    }

    /// Its settings, as old as the last look at the store.
    pub fn settings(&self) -> Arc<TenantSettings> {
        Arc::clone(&self.known().settings)
    }

    /// What is measured of it.
    pub fn series(&self) -> Arc<TenantSeries> {
        Arc::clone(&self.known().series)
    }

    /// Its limits for a minute, and what is left of them.
    pub fn rates(&self, now: Instant) -> Rates {
        self.limiter().rates(now)
    }

    /// What it may still do.
    pub(super) fn limiter(&self) -> MutexGuard<'_, Limiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the store says. `series_of` names a series, for a tenant that was renamed.
    pub(super) fn set(
        &self,
        settings: TenantSettings,
        series_of: impl FnOnce(&str) -> Arc<TenantSeries>,
    ) {
        let mut known = self.known();
        if settings.quotas != known.settings.quotas {
            self.limiter().set_quotas(&settings.quotas, Instant::now());
        }
        if settings.name != known.settings.name {
            known.series = series_of(&settings.name);
        }
        known.settings = Arc::new(settings);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The random digits of its id: the same in every process, and 0, the operator's, or [`BACKGROUND`] by no chance worth a
/// thought.
fn flow_of(id: &TenantId) -> FlowId {
    let digits = id.as_str().rsplit('_').next().unwrap_or_default();
    FlowId(u64::from_str_radix(digits, 16).unwrap_or_default().clamp(1, BACKGROUND.0 - 1))
}

/// How a tenant shares the engine.
pub(super) fn flow_setting(settings: &TenantSettings) -> FlowSetting {
    let priority = u8::try_from(settings.priority.max(0)).unwrap_or(u8::MAX);
    FlowSetting { weight: settings.weight, priority: i16::from(priority) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tenant_has_a_flow_of_its_own() {
        let flow = |id: &str| flow_of(&TenantId::parse(id).unwrap()).0;
        assert_eq!(flow("ten_00000000000000ff"), 0xff);
        assert_eq!(flow("ten_ffffffffffffffff"), BACKGROUND.0 - 1);
        assert_ne!(flow("ten_0000000000000000"), FlowId::default().0);
    }

    #[test]
    fn priorities_beyond_the_classes_are_the_nearest_class() {
        let of = |priority| {
            flow_setting(&TenantSettings { priority, ..TenantSettings::named("t") }).priority
        };
        assert_eq!([of(-7), of(0), of(255), of(256), of(i32::MAX)], [0, 0, 255, 255, 255]);
    }
}
