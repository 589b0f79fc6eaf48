//! Generations that are not in service: kept under hidden names until it is known what becomes of them.

use std::sync::Arc;

use pleach_adapters::{
    Alias, Expect, Generation, Moved, RegistryError,
    registry::{HIDDEN_PREFIX, is_hidden},
};

use super::{AdapterService, ServiceError, Target, apart};

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
