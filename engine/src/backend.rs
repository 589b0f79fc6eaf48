//! What runs a step: the scheduler's view ([`StepRunner`]) and the device's ([`Backend`]).

use std::sync::Arc;

use crate::{
    adapter_weights::{AdapterWeights, AdapterWeightsError},
    model::DecoderWeights,
    packed_adapter::{AdapterPacker, ResidentAdapters},
    quant::BlockFormat,
    sampler::SampledToken,
    site::TargetModule,
    spec::ModelSpec,
    step_batch::{AdapterSlot, StepBatch},
};

/// Why a step, or an adapter, could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The adapter does not fit the model.
    #[error(transparent)]
    Adapter(#[from] AdapterWeightsError),
    /// The device has no room left.
    #[error("{what} needs {needed} bytes, {free} are free")]
    OutOfMemory {
        /// For what.
        what: &'static str,
        /// Bytes asked for.
        needed: usize,
        /// Bytes left.
        free: usize,
    },
    /// The device failed; the step's sequences are lost.
    #[error("device failure: {0}")]
    Device(String),
}

/// A model resident on one device, seen from the scheduler: it runs steps and holds adapters.
///
/// One thread owns it. Implemented by [`crate::model::Decoder`] over any backend; tests use a fake one.
pub trait StepRunner: Send {
    /// The model's shape.
    fn spec(&self) -> &ModelSpec;

    /// Blocks of the KV pool, `KvBlockId(0)..KvBlockId(n)`.
    fn n_kv_blocks(&self) -> usize;

    /// Most rows in a step.
    fn max_rows(&self) -> usize;

    /// Runs one step: writes keys and values of every row, and chooses (or scores) a token for each of
    /// `batch.sample_rows`, in their order.
    ///
    /// # Errors
    /// [`RunError::Device`]; the contents of the batch's KV blocks are then undefined.
    fn step(&mut self, batch: &StepBatch) -> Result<Vec<SampledToken>, RunError>;

    /// Packs adapters for this model and device.
    fn adapter_packer(&self) -> Arc<dyn AdapterPacker>;

    /// The adapters that steps may name.
    fn adapters(&self) -> Arc<dyn ResidentAdapters>;

    /// Packs and installs.
    ///
    /// # Errors
    /// Of both.
    fn install_weights(&mut self, weights: &AdapterWeights) -> Result<AdapterSlot, RunError> {
        let packed = self.adapter_packer().pack(weights)?;
        self.adapters().install(&packed)
    }

    /// Frees a slot. No later batch names it.
    fn remove_adapter(&mut self, slot: AdapterSlot) {
        self.adapters().remove(slot);
    }
}

/// A matrix on its way to the device.
pub struct MatrixSource<'a> {
    /// Tensor name, for messages.
    pub name: &'a str,
    /// How its rows are stored.
    pub format: BlockFormat,
    /// Output features.
    pub n_out: usize,
    /// Input features.
    pub n_in: usize,
    /// The bytes of one row, rows in the order that the engine wants.
    pub row: &'a dyn Fn(usize) -> &'a [u8],
}

impl std::fmt::Debug for MatrixSource<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} [{}, {}] {}", self.name, self.n_out, self.n_in, self.format.name())
    }
}

/// One linear of a layer.
#[derive(Debug)]
pub struct Linear<M, V> {
    /// Which one.
    pub module: TargetModule,
    /// Its weight.
    pub matrix: M,
    /// Its bias.
    pub bias: Option<V>,
}

/// Linears of one layer that read the same input; their outputs lie side by side in one buffer, each beginning at a
/// multiple of [`OUTPUT_ALIGN`].
#[derive(Debug)]
pub struct Projection<M, V> {
    /// Layer, from 0.
    pub layer: usize,
    /// One to three linears.
    pub parts: Vec<Linear<M, V>>,
}

/// Outputs of a [`Projection`]'s parts begin at multiples of this many values.
pub const OUTPUT_ALIGN: usize = 16;

/// What a projection does with its output buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Overwrite.
    Write,
    /// Add (the residual stream).
    Add,
}

/// Norms of the heads of q and k (Qwen3), each `[head_dim]`.
#[derive(Debug)]
pub struct HeadNorms<V> {
    /// Of queries.
    pub q: V,
    /// Of keys.
    pub k: V,
}

