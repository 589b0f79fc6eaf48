//! Adapters on their way to the device: packed on any thread, so that the step loop has only to copy them.

use std::{any::Any, fmt, sync::Arc};

use crate::{adapter_weights::AdapterWeights, backend::RunError, spec::ModelSpec};

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

    /// Whether [`Self::stage`] does anything.
    fn stages(&self) -> bool {
        false
    }

    /// Brings a packed adapter to where the device fetches it without the step loop's help. Waits for others that are on
    /// their way, and copies: for threads that may.
    ///
    /// # Errors
    /// [`RunError::Device`]: it was packed for another device, or that failed.
    fn stage(&self, packed: &PackedAdapter) -> Result<PackedAdapter, RunError> {
        Ok(packed.clone())
    }

    /// Bytes that all resident adapters together may take; no adapter that is larger can ever be installed.
    fn capacity_bytes(&self) -> usize;

    /// Whether steps run on the processor's cores, so that whoever loads adapters beside them slows them down. Packing
    /// then has points for [`crate::breaks`].
    fn shares_cores_with_steps(&self) -> bool {
        false
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_taken_by_its_own_device_only() {
        let packed = PackedAdapter::new(7_u32, 4);
        assert_eq!((*packed.form::<u32>().unwrap(), packed.n_bytes()), (7, 4));
        let error = packed.form::<u64>().unwrap_err().to_string();
        assert!(error.contains("packed for another device"), "{error}");
    }
}
