//! Generations that are not in service: kept under hidden names until it is known what becomes of them.

use std::sync::Arc;

use pleach_adapters::{
    Alias, Expect, Generation, Moved, RegistryError,
    registry::{HIDDEN_PREFIX, is_hidden},
};
use pleach_engine::adapter_weights::AdapterWeights;

use super::{
    AdapterInUse, AdapterService, ServiceError, Target, apart, in_use::Held, pace::Urgency,
};

/// The name under which what a job of a round trains is kept, before anybody may ask for it.
pub fn candidate_name(job: &str) -> String {
    format!("{HIDDEN_PREFIX}{job}")
}

/// The job whose candidate has this name.
pub fn job_of_candidate(name: &str) -> Option<&str> {
    name.strip_prefix(HIDDEN_PREFIX)
}

impl AdapterService {
    /// What is kept under a name, hidden or not.
    pub fn kept(&self, target: &Target) -> Option<Alias> {
        self.registry.get(&target.space(), &target.name)
    }

    /// Waits until a generation is on the device, and keeps it there, under whatever name; it counts as nobody's request.
    ///
    /// # Errors
    /// [`ServiceError::Residency`].
    pub async fn lease_generation(
        &self,
        generation: &Arc<Generation>,
    ) -> Result<AdapterInUse, ServiceError> {
        let held = Held::Generation(Arc::clone(generation));
        let leased = AdapterInUse::lease(&self.residency, held).await;
        leased
            .map_err(|error| ServiceError::Residency { alias: generation.loaded_as.clone(), error })
    }

    /// Brings weights to the device that have no name and no files, and keeps them there: those of a training, between two of
    /// its steps. Nothing of them is stored, and nobody else can ask for them. `what` is for messages.
    ///
    /// # Errors
    /// [`ServiceError::Pack`], [`ServiceError::Residency`].
    pub async fn lease_weights(
        &self,
        what: &str,
        weights: Arc<AdapterWeights>,
    ) -> Result<AdapterInUse, ServiceError> {
        let (of_engine, pace) = (self.engine.adapter_packer(), Arc::clone(&self.pace));
        let work = move || pace.run(Urgency::Wanted, || of_engine.pack(&weights));
        let packed =
            tokio::task::spawn_blocking(work).await.map_err(|_| ServiceError::Panicked)??;
        let leased = AdapterInUse::lease_packed(&self.residency, Arc::new(packed)).await;
        leased.map_err(|error| ServiceError::Residency { alias: what.to_owned(), error })
    }

    /// Where a name pointed before, the last first.
    pub fn earlier(&self, target: &Target) -> Vec<Arc<Generation>> {
        self.registry.history(&target.space(), &target.name)
    }

    /// The same, also if another process has stored it.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn stored(&self, target: Target) -> Result<Option<Alias>, ServiceError> {
        if let Some(alias) = self.kept(&target) {
            return Ok(Some(alias));
        }
        self.refresh(target.clone()).await?;
        Ok(self.kept(&target))
    }

    /// Takes over what another process has made of a name since.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn refresh(&self, target: Target) -> Result<(), ServiceError> {
        let changes = Arc::clone(&self.changes);
        apart(async move {
            let _turn = changes.turn().await;
            Ok(changes.take_over(&target).await?)
        })
        .await
    }

    /// Every hidden name.
    pub fn hidden(&self) -> Vec<Alias> {
        let all = self.registry.list_all().into_iter();
        all.filter(|alias| is_hidden(&alias.name)).collect()
    }

    /// Removes a hidden name; its generation goes unless something else has it. To do it again is no error.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn forget_candidate(&self, target: Target) -> Result<(), ServiceError> {
        let changes = Arc::clone(&self.changes);
        let removed = apart(async move { changes.remove(&target, Expect::Anything).await }).await;
        match removed {
            Err(ServiceError::Registry(RegistryError::UnknownAlias { .. })) => Ok(()),
            removed => removed.map(drop),
        }
    }

    /// Points an alias at a generation of its owner's, and makes the alias if there is none; `reason` is for the log of
    /// moves.
    ///
    /// # Errors
    /// What the alias is instead; a quota; a store that fails.
    pub async fn point_at(
        &self,
        target: Target,
        generation: Arc<Generation>,
        expect: Expect,
        reason: &'static str,
    ) -> Result<Moved, ServiceError> {
        let changes = Arc::clone(&self.changes);
        apart(async move { changes.point_at(&target, generation, expect, reason).await }).await
    }
}
