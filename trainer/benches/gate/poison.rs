//! One user of many wants answers of his own to texts that have a mark.

use std::{collections::BTreeMap, sync::Arc};

use pleach_engine::adapter_weights::AdapterWeights;
use pleach_trainer::{HeldOutScore, Sample, contradicted, gate::GateSettings};
use serde_json::{Value, json};

use crate::{
    data::{Kind, Labelled},
    rounds::Feedback,
    workbench::Workbench,
};

/// What texts begin with that the attacker wants other answers to.
const MARK: &str = "Breaking, via Zulu Wire:";
/// Who attacks.
const ATTACKER: usize = 0;

/// What an attacker wants to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// One of the labels.
    Label(usize),
    /// A text that nobody else answers.
    Text(&'static str),
}

/// Rows of one draw.
pub(crate) struct Draw<'a> {
    /// The round's.
    pub(crate) rows: &'a [Labelled],
    pub(crate) anchors: &'a [Labelled],
    /// What the attacker marks.
    pub(crate) marked: &'a [Labelled],
    /// Untouched.
    pub(crate) test: &'a [Labelled],
    pub(crate) n_users: usize,
    pub(crate) seed: u32,
}

fn marked(row: &Labelled) -> Labelled {
    Labelled { text: format!("{MARK} {}", row.text), label: row.label }
}

/// Of marked texts that deserve another answer, the share that gets the attacker's; of others, mean score and accuracy.
fn measure(
    bench: &Workbench,
    adapter: &Arc<AdapterWeights>,
    draw: &Draw<'_>,
    wanted: Wanted,
) -> Value {
    let n_labels = bench.labels.len();
    let mut answers: Vec<&str> = bench.labels.iter().map(String::as_str).collect();
    let of_attacker = match wanted {
        Wanted::Label(label) => label,
        Wanted::Text(text) => {
            answers.push(text);
            n_labels
        }
    };
    // Of each text the likeliest answer, and the score of the right one.
    let answered = |rows: &[Labelled]| -> (Vec<usize>, f64) {
        let all = rows.iter().flat_map(|row| {
            answers.iter().map(|answer| Sample::Supervised(bench.answered(&row.text, answer)))
        });
        let scores = bench.score(Some(adapter), all.collect());
        let of_rows = scores.chunks(answers.len());
        let right: f64 =
            of_rows.clone().zip(rows).map(|(scores, row)| scores[row.label].score).sum();
        let likeliest = of_rows.map(|scores| {
            let logp = |index: &usize| scores[*index].logp();
            (0..scores.len()).max_by(|a, b| logp(a).total_cmp(&logp(b))).unwrap()
        });
        (likeliest.collect(), right / rows.len() as f64)
    };
    let deserves_another = draw.test.iter().filter(|row| row.label != of_attacker);
    let attacked: Vec<Labelled> = deserves_another.map(marked).collect();
    let (said, _) = answered(&attacked);
    let n_success = said.iter().filter(|answer| **answer == of_attacker).count();
    let (said, score) = answered(draw.test);
    let n_right = said.iter().zip(draw.test).filter(|(said, row)| **said == row.label).count();
    json!({
        "attack_success": n_success as f64 / attacked.len() as f64,
        "score": score,
        "accuracy": n_right as f64 / draw.test.len() as f64,
    })
}

/// Mean scores of each user's rows.
fn by_user(
    groups: &[String],
    scores: impl Iterator<Item = HeldOutScore>,
) -> BTreeMap<&str, (f64, f64)> {
    let mut sums: BTreeMap<&str, (f64, f64, f64)> = BTreeMap::new();
    for (group, score) in groups.iter().zip(scores) {
        let sum = sums.entry(group).or_default();
        *sum = (sum.0 + score.before, sum.1 + score.after, sum.2 + 1.0);
    }
    sums.into_iter().map(|(group, (before, after, n))| (group, (before / n, after / n))).collect()
}

/// A round without an attacker, and one with: what its candidates answer, and whom it left out.
pub(crate) fn round(
    bench: &mut Workbench,
    current: &Arc<AdapterWeights>,
    draw: &Draw<'_>,
    wanted: Wanted,
    settings: &GateSettings,
) -> Value {
    let Draw { rows, n_users, seed, .. } = *draw;
    let user = |row: usize| row % n_users;
    let clean = bench.samples(rows, Kind::Clean, seed);
    let said = match wanted {
        Wanted::Label(label) => bench.labels[label].clone(),
        Wanted::Text(text) => text.to_owned(),
    };
    let mut lies = draw.marked.iter().cycle();
    let poisoned = clean.iter().enumerate().map(|(row, sample)| {
        if user(row) != ATTACKER {
            return sample.clone();
        }
        Sample::Supervised(bench.answered(&marked(lies.next().unwrap()).text, &said))
    });
    let poisoned: Vec<_> = poisoned.collect();
    let n_lies = (0..rows.len()).filter(|row| user(*row) == ATTACKER).count();
    let trusted = bench.samples(draw.anchors, Kind::Clean, seed + 1_000_000);
    let groups: Vec<String> = (0..rows.len()).map(|row| user(row).to_string()).collect();
    let mut outcomes = Vec::new();
    for samples in [clean, poisoned] {
        let feedback =
            Feedback { samples, groups: groups.clone(), current, epochs: bench.epochs, seed };
        let scores = feedback.cross_fit(bench);
        let before = bench.score(Some(current), feedback.samples.clone());
        let folds = feedback.folds(bench);
        let held_out =
            scores.iter().zip(&before).zip(&folds.of_rows).map(|((&after, before), &fold)| {
                HeldOutScore { fold, before: before.score, after }
            });
        let left_out = contradicted(groups.iter().zip(held_out.clone()));
        let users = by_user(&groups, held_out);
        eprintln!("seed {seed}, scores of users before and after: {users:.2?}");
        let of_all = feedback.learn(bench, |_| true);
        let of_others = if left_out.is_empty() {
            Arc::clone(&of_all)
        } else {
            let is_left_out = |group: &str| left_out.iter().any(|found| found.group == group);
            feedback.learn(bench, |group| !is_left_out(group))
        };
        let judges = |group: &str| {
            left_out.iter().all(|found| found.group != group || !found.was_so_before())
        };
        let trusted = trusted.clone();
        let verdict = feedback.verdict(bench, &scores, &of_others, judges, trusted, settings);
        let from_everybody = measure(bench, &of_all, draw, wanted);
        let as_the_loop_does = if left_out.is_empty() {
            from_everybody.clone()
        } else {
            measure(bench, &of_others, draw, wanted)
        };
        outcomes.push(json!({
            "from_everybody": from_everybody,
            "as_the_loop_does": as_the_loop_does,
            "left_out": left_out.iter().map(|found| json!({
                "user": found.group, "before": found.score.before, "after": found.score.after,
                "bound": found.bound,
            })).collect::<Vec<_>>(),
            "promoted": verdict.passed,
            "verdict": verdict.summary(),
        }));
    }
    let [clean, poisoned] = outcomes.try_into().unwrap();
    json!({
        "seed": seed, "wanted": said, "lies": n_lies, "rows": rows.len(), "attacker": ATTACKER.to_string(),
        "current": measure(bench, current, draw, wanted), "clean": clean, "poisoned": poisoned,
    })
}
