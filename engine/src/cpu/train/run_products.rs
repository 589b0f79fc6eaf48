//! Linears, the adapter's factors and their gradients.

use std::ops::Range;

use crate::cpu::{packed::BLOCK, simd::LANES, threads::Parts};

use super::{
    linear::{LinearBackPanel, LinearPanel, LowRank},
    lora::{Factor, GradientPanel, ShrinkRows, copy_padded, copy_turned, padded},
    memory::BufferId,
    panel::PANEL,
    pass::TrainPass,
    product::{Rows, Sum, Target},
    product_bf16::RoundRows,
    program::{Columns, LinearAt, Side, SiteAt},
    run::{PACK_FEATURES, PANEL_ROWS, ROWS, SHRINK_ROWS},
};

/// Tiles of a forward panel.
const TILES: usize = PANEL / LANES;

/// The panel and the rows of a chunk, of `n_panels` panels.
pub(super) fn panel_and_rows(
    chunk: usize,
    n_panels: usize,
    n_rows: usize,
) -> (usize, Range<usize>) {
    let start = chunk / n_panels * PANEL_ROWS;
    (chunk % n_panels, start..n_rows.min(start + PANEL_ROWS))
}

impl TrainPass {
    /// Rows and columns of what is rounded.
    pub(super) fn side(&self, side: Side) -> (usize, usize) {
        let (input, n_head_rows) = (&self.input, self.input.plan.head_rows().len());
        let n_rows = input.plan.n_rows();
        match side {
            Side::In(at) => (n_rows, input.matrix(at).n_in),
            Side::Out(at) => (n_rows, input.matrix(at).n_tiles() * LANES),
            Side::Head => (n_head_rows, input.base.head.n_in),
            Side::Logits(n_tiles) => (n_head_rows, n_tiles * LANES),
        }
    }

    pub(super) fn round(&mut self, chunks: Range<usize>, from: Columns, side: Side) {
        let (n_rows, n_columns) = self.side(side);
        let mut to = std::mem::take(&mut self.memory.rounded);
        let (isa, stride) = (self.input.isa, self.memory.rounded_stride);
        let buffer = &self.memory[from.buffer];
        let from = Rows::new(&buffer.values[from.column..], buffer.stride);
        let (parts, first) = (Parts::new(&mut to), chunks.start);
        self.team.run(chunks.len(), |chunk, _| {
            let start = (first + chunk) * ROWS;
            let rows = start..n_rows.min(start + ROWS);
            isa.run_bf16(RoundRows { rows, n_columns, from, to: &parts, stride });
        });
        self.memory.rounded = to;
    }

    pub(super) fn linear(
        &mut self,
        chunks: Range<usize>,
        at: LinearAt,
        site: Option<SiteAt>,
        x: BufferId,
        out: Columns,
        accumulate: bool,
    ) {
        let mut to = self.memory.take(out.buffer);
        let mut scratch = std::mem::take(&mut self.memory.scratch);
        let (input, memory, stride) = (&self.input, &self.memory, to.stride);
        let (isa, linear, n_rows) = (input.isa, input.linear(at), input.plan.n_rows());
        let (matrix, bias) = (&*linear.matrix, linear.bias.as_deref());
        let low_rank = site.map(|site| {
            let (v, factor) = (&memory[site.v.buffer], &memory[memory.packed[site.part][1]]);
            LowRank {
                rank: input.site_weights(site).rank,
                v: Rows::new(&v.values[site.v.column..], v.stride),
                factor: Rows::new(&factor.values, memory.widths.widest),
            }
        });
        let x = input.inputs(memory, x, 0);
        let (parts, scratch_parts) = (Parts::new(&mut to.values), Parts::new(&mut scratch));
        let (first, n_panels) = (chunks.start, matrix.n_out.div_ceil(PANEL));
        self.team.run(chunks.len(), |chunk, thread| {
            let (panel, rows) = panel_and_rows(first + chunk, n_panels, n_rows);
            let panel = LinearPanel {
                matrix,
                tiles: panel * TILES..matrix.n_tiles().min((panel + 1) * TILES),
                rows,
                x,
                bias,
                low_rank,
                out: Target { parts: &parts, start: out.column + panel * PANEL, stride },
                accumulate,
                scratch: &mut scratch_parts.row(thread, 1)[0],
            };
            panel.run(isa);
        });
        self.memory.scratch = scratch;
        self.memory.put(out.buffer, to);
    }

