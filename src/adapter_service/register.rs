//! From files to a generation under a name.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use pleach_adapters::{
    Alias, Expect, FolderInPlace, Generation, LoadedAdapter, Moved, Namespace, load_peft,
    peft::{ADAPTER_CONFIG_BYTES_MAX, CONFIG_FILE, TENSOR_FILE, tensor_file_bytes_max},
};
use pleach_engine::{engine::EngineHandle, packed_adapter::PackedAdapter, spec::ModelSpec};
use pleach_store::Origin;

use super::{
    AdapterService, REGISTRATIONS_MAX, apart,
    changes::Checked,
    error::ServiceError,
    incoming::copy_adapter,
    pace::{Pace, Urgency},
    spool::SpoolFolder,
    target::Target,
};

/// Characters of a path that are kept with a generation.
const ORIGIN_CHARS_MAX: usize = 1024;

impl AdapterService {
    /// Registers a shared adapter of the configuration, read where it is. It is not stored: the configuration brings it
    /// back. If a stored one has the name, that one stays.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn register_configured(
        &self,
        name: &str,
        folder: PathBuf,
        expect: Expect,
    ) -> Result<Alias, ServiceError> {
        if let Some(stored) = self.stored_instead(name, &folder) {
            return Ok(stored);
        }
        self.registry.check(&Namespace::shared(), name, expect)?;
        let (reader, loaded_as, from) = (self.reader(), name.to_owned(), folder.clone());
        let read = move || {
            let (adapter, packed) = reader.read(&from, &loaded_as)?;
            Ok((Generation::new(loaded_as, &adapter, FolderInPlace::new(from)), packed))
        };
        let (generation, packed) = blocking(read).await?;
        // It may have been changed meanwhile.
        let _turn = self.changes.turn().await;
        match self.stored_instead(name, &folder) {
            Some(stored) => Ok(stored),
            None => self.register_packed(name, generation, packed, expect),
        }
    }

    /// What is stored under a name of the configuration, with a warning.
    fn stored_instead(&self, name: &str, folder: &Path) -> Option<Alias> {
        let alias = self.registry.get(&Namespace::shared(), name)?;
        if !self.changes.is_stored(&alias) {
            return None;
        }
        tracing::warn!(
            adapter = name,
            folder = %folder.display(),
            generation = alias.generation.digest.short(),
            "the configured adapter is not served: it was replaced while a server ran, and what is stored counts; \
             DELETE /v1/adapters/NAME?owner=shared gives the name back to the configuration"
        );
        Some(alias)
    }

    /// Registers a folder below an allowed root. It is copied: what is served is what was checked.
    ///
    /// # Errors
    /// [`ServiceError`]; nothing changed then.
    pub async fn register_path(
        &self,
        target: Target,
        path: &str,
        expect: Expect,
    ) -> Result<Moved, ServiceError> {
        target.may_be_made()?;
        let (roots, spool, path) = (self.rules().roots, Arc::clone(&self.spool), path.to_owned());
        let place = path.chars().take(ORIGIN_CHARS_MAX).collect();
        let bytes_max = tensor_file_bytes_max(self.engine.spec());
        let files = move || copy_adapter(&roots, &path, &spool, bytes_max);
        self.register(target, expect, Origin::Place { place }, files).await
    }

    /// Registers what was uploaded into a folder of the spool.
    ///
    /// # Errors
    /// [`ServiceError`]; nothing changed then, and nothing of it is left.
    pub async fn register_upload(
        &self,
        target: Target,
        folder: SpoolFolder,
        expect: Expect,
    ) -> Result<Moved, ServiceError> {
        target.may_be_made()?;
        self.register(target, expect, Origin::Upload, move || Ok(folder)).await
    }

    /// Registers what a training wrote into a folder of the spool.
    ///
    /// # Errors
    /// [`ServiceError`]; nothing changed then, and nothing of it is left.
    pub async fn register_trained(
        &self,
        target: Target,
        folder: SpoolFolder,
        origin: Origin,
    ) -> Result<Moved, ServiceError> {
        self.register(target, Expect::Anything, origin, move || Ok(folder)).await
    }

    /// A folder to upload into. Blocks for a moment.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn new_folder(&self) -> Result<SpoolFolder, ServiceError> {
        self.spool.folder()
    }

    /// Whether a change would be made now. Ask before an upload is read.
    ///
    /// # Errors
    /// The rule that the name breaks, or what the alias is instead.
    pub fn check(&self, target: &Target, expect: Expect) -> Result<(), ServiceError> {
        target.may_be_made()?;
        Ok(self.registry.check(&target.space(), &target.name, expect)?)
    }

    /// Most bytes of a file of an adapter; `None` for a file that no adapter has.
    pub fn file_bytes_max(&self, name: &str) -> Option<(&'static str, u64)> {
        match name {
            CONFIG_FILE => Some((CONFIG_FILE, ADAPTER_CONFIG_BYTES_MAX)),
            TENSOR_FILE => Some((TENSOR_FILE, tensor_file_bytes_max(self.engine.spec()))),
            _ => None,
        }
    }

    /// Registers a shared adapter that is loaded and packed already. It is not stored.
    ///
    /// # Errors
    /// When the name breaks a rule or the alias is not as expected.
    pub fn register_packed(
        &self,
        name: &str,
        generation: Arc<Generation>,
        packed: PackedAdapter,
        expect: Expect,
    ) -> Result<Alias, ServiceError> {
        let space = Namespace::shared();
        let moved = self.registry.point(&space, name, generation, expect)?;
        self.changes.set_configured(&space, name, true);
        let digest = moved.alias.generation.digest;
        self.residency.offer(digest, Arc::new(packed));
        self.residency.prefetch(digest);
        self.changes.settle(&moved);
        log_registered(&moved.alias);
        Ok(moved.alias)
    }

    async fn register(
        &self,
        target: Target,
        expect: Expect,
        origin: Origin,
        files: impl FnOnce() -> Result<SpoolFolder, ServiceError> + Send + 'static,
    ) -> Result<Moved, ServiceError> {
        self.registry.check(&target.space(), &target.name, expect)?;
        let place = Arc::clone(&self.places)
            .try_acquire_owned()
            .map_err(|_| ServiceError::Busy { waiting: REGISTRATIONS_MAX })?;
        let (reader, changes) = (self.reader(), Arc::clone(&self.changes));
        let running = Arc::clone(&self.running);
        apart(async move {
            let _place = place;
            // Never closed.
            let running = running.acquire_owned().await.map_err(|_| ServiceError::Panicked)?;
            let (to, name) = (Arc::clone(&changes.shelf), target.name.clone());
            let read = move || {
                reader.pace.run(Urgency::Ahead, || {
                    let folder = files()?;
                    let (adapter, packed) = reader.read(folder.path(), &name)?;
                    Ok((Checked::new(&adapter, &to, origin, folder), packed))
                })
            };
            let (checked, packed) = blocking(read).await?;
            drop(running);
            let moved = changes.register(&target, &checked, packed, expect).await?;
            log_registered(&moved.alias);
            Ok(moved)
        })
        .await
    }

    fn reader(&self) -> Reader {
        let mut base_names = self.registry.base_names().to_vec();
        base_names.push(self.engine.spec().name.clone());
        let (engine, pace) = (self.engine.clone(), Arc::clone(&self.pace));
        Reader { engine, pace, rank_max: self.rules().rank_max, base_names }
    }
}

