//! [`Backend`] on the CPU.

use std::sync::Arc;

use crate::{
    backend::{
        Backend, HeadNorms, MatrixSource, OUTPUT_ALIGN, Output, Projection, RunError, StepStart,
    },
    kv::KV_BLOCK_TOKENS,
    model::{Activations, CpuOptions, DecoderWeights},
    packed_adapter::{AdapterPacker, ResidentAdapters},
    rope::RopeTable,
    sampler::SampledToken,
    spec::ModelSpec,
    step_batch::StepBatch,
};

use super::{
    attention::{Attend, VECTORS_MAX},
    dora::Workers,
    elementwise::{HeadNorm, RmsNorm, Rope, SwiGlu},
    head::HeadBuffers,
    int8_rows::Int8Rows,
    isa::Isa,
    kv_cache::{HEAD_DIM_MAX, KvCache, KvElement, KvShape, StoreToken},
    lora::V_STRIDE,
    memory::Arena,
    packed::{BLOCK, Dense, PackedMatrix},
    plan::StepPlan,
    resident::{BaseMatrices, CpuPacker, ResidentAdapter},
    residents::CpuResidents,
    simd::LANES,
    threads::{Parts, Team},
};

/// Values of a step below which an element-wise operation is not worth a second thread.
const INLINE_VALUES: usize = 8192;

/// Weights are taken from chunks of this size; of the last one only what is used takes memory.
const ARENA_CHUNK_BYTES: usize = 64 << 20;

/// Why a CPU backend cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// The processor lacks the instruction set.
    #[error("this processor has no {0}")]
    NoSuchIsa(Isa),
    /// A head that the kernels do not take.
    #[error("heads of {0} values: they must be a multiple of 16, at most {HEAD_DIM_MAX}")]
    HeadDim(usize),
    /// Query heads are no multiple of the key and value heads.
    #[error("{heads} query heads over {kv_heads} key and value heads")]
    Heads {
        /// Query heads.
        heads: usize,
        /// Key and value heads.
        kv_heads: usize,
    },
    /// Not even two blocks fit.
    #[error(
        "{kv_bytes} bytes for keys and values are less than two blocks of {KV_BLOCK_TOKENS} tokens, {block_bytes} bytes each"
    )]
    KvTooSmall {
        /// Bytes given.
        kv_bytes: usize,
        /// Bytes of a block.
        block_bytes: usize,
    },
    /// No thread could be started.
    #[error("cannot start a thread")]
    Thread(#[from] std::io::Error),
}

/// A norm's weight or a bias, padded with zeros to whole tiles.
#[derive(Debug)]
pub struct CpuVector {
    pub(crate) values: Vec<f32>,
    pub(crate) len: usize,
}

/// A frozen weight in tiles, shared with those who pack adapters.
#[derive(Debug)]
pub struct CpuMatrix(pub(crate) Arc<PackedMatrix>);

impl CpuMatrix {
    pub(crate) fn new(matrix: PackedMatrix) -> Self {
        Self(Arc::new(matrix))
    }
}

/// Activations, `[max_rows, stride]`; columns beyond the width are zero.
#[derive(Debug, Default)]
pub struct CpuBuffer {
    pub(crate) values: Vec<f32>,
    pub(crate) stride: usize,
}

impl CpuBuffer {
    fn new(max_rows: usize, width: usize) -> Self {
        let stride = width.next_multiple_of(BLOCK);
        Self { values: vec![0.0; max_rows * stride], stride }
    }

    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.stride..][..self.stride]
    }
}

