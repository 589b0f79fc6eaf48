//! Operations that treat every row by itself.

use std::ops::Range;

use crate::cpu::{
    elementwise::{HeadNorm, RmsNorm, Rope, SwiGlu},
    threads::{Parts, Team},
};

use super::{
    elementwise::{HeadNormBack, RmsNormBack, SwiGluBack, Transpose},
    memory::BufferId,
    ops::{Columns, Norm, SiteAt},
    pass::TrainPass,
    run::ROWS,
};

/// Calls `work(row)` for all rows of some chunks.
pub(super) fn for_rows(
    team: &mut Team,
    chunks: Range<usize>,
    n_rows: usize,
    work: impl Fn(usize) + Sync,
) {
    let first = chunks.start;
    team.run(chunks.len(), |chunk, _| {
        let start = (first + chunk) * ROWS;
        (start..n_rows.min(start + ROWS)).for_each(&work);
    });
}

impl TrainPass {
    pub(super) fn embed(&mut self, chunks: Range<usize>) {
        let id = self.memory.residual[0];
        let mut out = self.memory.take(id);
        let (base, stride) = (&self.input.base, out.stride);
        let (parts, tokens) = (Parts::new(&mut out.values), self.input.plan.batch.token_ids());
        for_rows(&mut self.team, chunks, tokens.len(), |row| {
            let values = &mut parts.row(row, stride)[..base.spec.hidden];
            base.embedding.row_values(tokens[row] as usize, values);
        });
        self.memory.put(id, out);
    }

    pub(super) fn copy(&mut self, chunks: Range<usize>, from: BufferId, to: BufferId) {
        let mut out = self.memory.take(to);
        let (from, stride) = (&self.memory[from], out.stride);
        let parts = Parts::new(&mut out.values);
        for_rows(&mut self.team, chunks, self.input.plan.n_rows(), |row| {
            parts.row(row, stride).copy_from_slice(from.row(row));
        });
        self.memory.put(to, out);
    }

    pub(super) fn zero(&mut self, chunks: Range<usize>, id: BufferId) {
        let n_rows = self.input.plan.n_rows();
        let buffer = &mut self.memory[id];
        let (start, end) = (chunks.start * ROWS, n_rows.min(chunks.end * ROWS));
        buffer.values[start * buffer.stride..end * buffer.stride].fill(0.0);
    }

    pub(super) fn norm(&mut self, chunks: Range<usize>, x: BufferId, norm: Norm, out: BufferId) {
        let mut to = self.memory.take(out);
        let (input, x, stride) = (&self.input, &self.memory[x], to.stride);
        let (isa, eps, weight) = (input.isa, input.base.spec.rms_eps, input.norm_weight(norm));
        let parts = Parts::new(&mut to.values);
        for_rows(&mut self.team, chunks, input.plan.n_rows(), |row| {
            let out = &mut parts.row(row, stride)[..weight.len()];
            isa.run(RmsNorm { x: x.row(row), weight, eps, out });
        });
        self.memory.put(out, to);
    }

    pub(super) fn norm_back(
        &mut self,
        chunks: Range<usize>,
        x: BufferId,
        norm: Norm,
        dy: BufferId,
        dx: BufferId,
    ) {
        let mut to = self.memory.take(dx);
        let (input, stride) = (&self.input, to.stride);
        let (x, dy) = (&self.memory[x], &self.memory[dy]);
        let (isa, eps, weight) = (input.isa, input.base.spec.rms_eps, input.norm_weight(norm));
        let parts = Parts::new(&mut to.values);
        for_rows(&mut self.team, chunks, input.plan.n_rows(), |row| {
            let (x, dy, dx) = (x.row(row), dy.row(row), parts.row(row, stride));
            isa.run(RmsNormBack { x, weight, eps, dy, dx });
        });
        self.memory.put(dx, to);
    }

    pub(super) fn swiglu(&mut self, chunks: Range<usize>, gate_up: BufferId) {
        let id = self.memory.product;
        let mut out = self.memory.take(id);
        let (isa, width, stride) = (self.input.isa, self.memory.widths.ffn, out.stride);
        let gate_up = &self.memory[gate_up];
        let parts = Parts::new(&mut out.values);
        for_rows(&mut self.team, chunks, self.input.plan.n_rows(), |row| {
            let (gate, rest) = gate_up.row(row).split_at(width);
            isa.run(SwiGlu { gate, up: &rest[..width], out: &mut parts.row(row, stride)[..width] });
        });
        self.memory.put(id, out);
    }

