//! Several adapters for one request, each times a scale.
//!
//! A sum of generations is a generation made on the fly: the tiers bring it to the device by its digest, its source finds in
//! a [`Compositions`] table what it is the sum of, and it leaves as any other. The request holds the parts' generations, so
//! that nothing changes for it when a name moves.

mod table;

use std::sync::Arc;

use pleach_adapters::{
    Alias, ComposedPart, Composition, CompositionError, GenerationDigest, Namespace, RegistryError,
    ResidencyError, RunsAs,
    compose::{COMPOSED_PARTS_MAX, SumError},
};

pub(super) use table::{Composed, ComposedGeneration, Compositions};

use super::{AdapterService, PinnedAdapter, ServiceError};

/// An adapter that a request wants as a part.
#[derive(Clone, Debug, PartialEq)]
pub struct WantedPart {
    /// Its name.
    pub name: String,
    /// What its own scale is multiplied by.
    pub scale: f32,
    /// The generation that the request insists on.
    pub generation: Option<GenerationDigest>,
}

/// A part as a request found it.
#[derive(Clone, Debug)]
pub struct PinnedPart {
    /// The alias, with the generation that was resolved.
    pub alias: Alias,
    /// What its own scale is multiplied by.
    pub scale: f32,
}

/// What a request's parts are together.
#[derive(Clone, Debug)]
pub struct ResolvedParts {
    /// Every part, in the order of the request.
    pub parts: Vec<PinnedPart>,
    /// What to run on: nothing but the base where all scales are 0, a part alone where it is that.
    pub adapter: Option<PinnedAdapter>,
}

/// A sum of several generations, as a request found it.
#[derive(Clone, Debug)]
pub struct PinnedSum {
    /// Those that count, in the order of the request.
    parts: Vec<PinnedPart>,
    pub(super) composed: Arc<Composed>,
}

impl PinnedSum {
    /// Names the sum; never the digest of anything else.
    pub fn digest(&self) -> GenerationDigest {
        self.composed.digest
    }

    /// The aliases of its parts.
    pub(super) fn aliases(&self) -> impl Iterator<Item = &Alias> {
        self.parts.iter().map(|part| &part.alias)
    }

    /// Names of the parts, for messages.
    pub(super) fn names(&self) -> String {
        let names: Vec<&str> = self.aliases().map(|alias| &*alias.name).collect();
        names.join("` + `")
    }

    /// What is told when it cannot be had. The tiers know parts by their digests alone, as others may have asked for the same.
    pub(super) fn refusal(&self, error: ResidencyError) -> ServiceError {
        let reason = match &error {
            ResidencyError::LoadFailed { reason, .. } => reason.downcast_ref::<SumError>(),
            ResidencyError::NeverFits { .. }
            | ResidencyError::AllPlacesPinned { .. }
            | ResidencyError::DeviceFailed { .. }
            | ResidencyError::DeviceFull { .. }
            | ResidencyError::QueueFull { .. }
            | ResidencyError::ShuttingDown => None,
        };
        let Some(reason) = reason.cloned() else {
            return ServiceError::Residency { alias: self.names(), error };
        };
        let part = match &reason {
            SumError::Kind { part, .. } => self.composed.parts.get(*part),
            SumError::Rank { .. } => None,
        };
        let alias = part.and_then(|part| {
            self.aliases().find(|alias| alias.generation.digest == part.generation.digest)
        });
        let adapters = alias.map_or_else(|| self.names(), |alias| alias.name.to_string());
        ServiceError::NotComposable { adapters, reason }
    }
}

/// A part is the name of an adapter, not of a model.
fn unknown_part(error: ServiceError) -> ServiceError {
    if let ServiceError::Registry(RegistryError::UnknownName { model_name }) = error {
        return RegistryError::UnknownAlias { alias: model_name }.into();
    }
    error
}

impl AdapterService {
    /// What several names mean to `caller` together, pinned for a request.
    ///
    /// # Errors
    /// Those of [`Self::resolve`] for each name; the base or one adapter twice among them; too many, or a scale that is
    /// none. That adapters cannot be added up is found when they are loaded.
    pub fn resolve_parts(
        &self,
        caller: &Namespace,
        wanted: &[WantedPart],
    ) -> Result<ResolvedParts, ServiceError> {
        if wanted.len() > COMPOSED_PARTS_MAX {
            return Err(CompositionError::TooMany { found: wanted.len() }.into());
        }
        let mut parts: Vec<PinnedPart> = Vec::new();
        for WantedPart { name, scale, generation } in wanted {
            let resolved = self.resolve(caller, name, *generation).map_err(unknown_part)?;
            let Some(PinnedAdapter::One(alias)) = resolved else {
                return Err(ServiceError::BaseAsPart { name: name.clone() });
            };
            let is_same = |part: &PinnedPart| {
                (&part.alias.namespace, &part.alias.name) == (&alias.namespace, &alias.name)
            };
            if parts.iter().any(is_same) {
                return Err(ServiceError::PartTwice { name: name.clone() });
            }
            parts.push(PinnedPart { alias, scale: *scale });
        }
        let by_digest: Vec<_> = parts
            .iter()
            .map(|part| ComposedPart {
                generation: part.alias.generation.digest,
                scale: part.scale,
            })
            .collect();
        let composition = Composition::new(&by_digest)?;
        let mut counting: Vec<_> = parts.iter().filter(|part| part.scale != 0.0).cloned().collect();
        let adapter = match composition.runs_as() {
            RunsAs::Base => None,
            // The only one that counts.
            RunsAs::Generation(_) => counting.pop().map(|part| PinnedAdapter::One(part.alias)),
            RunsAs::Sum(digest) => {
                let composed = self.take_up(digest, &composition, &counting);
                Some(PinnedAdapter::Sum(PinnedSum { parts: counting, composed }))
            }
        };
        Ok(ResolvedParts { parts, adapter })
    }

    /// Makes a sum known to the source of the tiers.
    fn take_up(
        &self,
        digest: GenerationDigest,
        composition: &Composition,
        pinned: &[PinnedPart],
    ) -> Arc<Composed> {
        let parts = composition.parts().iter().filter_map(|part| {
            let same = pinned.iter().find(|p| p.alias.generation.digest == part.generation)?;
            let generation = Arc::clone(&same.alias.generation);
            Some(ComposedGeneration { generation, scale: part.scale })
        });
        let taken_up = self.compositions.take_up(Composed { digest, parts: parts.collect() });
        for idle in taken_up.forgotten {
            self.residency.forget(idle);
        }
        taken_up.composed
    }
}