/// The CPU: kernels of one instruction set, a team of threads, keys and values, resident adapters.
#[derive(Debug)]
pub struct CpuBackend {
    pub(crate) isa: Isa,
    pub(crate) activations: Activations,
    pub(crate) spec: ModelSpec,
    pub(crate) max_rows: usize,
    pub(crate) team: Team,
    rope: RopeTable,
    cache: KvCache,
    pub(crate) plan: StepPlan,
    /// Where the model's weights lie.
    arena: Arena,
    /// The model's weights, once they are loaded.
    pub(crate) base: Option<Arc<BaseMatrices>>,
    residents: Arc<CpuResidents>,
    /// Those of the step begun last, by slot.
    pub(crate) adapters: Vec<Option<Arc<ResidentAdapter>>>,
    pub(crate) int8: Int8Rows,
    /// Output of the adapters' first half, `[max_rows, V_STRIDE]`.
    pub(crate) v: Vec<f32>,
    /// Tasks of the shrink now planned: group, part, rank tile.
    pub(crate) shrink: Vec<(usize, usize, usize)>,
    /// Per thread: a dequantized tile, or the scores of an attention task.
    pub(crate) scratch: Vec<Vec<f32>>,
    pub(crate) head: HeadBuffers,
    /// Outputs of the gate, up projection.
    gate_up: CpuBuffer,
}

impl CpuBackend {
    /// Takes all memory that steps will need.
    ///
    /// # Errors
    /// [`CpuError`].
    pub fn new(spec: &ModelSpec, options: CpuOptions) -> Result<Self, CpuError> {
        if !options.isa.is_available() {
            return Err(CpuError::NoSuchIsa(options.isa));
        }
        if !spec.head_dim.is_multiple_of(LANES)
            || spec.head_dim > HEAD_DIM_MAX
            || spec.head_dim == 0
        {
            return Err(CpuError::HeadDim(spec.head_dim));
        }
        if spec.n_kv_heads == 0 || !spec.n_heads.is_multiple_of(spec.n_kv_heads) {
            return Err(CpuError::Heads { heads: spec.n_heads, kv_heads: spec.n_kv_heads });
        }
        let element = match options.activations {
            Activations::Int8 => KvElement::F16,
            Activations::F32 => KvElement::F32,
        };
        let mut shape = KvShape {
            n_layers: spec.n_layers,
            n_blocks: 0,
            n_kv_heads: spec.n_kv_heads,
            head_dim: spec.head_dim,
            element,
        };
        let block_bytes = shape.block_bytes();
        shape.n_blocks = options.kv_bytes / block_bytes;
        if shape.n_blocks < 2 {
            return Err(CpuError::KvTooSmall { kv_bytes: options.kv_bytes, block_bytes });
        }
        let widest =
            spec.hidden.max(spec.ffn).max(spec.n_heads * spec.head_dim).next_multiple_of(BLOCK);
        let longest =
            spec.context.min(shape.n_blocks * KV_BLOCK_TOKENS).next_multiple_of(KV_BLOCK_TOKENS);
        let team = Team::new(options.threads)?;
        let scratch = (widest * LANES).max(VECTORS_MAX * longest);
        Ok(Self {
            isa: options.isa,
            activations: options.activations,
            spec: spec.clone(),
            max_rows: options.max_rows,
            rope: RopeTable::new(spec),
            cache: KvCache::new(shape),
            plan: StepPlan::default(),
            arena: Arena::new(ARENA_CHUNK_BYTES),
            base: None,
            residents: Arc::new(CpuResidents::new(options.adapter_bytes)),
            adapters: Vec::new(),
            int8: Int8Rows::new(options.max_rows, widest),
            v: vec![0.0; options.max_rows * V_STRIDE],
            shrink: Vec::new(),
            scratch: (0..team.n_threads()).map(|_| vec![0.0; scratch]).collect(),
            head: HeadBuffers::new(spec, options.max_rows),
            gate_up: CpuBuffer::new(options.max_rows, 2 * spec.ffn.next_multiple_of(OUTPUT_ALIGN)),
            team,
        })
    }