    pub(super) fn swiglu_back(&mut self, chunks: Range<usize>, gate_up: BufferId) {
        let mut buffer = self.memory.take(gate_up);
        let (isa, width, stride) = (self.input.isa, self.memory.widths.ffn, buffer.stride);
        let dy = &self.memory[self.memory.product];
        let parts = Parts::new(&mut buffer.values);
        for_rows(&mut self.team, chunks, self.input.plan.n_rows(), |row| {
            let (gate, rest) = parts.row(row, stride).split_at_mut(width);
            let (up, dy) = (&mut rest[..width], &dy.row(row)[..width]);
            isa.run(SwiGluBack { gate, up, dy });
        });
        self.memory.put(gate_up, buffer);
    }

    pub(super) fn drop_inputs(&mut self, chunks: Range<usize>, site: SiteAt, x: BufferId) {
        let Some(dropped) = self.input.dropped(site) else { return };
        let id = self.memory.dropped;
        let mut out = self.memory.take(id);
        let (x, stride) = (&self.memory[x], out.stride);
        let parts = Parts::new(&mut out.values);
        for_rows(&mut self.team, chunks, self.input.plan.n_rows(), |row| {
            // Whole vectors, as products read them; padding of x is zero, and stays so.
            let (x, out) = (x.row(row), parts.row(row, stride));
            let out = &mut out[..x.len()];
            dropped.masks.factors(dropped.places[row], dropped.site, 0, out);
            for (out, x) in out.iter_mut().zip(x) {
                *out *= x;
            }
        });
        self.memory.put(id, out);
    }

    /// Queries and keys as attention takes them.
    pub(super) fn rotate(&mut self, chunks: Range<usize>, layer: usize, qkv: BufferId) {
        let id = self.memory.rotated;
        let mut rotated = self.memory.take(id);
        let (qkv, widths) = (&self.memory[qkv], &self.memory.widths);
        let (input, stride) = (&self.input, rotated.stride);
        let (isa, eps) = (input.isa, input.base.spec.rms_eps);
        let (scale, norms) = (input.softmax_scale(), input.head_norms(layer));
        let parts = Parts::new(&mut rotated.values);
        for_rows(&mut self.team, chunks, input.plan.n_rows(), |row| {
            let values = &mut parts.row(row, stride)[..widths.q + widths.kv];
            values.copy_from_slice(&qkv.row(row)[..widths.q + widths.kv]);
            let (q, k) = values.split_at_mut(widths.q);
            if let Some(norms) = norms {
                isa.run(HeadNorm { x: &mut *q, weight: &norms.q, eps });
                isa.run(HeadNorm { x: &mut *k, weight: &norms.k, eps });
            }
            let (cos, sin) = input.angles(row, false);
            isa.run(Rope { x: q, cos, sin, factor: scale });
            isa.run(Rope { x: k, cos, sin, factor: 1.0 });
        });
        self.memory.put(id, rotated);
    }

    pub(super) fn rotate_back(&mut self, chunks: Range<usize>, layer: usize, qkv: BufferId) {
        let id = self.memory.d_qkv;
        let mut d_qkv = self.memory.take(id);
        let (qkv, widths) = (&self.memory[qkv], &self.memory.widths);
        let (input, stride) = (&self.input, d_qkv.stride);
        let (isa, eps) = (input.isa, input.base.spec.rms_eps);
        let (scale, norms) = (input.softmax_scale(), input.head_norms(layer));
        let parts = Parts::new(&mut d_qkv.values);
        for_rows(&mut self.team, chunks, input.plan.n_rows(), |row| {
            let (dq, rest) = parts.row(row, stride).split_at_mut(widths.q);
            let dk = &mut rest[..widths.kv];
            // A rotation's transpose is the rotation back.
            let (cos, sin) = input.angles(row, true);
            isa.run(Rope { x: &mut *dq, cos, sin, factor: scale });
            isa.run(Rope { x: &mut *dk, cos, sin, factor: 1.0 });
            if let Some(norms) = norms {
                let (q, rest) = qkv.row(row).split_at(widths.q);
                isa.run(HeadNormBack { x: q, weight: &norms.q, eps, d: dq });
                isa.run(HeadNormBack { x: &rest[..widths.kv], weight: &norms.k, eps, d: dk });
            }
        });
        self.memory.put(id, d_qkv);
    }

    /// Keys or values turned round.
    pub(super) fn turn(&mut self, chunks: Range<usize>, from: Columns, to: BufferId) {
        let mut out = self.memory.take(to);
        let (isa, kv, out_stride) = (self.input.isa, self.memory.widths.kv, out.stride);
        let (from, column) = (&self.memory[from.buffer], from.column);
        let parts = Parts::new(&mut out.values);
        let (first, n_rows) = (chunks.start, self.input.plan.n_rows());
        self.team.run(chunks.len(), |chunk, _| {
            let start = (first + chunk) * ROWS;
            isa.run(Transpose {
                rows: &from.values[start * from.stride + column..],
                stride: from.stride,
                n_rows: ROWS.min(n_rows - start),
                n_columns: kv,
                out: &parts,
                out_start: start,
                out_stride,
            });
        });
        self.memory.put(to, out);
    }
}
