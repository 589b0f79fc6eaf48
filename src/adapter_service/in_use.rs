//! What a request holds of an adapter: first its name's meaning, then its place on the device.

use std::{slice, sync::Arc};

use pleach_adapters::{Alias, Generation, GenerationDigest, ResidencyError, ResidentLease};
use pleach_engine::{engine::AdapterLease, packed_adapter::PackedAdapter};

use super::{
    ServiceError, Tiers,
    compose::{Composed, PinnedSum},
    generation_source::is_gone,
};
use crate::{http::ids::random_u64, telemetry::names::ADAPTER_COMPOSED};

/// How often weights without files are given to the tiers again that drop them.
const OFFERS_MAX: usize = 16;

/// A name that no other weights have.
fn unnamed() -> [u8; 32] {
    let mut name = [0; 32];
    name.as_chunks_mut::<8>().0.fill_with(|| random_u64().to_le_bytes());
    name
}

/// What a request runs on, as it found it: wherever an alias moves, the request ends on this.
#[derive(Clone, Debug)]
pub enum PinnedAdapter {
    /// The alias, with the generation that was resolved.
    One(Alias),
    /// The sum of several.
    Sum(PinnedSum),
}

impl PinnedAdapter {
    /// Names what its rows are computed with.
    pub fn digest(&self) -> GenerationDigest {
        match self {
            Self::One(alias) => alias.generation.digest,
            Self::Sum(sum) => sum.digest(),
        }
    }

    /// What is measured is told apart by this.
    pub fn label(&self) -> &str {
        match self {
            Self::One(alias) => &alias.label,
            Self::Sum(_) => ADAPTER_COMPOSED,
        }
    }

    /// Everybody whose adapter is used.
    pub(super) fn aliases(&self) -> impl Iterator<Item = &Alias> {
        let (one, sum) = match self {
            Self::One(alias) => (slice::from_ref(alias), None),
            Self::Sum(sum) => (&[][..], Some(sum)),
        };
        one.iter().chain(sum.into_iter().flat_map(PinnedSum::aliases))
    }

    pub(super) fn held(&self) -> Held {
        match self {
            Self::One(alias) => Held::Generation(Arc::clone(&alias.generation)),
            Self::Sum(sum) => Held::Sum(Arc::clone(&sum.composed)),
        }
    }

    /// What is told when it cannot be had.
    pub(super) fn refusal(&self, error: ResidencyError) -> ServiceError {
        match self {
            Self::One(alias) => ServiceError::Residency { alias: alias.name.to_string(), error },
            Self::Sum(sum) => sum.refusal(error),
        }
    }
}

/// What must not end before the request.
#[derive(Clone, Debug)]
pub(super) enum Held {
    Generation(Arc<Generation>),
    Sum(Arc<Composed>),
    /// Weights without a name or files: gone with who holds them.
    Unnamed(GenerationDigest),
}

impl Held {
    fn digest(&self) -> GenerationDigest {
        match self {
            Self::Generation(generation) => generation.digest,
            Self::Sum(composed) => composed.digest,
            Self::Unnamed(digest) => *digest,
        }
    }

    fn is_retired(&self) -> bool {
        match self {
            Self::Generation(generation) => generation.is_retired(),
            Self::Sum(composed) => composed.is_retired(),
            Self::Unnamed(_) => true,
        }
    }
}

/// An adapter on the device, for as long as this lives: until the request's sequences have ended.
#[derive(Debug)]
pub struct AdapterInUse {
    /// Before `wish`, so that it is given back when the generation's end is looked at.
    lease: ResidentLease<AdapterLease>,
    _wish: Wish,
}

/// A request that wants a generation or has it. The last one of a generation that no name leads to any more takes it out of
/// memory, also when it never got it.
#[derive(Debug)]
struct Wish {
    residency: Tiers,
    held: Held,
}

impl Drop for Wish {
    fn drop(&mut self) {
        if self.held.is_retired() {
            self.residency.forget(self.held.digest());
        }
    }
}

impl AdapterInUse {
    pub(super) async fn lease(residency: &Tiers, held: Held) -> Result<Self, ResidencyError> {
        let digest = held.digest();
        let wish = Wish { residency: residency.clone(), held };
        let mut lease = residency.lease(digest).await;
        if lease.as_ref().is_err_and(is_gone) {
            residency.forget(digest);
            lease = residency.lease(digest).await;
        }
        Ok(Self { lease: lease?, _wish: wish })
    }

    /// Of weights that are nowhere but in `packed`.
    pub(super) async fn lease_packed(
        residency: &Tiers,
        packed: Arc<PackedAdapter>,
    ) -> Result<Self, ResidencyError> {
        let digest = GenerationDigest(unnamed());
        let wish = Wish { residency: residency.clone(), held: Held::Unnamed(digest) };
        let mut left = OFFERS_MAX;
        loop {
            residency.offer(digest, Arc::clone(&packed));
            match residency.lease(digest).await {
                // Others have pushed it out of host memory before its turn came.
                Err(error) if is_gone(&error) && left > 0 => residency.forget(digest),
                leased => return Ok(Self { lease: leased?, _wish: wish }),
            }
            left -= 1;
        }
    }

    /// What a sequence carries.
    pub fn engine_lease(&self) -> &AdapterLease {
        self.lease.device_lease()
    }

    /// Names what it is: a generation, a sum, or nothing that anybody else has.
    pub fn digest(&self) -> GenerationDigest {
        self.lease.digest()
    }
}
