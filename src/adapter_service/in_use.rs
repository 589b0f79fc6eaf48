//! What a request holds of an adapter: first its name's meaning, then its place on the device.

use std::{slice, sync::Arc};

use pleach_adapters::{Alias, Generation, GenerationDigest, ResidencyError, ResidentLease};
use pleach_engine::engine::AdapterLease;

use super::{
    ServiceError, Tiers,
    compose::{Composed, PinnedSum},
    generation_source::is_gone,
};
use crate::telemetry::names::ADAPTER_COMPOSED;

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
}

impl Held {
    fn digest(&self) -> GenerationDigest {
        match self {
            Self::Generation(generation) => generation.digest,
            Self::Sum(composed) => composed.digest,
        }
    }

    fn is_retired(&self) -> bool {
        match self {
            Self::Generation(generation) => generation.is_retired(),
            Self::Sum(composed) => composed.is_retired(),
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

    /// What a sequence carries.
    pub fn engine_lease(&self) -> &AdapterLease {
        self.lease.device_lease()
    }
}
