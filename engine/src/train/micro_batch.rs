//! What one pass works on: sequences put one after another, without padding.

use std::ops::Range;

/// One row whose next token is known: what its log-probability is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Row of the micro-batch, which predicts the token.
    pub row: usize,
    /// The token.
    pub token: u32,
}

/// Some sequences, packed: each attends to itself alone, and its positions begin at 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MicroBatch {
    token_ids: Vec<u32>,
    /// Sequence `s` has rows `sequence_indptr[s]..sequence_indptr[s + 1]`.
    sequence_indptr: Vec<usize>,
    /// In ascending order of rows.
    targets: Vec<Target>,
    /// Sequence `s` has targets `target_indptr[s]..target_indptr[s + 1]`.
    target_indptr: Vec<usize>,
    /// One number per sequence, which its dropout masks depend on.
    streams: Vec<u32>,
}

impl Default for MicroBatch {
    fn default() -> Self {
        Self {
            token_ids: Vec::new(),
            sequence_indptr: vec![0],
            targets: Vec::new(),
            target_indptr: vec![0],
            streams: Vec::new(),
        }
    }
}

impl MicroBatch {
    /// Appends a sequence. `is_target[i]` says whether the log-probability of token `i`, given those before it, is
    /// wanted; the first token can be none. `stream` chooses the sequence's dropout masks: an example that is seen again
    /// should have another.
    ///
    /// Rows behind the last target would change nothing and are left out, so a sequence without targets has no rows.
    ///
    /// # Panics
    /// When there are not as many flags as tokens.
    pub fn push(&mut self, tokens: &[u32], is_target: &[bool], stream: u32) {
        assert_eq!(tokens.len(), is_target.len(), "one flag per token");
        let first = self.n_rows();
        let n_rows = Self::rows_of(is_target);
        self.token_ids.extend_from_slice(&tokens[..n_rows]);
        for row in 0..n_rows {
            if is_target[row + 1] {
                self.targets.push(Target { row: first + row, token: tokens[row + 1] });
            }
        }
        self.sequence_indptr.push(self.token_ids.len());
        self.target_indptr.push(self.targets.len());
        self.streams.push(stream);
    }

    /// Rows that a sequence with these flags takes.
    pub fn rows_of(is_target: &[bool]) -> usize {
        is_target.iter().rposition(|&flag| flag).unwrap_or(0)
    }

    /// Rows of all sequences.
    pub fn n_rows(&self) -> usize {
        self.token_ids.len()
    }

    /// Sequences, in the order in which they were pushed.
    pub fn n_sequences(&self) -> usize {
        self.streams.len()
    }

    /// The token of every row.
    pub fn token_ids(&self) -> &[u32] {
        &self.token_ids
    }

    /// The rows of every sequence.
    pub fn sequences(&self) -> impl Iterator<Item = Range<usize>> {
        self.sequence_indptr.windows(2).map(|pair| pair[0]..pair[1])
    }

    /// All targets, in ascending order of rows: the order of log-probabilities and of their weights.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Which targets are those of sequence `index`.
    ///
    /// # Panics
    /// When there is no such sequence.
    pub fn targets_of(&self, index: usize) -> Range<usize> {
        self.target_indptr[index]..self.target_indptr[index + 1]
    }

    pub(crate) fn streams(&self) -> &[u32] {
        &self.streams
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_behind_the_last_target_are_left_out() {
        let mut batch = MicroBatch::default();
        batch.push(&[5, 6, 7, 8], &[true, false, true, false], 0);
        batch.push(&[9], &[true], 1);
        batch.push(&[1, 2], &[false, true], 2);
        assert_eq!(batch.token_ids(), [5, 6, 1]);
        assert_eq!(batch.sequences().collect::<Vec<_>>(), [0..2, 2..2, 2..3]);
        let targets = [Target { row: 1, token: 7 }, Target { row: 2, token: 2 }];
        assert_eq!(batch.targets(), targets);
        assert_eq!([0, 1, 2].map(|s| batch.targets_of(s)), [0..1, 1..1, 1..2]);
    }
}
