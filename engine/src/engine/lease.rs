//! Who keeps an adapter resident.

use std::{fmt, sync::Arc};

use crate::{packed_adapter::ResidentAdapters, step_batch::AdapterSlot};

/// Keeps an adapter resident. Clones share it; the last one to go frees the slot.
///
/// Every sequence holds a lease of its adapter, and the owner thread drops a sequence between two steps, or before its
/// first: so no step under way or to come names a slot that is freed.
#[derive(Clone, Debug)]
pub struct AdapterLease {
    inner: Arc<LeaseInner>,
}

struct LeaseInner {
    slot: AdapterSlot,
    /// Where the slot goes back to.
    adapters: Option<Arc<dyn ResidentAdapters>>,
}

impl fmt::Debug for LeaseInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.slot.fmt(f)
    }
}

impl AdapterLease {
    pub(super) fn new(slot: AdapterSlot, adapters: Arc<dyn ResidentAdapters>) -> Self {
        Self { inner: Arc::new(LeaseInner { slot, adapters: Some(adapters) }) }
    }

    /// A lease of a slot that lives as long as its runner; dropping it frees nothing. For a [`crate::scheduler::Scheduler`]
    /// driven without an engine.
    pub fn permanent(slot: AdapterSlot) -> Self {
        Self { inner: Arc::new(LeaseInner { slot, adapters: None }) }
    }

    /// The slot, valid while this lease lives.
    pub fn slot(&self) -> AdapterSlot {
        self.inner.slot
    }
}

impl Drop for LeaseInner {
    fn drop(&mut self) {
        if let Some(adapters) = &self.adapters {
            adapters.remove(self.slot);
        }
    }
}
