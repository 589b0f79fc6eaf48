//! One immutable adapter, as the catalogue knows it.

use std::{
    any::Any,
    error::Error,
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use pleach_engine::{site::TargetModule, spec::ModelSpec};

use crate::{
    digest::GenerationDigest,
    peft::{LoadedAdapter, load_peft},
};

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

/// Where a generation is read from whenever it is in no memory. Dropped with the generation: whoever keeps files for it
/// alone removes them then.
pub trait AdapterFiles: Any + fmt::Debug + Send + Sync {
    /// Reads and checks the files, whatever they hold by now; the caller compares digests. Blocks.
    ///
    /// # Errors
    /// What is missing or wrong, without places of the server: it is shown to users.
    fn load(&self, spec: &ModelSpec) -> Result<LoadedAdapter, Box<dyn Error + Send + Sync>>;

    /// Whether nobody else writes into them: of equal generations, one with such files is kept.
    fn are_ours(&self) -> bool {
        false
    }
}

/// A PEFT folder of somebody else's. Should its content change, loading it again fails: a generation never changes.
#[derive(Clone, Debug)]
pub struct FolderInPlace(PathBuf);

impl FolderInPlace {
    /// The files in this folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.0
    }
}

impl AdapterFiles for FolderInPlace {
    fn load(&self, spec: &ModelSpec) -> Result<LoadedAdapter, Box<dyn Error + Send + Sync>> {
        Ok(load_peft(&self.0, spec)?)
    }
}

/// What is known of a generation without its weights: all that a listing needs.
#[derive(Debug)]
pub struct KnownGeneration {
    /// Its name.
    pub digest: GenerationDigest,
    /// The alias under which it was first loaded; for logs.
    pub loaded_as: String,
    /// For listings.
    pub info: GenerationInfo,
    /// When it was made known.
    pub created: SystemTime,
    /// Names the base that it was checked against, if that is not the one that is served now.
    pub other_base: Option<String>,
}

/// One immutable set of adapter weights and settings, as one namespace knows it: what it is and where its files are.
/// Where its weights are just now is [`crate::residency`]'s business, by digest alone: equal weights of two namespaces
/// are two of these, whose facts do not mix, and one in memory.
///
/// Held by every alias that points at it or has it in its history, and by every request that resolved to it: a sequence
/// ends on the generation it began with, wherever the alias points by then. When the last one goes, so do its files, if
/// they are ours.
#[derive(Debug)]
pub struct Generation {
    /// Its name.
    pub digest: GenerationDigest,
    /// The alias under which it was first loaded; for logs.
    pub loaded_as: String,
    /// For listings.
    pub info: GenerationInfo,
    /// Where it is read from.
    pub files: Box<dyn AdapterFiles>,
    /// When it was made known.
    pub created: SystemTime,
    other_base: Option<String>,
    /// Overrides `other_base`: equal files were checked against the base that is served.
    fits_base: AtomicBool,
    /// Shared by all generations of this digest; set when the registry takes it up.
    pointers: OnceLock<Arc<Pointers>>,
}

/// Numbers of aliases of all namespaces: those that point at a digest, those that did, and the pinned ones. Written by the
/// registry: whoever comes to have it is counted before whoever had it is not any more.
#[derive(Debug, Default)]
pub(crate) struct Pointers {
    aliases: AtomicUsize,
    histories: AtomicUsize,
    pinned: AtomicUsize,
}

impl Generation {
    /// The generation of an adapter that was loaded from `files`.
    pub fn new(
        loaded_as: impl Into<String>,
        adapter: &LoadedAdapter,
        files: impl AdapterFiles,
    ) -> Arc<Self> {
        let known = KnownGeneration {
            digest: adapter.digest,
            loaded_as: loaded_as.into(),
            info: adapter.into(),
            created: SystemTime::now(),
            other_base: None,
        };
        Self::known(known, files)
    }

    /// A generation that is known without having been loaded.
    pub fn known(known: KnownGeneration, files: impl AdapterFiles) -> Arc<Self> {
        let KnownGeneration { digest, loaded_as, info, created, other_base } = known;
        Arc::new(Self {
            digest,
            loaded_as,
            info,
            files: Box::new(files),
            created,
            fits_base: AtomicBool::new(other_base.is_none()),
            other_base,
            pointers: OnceLock::new(),
        })
    }

    /// Names the base that it was checked against, if that is not the one that is served: it is not to be used.
    pub fn other_base(&self) -> Option<&str> {
        if self.fits_base.load(Ordering::Acquire) { None } else { self.other_base.as_deref() }
    }

    /// Whether an alias of some namespace points at its digest.
    pub fn is_current(&self) -> bool {
        self.count(|pointers| &pointers.aliases) > 0
    }

    /// Whether no alias of any namespace points at its digest or can be pointed back at it any more (or yet): it needs no
    /// memory but for the requests that use it.
    pub fn is_retired(&self) -> bool {
        !self.is_current() && self.count(|pointers| &pointers.histories) == 0
    }

    /// Whether an alias that points at its digest is pinned.
    pub fn is_pinned(&self) -> bool {
        self.count(|pointers| &pointers.pinned) > 0
    }

    fn count(&self, of: impl Fn(&Pointers) -> &AtomicUsize) -> usize {
        self.pointers.get().map_or(0, |pointers| of(pointers).load(Ordering::Acquire))
    }

    /// The registry takes it up.
    pub(crate) fn share(&self, pointers: Arc<Pointers>) {
        // A second time the same ones.
        let _ = self.pointers.set(pointers);
    }

    /// Equal files were loaded: what they were checked against counts for this one too.
    pub(crate) fn learn_from(&self, equal: &Self) {
        if equal.other_base().is_none() {
            self.fits_base.store(true, Ordering::Release);
        }
    }

    fn pointers(&self) -> &Pointers {
        match self.pointers.get() {
            Some(pointers) => pointers,
            None => unreachable!("generation {} was never taken up", self.digest.short()),
        }
    }

    pub(crate) fn gains_alias(&self, is_pinned: bool) {
        self.pointers().aliases.fetch_add(1, Ordering::AcqRel);
        if is_pinned {
            self.gains_pin();
        }
    }

    pub(crate) fn loses_alias(&self, is_pinned: bool) {
        let before = self.pointers().aliases.fetch_sub(1, Ordering::AcqRel);
        assert!(before > 0, "generation {} lost an alias that it had not", self.digest.short());
        if is_pinned {
            self.loses_pin();
        }
    }

    pub(crate) fn gains_history(&self) {
        self.pointers().histories.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn loses_history(&self) {
        let before = self.pointers().histories.fetch_sub(1, Ordering::AcqRel);
        assert!(before > 0, "generation {} left a history that had it not", self.digest.short());
    }

    pub(crate) fn gains_pin(&self) {
        self.pointers().pinned.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn loses_pin(&self) {
        let before = self.pointers().pinned.fetch_sub(1, Ordering::AcqRel);
        assert!(before > 0, "generation {} lost a pin that it had not", self.digest.short());
    }
}
