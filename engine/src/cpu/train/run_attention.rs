//! Attention of all tiles and heads.
#![expect(unsafe_code, reason = "tasks write disjoint parts of one buffer")]

use std::ops::Range;

use crate::{cpu::threads::Parts, site::TargetModule, spec::ModelSpec};

use super::{
    attention::{Attend, AttendBackKeys, AttendBackRows, HeadView, QueryTile},
    memory::{Memory, Record},
    pass::TrainPass,
    plan::{Group, head_values},
    product::{Rows, Target},
};

/// Where a query head's vectors are.
fn head_view<'a>(
    memory: &'a Memory,
    spec: &ModelSpec,
    record: Record,
    head: usize,
) -> HeadView<'a> {
    let (dim, kv_head) = (spec.head_dim, head / (spec.n_heads / spec.n_kv_heads));
    let widths = &memory.widths;
    let rows = |id, start| {
        let buffer: &super::memory::Buffer = &memory[id];
        Rows::new(&buffer.values[start..], buffer.stride)
    };
    let turned = |id| rows(id, kv_head * dim * memory[id].stride);
    HeadView {
        dim,
        q: rows(memory.rotated, head * dim),
        k: rows(memory.rotated, widths.column(TargetModule::KProj) + kv_head * dim),
        v: rows(record.qkv, widths.column(TargetModule::VProj) + kv_head * dim),
        k_turned: turned(memory.k_turned),
        v_turned: turned(memory.v_turned),
    }
}

/// Where `p` (0) or `ds` (1) of a tile and head are in the group's buffer: start and length.
fn weights_at(
    group: &Group,
    tile: (usize, &QueryTile),
    head: usize,
    which: usize,
) -> (usize, usize) {
    let (index, tile) = tile;
    let values = head_values(tile);
    let start = group.starts[index - group.tiles.start] + (2 * head + which) * values;
    (start, tile.n_rows * tile.span())
}

impl TrainPass {
    pub(super) fn attend(&mut self, chunks: Range<usize>, record: Record) {
        let ids = [record.attended, record.lse];
        let [mut out, mut lse] = ids.map(|id| self.memory.take(id));
        let mut scratch = std::mem::take(&mut self.memory.scratch);
        let (isa, spec, memory) = (self.input.isa, &self.input.base.spec, &self.memory);
        let (out_stride, lse_stride) = (out.stride, lse.stride);
        let (out_parts, lse_parts) = (Parts::new(&mut out.values), Parts::new(&mut lse.values));
        let scratch_parts = Parts::new(&mut scratch);
        let (first, tiles) = (chunks.start, &self.input.plan.tiles);
        self.team.run(chunks.len(), |chunk, thread| {
            let (tile, head) =
                (tiles[(first + chunk) / spec.n_heads], (first + chunk) % spec.n_heads);
            // SAFETY: a tile's rows of one head are one task's.
            let lse = unsafe { lse_parts.part(head * lse_stride + tile.start, tile.n_rows) };
            isa.run(Attend {
                tile,
                head: head_view(memory, spec, record, head),
                out: Target { parts: &out_parts, start: head * spec.head_dim, stride: out_stride },
                lse,
                scratch: &mut scratch_parts.row(thread, 1)[0],
            });
        });
        self.memory.scratch = scratch;
        self.memory.put(record.attended, out);
        self.memory.put(record.lse, lse);
    }

    pub(super) fn attend_back_rows(&mut self, chunks: Range<usize>, record: Record, group: usize) {
        let ids = [self.memory.group, self.memory.d_qkv];
        let [mut weights, mut d_qkv] = ids.map(|id| self.memory.take(id));
        let (input, memory) = (&self.input, &self.memory);
        let (isa, spec, group) = (input.isa, &input.base.spec, &input.plan.groups[group]);
        let stride = d_qkv.stride;
        let (weight_parts, dq_parts) =
            (Parts::new(&mut weights.values), Parts::new(&mut d_qkv.values));
        let (out, d_out) = (&memory[record.attended], &memory[memory.d_attended]);
        let lse = &memory[record.lse];
        let first = chunks.start;
        self.team.run(chunks.len(), |chunk, _| {
            let index = group.tiles.start + (first + chunk) / spec.n_heads;
            let (head, tile) = ((first + chunk) % spec.n_heads, &input.plan.tiles[index]);
            let column = head * spec.head_dim;
            let [p, ds] = [0, 1].map(|which| {
                let (start, len) = weights_at(group, (index, tile), head, which);
                // SAFETY: places of tiles, heads and kinds do not overlap.
                unsafe { weight_parts.part(start, len) }
            });
            isa.run(AttendBackRows {
                tile: *tile,
                head: head_view(memory, spec, record, head),
                out: Rows::new(&out.values[column..], out.stride),
                d_out: Rows::new(&d_out.values[column..], d_out.stride),
                lse: &lse.row(head)[tile.start..][..tile.n_rows],
                p,
                ds,
                dq: Target { parts: &dq_parts, start: column, stride },
            });
        });
        self.memory.put(ids[0], weights);
        self.memory.put(ids[1], d_qkv);
    }

    pub(super) fn attend_back_keys(&mut self, chunks: Range<usize>, group: usize) {
        let id = self.memory.d_qkv;
        let mut d_qkv = self.memory.take(id);
        let (input, memory) = (&self.input, &self.memory);
        let (isa, spec, group) = (input.isa, &input.base.spec, &input.plan.groups[group]);
        let (dim, of_kv_head) = (spec.head_dim, spec.n_heads / spec.n_kv_heads);
        let stride = d_qkv.stride;
        let parts = Parts::new(&mut d_qkv.values);
        let (q, d_out) = (&memory[memory.rotated], &memory[memory.d_attended]);
        let (weights, widths) = (&memory[memory.group].values, &memory.widths);
        let first = chunks.start;
        self.team.run(chunks.len(), |chunk, _| {
            let (task, kv_head) =
                ((first + chunk) / spec.n_kv_heads, (first + chunk) % spec.n_kv_heads);
            let task = &group.key_tasks[task];
            let target = |module| Target {
                parts: &parts,
                start: widths.column(module) + kv_head * dim,
                stride,
            };
            for index in task.tiles.clone() {
                let tile = &input.plan.tiles[index];
                for head in kv_head * of_kv_head..(kv_head + 1) * of_kv_head {
                    let [p, ds] = [0, 1].map(|which| {
                        let (start, len) = weights_at(group, (index, tile), head, which);
                        &weights[start..start + len]
                    });
                    isa.run(AttendBackKeys {
                        tile: *tile,
                        dim,
                        keys: task.keys.start..task.keys.end.min(tile.start + tile.n_rows),
                        q: Rows::new(&q.values[head * dim..], q.stride),
                        d_out: Rows::new(&d_out.values[head * dim..], d_out.stride),
                        p,
                        ds,
                        dk: target(TargetModule::KProj),
                        dv: target(TargetModule::VProj),
                    });
                }
            }
        });
        self.memory.put(id, d_qkv);
    }
}
