//! Adapters while the server runs: registered, replaced, removed, and brought to the device for the requests that want
//! them.
//!
//! ```text
//! HTTP ──> AdapterService ──> registry   which names there are, and what each points at
//!                        ├──> residency  where weights are: folder, host memory, device
//!                        └──> spool      our own copies of what came at run time
//! ```
//!
//! A request resolves its name to a [`PinnedAdapter`] and asks for it with [`AdapterService::lease`]; what it then holds
//! until its sequences have ended is an [`AdapterInUse`]. Everything that reads, parses or packs runs on blocking
//! threads; a cold adapter delays its own requests only.

mod device;
mod error;
mod folder_source;
mod in_use;
mod pace;
mod register;
mod roots;
mod spool;

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use pleach_adapters::{
    Alias, Expect, Generation, GenerationDigest, Moved, Registry, RegistryError, Residency,
    ResidencyConfig, ResidencyError, Resolution, Tier,
};
use pleach_engine::{adapter_weights::LORA_RANK_MAX, engine::EngineHandle};
use tokio::sync::Semaphore;

use crate::telemetry::TierFacts;

use device::EngineDevice;
pub use error::ServiceError;
use folder_source::{FolderSource, LoadTime};
pub use in_use::{AdapterInUse, PinnedAdapter};
use pace::Pace;
pub use roots::{AllowedRoots, RootError};
use spool::Spool;
pub use spool::{IncomingFile, SpoolFolder};

/// Most registrations that wait or run; one more is refused.
const REGISTRATIONS_MAX: usize = 64;
/// Registrations at a time: each holds a whole adapter as f32.
const REGISTRATIONS_RUNNING_MAX: usize = 2;

/// The service's tiers.
type Tiers = Residency<EngineDevice, FolderSource>;

/// How a service behaves.
#[derive(Clone, Debug)]
pub struct AdapterSettings {
    /// Below which folders adapters may be loaded by path.
    pub roots: AllowedRoots,
    /// Largest rank that is taken.
    pub rank_max: usize,
    /// Memory tiers.
    pub residency: ResidencyConfig,
    /// Where copies of what comes at run time are kept while the server runs; made when it is first needed.
    pub spool: PathBuf,
}

impl Default for AdapterSettings {
    /// No roots, every rank, copies among the system's temporary files.
    fn default() -> Self {
        Self {
            roots: AllowedRoots::default(),
            rank_max: LORA_RANK_MAX,
            residency: ResidencyConfig::default(),
            spool: std::env::temp_dir().join("pleach-adapters"),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct AdapterService {
    engine: EngineHandle,
    registry: Arc<Registry>,
    residency: Tiers,
    load_time: Arc<LoadTime>,
    pace: Arc<Pace>,
    roots: AllowedRoots,
    rank_max: usize,
    spool: Arc<Spool>,
    /// Places for registrations, waiting ones included.
    places: Semaphore,
    running: Semaphore,
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
}

impl AdapterService {
    /// A service without adapters for a base that answers to `base_names`.
    ///
    /// # Errors
    /// When a base name cannot be one.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(
        engine: EngineHandle,
        base_names: Vec<String>,
        settings: AdapterSettings,
    ) -> Result<Self, RegistryError> {
        let registry = Arc::new(Registry::new(base_names)?);
        let load_time = Arc::new(LoadTime::default());
        let pace = Arc::new(Pace::new(engine.clone()));
        let source = FolderSource::new(
            Arc::clone(&registry),
            &engine,
            Arc::clone(&load_time),
            Arc::clone(&pace),
        );
        let residency =
            Residency::new(EngineDevice::new(engine.clone()), source, settings.residency);
        Ok(Self {
            engine,
            registry,
            residency,
            load_time,
            pace,
            roots: settings.roots,
            rank_max: settings.rank_max.min(LORA_RANK_MAX),
            spool: Arc::new(Spool::new(settings.spool)),
            places: Semaphore::new(REGISTRATIONS_MAX),
            running: Semaphore::new(REGISTRATIONS_RUNNING_MAX),
        })
    }

    /// Which names there are.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What a model name means, pinned for a request; `generation` is the one that the request insists on. `None` is the
    /// plain base.
    ///
    /// # Errors
    /// Unknown names and generations.
    pub fn resolve(
        &self,
        model_name: &str,
        generation: Option<GenerationDigest>,
    ) -> Result<Option<PinnedAdapter>, RegistryError> {
        let alias = match generation {
            Some(generation) => self.registry.resolve_generation(model_name, generation)?,
            None => match self.registry.resolve(model_name)? {
                Resolution::Base => return Ok(None),
                Resolution::Adapter(alias) => alias,
            },
        };
        Ok(Some(PinnedAdapter { alias }))
    }

    /// Waits until a pinned adapter is on the device, and keeps it there. Dropping the future takes the wish back.
    ///
    /// # Errors
    /// [`ResidencyError`].
    pub async fn lease(&self, pinned: &PinnedAdapter) -> Result<AdapterInUse, ResidencyError> {
        let in_use = AdapterInUse::lease(&self.residency, &pinned.alias.generation).await?;
        pinned.alias.n_requests.fetch_add(1, Ordering::Relaxed);
        Ok(in_use)
    }

    /// Points an alias back: at the generation before, or at `to`.
    ///
    /// # Errors
    /// What the alias is instead.
    pub fn roll_back(
        &self,
        name: &str,
        to: Option<GenerationDigest>,
        expect: Expect,
    ) -> Result<Alias, RegistryError> {
        let moved = self.registry.roll_back(name, to, expect)?;
        self.residency.prefetch(moved.alias.generation.digest);
        Ok(self.finish(moved))
    }

    /// Removes an alias. Its requests go on; its generations leave with the last of them.
    ///
    /// # Errors
    /// What the alias is instead.
    pub fn remove(&self, name: &str, expect: Expect) -> Result<Alias, RegistryError> {
        let moved = self.registry.remove(name, expect)?;
        Ok(self.finish(moved))
    }

    /// One alias.
    pub fn view(&self, name: &str) -> Option<AdapterView> {
        Some(self.view_of(self.registry.get(name)?))
    }

    /// All aliases, by name.
    pub fn views(&self) -> Vec<AdapterView> {
        self.registry.list().into_iter().map(|alias| self.view_of(alias)).collect()
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

    fn view_of(&self, alias: Alias) -> AdapterView {
        AdapterView {
            tier: self.residency.tier(alias.generation.digest),
            history: self.registry.history(&alias.name),
            alias,
        }
    }

    /// What no alias points at any more needs no memory.
    fn finish(&self, moved: Moved) -> Alias {
        // Asked again: another change may have taken it up meanwhile.
        if let Some(left) = moved.retired.filter(|left| left.is_retired()) {
            self.residency.forget(left.digest);
        }
        moved.alias
    }
}