    /// Calls `work(row)` for every row of the step, on several threads if `width` values a row are worth it.
    pub(crate) fn for_rows(
        team: &mut Team,
        n_rows: usize,
        width: usize,
        work: impl Fn(usize) + Sync,
    ) {
        if n_rows * width < INLINE_VALUES {
            (0..n_rows).for_each(work);
            return;
        }
        let rows_per_chunk = n_rows.div_ceil(team.n_threads() * 2);
        team.run(n_rows.div_ceil(rows_per_chunk), |chunk, _| {
            let first = chunk * rows_per_chunk;
            (first..n_rows.min(first + rows_per_chunk)).for_each(&work);
        });
    }
}

impl Backend for CpuBackend {
    type Matrix = CpuMatrix;
    type Vector = CpuVector;
    type Buffer = CpuBuffer;

    fn matrix(&mut self, source: &MatrixSource<'_>) -> Result<CpuMatrix, RunError> {
        let MatrixSource { format, n_out, n_in, row, .. } = *source;
        Ok(CpuMatrix::new(PackedMatrix::pack(format, n_out, n_in, &mut self.arena, row)))
    }

    fn vector(&mut self, values: &[f32]) -> Result<CpuVector, RunError> {
        let mut padded = values.to_vec();
        padded.resize(values.len().next_multiple_of(LANES), 0.0);
        Ok(CpuVector { values: padded, len: values.len() })
    }

    fn buffer(&mut self, width: usize) -> Result<CpuBuffer, RunError> {
        Ok(CpuBuffer::new(self.max_rows, width))
    }

    fn loaded(&mut self, weights: &DecoderWeights<CpuMatrix, CpuVector>) {
        self.base = Some(Arc::new(BaseMatrices::of(weights)));
    }

    fn n_kv_blocks(&self) -> usize {
        self.cache.shape.n_blocks
    }

    fn max_rows(&self) -> usize {
        self.max_rows
    }

    fn begin_step(&mut self, batch: &StepBatch) -> Result<StepStart, RunError> {
        if batch.n_rows() > self.max_rows {
            return Err(RunError::Device(format!(
                "{} rows in a step of {}",
                batch.n_rows(),
                self.max_rows
            )));
        }
        self.residents.of_step(batch, &mut self.adapters);
        self.plan.begin(batch, &self.spec, &self.rope, self.team.n_threads());
        Ok(StepStart::Enqueue)
    }

    fn embed(&mut self, batch: &StepBatch, table: &CpuMatrix, out: &mut CpuBuffer) {
        self.embed_rows(batch, table, out);
    }

    fn rms_norm(&mut self, x: &CpuBuffer, weight: &CpuVector, out: &mut CpuBuffer) {
        let (isa, eps, stride) = (self.isa, self.spec.rms_eps, out.stride);
        let weight = &weight.values[..weight.len];
        let parts = Parts::new(&mut out.values);
        Self::for_rows(&mut self.team, self.plan.n_rows, stride, |row| {
            let out = parts.row(row, stride);
            isa.run(RmsNorm { x: x.row(row), weight, eps, out });
        });
    }

    fn project(
        &mut self,
        projection: &Projection<CpuMatrix, CpuVector>,
        x: &CpuBuffer,
        out: &mut CpuBuffer,
        output: Output,
    ) {
        self.project_rows(projection, x, out, output);
    }