/// What a device needs of a step that was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepStart {
    /// Its operations, one by one.
    Enqueue,
    /// Nothing: it recorded those of an equal step.
    Recorded,
}

/// The fused operations that a device offers. Buffers are `[max_rows, width]` f32 on the device; an operation works on
/// the rows of the step begun last.
///
/// The order of calls within a step is that of [`crate::model::Decoder`]; nothing here allocates.
pub trait Backend: Send {
    /// A frozen weight on the device.
    type Matrix: Send;
    /// A norm's weight or a bias on the device.
    type Vector: Send;
    /// Activations of all rows.
    type Buffer: Send;

    /// Repacks a weight for the device.
    ///
    /// # Errors
    /// [`RunError::OutOfMemory`].
    fn matrix(&mut self, source: &MatrixSource<'_>) -> Result<Self::Matrix, RunError>;

    /// Copies a vector to the device.
    ///
    /// # Errors
    /// [`RunError::OutOfMemory`].
    fn vector(&mut self, values: &[f32]) -> Result<Self::Vector, RunError>;

    /// Takes room for `[max_rows, width]`.
    ///
    /// # Errors
    /// [`RunError::OutOfMemory`].
    fn buffer(&mut self, width: usize) -> Result<Self::Buffer, RunError>;

    /// All weights of the model are on the device: a last look, for what packing an adapter needs of them.
    fn loaded(&mut self, _weights: &DecoderWeights<Self::Matrix, Self::Vector>) {}

    /// Blocks of the KV pool.
    fn n_kv_blocks(&self) -> usize;

    /// Most rows in a step.
    fn max_rows(&self) -> usize;

    /// Plans a step: positions, block tables, adapters of all rows. On [`StepStart::Recorded`] the device has the step's
    /// operations already, and [`Self::sample`] follows at once.
    ///
    /// # Errors
    /// [`RunError::Device`].
    fn begin_step(&mut self, batch: &StepBatch) -> Result<StepStart, RunError>;

    /// `out[t] = table[token_ids[t]]`, each row with its own adapter.
    fn embed(&mut self, batch: &StepBatch, table: &Self::Matrix, out: &mut Self::Buffer);

    /// `out = rms_norm(x) * weight`.
    fn rms_norm(&mut self, x: &Self::Buffer, weight: &Self::Vector, out: &mut Self::Buffer);

    /// `out (+)= W x + bias + lora_scale * B (A x)` for every part, each row with its own adapter; other kinds of
    /// adapters as [`crate::adapter_weights`] says.
    fn project(
        &mut self,
        projection: &Projection<Self::Matrix, Self::Vector>,
        x: &Self::Buffer,
        out: &mut Self::Buffer,
        output: Output,
    );

    /// Head norms, `RoPE`, storing keys and values, and causal attention over paged memory.
    ///
    /// `qkv` is the output of the q, k, v projection and is changed; `out` is `[max_rows, heads * head_dim]`.
    fn attention(
        &mut self,
        batch: &StepBatch,
        layer: usize,
        norms: Option<&HeadNorms<Self::Vector>>,
        qkv: &mut Self::Buffer,
        out: &mut Self::Buffer,
    );

    /// `out = silu(gate) * up`, the two outputs of [`Self::project`] for the gate, up projection of `x`.
    fn project_swiglu(
        &mut self,
        projection: &Projection<Self::Matrix, Self::Vector>,
        x: &Self::Buffer,
        out: &mut Self::Buffer,
    );

    /// Final norm, head and choice of a token for each of `batch.sample_rows`, each row with its own adapter.
    ///
    /// # Errors
    /// [`RunError::Device`].
    fn sample(
        &mut self,
        batch: &StepBatch,
        x: &Self::Buffer,
        norm: &Self::Vector,
        head: &Self::Matrix,
    ) -> Result<Vec<SampledToken>, RunError>;

    /// See [`StepRunner::adapter_packer`].
    fn adapter_packer(&self) -> Arc<dyn AdapterPacker>;

    /// See [`StepRunner::adapters`].
    fn adapters(&self) -> Arc<dyn ResidentAdapters>;
}
