//! Rotation, keys and values, and attention.

use crate::{
    backend::HeadNorms,
    cuda::{
        CudaError, DevicePtr,
        ops::{AttentionParams, RopeStoreParams},
    },
};

use super::{CHUNK_TOKENS, CudaBackend, CudaBuffer, CudaVector, word};

impl CudaBackend {
    pub(super) fn try_attention(
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
        let inputs = self.inputs();
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
            max_blocks: word(inputs.capacity.blocks),
            max_positions: word(self.max_positions),
            eps: spec.rms_eps,
            q_scale: std::f32::consts::LOG2_E / (dim as f32).sqrt(),
        }
        .launch(&self.device, self.launch_rows())?;
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
            max_blocks: word(inputs.capacity.blocks),
            chunk_tokens: word(CHUNK_TOKENS),
            max_chunks: word(self.max_chunks),
        }
        .launch(&self.device, self.attention_rows())
    }
}