/// Reads and packs what is to be registered.
struct Reader {
    engine: EngineHandle,
    pace: Arc<Pace>,
    rank_max: usize,
    /// All that the base is called.
    base_names: Vec<String>,
}

impl Reader {
    fn read(
        &self,
        folder: &Path,
        name: &str,
    ) -> Result<(LoadedAdapter, PackedAdapter), ServiceError> {
        let spec = self.engine.spec();
        let adapter = load_peft(folder, spec)?;
        if adapter.rank_max > self.rank_max {
            let (rank, rank_max) = (adapter.rank_max, self.rank_max);
            return Err(ServiceError::RankTooLarge { rank, rank_max });
        }
        warn_of_other_base(name, adapter.base_model_name.as_deref(), spec, &self.base_names);
        let packer = self.engine.adapter_packer();
        let ready = packer.pack(&adapter.weights)?;
        let (needed, capacity) = (ready.n_bytes(), packer.capacity_bytes());
        if needed > capacity {
            return Err(ServiceError::NeverFits { needed, capacity });
        }
        Ok((adapter, ready))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ServiceError> + Send + 'static,
) -> Result<T, ServiceError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ServiceError::Panicked)?
}

fn log_registered(alias: &Alias) {
    tracing::info!(
        adapter = &*alias.label,
        generation = alias.generation.digest.short(),
        rank = alias.generation.info.rank_max,
        "adapter registered"
    );
}

/// PEFT files carry no digest of their base: another name is only worth a warning.
fn warn_of_other_base(adapter: &str, claimed: Option<&str>, spec: &ModelSpec, known: &[String]) {
    let Some(claimed) = claimed else { return };
    if !known.iter().any(|known| may_be_same_model(claimed, known)) {
        tracing::warn!(
            adapter,
            trained_on = claimed,
            base = spec.name,
            "the adapter names another base model; its shapes fit this one"
        );
    }
}

/// Whether two names can mean the same model: one holds the other, but for the owner, case and punctuation. Files are
/// named freely, so that this is only good enough for a warning.
fn may_be_same_model(one: &str, other: &str) -> bool {
    let core = |name: &str| -> String {
        let name = name.trim_end_matches('/').rsplit('/').next().unwrap_or(name);
        name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
    };
    let (one, other) = (core(one), core(other));
    !one.is_empty() && !other.is_empty() && (one.contains(&other) || other.contains(&one))
}

#[cfg(test)]
mod tests {
    use super::may_be_same_model;

    #[test]
    fn names_of_one_model_differ_in_owner_case_and_tail() {
        let claimed = "HuggingFaceTB/SmolLM2-135M-Instruct";
        for known in
            ["smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1", "SmolLM2 135M Instruct"]
        {
            assert!(may_be_same_model(claimed, known), "{known}");
        }
        for other in ["smollm2-360m-instruct", "Qwen/Qwen3-0.6B", "", "/"] {
            assert!(!may_be_same_model(claimed, other), "{other}");
        }
    }
}
