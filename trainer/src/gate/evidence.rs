//! What is known of a candidate. Numbers that are missing where they are written (JSON has no NaN) are read as NaN, which
//! passes nothing.

use serde::{Deserialize, Deserializer, Serialize};

/// Reads `null`, as what is not finite is written, as NaN.
fn or_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// One row under every generation that is compared. Scores are those of [`crate::SampleScore::score`]: larger is better,
/// in nats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowEvidence {
    /// Rows of equal names hang together: a user, an episode.
    pub group: String,
    /// Tokens that the score is about.
    pub n_targets: usize,
    /// Score under the base alone.
    #[serde(deserialize_with = "or_nan")]
    pub base: f64,
    /// Score under the generation that serves now; the base's where none does.
    #[serde(deserialize_with = "or_nan")]
    pub current: f64,
    /// Score under the best earlier generation; must be there if [`Evidence::best_generation`] is.
    #[serde(default)]
    pub best: Option<f64>,
    /// Score under an adapter that did not learn from the row: of a held-out row that of its fold, of an anchor the
    /// candidate itself.
    #[serde(deserialize_with = "or_nan")]
    pub candidate: f64,
}

/// An answer to a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeAnswer {
    /// Its tokens.
    pub n_tokens: usize,
    /// Whether it refuses to answer.
    pub is_refusal: bool,
}

/// Answers to one prompt.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeEvidence {
    /// Sampled from the candidate at temperature 1, or the divergence is another's.
    pub candidate: ProbeAnswer,
    /// From the generation that serves now.
    pub current: ProbeAnswer,
    /// Log-probability of the candidate's answer under the candidate: the sum over its tokens, in nats.
    #[serde(deserialize_with = "or_nan")]
    pub candidate_logp: f64,
    /// The same answer's under the base.
    #[serde(deserialize_with = "or_nan")]
    pub base_logp: f64,
}

/// What serving a generation takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Footprint {
    /// 95th percentile of the time to answer a probe, seconds.
    #[serde(deserialize_with = "or_nan")]
    pub latency_p95_s: f64,
    /// Bytes of the adapter on the device; 0 for the base.
    pub adapter_bytes: u64,
}

/// All that a candidate is judged by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// Rows that were held out from what scored them.
    pub held_out: Vec<RowEvidence>,
    /// Trusted rows; `None` if the owner named none.
    #[serde(default)]
    pub anchors: Option<Vec<RowEvidence>>,
    /// The best earlier generation, by digest; `None` if there is none but the current one.
    #[serde(default)]
    pub best_generation: Option<String>,
    /// Answers to probes.
    pub probes: Vec<ProbeEvidence>,
    /// Of the candidate.
    pub candidate: Footprint,
    /// Of the generation that serves now; the base's where none does.
    pub current: Footprint,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_stays_so_when_it_is_kept() {
        let row = RowEvidence {
            group: "u".to_owned(),
            n_targets: 3,
            base: f64::NAN,
            current: -1.5,
            best: None,
            candidate: f64::INFINITY,
        };
        let text = serde_json::to_string(&row).unwrap();
        let read: RowEvidence = serde_json::from_str(&text).unwrap();
        assert!(read.base.is_nan() && read.candidate.is_nan());
        assert_eq!((read.current, read.best, read.n_targets), (-1.5, None, 3));
        let missing = serde_json::from_str::<RowEvidence>(r#"{"group": "u", "n_targets": 1}"#);
        assert!(missing.unwrap_err().to_string().contains("base"));
    }
}
