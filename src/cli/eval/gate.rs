//! The gate's judgement, as far as rows alone carry it: what takes a serving engine is said to be not measured.

use std::fmt;

use pleach_trainer::{
    SampleScore,
    gate::{CheckName, CheckResult, Evidence, Footprint, GateSettings, RowEvidence, judge},
};
use serde::Serialize;

use super::measures::Rows;

/// Checks that a file of rows can tell.
const MEASURED: [CheckName; 4] =
    [CheckName::Enough, CheckName::GainOverCurrent, CheckName::GainOverBase, CheckName::Anchors];

/// What the gate says of an adapter.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Judgement {
    /// Whether all checks that were made passed.
    pub(super) passed: bool,
    checks: Vec<CheckResult>,
    /// Checks that take answers and times of a server.
    not_measured: Vec<CheckName>,
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the gate {}", if self.passed { "lets it pass" } else { "refuses it" })?;
        for check in &self.checks {
            let passed = if check.passed { "pass" } else { "FAIL" };
            writeln!(f, "  {passed} {:<18} {}", check.name.as_str(), check.message)?;
        }
        let others: Vec<&str> = self.not_measured.iter().map(|name| name.as_str()).collect();
        write!(f, "  not measured off-line: {}", others.join(", "))
    }
}

/// Rows under the base, which is the first of `scores`, the baseline and a candidate.
pub(super) fn rows(
    rows: &Rows<'_>,
    scores: &[Vec<SampleScore>],
    baseline: usize,
    candidate: usize,
) -> Vec<RowEvidence> {
    let row = |(index, group): (usize, &u32)| {
        let of = |subject: usize| scores[subject][index].score;
        RowEvidence {
            group: group.to_string(),
            n_targets: scores[0][index].n_targets,
            base: of(0),
            current: of(baseline),
            best: None,
            candidate: of(candidate),
        }
    };
    rows.groups.iter().enumerate().map(row).collect()
}

/// Judges as at a first look.
pub(super) fn judge_off_line(
    held_out: Vec<RowEvidence>,
    anchors: Option<Vec<RowEvidence>>,
    settings: &GateSettings,
) -> Judgement {
    let unknown = Footprint { latency_p95_s: f64::NAN, adapter_bytes: 0 };
    let evidence = Evidence {
        held_out,
        anchors,
        best_generation: None,
        probes: Vec::new(),
        candidate: unknown,
        current: unknown,
    };
    let verdict = judge(&evidence, settings, 1);
    let (checks, others): (Vec<CheckResult>, Vec<CheckResult>) =
        verdict.checks.into_iter().partition(|check| MEASURED.contains(&check.name));
    Judgement {
        passed: checks.iter().all(|check| check.passed),
        checks,
        not_measured: others.into_iter().map(|check| check.name).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(gain: f64) -> Vec<RowEvidence> {
        (0..32)
            .map(|index| RowEvidence {
                group: (index / 2).to_string(),
                n_targets: 8,
                base: -2.0,
                current: -2.0,
                best: None,
                candidate: -2.0 + gain + 0.01 * f64::from(index % 5),
            })
            .collect()
    }

    #[test]
    fn rows_alone_pass_or_fail_by_their_gain() {
        let settings = GateSettings::default();
        let good = judge_off_line(evidence(0.5), None, &settings);
        assert!(good.passed, "{good}");
        assert_eq!(good.checks.len(), MEASURED.len());
        assert!(good.to_string().contains("not measured off-line:"), "{good}");
        let bad = judge_off_line(evidence(-0.5), None, &settings);
        assert!(!bad.passed && bad.to_string().contains("FAIL gain_over_current"), "{bad}");
        let harmful = judge_off_line(evidence(0.5), Some(evidence(-0.5)), &settings);
        assert!(!harmful.passed && harmful.to_string().contains("FAIL anchors"), "{harmful}");
    }
}
