//! Registry and store are one in what they say, also after a change that failed, or that another process made.

use std::sync::Arc;

use pleach_adapters::{Expect, Generation, GenerationDigest, KnownAlias, Namespace};
use pleach_store::{Owner, StoreError};

use super::{
    changes::Changes,
    error::ServiceError,
    stored_files::{time_of, to_store},
    target::Target,
};

impl Changes {
    /// A change that the store refused or that may have been made after all: the registry takes over what the store has.
    pub(super) async fn failed(&self, target: &Target, error: StoreError) -> ServiceError {
        tracing::warn!(adapter = target.name, owner = %target.owner, %error, "a change failed");
        if let Err(error) = self.take_over(target).await {
            tracing::error!(adapter = target.name, owner = %target.owner, %error, "it is unknown what is stored");
        }
        ServiceError::Store(error)
    }

    /// Makes an alias what it is in the store.
    pub(super) async fn take_over(&self, target: &Target) -> Result<(), StoreError> {
        let (store, space, owner) = (&self.shelf.store, target.space(), &target.owner);
        let here = self.registry.get(&space, &target.name);
        let stored = match store.alias(owner, &target.name).await {
            Ok(stored) => stored,
            Err(StoreError::UnknownAlias { .. }) => {
                // One of the configuration is not there either.
                if here.is_some_and(|alias| self.is_stored(&alias)) {
                    let removed = self.registry.remove(&space, &target.name, Expect::Anything);
                    if let Ok(moved) = removed {
                        self.settle(&moved);
                    }
                }
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let history = store.alias_history(owner, &target.name).await?;
        let is_same = here.is_some_and(|alias| {
            let here = self.registry.history(&space, &target.name);
            self.is_stored(&alias)
                && alias.generation.digest.0 == stored.generation.0
                && alias.is_pinned == stored.is_pinned
                && here
                    .iter()
                    .map(|earlier| earlier.digest.0)
                    .eq(history.iter().map(|earlier| earlier.0))
        });
        if is_same {
            return Ok(());
        }
        let mut earlier = Vec::new();
        for digest in &history {
            earlier.push(self.generation(owner, digest, &target.name).await?);
        }
        let known = KnownAlias {
            name: target.name.clone(),
            generation: self.generation(owner, &stored.generation, &target.name).await?,
            history: earlier,
            is_pinned: stored.is_pinned,
            created: time_of(stored.created_ms),
        };
        match self.registry.restore(&space, known) {
            Ok(moved) => {
                self.set_configured(&space, &target.name, false);
                self.settle(&moved);
            }
            Err(error) => tracing::error!(adapter = target.name, %error, "cannot be served"),
        }
        Ok(())
    }

    /// A generation of the store.
    pub(super) async fn generation(
        &self,
        owner: &Owner,
        digest: &pleach_store::GenerationDigest,
        loaded_as: &str,
    ) -> Result<Arc<Generation>, StoreError> {
        let files = self.shelf.store.generation_files(owner, digest).await?;
        let stored = self.shelf.store.generation(owner, digest).await?;
        Ok(self.shelf.generation(stored, files, loaded_as))
    }

    /// Takes a generation of an owner out of the store, if nobody here holds it and no alias or history does there.
    pub(super) async fn retire(&self, owner: &Owner, digest: GenerationDigest) {
        let _turn = self.turn().await;
        if self.registry.find(&Namespace::new(owner.as_str()), &digest).is_some() {
            return;
        }
        match self.shelf.store.retire_generation(owner, &to_store(digest)).await {
            Ok(()) => tracing::info!(%owner, generation = digest.short(), "generation retired"),
            Err(
                StoreError::GenerationInUse { .. }
                | StoreError::GenerationInHistory { .. }
                | StoreError::UnknownGeneration { .. },
            ) => {}
            Err(error) => {
                let generation = digest.short();
                tracing::warn!(%owner, generation, %error, "an unused one is left for the next start");
            }
        }
    }
}
