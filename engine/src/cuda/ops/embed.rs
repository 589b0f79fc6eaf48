//! Rows of the embedding.

use crate::cuda::{CudaError, DevicePtr, Launch, LaunchSink, launch::kernel_params};

use super::{GRID_ROWS_MAX, want_stride};

const THREADS: u32 = 256;

kernel_params! {
    /// `x[t, i] = table[token_ids[t], i]`, bit-equal to the CPU's values; see `cuda/embed.cu`.
    pub struct EmbedParams {
        /// [`super::StepHeader`].
        pub step: DevicePtr,
        /// `[vocab][width]`, a repacked matrix.
        pub table: DevicePtr,
        /// u32 `[T]`; an id from `vocab` on gives zeros.
        pub token_ids: DevicePtr,
        /// f32 `[T][x_stride]`; columns from `width` on are not written.
        pub x: DevicePtr,
        /// Rows of the table.
        pub vocab: u32,
        /// Columns of the table.
        pub width: u32,
        /// The table's `n_in_padded`.
        pub width_padded: u32,
        /// Distance of rows of `x`.
        pub x_stride: u32,
        /// The table's `format.ggml_type()`.
        pub format: u32,
        /// Zero.
        pub reserved: u32,
    }
}
const _: () = assert!(size_of::<EmbedParams>() == 56);

impl EmbedParams {
    /// Enqueues it for up to `max_rows` rows.
    ///
    /// # Errors
    /// [`CudaError::Launch`] naming what does not fit, or the sink's.
    pub fn launch(&self, sink: &dyn LaunchSink, max_rows: u32) -> Result<(), CudaError> {
        let kernel = "embed";
        want_stride(kernel, "padded width", self.width_padded, 64, self.width)?;
        want_stride(kernel, "distance of rows of x", self.x_stride, 1, self.width)?;
        let grid = (self.width.div_ceil(THREADS), max_rows.min(GRID_ROWS_MAX), 1);
        sink.submit(&Launch::new(kernel, grid, THREADS, 0, self))
    }
}
