//! Who uses a resident generation.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use crate::digest::GenerationDigest;

/// Whom to tell that a use has ended.
pub(super) trait TakesBack: Send + Sync {
    /// The last clone of a [`ResidentLease`] is gone. Called on any thread; never waits.
    fn take_back(self: Arc<Self>, digest: GenerationDigest);
}

/// Keeps a generation resident. Clones share it. While one lives the generation is in use and is not evicted.
///
/// Keep it as long as the sequence runs. A clone of the device's own lease that outlives it does no harm, but its memory
/// is then expected back sooner than it comes.
#[derive(Clone)]
pub struct ResidentLease<L> {
    inner: Arc<Use<L>>,
}

/// Fields are dropped in this order: the device's lease goes before anyone hears of it, so that the memory of a
/// generation that is evicted at once is on its way back already.
struct Use<L> {
    device_lease: L,
    ending: Ending,
}

struct Ending {
    digest: GenerationDigest,
    /// Weak: a lease alone keeps no residency alive.
    owner: Weak<dyn TakesBack>,
}

impl<L> ResidentLease<L> {
    pub(super) fn new(
        digest: GenerationDigest,
        device_lease: L,
        owner: Weak<dyn TakesBack>,
    ) -> Self {
        Self { inner: Arc::new(Use { device_lease, ending: Ending { digest, owner } }) }
    }

    /// What the engine wants with a sequence.
    pub fn device_lease(&self) -> &L {
        &self.inner.device_lease
    }

    /// Of which generation.
    pub fn digest(&self) -> GenerationDigest {
        self.inner.ending.digest
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.upgrade() {
            owner.take_back(self.digest);
        }
    }
}

// By hand: a derive would ask for `L: Debug`.
impl<L> fmt::Debug for ResidentLease<L> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ResidentLease")
            .field("digest", &self.digest())
            .finish_non_exhaustive()
    }
}
