//! The adapters of a configuration that was read again.

use std::path::PathBuf;

use pleach_adapters::{Expect, Namespace};
use pleach_store::Owner;

use super::{AdapterService, error::ServiceError, target::Target};

/// Who changes what the configuration gave, for the log of moves.
const WHO: &str = "configuration";

impl AdapterService {
    /// Goes from the adapters that a configuration gave `before` to those that it gives `now`: new ones are made known, all
    /// are read again, since their folders may hold others by now, and those that it gives no more are removed. Requests
    /// that run go on. A name that was changed while a server ran is the store's, and stays. What failed, by name; that
    /// stays as it was.
    pub async fn reconfigure(
        &self,
        before: &[(String, PathBuf)],
        now: &[(String, PathBuf)],
    ) -> Vec<(String, ServiceError)> {
        let mut failed = Vec::new();
        for (name, folder) in now {
            let registered = self.register_configured(name, folder.clone(), Expect::Anything).await;
            if let Err(error) = registered {
                failed.push((name.clone(), error));
            }
        }
        let is_given = |name: &str| now.iter().any(|(given, _)| given == name);
        for (name, _) in before.iter().filter(|(name, _)| !is_given(name)) {
            if let Err(error) = self.remove_configured(name).await {
                failed.push((name.clone(), error));
            }
        }
        failed
    }

    async fn remove_configured(&self, name: &str) -> Result<(), ServiceError> {
        let Some(alias) = self.registry.get(&Namespace::shared(), name) else { return Ok(()) };
        if self.changes.is_stored(&alias) {
            return Ok(());
        }
        let target = Target { owner: Owner::Shared, name: name.to_owned(), who: WHO.to_owned() };
        // If somebody has changed it just now, it is the store's.
        self.remove(target, Expect::Generation(alias.generation.digest)).await.map(drop)
    }
}
