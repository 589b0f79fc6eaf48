//! Why there is no lease.

use std::{error::Error, sync::Arc, time::Duration};

use crate::digest::GenerationDigest;

/// What went wrong below, shared by everyone who waited for it.
pub type Reason = Arc<dyn Error + Send + Sync>;

/// A generation that cannot be had on the device.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ResidencyError {
    /// It is larger than what pinned generations leave of the device.
    #[error(
        "adapter generation {} needs {needed} bytes of device memory, {available} of {capacity} are not pinned",
        digest.short()
    )]
    NeverFits {
        /// Which.
        digest: GenerationDigest,
        /// Its bytes.
        needed: usize,
        /// Capacity less pinned bytes.
        available: usize,
        /// Bytes for all residents.
        capacity: usize,
    },
    /// As many generations are pinned as may be resident at all.
    #[error(
        "adapter generation {} has no place on the device: all {max_loras} are pinned",
        digest.short()
    )]
    AllPlacesPinned {
        /// Which.
        digest: GenerationDigest,
        /// [`super::ResidencyLimits::max_loras`].
        max_loras: usize,
    },
    /// Reading or checking it failed. For a short time it is not tried again.
    #[error("cannot load adapter generation {}: {reason}", digest.short())]
    LoadFailed {
        /// Which.
        digest: GenerationDigest,
        /// Why.
        reason: Reason,
    },
    /// The device refused it. For a short time it is not tried again.
    #[error("cannot install adapter generation {}: {reason}", digest.short())]
    DeviceFailed {
        /// Which.
        digest: GenerationDigest,
        /// Why.
        reason: Reason,
    },
    /// There should be room, but the device said otherwise for too long: evicted adapters are still held somewhere.
    #[error(
        "adapter generation {} found no {needed} bytes of device memory within {} ms",
        digest.short(),
        waited.as_millis()
    )]
    DeviceFull {
        /// Which.
        digest: GenerationDigest,
        /// Its bytes.
        needed: usize,
        /// Time since the device's first refusal.
        waited: Duration,
    },
    /// Too many wait already.
    #[error("{waiting} requests wait for adapters already")]
    QueueFull {
        /// How many.
        waiting: usize,
    },
    /// No leases any more.
    #[error("the server is shutting down")]
    ShuttingDown,
}
