//! Names of the configuration that are changed while the server runs.

use std::{
    collections::HashSet,
    sync::{Arc, MutexGuard, PoisonError},
};

use pleach_adapters::{
    Alias, FolderInPlace, Generation, KnownAlias, Namespace, load_peft, peft::tensor_file_bytes_max,
};
use pleach_store::Origin;

use super::{
    changes::{Changes, Checked, Stored},
    error::ServiceError,
    incoming,
    stored_files::{StoredFiles, time_of, to_store},
    target::Target,
};

/// For the log of moves.
const REASON: &str = "given by --adapter";

impl Changes {
    /// Whether the store has this alias; if not, the configuration gave it.
    pub(super) fn is_stored(&self, alias: &Alias) -> bool {
        !alias.namespace.is_shared() || !self.configured().contains(&*alias.name)
    }

    /// Notes that the configuration gave a shared name, or that this counts no more.
    pub(super) fn set_configured(&self, space: &Namespace, name: &str, is_configured: bool) {
        if is_configured {
            self.configured().insert(name.to_owned());
        } else if space.is_shared() {
            self.configured().remove(name);
        }
    }

    fn configured(&self) -> MutexGuard<'_, HashSet<String>> {
        self.configured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before anything of a name of the configuration is changed: takes what it points at into the store, so that the name
    /// has a history that survives. From then on the stored name counts.
    pub(super) async fn keep_configured(&self, target: &Target) -> Result<(), ServiceError> {
        let space = target.space();
        let Some(alias) = self.registry.get(&space, &target.name) else { return Ok(()) };
        if self.is_stored(&alias) {
            return Ok(());
        }
        let digest = alias.generation.digest;
        let known = self.registry.find(&space, &digest).unwrap_or(alias.generation);
        let Stored { generation, made: created } = match StoredFiles::of(&known) {
            // Equal files are stored under another name.
            Some(_) => {
                let change = self.change(target, REASON);
                let digest = to_store(digest);
                let moved = self.shelf.store.move_alias(&target.owner, &change, &digest).await;
                let made = match moved {
                    Ok(stored) => time_of(stored.created_ms),
                    Err(error) => return Err(self.failed(target, error).await),
                };
                self.set_configured(&space, &target.name, false);
                Stored { generation: known, made }
            }
            None => self.store_configured(target, &known).await?,
        };
        let history = self.registry.history(&space, &target.name);
        let (name, is_pinned) = (target.name.clone(), alias.is_pinned);
        let known = KnownAlias { name, generation, history, is_pinned, created };
        self.registry.restore(&space, known)?;
        Ok(())
    }

    /// Stores a generation that is read from a folder of somebody else's, if that holds it still.
    async fn store_configured(
        &self,
        target: &Target,
        generation: &Arc<Generation>,
    ) -> Result<Stored, ServiceError> {
        let (to, generation, spec) =
            (Arc::clone(&self.shelf), Arc::clone(generation), self.spec.clone());
        let copy = move || {
            let files: &dyn std::any::Any = &*generation.files;
            let from = files.downcast_ref::<FolderInPlace>().ok_or(ServiceError::NotKept)?;
            let folder = to.spool.folder()?;
            incoming::copy_folder(from.folder(), &folder, tensor_file_bytes_max(&spec))?;
            let adapter = load_peft(folder.path(), &spec)?;
            if adapter.digest != generation.digest {
                return Err(ServiceError::ConfiguredChanged { found: adapter.digest });
            }
            let origin = Origin::Place { place: "--adapter".to_owned() };
            Ok(Checked::new(&adapter, &to, origin, folder))
        };
        let checked =
            tokio::task::spawn_blocking(copy).await.map_err(|_| ServiceError::Panicked)??;
        let files = self.stage(&checked.folder).await?;
        let registration = checked.registration(target, files);
        let stored = self.store_generation(target, &registration, REASON).await;
        if stored.is_err() {
            self.give_up(&registration.files).await;
        }
        stored
    }
}
