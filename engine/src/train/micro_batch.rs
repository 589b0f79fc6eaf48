//! What one pass works on: sequences put one after another, without padding.

use std::ops::Range;

/// A token whose log-probability is asked for.
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
    /// In ascending order of rows; a row may have several.
    targets: Vec<Target>,
    /// Sequence `s` has targets `target_indptr[s]..target_indptr[s + 1]`.
    target_indptr: Vec<usize>,
    /// Rows that something is asked of, ascending.
    head_rows: Vec<usize>,
    /// Head row `h` has targets `head_indptr[h]..head_indptr[h + 1]`.
    head_indptr: Vec<usize>,
    /// Which head rows are features.
    features: Vec<usize>,
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
            head_rows: Vec::new(),
            head_indptr: vec![0],
            features: Vec::new(),
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
        let flagged = (1..tokens.len()).filter(|&i| is_target[i]);
        self.push_candidates(tokens, flagged.map(|i| (i - 1, tokens[i])), stream);
    }

    /// Appends a sequence with targets of the caller's choice, `(row, token)` in ascending order of rows: what the
    /// sequence's first `row + 1` tokens say of `token`. A row may have several.
    ///
    /// # Panics
    /// When rows are out of order or beyond the sequence.
    pub fn push_candidates(
        &mut self,
        tokens: &[u32],
        candidates: impl IntoIterator<Item = (usize, u32)>,
        stream: u32,
    ) {
        let first = self.n_rows();
        let mut n_rows = 0;
        for (row, token) in candidates {
            assert!(row < tokens.len() && row + 1 >= n_rows, "targets out of order");
            if row + 1 > n_rows {
                self.open_head_row(first + row);
            }
            n_rows = row + 1;
            self.targets.push(Target { row: first + row, token });
            self.close_head_row();
        }
        self.close(&tokens[..n_rows], stream);
    }

    /// Appends a sequence of which the hidden state of the last token is wanted, a feature: see
    /// [`crate::cpu::TrainPass::feature`].
    ///
    /// # Panics
    /// When it has no tokens.
    pub fn push_feature(&mut self, tokens: &[u32], stream: u32) {
        assert!(!tokens.is_empty(), "a feature is that of a token");
        self.features.push(self.head_rows.len());
        self.open_head_row(self.n_rows() + tokens.len() - 1);
        self.close(tokens, stream);
    }

    fn open_head_row(&mut self, row: usize) {
        self.head_rows.push(row);
        self.head_indptr.push(self.targets.len());
    }

    fn close_head_row(&mut self) {
        if let Some(end) = self.head_indptr.last_mut() {
            *end = self.targets.len();
        }
    }

    fn close(&mut self, rows: &[u32], stream: u32) {
        self.token_ids.extend_from_slice(rows);
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

    /// Rows with targets or features, ascending.
    pub fn head_rows(&self) -> &[usize] {
        &self.head_rows
    }

    /// Targets of head row `index`.
    pub(crate) fn targets_at(&self, index: usize) -> Range<usize> {
        self.head_indptr[index]..self.head_indptr[index + 1]
    }

    /// Features, as indices of head rows, in the order in which they were pushed.
    pub(crate) fn features(&self) -> &[usize] {
        &self.features
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

    #[test]
    fn a_row_has_several_targets_or_is_a_feature() {
        let mut batch = MicroBatch::default();
        batch.push_candidates(&[5, 6, 7, 8], [(0, 3), (0, 6), (2, 1)], 0);
        batch.push_feature(&[9, 4], 1);
        batch.push(&[1, 2], &[false, true], 2);
        assert_eq!(batch.token_ids(), [5, 6, 7, 9, 4, 1]);
        assert_eq!(batch.head_rows(), [0, 2, 4, 5]);
        assert_eq!([0, 1, 2, 3].map(|h| batch.targets_at(h)), [0..2, 2..3, 3..3, 3..4]);
        assert_eq!(batch.features(), [2]);
        assert_eq!([0, 1, 2].map(|s| batch.targets_of(s)), [0..3, 3..3, 3..4]);
    }
}
