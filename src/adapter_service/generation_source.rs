//! Where the memory tiers get a generation from that is in none of them: its files.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use pleach_adapters::{
    AdapterSource, Generation, GenerationDigest, LoadedAdapter, Registry, ResidencyError,
    compose::{Part, sum},
};
use pleach_engine::{
    adapter_weights::{AdapterWeights, LORA_RANK_MAX},
    engine::EngineHandle,
    packed_adapter::{AdapterPacker, PackedAdapter},
    spec::ModelSpec,
};

use super::{
    compose::{Composed, ComposedGeneration, Compositions},
    pace::{Pace, Urgency},
};

type Failure = Box<dyn Error + Send + Sync>;

/// Reads, checks and packs.
pub(super) struct GenerationSource {
    registry: Arc<Registry>,
    compositions: Arc<Compositions>,
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

/// Whether somebody was told that what they wanted is gone. They held it, so it was said to one who had left before the load
/// began, and remembered.
pub(super) fn is_gone(error: &ResidencyError) -> bool {
    let ResidencyError::LoadFailed { reason, .. } = error else { return false };
    matches!(reason.downcast_ref(), Some(SourceError::Gone))
}

impl GenerationSource {
    pub(super) fn new(
        registry: Arc<Registry>,
        compositions: Arc<Compositions>,
        engine: &EngineHandle,
        load_time: Arc<LoadTime>,
        pace: Arc<Pace>,
    ) -> Self {
        let (spec, packer) = (engine.spec().clone(), engine.adapter_packer());
        Self { registry, compositions, spec, packer, load_time, pace }
    }

    /// Weights of a generation. Equal ones may lie in several places; one that is good is enough.
    fn read_held(&self, digest: &GenerationDigest) -> Result<AdapterWeights, Failure> {
        let mut failure: Failure = SourceError::Gone.into();
        for generation in self.registry.held(digest) {
            match self.read(&generation) {
                Ok(adapter) => return Ok(adapter.weights),
                Err(error) => {
                    let generation = &*generation;
                    tracing::warn!(?generation, %error, "an adapter's files cannot be used");
                    failure = error;
                }
            }
        }
        Err(failure)
    }

    fn read_sum(&self, composed: &Composed) -> Result<AdapterWeights, Failure> {
        let read =
            |part: &ComposedGeneration| Ok((self.read_held(&part.generation.digest)?, part.scale));
        let weights = composed.parts.iter().map(read).collect::<Result<Vec<_>, Failure>>()?;
        let parts: Vec<_> =
            weights.iter().map(|(weights, scale)| Part { weights, scale: *scale }).collect();
        Ok(sum(&parts, LORA_RANK_MAX)?)
    }

    fn read(&self, generation: &Generation) -> Result<LoadedAdapter, Failure> {
        let adapter = generation.files.load(&self.spec)?;
        if adapter.digest != generation.digest {
            return Err(SourceError::Changed { found: adapter.digest }.into());
        }
        Ok(adapter)
    }
}

impl AdapterSource for GenerationSource {
    type Packed = PackedAdapter;

    fn load(&self, digest: &GenerationDigest) -> Result<PackedAdapter, Failure> {
        let began = Instant::now();
        let packed = self.pace.run(Urgency::Wanted, || {
            let weights = match self.compositions.find(digest) {
                Some(composed) => self.read_sum(&composed)?,
                None => self.read_held(digest)?,
            };
            Ok::<_, Failure>(self.packer.pack(&weights)?)
        })?;
        self.load_time.add(began.elapsed());
        Ok(packed)
    }
}
