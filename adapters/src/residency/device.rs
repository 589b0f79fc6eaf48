//! The seam to the device: what the residency asks of whoever owns device memory.

use std::{error::Error, sync::Arc};

/// Takes packed adapters into device memory. The engine's handle is one; tests have their own.
pub trait AdapterDevice: Send + Sync + 'static {
    /// An adapter in the device's own layout, prepared on any thread.
    type Packed: Send + Sync + 'static;
    /// Keeps an installed adapter on the device: its memory comes back some time after the last clone is dropped.
    /// Cloning and dropping must be cheap and never wait.
    type Lease: Clone + Send + Sync + 'static;

    /// Bytes that all residents together may take. Read once, when the [`super::Residency`] is made.
    fn capacity_bytes(&self) -> usize;

    /// Bytes that this adapter takes on the device, rounded as the device rounds them; its host form counts the same.
    fn packed_bytes(&self, packed: &Self::Packed) -> usize;

    /// Copies it to the device. Runs as a task of its own and is never cancelled.
    ///
    /// # Errors
    /// [`InstallError`].
    fn install(
        &self,
        packed: Arc<Self::Packed>,
    ) -> impl Future<Output = Result<Self::Lease, InstallError>> + Send;
}

/// Why the device did not take an adapter.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Not now: memory of evicted adapters is not back yet, or what is free is in pieces. It is tried again.
    #[error("the device has no room at present")]
    OutOfMemory,
    /// Anything else; nobody tries this again by itself.
    #[error("{0}")]
    Failed(Box<dyn Error + Send + Sync>),
}
