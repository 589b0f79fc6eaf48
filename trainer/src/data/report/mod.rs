//! What is known of a data set before anything is trained on it, and what speaks against it.

mod agreement;
mod builder;
mod findings;
mod text;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::builder::ReportBuilder;
use super::{duplicates::NearDuplicateSettings, encode::EncodeCounts, format::Format};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Worth knowing.
    Note,
    /// The result may disappoint.
    Warn,
    /// Training on it makes no sense.
    Fail,
}

/// From where on a measure is a finding. Shares are from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReportSettings {
    /// Fewer rows fail. `OpenAI` asks for as many.
    pub rows_fail_below: u64,
    /// Fewer rows warn.
    pub rows_warn_below: u64,
    /// Share of rows that repeat another one.
    pub duplicates_warn: f64,
    /// Share of rows that repeat another one.
    pub duplicates_fail: f64,
    /// Share of rows that are near duplicates of an earlier one.
    pub near_duplicates_warn: f64,
    /// What a near duplicate is.
    pub near_duplicates: NearDuplicateSettings,
    /// Rows of the largest class for one of the smallest.
    pub imbalance_warn: f64,
    /// Share of pairs in which the better answer is the longer one; also its complement.
    pub longer_preferred_warn: f64,
    /// Share of rows with the same input and another judgement.
    pub contradictions_warn: f64,
    /// Kappa of the raters.
    pub agreement_warn_below: f64,
    /// Kappa of the raters: no better than chance.
    pub agreement_fail_below: f64,
    /// Share of rows too long for the model.
    pub overlong_warn: f64,
    /// Share of answers without any text.
    pub empty_answers_fail: f64,
    /// An answer of fewer characters is tiny.
    pub tiny_answer_chars: usize,
    /// Share of answers that are tiny.
    pub tiny_answers_warn: f64,
    /// Share of answers after which the template ends no turn: a model trained on them doesn't learn to stop.
    pub open_ended_warn: f64,
    /// Share of validation rows that are near duplicates of training rows.
    pub overlap_warn: f64,
    /// Share of validation rows that are near duplicates of training rows.
    pub overlap_fail: f64,
}

impl Default for ReportSettings {
    fn default() -> Self {
        Self {
            rows_fail_below: 10,
            rows_warn_below: 50,
            duplicates_warn: 0.01,
            duplicates_fail: 0.5,
            near_duplicates_warn: 0.1,
            near_duplicates: NearDuplicateSettings::default(),
            imbalance_warn: 10.0,
            longer_preferred_warn: 0.8,
            contradictions_warn: 0.01,
            agreement_warn_below: 0.4,
            agreement_fail_below: 0.0,
            overlong_warn: 0.02,
            empty_answers_fail: 0.05,
            tiny_answer_chars: 3,
            tiny_answers_warn: 0.1,
            open_ended_warn: 0.0,
            overlap_warn: 0.0,
            overlap_fail: 0.05,
        }
    }
}

/// Something worth knowing about a data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was measured: `near_duplicates`, `class_balance`, …
    pub check: &'static str,
    /// A sentence with the numbers.
    pub message: String,
}

/// Lengths in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Lengths {
    /// The mean.
    pub mean: f64,
    /// Half are not longer.
    pub p50: u32,
    /// 95 % are not longer.
    pub p95: u32,
    /// 99 % are not longer.
    pub p99: u32,
    /// The longest.
    pub max: u32,
}

/// How far those who rated the same thing agree.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// Rows that carry a rater.
    pub ratings: u64,
    /// Who rated.
    pub raters: u64,
    /// Things that two or more rated.
    pub items: u64,
    /// Share of pairs of ratings of one thing that are equal, each thing counting as much as its pairs.
    pub observed: f64,
    /// The same, if everybody rated at random with the frequencies that the ratings have.
    pub expected: f64,
    /// `(observed - expected) / (1 - expected)`: Cohen's kappa for two raters, of the form of Fleiss (pooled
    /// frequencies) for more. 1 if all ratings are equal.
    pub kappa: f64,
}

/// The report on a data set.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DataReport {
    /// The format of the rows.
    pub format: Option<Format>,
    /// Rows read.
    pub rows: u64,
    /// Rows of the validation set.
    pub validation_rows: u64,
    /// What became of the rows.
    pub encoding: EncodeCounts,
    /// Tokens of all records.
    pub tokens: u64,
    /// Of these, targets.
    pub targets: u64,
    /// Lengths of records.
    pub lengths: Lengths,
    /// Rows that repeat an earlier one.
    pub duplicates: u64,
    /// Rows that nearly repeat an earlier one, exact repeats included.
    pub near_duplicates: u64,
    /// Groups of two or more of them.
    pub near_duplicate_groups: u64,
    /// Rows of each class: labels, or `true` and `false` for thumbs. At most 1 000 classes are listed.
    pub classes: BTreeMap<String, u64>,
    /// Share of pairs in which the better answer has more characters; `None` without pairs.
    pub longer_preferred: Option<f64>,
    /// Pairs of two equal answers.
    pub equal_pairs: u64,
    /// Rows whose input occurs with another judgement too.
    pub contradictions: u64,
    /// Between raters; `None` where no two rated the same.
    pub agreement: Option<Agreement>,
    /// Answers to learn.
    pub answers: u64,
    /// Of these, without any text.
    pub empty_answers: u64,
    /// Of these, with less text than [`ReportSettings::tiny_answer_chars`], but some.
    pub tiny_answers: u64,
    /// Validation rows that are near duplicates of training rows.
    pub overlap: u64,
    /// Fields that the format doesn't know, and how many rows have them.
    pub ignored_fields: BTreeMap<String, u64>,
    /// What stands out, the worst first.
    pub findings: Vec<Finding>,
}

impl DataReport {
    /// The worst level of all findings.
    pub fn worst(&self) -> Option<Level> {
        self.findings.iter().map(|finding| finding.level).max()
    }
}
