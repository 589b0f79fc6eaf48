//! The gate of the feed-forward part, where the product has been finished already.

use crate::cuda::{CudaError, DevicePtr, Launch, LaunchSink, launch::kernel_params};

use super::{GRID_ROWS_MAX, want, want_stride};

const THREADS: u32 = 256;
/// Values of one thread.
const PER_THREAD: u32 = 4;

kernel_params! {
    /// `h[t, i] = f16(gate / (1 + e^(−gate)) · up)`; see `cuda/elementwise.cu`. [`super::EpilogueParams::launch_swiglu`] does
    /// the same straight from the product's planes.
    pub struct SwiGluParams {
        /// [`super::StepHeader`].
        pub step: DevicePtr,
        /// f32 `[T][in_stride]`.
        pub gate_up: DevicePtr,
        /// f16 `[T][out_stride]`; columns from `width` on become zero.
        pub h: DevicePtr,
        /// u32, counts values beyond the range of f16.
        pub saturations: DevicePtr,
        /// Distance of rows of `gate_up`, a multiple of 4.
        pub in_stride: u32,
        /// Where gate begins, a multiple of 4.
        pub gate_column: u32,
        /// Where up begins, a multiple of 4.
        pub up_column: u32,
        /// Values of a row.
        pub width: u32,
        /// Distance of rows of `h`, a multiple of 8.
        pub out_stride: u32,
        /// Zero.
        pub reserved: u32,
    }
}
const _: () = assert!(size_of::<SwiGluParams>() == 56);

impl SwiGluParams {
    /// Enqueues it for up to `max_rows` rows.
    ///
    /// # Errors
    /// [`CudaError::Launch`] naming what does not fit, or the sink's.
    pub fn launch(&self, sink: &dyn LaunchSink, max_rows: u32) -> Result<(), CudaError> {
        let kernel = "swiglu";
        for (what, column) in
            [("column of gate", self.gate_column), ("column of up", self.up_column)]
        {
            want(kernel, what, column, column.is_multiple_of(4), "a multiple of 4")?;
            let end = column.saturating_add(self.width);
            want(
                kernel,
                what,
                column,
                end <= self.in_stride,
                format_args!("its {} values within a row", self.width),
            )?;
        }
        want_stride(kernel, "distance of rows of gate_up", self.in_stride, 4, self.width)?;
        want_stride(kernel, "distance of rows of h", self.out_stride, 8, self.width)?;
        let grid = (self.out_stride.div_ceil(THREADS * PER_THREAD), max_rows.min(GRID_ROWS_MAX), 1);
        sink.submit(&Launch::new(kernel, grid, THREADS, 0, self))
    }
}
