//! The adapter that a training goes on from: one generation, whatever its name points at later.

use std::sync::Arc;

use pleach_adapters::{Generation, Namespace, Registry};
use pleach_engine::spec::ModelSpec;
use pleach_store::{GenerationDigest, Owner};
use pleach_trainer::recipe::{Parent, RecipeError};

/// Why a training cannot go on from an adapter.
#[derive(Debug, thiserror::Error)]
pub enum ParentError {
    /// No name of the owner's has it any more.
    #[error("no name has its generation {0} any more")]
    Gone(GenerationDigest),
    /// Its files are gone or damaged.
    #[error("its files cannot be read: {0}")]
    Unreadable(Box<dyn std::error::Error + Send + Sync>),
    /// Somebody wrote into its files.
    #[error("its files have changed since it was registered")]
    Changed,
    /// A kind of adapter that cannot be trained.
    #[error(transparent)]
    Kind(#[from] RecipeError),
    /// There is nothing to train.
    #[error("it has no weights")]
    Empty,
}

/// A generation that an owner has under some name, or had before.
///
/// # Errors
/// [`ParentError::Gone`].
pub fn find_parent(
    registry: &Registry,
    owner: &Owner,
    digest: GenerationDigest,
) -> Result<Arc<Generation>, ParentError> {
    let space = Namespace::new(owner.as_str());
    let found = registry.find(&space, &pleach_adapters::GenerationDigest(digest.0));
    found.ok_or(ParentError::Gone(digest))
}

/// Weights of a generation, if it is of a kind that can be trained. Blocks on the disk.
///
/// # Errors
/// [`ParentError`], but for [`ParentError::Gone`].
pub fn read_parent(generation: &Generation, spec: &ModelSpec) -> Result<Parent, ParentError> {
    let loaded = generation.files.load(spec).map_err(ParentError::Unreadable)?;
    if loaded.digest != generation.digest {
        return Err(ParentError::Changed);
    }
    let parent = Parent::new(Arc::new(loaded.weights))?;
    if parent.weights().sites.is_empty() {
        return Err(ParentError::Empty);
    }
    Ok(parent)
}
