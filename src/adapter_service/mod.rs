//! Adapters while the server runs: registered, replaced, removed, and brought to the device for the requests that want
//! them. Every name belongs to an owner; who asks sees its own and the shared ones.
//!
//! ```text
//! HTTP ──> AdapterService ──> changes    one at a time: first the store, then the registry
//!                        │     ├──> store     what survives the process: names, histories, files as blobs
//!                        │     └──> registry  which names there are, and what each points at
//!                        ├──> residency  where weights are: files, host memory, device
//!                        └──> spool      what has come and is not checked yet
//! ```
//!
//! A request resolves its name, or several that are to be summed, to a [`PinnedAdapter`] and asks for it with [`AdapterService::lease`]; what it then holds
//! until its sequences have ended is an [`AdapterInUse`]. Everything that reads, parses or packs runs on blocking
//! threads; a cold adapter delays its own requests only.

mod candidates;
mod changes;
mod compose;
mod configured;
mod device;
mod download;
mod error;
mod generation_source;
mod in_use;
mod incoming;
mod pace;
mod reconfigure;
mod register;
mod restore;
mod roots;
mod settle;
mod spool;
mod stored_files;
mod take_over;
mod target;

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock, atomic::Ordering},
};

use pleach_adapters::{
    Alias, Expect, Generation, GenerationDigest, Namespace, Registry, RegistryError, Residency,
    ResidencyConfig, Resolution, Tier, peft::ADAPTER_RANK_MAX, registry::is_hidden,
};
use pleach_engine::engine::EngineHandle;
use pleach_store::Store;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc},
};

use crate::telemetry::TierFacts;

pub use candidates::{candidate_name, job_of_candidate};
use changes::Changes;
use compose::Compositions;
pub use compose::{PinnedPart, PinnedSum, ResolvedParts, WantedPart};
use device::EngineDevice;
pub use download::{AdapterDownload, DownloadFile};
pub use error::ServiceError;
use generation_source::{GenerationSource, LoadTime};
pub use in_use::{AdapterInUse, PinnedAdapter};
use pace::Pace;
pub use roots::{AllowedRoots, RootError};
use spool::Spool;
pub use spool::{IncomingFile, SpoolFolder};
use stored_files::Shelf;
pub use stored_files::StoredFileError;
pub use target::Target;

// What can be rolled back to is the same before and after a restart.
const _: () = assert!(pleach_store::HISTORY_MAX == pleach_adapters::registry::HISTORY_MAX);

/// Most registrations that wait or run; one more is refused.
const REGISTRATIONS_MAX: usize = 64;
/// Registrations at a time: each holds a whole adapter as f32.
const REGISTRATIONS_RUNNING_MAX: usize = 2;

/// The service's tiers.
type Tiers = Residency<EngineDevice, GenerationSource>;

/// How a service behaves.
#[derive(Clone, Debug)]
pub struct AdapterSettings {
    /// Below which folders adapters may be loaded by path.
    pub roots: AllowedRoots,
    /// Largest rank that is taken.
    pub rank_max: usize,
    /// Memory tiers.
    pub residency: ResidencyConfig,
    /// Where what comes at run time is kept until it is checked and stored; made when it is first needed.
    pub spool: PathBuf,
}

impl Default for AdapterSettings {
    /// No roots, every rank, what comes among the system's temporary files.
    fn default() -> Self {
        Self {
            roots: AllowedRoots::default(),
            rank_max: ADAPTER_RANK_MAX,
            residency: ResidencyConfig::default(),
            spool: std::env::temp_dir().join("pleach-adapters"),
        }
    }
}

/// What is taken in.
#[derive(Clone, Debug)]
struct Rules {
    roots: AllowedRoots,
    rank_max: usize,
}

impl Rules {
    fn of(settings: &AdapterSettings) -> Self {
        let rank_max = settings.rank_max.min(ADAPTER_RANK_MAX);
        Self { roots: settings.roots.clone(), rank_max }
    }
}

/// See the module.
#[derive(Debug)]
pub struct AdapterService {
    engine: EngineHandle,
    registry: Arc<Registry>,
    residency: Tiers,
    compositions: Arc<Compositions>,
    load_time: Arc<LoadTime>,
    pace: Arc<Pace>,
    /// What is taken in; changed by a reload.
    rules: RwLock<Rules>,
    spool: Arc<Spool>,
    changes: Arc<Changes>,
    /// Places for registrations, waiting ones included.
    places: Arc<Semaphore>,
    running: Arc<Semaphore>,
}

