//! Names of the configuration that are changed while the server runs.

use std::sync::Arc;

use pleach_adapters::{Alias, FolderInPlace, KnownAlias, load_peft, peft::tensor_file_bytes_max};
use pleach_store::{Origin, Registration};

use super::{
    changes::{Changes, Checked},
    error::ServiceError,
    incoming,
    stored_files::{is_stored, to_store},
    target::Target,
};

impl Changes {
    /// Before anything of a name of the configuration is changed: takes what it points at into the store, so that the name
    /// has a history that survives. From then on the stored name counts.
    pub(super) async fn keep_configured(&self, target: &Target) -> Result<(), ServiceError> {
        let space = target.space();
        let Some(alias) = self.registry.get(&space, &target.name) else { return Ok(()) };
        if is_stored(&alias) {
            return Ok(());
        }
        let (to, generation) = (Arc::clone(&self.shelf), Arc::clone(&alias.generation));
        let spec = self.spec.clone();
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
        let staged = self.stage(&checked.folder).await?;
        let registration = Registration {
            owner: target.owner.clone(),
            digest: to_store(checked.digest),
            metadata: checked.metadata,
            origin: checked.origin,
            files: staged.clone(),
        };
        match self.store_generation(target, &registration, "given by --adapter").await {
            Ok(generation) => {
                let history = self.registry.history(&space, &target.name);
                let Alias { is_pinned, created, .. } = alias;
                let name = target.name.clone();
                let known = KnownAlias { name, generation, history, is_pinned, created };
                self.registry.restore(&space, known)?;
                Ok(())
            }
            Err(error) => {
                self.give_up(&staged).await;
                Err(error)
            }
        }
    }
}
