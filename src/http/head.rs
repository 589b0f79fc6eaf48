//! What every body and every chunk of one response repeats.

use super::{
    ids,
    state::{AppState, Model},
    wire::parts::PartCard,
};
use crate::telemetry::unix_time;

/// Which response it is, of what model.
#[derive(Debug)]
pub struct Head {
    /// The endpoint's prefix and digits of [`ids::ordered`].
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The name that was asked for.
    pub model: String,
    /// Short digest of the base.
    pub fingerprint: String,
    /// Digest of the adapter's generation; absent for the plain base.
    pub generation: Option<String>,
    /// The adapters that were summed, if the request named several.
    pub adapters: Option<Vec<PartCard>>,
}

impl Head {
    /// The head of a response that begins now.
    pub fn new(prefix: &str, state: &AppState, model: &Model) -> Self {
        let parts = || model.parts.iter().map(PartCard::from).collect();
        Self {
            id: ids::ordered(prefix),
            created: unix_time().as_secs(),
            model: model.name.clone(),
            fingerprint: state.base.fingerprint.clone(),
            generation: model.generation_hex(),
            adapters: (!model.parts.is_empty()).then(parts),
        }
    }
}
