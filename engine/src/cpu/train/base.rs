//! The frozen model as training reads it: the matrices that serve, shared, and copies of the few vectors.

use std::sync::Arc;

use crate::{
    backend::{HeadNorms, Projection},
    cpu::{
        backend::{CpuBackend, CpuMatrix, CpuVector},
        packed::PackedMatrix,
    },
    model::{Decoder, Layer},
    rope::RopeTable,
    site::TargetModule,
    spec::ModelSpec,
};

/// The frozen weights of a model on the CPU, to train adapters through. Cheap to clone; it keeps the weights alive.
#[derive(Clone, Debug)]
pub struct FrozenBase(pub(super) Arc<Frozen>);

/// A linear and its bias, padded with zeros to whole tiles.
#[derive(Debug)]
pub(super) struct FrozenLinear {
    pub(super) matrix: Arc<PackedMatrix>,
    pub(super) bias: Option<Vec<f32>>,
}

#[derive(Debug)]
pub(super) struct FrozenLayer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) ffn_norm: Vec<f32>,
    pub(super) head_norms: Option<HeadNorms<Vec<f32>>>,
    /// By [`TargetModule::index`].
    linears: Vec<FrozenLinear>,
}

impl FrozenLayer {
    pub(super) fn linear(&self, module: TargetModule) -> &FrozenLinear {
        &self.linears[module.index()]
    }
}

#[derive(Debug)]
pub(super) struct Frozen {
    pub(super) spec: ModelSpec,
    pub(super) rope: RopeTable,
    pub(super) embedding: Arc<PackedMatrix>,
    pub(super) layers: Vec<FrozenLayer>,
    pub(super) final_norm: Vec<f32>,
    /// The embedding, where the two are one.
    pub(super) head: Arc<PackedMatrix>,
}

impl FrozenBase {
    /// The model's shape.
    pub fn spec(&self) -> &ModelSpec {
        &self.0.spec
    }

    /// SHA-256 of every packed weight: the same before and after training.
    pub fn weights_digest(&self) -> [u8; 32] {
        use sha2::Digest as _;
        let mut hash = sha2::Sha256::new();
        let linears = self.0.layers.iter().flat_map(|layer| &layer.linears);
        let matrices = linears.map(|linear| &linear.matrix);
        for matrix in matrices.chain([&self.0.embedding, &self.0.head]) {
            for tile in 0..matrix.n_tiles() {
                hash.update(matrix.tile(tile));
            }
        }
        hash.finalize().into()
    }
}

impl Decoder<CpuBackend> {
    /// The weights that this model serves with, for training beside it.
    pub fn frozen_base(&self) -> FrozenBase {
        let (spec, weights) = (self.model_spec(), self.weights());
        let head = weights.head.as_ref().unwrap_or(&weights.embedding);
        FrozenBase(Arc::new(Frozen {
            spec: spec.clone(),
            rope: RopeTable::new(spec),
            embedding: Arc::clone(&weights.embedding.0),
            layers: weights.layers.iter().map(frozen_layer).collect(),
            final_norm: values(&weights.final_norm),
            head: Arc::clone(&head.0),
        }))
    }
}

fn values(vector: &CpuVector) -> Vec<f32> {
    vector.values[..vector.len].to_vec()
}

fn frozen_layer(layer: &Layer<CpuMatrix, CpuVector>) -> FrozenLayer {
    let parts = |projection: &Projection<CpuMatrix, CpuVector>| {
        let linear = |part: &crate::backend::Linear<CpuMatrix, CpuVector>| FrozenLinear {
            matrix: Arc::clone(&part.matrix.0),
            bias: part.bias.as_ref().map(|bias| bias.values.clone()),
        };
        projection.parts.iter().map(linear).collect::<Vec<_>>()
    };
    let projections = [&layer.qkv, &layer.attention_out, &layer.gate_up, &layer.down];
    FrozenLayer {
        attention_norm: values(&layer.attention_norm),
        ffn_norm: values(&layer.ffn_norm),
        head_norms: layer
            .head_norms
            .as_ref()
            .map(|norms| HeadNorms { q: values(&norms.q), k: values(&norms.k) }),
        // In the order of `TargetModule::ALL`, as everywhere.
        linears: projections.into_iter().flat_map(parts).collect(),
    }
}
