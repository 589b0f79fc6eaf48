//! What the gate says, and in words.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

/// A check, by its stable name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckName {
    /// Enough held-out rows, and groups of them.
    Enough,
    /// Better than the generation that serves.
    GainOverCurrent,
    /// Better than the base, or no worse where the generation that serves is better than that.
    GainOverBase,
    /// The same against the best earlier generation.
    GainOverBest,
    /// No worse on trusted rows.
    Anchors,
    /// Not too far from the base.
    Kl,
    /// Answers about as long as before.
    Length,
    /// Not more refusals.
    Refusals,
    /// Not slower.
    Latency,
    /// Not too large.
    Memory,
}

impl CheckName {
    /// All of them, in the order of a verdict.
    pub const ALL: [Self; 10] = [
        Self::Enough,
        Self::GainOverCurrent,
        Self::GainOverBase,
        Self::GainOverBest,
        Self::Anchors,
        Self::Kl,
        Self::Length,
        Self::Refusals,
        Self::Latency,
        Self::Memory,
    ];

    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enough => "enough",
            Self::GainOverCurrent => "gain_over_current",
            Self::GainOverBase => "gain_over_base",
            Self::GainOverBest => "gain_over_best",
            Self::Anchors => "anchors",
            Self::Kl => "kl",
            Self::Length => "length",
            Self::Refusals => "refusals",
            Self::Latency => "latency",
            Self::Memory => "memory",
        }
    }
}

impl fmt::Display for CheckName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a value is held against.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// It must be above this.
    Above(f64),
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
    /// From the first to the second.
    Between(f64, f64),
    /// There is none.
    None,
}

impl Bound {
    /// Whether a value is within it; one that is not finite never is.
    pub fn admits(self, value: f64) -> bool {
        value.is_finite()
            && match self {
                Self::Above(bound) => value > bound,
                Self::AtLeast(bound) => value >= bound,
                Self::AtMost(bound) => value <= bound,
                Self::Between(low, high) => (low..=high).contains(&value),
                Self::None => true,
            }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Above(bound) => write!(f, "above {}", Short(*bound)),
            Self::AtLeast(bound) => write!(f, "at least {}", Short(*bound)),
            Self::AtMost(bound) => write!(f, "at most {}", Short(*bound)),
            Self::Between(low, high) => write!(f, "{} to {}", Short(*low), Short(*high)),
            Self::None => f.write_str("none"),
        }
    }
}

/// A number of at most four decimals.
pub(super) struct Short(pub(super) f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:.4}", self.0);
        let text = if text.contains('.') { text.trim_end_matches('0') } else { &text };
        let text = text.trim_end_matches('.');
        f.write_str(if text == "-0" { "0" } else { text })
    }
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckResult {
    /// Which check.
    pub name: CheckName,
    /// Whether it passed.
    pub passed: bool,
    /// What was measured; `None` where there was nothing to measure, or it is not finite.
    pub value: Option<f64>,
    /// What it was held against.
    pub bound: Bound,
    /// Both in words.
    pub message: String,
}

/// What the gate says of a candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether every check passed.
    pub passed: bool,
    /// Which look at candidates for this name it was, from 1.
    pub look: u32,
    /// What the look may spend of alpha: the level of its lower bounds.
    pub alpha: f64,
    /// In the order of [`CheckName::ALL`].
    pub checks: Vec<CheckResult>,
}

impl Verdict {
    /// What a check found.
    pub fn check(&self, name: CheckName) -> Option<&CheckResult> {
        self.checks.iter().find(|check| check.name == name)
    }

    /// Checks that did not pass.
    pub fn failed(&self) -> impl Iterator<Item = &CheckResult> {
        self.checks.iter().filter(|check| !check.passed)
    }

