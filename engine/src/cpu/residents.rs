//! The adapters that are resident: bytes, slots, and what a step reads of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    backend::RunError,
    packed_adapter::{PackedAdapter, ResidentAdapters},
    step_batch::{AdapterSlot, StepBatch},
};

use super::resident::ResidentAdapter;

/// Most adapters resident at a time.
pub const ADAPTER_SLOTS_MAX: usize = 4096;

/// See the module. What was packed is what kernels read, so installing is only taking it in.
#[derive(Debug)]
pub(crate) struct CpuResidents {
    capacity_bytes: usize,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    /// By slot: the adapter and its bytes.
    slots: Vec<Option<(Arc<ResidentAdapter>, usize)>>,
    used_bytes: usize,
}

impl CpuResidents {
    pub(crate) fn new(capacity_bytes: usize) -> Self {
        Self { capacity_bytes, books: Mutex::default() }
    }

    pub(crate) fn capacity_bytes(&self) -> usize {
        self.capacity_bytes
    }

    /// The adapters of a step's sequences, by slot; empty where the step names none. `adapters` keeps its room.
    pub(crate) fn of_step(
        &self,
        batch: &StepBatch,
        adapters: &mut Vec<Option<Arc<ResidentAdapter>>>,
    ) {
        adapters.clear();
        let books = self.books();
        adapters.resize_with(books.slots.len(), || None);
        for slot in batch.sequences.iter().filter_map(|sequence| sequence.adapter) {
            let slot = slot.0 as usize;
            if let (Some(place), Some(Some((adapter, _)))) =
                (adapters.get_mut(slot), books.slots.get(slot))
            {
                place.get_or_insert_with(|| Arc::clone(adapter));
            }
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResidentAdapters for CpuResidents {
    fn install(&self, adapter: &PackedAdapter) -> Result<AdapterSlot, RunError> {
        let form = adapter.form::<ResidentAdapter>()?;
        let mut books = self.books();
        let (needed, free) = (adapter.n_bytes(), self.capacity_bytes - books.used_bytes);
        if needed > free {
            return Err(RunError::OutOfMemory { what: "an adapter", needed, free });
        }
        let slot = books.slots.iter().position(Option::is_none).unwrap_or(books.slots.len());
        if slot >= ADAPTER_SLOTS_MAX {
            return Err(RunError::OutOfMemory { what: "adapter slots", needed: 1, free: 0 });
        }
        if slot == books.slots.len() {
            books.slots.push(None);
        }
        books.slots[slot] = Some((form, needed));
        books.used_bytes += needed;
        Ok(AdapterSlot(u32::try_from(slot).unwrap_or(u32::MAX)))
    }

    fn remove(&self, slot: AdapterSlot) {
        let mut books = self.books();
        let removed = books.slots.get_mut(slot.0 as usize).and_then(Option::take);
        if let Some((_, n_bytes)) = &removed {
            books.used_bytes -= n_bytes;
        }
        // Megabytes are freed after the lock.
        drop(books);
        drop(removed);
    }
}
