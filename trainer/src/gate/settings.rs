//! Thresholds.

use serde::{Deserialize, Serialize};

use crate::error::TrainerError;

/// What a candidate has to reach. Scores and their differences are in nats: per token for supervised and rated rows, of
/// whole answers for pairs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GateSettings {
    /// How often, over all looks, a candidate that is no better may pass.
    pub alpha: f64,
    /// The lower bound of the mean gain over the current generation must be above this.
    pub margin: f64,
    /// What the candidate may lose where it has not to gain: on anchors, and against the base and the best earlier
    /// generation where the current one is better than those.
    pub anchor_tolerance: f64,
    /// Divergence from the base at most, in nats per token of the candidate's own answers.
    pub kl_max: f64,
    /// The mean length of answers, by the current generation's, must be from the first to the second.
    pub length_ratio: [f64; 2],
    /// By how much the share of refusals may be above the current generation's.
    pub refusals_more_max: f64,
    /// 95th percentile of the time to answer, by the current generation's, at most.
    pub latency_ratio_max: f64,
    /// Bytes of the adapter at most; `None` is no limit.
    pub bytes_max: Option<u64>,
    /// Held-out rows at least.
    pub examples_min: usize,
    /// Groups of held-out rows at least: users, episodes.
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
    /// Whether every threshold is one.
    ///
    /// # Errors
    /// [`TrainerError::Setting`], with the name of the first that is none.
    pub fn check(&self) -> Result<(), TrainerError> {
        let from_zero = |value: f64| value.is_finite() && value >= 0.0;
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let [shortest, longest] = self.length_ratio;
        let bytes = self.bytes_max.map_or(1.0, |bytes| bytes as f64);
        let (examples, groups) = (self.examples_min as f64, self.groups_min as f64);
        let (alpha, kl, latency) = (self.alpha, self.kl_max, self.latency_ratio_max);
        let refusals = self.refusals_more_max;
        for (setting, value, is_good, expected) in [
            ("alpha", alpha, alpha > 0.0 && alpha < 0.5, "above 0 and below 0.5"),
            ("margin", self.margin, self.margin.is_finite(), "a finite number"),
            (
                "anchor_tolerance",
                self.anchor_tolerance,
                from_zero(self.anchor_tolerance),
                "at least 0",
            ),
            ("kl_max", kl, from_zero(kl), "at least 0"),
            ("length_ratio", shortest, from_zero(shortest), "at least 0"),
            (
                "length_ratio",
                longest,
                positive(longest) && longest >= shortest,
                "above 0, and the second not below the first",
            ),
            ("refusals_more_max", refusals, (0.0..=1.0).contains(&refusals), "from 0 to 1"),
            ("latency_ratio_max", latency, positive(latency), "above 0"),
            ("bytes_max", bytes, bytes > 0.0, "above 0, or null"),
            ("examples_min", examples, self.examples_min >= 2, "at least 2"),
            ("groups_min", groups, self.groups_min >= 2, "at least 2"),
        ] {
            if !is_good {
                return Err(TrainerError::Setting { setting, value, expected });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_the_policy() {
        let expected = serde_json::json!({
            "alpha": 0.05, "margin": 0.0, "anchor_tolerance": 0.05, "kl_max": 0.5, "length_ratio": [0.5, 2.0],
            "refusals_more_max": 0.05, "latency_ratio_max": 1.2, "bytes_max": null, "examples_min": 16,
            "groups_min": 2,
        });
        let defaults: GateSettings = serde_json::from_str("{}").unwrap();
        assert_eq!(serde_json::to_value(defaults).unwrap(), expected);
        assert_eq!(defaults, GateSettings::default());
        defaults.check().unwrap();
        let some: GateSettings =
            serde_json::from_str(r#"{"kl_max": 1.5, "bytes_max": 7}"#).unwrap();
        assert_eq!((some.kl_max, some.bytes_max, some.alpha), (1.5, Some(7), 0.05));
        let unknown = serde_json::from_str::<GateSettings>(r#"{"kl": 1}"#).unwrap_err();
        assert!(unknown.to_string().contains("unknown field `kl`"), "{unknown}");
    }

    #[test]
    fn bad_settings_are_named() {
        let defaults = GateSettings::default();
        for (settings, expected) in [
            (GateSettings { alpha: 0.0, ..defaults }, "alpha is 0, expected above 0 and below 0.5"),
            (
                GateSettings { alpha: f64::NAN, ..defaults },
                "alpha is NaN, expected above 0 and below 0.5",
            ),
            (
                GateSettings { margin: f64::INFINITY, ..defaults },
                "margin is inf, expected a finite number",
            ),
            (
                GateSettings { anchor_tolerance: -0.1, ..defaults },
                "anchor_tolerance is -0.1, expected at least 0",
            ),
            (GateSettings { kl_max: f64::NAN, ..defaults }, "kl_max is NaN, expected at least 0"),
            (
                GateSettings { length_ratio: [2.0, 0.5], ..defaults },
                "length_ratio is 0.5, expected above 0, and the second not below the first",
            ),
            (
                GateSettings { length_ratio: [-1.0, 0.5], ..defaults },
                "length_ratio is -1, expected at least 0",
            ),
            (
                GateSettings { refusals_more_max: 1.5, ..defaults },
                "refusals_more_max is 1.5, expected from 0 to 1",
            ),
            (
                GateSettings { latency_ratio_max: 0.0, ..defaults },
                "latency_ratio_max is 0, expected above 0",
            ),
            (
                GateSettings { bytes_max: Some(0), ..defaults },
                "bytes_max is 0, expected above 0, or null",
            ),
            (
                GateSettings { examples_min: 1, ..defaults },
                "examples_min is 1, expected at least 2",
            ),
            (GateSettings { groups_min: 1, ..defaults }, "groups_min is 1, expected at least 2"),
        ] {
            assert_eq!(settings.check().unwrap_err().to_string(), expected);
        }
    }
}