    fn attention(
        &mut self,
        batch: &StepBatch,
        layer: usize,
        norms: Option<&HeadNorms<CpuVector>>,
        qkv: &mut CpuBuffer,
        out: &mut CpuBuffer,
    ) {
        let Self { isa, ref spec, ref mut team, ref mut cache, ref plan, ref mut scratch, .. } =
            *self;
        let dim = spec.head_dim;
        let (q_width, kv_width) = (spec.n_heads * dim, spec.n_kv_heads * dim);
        let (q_stride, half) = (qkv.stride, dim / 2);
        let softmax_scale = 1.0 / (dim as f32).sqrt();
        {
            let writer = cache.writer(layer);
            let parts = Parts::new(&mut qkv.values);
            let sequence_of_row = |row: usize| {
                let index = batch.sequences.partition_point(|sequence| sequence.rows.end <= row);
                &batch.sequences[index]
            };
            Self::for_rows(team, plan.n_rows, q_stride, |row| {
                let values = parts.row(row, q_stride);
                let (q, rest) = values.split_at_mut(q_width);
                let (k, v) = rest.split_at_mut(kv_width);
                if let Some(norms) = norms {
                    isa.run(HeadNorm {
                        x: &mut *q,
                        weight: &norms.q.values[..norms.q.len],
                        eps: spec.rms_eps,
                    });
                    isa.run(HeadNorm {
                        x: &mut *k,
                        weight: &norms.k.values[..norms.k.len],
                        eps: spec.rms_eps,
                    });
                }
                let (cos, sin) = (&plan.cos[row * half..][..half], &plan.sin[row * half..][..half]);
                isa.run(Rope { x: q, cos, sin, factor: softmax_scale });
                isa.run(Rope { x: &mut *k, cos, sin, factor: 1.0 });
                let position = batch.positions[row];
                let block = sequence_of_row(row).block_table[position / KV_BLOCK_TOKENS];
                let token = position % KV_BLOCK_TOKENS;
                isa.run(StoreToken { writer: &writer, block, token, k, v: &v[..kv_width] });
            });
        }
        let out_stride = out.stride;
        let out = Parts::new(&mut out.values);
        let scratch = Parts::new(scratch);
        let (cache, q) = (&*cache, &qkv.values);
        team.run(plan.attention.len(), |chunk, thread| {
            let task = &plan.attention[chunk];
            let sequence = &batch.sequences[task.sequence];
            isa.run(Attend {
                cache,
                layer,
                kv_head: task.kv_head,
                block_table: &sequence.block_table,
                rows: task.rows.clone(),
                first_position: batch.positions[task.rows.start],
                heads: task.heads.clone(),
                q,
                q_stride,
                out: &out,
                out_stride,
                scratch: &mut scratch.row(thread, 1)[0],
            });
        });
    }

    fn project_swiglu(
        &mut self,
        projection: &Projection<CpuMatrix, CpuVector>,
        x: &CpuBuffer,
        out: &mut CpuBuffer,
    ) {
        let mut gate_up = std::mem::take(&mut self.gate_up);
        self.project_rows(projection, x, &mut gate_up, Output::Write);
        self.gate_up = gate_up;
        let gate_up = &self.gate_up;
        let isa = self.isa;
        let width = self.spec.ffn.next_multiple_of(OUTPUT_ALIGN);
        let stride = out.stride;
        let parts = Parts::new(&mut out.values);
        Self::for_rows(&mut self.team, self.plan.n_rows, 4 * width, |row| {
            let (gate, rest) = gate_up.row(row).split_at(width);
            isa.run(SwiGlu { gate, up: &rest[..width], out: &mut parts.row(row, stride)[..width] });
        });
    }

    fn sample(
        &mut self,
        batch: &StepBatch,
        x: &CpuBuffer,
        norm: &CpuVector,
        head: &CpuMatrix,
    ) -> Result<Vec<SampledToken>, RunError> {
        let sampled = self.sample_rows(batch, x, norm, head);
        // The step's last operation: what is removed from now on is freed at once.
        self.adapters.clear();
        Ok(sampled)
    }

    fn adapter_packer(&self) -> Arc<dyn AdapterPacker> {
        Arc::new(CpuPacker {
            spec: self.spec.clone(),
            dense: match self.activations {
                Activations::Int8 => Dense::F16,
                Activations::F32 => Dense::F32,
            },
            capacity_bytes: self.residents.capacity_bytes(),
            base: self.base.clone(),
            // Half of the threads: steps go on meanwhile.
            workers: Workers { isa: self.isa, n_threads: self.team.n_threads().div_ceil(2) },
        })
    }

    fn adapters(&self) -> Arc<dyn ResidentAdapters> {
        Arc::clone(&self.residents) as Arc<dyn ResidentAdapters>
    }
}
