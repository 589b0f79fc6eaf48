//! The decoder of Llama, Qwen2 and Qwen3, written once over any [`Backend`].

use std::sync::Arc;

use crate::{
    backend::{Backend, HeadNorms, Output, Projection, RunError, StepRunner, StepStart},
    packed_adapter::{AdapterPacker, ResidentAdapters},
    sampler::SampledToken,
    spec::ModelSpec,
    step_batch::StepBatch,
};

/// One layer's weights.
#[derive(Debug)]
pub struct Layer<M, V> {
    /// Before attention.
    pub attention_norm: V,
    /// q, k, v.
    pub qkv: Projection<M, V>,
    /// Of the heads of q and k.
    pub head_norms: Option<HeadNorms<V>>,
    /// o.
    pub attention_out: Projection<M, V>,
    /// Before the feed-forward part.
    pub ffn_norm: V,
    /// gate, up.
    pub gate_up: Projection<M, V>,
    /// down.
    pub down: Projection<M, V>,
}

/// All weights of a model.
#[derive(Debug)]
pub struct DecoderWeights<M, V> {
    /// `[vocab, hidden]`.
    pub embedding: M,
    /// From first to last.
    pub layers: Vec<Layer<M, V>>,
    /// Before the head.
    pub final_norm: V,
    /// `[vocab, hidden]`; `None` if it is the embedding.
    pub head: Option<M>,
}

/// Activations of a step.
struct Buffers<B> {
    /// The residual stream, `[T, hidden]`.
    residual: B,
    /// A norm's output, `[T, hidden]`.
    normed: B,
    qkv: B,
    /// `[T, heads * head_dim]`.
    attended: B,
    /// `[T, ffn]`.
    product: B,
}

/// A model resident on one device.
pub struct Decoder<B: Backend> {
    spec: ModelSpec,
    backend: B,
    weights: DecoderWeights<B::Matrix, B::Vector>,
    buffers: Buffers<B::Buffer>,
}

impl<B: Backend> std::fmt::Debug for Decoder<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl<B: Backend> Decoder<B> {
    /// Takes room for a step's activations.
    ///
    /// # Errors
    /// [`RunError::OutOfMemory`].
    pub fn new(
        spec: ModelSpec,
        mut backend: B,
        weights: DecoderWeights<B::Matrix, B::Vector>,
    ) -> Result<Self, RunError> {
        let q_width = spec.n_heads * spec.head_dim;
        let kv_width = spec.n_kv_heads * spec.head_dim;
        let ffn = spec.ffn.next_multiple_of(crate::backend::OUTPUT_ALIGN);
        let buffers = Buffers {
            residual: backend.buffer(spec.hidden)?,
            normed: backend.buffer(spec.hidden)?,
            qkv: backend.buffer(q_width + 2 * kv_width)?,
            attended: backend.buffer(q_width)?,
            product: backend.buffer(ffn)?,
        };
        backend.loaded(&weights);
        Ok(Self { spec, backend, weights, buffers })
    }

    pub(crate) fn model_spec(&self) -> &ModelSpec {
        &self.spec
    }

    pub(crate) fn weights(&self) -> &DecoderWeights<B::Matrix, B::Vector> {
        &self.weights
    }

    /// The device's side, for settings and measurements of its own.
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }
}

fn run_layer<B: Backend>(
    backend: &mut B,
    batch: &StepBatch,
    index: usize,
    layer: &Layer<B::Matrix, B::Vector>,
    b: &mut Buffers<B::Buffer>,
) {
    backend.rms_norm(&b.residual, &layer.attention_norm, &mut b.normed);
    backend.project(&layer.qkv, &b.normed, &mut b.qkv, Output::Write);
    backend.attention(batch, index, layer.head_norms.as_ref(), &mut b.qkv, &mut b.attended);
    backend.project(&layer.attention_out, &b.attended, &mut b.residual, Output::Add);
    backend.rms_norm(&b.residual, &layer.ffn_norm, &mut b.normed);
    backend.project_swiglu(&layer.gate_up, &b.normed, &mut b.product);
    backend.project(&layer.down, &b.product, &mut b.residual, Output::Add);
}

impl<B: Backend> StepRunner for Decoder<B> {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn n_kv_blocks(&self) -> usize {
        self.backend.n_kv_blocks()
    }

    fn max_rows(&self) -> usize {
        self.backend.max_rows()
    }

    fn step(&mut self, batch: &StepBatch) -> Result<Vec<SampledToken>, RunError> {
        let Self { backend, weights, buffers: b, .. } = self;
        if backend.begin_step(batch)? == StepStart::Enqueue {
            backend.embed(batch, &weights.embedding, &mut b.residual);
            for (index, layer) in weights.layers.iter().enumerate() {
                run_layer(backend, batch, index, layer, b);
            }
        }
        let head = weights.head.as_ref().unwrap_or(&weights.embedding);
        backend.sample(batch, &b.residual, &weights.final_norm, head)
    }

    fn adapter_packer(&self) -> Arc<dyn AdapterPacker> {
        self.backend.adapter_packer()
    }

    fn adapters(&self) -> Arc<dyn ResidentAdapters> {
        self.backend.adapters()
    }
}
