//! [`Backend`] on a GPU: one stream of kernels; decode steps replay graphs.
//!
//! | file | what |
//! |---|---|
//! | `step_inputs` | what varies from step to step, at fixed addresses |
//! | `step_graphs` | one graph for each bucket of rows |
//! | `products` | products with weights, and what adapters add |
//! | `attention` | rotation, keys and values, attention |
//! | `sampling` | final norm, head, choice of tokens |
//! | `embedding` | rows of the embedding, and what adapters make of them |
//! | `head` | what adapters make of the logits |
//! | `packer`, `residents`, `byte_pool` | adapters: packed, resident, and their memory |

mod attention;
mod byte_pool;
mod embedding;
mod head;
mod packer;
mod products;
mod residents;
mod sampling;
mod step_graphs;
mod step_inputs;

use std::sync::Arc;

use crate::{
    backend::{Backend, HeadNorms, MatrixSource, Output, Projection, RunError, StepStart},
    kv::KV_BLOCK_TOKENS,
    model::FileMatrices,
    packed_adapter::{AdapterPacker, ResidentAdapters},
    quant::BlockFormat,
    rope::RopeTable,
    sampler::SampledToken,
    site::{Site, TargetModule},
    spec::ModelSpec,
    step_batch::StepBatch,
};

use super::{
    CudaError, Device, DevicePtr,
    ops::{AttentionRows, RmsNormParams, V_STRIDE, rows_of_tile},
    repack::repack,
};
use head::head_rows;
use packer::CudaPacker;
use products::{planes_bytes, shrink_splits, x_tiles_bytes};
use residents::Residents;
use sampling::Sampling;
use step_graphs::{AdapterKernels, BUCKETS, StepGraphs, StepMode};
use step_inputs::{Capacity, StepInputs};

pub use residents::ADAPTER_SLOTS_MAX;

/// Widths of f16 rows are padded to this: a unit of weights.
const ROW_ALIGN: usize = 64;
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

