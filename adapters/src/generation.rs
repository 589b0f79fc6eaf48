//! One resident, immutable adapter.

use std::sync::Arc;

use pleach_engine::{engine::AdapterLease, site::TargetModule};

use crate::{digest::GenerationDigest, peft::LoadedAdapter};

/// What is worth telling about a generation once its weights are on the device.
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

/// One immutable set of adapter weights and settings, resident as long as its lease lives.
///
/// Held by every alias that points at it and by every request that resolved to it: a sequence ends on the generation
/// it began with, wherever the alias points by then. `L` is the engine's lease; tests use a lease of their own.
#[derive(Debug)]
pub struct Generation<L = AdapterLease> {
    /// Its name.
    pub digest: GenerationDigest,
    /// The alias under which it was first loaded; for logs.
    pub loaded_as: String,
    /// Keeps it on the device.
    pub lease: L,
    /// For listings.
    pub info: GenerationInfo,
}

impl<L> Generation<L> {
    /// The generation of a loaded adapter whose weights the engine has taken.
    pub fn new(loaded_as: impl Into<String>, adapter: &LoadedAdapter, lease: L) -> Arc<Self> {
        Arc::new(Self {
            digest: adapter.digest,
            loaded_as: loaded_as.into(),
            lease,
            info: adapter.into(),
        })
    }
}
