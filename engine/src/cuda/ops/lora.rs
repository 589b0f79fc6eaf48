//! First half of the adapters.

use crate::cuda::{CudaError, DevicePtr, Launch, LaunchSink, launch::kernel_params};

use super::{PARTS_MAX, want, want_stride};

const THREADS: u32 = 256;
/// CTAs that share the ranks of one part, as in `cuda/lora.cu`.
const RANK_GROUPS: u32 = 4;

const TILE_THREADS: u32 = 128;
/// Columns of a stage, and so the least difference of two splits.
const STAGE_COLUMNS: u32 = 64;
/// Six stages of 64 rows of x and 4 blocks of 16 ranks.
const TILE_SHARED_BYTES: u32 = 6 * (64 + 4 * 16) * STAGE_COLUMNS * 2;
/// CTAs that share the blocks of ranks of a tile: those that find none return at once, so not many.
const BLOCK_GROUPS: u32 = 2;
/// CTAs that tiles should have: each asks for up to 80 KB ahead, so fewer than multiprocessors will do.
const TILE_CTAS_WANTED: u32 = 96;
/// Most planes that tiles are worth: whoever reads `v` sums them up.
const TILE_SPLITS_MAX: u32 = 8;
/// Fewest columns of a split of tiles: with less a CTA begins and ends more than it works.
const TILE_SPLIT_COLUMNS_MIN: u32 = 256;

kernel_params! {
    /// `v[s, t, 512 part + r] = Σ_{k in split s} a[slot[t]][site[part]][r, k] x[t, k]`; rows with no slot stay as they are, so
    /// do ranks that an adapter has not; see `cuda/lora.cu`.
    pub struct LoraShrinkParams {
        /// [`super::StepHeader`].
        pub step: DevicePtr,
        /// f16 `[T][x_stride]`, zero from `K` on.
        pub x: DevicePtr,
        /// u32 `[T]`, slot of each row or [`super::NO_SLOT`].
        pub slots: DevicePtr,
        /// [`super::AdapterTile`] `[n_adapter_tiles]`, which cover all rows; read by [`LoraShrinkParams::launch_tiles`].
        pub tiles: DevicePtr,
        /// [`super::LoraSite`] `[slots][n_sites]`.
        pub sites: DevicePtr,
        /// f32 `[splits][T][V_STRIDE]`.
        pub v: DevicePtr,
        /// Distance of the planes of `v`, values.
        pub v_plane_stride: u64,
        /// Distance of rows of `x`, a multiple of 8.
        pub x_stride: u32,
        /// Distance of rows of every `A`, a multiple of 8.
        pub a_stride: u32,
        /// `K` rounded up to 8.
        pub n_in: u32,
        /// Columns of a split, a multiple of 8 (of 64 for tiles, see [`tile_split_columns`]); there are
        /// `n_in / split_columns` splits, rounded up.
        pub split_columns: u32,
        /// Sites of a slot.
        pub n_sites: u32,
        /// Linears that read this input.
        pub n_parts: u32,
        /// Site of each, in the table.
        pub site: [u32; PARTS_MAX],
        /// Zero.
        pub reserved: u32,
    }
}
const _: () = assert!(size_of::<LoraShrinkParams>() == 96);

/// Columns of a split for tiles, so that `n_tiles` of them fill the device and `v` has at most `planes_max` planes.
pub fn tile_split_columns(n_in: u32, n_tiles: u32, planes_max: u32) -> u32 {
    let enough = TILE_CTAS_WANTED.div_ceil(n_tiles.max(1));
    let useful = (n_in / TILE_SPLIT_COLUMNS_MIN).min(TILE_SPLITS_MAX).min(planes_max);
    n_in.div_ceil(enough.min(useful).max(1)).next_multiple_of(STAGE_COLUMNS)
}

impl LoraShrinkParams {
    /// Planes of `v` that it writes.
    pub fn n_splits(&self) -> u32 {
        self.n_in.div_ceil(self.split_columns.max(1))
    }

    /// Enqueues it for up to `max_rows` rows, one by one.
    ///
    /// # Errors
    /// [`CudaError::Launch`] naming what does not fit, or the sink's.
    pub fn launch(&self, sink: &dyn LaunchSink, max_rows: u32) -> Result<(), CudaError> {
        let kernel = "lora_shrink_1";
        self.check(kernel, 8)?;
        let grid = (max_rows, self.n_parts * RANK_GROUPS, self.n_splits());
        sink.submit(&Launch::new(kernel, grid, THREADS, 0, self))
    }

    /// Enqueues it for up to `max_tiles` tiles of rows, on tensor cores.
    ///
    /// # Errors
    /// [`CudaError::Launch`] naming what does not fit, or the sink's.
    pub fn launch_tiles(&self, sink: &dyn LaunchSink, max_tiles: u32) -> Result<(), CudaError> {
        let kernel = "lora_shrink_tiles";
        self.check(kernel, STAGE_COLUMNS)?;
        let grid = (max_tiles, self.n_splits(), BLOCK_GROUPS);
        sink.submit(&Launch::new(kernel, grid, TILE_THREADS, TILE_SHARED_BYTES, self))
    }

    fn check(&self, kernel: &str, split_multiple: u32) -> Result<(), CudaError> {
        let n_parts = self.n_parts;
        want(kernel, "parts", n_parts, (1..=3).contains(&n_parts), "1 to 3")?;
        for site in &self.site[..n_parts as usize] {
            want(
                kernel,
                "site",
                *site,
                *site < self.n_sites,
                format_args!("below {}", self.n_sites),
            )?;
        }
        want(
            kernel,
            "K",
            self.n_in,
            self.n_in > 0 && self.n_in.is_multiple_of(8),
            "a multiple of 8 from 8 on",
        )?;
        want_stride(kernel, "distance of rows of x", self.x_stride, 8, self.n_in)?;
        want_stride(kernel, "distance of rows of A", self.a_stride, 8, self.n_in)?;
        let columns = self.split_columns;
        want_stride(kernel, "columns of a split", columns, split_multiple, split_multiple)
    }
}
