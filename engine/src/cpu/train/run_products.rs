//! Linears, and what they read in bf16.

use std::ops::Range;

use crate::cpu::{packed::BLOCK, simd::LANES, threads::Parts};

use super::{
    input::AdapterHalf,
    linear::LinearPanel,
    linear_back::LinearBackPanel,
    memory::BufferId,
    ops::{Columns, LinearAt, Side, SiteAt},
    panel::PANEL,
    pass::TrainPass,
    product::{Sum, Target},
    product_bf16::RoundRows,
    run::{PANEL_ROWS, ROWS},
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
            Side::Out(at) => {
                let first = self.memory.widths.column(at.module);
                (n_rows, first + input.matrix(at).n_tiles() * LANES)
            }
            Side::Head => (n_head_rows, input.base.head.n_in),
            Side::Logits(n_tiles) => (n_head_rows, n_tiles * LANES),
        }
    }

    pub(super) fn round(&mut self, chunks: Range<usize>, from: BufferId, side: Side) {
        let (n_rows, n_columns) = self.side(side);
        let mut rounded = std::mem::take(&mut self.memory.pairs.rounded);
        let (isa, stride) = (self.input.isa, rounded.stride);
        let from = self.memory.rows(Columns { buffer: from, column: 0 });
        let n_columns = n_columns.next_multiple_of(LANES).min(from.stride);
        let (to, first) = (Parts::new(&mut rounded.pairs), chunks.start);
        self.team.run(chunks.len(), |chunk, _| {
            let start = (first + chunk) * ROWS;
            let rows = start..n_rows.min(start + ROWS);
            isa.run_bf16(RoundRows { rows, n_columns, from, to: &to, stride });
        });
        self.memory.pairs.rounded = rounded;
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
        let (input, stride) = (&self.input, to.stride);
        let (isa, linear, n_rows) = (input.isa, input.linear(at), input.plan.n_rows());
        let (matrix, bias) = (&*linear.matrix, linear.bias.as_deref());
        let half = site.map(|site| AdapterHalf { site, v: site.v, factor: 1 });
        let factors = input.inputs(&self.memory, Columns { buffer: x, column: 0 }, half);
        let (parts, scratch_parts) = (Parts::new(&mut to.values), Parts::new(&mut scratch));
        let (first, n_panels) = (chunks.start, matrix.n_out.div_ceil(PANEL));
        self.team.run(chunks.len(), |chunk, thread| {
            let (panel, rows) = panel_and_rows(first + chunk, n_panels, n_rows);
            let panel = LinearPanel {
                matrix,
                tiles: panel * TILES..matrix.n_tiles().min((panel + 1) * TILES),
                rows,
                factors,
                bias,
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
        let half = site.map(|site| {
            let v = Columns { buffer: memory.dv[site.part], column: 0 };
            AdapterHalf { site, v, factor: 0 }
        });
        let factors = input.inputs(memory, dy, half);
        let dropped = site.and_then(|site| input.dropped(site));
        let (parts, scratch_parts) = (Parts::new(&mut to.values), Parts::new(&mut scratch));
        let (first, n_panels) = (chunks.start, matrix.n_in / BLOCK);
        self.team.run(chunks.len(), |chunk, thread| {
            let (block, rows) = panel_and_rows(first + chunk, n_panels, n_rows);
            let panel = LinearBackPanel {
                matrix,
                tiles: 0..matrix.n_tiles(),
                block,
                rows,
                factors,
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
}
