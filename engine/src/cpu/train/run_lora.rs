//! The adapter's factors, their first halves and their gradients, in the precision of products.

use std::ops::Range;

use crate::{
    cpu::{simd::LANES, threads::Parts},
    train::ProductPrecision,
};

use super::{
    lora::{Factor, GRADIENT_COLUMNS, GradientPanel, ShrinkRows, copy_padded, copy_turned, padded},
    lora_bf16::{ByTwos, PackPairs, PairSequence, ShrinkPairs, TurnPairs},
    memory::BufferId,
    ops::{Columns, SiteAt},
    pass::TrainPass,
    product::{Rows, Target},
    product_bf16::PairRows,
    run::{PACK_FEATURES, SHRINK_ROWS},
};

/// Features of a chunk of a factor with so many.
fn features(chunk: usize, n: usize) -> Range<usize> {
    (chunk * PACK_FEATURES).min(n)..((chunk + 1) * PACK_FEATURES).min(n)
}

impl TrainPass {
    /// Forward: `Aᵀ`, `[K, R]`, and `Bᵀ`, `[R, N]`. Backward: `A`, `[R, K]`, and `B`, `[N, R]`, with padding.
    pub(super) fn pack(&mut self, chunks: Range<usize>, site: SiteAt, backward: bool) {
        match self.input.precision {
            ProductPrecision::F32 => self.pack_f32(chunks, site, backward),
            ProductPrecision::Bf16 => self.pack_pairs(chunks, site, backward),
        }
    }

    fn pack_f32(&mut self, chunks: Range<usize>, site: SiteAt, backward: bool) {
        let ids = self.memory.packed[site.part];
        let [mut first, mut second] = ids.map(|id| self.memory.take(id));
        let weights = self.input.site_weights(site);
        let (n_out, n_in) = self.input.site_shape(site);
        let (rank, narrow, wide) = (weights.rank, padded(weights.rank), self.memory.widths.widest);
        let (first_parts, second_parts) =
            (Parts::new(&mut first.values), Parts::new(&mut second.values));
        let start = chunks.start;
        self.team.run(chunks.len(), |chunk, _| {
            let index = start + chunk;
            // The factor of few long rows is one chunk's.
            let rows = if index == 0 { 0..rank } else { 0..0 };
            if backward {
                copy_padded(&weights.a, n_in, rows, &first_parts, wide);
                copy_padded(&weights.b, rank, features(index, n_out), &second_parts, narrow);
            } else {
                copy_turned(&weights.a, n_in, features(index, n_in), &first_parts, narrow);
                copy_turned(&weights.b, rank, rows, &second_parts, wide);
            }
        });
        self.memory.put(ids[0], first);
        self.memory.put(ids[1], second);
    }

    /// The same in pairs of rows.
    fn pack_pairs(&mut self, chunks: Range<usize>, site: SiteAt, backward: bool) {
        let [mut first, mut second] = std::mem::take(&mut self.memory.pairs.packed[site.part]);
        let (isa, weights) = (self.input.isa, self.input.site_weights(site));
        let (n_out, n_in) = self.input.site_shape(site);
        let (rank, narrow, wide) = (weights.rank, padded(weights.rank), self.memory.widths.widest);
        let (a, b) = (weights.a.as_slice(), weights.b.as_slice());
        let (first_parts, second_parts) = (Parts::new(&mut first), Parts::new(&mut second));
        let start = chunks.start;
        self.team.run(chunks.len(), |chunk, _| {
            let index = start + chunk;
            if backward {
                let pairs = if index == 0 { 0..rank.div_ceil(2) } else { 0..0 };
                let to = &first_parts;
                isa.run_bf16(PackPairs { from: a, width: n_in, pairs, to, stride: wide });
                let features = features(index, n_out);
                let pairs = features.start / 2..features.end.div_ceil(2);
                let to = &second_parts;
                isa.run_bf16(PackPairs { from: b, width: rank, pairs, to, stride: narrow });
            } else {
                for block in 0..narrow / LANES {
                    let (columns, to) = (features(index, n_in), &first_parts);
                    let (width, stride) = (n_in, narrow);
                    isa.run_bf16(TurnPairs { from: a, width, columns, block, to, stride });
                }
                let features = features(index, n_out);
                for block in features.start / LANES..features.end.div_ceil(LANES) {
                    let (columns, to) = (0..rank, &second_parts);
                    let (width, stride) = (rank, wide);
                    isa.run_bf16(TurnPairs { from: b, width, columns, block, to, stride });
                }
            }
        });
        self.memory.pairs.packed[site.part] = [first, second];
    }

    pub(super) fn shrink(&mut self, chunks: Range<usize>, site: SiteAt, x: BufferId) {
        let (_, n_in) = self.input.site_shape(site);
        self.shrink_rows(chunks, site, Columns { buffer: x, column: 0 }, n_in, site.v, 0);
    }

    pub(super) fn shrink_back(&mut self, chunks: Range<usize>, site: SiteAt, dy: Columns) {
        let (n_out, _) = self.input.site_shape(site);
        let dv = Columns { buffer: self.memory.dv[site.part], column: 0 };
        self.shrink_rows(chunks, site, dy, n_out, dv, 1);
    }

