//! Where the memory tiers get a generation from that is in none of them: its folder.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use pleach_adapters::{AdapterSource, GenerationDigest, Registry, load_peft};
use pleach_engine::{
    engine::EngineHandle,
    packed_adapter::{AdapterPacker, PackedAdapter},
    spec::ModelSpec,
};

use super::pace::{Pace, Urgency};

/// Reads, checks and packs.
pub(super) struct FolderSource {
    registry: Arc<Registry>,
    spec: ModelSpec,
    packer: Arc<dyn AdapterPacker>,
    load_time: Arc<LoadTime>,
    pace: Arc<Pace>,
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

impl FolderSource {
    pub(super) fn new(
        registry: Arc<Registry>,
        engine: &EngineHandle,
        load_time: Arc<LoadTime>,
        pace: Arc<Pace>,
    ) -> Self {
        let (spec, packer) = (engine.spec().clone(), engine.adapter_packer());
        Self { registry, spec, packer, load_time, pace }
    }
}

#[derive(Debug, thiserror::Error)]
enum SourceError {
    /// Whoever wanted it has gone, and with them the last that held it.
    #[error("the generation has been removed")]
    Gone,
    /// Somebody wrote into the folder. A generation never changes, so this one cannot be had any more.
    #[error("its files have changed since they were registered: they are now generation {}", found.short())]
    Changed { found: GenerationDigest },
}

impl AdapterSource for FolderSource {
    type Packed = PackedAdapter;

    fn load(
        &self,
        digest: &GenerationDigest,
    ) -> Result<PackedAdapter, Box<dyn Error + Send + Sync>> {
        let began = Instant::now();
        let generation = self.registry.find(digest).ok_or(SourceError::Gone)?;
        let packed = self.pace.run(Urgency::Wanted, || {
            let adapter = load_peft(generation.files.folder(), &self.spec)?;
            if adapter.digest != *digest {
                return Err(SourceError::Changed { found: adapter.digest }.into());
            }
            Ok::<_, Box<dyn Error + Send + Sync>>(self.packer.pack(&adapter.weights)?)
        })?;
        self.load_time.add(began.elapsed());
        Ok(packed)
    }
}
