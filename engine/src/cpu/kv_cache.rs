//! Keys and values of all sequences, in blocks of sixteen tokens.
//!
//! ```text
//! layer → KV block → kv head → keys   [D, 16 tokens]   one vector load: one dimension of sixteen tokens
//!                              values [16 tokens, D]   one vector load: sixteen dimensions of one token
//! ```
#![expect(unsafe_code, reason = "raw element stores in a byte buffer")]

use crate::kv::{KV_BLOCK_TOKENS, KvBlockId};

use super::{
    memory::AlignedBytes,
    simd::{Kernel, LANES, Simd},
    threads::Parts,
};

/// Widest head.
pub(crate) const HEAD_DIM_MAX: usize = 512;

/// Type of the elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KvElement {
    F16,
    F32,
}

impl KvElement {
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Sizes of the cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvShape {
    pub(crate) n_layers: usize,
    pub(crate) n_blocks: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) element: KvElement,
}

impl KvShape {
    /// Bytes of one block in all layers.
    pub(crate) fn block_bytes(&self) -> usize {
        self.n_layers * 2 * self.n_kv_heads * self.head_dim * KV_BLOCK_TOKENS * self.element.bytes()
    }

    /// Elements of one head's keys (or values) in a block.
    fn head_block(&self) -> usize {
        self.head_dim * KV_BLOCK_TOKENS
    }

    /// Where one head's keys (or values) of a block begin in a layer, bytes.
    fn offset(&self, block: KvBlockId, kv_head: usize) -> usize {
        (block.0 as usize * self.n_kv_heads + kv_head) * self.head_block() * self.element.bytes()
    }
}

/// The memory.
#[derive(Debug)]
pub(crate) struct KvCache {
    pub(crate) shape: KvShape,
    /// Keys of a layer, then its values.
    layers: Vec<[AlignedBytes; 2]>,
}

impl KvCache {
    pub(crate) fn new(shape: KvShape) -> Self {
        let bytes = shape.n_blocks * shape.n_kv_heads * shape.head_block() * shape.element.bytes();
        let layers = (0..shape.n_layers)
            .map(|_| [AlignedBytes::zeroed(bytes), AlignedBytes::zeroed(bytes)])
            .collect();
        Self { shape, layers }
    }

    fn head_bytes(&self, layer: usize, which: usize, block: KvBlockId, kv_head: usize) -> &[u8] {
        let bytes = self.shape.head_block() * self.shape.element.bytes();
        &self.layers[layer][which].as_slice()[self.shape.offset(block, kv_head)..][..bytes]
    }

    /// Keys `[D, 16]` of one head in a block.
    pub(crate) fn keys(&self, layer: usize, block: KvBlockId, kv_head: usize) -> &[u8] {
        self.head_bytes(layer, 0, block, kv_head)
    }

    /// Values `[16, D]` of one head in a block.
    pub(crate) fn values(&self, layer: usize, block: KvBlockId, kv_head: usize) -> &[u8] {
        self.head_bytes(layer, 1, block, kv_head)
    }
}

/// Writes keys and values of tokens of one layer, from several threads.
pub(crate) struct KvWriter<'a> {
    shape: KvShape,
    keys: Parts<'a, u8>,
    values: Parts<'a, u8>,
}

impl KvCache {
    /// A writer for one layer.
    pub(crate) fn writer(&mut self, layer: usize) -> KvWriter<'_> {
        let [keys, values] = &mut self.layers[layer];
        KvWriter {
            shape: self.shape,
            keys: Parts::new(keys.as_mut_slice()),
            values: Parts::new(values.as_mut_slice()),
        }
    }
}

/// Writes keys and values of one token in one layer. No other thread may write this token.
pub(crate) struct StoreToken<'a, 'b> {
    pub(crate) writer: &'a KvWriter<'b>,
    pub(crate) block: KvBlockId,
    /// Place in the block, `0..16`.
    pub(crate) token: usize,
    /// `[kv_heads, D]`.
    pub(crate) k: &'a [f32],
    /// `[kv_heads, D]`.
    pub(crate) v: &'a [f32],
}

impl Kernel for StoreToken<'_, '_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let shape = self.writer.shape;
        let dim = shape.head_dim;
        assert!(dim.is_multiple_of(LANES) && dim <= HEAD_DIM_MAX && self.token < KV_BLOCK_TOKENS);
        let bytes = shape.head_block() * shape.element.bytes();
        for head in 0..shape.n_kv_heads {
            let at = shape.offset(self.block, head);
            let (k, v) = (&self.k[head * dim..][..dim], &self.v[head * dim..][..dim]);
            let keys = self.writer.keys.at(at, bytes);
            let values = self.writer.values.at(at, bytes);
            // SAFETY: `keys` and `values` are `16 * D` elements; `token < 16` and `d < D`, by the assertion and the
            // slices above; buffers are 64-byte aligned. The temporary has room for `D` halves.
            unsafe {
                match shape.element {
                    KvElement::F32 => {
                        let (keys, values) = (keys.cast::<f32>(), values.cast::<f32>());
                        for (d, &value) in k.iter().enumerate() {
                            keys.add(d * KV_BLOCK_TOKENS + self.token).write(value);
                        }
                        std::ptr::copy_nonoverlapping(
                            v.as_ptr(),
                            values.add(self.token * dim),
                            dim,
                        );
                    }
                    KvElement::F16 => {
                        let (keys, values) = (keys.cast::<u16>(), values.cast::<u16>());
                        let mut halves = [0u16; HEAD_DIM_MAX];
                        for d in (0..dim).step_by(LANES) {
                            S::store_f16(halves.as_mut_ptr().add(d), S::load(k.as_ptr().add(d)));
                            S::store_f16(
                                values.add(self.token * dim + d),
                                S::load(v.as_ptr().add(d)),
                            );
                        }
                        for (d, &value) in halves[..dim].iter().enumerate() {
                            keys.add(d * KV_BLOCK_TOKENS + self.token).write(value);
                        }
                    }
                }
            }
        }
    }
}