    /// One line: that it passed, or which checks did not and why.
    pub fn summary(&self) -> String {
        if self.passed {
            return format!("passed all {} checks", self.checks.len());
        }
        let failed: Vec<String> =
            self.failed().map(|check| format!("{}: {}", check.name, check.message)).collect();
        format!("refused: {}", failed.join("; "))
    }

    /// A section of a model card, in Markdown: a sentence and a table of all checks.
    pub fn to_markdown(&self) -> String {
        let word = if self.passed { "Passed" } else { "Refused" };
        let mut text = format!(
            "{word} at look {}; bounds hold with confidence {}.\n\n| check | passed | value | bound | in words |\n\
             |---|---|---|---|---|\n",
            self.look,
            Percent(1.0 - self.alpha)
        );
        for check in &self.checks {
            let passed = if check.passed { "yes" } else { "**no**" };
            let value =
                check.value.map_or_else(|| "–".to_owned(), |value| Short(value).to_string());
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "| `{}` | {passed} | {value} | {} | {} |",
                check.name, check.bound, check.message
            );
        }
        text
    }
}

/// A share in percent.
pub(super) struct Percent(pub(super) f64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", Short(100.0 * self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict() -> Verdict {
        let gain = CheckResult {
            name: CheckName::GainOverCurrent,
            passed: true,
            value: Some(0.123_456),
            bound: Bound::Above(0.0),
            message: "a gain".to_owned(),
        };
        let length = CheckResult {
            name: CheckName::Length,
            passed: false,
            value: None,
            bound: Bound::Between(0.5, 2.0),
            message: "no answers".to_owned(),
        };
        Verdict { passed: false, look: 2, alpha: 0.0076, checks: vec![gain, length] }
    }

    #[test]
    fn names_and_json_are_stable() {
        for name in CheckName::ALL {
            assert_eq!(serde_json::to_value(name).unwrap(), name.as_str());
        }
        let json = serde_json::json!({
            "passed": false, "look": 2, "alpha": 0.0076,
            "checks": [
                {"name": "gain_over_current", "passed": true, "value": 0.123_456, "bound": {"above": 0.0},
                 "message": "a gain"},
                {"name": "length", "passed": false, "value": null, "bound": {"between": [0.5, 2.0]},
                 "message": "no answers"},
            ],
        });
        assert_eq!(serde_json::to_value(verdict()).unwrap(), json);
        assert_eq!(serde_json::from_value::<Verdict>(json).unwrap(), verdict());
        assert_eq!(serde_json::to_value(Bound::None).unwrap(), "none");
    }

    #[test]
    fn a_card_has_every_check() {
        assert_eq!(
            verdict().to_markdown(),
            "Refused at look 2; bounds hold with confidence 99.24 %.\n\n\
             | check | passed | value | bound | in words |\n|---|---|---|---|---|\n\
             | `gain_over_current` | yes | 0.1235 | above 0 | a gain |\n\
             | `length` | **no** | – | 0.5 to 2 | no answers |\n"
        );
        assert_eq!(verdict().summary(), "refused: length: no answers");
        assert_eq!(verdict().failed().count(), 1);
        let passed = Verdict { passed: true, ..verdict() };
        assert_eq!(passed.summary(), "passed all 2 checks");
    }

    #[test]
    fn bounds_admit_what_they_say_and_nothing_that_is_not_finite() {
        for (bound, inside, outside) in [
            (Bound::Above(1.0), 1.1, 1.0),
            (Bound::AtLeast(1.0), 1.0, 0.9),
            (Bound::AtMost(1.0), 1.0, 1.1),
            (Bound::Between(1.0, 2.0), 2.0, 2.1),
            (Bound::None, -1e9, f64::NAN),
        ] {
            assert!(bound.admits(inside) && !bound.admits(outside), "{bound}");
            for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                assert!(!bound.admits(value), "{bound}");
            }
        }
        let short = |value| Short(value).to_string();
        assert_eq!([short(16.0), short(-0.000_01), short(1200.5)], ["16", "0", "1200.5"]);
    }
}
