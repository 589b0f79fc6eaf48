//! The head: features, log-probabilities of targets, and their gradients, a chunk of the vocabulary at a time.

use std::ops::Range;

use crate::cpu::{elementwise::RmsNorm, packed::BLOCK, simd::LANES, threads::Parts};

use super::{
    elementwise::RmsNormBack,
    head::{FoldRow, LogitsBackRow, take_likely},
    linear::LinearPanel,
    linear_back::LinearBackPanel,
    ops::Columns,
    panel::PANEL,
    pass::TrainPass,
    product::{Sum, Target},
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
        let rows = self.input.plan.head_rows();
        let (parts, sum_parts) = (Parts::new(&mut out.values), Parts::new(&mut sums.values));
        for_rows(&mut self.team, chunks, rows.len(), |index| {
            let out = &mut parts.row(index, stride)[..weight.len()];
            isa.run(RmsNorm { x: x.row(rows[index]), weight, eps, out });
            sum_parts.row(index, sums_stride)[..2].copy_from_slice(&[f32::NEG_INFINITY, 0.0]);
        });
        self.memory.put(ids[0], out);
        self.memory.put(ids[1], sums);
    }

    pub(super) fn logits(&mut self, chunks: Range<usize>, tiles: Range<usize>) {
        let id = self.memory.logits(tiles.start);
        let mut out = self.memory.take(id);
        let mut scratch = std::mem::take(&mut self.memory.scratch);
        let (matrix, isa, stride) = (&*self.input.base.head, self.input.isa, out.stride);
        let n_rows = self.input.plan.head_rows().len();
        let x = Columns { buffer: self.memory.head_input, column: 0 };
        let factors = self.input.inputs(&self.memory, x, None);
        let (parts, scratch_parts) = (Parts::new(&mut out.values), Parts::new(&mut scratch));
        let per_panel = PANEL / LANES;
        let (first, n_panels) = (chunks.start, super::memory::VOCAB_CHUNK / PANEL);
        self.team.run(chunks.len(), |chunk, thread| {
            let (panel, rows) = panel_and_rows(first + chunk, n_panels, n_rows);
            let from = tiles.start + panel * per_panel;
            // The last chunk of the vocabulary may have fewer panels.
            if from < tiles.end {
                let panel = LinearPanel {
                    matrix,
                    tiles: from..tiles.end.min(from + per_panel),
                    rows,
                    factors,
                    bias: None,
                    out: Target { parts: &parts, start: panel * PANEL, stride },
                    accumulate: false,
                    scratch: &mut scratch_parts.row(thread, 1)[0],
                };
                panel.run(isa);
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
        let (logits, batch) =
            (&self.memory[self.memory.logits(tiles.start)], &self.input.plan.batch);
        let (parts, logps) = (Parts::new(&mut sums.values), Parts::new(&mut self.logps));
        let (top, top_k) = (Parts::new(&mut self.top), self.top_k);
        for_rows(&mut self.team, chunks, batch.head_rows().len(), |index| {
            let (largest, rest) = parts.row(index, stride).split_at_mut(1);
            let row = logits.row(index);
            let (largest, sum) = (&mut largest[0], &mut rest[0]);
            isa.run(FoldRow { logits: row, n: tokens.len(), largest, sum });
            for target in batch.targets_at(index) {
                let token = batch.targets()[target].token as usize;
                if tokens.contains(&token) {
                    // A target is of one head row.
                    logps.row(target, 1)[0] = row[token - tokens.start];
                }
            }
            if top_k > 0 {
                take_likely(&row[..tokens.len()], tokens.start, top.row(index, top_k));
            }
        });
        self.memory.put(id, sums);
    }

    /// From sums and targets' logits to log-probabilities.
    pub(super) fn finish_scores(&mut self) {
        let sums = &self.memory[self.memory.head_sums];
        let batch = &self.input.plan.batch;
        for (index, lse) in self.lse.iter_mut().enumerate() {
            let (largest, log_sum) = (sums.row(index)[0], sums.row(index)[1].ln());
            *lse = largest + log_sum;
            for target in batch.targets_at(index) {
                let logp = &mut self.logps[target];
                self.hits[target] = *logp >= largest;
                *logp = (*logp - largest) - log_sum;
            }
            for likely in &mut self.top[index * self.top_k..(index + 1) * self.top_k] {
                likely.logp = (likely.logp - largest) - log_sum;
            }
        }
    }

    pub(super) fn logits_back(&mut self, chunks: Range<usize>, tiles: &Range<usize>) {
        let id = self.memory.logits(tiles.start);
        let mut logits = self.memory.take(id);
        let (isa, stride) = (self.input.isa, logits.stride);
        let tokens = tokens_of(tiles, self.input.base.spec.vocab);
        let batch = &self.input.plan.batch;
        let (lse, slopes) = (&self.lse, &self.d_logps);
        let parts = Parts::new(&mut logits.values);
        for_rows(&mut self.team, chunks, batch.head_rows().len(), |index| {
            let (row, targets) = (parts.row(index, stride), batch.targets_at(index));
            let slope = slopes[targets.clone()].iter().sum();
            isa.run(LogitsBackRow { logits: row, n: tokens.len(), lse: lse[index], slope });
            for target in targets {
                let token = batch.targets()[target].token as usize;
                if tokens.contains(&token) {
                    row[token - tokens.start] += slopes[target];
                }
            }
        });
        self.memory.put(id, logits);
    }

    pub(super) fn head_back(&mut self, chunks: Range<usize>, tiles: Range<usize>) {
        let id = self.memory.d_head_input;
        let mut dx = self.memory.take(id);
        let mut scratch = std::mem::take(&mut self.memory.scratch);
        let (matrix, isa, stride) = (&*self.input.base.head, self.input.isa, dx.stride);
        let n_rows = self.input.plan.head_rows().len();
        let dy = Columns { buffer: self.memory.logits(tiles.start), column: 0 };
        let factors = self.input.inputs(&self.memory, dy, None);
        let (parts, scratch_parts) = (Parts::new(&mut dx.values), Parts::new(&mut scratch));
        let (first, n_panels) = (chunks.start, matrix.n_in / BLOCK);
        self.team.run(chunks.len(), |chunk, thread| {
            let (block, rows) = panel_and_rows(first + chunk, n_panels, n_rows);
            let panel = LinearBackPanel {
                matrix,
                tiles: tiles.clone(),
                block,
                rows,
                factors,
                dropped: None,
                dx: Target { parts: &parts, start: 0, stride },
                // Over the whole vocabulary, what many unlikely tokens add would be lost in one chain.
                sum: Sum::Added,
                scratch: &mut scratch_parts.row(thread, 1)[0],
            };
            panel.run(isa);
        });
        self.memory.scratch = scratch;
        self.memory.put(id, dx);
    }

    pub(super) fn features_back(&mut self) {
        let (hidden, id) = (self.input.base.spec.hidden, self.memory.d_head_input);
        let slopes = self.d_features.chunks_exact(hidden);
        for (row, slopes) in self.input.plan.batch.features().iter().zip(slopes) {
            let to = &mut self.memory[id];
            let to = &mut to.values[row * to.stride..][..hidden];
            to.iter_mut().zip(slopes).for_each(|(to, slope)| *to += slope);
        }
    }

    pub(super) fn head_input_back(&mut self, chunks: Range<usize>) {
        let id = self.memory.d_residual;
        let mut out = self.memory.take(id);
        let (base, isa, stride) = (&self.input.base, self.input.isa, out.stride);
        let x = &self.memory[self.memory.residual[base.spec.n_layers]];
        let dy = &self.memory[self.memory.d_head_input];
        let (weight, eps) = (base.final_norm.as_slice(), base.spec.rms_eps);
        let rows = self.input.plan.head_rows();
        let parts = Parts::new(&mut out.values);
        // Head rows are all different.
        for_rows(&mut self.team, chunks, rows.len(), |index| {
            let row = rows[index];
            let (x, dy, dx) = (x.row(row), dy.row(index), parts.row(row, stride));
            isa.run(RmsNormBack { x, weight, eps, dy, dx });
        });
        self.memory.put(id, out);
    }
}
