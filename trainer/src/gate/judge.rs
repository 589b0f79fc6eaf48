//! From evidence to a verdict: a pure function.

use super::{
    alpha::alpha_of_look,
    evidence::{Evidence, ProbeEvidence, RowEvidence},
    settings::GateSettings,
    statistics::{GroupMean, mean_of_groups},
    verdict::{Bound, CheckName, CheckResult, Percent, Short, Verdict},
};

/// Judges a candidate. `look` counts the candidates for this name that were looked at, this one included, so it begins
/// with 1; the settings should have been checked ([`GateSettings::check`]).
pub fn judge(evidence: &Evidence, settings: &GateSettings, look: u32) -> Verdict {
    let look = look.max(1);
    let alpha = alpha_of_look(settings.alpha, look);
    let gains = Gains { rows: &evidence.held_out, settings, alpha };
    let checks = vec![
        enough(&evidence.held_out, settings),
        gains.over_current(),
        gains.over_other(CheckName::GainOverBase, "the base", |row| row.base),
        match evidence.best_generation {
            Some(_) => {
                gains.over_other(CheckName::GainOverBest, "the best earlier generation", |row| {
                    row.best.unwrap_or(f64::NAN)
                })
            }
            None => {
                without(CheckName::GainOverBest, "there is no earlier generation to compare with")
            }
        },
        match &evidence.anchors {
            Some(rows) => anchors(rows, settings, alpha),
            None => without(CheckName::Anchors, "no trusted rows were named"),
        },
        kl(&evidence.probes, settings),
        length(&evidence.probes, settings),
        refusals(&evidence.probes, settings),
        latency(evidence, settings),
        memory(evidence, settings),
    ];
    Verdict { passed: checks.iter().all(|check| check.passed), look, alpha, checks }
}

/// A check of a value against its bound.
fn check(name: CheckName, value: f64, bound: Bound, message: String) -> CheckResult {
    let passed = bound.admits(value);
    CheckResult {
        name,
        passed,
        value: Some(value).filter(|value| value.is_finite()),
        bound,
        message,
    }
}

/// A check that is about something that this name does not have.
fn without(name: CheckName, message: &str) -> CheckResult {
    let message = message.to_owned();
    CheckResult { name, passed: true, value: None, bound: Bound::None, message }
}

fn enough(rows: &[RowEvidence], settings: &GateSettings) -> CheckResult {
    let n_groups = mean_of_groups(rows.iter().map(|row| (&row.group, 0.0))).n_groups;
    let (least, groups) = (settings.examples_min, settings.groups_min);
    let n_rows = rows.len();
    let message = format!(
        "{n_rows} held-out rows of {n_groups} groups, at least {least} of {groups} are needed"
    );
    let (value, bound) =
        if n_rows >= least && n_groups < groups { (n_groups, groups) } else { (n_rows, least) };
    check(CheckName::Enough, value as f64, Bound::AtLeast(bound as f64), message)
}

/// Mean of the paired differences of two scores of every row, in one order of summing whatever that of the rows.
fn paired(
    rows: &[RowEvidence],
    first: impl Fn(&RowEvidence) -> f64,
    second: impl Fn(&RowEvidence) -> f64,
) -> GroupMean {
    mean_of_groups(rows.iter().map(|row| (row.group.as_str(), first(row) - second(row))))
}

/// A difference's mean and lower bound in words, or which row spoils it.
fn words(
    rows: &[RowEvidence],
    difference: GroupMean,
    alpha: f64,
    than: &str,
    other: impl Fn(&RowEvidence) -> f64,
) -> String {
    let spoiled = |row: &RowEvidence| !(row.candidate.is_finite() && other(row).is_finite());
    if let Some(index) = rows.iter().position(spoiled) {
        return format!(
            "row {index} has no finite score under the candidate or {than}; of {} rows {} are so",
            rows.len(),
            rows.iter().filter(|row| spoiled(row)).count()
        );
    }
    if difference.n_groups < 2 {
        return format!("{} groups: no bound can be computed", difference.n_groups);
    }
    format!(
        "mean gain over {than} {} nats over {} rows of {} groups; above {} with confidence {}",
        Short(difference.mean),
        difference.n_rows,
        difference.n_groups,
        Short(difference.lower_bound(alpha)),
        Percent(1.0 - alpha)
    )
}

/// Gains on held-out rows.
struct Gains<'a> {
    rows: &'a [RowEvidence],
    settings: &'a GateSettings,
    alpha: f64,
}

