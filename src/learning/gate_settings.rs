//! What a candidate has to be like: stands in for the gate's own settings until they are merged.

use serde::{Deserialize, Serialize};

/// Thresholds of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GateSettings {
    /// Chance that is taken of letting through what is no better.
    pub alpha: f64,
    /// By so much it has to be better than the current generation.
    pub margin: f64,
    /// So much worse it may be on anchors.
    pub anchor_tolerance: f64,
    /// Largest divergence from the base.
    pub kl_max: f64,
    /// Least and largest ratio of mean answer lengths.
    pub length_ratio: [f64; 2],
    /// So much larger may the share of refusals be.
    pub refusals_more_max: f64,
    /// Largest ratio of latencies.
    pub latency_ratio_max: f64,
    /// Most bytes of an adapter.
    pub bytes_max: Option<u64>,
    /// Least rows.
    pub examples_min: usize,
    /// Least groups.
    pub groups_min: usize,
}

impl Default for GateSettings {
    fn default() -> Self {
        Self {
            alpha: 0.05,
            margin: 0.0,
            anchor_tolerance: 0.05,
            kl_max: 0.5,
            length_ratio: [0.5, 2.0],
            refusals_more_max: 0.05,
            latency_ratio_max: 1.2,
            bytes_max: None,
            examples_min: 16,
            groups_min: 2,
        }
    }
}

impl GateSettings {
    /// Checks all ranges.
    ///
    /// # Errors
    /// The first field that is out of its own, and why.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let is_share = self.alpha > 0.0 && self.alpha < 1.0;
        if is_share { Ok(()) } else { Err(("alpha", "it has to be between 0 and 1".to_owned())) }
    }
}
