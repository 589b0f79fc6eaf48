//! [`Backend`] on a GPU. Plain first version: every step is launched eagerly on one stream.

use crate::{
    adapter_weights::AdapterWeights,
    backend::{Backend, HeadNorms, MatrixSource, OUTPUT_ALIGN, Output, Projection, RunError},
    kv::KV_BLOCK_TOKENS,
    quant::BlockFormat,
    rope::RopeTable,
    sampler::{SampledToken, sample},
    site::{Site, TargetModule},
    spec::ModelSpec,
    step_batch::{AdapterSlot, StepBatch},
};

use super::{
    CudaError, Device, DevicePtr,
    byte_pool::BytePool,
    ops::{
        AttentionParams, EmbedParams, EpilogueParams, EpiloguePart, GemmParams, GemmPart,
        LoraShrinkParams, LoraSite, PARTS_MAX, RmsNormParams, RopeStoreParams, SampleGreedyParams,
        SampleResult, SwiGluParams, V_STRIDE, rows_of_tile,
    },
    repack::repack,
    step_inputs::StepInputs,
};

/// Most adapters resident at a time.
pub const ADAPTER_SLOTS_MAX: usize = 1024;
/// Widths of f16 rows are padded to this: a unit of weights.
const ROW_ALIGN: usize = 64;
/// Rows whose logits are in memory at a time.
const SAMPLE_ROWS_MAX: usize = 64;
/// CTAs that a product should have: two for each multiprocessor of a large GPU.
const CTAS_WANTED: usize = 264;
/// Most splits of K.
const SPLITS_MAX: usize = 8;
/// Columns of a split of the adapters' first half.
const SHRINK_COLUMNS: usize = 1024;
/// Tokens of a chunk of attention: fixed, so that a row's bits do not depend on its neighbours.
const CHUNK_TOKENS: usize = 512;

/// How much of the device to use, and for what.
#[derive(Clone, Copy, Debug)]
pub struct CudaOptions {
    /// Bytes for keys and values.
    pub kv_bytes: usize,
    /// Bytes for resident adapters.
    pub adapter_bytes: usize,
    /// Most rows in a step.
    pub max_rows: usize,
}

/// A frozen weight on the device.
#[derive(Debug)]
pub struct CudaMatrix {
    ptr: DevicePtr,
    format: BlockFormat,
    n_out: usize,
    n_out_padded: usize,
    n_in_padded: usize,
}

impl CudaMatrix {
    fn n_stripes(&self) -> usize {
        self.n_out_padded / ROW_ALIGN
    }

    fn is_dense(&self) -> bool {
        self.format.code_layout().is_none()
    }
}

/// A norm's weight or a bias, f32.
#[derive(Clone, Copy, Debug)]
pub struct CudaVector(DevicePtr);

/// Activations: f32 (residual, products) and f16 (inputs of products) rows of one stride. Columns beyond the width are
/// zero in the f16 rows.
#[derive(Debug)]
pub struct CudaBuffer {
    wide: DevicePtr,
    half: DevicePtr,
    stride: usize,
}

/// A resident adapter's piece of the pool.
#[derive(Debug)]
struct ResidentAdapter {
    offset: usize,
    n_bytes: usize,
}

/// One GPU.
#[derive(Debug)]
pub struct CudaBackend {
    device: Device,
    spec: ModelSpec,
    max_rows: usize,
    inputs: StepInputs,
    n_kv_blocks: usize,
    /// Pool of layer 0; layers follow one another.
    kv: DevicePtr,
    kv_layer_bytes: usize,
    cos: DevicePtr,
    sin: DevicePtr,
    max_positions: usize,
    /// f32 `[splits][T][plane_row]`, also the logits.
    planes: DevicePtr,
    planes_bytes: usize,
    /// f32 `[shrink splits][T][V_STRIDE]`.
    v: DevicePtr,
    partials: DevicePtr,
    max_chunks: usize,
    /// f16 `[SAMPLE_ROWS_MAX][hidden]`.
    sample_x: DevicePtr,
    results: DevicePtr,
    saturations: DevicePtr,
    /// [`LoraSite`] `[ADAPTER_SLOTS_MAX][n_sites]`.
    sites: DevicePtr,
    adapter_memory: DevicePtr,
    adapter_pool: BytePool,
    adapters: Vec<Option<ResidentAdapter>>,
    /// First failure of a launch of this step; operations that return nothing leave it here.
    failed: Option<CudaError>,
}

