//! The head: log-probabilities of targets and their gradients, a chunk of the vocabulary at a time.

use std::ops::Range;

use crate::cpu::{elementwise::RmsNorm, packed::BLOCK, simd::LANES, threads::Parts};

use super::{
    elementwise::RmsNormBack,
    head::{FoldRow, LogitsBackRow},
    linear::{LinearBackPanel, LinearPanel},
    panel::PANEL,
    pass::TrainPass,
    product::{Rows, Target},
    run_products::panel_and_rows,
    run_rows::for_rows,
};

/// Tokens of some tiles of the head.
fn tokens_of(tiles: &Range<usize>, vocab: usize) -> Range<usize> {
    tiles.start * LANES..(tiles.end * LANES).min(vocab)
}

impl TrainPass {
    pub(super) fn head_input(&mut self, chunks: Range<usize>) {
        let ids = [self.memory.head_input, self.memory.head_sums];
        let [mut out, mut sums] = ids.map(|id| self.memory.take(id));
        let (base, isa) = (&self.input.base, self.input.isa);
        let (stride, sums_stride) = (out.stride, sums.stride);
        let x = &self.memory[self.memory.residual[base.spec.n_layers]];
        let (weight, eps) = (base.final_norm.as_slice(), base.spec.rms_eps);
        let targets = self.input.plan.targets();
        let (parts, sum_parts) = (Parts::new(&mut out.values), Parts::new(&mut sums.values));
        for_rows(&mut self.team, chunks, targets.len(), |index| {
            let out = &mut parts.row(index, stride)[..weight.len()];
            isa.run(RmsNorm { x: x.row(targets[index].row), weight, eps, out });
            sum_parts.row(index, sums_stride)[..2].copy_from_slice(&[f32::NEG_INFINITY, 0.0]);
        });
        self.memory.put(ids[0], out);
        self.memory.put(ids[1], sums);
    }

    pub(super) fn logits(&mut self, chunks: Range<usize>, tiles: Range<usize>) {
        let id = self.memory.logits;
        let mut out = self.memory.take(id);
        let mut scratch = std::mem::take(&mut self.memory.scratch);
        let (matrix, isa, stride) = (&*self.input.base.head, self.input.isa, out.stride);
        let n_targets = self.input.plan.targets().len();
        let x = &self.memory[self.memory.head_input];
        let x = Rows::new(&x.values, x.stride);
        let (parts, scratch_parts) = (Parts::new(&mut out.values), Parts::new(&mut scratch));
        let per_panel = PANEL / LANES;
        let (first, n_panels) = (chunks.start, super::memory::VOCAB_CHUNK / PANEL);
        self.team.run(chunks.len(), |chunk, thread| {
            let (panel, rows) = panel_and_rows(first + chunk, n_panels, n_targets);
            let from = tiles.start + panel * per_panel;
            // The last chunk of the vocabulary may have fewer panels.
            if from < tiles.end {
                isa.run(LinearPanel {
                    matrix,
                    tiles: from..tiles.end.min(from + per_panel),
                    rows,
                    x,
                    bias: None,
                    low_rank: None,
                    out: Target { parts: &parts, start: panel * PANEL, stride },
                    accumulate: false,
                    scratch: &mut scratch_parts.row(thread, 1)[0],
                });
            }
        });
        self.memory.scratch = scratch;
        self.memory.put(id, out);
    }

    pub(super) fn fold_logits(&mut self, chunks: Range<usize>, tiles: &Range<usize>) {
        let id = self.memory.head_sums;
        let mut sums = self.memory.take(id);
        let (isa, stride) = (self.input.isa, sums.stride);
        let tokens = tokens_of(tiles, self.input.base.spec.vocab);
        let (logits, targets) = (&self.memory[self.memory.logits], self.input.plan.targets());
        let (parts, logps) = (Parts::new(&mut sums.values), Parts::new(&mut self.logps));
        for_rows(&mut self.team, chunks, targets.len(), |index| {
            let (largest, rest) = parts.row(index, stride).split_at_mut(1);
            let (row, token) = (logits.row(index), targets[index].token as usize);
            let (largest, sum) = (&mut largest[0], &mut rest[0]);
            isa.run(FoldRow { logits: row, n: tokens.len(), largest, sum });
            if tokens.contains(&token) {
                logps.row(index, 1)[0] = row[token - tokens.start];
            }
        });
        self.memory.put(id, sums);
    }

