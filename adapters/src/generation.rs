//! One immutable adapter, as the catalogue knows it.

use std::{
    any::Any,
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use pleach_engine::site::TargetModule;

use crate::{digest::GenerationDigest, peft::LoadedAdapter};

/// What is worth telling about a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationInfo {
    /// The base that the adapter says it was trained on.
    pub base_model_name: Option<String>,
    /// Largest rank of any site.
    pub rank_max: usize,
    /// Which linears it acts on, each once, in the order of a layer.
    pub target_modules: Vec<TargetModule>,
    /// Weights of all sites.
    pub n_parameters: usize,
    /// Bytes of its tensors as stored in its file.
    pub tensor_bytes: u64,
}

impl From<&LoadedAdapter> for GenerationInfo {
    fn from(adapter: &LoadedAdapter) -> Self {
        Self {
            base_model_name: adapter.base_model_name.clone(),
            rank_max: adapter.rank_max,
            target_modules: adapter.target_modules.clone(),
            n_parameters: adapter.n_parameters,
            tensor_bytes: adapter.tensor_bytes,
        }
    }
}

/// The folder that a generation is read from whenever it is in no memory.
pub struct AdapterFiles {
    folder: PathBuf,
    /// Removes the folder when it is dropped, if the folder is ours.
    _keeper: Option<Box<dyn Any + Send + Sync>>,
}

impl AdapterFiles {
    /// A folder of somebody else's. Should its content change, loading it again fails: a generation never changes.
    pub fn in_place(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), _keeper: None }
    }

    /// A folder that `keeper` keeps while it lives.
    pub fn kept_by(folder: impl Into<PathBuf>, keeper: impl Any + Send + Sync) -> Self {
        Self { folder: folder.into(), _keeper: Some(Box::new(keeper)) }
    }

    /// Where the two files of the adapter are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

// By hand: the keeper may be anything.
impl fmt::Debug for AdapterFiles {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AdapterFiles").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// One immutable set of adapter weights and settings: what it is and where its files are. Where its weights are just
/// now is [`crate::residency`]'s business.
///
/// Held by every alias that points at it or did, and by every request that resolved to it: a sequence ends on the
/// generation it began with, wherever the alias points by then. When the last one goes, so do its files, if they are
/// ours.
#[derive(Debug)]
pub struct Generation {
    /// Its name.
    pub digest: GenerationDigest,
    /// The alias under which it was first loaded; for logs.
    pub loaded_as: String,
    /// For listings.
    pub info: GenerationInfo,
    /// Where it is read from.
    pub files: AdapterFiles,
    /// When it was made known.
    pub created: SystemTime,
    /// Aliases that point at it now. Written by the registry, under its lock.
    n_aliases: AtomicUsize,
}

impl Generation {
    /// The generation of an adapter that was loaded from `files`.
    pub fn new(
        loaded_as: impl Into<String>,
        adapter: &LoadedAdapter,
        files: AdapterFiles,
    ) -> Arc<Self> {
        Arc::new(Self {
            digest: adapter.digest,
            loaded_as: loaded_as.into(),
            info: adapter.into(),
            files,
            created: SystemTime::now(),
            n_aliases: AtomicUsize::new(0),
        })
    }

    /// Whether no alias points at it any more (or yet): it needs no memory but for the requests that use it.
    pub fn is_retired(&self) -> bool {
        self.n_aliases.load(Ordering::Acquire) == 0
    }

    pub(crate) fn gains_alias(&self) {
        self.n_aliases.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn loses_alias(&self) {
        let before = self.n_aliases.fetch_sub(1, Ordering::AcqRel);
        assert!(before > 0, "generation {} lost an alias that it had not", self.digest.short());
    }
}
