//! A server that starts: all adapters come back as rows. No file is opened; weights are read when they are asked for.

use std::{collections::HashMap, sync::Weak, time::Duration};

use pleach_adapters::{KnownAlias, Namespace};
use pleach_store::Catalog;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval_at},
};

use super::{
    changes::Changes,
    error::ServiceError,
    stored_files::{Unheld, time_of},
};

/// How often garbage among the blobs is looked for: uploads that were broken off, and what could not be deleted at once.
const SWEEP_INTERVAL: Duration = Duration::from_hours(1);

impl Changes {
    /// Puts everything into the registry that the store has. What is wrong with one adapter harms no other.
    ///
    /// Generations that no alias and no history has are dropped here, and so go the way of all that are
    /// ([`clean_up`]): what a process left that was killed.
    pub(super) async fn restore(&self) -> Result<(), ServiceError> {
        let Catalog { aliases, generations } = self.shelf.store.catalog().await?;
        let mut known = HashMap::with_capacity(generations.len());
        for (generation, files) in generations {
            let key = (generation.owner.clone(), generation.digest);
            known.insert(key, self.shelf.generation(generation, files, "stored"));
        }
        for (alias, history) in aliases {
            let find = |digest| known.get(&(alias.owner.clone(), digest)).cloned();
            let Some(generation) = find(alias.generation) else {
                tracing::error!(adapter = alias.name, owner = %alias.owner, generation = %alias.generation, "a stored adapter has no generation");
                continue;
            };
            let restored = KnownAlias {
                name: alias.name.clone(),
                generation,
                history: history.into_iter().filter_map(find).collect(),
                is_pinned: alias.is_pinned,
                created: time_of(alias.created_ms),
            };
            match self.registry.restore(&Namespace::new(alias.owner.as_str()), restored) {
                Ok(moved) => self.settle_pin(&moved.alias, &moved.alias.generation),
                Err(error) => {
                    tracing::error!(adapter = alias.name, owner = %alias.owner, %error, "a stored adapter cannot be served");
                }
            }
        }
        Ok(())
    }
}

/// Takes away what nobody holds any more, off every request's path, for as long as there are changes to come.
pub(super) async fn clean_up(changes: Weak<Changes>, mut unheld: mpsc::UnboundedReceiver<Unheld>) {
    let mut sweeps = interval_at(tokio::time::Instant::now() + SWEEP_INTERVAL, SWEEP_INTERVAL);
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let next = tokio::select! {
            next = unheld.recv() => next,
            _ = sweeps.tick() => {
                let Some(changes) = changes.upgrade() else { return };
                if let Err(error) = changes.shelf.store.sweep_blobs().await {
                    tracing::warn!(%error, "garbage among the blobs is left for the next sweep");
                }
                continue;
            }
        };
        let (Some(Unheld { owner, digest }), Some(changes)) = (next, changes.upgrade()) else {
            return;
        };
        changes.retire(&owner, digest).await;
    }
}