    pub(super) fn linear_back(
        &mut self,
        chunks: Range<usize>,
        at: LinearAt,
        site: Option<SiteAt>,
        dy: Columns,
        dx: BufferId,
        accumulate: bool,
    ) {
        let mut to = self.memory.take(dx);
        let mut scratch = std::mem::take(&mut self.memory.scratch);
        let (input, memory, stride) = (&self.input, &self.memory, to.stride);
        let (isa, matrix, n_rows) = (input.isa, input.matrix(at), input.plan.n_rows());
        let low_rank = site.map(|site| {
            let (v, factor) = (&memory[memory.dv[site.part]], &memory[memory.packed[site.part][0]]);
            LowRank {
                rank: input.site_weights(site).rank,
                v: Rows::new(&v.values, v.stride),
                factor: Rows::new(&factor.values, memory.widths.widest),
            }
        });
        let dropped = site.and_then(|site| input.dropped(site));
        let dy = input.inputs(memory, dy.buffer, dy.column);
        let (parts, scratch_parts) = (Parts::new(&mut to.values), Parts::new(&mut scratch));
        let (first, n_panels) = (chunks.start, matrix.n_in / BLOCK);
        self.team.run(chunks.len(), |chunk, thread| {
            let (block, rows) = panel_and_rows(first + chunk, n_panels, n_rows);
            let panel = LinearBackPanel {
                matrix,
                tiles: 0..matrix.n_tiles(),
                block,
                rows,
                dy,
                low_rank,
                dropped,
                dx: Target { parts: &parts, start: 0, stride },
                sum: Sum::goes_on(accumulate),
                scratch: &mut scratch_parts.row(thread, 1)[0],
            };
            panel.run(isa);
        });
        self.memory.scratch = scratch;
        self.memory.put(dx, to);
    }

    /// Forward: `Aᵀ`, `[K, R]`, and `Bᵀ`, `[R, N]`. Backward: `A`, `[R, K]`, and `B`, `[N, R]`, with padding.
    pub(super) fn pack(&mut self, chunks: Range<usize>, site: SiteAt, backward: bool) {
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
            let features =
                |n: usize| (index * PACK_FEATURES).min(n)..((index + 1) * PACK_FEATURES).min(n);
            // The factor of few long rows is one chunk's.
            let rows = if index == 0 { 0..rank } else { 0..0 };
            if backward {
                copy_padded(&weights.a, n_in, rows, &first_parts, wide);
                copy_padded(&weights.b, rank, features(n_out), &second_parts, narrow);
            } else {
                copy_turned(&weights.a, n_in, features(n_in), &first_parts, narrow);
                copy_turned(&weights.b, rank, rows, &second_parts, wide);
            }
        });
        self.memory.put(ids[0], first);
        self.memory.put(ids[1], second);
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
        let (input, memory, stride) = (&self.input, &self.memory, to.stride);
        let (isa, weights, n_rows) = (input.isa, input.site_weights(site), input.plan.n_rows());
        let factor = &memory[memory.packed[site.part][factor]].values;
        let factor = Rows::new(factor, padded(weights.rank));
        let x = Rows::new(&memory[x.buffer].values[x.column..], memory[x.buffer].stride);
        let parts = Parts::new(&mut to.values);
        let first = chunks.start;
        self.team.run(chunks.len(), |chunk, _| {
            let start = (first + chunk) * SHRINK_ROWS;
            isa.run(ShrinkRows {
                rows: start..n_rows.min(start + SHRINK_ROWS),
                n_in,
                x,
                factor,
                lora_scale: weights.lora_scale,
                out: Target { parts: &parts, start: out.column, stride },
            });
        });
        self.memory.put(out.buffer, to);
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
        let rows = |columns: Columns| {
            let buffer = &memory[columns.buffer];
            Rows::new(&buffer.values[columns.column..], buffer.stride)
        };
        let (v, x) = (rows(v), rows(x));
        let (parts, scratch_parts) = (Parts::new(gradient), Parts::new(&mut scratch));
        let first = chunks.start;
        self.team.run(chunks.len(), |chunk, thread| {
            let start = (first + chunk) * PANEL;
            isa.run(GradientPanel {
                factor,
                rank,
                n_features,
                columns: start..n_features.min(start + PANEL),
                n_rows: input.plan.n_rows(),
                v,
                x,
                gradient: &parts,
                scratch: &mut scratch_parts.row(thread, 1)[0],
            });
        });
        self.memory.scratch = scratch;
    }
}
