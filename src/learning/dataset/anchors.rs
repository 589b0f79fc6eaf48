//! Trusted rows: some are learned from, the others are judged by.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::training::Method;

use super::row::is_readable;

/// Trusted rows by what they are for.
pub(super) struct Parted {
    pub(super) learned: Vec<Value>,
    pub(super) judged: Vec<Value>,
}

/// Parts trusted rows by their hashes: as many are learned from as are `share` of what is learned then, but never more than
/// half of them, and none of another kind than the method's.
pub(super) fn part(anchors: &[Value], method: Method, share: f64, n_rows: usize) -> Parted {
    let mut sorted: Vec<&Value> = anchors.iter().filter(|row| is_readable(row)).collect();
    sorted.sort_by_cached_key(|row| <[u8; 32]>::from(Sha256::digest(row.to_string())));
    sorted.dedup();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a count; below 1, which the policy checks"
    )]
    let wanted = (n_rows as f64 * share / (1.0 - share)) as usize;
    let mut n_left = wanted.min(sorted.len() / 2);
    let (mut learned, mut judged) = (Vec::new(), Vec::new());
    for row in sorted {
        if n_left > 0 && is_of(row, method) {
            n_left -= 1;
            let mut row = row.clone();
            row["trusted"] = Value::Bool(true);
            learned.push(row);
        } else {
            judged.push(row.clone());
        }
    }
    Parted { learned, judged }
}

fn is_of(row: &Value, method: Method) -> bool {
    let has = |name: &str| row.get(name).is_some();
    match method {
        Method::Supervised => has("messages"),
        Method::Dpo => ["preferred_output", "preferred_completion", "chosen"].into_iter().any(has),
        Method::Kto => has("label"),
        Method::Reinforcement => false,
    }
}
