//! From the q, k, v product to queries and to keys and values in the pool.

use crate::cuda::{CudaError, DevicePtr, Launch, LaunchSink, launch::kernel_params};

use super::{GRID_ROWS_MAX, want, want_stride};

/// Warps of a CTA, one head each.
const WARPS: u32 = 8;
const LANES: u32 = 32;
/// Most query heads: far beyond any model, and products of sizes stay within 32 bits.
const HEADS_MAX: u32 = 1 << 16;
/// Widest head.
pub(super) const HEAD_DIM_MAX: u32 = 256;

kernel_params! {
    /// Head norms, `RoPE`, scaling of q; q as f16, keys and values into the paged pool; see `cuda/rope_kv.cu`.
    pub struct RopeStoreParams {
        /// [`super::StepHeader`].
        pub step: DevicePtr,
        /// f32 `[T][in_stride]`.
        pub qkv: DevicePtr,
        /// f32 `[head_dim]`, or null.
        pub q_norm: DevicePtr,
        /// f32 `[head_dim]`, or null.
        pub k_norm: DevicePtr,
        /// f32 `[max_positions][head_dim / 2]`.
        pub cos: DevicePtr,
        /// f32 `[max_positions][head_dim / 2]`.
        pub sin: DevicePtr,
        /// u32 `[T]`.
        pub positions: DevicePtr,
        /// u32 `[T]`, index of the row's block table.
        pub row_sequence: DevicePtr,
        /// u32 `[S][max_blocks]`.
        pub block_tables: DevicePtr,
        /// f16 `[T][q_stride]`; columns from `n_heads · head_dim` on are not written.
        pub q: DevicePtr,
        /// f16 `[block][kv_head][K, V][16 tokens][head_dim]`, the pool of one layer.
        pub kv: DevicePtr,
        /// u32, counts values beyond the range of f16.
        pub saturations: DevicePtr,
        /// Distance of rows of `qkv`.
        pub in_stride: u32,
        /// Where q begins.
        pub q_column: u32,
        /// Where k begins.
        pub k_column: u32,
        /// Where v begins.
        pub v_column: u32,
        /// Distance of rows of `q`, a multiple of 8.
        pub q_stride: u32,
        /// Query heads.
        pub n_heads: u32,
        /// Key and value heads; divides `n_heads`.
        pub n_kv_heads: u32,
        /// A multiple of 16, 16 to 256.
        pub head_dim: u32,
        /// Blocks of a block table.
        pub max_blocks: u32,
        /// Positions of the table of angles.
        pub max_positions: u32,
        /// Of the head norms.
        pub eps: f32,
        /// Multiplies q: `softmax_scale · log2(e)`, as [`super::AttentionParams`] wants it.
        pub q_scale: f32,
    }
}
const _: () = assert!(size_of::<RopeStoreParams>() == 144);

impl RopeStoreParams {
    /// Enqueues it for up to `max_rows` rows.
    ///
    /// # Errors
    /// [`CudaError::Launch`] naming what does not fit, or the sink's.
    pub fn launch(&self, sink: &dyn LaunchSink, max_rows: u32) -> Result<(), CudaError> {
        let kernel = "rope_store";
        want_heads(kernel, self.n_heads, self.n_kv_heads, self.head_dim)?;
        want(kernel, "positions", self.max_positions, self.max_positions > 0, "at least 1")?;
        let (q, kv) = (self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim);
        want_stride(kernel, "distance of rows of q", self.q_stride, 8, q)?;
        for (what, column, width) in [
            ("end of q", self.q_column, q),
            ("end of k", self.k_column, kv),
            ("end of v", self.v_column, kv),
        ] {
            let end = column.saturating_add(width);
            want(
                kernel,
                what,
                end,
                end <= self.in_stride,
                format_args!("at most {}", self.in_stride),
            )?;
        }
        let heads = self.n_heads + 2 * self.n_kv_heads;
        let grid = (heads.div_ceil(WARPS), max_rows.min(GRID_ROWS_MAX), 1);
        sink.submit(&Launch::new(kernel, grid, WARPS * LANES, 0, self))
    }
}

/// Heads as attention takes them.
pub(super) fn want_heads(
    kernel: &str,
    n_heads: u32,
    n_kv_heads: u32,
    head_dim: u32,
) -> Result<(), CudaError> {
    let fits = head_dim.is_multiple_of(16) && (16..=HEAD_DIM_MAX).contains(&head_dim);
    want(kernel, "head size", head_dim, fits, "a multiple of 16, 16 to 256")?;
    let fits =
        n_kv_heads > 0 && n_heads > 0 && n_heads.is_multiple_of(n_kv_heads) && n_heads <= HEADS_MAX;
    want(kernel, "query heads", n_heads, fits, format_args!("a multiple of {n_kv_heads} kv heads"))
}
