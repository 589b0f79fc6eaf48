//! From measures to findings: one check a paragraph, thresholds from the settings.

use super::{DataReport, Finding, Level, ReportSettings};

/// All findings, the worst first.
pub(super) fn of(report: &DataReport, settings: &ReportSettings) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    size(report, settings, &mut findings);
    repetition(report, settings, &mut findings);
    judgements(report, settings, &mut findings);
    encoding(report, settings, &mut findings);
    answers(report, settings, &mut findings);
    findings.0.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    findings.0
}

struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, level: Level, check: &'static str, message: String) {
        self.0.push(Finding { level, check, message });
    }

    /// A finding if `n` of `of` is more than the share that warns; a failure from the other share on.
    fn share(
        &mut self,
        check: &'static str,
        n: u64,
        of: u64,
        (warn, fail): (f64, f64),
        what: &str,
    ) {
        if n == 0 || of == 0 {
            return;
        }
        let share = n as f64 / of as f64;
        let level = match share {
            share if share >= fail => Level::Fail,
            share if share > warn => Level::Warn,
            _ => Level::Note,
        };
        self.add(level, check, format!("{n} of {of} {what} ({:.1} %)", share * 100.0));
    }
}

/// A share that no share reaches.
const NEVER: f64 = f64::INFINITY;

fn size(report: &DataReport, settings: &ReportSettings, findings: &mut Findings) {
    let n_rows = report.rows;
    if n_rows < settings.rows_fail_below {
        let message = format!("{n_rows} rows, at least {} are needed", settings.rows_fail_below);
        findings.add(Level::Fail, "rows", message);
    } else if n_rows < settings.rows_warn_below {
        let message = format!("{n_rows} rows; {} or more are advised", settings.rows_warn_below);
        findings.add(Level::Warn, "rows", message);
    }
    if report.encoding.records == 0 {
        findings.add(Level::Fail, "records", "nothing is left to learn from".to_owned());
    }
    if !report.ignored_fields.is_empty() {
        let names: Vec<String> =
            report.ignored_fields.iter().map(|(name, n)| format!("{name} ({n} rows)")).collect();
        findings.add(Level::Note, "ignored_fields", format!("not read: {}", names.join(", ")));
    }
}

fn repetition(report: &DataReport, settings: &ReportSettings, findings: &mut Findings) {
    let exact = (settings.duplicates_warn, settings.duplicates_fail);
    findings.share(
        "duplicates",
        report.duplicates,
        report.rows,
        exact,
        "rows repeat an earlier one",
    );
    let near = (settings.near_duplicates_warn, NEVER);
    let what = "rows nearly repeat an earlier one";
    findings.share("near_duplicates", report.near_duplicates, report.rows, near, what);
    let overlap = (settings.overlap_warn, settings.overlap_fail);
    let what = "validation rows are, or nearly are, training rows";
    findings.share("overlap", report.overlap, report.validation_rows, overlap, what);
}

fn judgements(report: &DataReport, settings: &ReportSettings, findings: &mut Findings) {
    let most = report.classes.iter().max_by_key(|(_, n)| **n);
    let least = report.classes.iter().min_by_key(|(_, n)| **n);
    if let (Some((most, n_most)), Some((least, n_least))) = (most, least) {
        if report.classes.len() == 1 {
            let message = format!("all rows are of one class: {most:?}");
            findings.add(Level::Fail, "class_balance", message);
        } else if *n_most as f64 > settings.imbalance_warn * *n_least as f64 {
            let message = format!(
                "{n_most} rows of {most:?} against {n_least} of {least:?}; more than {}:1 needs class weights",
                settings.imbalance_warn
            );
            findings.add(Level::Warn, "class_balance", message);
        }
    }
    let limit = settings.longer_preferred_warn;
    if let Some(share) =
        report.longer_preferred.filter(|share| !(1.0 - limit..=limit).contains(share))
    {
        let message = format!(
            "the better answer is the longer one in {:.0} % of the pairs: length may be what is learned",
            share * 100.0
        );
        findings.add(Level::Warn, "length_bias", message);
    }
    let what = "pairs have two equal answers";
    findings.share("equal_pairs", report.equal_pairs, report.rows, (0.0, NEVER), what);
    let limits = (settings.contradictions_warn, NEVER);
    let what = "rows contradict another one of the same input";
    findings.share("contradictions", report.contradictions, report.rows, limits, what);
    if let Some(agreement) = &report.agreement {
        let level = match agreement.kappa {
            kappa if kappa <= settings.agreement_fail_below => Level::Fail,
            kappa if kappa < settings.agreement_warn_below => Level::Warn,
            _ => Level::Note,
        };
        let message = format!(
            "{} raters agree on {:.0} % of {} rows that several rated, kappa {:.2}",
            agreement.raters,
            agreement.observed * 100.0,
            agreement.items,
            agreement.kappa
        );
        findings.add(level, "agreement", message);
    }
}

fn encoding(report: &DataReport, settings: &ReportSettings, findings: &mut Findings) {
    let counts = &report.encoding;
    let limits = (settings.overlong_warn, 1.0);
    findings.share("overlong", counts.overlong, counts.rows, limits, "rows are longer than fits");
    let what = "rows have nothing to learn";
    findings.share("no_targets", counts.no_targets, counts.rows, (0.0, 1.0), what);
    if counts.forged_ends > 0 {
        let message = format!(
            "{} times a message spells the token that ends a turn: what follows looks like another turn",
            counts.forged_ends
        );
        findings.add(Level::Warn, "forged_ends", message);
    }
    let limits = (settings.open_ended_warn, NEVER);
    let what =
        "answers do not end the turn in the model's template: the model would not learn to stop";
    findings.share("template_end", counts.open_ended, counts.answers, limits, what);
    let what = "answers became examples of their own, because the model's template changes earlier messages";
    findings.share("template_rewrites", counts.own_examples, counts.answers, (NEVER, NEVER), what);
}

fn answers(report: &DataReport, settings: &ReportSettings, findings: &mut Findings) {
    let empty = (0.0, settings.empty_answers_fail);
    findings.share(
        "empty_answers",
        report.empty_answers,
        report.answers,
        empty,
        "answers are empty",
    );
    let tiny = (settings.tiny_answers_warn, NEVER);
    let what = format!("answers have fewer than {} characters", settings.tiny_answer_chars);
    findings.share("tiny_answers", report.tiny_answers, report.answers, tiny, &what);
}
