//! Where a generation came from, gathered for people and programs.

use pleach_store::{ExampleCounts, GenerationDigest, Owner, Store, StoreError, StoredLineage};

/// Generations that are gone back to at most.
const ANCESTORS_MAX: usize = 32;

/// Where a generation came from.
#[derive(Clone, Debug)]
pub struct Provenance {
    /// What was noted when it was registered.
    pub lineage: StoredLineage,
    /// What it went on from, the last first; at most 32.
    pub ancestors: Vec<GenerationDigest>,
    /// How much its data set was made of; `None` when it learned from a file of which that is not known.
    pub examples: Option<ExampleCounts>,
}

impl Provenance {
    /// Of a generation of an owner's.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when it was not trained here; when the store fails.
    pub async fn of(
        store: &Store,
        owner: &Owner,
        generation: &GenerationDigest,
    ) -> Result<Self, StoreError> {
        Self::behind(store, owner, store.lineage(owner, generation).await?).await
    }

    /// What is behind a lineage.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn behind(
        store: &Store,
        owner: &Owner,
        lineage: StoredLineage,
    ) -> Result<Self, StoreError> {
        let mut ancestors = Vec::new();
        let mut parent = lineage.from.parent;
        // Equal weights can come to be their own ancestors.
        while let Some(digest) = parent
            && ancestors.len() < ANCESTORS_MAX
            && !ancestors.contains(&digest)
        {
            ancestors.push(digest);
            parent = match store.lineage(owner, &digest).await {
                Ok(earlier) => earlier.from.parent,
                // It was uploaded.
                Err(StoreError::NotFound { .. }) => None,
                Err(error) => return Err(error),
            };
        }
        let examples = match &lineage.from.round {
            Some(round) => Some(store.count_examples(owner, round).await?),
            None => None,
        };
        Ok(Self { lineage, ancestors, examples })
    }
}