/// One GPU.
#[derive(Debug)]
pub struct CudaBackend {
    device: Device,
    spec: ModelSpec,
    max_rows: usize,
    /// Of steps that run as graphs, whose addresses graphs bake in.
    graph_inputs: StepInputs,
    /// Of all other steps.
    launch_inputs: StepInputs,
    graphs: StepGraphs,
    /// Of the step begun last.
    mode: StepMode,
    /// Of the step begun last.
    adapters: AdapterKernels,
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
    /// Whether the device has the wide product, compute capability 9.0.
    has_wide: bool,
    /// The input of a wide product in tiles.
    x_tiles: DevicePtr,
    /// f32 `[shrink splits][T][V_STRIDE]`.
    v: DevicePtr,
    partials: DevicePtr,
    max_chunks: usize,
    sampling: Sampling,
    saturations: DevicePtr,
    residents: Arc<Residents>,
    /// What packers read of the base; `None` for a model that is no file.
    base: Option<Arc<FileMatrices>>,
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
        let capacity = Capacity {
            rows: max_rows,
            sample_rows: max_rows.min(BUCKETS[BUCKETS.len() - 1]),
            blocks: max_blocks,
            rows_of_tile: rows_of_tile(word(spec.n_heads), word(spec.n_kv_heads))
                .map(|rows| rows as usize),
        };
        let launch_inputs = StepInputs::new(&mut device, capacity)?;
        let graph_capacity = Capacity { rows: capacity.sample_rows, ..capacity };
        let graph_inputs = StepInputs::new(&mut device, graph_capacity)?;
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
        let planes_bytes = planes_bytes(spec, max_rows, capacity.sample_rows);
        let has_wide = device.info().compute_capability == (9, 0);
        let tiles_bytes = if has_wide { x_tiles_bytes(spec, max_rows) } else { 0 };
        Ok(Self {
            planes: device.alloc("split planes", planes_bytes)?,
            planes_bytes,
            has_wide,
            x_tiles: device.alloc("input tiles", tiles_bytes)?,
            v: device.alloc("LoRA products", shrink_splits(spec) * max_rows * V_STRIDE * 4)?,
            partials: device.alloc(
                "attention partials",
                max_rows * spec.n_heads * max_chunks * (dim + 2) * 4,
            )?,
            sampling: Sampling::new(&mut device, spec, capacity.sample_rows)?,
            saturations: device.alloc_upload("saturations", &[0u32])?,
            residents: Arc::new(Residents::new(&mut device, spec, options.adapter_bytes)?),
            graphs: StepGraphs::new(),
            mode: StepMode::Launch,
            adapters: AdapterKernels::None,
            base: None,
            failed: None,
            spec: spec.clone(),
            max_rows,
            graph_inputs,
            launch_inputs,
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

    /// Tells packers of adapters where the base's values are: kinds that need them are refused without.
    pub(crate) fn set_base(&mut self, base: FileMatrices) {
        self.base = Some(Arc::new(base));
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

    /// Graphs captured so far.
    pub fn n_graphs(&self) -> usize {
        self.graphs.len()
    }

    /// Whether decode steps run as graphs from now on (they do at first). Without, every kernel is launched by itself.
    pub fn use_graphs(&mut self, on: bool) {
        self.graphs.is_on = on;
    }

    /// The device, to measure with.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What kernels of the step at hand read.
    fn inputs(&self) -> &StepInputs {
        match self.mode {
            StepMode::Launch => &self.launch_inputs,
            StepMode::Capture(_) | StepMode::Replay(_) => &self.graph_inputs,
        }
    }

    /// Rows that launches are made for.
    fn launch_rows(&self) -> u32 {
        match self.mode {
            StepMode::Launch => self.launch_inputs.n_rows(),
            StepMode::Capture(key) | StepMode::Replay(key) => word(key.rows),
        }
    }

    /// The same of attention.
    fn attention_rows(&self) -> AttentionRows {
        match self.mode {
            StepMode::Launch => self.launch_inputs.attention_rows(),
            StepMode::Capture(key) | StepMode::Replay(key) => {
                AttentionRows { max_single: word(key.rows), max_tiles: 0 }
            }
        }
    }

    fn n_sites(&self) -> usize {
        n_sites(&self.spec)
    }

    /// Remembers the first failure.
    fn note(&mut self, outcome: Result<(), CudaError>) {
        if let Err(error) = outcome {
            self.failed.get_or_insert(error);
        }
    }

    /// Kernels that the adapters of a batch need.
    fn adapter_kernels(&self, batch: &StepBatch) -> AdapterKernels {
        let mut slots = batch.sequences.iter().filter_map(|sequence| sequence.adapter).peekable();
        if slots.peek().is_none() {
            AdapterKernels::None
        } else if slots.any(|slot| self.residents.ends(slot).any()) {
            AdapterKernels::WithEnds
        } else {
            AdapterKernels::Linears
        }
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
            step: self.inputs().header,
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

    fn begin_step(&mut self, batch: &StepBatch) -> Result<StepStart, RunError> {
        self.failed = None;
        self.adapters = self.adapter_kernels(batch);
        self.mode = self.graphs.mode(batch, self.adapters, self.graph_inputs.capacity.rows);
        let inputs = match self.mode {
            StepMode::Launch => &mut self.launch_inputs,
            StepMode::Capture(_) | StepMode::Replay(_) => &mut self.graph_inputs,
        };
        inputs.write(batch)?;
        let first = &batch.sample_rows[..batch.sample_rows.len().min(inputs.capacity.sample_rows)];
        let heads = head_rows(batch, first, &self.residents);
        self.sampling.write(&self.device, inputs, first, &heads)?;
        inputs.send(&self.device)?;
        match self.mode {
            StepMode::Launch => Ok(StepStart::Enqueue),
            StepMode::Capture(_) => {
                self.device.begin_capture()?;
                Ok(StepStart::Enqueue)
            }
            StepMode::Replay(_) => Ok(StepStart::Recorded),
        }
    }

    fn embed(&mut self, _batch: &StepBatch, table: &CudaMatrix, out: &mut CudaBuffer) {
        let outcome = self.try_embed(table, out);
        self.note(outcome);
    }

    fn rms_norm(&mut self, x: &CudaBuffer, weight: &CudaVector, out: &mut CudaBuffer) {
        let params = self.norm(x, DevicePtr::NULL, *weight, out.half, out.stride);
        let outcome = params.launch(&self.device, self.launch_rows());
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

    fn project_swiglu(
        &mut self,
        projection: &Projection<CudaMatrix, CudaVector>,
        x: &CudaBuffer,
        out: &mut CudaBuffer,
    ) {
        let outcome = self.try_project_swiglu(projection, x, out);
        self.note(outcome);
    }

    fn sample(
        &mut self,
        batch: &StepBatch,
        x: &CudaBuffer,
        norm: &CudaVector,
        head: &CudaMatrix,
    ) -> Result<Vec<SampledToken>, RunError> {
        self.finish_step(batch, x, *norm, head)
    }

    fn adapter_packer(&self) -> Arc<dyn AdapterPacker> {
        Arc::new(CudaPacker {
            spec: self.spec.clone(),
            capacity_bytes: self.residents.capacity_bytes(),
            base: self.base.clone(),
        })
    }

    fn adapters(&self) -> Arc<dyn ResidentAdapters> {
        Arc::clone(&self.residents) as Arc<dyn ResidentAdapters>
    }
}

/// Sites of a model, and so of an entry of the adapters' table: linears of layers, head, embedding.
fn n_sites(spec: &ModelSpec) -> usize {
    site_index(spec, Site::EMBEDDING) + 1
}

/// Place of a site in an adapter's entry.
fn site_index(spec: &ModelSpec, site: Site) -> usize {
    let layers = spec.n_layers * TargetModule::ALL.len();
    if site == Site::HEAD {
        layers
    } else if site == Site::EMBEDDING {
        layers + 1
    } else {
        site.layer * TargetModule::ALL.len() + site.module.index()
    }
}
