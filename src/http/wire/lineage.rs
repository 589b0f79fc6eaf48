//! What adapters came from, and which of them learned from something.

use pleach_store::{ExampleCounts, SawGeneration};
use serde::Serialize;
use serde_json::Value;

use crate::learning::Provenance;

/// Where a generation came from.
#[derive(Clone, Debug, Serialize)]
pub struct LineageCard {
    /// Its digest.
    pub generation: String,
    /// Always `adapter.lineage`.
    pub object: &'static str,
    /// The adapter's name.
    pub adapter: String,
    /// SHA-256 of the base's file.
    pub base_digest: String,
    /// The generation that training began from; null is the plain base.
    pub parent: Option<String>,
    /// What it went on from, the parent first.
    pub ancestors: Vec<String>,
    /// The round of the learning loop that it belongs to.
    pub round: Option<String>,
    /// The job that trained it.
    pub job: Option<String>,
    /// SHA-256 of all rows that were learned from.
    pub data_sha256: Option<String>,
    /// How much the data set was made of; null when it is a file of which that is not known.
    pub examples: Option<ExamplesCard>,
    /// Method and settings.
    pub recipe: Value,
    /// Of all that was random.
    pub seed: u64,
    /// What the gate said.
    pub verdict: Option<Value>,
    /// When it was registered, seconds since 1970.
    pub created_at: i64,
    /// Whether it is still there.
    pub kept: bool,
}

/// How much a data set was made of.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ExamplesCard {
    /// Completions.
    pub completions: u64,
    /// Feedback.
    pub feedback: u64,
}

/// A generation that learned from something.
#[derive(Clone, Debug, Serialize)]
pub struct LearnedCard {
    /// Its digest.
    pub generation: String,
    /// Whether it was trained on that; if not, it went on from one that was.
    pub direct: bool,
    /// Whether it is still there.
    pub kept: bool,
}

impl LineageCard {
    /// Of a generation of this name.
    pub fn new(adapter: String, provenance: Provenance) -> Self {
        let Provenance { lineage, ancestors, examples } = provenance;
        let from = lineage.from;
        Self {
            generation: from.generation.to_string(),
            object: "adapter.lineage",
            adapter,
            base_digest: from.base_sha256,
            parent: from.parent.map(|digest| digest.to_string()),
            ancestors: ancestors.iter().map(ToString::to_string).collect(),
            round: from.round,
            job: from.job,
            data_sha256: from.data_sha256,
            examples: examples.map(ExamplesCard::from),
            recipe: from.recipe,
            seed: from.seed,
            verdict: lineage.verdict,
            created_at: lineage.created_ms / 1000,
            kept: lineage.is_kept,
        }
    }
}

impl From<ExampleCounts> for ExamplesCard {
    fn from(counts: ExampleCounts) -> Self {
        let ExampleCounts { completions, feedback } = counts;
        Self { completions, feedback }
    }
}

impl From<&SawGeneration> for LearnedCard {
    fn from(saw: &SawGeneration) -> Self {
        let generation = saw.generation.to_string();
        Self { generation, direct: saw.is_direct, kept: saw.is_kept }
    }
}
