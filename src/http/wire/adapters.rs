//! Adapters as lists show them.

use std::time::{SystemTime, UNIX_EPOCH};

use pleach_adapters::{Generation, Tier};
use serde::Serialize;

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
    /// `own` or `shared`: whose name it is.
    pub owner: &'static str,
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
    /// Whether its generation stays on the device.
    pub pinned: bool,
    /// Whether it was checked against the base that is served; if not, requests for it are refused.
    pub base_matches: bool,
    /// SHA-256 of the file of the base that it was checked against.
    pub base_digest: String,
    /// When the name was made, seconds since 1970.
    pub created: u64,
    /// When the generation was made known.
    pub generation_created: u64,
    /// The base that its files name.
    pub base_model_name: Option<String>,
    /// Requests that got this adapter since the server started, by whatever generation. Null for a shared one that others
    /// use too.
    pub requests: Option<u64>,
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
    fn from(view: AdapterView) -> Self {
        let AdapterView { alias, tier, history, n_requests, base_digest } = view;
        let Generation { digest, info, created, .. } = &*alias.generation;
        Self {
            name: alias.name.to_string(),
            object: "adapter",
            owner: if alias.namespace.is_shared() { "shared" } else { "own" },
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
            pinned: alias.is_pinned,
            base_matches: alias.generation.other_base().is_none(),
            base_digest,
            created: unix_seconds(alias.created),
            generation_created: unix_seconds(*created),
            base_model_name: info.base_model_name.clone(),
            requests: n_requests,
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
