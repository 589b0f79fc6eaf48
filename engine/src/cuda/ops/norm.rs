//! RMS norm from the residual stream to the input of a product.

use crate::cuda::{CudaError, DevicePtr, Launch, LaunchSink, launch::kernel_params};

use super::{want, want_stride};

const THREADS: u32 = 256;

kernel_params! {
    /// `out[t, i] = f16(weight[i] x[r, i] / sqrt(Σ_j x[r, j]² / width + eps))`, `r = rows[t]`, or `t` without `rows`; see
    /// `cuda/norm.cu`.
    pub struct RmsNormParams {
        /// [`super::StepHeader`].
        pub step: DevicePtr,
        /// f32 `[T][x_stride]`.
        pub x: DevicePtr,
        /// u32 `[n_sample_rows]`, the rows to take; null: all rows of the step.
        pub rows: DevicePtr,
        /// f32 `[width]`.
        pub weight: DevicePtr,
        /// f16 `[T or n_sample_rows][out_stride]`; columns from `width` on become zero.
        pub out: DevicePtr,
        /// u32, counts values beyond the range of f16.
        pub saturations: DevicePtr,
        /// Distance of rows of `x`, a multiple of 4.
        pub x_stride: u32,
        /// Distance of rows of `out`, a multiple of 8.
        pub out_stride: u32,
        /// Values of a row.
        pub width: u32,
        /// Added to the mean square.
        pub eps: f32,
    }
}
const _: () = assert!(size_of::<RmsNormParams>() == 64);

impl RmsNormParams {
    /// Enqueues it for up to `max_rows` rows.
    ///
    /// # Errors
    /// [`CudaError::Launch`] naming what does not fit, or the sink's.
    pub fn launch(&self, sink: &dyn LaunchSink, max_rows: u32) -> Result<(), CudaError> {
        let kernel = "rms_norm";
        want(kernel, "width", self.width, self.width > 0, "at least 1")?;
        want_stride(kernel, "distance of rows of x", self.x_stride, 4, self.width)?;
        want_stride(kernel, "distance of rows of out", self.out_stride, 8, self.width)?;
        sink.submit(&Launch::new(kernel, (max_rows, 1, 1), THREADS, 0, self))
    }
}
