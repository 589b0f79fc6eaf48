//! From files to a generation under a name.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use pleach_adapters::{
    AdapterFiles, Alias, Expect, Generation, load_peft,
    peft::{ADAPTER_CONFIG_BYTES_MAX, CONFIG_FILE, TENSOR_FILE, tensor_file_bytes_max},
};
use pleach_engine::{breaks::may_break, packed_adapter::PackedAdapter, spec::ModelSpec};

use super::{
    AdapterService, REGISTRATIONS_MAX,
    error::ServiceError,
    pace::Urgency,
    roots::AllowedRoots,
    spool::{IncomingFile, SpoolFolder},
};

/// Bytes copied at once.
const COPY_BYTES: usize = 1 << 20;

impl AdapterService {
    /// Registers a folder of the configuration, read where it is.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn register_configured(
        &self,
        name: &str,
        folder: PathBuf,
    ) -> Result<Alias, ServiceError> {
        self.register(name, Expect::Absent, move || Ok(AdapterFiles::in_place(folder))).await
    }

    /// Registers a folder below an allowed root. It is copied: what is served is what was checked.
    ///
    /// # Errors
    /// [`ServiceError`]; nothing changed then.
    pub async fn register_path(
        &self,
        name: &str,
        path: &str,
        expect: Expect,
    ) -> Result<Alias, ServiceError> {
        let (roots, path) = (self.roots.clone(), path.to_owned());
        let bytes_max = tensor_file_bytes_max(self.engine.spec());
        let spool = Arc::clone(&self.spool);
        let files = move || {
            let from = roots.find(&path)?;
            let folder = spool.folder()?;
            copy_adapter(&roots, &from, &folder, bytes_max)?;
            Ok(AdapterFiles::kept_by(folder.path().to_owned(), folder))
        };
        self.register(name, expect, files).await
    }

    /// Registers what was uploaded into a folder of the spool.
    ///
    /// # Errors
    /// [`ServiceError`]; nothing changed then, and nothing of it is left.
    pub async fn register_upload(
        &self,
        name: &str,
        folder: SpoolFolder,
        expect: Expect,
    ) -> Result<Alias, ServiceError> {
        let files = move || Ok(AdapterFiles::kept_by(folder.path().to_owned(), folder));
        self.register(name, expect, files).await
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
    pub fn check(&self, name: &str, expect: Expect) -> Result<(), ServiceError> {
        Ok(self.registry.check(name, expect)?)
    }

    /// Most bytes of a file of an adapter; `None` for a file that no adapter has.
    pub fn file_bytes_max(&self, name: &str) -> Option<(&'static str, u64)> {
        match name {
            CONFIG_FILE => Some((CONFIG_FILE, ADAPTER_CONFIG_BYTES_MAX)),
            TENSOR_FILE => Some((TENSOR_FILE, tensor_file_bytes_max(self.engine.spec()))),
            _ => None,
        }
    }

    /// Registers an adapter that is loaded and packed already.
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
        let moved = self.registry.point(name, generation, expect)?;
        // Host memory first, so that the next request does not read it again; then the device, if there is room.
        let digest = moved.alias.generation.digest;
        self.residency.offer(digest, Arc::new(packed));
        self.residency.prefetch(digest);
        let alias = self.finish(moved);
        tracing::info!(
            adapter = name,
            generation = alias.generation.digest.short(),
            rank = alias.generation.info.rank_max,
            "adapter registered"
        );
        Ok(alias)
    }

    async fn register(
        &self,
        name: &str,
        expect: Expect,
        files: impl FnOnce() -> Result<AdapterFiles, ServiceError> + Send + 'static,
    ) -> Result<Alias, ServiceError> {
        self.check(name, expect)?;
        let _place = self
            .places
            .try_acquire()
            .map_err(|_| ServiceError::Busy { waiting: REGISTRATIONS_MAX })?;
        // Never closed.
        let _running = self.running.acquire().await.map_err(|_| ServiceError::Panicked)?;
        let (engine, rank_max, loaded_as) = (self.engine.clone(), self.rank_max, name.to_owned());
        let mut base_names = self.registry.base_names().to_vec();
        let work = move || {
            let files = files()?;
            let spec = engine.spec();
            let adapter = load_peft(files.folder(), spec)?;
            if adapter.rank_max > rank_max {
                return Err(ServiceError::RankTooLarge { rank: adapter.rank_max, rank_max });
            }
            base_names.push(spec.name.clone());
            warn_of_other_base(&loaded_as, adapter.base_model_name.as_deref(), spec, &base_names);
            let packer = engine.adapter_packer();
            let ready = packer.pack(&adapter.weights)?;
            let (needed, capacity) = (ready.n_bytes(), packer.capacity_bytes());
            if needed > capacity {
                return Err(ServiceError::NeverFits { needed, capacity });
            }
            Ok((Generation::new(loaded_as, &adapter, files), ready))
        };
        let pace = Arc::clone(&self.pace);
        let (generation, packed) =
            tokio::task::spawn_blocking(move || pace.run(Urgency::Ahead, work))
                .await
                .map_err(|_| ServiceError::Panicked)??;
        self.register_packed(name, generation, packed, expect)
    }
}

fn copy_adapter(
    roots: &AllowedRoots,
    from: &Path,
    to: &SpoolFolder,
    tensor_bytes_max: u64,
) -> Result<(), ServiceError> {
    for (name, bytes_max) in
        [(CONFIG_FILE, ADAPTER_CONFIG_BYTES_MAX), (TENSOR_FILE, tensor_bytes_max)]
    {
        // What is missing or strange is not copied; loading the copy says so by name.
        let Some(path) = roots.file(from, name)? else { continue };
        // Asked before opening: opening a pipe would wait for its writer.
        if !path.metadata()?.is_file() {
            std::fs::create_dir(to.path().join(name))?;
            continue;
        }
        let mut file = to.create(name, bytes_max)?;
        copy_file(&mut File::open(path)?, to, &mut file)?;
    }
    Ok(())
}

fn copy_file(
    from: &mut File,
    to: &SpoolFolder,
    file: &mut IncomingFile,
) -> Result<(), ServiceError> {
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            n => to.write(file, &buffer[..n])?,
        }
        may_break();
    }
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
