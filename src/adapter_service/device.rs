//! The engine, as the memory tiers see it.

use std::sync::Arc;

use pleach_adapters::{AdapterDevice, InstallError};
use pleach_engine::{
    backend::RunError,
    engine::{AdapterLease, EngineHandle},
    packed_adapter::PackedAdapter,
};

/// Installs packed adapters between two steps.
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
        let of_engine = self.0.adapter_packer();
        let staged = if of_engine.stages() {
            let staged = tokio::task::spawn_blocking(move || of_engine.stage(&packed)).await;
            staged
                .unwrap_or_else(|error| Err(RunError::Device(error.to_string())))
                .map_err(|error| InstallError::Failed(error.into()))?
        } else {
            (*packed).clone()
        };
        self.0.install_adapter(staged).await.map_err(|error| {
            if matches!(error, RunError::OutOfMemory { .. }) {
                InstallError::OutOfMemory
            } else {
                InstallError::Failed(error.into())
            }
        })
    }
}
