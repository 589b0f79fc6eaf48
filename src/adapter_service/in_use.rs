//! What a request holds of an adapter: first its name's meaning, then its place on the device.

use std::sync::Arc;

use pleach_adapters::{Alias, Generation, ResidencyError, ResidentLease};
use pleach_engine::engine::AdapterLease;

use super::Tiers;

/// An adapter, as a request found it: wherever the alias moves, the request ends on this generation.
#[derive(Clone, Debug)]
pub struct PinnedAdapter {
    /// The alias, with the generation that was resolved.
    pub alias: Alias,
}

/// An adapter on the device, for as long as this lives: until the request's sequences have ended.
#[derive(Debug)]
pub struct AdapterInUse {
    /// Before `wish`, so that it is given back when the generation's end is looked at.
    lease: ResidentLease<AdapterLease>,
    _wish: Wish,
}

/// A request that wants a generation or has it. The last one of a retired generation takes it out of memory, also when
/// it never got it.
#[derive(Debug)]
struct Wish {
    residency: Tiers,
    generation: Arc<Generation>,
}

impl Drop for Wish {
    fn drop(&mut self) {
        if self.generation.is_retired() {
            self.residency.forget(self.generation.digest);
        }
    }
}

impl AdapterInUse {
    pub(super) async fn lease(
        residency: &Tiers,
        generation: &Arc<Generation>,
    ) -> Result<Self, ResidencyError> {
        let wish = Wish { residency: residency.clone(), generation: Arc::clone(generation) };
        let lease = residency.lease(generation.digest).await?;
        Ok(Self { lease, _wish: wish })
    }

    /// What a sequence carries.
    pub fn engine_lease(&self) -> &AdapterLease {
        self.lease.device_lease()
    }
}