impl Gains<'_> {
    fn over_current(&self) -> CheckResult {
        let bound = Bound::Above(self.settings.margin);
        let (name, than) = (CheckName::GainOverCurrent, "the current generation");
        self.over(name, than, bound, |row| row.current)
    }

    /// Over one that does not serve. Where the current generation is better than that on these rows, a gain over the
    /// current one is what counts, and here a loss within the tolerance is allowed for what the two comparisons differ
    /// by; where it is not, the candidate has to beat that one by itself.
    fn over_other(
        &self,
        name: CheckName,
        than: &str,
        other: impl Fn(&RowEvidence) -> f64,
    ) -> CheckResult {
        let current_gain = paired(self.rows, |row| row.current, &other).mean;
        let bound = if current_gain > 0.0 {
            Bound::Above(-self.settings.anchor_tolerance)
        } else {
            Bound::Above(self.settings.margin)
        };
        self.over(name, than, bound, other)
    }

    fn over(
        &self,
        name: CheckName,
        than: &str,
        bound: Bound,
        other: impl Fn(&RowEvidence) -> f64,
    ) -> CheckResult {
        let difference = paired(self.rows, |row| row.candidate, &other);
        let message = words(self.rows, difference, self.alpha, than, other);
        check(name, difference.lower_bound(self.alpha), bound, message)
    }
}

fn anchors(rows: &[RowEvidence], settings: &GateSettings, alpha: f64) -> CheckResult {
    let difference = paired(rows, |row| row.candidate, |row| row.current);
    let than = "the current generation";
    let message = words(rows, difference, alpha, than, |row| row.current);
    let bound = Bound::Above(-settings.anchor_tolerance);
    check(CheckName::Anchors, difference.lower_bound(alpha), bound, message)
}

/// The divergence KL(candidate ‖ base), estimated from the candidate's own answers: the mean over their tokens of
/// `ln p(candidate) − ln p(base)`.
fn kl(probes: &[ProbeEvidence], settings: &GateSettings) -> CheckResult {
    let tokens: usize = probes.iter().map(|probe| probe.candidate.n_tokens).sum();
    let sum: f64 = probes.iter().map(|probe| probe.candidate_logp - probe.base_logp).sum();
    let value = sum / tokens as f64;
    let message = if tokens == 0 {
        "the candidate answered no probe with any token".to_owned()
    } else if value.is_finite() {
        format!("{} nats per token of {} answers, {tokens} tokens", Short(value), probes.len())
    } else {
        "a log-probability of an answer is not finite".to_owned()
    };
    check(CheckName::Kl, value, Bound::AtMost(settings.kl_max), message)
}

fn length(probes: &[ProbeEvidence], settings: &GateSettings) -> CheckResult {
    let n = probes.len() as f64;
    let mean = |of: fn(&ProbeEvidence) -> usize| probes.iter().map(of).sum::<usize>() as f64 / n;
    let candidate = mean(|probe| probe.candidate.n_tokens);
    let current = mean(|probe| probe.current.n_tokens);
    let value = candidate / current;
    let message = if probes.is_empty() {
        "there are no answers to probes".to_owned()
    } else {
        let (candidate, current) = (Short(candidate), Short(current));
        format!("answers of {candidate} tokens in the mean, the current generation's of {current}")
    };
    let [shortest, longest] = settings.length_ratio;
    check(CheckName::Length, value, Bound::Between(shortest, longest), message)
}

fn refusals(probes: &[ProbeEvidence], settings: &GateSettings) -> CheckResult {
    let n = probes.len();
    let candidate = probes.iter().filter(|probe| probe.candidate.is_refusal).count();
    let current = probes.iter().filter(|probe| probe.current.is_refusal).count();
    let value = (candidate as f64 - current as f64) / n as f64;
    let message = if n == 0 {
        "there are no answers to probes".to_owned()
    } else {
        format!("{candidate} of {n} answers refuse, of the current generation's {current}")
    };
    check(CheckName::Refusals, value, Bound::AtMost(settings.refusals_more_max), message)
}

fn latency(evidence: &Evidence, settings: &GateSettings) -> CheckResult {
    let (candidate, current) = (evidence.candidate.latency_p95_s, evidence.current.latency_p95_s);
    // Beside an endless time any other is short.
    let is_measured = [candidate, current].iter().all(|time| time.is_finite() && *time > 0.0);
    let value = if is_measured { candidate / current } else { f64::NAN };
    let message = if value.is_finite() {
        let (candidate, current) = (Short(candidate), Short(current));
        format!("95 % of answers within {candidate} s, the current generation's within {current} s")
    } else {
        "no times were measured".to_owned()
    };
    check(CheckName::Latency, value, Bound::AtMost(settings.latency_ratio_max), message)
}

fn memory(evidence: &Evidence, settings: &GateSettings) -> CheckResult {
    let (candidate, current) = (evidence.candidate.adapter_bytes, evidence.current.adapter_bytes);
    let bound = settings.bytes_max.map_or(Bound::None, |bytes| Bound::AtMost(bytes as f64));
    let message = format!("{candidate} bytes, the current generation's {current}");
    check(CheckName::Memory, candidate as f64, bound, message)
}
