//! Causal attention: rows one by one, and tiles of rows.

use crate::cuda::{CudaError, DevicePtr, Launch, LaunchSink, launch::kernel_params};

use super::{rope_kv::want_heads, want, want_stride};

/// Threads of `attention_*`, of its merge, and of the tiles' kernel.
const SINGLE_THREADS: u32 = 256;
const MERGE_THREADS: u32 = 128;
const TILE_THREADS: u32 = 128;
/// Query vectors (rows × heads of one kv head) of a tile.
const TILE_VECTORS: u32 = 64;
/// Tokens whose keys and values a tile's CTA holds at a time.
const TILE_TOKENS: u32 = 64;
/// Most query heads that a CTA of `attention_*` serves.
const HEADS_MAX: u32 = 8;
/// CTAs that are worth having: enough for every multiprocessor of a large GPU, four times over.
const CTAS_WANTED: u32 = 512;

kernel_params! {
    /// `out[t, h] = Σ_j p[j] V[j]`, `p = softmax_j` over `j ≤ positions[t]` of `2^(q[t, h] · K[j])`; see `cuda/attention.cu`
    /// and `cuda/attention_tiles.cu`. Every row of a step is either in `single_rows` or in one of `tiles`.
    pub struct AttentionParams {
        /// [`super::StepHeader`].
        pub step: DevicePtr,
        /// f16 `[T][q_stride]`, scaled by `softmax_scale · log2(e)`.
        pub q: DevicePtr,
        /// f16 `[block][kv_head][K, V][16 tokens][head_dim]`, the pool of one layer.
        pub kv: DevicePtr,
        /// f16 `[T][out_stride]`; columns from `n_heads · head_dim` on are not written (zero them once).
        pub out: DevicePtr,
        /// f32 `[single rows][n_heads][max_chunks][head_dim + 2]`; not read if `max_chunks` is 1.
        pub partials: DevicePtr,
        /// u32 `[n_single_rows]`, rows of the step.
        pub single_rows: DevicePtr,
        /// [`super::AttentionTile`] `[n_tiles]`.
        pub tiles: DevicePtr,
        /// u32 `[T]`.
        pub positions: DevicePtr,
        /// u32 `[T]`, index of the row's block table.
        pub row_sequence: DevicePtr,
        /// u32 `[S][max_blocks]`.
        pub block_tables: DevicePtr,
        /// Distance of rows of `q`, a multiple of 8.
        pub q_stride: u32,
        /// Distance of rows of `out`, a multiple of 8.
        pub out_stride: u32,
        /// Query heads.
        pub n_heads: u32,
        /// Key and value heads; divides `n_heads`.
        pub n_kv_heads: u32,
        /// A multiple of 16, 16 to 256.
        pub head_dim: u32,
        /// Blocks of a block table.
        pub max_blocks: u32,
        /// Tokens of a chunk of the context of a single row. Must not vary between steps: a row's bits depend on it.
        pub chunk_tokens: u32,
        /// Chunks of the longest context.
        pub max_chunks: u32,
    }
}
const _: () = assert!(size_of::<AttentionParams>() == 112);

/// What a launch is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttentionRows {
    /// Most single rows.
    pub max_single: u32,
    /// Most tiles.
    pub max_tiles: u32,
}

/// Most rows of a tile; `None` if more query heads share a kv head than fit: then every row is a single row.
pub fn rows_of_tile(n_heads: u32, n_kv_heads: u32) -> Option<u32> {
    TILE_VECTORS.checked_div(n_heads.checked_div(n_kv_heads)?).filter(|&rows| rows > 0)
}

impl AttentionParams {
    /// Enqueues the kernels for single rows, if there may be any, and for tiles, likewise.
    ///
    /// # Errors
    /// [`CudaError::Launch`] naming what does not fit, or the sink's.
    pub fn launch(&self, sink: &dyn LaunchSink, rows: AttentionRows) -> Result<(), CudaError> {
        if rows.max_single > 0 {
            self.launch_single(sink, rows.max_single)?;
        }
        if rows.max_tiles > 0 {
            self.launch_tiles(sink, rows.max_tiles)?;
        }
        Ok(())
    }

    fn launch_single(&self, sink: &dyn LaunchSink, max_single: u32) -> Result<(), CudaError> {
        let per_kv = self.n_heads / self.n_kv_heads.max(1);
        let lanes = (self.head_dim / 8).next_power_of_two().max(8);
        let heads = per_kv.next_power_of_two().min(HEADS_MAX);
        let kernel = format!("attention_l{lanes}_h{heads}");
        self.check(&kernel)?;
        want(&kernel, "tokens of a chunk", self.chunk_tokens, self.chunk_tokens > 0, "at least 1")?;
        want(&kernel, "chunks", self.max_chunks, self.max_chunks > 0, "at least 1")?;
        let ctas_y = self.n_kv_heads * per_kv.div_ceil(heads);
        // How many CTAs share a context does not change its chunks, nor the order in which they are added up.
        let ctas_z = (CTAS_WANTED / max_single.saturating_mul(ctas_y)).clamp(1, self.max_chunks);
        sink.submit(&Launch::new(&kernel, (max_single, ctas_y, ctas_z), SINGLE_THREADS, 0, self))?;
        if self.max_chunks > 1 {
            let grid = (max_single, self.n_heads, 1);
            sink.submit(&Launch::new("attention_merge", grid, MERGE_THREADS, 0, self))?;
        }
        Ok(())
    }

    fn launch_tiles(&self, sink: &dyn LaunchSink, max_tiles: u32) -> Result<(), CudaError> {
        let (kernel, dim) = match self.head_dim {
            ..=64 => ("attention_tiles_64", 64),
            65..=128 => ("attention_tiles_128", 128),
            _ => ("attention_tiles_256", 256),
        };
        self.check(kernel)?;
        let per_kv = self.n_heads / self.n_kv_heads.max(1);
        want(
            kernel,
            "query heads of a kv head",
            per_kv,
            per_kv <= TILE_VECTORS,
            format_args!("at most {TILE_VECTORS}"),
        )?;
        let halves = (TILE_VECTORS + 2 * TILE_TOKENS) * dim;
        sink.submit(&Launch::new(
            kernel,
            (max_tiles, self.n_kv_heads, 1),
            TILE_THREADS,
            halves * 2,
            self,
        ))
    }

    fn check(&self, kernel: &str) -> Result<(), CudaError> {
        want_heads(kernel, self.n_heads, self.n_kv_heads, self.head_dim)?;
        let width = self.n_heads * self.head_dim;
        want_stride(kernel, "distance of rows of q", self.q_stride, 8, width)?;
        want_stride(kernel, "distance of rows of out", self.out_stride, 8, width)?;
        want(kernel, "blocks of a table", self.max_blocks, self.max_blocks > 0, "at least 1")
    }
}
