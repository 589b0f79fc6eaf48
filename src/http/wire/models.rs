//! Model cards.

use serde::Serialize;

/// `GET /v1/models`.
#[derive(Clone, Debug, Serialize)]
pub struct ModelList {
    /// Always `list`.
    pub object: &'static str,
    /// Bases first, then adapters by name.
    pub data: Vec<ModelCard>,
}

/// A base or an adapter, as vLLM describes it.
#[derive(Clone, Debug, Serialize)]
pub struct ModelCard {
    /// What requests put into `model`.
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    /// When it was loaded, seconds since 1970.
    pub created: u64,
    /// Always `pleach`.
    pub owned_by: &'static str,
    /// The name itself: paths of the server are nobody's business.
    pub root: String,
    /// The base of an adapter.
    pub parent: Option<String>,
    /// Context of a base, tokens.
    pub max_model_len: Option<usize>,
    /// One entry that allows everything but fine-tuning.
    pub permission: [ModelPermission; 1],
    /// Digest of an adapter's generation.
    pub pleach_generation: Option<String>,
}

/// The deprecated permission object that some clients still read.
#[derive(Clone, Debug, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "the shape is OpenAI's")]
pub struct ModelPermission {
    /// Made from the model's name.
    pub id: String,
    /// Always `model_permission`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// Always false.
    pub allow_create_engine: bool,
    /// Always true.
    pub allow_sampling: bool,
    /// Always true.
    pub allow_logprobs: bool,
    /// Always false.
    pub allow_search_indices: bool,
    /// Always true.
    pub allow_view: bool,
    /// Always false.
    pub allow_fine_tuning: bool,
    /// Always `*`.
    pub organization: &'static str,
    /// Always null.
    pub group: Option<String>,
    /// Always false.
    pub is_blocking: bool,
}

impl ModelPermission {
    /// The permission of one model.
    pub fn new(id: &str, created: u64) -> Self {
        Self {
            id: format!("modelperm-{id}"),
            object: "model_permission",
            created,
            allow_create_engine: false,
            allow_sampling: true,
            allow_logprobs: true,
            allow_search_indices: false,
            allow_view: true,
            allow_fine_tuning: false,
            organization: "*",
            group: None,
            is_blocking: false,
        }
    }
}
