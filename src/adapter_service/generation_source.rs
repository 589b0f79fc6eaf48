//! Where the memory tiers get a generation from that is in none of them: its files.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use pleach_adapters::{AdapterSource, Generation, GenerationDigest, LoadedAdapter, Registry};
use pleach_engine::{
    engine::EngineHandle,
    packed_adapter::{AdapterPacker, PackedAdapter},
    spec::ModelSpec,
};

/// Reads, checks and packs.
pub(super) struct GenerationSource {
    registry: Arc<Registry>,
    spec: ModelSpec,
    packer: Arc<dyn AdapterPacker>,
    load_time: Arc<LoadTime>,
}

/// Time spent on loading, all loads together.
#[derive(Debug, Default)]
pub(super) struct LoadTime(AtomicU64);

impl LoadTime {
    fn add(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    pub(super) fn seconds(&self) -> f64 {
        Duration::from_nanos(self.0.load(Ordering::Relaxed)).as_secs_f64()
    }
}

/// Everybody who waits for the digest is told, in whatever namespace: no name, no place.
#[derive(Debug, thiserror::Error)]
enum SourceError {
    /// Whoever wanted it has gone, and with them the last that held it.
    #[error("the generation has been removed")]
    Gone,
    /// Somebody wrote into the files. A generation never changes, so this one cannot be had any more.
    #[error("its files have changed since they were registered: they are now generation {}", found.short())]
    Changed { found: GenerationDigest },
}

impl GenerationSource {
    pub(super) fn new(
        registry: Arc<Registry>,
        engine: &EngineHandle,
        load_time: Arc<LoadTime>,
    ) -> Self {
        Self { registry, spec: engine.spec().clone(), packer: engine.adapter_packer(), load_time }
    }

    fn read(&self, generation: &Generation) -> Result<LoadedAdapter, Box<dyn Error + Send + Sync>> {
        let adapter = generation.files.load(&self.spec)?;
        if adapter.digest != generation.digest {
            return Err(SourceError::Changed { found: adapter.digest }.into());
        }
        Ok(adapter)
    }
}

impl AdapterSource for GenerationSource {
    type Packed = PackedAdapter;

    fn load(
        &self,
        digest: &GenerationDigest,
    ) -> Result<PackedAdapter, Box<dyn Error + Send + Sync>> {
        let began = Instant::now();
        let mut failure: Box<dyn Error + Send + Sync> = SourceError::Gone.into();
        // Equal weights may lie in several places; one that is good is enough.
        for generation in self.registry.held(digest) {
            match self.read(&generation) {
                Ok(adapter) => {
                    let packed = self.packer.pack(&adapter.weights)?;
                    self.load_time.add(began.elapsed());
                    return Ok(packed);
                }
                Err(error) => {
                    let generation = &*generation;
                    tracing::warn!(?generation, %error, "an adapter's files cannot be used");
                    failure = error;
                }
            }
        }
        Err(failure)
    }
}
