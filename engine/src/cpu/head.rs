//! The last norm, the head and the choice of tokens, for the rows whose logits are wanted.
//!
//! Rows whose adapter acts on the head are put behind the others, side by side with those of the same adapter: rows of
//! the base's head are then one product, and those of each head of an adapter's own another.

use std::{ops::Range, sync::Arc};

use crate::{
    model::Activations,
    sampler::{SampledToken, sample},
    site::Site,
    spec::ModelSpec,
    step_batch::{SampleRow, StepBatch},
};

use super::{
    backend::{CpuBackend, CpuBuffer, CpuMatrix, CpuVector},
    elementwise::RmsNorm,
    epilogue::Epilogue,
    int8_rows::QuantizeRow,
    lora::{Ahead, ExpandRows, NO_SLOT, Shrink, V_STRIDE},
    matmul_f32::F32Tiles,
    matmul_int8::Int8Tiles,
    packed::{BLOCK, PackedMatrix, Storage},
    plan::StepPlan,
    project::CHUNKS_PER_THREAD,
    resident::{ResidentAdapter, ResidentSite, site_index},
    simd::LANES,
    threads::Parts,
};

/// Rows whose logits are in memory at a time.
pub const HEAD_ROWS_MAX: usize = 32;

/// Memory of the head.
#[derive(Debug)]
pub(crate) struct HeadBuffers {
    /// `[HEAD_ROWS_MAX, hidden]`, padded.
    normed: Vec<f32>,
    hidden: usize,
    /// `[HEAD_ROWS_MAX, vocab]`, padded.
    logits: Vec<f32>,
    vocab: usize,
    /// `0..HEAD_ROWS_MAX`.
    rows: Vec<u32>,
    plan: HeadPlan,
}

impl HeadBuffers {
    pub(crate) fn new(spec: &ModelSpec, max_rows: usize) -> Self {
        let rows = HEAD_ROWS_MAX.min(max_rows);
        let (hidden, vocab) =
            (spec.hidden.next_multiple_of(BLOCK), spec.vocab.next_multiple_of(LANES));
        Self {
            normed: vec![0.0; rows * hidden],
            hidden,
            logits: vec![0.0; rows * vocab],
            vocab,
            rows: (0..).take(rows).collect(),
            plan: HeadPlan::default(),
        }
    }
}

/// The rows of a call in the order in which they are computed. Vectors keep their memory from step to step.
#[derive(Debug, Default)]
struct HeadPlan {
    /// Which of the wanted rows.
    order: Vec<usize>,
    /// Slot of each row, in order, if its adapter acts on the head; else [`NO_SLOT`].
    slots: Vec<u32>,
    /// Rows with the base's head.
    n_base: usize,
    /// Rows with one adapter's head, and its slot.
    own: Vec<(Range<usize>, u32)>,
    /// Tasks of the shrink: rows of one adapter, its slot, rank tile.
    shrink: Vec<(Range<usize>, u32, usize)>,
}

impl HeadPlan {
    /// `site` is the head's place in adapters.
    fn begin(
        &mut self,
        rows: &[SampleRow],
        plan: &StepPlan,
        adapters: &[Option<Arc<ResidentAdapter>>],
        site: usize,
    ) {
        self.order.clear();
        self.order.extend(0..rows.len());
        self.slots.clear();
        self.slots.resize(rows.len(), NO_SLOT);
        self.n_base = rows.len();
        self.own.clear();
        self.shrink.clear();
        if plan.groups().is_empty() {
            return;
        }
        let adapter_of = |slot: u32| {
            let resident = adapters.get(slot as usize).and_then(Option::as_deref);
            resident.filter(|adapter| adapter.own_head.is_some() || adapter.site(site).is_some())
        };
        let has_own = |slot| adapter_of(slot).is_some_and(|adapter| adapter.own_head.is_some());
        // Base, then adapters on the base's head, then heads of their own; within them as they came.
        let key = |index: &usize| match plan.slots[rows[*index].row] {
            slot if adapter_of(slot).is_none() => (0, 0),
            slot if has_own(slot) => (2, slot),
            slot => (1, slot),
        };
        self.order.sort_by_key(key);
        for (slot, index) in self.slots.iter_mut().zip(&self.order) {
            if key(index).0 > 0 {
                *slot = plan.slots[rows[*index].row];
            }
        }
        let mut first = 0;
        for group in self.slots.chunk_by(|a, b| a == b) {
            let (range, slot) = (first..first + group.len(), group[0]);
            first = range.end;
            let Some(adapter) = adapter_of(slot) else { continue };
            if adapter.own_head.is_some() {
                self.n_base = self.n_base.min(range.start);
                self.own.push((range.clone(), slot));
            }
            let tiles = adapter.site(site).map_or(0, ResidentSite::rank_tiles);
            self.shrink.extend((0..tiles).map(|tile| (range.clone(), slot, tile)));
        }
    }
}

impl CpuBackend {
    /// The logits of the last step's sample rows, `[vocab]` each, in their order: for comparisons. The step must have had
    /// `n_rows` of them, at most [`HEAD_ROWS_MAX`].
    pub fn last_logits(&self, n_rows: usize) -> Vec<&[f32]> {
        let buffers = &self.head;
        let mut logits: Vec<&[f32]> = vec![&[]; n_rows];
        for (position, &index) in buffers.plan.order.iter().enumerate() {
            logits[index] = &buffers.logits[position * buffers.vocab..][..self.spec.vocab];
        }
        logits
    }

