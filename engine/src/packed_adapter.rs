//! Adapters on their way to the device: packed and made resident by any thread, beside the step loop.

use std::{
    any::Any,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    adapter_weights::AdapterWeights, backend::RunError, spec::ModelSpec, step_batch::AdapterSlot,
};

/// An adapter in the form that one device takes. Cheap to clone; host memory.
#[derive(Clone)]
pub struct PackedAdapter {
    form: Arc<dyn Any + Send + Sync>,
    n_bytes: usize,
}

impl fmt::Debug for PackedAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedAdapter({} bytes)", self.n_bytes)
    }
}

impl PackedAdapter {
    /// Wraps a device's own form, of so many bytes once it is resident.
    pub fn new<T: Any + Send + Sync>(form: T, n_bytes: usize) -> Self {
        Self { form: Arc::new(form), n_bytes }
    }

    /// Bytes that it takes on the device, and about as many here.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// The device's own form.
    ///
    /// # Errors
    /// [`RunError::Device`]: it was packed for another device.
    pub fn form<T: Any + Send + Sync>(&self) -> Result<Arc<T>, RunError> {
        Arc::clone(&self.form)
            .downcast()
            .map_err(|_| RunError::Device("the adapter was packed for another device".to_owned()))
    }
}

/// Packs adapters for one device and one model. Works on any thread, beside the step loop.
pub trait AdapterPacker: Send + Sync {
    /// Checks and packs.
    ///
    /// # Errors
    /// [`RunError::Adapter`] naming the entry that does not fit.
    fn pack(&self, weights: &AdapterWeights) -> Result<PackedAdapter, RunError>;

    /// Bytes that all resident adapters together may take; no adapter that is larger can ever be installed.
    fn capacity_bytes(&self) -> usize;

    /// Whether steps run on the processor's cores, so that whoever loads adapters beside them slows them down. Packing
    /// then has points for [`crate::breaks`].
    fn shares_cores_with_steps(&self) -> bool {
        false
    }
}

/// The adapters that are resident on one device. Shared by those who bring and remove adapters, and by the runner, whose
/// steps read them.
pub trait ResidentAdapters: Send + Sync {
    /// Makes an adapter resident. From when this returns, steps may name the slot. Where the device is not the processor it
    /// takes as long as copying does: for threads that may wait.
    ///
    /// # Errors
    /// [`RunError::OutOfMemory`] while others take too much room; [`RunError::Device`], also for an adapter that was packed
    /// for another device.
    fn install(&self, adapter: &PackedAdapter) -> Result<AdapterSlot, RunError>;

    /// Frees a slot, which no step under way or to come names. Never waits.
    fn remove(&self, slot: AdapterSlot);
}

/// Packs nothing: the form is the checked [`AdapterWeights`] themselves. For runners that need no other.
#[derive(Clone, Debug)]
pub struct PlainPacker {
    /// The model.
    pub spec: ModelSpec,
    /// See [`AdapterPacker::capacity_bytes`].
    pub capacity_bytes: usize,
}

impl AdapterPacker for PlainPacker {
    fn pack(&self, weights: &AdapterWeights) -> Result<PackedAdapter, RunError> {
        weights.check(&self.spec)?;
        Ok(PackedAdapter::new(weights.clone(), weights.n_values() * size_of::<f32>()))
    }

    fn capacity_bytes(&self) -> usize {
        self.capacity_bytes
    }
}

/// Counts slots and keeps what [`PlainPacker`] packed. For runners that need no other.
#[derive(Debug, Default)]
pub struct PlainResidents {
    slots: Mutex<Vec<Option<PackedAdapter>>>,
}

impl PlainResidents {
    /// The adapter in a slot.
    pub fn get(&self, slot: AdapterSlot) -> Option<PackedAdapter> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.get(slot.0 as usize).cloned().flatten()
    }
}

impl ResidentAdapters for PlainResidents {
    fn install(&self, adapter: &PackedAdapter) -> Result<AdapterSlot, RunError> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let index = slots.iter().position(Option::is_none).unwrap_or(slots.len());
        if index == slots.len() {
            slots.push(None);
        }
        slots[index] = Some(adapter.clone());
        Ok(AdapterSlot(u32::try_from(index).unwrap_or(u32::MAX)))
    }

    fn remove(&self, slot: AdapterSlot) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = slots.get_mut(slot.0 as usize) {
            *place = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_used_again() {
        let residents = PlainResidents::default();
        let install = |value: u32| residents.install(&PackedAdapter::new(value, 4)).unwrap();
        let (first, second) = (install(1), install(2));
        residents.remove(first);
        assert!(residents.get(first).is_none());
        assert_eq!(install(3), first);
        let found =
            [first, second].map(|slot| *residents.get(slot).unwrap().form::<u32>().unwrap());
        assert_eq!(found, [3, 2]);
    }

    #[test]
    fn a_form_is_taken_by_its_own_device_only() {
        let packed = PackedAdapter::new(7_u32, 4);
        assert_eq!((*packed.form::<u32>().unwrap(), packed.n_bytes()), (7, 4));
        let error = packed.form::<u64>().unwrap_err().to_string();
        assert!(error.contains("packed for another device"), "{error}");
    }
}
