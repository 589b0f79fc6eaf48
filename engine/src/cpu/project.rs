//! The linears of a layer: adapters' first half and quantized activations, then tiles of the base with everything
//! else in the epilogue.

use crate::{
    backend::{OUTPUT_ALIGN, Output, Projection},
    model::Activations,
    site::Site,
};

use super::{
    backend::{CpuBackend, CpuBuffer, CpuMatrix, CpuVector},
    epilogue::Epilogue,
    int8_rows::QuantizeRow,
    lora::{Ahead, ExpandRows, Shrink},
    matmul_f32::F32Tiles,
    matmul_int8::Int8Tiles,
    packed::{PackedMatrix, Storage},
    resident::{ResidentSite, site_index, sites_after},
    threads::Parts,
};

/// Multiply-adds below which preparing a projection is not worth a second thread.
const INLINE_WORK: usize = 60_000;
/// Chunks of tiles per thread: enough to even out threads that lose time.
pub(crate) const CHUNKS_PER_THREAD: usize = 4;

impl CpuBackend {
    pub(crate) fn project_rows(
        &mut self,
        projection: &Projection<CpuMatrix, CpuVector>,
        x: &CpuBuffer,
        out: &mut CpuBuffer,
        output: Output,
    ) {
        let int8 = self.activations == Activations::Int8
            && projection
                .parts
                .iter()
                .any(|part| matches!(part.matrix.0.storage, Storage::Codes(_)));
        self.prepare(projection, x, int8);
        let Self {
            isa,
            ref spec,
            ref mut team,
            ref plan,
            ref adapters,
            int8: ref int8_rows,
            ref v,
            ref mut scratch,
            ..
        } = *self;
        let n_rows = plan.n_rows;
        let out_stride = out.stride;
        let out = Parts::new(&mut out.values);
        let scratch = Parts::new(scratch);
        let lora = !plan.groups().is_empty();
        let n_tiles: usize = projection.parts.iter().map(|part| part.matrix.0.n_tiles()).sum();
        let per_chunk = n_tiles.div_ceil(team.n_threads() * CHUNKS_PER_THREAD);
        let last = projection.parts.last().map_or(0, |linear| {
            site_index(spec, Site { layer: projection.layer, module: linear.module })
        });
        let next = sites_after(spec, last);
        team.run(n_tiles.div_ceil(per_chunk), |chunk, thread| {
            let wanted = chunk * per_chunk..(chunk + 1) * per_chunk;
            let (mut first, mut column) = (0, 0);
            for (part, linear) in projection.parts.iter().enumerate() {
                let matrix = &linear.matrix.0;
                let tiles = wanted.start.max(first) - first
                    ..wanted.end.min(first + matrix.n_tiles()).saturating_sub(first);
                if !tiles.is_empty() {
                    let site = Site { layer: projection.layer, module: linear.module };
                    let site = site_index(spec, site);
                    let epilogue = Epilogue {
                        out: &out,
                        stride: out_stride,
                        column,
                        accumulate: output == Output::Add,
                        bias: linear.bias.as_ref().map(|bias| bias.values.as_slice()),
                        lora: lora.then(|| ExpandRows {
                            adapters,
                            slots: &plan.slots,
                            groups: plan.groups(),
                            site,
                            v,
                            part,
                            ahead: Ahead { sites: next.clone(), first_tile: first, n_tiles },
                        }),
                    };
                    if int8 && matches!(matrix.storage, Storage::Codes(_)) {
                        isa.run(Int8Tiles {
                            matrix,
                            tiles,
                            rows: int8_rows,
                            n_rows,
                            epilogue: &epilogue,
                        });
                    } else {
                        let scratch = &mut scratch.row(thread, 1)[0];
                        let (x, x_stride) = (x.values.as_slice(), x.stride);
                        isa.run(F32Tiles {
                            matrix,
                            tiles,
                            x,
                            x_stride,
                            n_rows,
                            epilogue: &epilogue,
                            scratch,
                        });
                    }
                }
                first += matrix.n_tiles();
                column += matrix.n_out.next_multiple_of(OUTPUT_ALIGN);
            }
        });
    }

    /// Quantizes the rows of `x` (if `quantize`) and computes the adapters' `A x`.
    fn prepare(
        &mut self,
        projection: &Projection<CpuMatrix, CpuVector>,
        x: &CpuBuffer,
        quantize: bool,
    ) {
        let Self {
            isa,
            ref spec,
            ref mut team,
            ref plan,
            ref adapters,
            ref mut int8,
            ref mut v,
            ref mut shrink,
            ..
        } = *self;
        let n_in = widest_input(projection.parts.iter().map(|part| &*part.matrix.0));
        let mut work = if quantize { plan.n_rows * n_in } else { 0 };
        shrink.clear();
        for (group, rows) in plan.groups().iter().enumerate() {
            for (part, linear) in projection.parts.iter().enumerate() {
                let site = Site { layer: projection.layer, module: linear.module };
                let site = site_index(spec, site);
                let resident =
                    adapters[rows.slot as usize].as_ref().and_then(|adapter| adapter.site(site));
                for tile in 0..resident.map_or(0, ResidentSite::rank_tiles) {
                    shrink.push((group, part, tile));
                    work += rows.rows.len() * n_in * 16;
                }
            }
        }
        let n_quantize = if quantize { plan.n_rows.min(4 * team.n_threads()) } else { 0 };
        let rows_per_chunk = if n_quantize > 0 { plan.n_rows.div_ceil(n_quantize) } else { 0 };
        let writer = int8.writer(n_in);
        let v = Parts::new(v);
        let (shrink, x_stride) = (&*shrink, x.stride);
        let run_chunk = |chunk: usize| {
            if let Some(task) = chunk.checked_sub(n_quantize) {
                let (group, part, rank_tile) = shrink[task];
                let rows = &plan.groups()[group];
                let site = Site { layer: projection.layer, module: projection.parts[part].module };
                let site = site_index(spec, site);
                let resident =
                    adapters[rows.slot as usize].as_ref().and_then(|adapter| adapter.site(site));
                if let Some(site) = resident {
                    isa.run(Shrink {
                        site,
                        rank_tile,
                        rows: &rows.rows,
                        x: &x.values,
                        x_stride,
                        v: &v,
                        part,
                    });
                }
            } else {
                for row in chunk * rows_per_chunk..plan.n_rows.min((chunk + 1) * rows_per_chunk) {
                    isa.run(QuantizeRow { writer: &writer, row, x: &x.row(row)[..n_in] });
                }
            }
        };
        let n_chunks = n_quantize + shrink.len();
        if work < INLINE_WORK {
            (0..n_chunks).for_each(run_chunk);
        } else {
            team.run(n_chunks, |chunk, _| run_chunk(chunk));
        }
    }
}

/// Stored width of the matrices that share an input.
fn widest_input<'a>(matrices: impl Iterator<Item = &'a PackedMatrix>) -> usize {
    matrices.map(|matrix| matrix.n_in).max().unwrap_or(0)
}