fn word(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

impl CudaBackend {
    /// Takes all memory that steps will need; weights and activations follow out of what is left.
    ///
    /// # Errors
    /// [`RunError`]: the device is too small, or failed.
    pub fn new(
        mut device: Device,
        spec: &ModelSpec,
        options: CudaOptions,
    ) -> Result<Self, RunError> {
        let dim = spec.head_dim;
        let kv_block_bytes = spec.n_kv_heads * 2 * KV_BLOCK_TOKENS * dim * 2;
        let n_kv_blocks = options.kv_bytes / (kv_block_bytes * spec.n_layers);
        let max_positions = spec.context.min(n_kv_blocks * KV_BLOCK_TOKENS).max(1);
        let max_blocks = max_positions.div_ceil(KV_BLOCK_TOKENS);
        let max_chunks = max_positions.div_ceil(CHUNK_TOKENS);
        let max_rows = options.max_rows;
        let tile =
            rows_of_tile(word(spec.n_heads), word(spec.n_kv_heads)).map(|rows| rows as usize);
        let inputs = StepInputs::new(&mut device, max_rows, max_blocks, tile)?;
        let kv_layer_bytes = n_kv_blocks * kv_block_bytes;
        let kv = device.alloc("keys and values", kv_layer_bytes * spec.n_layers)?;
        let rope = RopeTable::new(spec);
        let mut angles = [vec![0f32; max_positions * dim / 2], vec![0f32; max_positions * dim / 2]];
        let [cos, sin] = &mut angles;
        for (position, (c, s)) in
            cos.chunks_exact_mut(dim / 2).zip(sin.chunks_exact_mut(dim / 2)).enumerate()
        {
            rope.angles(position, c, s);
        }
        let (cos, sin) = (device.alloc_upload("angles", cos)?, device.alloc_upload("angles", sin)?);
        let planes_bytes = planes_bytes(spec, max_rows);
        let shrink_splits =
            spec.hidden.max(spec.ffn).max(spec.n_heads * dim).div_ceil(SHRINK_COLUMNS);
        let n_sites = spec.n_layers * TargetModule::ALL.len();
        let empty_table = vec![LoraSite::NONE; ADAPTER_SLOTS_MAX * n_sites];
        let hidden = spec.hidden.next_multiple_of(ROW_ALIGN);
        Ok(Self {
            planes: device.alloc("split planes", planes_bytes)?,
            planes_bytes,
            v: device.alloc("LoRA products", shrink_splits * max_rows * V_STRIDE * 4)?,
            partials: device.alloc(
                "attention partials",
                max_rows * spec.n_heads * max_chunks * (dim + 2) * 4,
            )?,
            sample_x: device.alloc_upload("sampled rows", &vec![0u16; SAMPLE_ROWS_MAX * hidden])?,
            results: device.alloc("sampled tokens", SAMPLE_ROWS_MAX * size_of::<SampleResult>())?,
            saturations: device.alloc_upload("saturations", &[0u32])?,
            sites: device.alloc_upload("adapter table", &empty_table)?,
            adapter_memory: device.alloc("adapters", options.adapter_bytes)?,
            adapter_pool: BytePool::new(options.adapter_bytes),
            adapters: Vec::new(),
            failed: None,
            spec: spec.clone(),
            max_rows,
            inputs,
            n_kv_blocks,
            kv,
            kv_layer_bytes,
            cos,
            sin,
            max_positions,
            max_chunks,
            device,
        })
    }

    /// Values beyond the range of f16 that were clamped since start.
    ///
    /// # Errors
    /// [`RunError::Device`].
    pub fn saturations(&self) -> Result<u32, RunError> {
        let mut count = [0u32];
        self.device.download(self.saturations, &mut count)?;
        Ok(count[0])
    }

    fn n_sites(&self) -> usize {
        self.spec.n_layers * TargetModule::ALL.len()
    }

    /// Remembers the first failure.
    fn note(&mut self, outcome: Result<(), CudaError>) {
        if let Err(error) = outcome {
            self.failed.get_or_insert(error);
        }
    }

    /// The product of parts that share an input into the planes; returns `(n_planes, plane_row)`.
    fn multiply(
        &self,
        parts: &[&CudaMatrix],
        x: DevicePtr,
        x_stride: usize,
        rows: u32,
        sampled: bool,
    ) -> Result<(usize, usize), CudaError> {
        let n_stripes: usize = parts.iter().map(|part| part.n_stripes()).sum();
        let any_dense = parts.iter().any(|part| part.is_dense());
        let n_units = parts[0].n_in_padded / ROW_ALIGN;
        // Fixed for a matrix, so that a row's bits do not depend on how many rows there are.
        let n_splits = if any_dense || sampled { 1 } else { splits(n_stripes, n_units) };
        let plane_row = n_stripes * ROW_ALIGN;
        let mut listed = [GemmPart::NONE; PARTS_MAX];
        let mut first = 0;
        for (slot, part) in listed.iter_mut().zip(parts) {
            *slot = GemmPart {
                weights: part.ptr,
                format: part.format.ggml_type(),
                first_stripe: word(first),
                plane_column: word(first * ROW_ALIGN),
                reserved: 0,
            };
            first += part.n_stripes();
        }
        let params = GemmParams {
            step: self.inputs.header,
            x,
            planes: self.planes,
            plane_stride: (rows as usize * plane_row) as u64,
            parts: listed,
            n_parts: word(parts.len()),
            n_units: word(n_units),
            x_stride: word(x_stride),
            plane_row: word(plane_row),
            sample_rows: u32::from(sampled),
            reserved: 0,
        };
        debug_assert!(n_splits * rows as usize * plane_row * 4 <= self.planes_bytes);
        if !parts.iter().all(|part| part.is_dense()) {
            params.launch(&self.device, word(n_stripes), word(n_splits), rows)?;
        }
        if any_dense {
            params.launch_dense(&self.device, word(n_stripes), rows)?;
        }
        Ok((n_splits, plane_row))
    }

    /// First half of the adapters of a projection; returns how many planes of `v` there are.
    fn shrink(
        &self,
        layer: usize,
        modules: &[TargetModule],
        x: &CudaBuffer,
        n_in: usize,
    ) -> Result<usize, CudaError> {
        let mut site = [0; PARTS_MAX];
        for (slot, &module) in site.iter_mut().zip(modules) {
            *slot = word(site_index(Site { layer, module }));
        }
        let params = LoraShrinkParams {
            step: self.inputs.header,
            x: x.half,
            slots: self.inputs.slots,
            sites: self.sites,
            v: self.v,
            v_plane_stride: (self.max_rows * V_STRIDE) as u64,
            x_stride: word(x.stride),
            a_stride: word(n_in.next_multiple_of(8)),
            n_in: word(n_in.next_multiple_of(8)),
            split_columns: word(SHRINK_COLUMNS),
            n_sites: word(self.n_sites()),
            n_parts: word(modules.len()),
            site,
            reserved: 0,
        };
        params.launch(&self.device, self.inputs.n_rows())?;
        Ok(params.n_splits() as usize)
    }

    fn try_project(
        &self,
        projection: &Projection<CudaMatrix, CudaVector>,
        x: &CudaBuffer,
        out: &CudaBuffer,
        output: Output,
    ) -> Result<(), CudaError> {
        let rows = self.inputs.n_rows();
        let matrices: Vec<&CudaMatrix> = projection.parts.iter().map(|part| &part.matrix).collect();
        let modules: Vec<TargetModule> = projection.parts.iter().map(|part| part.module).collect();
        let (_, n_in) = self.spec.linear_shape(modules[0]);
        let n_v_planes = if self.inputs.any_adapter {
            self.shrink(projection.layer, &modules, x, n_in)?
        } else {
            0
        };
        let (n_planes, plane_row) = self.multiply(&matrices, x.half, x.stride, rows, false)?;
        let mut parts = [EpiloguePart::NONE; PARTS_MAX];
        let mut bias = [DevicePtr::NULL; PARTS_MAX];
        let (mut plane_column, mut out_column) = (0, 0);
        for (index, part) in projection.parts.iter().enumerate() {
            parts[index] = EpiloguePart {
                plane_column: word(plane_column),
                out_column: word(out_column),
                n_out: word(part.matrix.n_out),
                site: word(site_index(Site { layer: projection.layer, module: part.module })),
            };
            bias[index] = part.bias.map_or(DevicePtr::NULL, |bias| bias.0);
            plane_column += part.matrix.n_out_padded;
            out_column += part.matrix.n_out.next_multiple_of(OUTPUT_ALIGN);
        }
        let params = EpilogueParams {
            step: self.inputs.header,
            planes: self.planes,
            v_planes: if n_v_planes > 0 { self.v } else { DevicePtr::NULL },
            slots: self.inputs.slots,
            sites: self.sites,
            out: out.wide,
            saturations: self.saturations,
            bias,
            plane_stride: (rows as usize * plane_row) as u64,
            v_plane_stride: (self.max_rows * V_STRIDE) as u64,
            parts,
            n_parts: word(projection.parts.len()),
            n_planes: word(n_planes),
            plane_row: word(plane_row),
            n_v_planes: word(n_v_planes),
            n_sites: word(self.n_sites()),
            out_stride: word(out.stride),
            accumulate: u32::from(output == Output::Add),
            reserved: 0,
        };
        params.launch(&self.device, rows)
    }

    fn try_attention(
        &self,
        layer: usize,
        norms: Option<&HeadNorms<CudaVector>>,
        qkv: &CudaBuffer,
        out: &CudaBuffer,
    ) -> Result<(), CudaError> {
        let spec = &self.spec;
        let dim = spec.head_dim;
        let (q_width, kv_width) = (spec.n_heads * dim, spec.n_kv_heads * dim);
        let kv = self.kv.at(layer * self.kv_layer_bytes);
        let inputs = &self.inputs;
        // Queries go to the f16 rows of the q, k, v buffer itself.
        let (q, q_stride) = (qkv.half, qkv.stride);
        RopeStoreParams {
            step: inputs.header,
            qkv: qkv.wide,
            q_norm: norms.map_or(DevicePtr::NULL, |norms| norms.q.0),
            k_norm: norms.map_or(DevicePtr::NULL, |norms| norms.k.0),
            cos: self.cos,
            sin: self.sin,
            positions: inputs.positions,
            row_sequence: inputs.row_sequence,
            block_tables: inputs.block_tables,
            q,
            kv,
            saturations: self.saturations,
            in_stride: word(qkv.stride),
            q_column: 0,
            k_column: word(q_width),
            v_column: word(q_width + kv_width),
            q_stride: word(q_stride),
            n_heads: word(spec.n_heads),
            n_kv_heads: word(spec.n_kv_heads),
            head_dim: word(dim),
            max_blocks: word(inputs.max_blocks),
            max_positions: word(self.max_positions),
            eps: spec.rms_eps,
            q_scale: std::f32::consts::LOG2_E / (dim as f32).sqrt(),
        }
        .launch(&self.device, inputs.n_rows())?;
        AttentionParams {
            step: inputs.header,
            q,
            kv,
            out: out.half,
            partials: self.partials,
            single_rows: inputs.single_rows,
            tiles: inputs.tiles,
            positions: inputs.positions,
            row_sequence: inputs.row_sequence,
            block_tables: inputs.block_tables,
            q_stride: word(q_stride),
            out_stride: word(out.stride),
            n_heads: word(spec.n_heads),
            n_kv_heads: word(spec.n_kv_heads),
            head_dim: word(dim),
            max_blocks: word(inputs.max_blocks),
            chunk_tokens: word(CHUNK_TOKENS),
            max_chunks: word(self.max_chunks),
        }
        .launch(&self.device, inputs.attention_rows())
    }

    fn norm(
        &self,
        x: &CudaBuffer,
        rows: DevicePtr,
        weight: CudaVector,
        out: DevicePtr,
        out_stride: usize,
    ) -> RmsNormParams {
        RmsNormParams {
            step: self.inputs.header,
            x: x.wide,
            rows,
            weight: weight.0,
            out,
            saturations: self.saturations,
            x_stride: word(x.stride),
            out_stride: word(out_stride),
            width: word(self.spec.hidden),
            eps: self.spec.rms_eps,
        }
    }
}

/// `layer * 7 + module`.
fn site_index(site: Site) -> usize {
    site.layer * TargetModule::ALL.len() + site.module.index()
}

/// Splits of K so that a product has CTAs enough.
fn splits(n_stripes: usize, n_units: usize) -> usize {
    (CTAS_WANTED / n_stripes).clamp(1, SPLITS_MAX).min(n_units)
}

/// Bytes of planes of the widest product of `max_rows` rows, and of the logits.
fn planes_bytes(spec: &ModelSpec, max_rows: usize) -> usize {
    use TargetModule as M;
    let row = |modules: &[M]| {
        let features =
            modules.iter().map(|&module| spec.linear_shape(module).0.next_multiple_of(ROW_ALIGN));
        let (n_row, n_in) = (features.sum::<usize>(), spec.linear_shape(modules[0]).1);
        n_row * splits(n_row / ROW_ALIGN, n_in.div_ceil(ROW_ALIGN))
    };
    let layers = [
        row(&[M::QProj, M::KProj, M::VProj]),
        row(&[M::OProj]),
        row(&[M::GateProj, M::UpProj]),
        row(&[M::DownProj]),
    ];
    let widest = layers.into_iter().max().unwrap_or(0);
    (widest * max_rows).max(spec.vocab.next_multiple_of(ROW_ALIGN) * SAMPLE_ROWS_MAX) * 4
}

impl Backend for CudaBackend {
    type Matrix = CudaMatrix;
    type Vector = CudaVector;
    type Buffer = CudaBuffer;

    fn matrix(&mut self, source: &MatrixSource<'_>) -> Result<CudaMatrix, RunError> {
        let packed = repack(source).map_err(|error| RunError::Device(error.to_string()))?;
        Ok(CudaMatrix {
            ptr: self.device.alloc_upload("weights", &packed.bytes)?,
            format: packed.format,
            n_out: packed.n_out,
            n_out_padded: packed.n_out_padded,
            n_in_padded: packed.n_in_padded,
        })
    }

    fn vector(&mut self, values: &[f32]) -> Result<CudaVector, RunError> {
        Ok(CudaVector(self.device.alloc_upload("norms and biases", values)?))
    }

    fn buffer(&mut self, width: usize) -> Result<CudaBuffer, RunError> {
        let stride = width.next_multiple_of(ROW_ALIGN);
        let n = self.max_rows * stride;
        let buffer = CudaBuffer {
            wide: self.device.alloc("activations", n * 4)?,
            half: self.device.alloc("activations", n * 2)?,
            stride,
        };
        self.device.fill(buffer.wide, n * 4, 0)?;
        self.device.fill(buffer.half, n * 2, 0)?;
        Ok(buffer)
    }

    fn n_kv_blocks(&self) -> usize {
        self.n_kv_blocks
    }

    fn max_rows(&self) -> usize {
        self.max_rows
    }

    fn begin_step(&mut self, batch: &StepBatch) -> Result<(), RunError> {
        if batch.n_rows() > self.max_rows {
            return Err(RunError::Device(format!(
                "{} rows in a step of {}",
                batch.n_rows(),
                self.max_rows
            )));
        }
        self.failed = None;
        self.inputs.begin(&self.device, batch)
    }

    fn embed(&mut self, _batch: &StepBatch, table: &CudaMatrix, out: &mut CudaBuffer) {
        let outcome = EmbedParams {
            step: self.inputs.header,
            table: table.ptr,
            token_ids: self.inputs.token_ids,
            x: out.wide,
            vocab: word(self.spec.vocab),
            width: word(self.spec.hidden),
            width_padded: word(table.n_in_padded),
            x_stride: word(out.stride),
            format: table.format.ggml_type(),
            reserved: 0,
        }
        .launch(&self.device, self.inputs.n_rows());
        self.note(outcome);
    }

    fn rms_norm(&mut self, x: &CudaBuffer, weight: &CudaVector, out: &mut CudaBuffer) {
        let params = self.norm(x, DevicePtr::NULL, *weight, out.half, out.stride);
        let outcome = params.launch(&self.device, self.inputs.n_rows());
        self.note(outcome);
    }

    fn project(
        &mut self,
        projection: &Projection<CudaMatrix, CudaVector>,
        x: &CudaBuffer,
        out: &mut CudaBuffer,
        output: Output,
    ) {
        let outcome = self.try_project(projection, x, out, output);
        self.note(outcome);
    }

    fn attention(
        &mut self,
        _batch: &StepBatch,
        layer: usize,
        norms: Option<&HeadNorms<CudaVector>>,
        qkv: &mut CudaBuffer,
        out: &mut CudaBuffer,
    ) {
        let outcome = self.try_attention(layer, norms, qkv, out);
        self.note(outcome);
    }

    fn swiglu(&mut self, gate_up: &CudaBuffer, out: &mut CudaBuffer) {
        let outcome = SwiGluParams {
            step: self.inputs.header,
            gate_up: gate_up.wide,
            h: out.half,
            saturations: self.saturations,
            in_stride: word(gate_up.stride),
            gate_column: 0,
            up_column: word(self.spec.ffn.next_multiple_of(OUTPUT_ALIGN)),
            width: word(self.spec.ffn),
            out_stride: word(out.stride),
            reserved: 0,
        }
        .launch(&self.device, self.inputs.n_rows());
        self.note(outcome);
    }

    fn sample(
        &mut self,
        batch: &StepBatch,
        x: &CudaBuffer,
        norm: &CudaVector,
        head: &CudaMatrix,
    ) -> Result<Vec<SampledToken>, RunError> {
        let hidden = self.spec.hidden.next_multiple_of(ROW_ALIGN);
        let mut sampled = Vec::with_capacity(batch.sample_rows.len());
        for rows in batch.sample_rows.chunks(SAMPLE_ROWS_MAX) {
            let on_host = self.inputs.begin_sampling(&self.device, rows)?;
            let n_rows = word(rows.len());
            self.norm(x, self.inputs.sample_rows, *norm, self.sample_x, hidden)
                .launch(&self.device, n_rows)?;
            let (_, plane_row) = self.multiply(&[head], self.sample_x, hidden, n_rows, true)?;
            SampleGreedyParams {
                step: self.inputs.header,
                logits: self.planes,
                specs: self.inputs.specs,
                results: self.results,
                stride: word(plane_row),
                vocab: word(self.spec.vocab),
            }
            .launch(&self.device, n_rows)?;
            let mut results = vec![SampleResult::EMPTY; rows.len()];
            self.device.download(self.results, &mut results)?;
            let mut logits = vec![0f32; self.spec.vocab];
            for (index, (row, result)) in rows.iter().zip(&results).enumerate() {
                sampled.push(if on_host[index] {
                    self.device.download(self.planes.at(index * plane_row * 4), &mut logits)?;
                    sample(&logits, row)
                } else {
                    result.into()
                });
            }
        }
        if batch.sample_rows.is_empty() {
            self.device.synchronize(super::StreamId::Compute)?;
        }
        self.failed.take().map_or(Ok(sampled), |error| Err(error.into()))
    }

    fn install_adapter(&mut self, weights: &AdapterWeights) -> Result<AdapterSlot, RunError> {
        let free = self.adapters.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.adapters.len());
        if slot >= ADAPTER_SLOTS_MAX {
            return Err(RunError::OutOfMemory { what: "adapter slots", needed: 1, free: 0 });
        }
        weights.check_f16()?;
        let mut halves: Vec<u16> = Vec::new();
        let mut table = vec![LoraSite::NONE; self.n_sites()];
        let mut places = Vec::new();
        for site in &weights.sites {
            let (n_out, n_in) = self.spec.linear_shape(site.site.module);
            let a = put_rows(&mut halves, &site.a, site.rank, n_in);
            let b = put_rows(&mut halves, &site.b, n_out, site.rank);
            places.push((site_index(site.site), a, b, site.rank, site.lora_scale));
        }
        let n_bytes = halves.len() * 2;
        let free_bytes = self.adapter_pool.free_bytes();
        let Some(offset) = self.adapter_pool.take(n_bytes) else {
            return Err(RunError::OutOfMemory {
                what: "an adapter",
                needed: n_bytes,
                free: free_bytes,
            });
        };
        let base = self.adapter_memory.at(offset);
        for (index, a, b, rank, lora_scale) in places {
            table[index] =
                LoraSite { a: base.at(a * 2), b: base.at(b * 2), rank: word(rank), lora_scale };
        }
        self.device.upload(&halves, base)?;
        self.device.upload(&table, self.sites.at(slot * table.len() * size_of::<LoraSite>()))?;
        if free.is_none() {
            self.adapters.push(None);
        }
        self.adapters[slot] = Some(ResidentAdapter { offset, n_bytes });
        Ok(AdapterSlot(word(slot)))
    }

    fn remove_adapter(&mut self, slot: AdapterSlot) {
        if let Some(adapter) = self.adapters.get_mut(slot.0 as usize).and_then(Option::take) {
            self.adapter_pool.give_back(adapter.offset, adapter.n_bytes);
        }
    }
}

/// Appends `[n_rows, n_columns]` as f16 rows padded with zeros to a multiple of 8; returns where they begin, a multiple
/// of 8 values.
fn put_rows(halves: &mut Vec<u16>, values: &[f32], n_rows: usize, n_columns: usize) -> usize {
    let start = halves.len();
    for row in values.chunks_exact(n_columns).take(n_rows) {
        halves.extend(row.iter().map(|&value| half::f16::from_f32(value).to_bits()));
        halves.resize(halves.len().next_multiple_of(8), 0);
    }
    start
}