    /// `out = s x factor`, with the first or second packed factor.
    fn shrink_rows(
        &mut self,
        chunks: Range<usize>,
        site: SiteAt,
        x: Columns,
        n_in: usize,
        out: Columns,
        factor: usize,
    ) {
        let mut to = self.memory.take(out.buffer);
        let mut rounded = std::mem::take(&mut self.memory.pairs.v[site.part]);
        let (input, memory, stride) = (&self.input, &self.memory, to.stride);
        let (isa, weights, n_rows) = (input.isa, input.site_weights(site), input.plan.n_rows());
        let (lora_scale, narrow) = (weights.lora_scale, padded(weights.rank));
        let rounded_stride = rounded.stride;
        let (parts, rounded_parts) = (Parts::new(&mut to.values), Parts::new(&mut rounded.pairs));
        let target = Target { parts: &parts, start: out.column, stride };
        let first = chunks.start;
        self.team.run(chunks.len(), |chunk, _| {
            let start = (first + chunk) * SHRINK_ROWS;
            let rows = start..n_rows.min(start + SHRINK_ROWS);
            match input.precision {
                ProductPrecision::F32 => {
                    let packed = &memory[memory.packed[site.part][factor]].values;
                    let (x, factor) = (memory.rows(x), Rows::new(packed, narrow));
                    isa.run(ShrinkRows { rows, n_in, x, factor, lora_scale, out: target });
                }
                ProductPrecision::Bf16 => isa.run_bf16(ShrinkPairs {
                    rows,
                    n_in,
                    x: memory.pairs.rounded.rows().from(x.column / 2),
                    factor: PairRows {
                        pairs: &memory.pairs.packed[site.part][factor],
                        stride: narrow,
                    },
                    lora_scale,
                    out: target,
                    rounded: &rounded_parts,
                    rounded_stride,
                }),
            }
        });
        self.memory.put(out.buffer, to);
        self.memory.pairs.v[site.part] = rounded;
    }

    pub(super) fn pair_up(&mut self, chunks: Range<usize>, site: SiteAt, v: Columns) {
        let mut by_twos = std::mem::take(&mut self.memory.pairs.by_twos);
        let (input, rows) = (&self.input, self.memory.rows(v));
        let (isa, width) = (input.isa, padded(input.site_weights(site).rank));
        let (to, first) = (Parts::new(&mut by_twos), chunks.start);
        self.team.run(chunks.len(), |chunk, _| {
            let sequence = input.plan.sequences[first + chunk].clone();
            isa.run_bf16(PairSequence { sequence, rows, width, to: &to });
        });
        self.memory.pairs.by_twos = by_twos;
    }

    pub(super) fn gradient_a(&mut self, chunks: Range<usize>, site: SiteAt, x: BufferId) {
        let dv = Columns { buffer: self.memory.dv[site.part], column: 0 };
        self.gradient(chunks, site, Factor::A, dv, Columns { buffer: x, column: 0 });
    }

    pub(super) fn gradient_b(&mut self, chunks: Range<usize>, site: SiteAt, dy: Columns) {
        self.gradient(chunks, site, Factor::B, site.v, dy);
    }

    fn gradient(
        &mut self,
        chunks: Range<usize>,
        site: SiteAt,
        factor: Factor,
        v: Columns,
        x: Columns,
    ) {
        let mut scratch = std::mem::take(&mut self.memory.scratch);
        let (input, memory) = (&self.input, &self.memory);
        let (isa, rank) = (input.isa, input.site_weights(site).rank);
        let (n_out, n_in) = input.site_shape(site);
        let of_site = &mut self.gradients.sites[site.index];
        let (n_features, gradient) = match factor {
            Factor::A => (n_in, &mut of_site.a),
            Factor::B => (n_out, &mut of_site.b),
        };
        let (parts, scratch_parts) = (Parts::new(gradient), Parts::new(&mut scratch));
        let first = chunks.start;
        self.team.run(chunks.len(), |chunk, thread| {
            let start = (first + chunk) * GRADIENT_COLUMNS;
            macro_rules! panel {
                ($v:expr) => {
                    GradientPanel {
                        factor,
                        rank,
                        n_features,
                        columns: start..n_features.min(start + GRADIENT_COLUMNS),
                        n_rows: input.plan.n_rows(),
                        v: $v,
                        x: memory.rows(x),
                        gradient: &parts,
                        scratch: &mut scratch_parts.row(thread, 1)[0],
                    }
                };
            }
            match input.precision {
                ProductPrecision::F32 => isa.run(panel!(memory.rows(v))),
                ProductPrecision::Bf16 => {
                    let pairs = PairRows { pairs: &memory.pairs.by_twos, stride: padded(rank) };
                    let sequences = input.plan.sequences.as_slice();
                    isa.run_bf16(panel!(ByTwos { pairs, sequences }));
                }
            }
        });
        self.memory.scratch = scratch;
    }
}
