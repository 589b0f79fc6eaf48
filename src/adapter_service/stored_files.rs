//! Files of a generation that are blobs of the store.

use std::{
    error::Error,
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pleach_adapters::{
    AdapterFiles, Generation, GenerationDigest, GenerationInfo, KnownGeneration, LoadedAdapter,
    load_peft_files,
    peft::{CONFIG_FILE, TENSOR_FILE},
};
use pleach_engine::{site::TargetModule, spec::ModelSpec};
use pleach_store::{
    BlobDigest, BlobError, GenerationFile, GenerationMetadata, Owner, Store, StoreError,
    StoredGeneration,
};
use tokio::{runtime::Handle, sync::mpsc};

use super::spool::Spool;

const KIND_LORA: &str = "lora";
const KIND_DORA: &str = "dora";
const FORMAT: &str = "peft";

/// A generation of an owner that nobody here holds any more.
#[derive(Clone, Debug)]
pub(super) struct Unheld {
    pub(super) owner: Owner,
    pub(super) digest: GenerationDigest,
}

/// What all stored files have in common.
#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) store: Store,
    /// For blobs that are not on this machine, while they are loaded.
    pub(super) spool: Arc<Spool>,
    pub(super) runtime: Handle,
    pub(super) unheld: mpsc::UnboundedSender<Unheld>,
    /// SHA-256 of the file of the base that is served, hexadecimal.
    pub(super) base_digest: String,
}

/// The files of one generation of one owner. Says so when it is dropped: then they may go.
pub(super) struct StoredFiles {
    shelf: Arc<Shelf>,
    owner: Owner,
    digest: GenerationDigest,
    files: Vec<GenerationFile>,
}

/// Why a stored file cannot be read. What the store said about places is for the log.
#[derive(Debug, thiserror::Error)]
pub enum StoredFileError {
    /// The generation was stored without it.
    #[error("{file} is not among its stored files")]
    NotAmong {
        /// Its name.
        file: &'static str,
    },
    /// It was lost.
    #[error("{file} is missing in the store")]
    Missing {
        /// Its name.
        file: &'static str,
    },
    /// Somebody wrote into it.
    #[error("{file} is damaged in the store")]
    Damaged {
        /// Its name.
        file: &'static str,
    },
    /// The store cannot be reached.
    #[error("{file} cannot be read from the store")]
    Unreadable {
        /// Its name.
        file: &'static str,
    },
}

impl StoredFileError {
    pub(super) fn new(file: &'static str, error: &StoreError) -> Self {
        tracing::warn!(file, %error, "a stored file cannot be read");
        let StoreError::Blob(error) = error else { return Self::Unreadable { file } };
        match error {
            BlobError::Missing { .. } => Self::Missing { file },
            BlobError::Damaged { .. } => Self::Damaged { file },
            BlobError::UnknownPlace { .. }
            | BlobError::TooLarge { .. }
            | BlobError::Objects { .. }
            | BlobError::Io { .. } => Self::Unreadable { file },
        }
    }
}

impl Shelf {
    /// A generation as the store has it.
    pub(super) fn generation(
        self: &Arc<Self>,
        stored: StoredGeneration,
        files: Vec<GenerationFile>,
        loaded_as: &str,
    ) -> Arc<Generation> {
        let StoredGeneration { owner, digest, metadata, created_ms, .. } = stored;
        let known = self.known(digest, &metadata, time_of(created_ms), loaded_as);
        Generation::known(known, self.files(owner, digest, files))
    }

    /// What is known of a generation.
    pub(super) fn known(
        &self,
        digest: pleach_store::GenerationDigest,
        metadata: &GenerationMetadata,
        created: SystemTime,
        loaded_as: &str,
    ) -> KnownGeneration {
        let other_base = metadata.base_digest.clone();
        KnownGeneration {
            digest: GenerationDigest(digest.0),
            loaded_as: loaded_as.to_owned(),
            info: info_of(metadata),
            created,
            other_base: other_base.filter(|base| *base != self.base_digest),
        }
    }

