//! First half of the adapters.

use crate::cuda::{CudaError, DevicePtr, Launch, LaunchSink, launch::kernel_params};

use super::{PARTS_MAX, TILED_ROWS_MIN, want, want_stride};

const THREADS: u32 = 256;
/// CTAs that share the ranks of one part, as in `cuda/lora.cu`.
const RANK_GROUPS: u32 = 4;
/// Rows of a tile in `lora_shrink_4`.
const TILE_ROWS: u32 = 4;

kernel_params! {
    /// `v[s, t, 256 part + r] = Σ_{k in split s} a[slot[t]][site[part]][r, k] x[t, k]`; rows with no slot stay as they are, so
    /// do ranks that an adapter has not; see `cuda/lora.cu`.
    pub struct LoraShrinkParams {
        /// [`super::StepHeader`].
        pub step: DevicePtr,
        /// f16 `[T][x_stride]`, zero from `K` on.
        pub x: DevicePtr,
        /// u32 `[T]`, slot of each row or [`super::NO_SLOT`].
        pub slots: DevicePtr,
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
        /// Columns of a split, a multiple of 8; there are `n_in / split_columns` splits, rounded up.
        pub split_columns: u32,
        /// Sites of a slot.
        pub n_sites: u32,
        /// Linears that read this input.
        pub n_parts: u32,
        /// Site of each, `layer * 7 + module`.
        pub site: [u32; PARTS_MAX],
        /// Zero.
        pub reserved: u32,
    }
}
const _: () = assert!(size_of::<LoraShrinkParams>() == 88);

impl LoraShrinkParams {
    /// Planes of `v` that it writes.
    pub fn n_splits(&self) -> u32 {
        self.n_in.div_ceil(self.split_columns.max(1))
    }

    /// Enqueues it for up to `max_rows` rows.
    ///
    /// # Errors
    /// [`CudaError::Launch`] naming what does not fit, or the sink's.
    pub fn launch(&self, sink: &dyn LaunchSink, max_rows: u32) -> Result<(), CudaError> {
        self.launch_tiled(sink, max_rows, max_rows >= TILED_ROWS_MIN)
    }

    /// [`Self::launch`] with or without tiles of several rows: the same bits.
    pub(crate) fn launch_tiled(
        &self,
        sink: &dyn LaunchSink,
        max_rows: u32,
        tiled: bool,
    ) -> Result<(), CudaError> {
        let (kernel, rows) =
            if tiled { ("lora_shrink_4", TILE_ROWS) } else { ("lora_shrink_1", 1) };
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
        want_stride(kernel, "columns of a split", self.split_columns, 8, 8)?;
        let grid = (max_rows.div_ceil(rows), n_parts * RANK_GROUPS, self.n_splits());
        sink.submit(&Launch::new(kernel, grid, THREADS, 0, self))
    }
}
