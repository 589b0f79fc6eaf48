//! Logits of adapters with a head of their own.

use crate::cuda::{CudaError, DevicePtr, Launch, LaunchSink, launch::kernel_params};

use super::{want, want_stride};

/// Most rows of a tile, as in `cuda/own_head.cu`.
pub const OWN_HEAD_TILE_ROWS: usize = 32;

const THREADS: u32 = 128;
/// Features of a CTA.
const CTA_FEATURES: u32 = 64;
/// Most tiles side by side: most steps have none, and CTAs that find none cost little only if they are few.
const GRID_TILES_MAX: u32 = 4;

kernel_params! {
    /// `logits[rows[i], n] = Σ_k own[slot of i].head[n, k] x[rows[i], k]`, all other rows untouched; see
    /// `cuda/own_head.cu`.
    pub struct OwnHeadParams {
        /// [`super::StepHeader`] of the head: `n_adapter_tiles` counts the tiles.
        pub step: DevicePtr,
        /// f16 `[T][x_stride]`, rows whose logits are wanted.
        pub x: DevicePtr,
        /// [`super::AdapterTile`]: at most [`OWN_HEAD_TILE_ROWS`] rows, `first_row` an index into `rows`.
        pub tiles: DevicePtr,
        /// u32, rows of `x` and `logits`; those of one tile side by side.
        pub rows: DevicePtr,
        /// [`super::OwnMatrices`] `[slots]`.
        pub own: DevicePtr,
        /// f32 `[T][stride]`; columns from `n_out` on are not written.
        pub logits: DevicePtr,
        /// Distance of rows of `x`, a multiple of 64.
        pub x_stride: u32,
        /// Units of 64 in features.
        pub n_units: u32,
        /// Output features.
        pub n_out: u32,
        /// Distance of rows of the logits.
        pub stride: u32,
    }
}
const _: () = assert!(size_of::<OwnHeadParams>() == 64);

impl OwnHeadParams {
    /// Enqueues it for up to `max_tiles` tiles.
    ///
    /// # Errors
    /// [`CudaError::Launch`] naming what does not fit, or the sink's.
    pub fn launch(&self, sink: &dyn LaunchSink, max_tiles: u32) -> Result<(), CudaError> {
        let kernel = "own_head";
        want(kernel, "units", self.n_units, self.n_units > 0, "at least 1")?;
        let width = self.n_units.saturating_mul(64);
        want_stride(kernel, "distance of rows of x", self.x_stride, 64, width)?;
        want_stride(kernel, "distance of rows of the logits", self.stride, 1, self.n_out)?;
        let grid = (self.n_out.div_ceil(CTA_FEATURES), max_tiles.min(GRID_TILES_MAX), 1);
        sink.submit(&Launch::new(kernel, grid, THREADS, 0, self))
    }
}
