//! Documents, cut into windows.

use super::Encoder;
use crate::data::example::{Example, Record, TargetSpan};

impl Encoder<'_> {
    /// The windows of a document: every token but the first is a target exactly once.
    pub(super) fn windows(&mut self, text: &str) -> Vec<Record> {
        let mut ids = self.text_ids(text);
        if self.settings.end_documents {
            ids.extend(self.tokenizer.eos_token());
        }
        let windows = windows(&ids, self.settings.tokens_max, self.settings.window_overlap);
        self.counts.no_targets += u64::from(windows.is_empty());
        windows.into_iter().map(Record::Supervised).collect()
    }
}

/// Windows of at most `tokens_max` ids; each but the first begins with the `overlap` last ids of the one before, at
/// least one, since a first token cannot be predicted.
fn windows(ids: &[u32], tokens_max: usize, overlap: usize) -> Vec<Example> {
    let overlap = overlap.max(1);
    let mut windows = Vec::new();
    let mut first_target = 1;
    while first_target < ids.len() {
        let start = if first_target == 1 { 0 } else { first_target - overlap };
        let end = ids.len().min(start + tokens_max);
        let index = |n: usize| u32::try_from(n - start).unwrap_or(u32::MAX);
        let span = TargetSpan { start: index(first_target), end: index(end), weight: 1.0 };
        windows.push(Example::new(ids[start..end].to_vec(), [span]));
        first_target = end;
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_first_is_a_target_once() {
        for n_ids in 0..40 {
            for tokens_max in 2..9 {
                for overlap in 0..tokens_max - 1 {
                    let ids: Vec<u32> = (0..n_ids).collect();
                    let windows = windows(&ids, tokens_max, overlap);
                    assert!(windows.iter().all(|window| window.ids.len() <= tokens_max));
                    let targets: Vec<u32> = windows
                        .iter()
                        .flat_map(|window| window.targets().map(|(index, _)| window.ids[index]))
                        .collect();
                    let expected: Vec<u32> = (1..n_ids).collect();
                    assert_eq!(targets, expected, "{n_ids} ids, {tokens_max}, {overlap}");
                }
            }
        }
    }
}