    pub(crate) fn sample_rows(
        &mut self,
        batch: &StepBatch,
        x: &CpuBuffer,
        norm: &CpuVector,
        head: &CpuMatrix,
    ) -> Vec<SampledToken> {
        let mut sampled = vec![SampledToken::none(); batch.sample_rows.len()];
        let rows_max = HEAD_ROWS_MAX.min(self.max_rows);
        for (rows, out) in batch.sample_rows.chunks(rows_max).zip(sampled.chunks_mut(rows_max)) {
            self.logits(rows, x, norm, head);
            let Self { ref mut team, head: ref buffers, ref spec, .. } = *self;
            let out = Parts::new(out);
            team.run(rows.len(), |position, _| {
                let index = buffers.plan.order[position];
                let logits = &buffers.logits[position * buffers.vocab..][..spec.vocab];
                out.row(index, 1)[0] = sample(logits, &rows[index]);
            });
        }
        sampled
    }

    /// Writes the logits of at most [`HEAD_ROWS_MAX`] rows, in the order of the head's plan.
    fn logits(&mut self, rows: &[SampleRow], x: &CpuBuffer, norm: &CpuVector, head: &CpuMatrix) {
        let matrix = &*head.0;
        let quantize =
            self.activations == Activations::Int8 && matches!(matrix.storage, Storage::Codes(_));
        let Self { ref spec, ref plan, ref adapters, head: ref mut buffers, .. } = *self;
        buffers.plan.begin(rows, plan, adapters, site_index(spec, Site::HEAD));
        self.norm_rows(rows, x, norm, quantize.then_some(matrix.n_in));
        self.shrink_head();
        self.head_product(0..self.head.plan.n_base, matrix, quantize);
        let own = std::mem::take(&mut self.head.plan.own);
        for (rows, slot) in &own {
            let adapter = self.adapters[*slot as usize].clone();
            if let Some(matrix) = adapter.as_ref().and_then(|adapter| adapter.own_head.as_ref()) {
                self.head_product(rows.clone(), matrix, false);
            }
        }
        self.head.plan.own = own;
    }

    /// Norms of the rows; quantized too if the base's head reads so many int8 values.
    fn norm_rows(
        &mut self,
        rows: &[SampleRow],
        x: &CpuBuffer,
        norm: &CpuVector,
        quantize: Option<usize>,
    ) {
        let Self { isa, ref spec, ref mut int8, head: ref mut buffers, .. } = *self;
        let (hidden, weight) = (buffers.hidden, &norm.values[..norm.len]);
        let writer = int8.writer(quantize.unwrap_or(hidden));
        for (position, index) in buffers.plan.order.iter().enumerate() {
            let out = &mut buffers.normed[position * hidden..][..hidden];
            isa.run(RmsNorm { x: x.row(rows[*index].row), weight, eps: spec.rms_eps, out });
            if let Some(n_in) = quantize.filter(|_| position < buffers.plan.n_base) {
                isa.run(QuantizeRow { writer: &writer, row: position, x: &out[..n_in] });
            }
        }
    }

    /// The adapters' first half at the head.
    fn shrink_head(&mut self) {
        let Self {
            isa, ref spec, ref mut team, ref adapters, ref mut v, head: ref buffers, ..
        } = *self;
        if buffers.plan.shrink.is_empty() {
            return;
        }
        let site = site_index(spec, Site::HEAD);
        let v = Parts::new(v);
        team.run(buffers.plan.shrink.len(), |task, _| {
            let (rows, slot, rank_tile) = buffers.plan.shrink[task].clone();
            let adapter = adapters[slot as usize].as_ref();
            if let Some(site) = adapter.and_then(|adapter| adapter.site(site)) {
                isa.run(Shrink {
                    site,
                    rank_tile,
                    rows: &buffers.rows[rows],
                    x: &buffers.normed,
                    x_stride: buffers.hidden,
                    v: &v,
                    part: 0,
                });
            }
        });
    }

    /// Logits of some of the rows, with one head.
    fn head_product(&mut self, rows: Range<usize>, matrix: &PackedMatrix, quantized: bool) {
        let Self {
            isa,
            ref spec,
            ref mut team,
            ref adapters,
            ref int8,
            ref v,
            ref mut scratch,
            head: ref mut buffers,
            ..
        } = *self;
        if rows.is_empty() {
            return;
        }
        let (n_rows, hidden) = (rows.len(), buffers.hidden);
        let normed = &buffers.normed[rows.start * hidden..];
        let logits = Parts::new(&mut buffers.logits);
        let scratch = Parts::new(scratch);
        let plan = &buffers.plan;
        let epilogue = Epilogue {
            out: &logits,
            stride: buffers.vocab,
            // Row 0 of the product is the first of these rows.
            column: rows.start * buffers.vocab,
            accumulate: false,
            bias: None,
            lora: (!plan.shrink.is_empty()).then(|| ExpandRows {
                adapters,
                slots: &plan.slots[rows.clone()],
                // Few rows have an adapter at the head, and nothing comes after it.
                groups: &[],
                site: site_index(spec, Site::HEAD),
                v: &v[rows.start * V_STRIDE..],
                part: 0,
                ahead: Ahead { sites: 0..0, first_tile: 0, n_tiles: 1 },
            }),
        };
        let per_chunk = matrix.n_tiles().div_ceil(team.n_threads() * CHUNKS_PER_THREAD);
        team.run(matrix.n_tiles().div_ceil(per_chunk), |chunk, thread| {
            let tiles = chunk * per_chunk..matrix.n_tiles().min((chunk + 1) * per_chunk);
            if quantized {
                isa.run(Int8Tiles { matrix, tiles, rows: int8, n_rows, epilogue: &epilogue });
            } else {
                let scratch = &mut scratch.row(thread, 1)[0];
                isa.run(F32Tiles {
                    matrix,
                    tiles,
                    x: normed,
                    x_stride: hidden,
                    n_rows,
                    epilogue: &epilogue,
                    scratch,
                });
            }
        });
    }
}