    /// The files of a generation.
    pub(super) fn files(
        self: &Arc<Self>,
        owner: Owner,
        digest: pleach_store::GenerationDigest,
        files: Vec<GenerationFile>,
    ) -> StoredFiles {
        let digest = GenerationDigest(digest.0);
        StoredFiles { shelf: Arc::clone(self), owner, digest, files }
    }

    /// What is worth storing of an adapter that was checked against the base that is served.
    pub(super) fn metadata_of(&self, adapter: &LoadedAdapter) -> GenerationMetadata {
        let is_dora = adapter.weights.sites.iter().any(|site| site.magnitude.is_some());
        GenerationMetadata {
            kind: if is_dora { KIND_DORA } else { KIND_LORA }.to_owned(),
            format: FORMAT.to_owned(),
            rank_max: u32::try_from(adapter.rank_max).unwrap_or(u32::MAX),
            target_modules: adapter
                .target_modules
                .iter()
                .map(|module| module.name().to_owned())
                .collect(),
            n_parameters: adapter.n_parameters as u64,
            tensor_bytes: adapter.tensor_bytes,
            base_digest: Some(self.base_digest.clone()),
            base_name: adapter.base_model_name.clone(),
        }
    }
}

impl StoredFiles {
    /// Of a generation whose files are stored.
    pub(super) fn of(generation: &Generation) -> Option<&Self> {
        let files: &dyn std::any::Any = &*generation.files;
        files.downcast_ref()
    }

    /// One of the files: its blob and bytes.
    pub(super) fn find(&self, file: &'static str) -> Result<&GenerationFile, StoredFileError> {
        let found = self.files.iter().find(|stored| stored.name == file);
        found.ok_or(StoredFileError::NotAmong { file })
    }

    /// Where a blob is on this machine.
    fn local(&self, blob: &BlobDigest) -> Option<PathBuf> {
        self.shelf.store.blobs().local_path(blob)
    }
}

impl AdapterFiles for StoredFiles {
    fn load(&self, spec: &ModelSpec) -> Result<LoadedAdapter, Box<dyn Error + Send + Sync>> {
        let (config, tensors) = (self.find(CONFIG_FILE)?, self.find(TENSOR_FILE)?);
        if let (Some(config), Some(tensors)) = (self.local(&config.blob), self.local(&tensors.blob))
        {
            return Ok(load_peft_files(&config, &tensors, spec)?);
        }
        // Gone after the load.
        let folder = self.shelf.spool.folder()?;
        let [config, tensors] =
            [(CONFIG_FILE, config), (TENSOR_FILE, tensors)].map(|(name, file)| {
                let copy = folder.path().join(name);
                let copied =
                    self.shelf.runtime.block_on(self.shelf.store.copy_blob(&file.blob, &copy));
                copied.map(|()| copy).map_err(|error| StoredFileError::new(name, &error))
            });
        Ok(load_peft_files(&config?, &tensors?, spec)?)
    }

    fn are_ours(&self) -> bool {
        true
    }
}

impl Drop for StoredFiles {
    fn drop(&mut self) {
        let unheld = Unheld { owner: self.owner.clone(), digest: self.digest };
        // Nobody listens any more when the server ends: the next start finds what is left over.
        let _ = self.shelf.unheld.send(unheld);
    }
}

// By hand: for logs, without what all have in common.
impl fmt::Debug for StoredFiles {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("StoredFiles")
            .field("owner", &self.owner)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

fn info_of(metadata: &GenerationMetadata) -> GenerationInfo {
    let modules = || TargetModule::ALL.into_iter().chain(TargetModule::ENDS);
    let named = |name: &String| modules().find(|module| module.name() == name);
    GenerationInfo {
        base_model_name: metadata.base_name.clone(),
        rank_max: metadata.rank_max as usize,
        target_modules: metadata.target_modules.iter().filter_map(named).collect(),
        n_parameters: usize::try_from(metadata.n_parameters).unwrap_or(usize::MAX),
        tensor_bytes: metadata.tensor_bytes,
    }
}

/// The same digest, as the store's type.
pub(super) fn to_store(digest: GenerationDigest) -> pleach_store::GenerationDigest {
    pleach_store::GenerationDigest(digest.0)
}

pub(super) fn time_of(unix_ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(unix_ms).unwrap_or_default())
}
