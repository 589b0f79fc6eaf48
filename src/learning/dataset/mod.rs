//! From answers and what people said about them to rows that are trained on. A pure function: equal answers and feedback,
//! in whatever order, make equal rows in equal order.
//!
//! ```text
//! opinions ── votes: the last word of each rater, then the majority ──> rows of each method
//!     ── cap: no user more than a share ──> the method with the most rows ── groups ── anchors ──> JSONL
//! ```

mod anchors;
mod cap;
mod groups;
mod row;
#[cfg(test)]
mod tests;
mod votes;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::training::Method;

use super::policy::{MethodChoice, Policy, Signals};

pub use row::DataRow;

/// A completion that may be learned from.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// Its id.
    pub id: String,
    /// Digest of who asked.
    pub user: Option<String>,
    /// Completions that belong together have one.
    pub episode: Option<String>,
    /// What was asked.
    pub messages: Vec<Value>,
    /// Tools that could be called.
    pub tools: Option<Value>,
    /// The texts that were answered.
    pub choices: Vec<String>,
}

/// What somebody said about an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Opinion {
    /// Id of the feedback; later ones are larger.
    pub id: String,
    /// About which answer of the completion.
    pub choice: u32,
    /// Digest of who said it.
    pub rater: Option<String>,
    /// What.
    pub said: OpinionSaid,
}

/// What was said.
#[derive(Clone, Debug, PartialEq)]
pub enum OpinionSaid {
    /// A value of a metric.
    Metric {
        /// Which.
        name: String,
        /// Yes, no or a number.
        value: Value,
    },
    /// What the answer should have been.
    Demonstration(String),
    /// It is better than this one.
    BetterThan {
        /// Its completion.
        id: String,
        /// Which of its answers.
        choice: u32,
    },
}

/// A completion and all that was said about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// The completion.
    pub completion: Answered,
    /// What was said.
    pub opinions: Vec<Opinion>,
}

/// What rows are made of.
#[derive(Clone, Debug, Default)]
pub struct Material {
    /// Completions with opinions.
    pub judged: Vec<Judged>,
    /// Completions without, that others were compared with, by id.
    pub others: HashMap<String, Answered>,
    /// Trusted rows, each a JSON object.
    pub anchors: Vec<Value>,
}

/// How rows came about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Completions that somebody said something about.
    pub completions: usize,
    /// What was said.
    pub opinions: usize,
    /// Rows that were learned from, without anchors.
    pub rows: usize,
    /// Rows that each method could have.
    pub by_method: BTreeMap<String, usize>,
    /// Users who are behind the rows.
    pub users: usize,
    /// Rows that were left out so that no user has more than the share.
    pub over_share: usize,
    /// Answers on which as many said one thing as the other.
    pub ties: usize,
    /// Rows that cannot be trained on, such as empty answers.
    pub unusable: usize,
    /// Trusted rows that are learned from.
    pub anchors_learned: usize,
    /// Trusted rows that are judged by.
    pub anchors_judged: usize,
}

/// What a round trains on.
#[derive(Clone, Debug, PartialEq)]
pub struct LoopData {
    /// What the rows are for.
    pub method: Method,
    /// In the order of their hashes.
    pub rows: Vec<DataRow>,
    /// Trusted rows that are learned from, of the same kind.
    pub anchors_learned: Vec<Value>,
    /// Trusted rows that are judged by.
    pub anchors_judged: Vec<Value>,
    /// How it came about.
    pub counts: Counts,
}

/// A row of one method, before the cap.
#[derive(Clone, Debug)]
struct Draft {
    row: DataRow,
    /// Whose word it is: all who said so.
    users: BTreeSet<String>,
}

/// Makes rows as a policy wants them.
pub fn build(material: &Material, policy: &Policy) -> LoopData {
    let mut counts = Counts {
        completions: material.judged.len(),
        opinions: material.judged.iter().map(|judged| judged.opinions.len()).sum(),
        ..Counts::default()
    };
    let drafts = votes::drafts(material, &policy.signals, &mut counts);
    let methods = match policy.method {
        // Nobody grades answers there.
        MethodChoice::Auto => &[Method::Supervised, Method::Dpo, Method::Kto][..],
        MethodChoice::Supervised => &[Method::Supervised],
        MethodChoice::Dpo => &[Method::Dpo],
        MethodChoice::Kto => &[Method::Kto],
    };
    let mut best: Option<(Method, cap::Kept)> = None;
    for &method in methods {
        let mut of_method: Vec<_> =
            drafts.iter().filter(|draft| draft.row.method == method).cloned().collect();
        of_method.sort_by_cached_key(|draft| draft.row.order());
        let kept = cap::cap(of_method, policy.user_share_max);
        counts.by_method.insert(method.name().to_owned(), kept.drafts.len());
        // The first of equals.
        if best.as_ref().is_none_or(|(_, most)| kept.drafts.len() > most.drafts.len()) {
            best = Some((method, kept));
        }
    }
    let (method, kept) = best.unwrap_or((Method::Supervised, cap::Kept::default()));
    let users: BTreeSet<_> = kept.drafts.iter().flat_map(|draft| &draft.users).collect();
    counts.rows = kept.drafts.len();
    counts.users = users.len();
    counts.over_share = kept.n_left_out;
    let mut rows: Vec<_> = kept.drafts.into_iter().map(|draft| draft.row).collect();
    groups::join(&mut rows);
    let (learned, judged) =
        part_anchors(&material.anchors, method, policy.anchor_share, rows.len());
    counts.anchors_learned = learned.len();
    counts.anchors_judged = judged.len();
    LoopData { method, rows, anchors_learned: learned, anchors_judged: judged, counts }
}

impl LoopData {
    /// The file of all rows, or of those outside a fold: JSON, one row a line, trusted ones last. `fold_of` says in which
    /// fold each row is.
    pub fn jsonl(&self, without_fold: Option<(u32, &[u32])>) -> String {
        let is_in = |index: usize| match without_fold {
            Some((fold, fold_of)) => fold_of.get(index) != Some(&fold),
            None => true,
        };
        let rows = self.rows.iter().enumerate().filter(|(index, _)| is_in(*index));
        let rows = rows.map(|(_, row)| row.value.to_string());
        let mut text = String::new();
        for line in rows.chain(self.anchors_learned.iter().map(Value::to_string)) {
            text.push_str(&line);
            text.push('\n');
        }
        text
    }

    /// The groups of the rows, in order.
    pub fn groups(&self) -> Vec<&str> {
        self.rows.iter().map(|row| row.group.as_str()).collect()
    }
}

/// Trusted rows that are learned from, and those that are judged by, of a data set of `n_rows` for a method.
pub fn part_anchors(
    anchors: &[Value],
    method: Method,
    share: f64,
    n_rows: usize,
) -> (Vec<Value>, Vec<Value>) {
    let anchors::Parted { learned, judged } = anchors::part(anchors, method, share, n_rows);
    (learned, judged)
}

/// How many answers were judged by values of metrics, and how many of those judgements were negative: what is usual.
pub fn judged_and_negative(material: &Material, signals: &Signals) -> (u64, u64) {
    let opinions = material.judged.iter().flat_map(|judged| &judged.opinions);
    let judgements = opinions.filter_map(|opinion| match &opinion.said {
        OpinionSaid::Metric { name, value } => signals.metrics.get(name)?.judge(value),
        OpinionSaid::Demonstration(_) | OpinionSaid::BetterThan { .. } => None,
    });
    judgements.fold((0, 0), |(judged, negative), good| (judged + 1, negative + u64::from(!good)))
}