/// An alias as lists show it.
#[derive(Clone, Debug)]
pub struct AdapterView {
    /// The alias and its generation.
    pub alias: Alias,
    /// Where the generation is now.
    pub tier: Tier,
    /// Where the alias pointed before, the last first.
    pub history: Vec<Arc<Generation>>,
    /// Requests that got it. `None` for a shared one that another than its owner looks at: they are others' too.
    pub n_requests: Option<u64>,
    /// SHA-256 of the file of the base that it was checked against, hexadecimal.
    pub base_digest: String,
}

impl AdapterService {
    /// A service for a base that answers to `base_names` and whose file has the SHA-256 `base_digest` (hexadecimal), with
    /// all adapters that the store has.
    ///
    /// # Errors
    /// When a base name cannot be one, or the store cannot be read.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn open(
        engine: EngineHandle,
        base_names: Vec<String>,
        settings: AdapterSettings,
        store: Store,
        base_digest: String,
    ) -> Result<Self, ServiceError> {
        let rules = Rules::of(&settings);
        let registry = Arc::new(Registry::new(base_names)?);
        let load_time = Arc::new(LoadTime::default());
        let compositions = Arc::new(Compositions::default());
        let pace = Arc::new(Pace::new(engine.clone()));
        let source = GenerationSource::new(
            Arc::clone(&registry),
            Arc::clone(&compositions),
            &engine,
            Arc::clone(&load_time),
            Arc::clone(&pace),
        );
        let residency =
            Residency::new(EngineDevice::new(engine.clone()), source, settings.residency);
        let spool = Arc::new(Spool::new(settings.spool));
        let (unheld, to_clean_up) = mpsc::unbounded_channel();
        let shelf = Arc::new(Shelf {
            store,
            spool: Arc::clone(&spool),
            runtime: Handle::current(),
            unheld,
            base_digest,
        });
        let changes = Arc::new(Changes::new(
            Arc::clone(&registry),
            residency.clone(),
            Arc::clone(&compositions),
            shelf,
            engine.spec().clone(),
        ));
        changes.restore().await?;
        tokio::spawn(restore::clean_up(Arc::downgrade(&changes), to_clean_up));
        Ok(Self {
            engine,
            registry,
            residency,
            compositions,
            load_time,
            pace,
            rules: RwLock::new(rules),
            spool,
            changes,
            places: Arc::new(Semaphore::new(REGISTRATIONS_MAX)),
            running: Arc::new(Semaphore::new(REGISTRATIONS_RUNNING_MAX)),
        })
    }

    /// Takes roots and the largest rank from `settings`, for what comes from now on; the rest of them is not looked at.
    pub fn set_rules(&self, settings: &AdapterSettings) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Rules::of(settings);
    }

    fn rules(&self) -> Rules {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Which names there are.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// SHA-256 of the file of the base that is served, hexadecimal.
    pub fn base_digest(&self) -> &str {
        &self.changes.shelf.base_digest
    }

    /// What a model name means to `caller`, pinned for a request; `generation` is the one that the request insists on.
    /// `None` is the plain base.
    ///
    /// # Errors
    /// Unknown names and generations; [`ServiceError::OtherBase`].
    pub fn resolve(
        &self,
        caller: &Namespace,
        model_name: &str,
        generation: Option<GenerationDigest>,
    ) -> Result<Option<PinnedAdapter>, ServiceError> {
        let alias = match generation {
            Some(generation) => self.registry.resolve_generation(caller, model_name, generation)?,
            None => match self.registry.resolve(caller, model_name)? {
                Resolution::Base => return Ok(None),
                Resolution::Adapter(alias) => alias,
            },
        };
        self.check_base(&alias)?;
        Ok(Some(PinnedAdapter::One(alias)))
    }

    /// Waits until a pinned adapter is on the device, and keeps it there. Dropping the future takes the wish back.
    ///
    /// # Errors
    /// [`ServiceError::Residency`], [`ServiceError::NotComposable`].
    pub async fn lease(&self, pinned: &PinnedAdapter) -> Result<AdapterInUse, ServiceError> {
        let in_use = AdapterInUse::lease(&self.residency, pinned.held()).await;
        let in_use = in_use.map_err(|error| pinned.refusal(error))?;
        for alias in pinned.aliases() {
            alias.n_requests.fetch_add(1, Ordering::Relaxed);
        }
        Ok(in_use)
    }

    /// Points an alias back: at the generation before, or at `to`.
    ///
    /// # Errors
    /// What the alias is instead.
    pub async fn roll_back(
        &self,
        target: Target,
        to: Option<GenerationDigest>,
        expect: Expect,
    ) -> Result<Alias, ServiceError> {
        target.must_be_open()?;
        let changes = Arc::clone(&self.changes);
        let moved = apart(async move { changes.roll_back(&target, to, expect).await }).await?;
        Ok(moved.alias)
    }

    /// Removes an alias. Its requests go on; its generations leave with the last of them.
    ///
    /// # Errors
    /// What the alias is instead.
    pub async fn remove(&self, target: Target, expect: Expect) -> Result<Alias, ServiceError> {
        target.must_be_open()?;
        let changes = Arc::clone(&self.changes);
        let moved = apart(async move { changes.remove(&target, expect).await }).await?;
        Ok(moved.alias)
    }

    /// Pins an alias: its generation, and whatever the alias will point at, stays on the device. Or lets it go again.
    ///
    /// # Errors
    /// What the alias is instead; [`ServiceError::Residency`] when there is no room for it.
    pub async fn pin(
        &self,
        target: Target,
        is_pinned: bool,
        expect: Expect,
    ) -> Result<Alias, ServiceError> {
        target.must_be_open()?;
        let (space, name) = (target.space(), target.name.clone());
        self.registry.check(&space, &name, expect)?;
        let alias = self.registry.get(&space, &name);
        let alias = alias.ok_or_else(|| RegistryError::UnknownAlias { alias: name.clone() })?;
        if is_pinned {
            self.check_base(&alias)?;
            // First, as it may take long or fail: then nothing was promised.
            let pinned = self.residency.pin(alias.generation.digest).await;
            pinned.map_err(|error| ServiceError::Residency { alias: name, error })?;
        }
        let changes = Arc::clone(&self.changes);
        let done = apart(async move { changes.pin(&target, is_pinned, expect).await }).await;
        self.changes.settle_pin(&alias, &alias.generation);
        done
    }

    /// What `caller` means by a name.
    pub fn view(&self, caller: &Namespace, name: &str) -> Option<AdapterView> {
        Some(self.view_of(caller, self.registry.visible(caller, name)?))
    }

    /// What `caller` sees of an alias of a namespace, its own or the shared one.
    pub fn view_in(
        &self,
        caller: &Namespace,
        space: &Namespace,
        name: &str,
    ) -> Option<AdapterView> {
        let alias = self.registry.get(space, name).filter(|alias| !is_hidden(&alias.name))?;
        Some(self.view_of(caller, alias))
    }

    /// All aliases that `caller` may use, by name.
    pub fn views(&self, caller: &Namespace) -> Vec<AdapterView> {
        let aliases = self.registry.list_visible(caller).into_iter();
        aliases.map(|alias| self.view_of(caller, alias)).collect()
    }

    /// The aliases of a namespace, its own or the shared one, as `caller` sees them.
    pub fn views_in(&self, caller: &Namespace, space: &Namespace) -> Vec<AdapterView> {
        let aliases = self.registry.list(space).into_iter();
        aliases.map(|alias| self.view_of(caller, alias)).collect()
    }

    /// Where a generation is now.
    pub fn tier(&self, generation: GenerationDigest) -> Tier {
        self.residency.tier(generation)
    }

    /// The tiers in numbers.
    pub fn tier_facts(&self) -> TierFacts {
        TierFacts {
            stats: self.residency.stats(),
            max_loras: self.residency.limits().max_loras,
            load_seconds: self.load_time.seconds(),
        }
    }

    /// Refuses whoever waits for an adapter and whoever comes.
    pub fn shutdown(&self) {
        self.residency.shutdown();
    }

    fn view_of(&self, caller: &Namespace, alias: Alias) -> AdapterView {
        let is_own = alias.namespace == *caller;
        let base_digest = alias.generation.other_base().unwrap_or(&self.changes.shelf.base_digest);
        AdapterView {
            tier: self.residency.tier(alias.generation.digest),
            history: self.registry.history(&alias.namespace, &alias.name),
            n_requests: is_own.then(|| alias.n_requests.load(Ordering::Relaxed)),
            base_digest: base_digest.to_owned(),
            alias,
        }
    }

    fn check_base(&self, alias: &Alias) -> Result<(), ServiceError> {
        match alias.generation.other_base() {
            None => Ok(()),
            Some(registered) => Err(ServiceError::OtherBase {
                alias: alias.name.to_string(),
                registered: registered.to_owned(),
                served: self.changes.shelf.base_digest.clone(),
            }),
        }
    }
}

/// Work that goes on when whoever asked for it has left.
async fn apart<T: Send + 'static>(
    work: impl Future<Output = Result<T, ServiceError>> + Send + 'static,
) -> Result<T, ServiceError> {
    tokio::spawn(work).await.map_err(|_| ServiceError::Panicked)?
}
