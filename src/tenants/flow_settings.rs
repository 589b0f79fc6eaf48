//! How flows share an engine; changeable while it runs.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use pleach_engine::sequence::FlowId;

/// What one flow gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowSetting {
    /// Share among the flows of the same priority: one of weight 2 gets twice what one of weight 1 gets, when both have
    /// always something waiting.
    pub weight: NonZeroU32,
    /// Class; the higher comes first. Lower ones get what it leaves, and a little more
    /// ([`PASSED_OVER_MAX`](super::PASSED_OVER_MAX)). Tenants have 0 to 255.
    pub priority: i16,
}

/// The flow of what nobody waits for: it comes after everybody's.
pub const BACKGROUND: FlowId = FlowId(u64::MAX);
/// Its class.
const BACKGROUND_PRIORITY: i16 = -1;

impl Default for FlowSetting {
    fn default() -> Self {
        Self { weight: NonZeroU32::MIN, priority: 0 }
    }
}

pub(super) type SettingsMap = HashMap<FlowId, FlowSetting>;

impl FlowSetting {
    /// What `flow` gets by these settings.
    pub(super) fn of(flow: FlowId, settings: &SettingsMap) -> Self {
        if flow == BACKGROUND {
            return Self { priority: BACKGROUND_PRIORITY, ..Self::default() };
        }
        settings.get(&flow).copied().unwrap_or_default()
    }
}

/// Settings of all flows that have other ones than the default, shared by those who change them and the engine's owner
/// thread, which keeps its own reference to the newest map and so reads without a lock.
#[derive(Debug, Default)]
pub struct FlowSettings {
    /// Grows with every change, while `current` is locked.
    version: AtomicU64,
    /// Copied before it is changed if a reader has it.
    current: Mutex<Arc<SettingsMap>>,
}

impl FlowSettings {
    /// Settings of these flows; all others have the default.
    pub fn new(settings: HashMap<FlowId, FlowSetting>) -> Self {
        Self { version: AtomicU64::new(1), current: Mutex::new(Arc::new(settings)) }
    }

    /// Replaces the settings of all flows; those not in the map get the default.
    pub fn replace(&self, settings: HashMap<FlowId, FlowSetting>) {
        self.change(|current| *current = Arc::new(settings));
    }

    /// Changes one flow. Costs a copy of the map.
    pub fn set(&self, flow: FlowId, setting: FlowSetting) {
        self.change(|current| {
            Arc::make_mut(current).insert(flow, setting);
        });
    }

    /// Gives one flow the default again. Costs a copy of the map.
    pub fn remove(&self, flow: FlowId) {
        self.change(|current| {
            Arc::make_mut(current).remove(&flow);
        });
    }

    /// Settings of one flow.
    pub fn get(&self, flow: FlowId) -> FlowSetting {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        FlowSetting::of(flow, &current)
    }

    /// The newest map and its version, if `version` is not the newest. `None` too while somebody changes it: then the next
    /// call finds it. Never blocks.
    pub(super) fn newer_than(&self, version: u64) -> Option<(u64, Arc<SettingsMap>)> {
        if self.version.load(Ordering::Acquire) == version {
            return None;
        }
        let current = self.current.try_lock().ok()?;
        Some((self.version.load(Ordering::Acquire), Arc::clone(&current)))
    }

    fn change(&self, change: impl FnOnce(&mut Arc<SettingsMap>)) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut current);
        self.version.fetch_add(1, Ordering::Release);
    }
}
