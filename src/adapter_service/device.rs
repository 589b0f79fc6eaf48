//! The engine, as the memory tiers see it.

use std::sync::Arc;

use pleach_adapters::{AdapterDevice, InstallError};
use pleach_engine::{
    backend::RunError,
    engine::{AdapterLease, EngineHandle},
    packed_adapter::PackedAdapter,
};

/// Installs packed adapters beside the steps.
#[derive(Debug)]
pub(super) struct EngineDevice(EngineHandle);

impl EngineDevice {
    pub(super) fn new(engine: EngineHandle) -> Self {
        Self(engine)
    }
}

impl AdapterDevice for EngineDevice {
    type Packed = PackedAdapter;
    type Lease = AdapterLease;

    fn capacity_bytes(&self) -> usize {
        self.0.adapter_packer().capacity_bytes()
    }

    fn packed_bytes(&self, packed: &PackedAdapter) -> usize {
        packed.n_bytes()
    }

    async fn install(&self, packed: Arc<PackedAdapter>) -> Result<AdapterLease, InstallError> {
        // On the processor what was packed is only taken in; elsewhere it is copied.
        let installed = if self.0.adapter_packer().shares_cores_with_steps() {
            self.0.install_adapter(&packed)
        } else {
            let engine = self.0.clone();
            let copied = tokio::task::spawn_blocking(move || engine.install_adapter(&packed));
            copied.await.unwrap_or_else(|error| Err(RunError::Device(error.to_string())))
        };
        installed.map_err(|error| {
            if matches!(error, RunError::OutOfMemory { .. }) {
                InstallError::OutOfMemory
            } else {
                InstallError::Failed(error.into())
            }
        })
    }
}
