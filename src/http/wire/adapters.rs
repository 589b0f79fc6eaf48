//! Adapters as lists show them.

use std::time::{SystemTime, UNIX_EPOCH};

use pleach_adapters::{Generation, Tier};
use serde::Serialize;
use std::sync::atomic::Ordering;

use crate::adapter_service::AdapterView;

/// `GET /v1/adapters`.
#[derive(Clone, Debug, Serialize)]
pub struct AdapterList {
    /// Always `list`.
    pub object: &'static str,
    /// By name.
    pub data: Vec<AdapterCard>,
}

/// An adapter: its name, what that points at, and what it pointed at before. Never a path.
#[derive(Clone, Debug, Serialize)]
pub struct AdapterCard {
    /// What requests put into `model`.
    pub name: String,
    /// Always `adapter`.
    pub object: &'static str,
    /// Digest of its generation.
    pub generation: String,
    /// Largest rank.
    pub rank: usize,
    /// Which linears it acts on.
    pub target_modules: Vec<&'static str>,
    /// Weights.
    pub parameters: usize,
    /// Bytes of its tensors in their file.
    pub bytes: u64,
    /// `device`, `host` or `disk`.
    pub tier: &'static str,
    /// When the name was made, seconds since 1970.
    pub created: u64,
    /// When the generation was made known.
    pub generation_created: u64,
    /// The base that its files name.
    pub base_model_name: Option<String>,
    /// Requests that got this adapter, by whatever generation.
    pub requests: u64,
    /// Earlier generations, the last first.
    pub history: Vec<EarlierGeneration>,
}

/// What a name pointed at before.
#[derive(Clone, Debug, Serialize)]
pub struct EarlierGeneration {
    /// Its digest.
    pub generation: String,
    /// When it was made known, seconds since 1970.
    pub created: u64,
}

/// `DELETE /v1/adapters/{name}`.
#[derive(Clone, Debug, Serialize)]
pub struct AdapterDeleted {
    /// The name.
    pub name: String,
    /// Always `adapter`.
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
    /// What it pointed at.
    pub generation: String,
}

impl From<AdapterView> for AdapterCard {
    fn from(AdapterView { alias, tier, history }: AdapterView) -> Self {
        let Generation { digest, info, created, .. } = &*alias.generation;
        Self {
            name: alias.name.to_string(),
            object: "adapter",
            generation: digest.to_string(),
            rank: info.rank_max,
            target_modules: info.target_modules.iter().map(|module| module.name()).collect(),
            parameters: info.n_parameters,
            bytes: info.tensor_bytes,
            tier: match tier {
                Tier::Device => "device",
                Tier::Host => "host",
                Tier::Disk => "disk",
            },
            created: unix_seconds(alias.created),
            generation_created: unix_seconds(*created),
            base_model_name: info.base_model_name.clone(),
            requests: alias.n_requests.load(Ordering::Relaxed),
            history: history
                .iter()
                .map(|generation| EarlierGeneration {
                    generation: generation.digest.to_string(),
                    created: unix_seconds(generation.created),
                })
                .collect(),
        }
    }
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