    /// From sums and targets' logits to log-probabilities.
    pub(super) fn finish_scores(&mut self) {
        let sums = &self.memory[self.memory.head_sums];
        let targets = self.logps.iter_mut().zip(&mut self.lse).zip(&mut self.hits);
        for (index, ((logp, lse), hit)) in targets.enumerate() {
            *hit = *logp >= sums.row(index)[0];
            let (largest, log_sum) = (sums.row(index)[0], sums.row(index)[1].ln());
            *logp = (*logp - largest) - log_sum;
            *lse = largest + log_sum;
        }
    }

    pub(super) fn logits_back(&mut self, chunks: Range<usize>, tiles: &Range<usize>) {
        let id = self.memory.logits;
        let mut logits = self.memory.take(id);
        let (isa, stride) = (self.input.isa, logits.stride);
        let tokens = tokens_of(tiles, self.input.base.spec.vocab);
        let targets = self.input.plan.targets();
        let (lse, weights) = (&self.lse, &self.weights);
        let parts = Parts::new(&mut logits.values);
        for_rows(&mut self.team, chunks, targets.len(), |index| {
            let token = targets[index].token as usize;
            isa.run(LogitsBackRow {
                logits: parts.row(index, stride),
                n: tokens.len(),
                lse: lse[index],
                weight: weights[index],
                target: tokens.contains(&token).then(|| token - tokens.start),
            });
        });
        self.memory.put(id, logits);
    }

    pub(super) fn head_back(&mut self, chunks: Range<usize>, tiles: Range<usize>) {
        let id = self.memory.d_head_input;
        let mut dx = self.memory.take(id);
        let mut scratch = std::mem::take(&mut self.memory.scratch);
        let (matrix, isa, stride) = (&*self.input.base.head, self.input.isa, dx.stride);
        let n_targets = self.input.plan.targets().len();
        let dy = &self.memory[self.memory.logits];
        let dy = Rows::new(&dy.values, dy.stride);
        let (parts, scratch_parts) = (Parts::new(&mut dx.values), Parts::new(&mut scratch));
        let (first, n_panels) = (chunks.start, matrix.n_in / BLOCK);
        self.team.run(chunks.len(), |chunk, thread| {
            let (block, rows) = panel_and_rows(first + chunk, n_panels, n_targets);
            isa.run(LinearBackPanel {
                matrix,
                tiles: tiles.clone(),
                block,
                rows,
                dy,
                low_rank: None,
                dropped: None,
                dx: Target { parts: &parts, start: 0, stride },
                accumulate: true,
                scratch: &mut scratch_parts.row(thread, 1)[0],
            });
        });
        self.memory.scratch = scratch;
        self.memory.put(id, dx);
    }

    pub(super) fn head_input_back(&mut self, chunks: Range<usize>) {
        let id = self.memory.d_residual;
        let mut out = self.memory.take(id);
        let (base, isa, stride) = (&self.input.base, self.input.isa, out.stride);
        let x = &self.memory[self.memory.residual[base.spec.n_layers]];
        let dy = &self.memory[self.memory.d_head_input];
        let (weight, eps) = (base.final_norm.as_slice(), base.spec.rms_eps);
        let targets = self.input.plan.targets();
        let parts = Parts::new(&mut out.values);
        // Every row is at most one target's.
        for_rows(&mut self.team, chunks, targets.len(), |index| {
            let row = targets[index].row;
            let (x, dy, dx) = (x.row(row), dy.row(index), parts.row(row, stride));
            isa.run(RmsNormBack { x, weight, eps, dy, dx });
        });
        self.memory.put(id, out);
    }
}
