//! The seam to wherever generations are kept for good.

use std::error::Error;

use crate::digest::GenerationDigest;

/// Reads generations from disk or an object store.
pub trait AdapterSource: Send + Sync + 'static {
    /// What the device wants: [`super::AdapterDevice::Packed`].
    type Packed: Send + Sync + 'static;

    /// Reads, parses, checks and packs a generation. May block and compute: it runs on one of tokio's blocking threads,
    /// at most [`super::ResidencyConfig::max_loads`] at a time. A panic is an error of this load alone.
    ///
    /// # Errors
    /// Any reason; everyone who waits for this load gets it.
    fn load(&self, digest: &GenerationDigest)
    -> Result<Self::Packed, Box<dyn Error + Send + Sync>>;
}
