//! Who keeps an adapter resident.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::WeakSender;

use super::owner::Command;
use crate::step_batch::AdapterSlot;

/// Slots that nobody leases any more and the owner thread has yet to free. At most one entry per resident adapter.
///
/// Beside the command channel, because a lease may be dropped anywhere, on the owner thread too, and so must neither
/// wait for room in a channel nor lose the message. The lock is held for a push or a take only.
#[derive(Debug, Default)]
pub(super) struct ReturnedSlots(Mutex<Vec<AdapterSlot>>);

impl ReturnedSlots {
    pub(super) fn take(&self) -> Vec<AdapterSlot> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn push(&self, slot: AdapterSlot) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
    }
}

/// Keeps an adapter resident. Clones share it; when the last one goes, the engine frees the slot after the step that
/// may still use it.
#[derive(Clone, Debug)]
pub struct AdapterLease {
    inner: Arc<LeaseInner>,
}

#[derive(Debug)]
struct LeaseInner {
    slot: AdapterSlot,
    owner: Option<Owner>,
}

/// Where the slot goes back to. Weak: a lease alone does not keep an engine alive.
#[derive(Debug)]
struct Owner {
    returned: Arc<ReturnedSlots>,
    commands: WeakSender<Command>,
}

impl AdapterLease {
    pub(super) fn new(
        slot: AdapterSlot,
        returned: Arc<ReturnedSlots>,
        commands: WeakSender<Command>,
    ) -> Self {
        Self { inner: Arc::new(LeaseInner { slot, owner: Some(Owner { returned, commands }) }) }
    }

    /// A lease of a slot that lives as long as its runner; dropping it frees nothing. For a [`crate::scheduler::Scheduler`]
    /// driven without an engine.
    pub fn permanent(slot: AdapterSlot) -> Self {
        Self { inner: Arc::new(LeaseInner { slot, owner: None }) }
    }

    /// The slot, valid while this lease lives.
    pub fn slot(&self) -> AdapterSlot {
        self.inner.slot
    }
}

impl Drop for LeaseInner {
    fn drop(&mut self) {
        let Some(owner) = &self.owner else { return };
        owner.returned.push(self.slot);
        if let Some(commands) = owner.commands.upgrade() {
            // A full channel is as good as a wake-up: its reader is awake.
            let _ = commands.try_send(Command::Wake);
        }
    }
}
