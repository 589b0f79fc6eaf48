//! Products with weights in tiles.

use crate::cuda::{CudaError, DevicePtr, Launch, LaunchSink, launch::kernel_params};

use super::{PARTS_MAX, want, want_stride};

const THREADS: u32 = 256;
/// Rows of an MMA's N.
const MMA_ROWS: u32 = 8;
/// Rows of a tile of `gemm_8`.
const GEMM_8_ROWS: u32 = 8 * MMA_ROWS;

kernel_params! {
    /// One linear of a product.
    pub struct GemmPart {
        /// A repacked matrix.
        pub weights: DevicePtr,
        /// Its `format.ggml_type()`.
        pub format: u32,
        /// First stripe of this part in the grid.
        pub first_stripe: u32,
        /// Where its features begin in a row of a plane.
        pub plane_column: u32,
        /// Zero.
        pub reserved: u32,
    }
}

impl GemmPart {
    /// Stands for parts that are not there.
    pub const NONE: Self =
        Self { weights: DevicePtr::NULL, format: 0, first_stripe: 0, plane_column: 0, reserved: 0 };
}

kernel_params! {
    /// `planes[s, t, column + n] = Σ_{k in split s} W[n, k] x[t, k]`; see `cuda/gemm.cu`.
    pub struct GemmParams {
        /// [`super::StepHeader`].
        pub step: DevicePtr,
        /// f16 `[T][x_stride]`.
        pub x: DevicePtr,
        /// f32 `[splits][T][plane_row]`.
        pub planes: DevicePtr,
        /// Distance of planes, values.
        pub plane_stride: u64,
        /// The linears; the first `n_parts` count.
        pub parts: [GemmPart; PARTS_MAX],
        /// How many linears.
        pub n_parts: u32,
        /// Units of 64 in features.
        pub n_units: u32,
        /// Distance of rows of `x`, a multiple of 64.
        pub x_stride: u32,
        /// Distance of rows of a plane.
        pub plane_row: u32,
        /// 1: as many rows as the step samples; 0: all rows.
        pub sample_rows: u32,
        /// Zero: [`Self::launch_wide`] says here how many stripes there are.
        pub reserved: u32,
    }
}
const _: () = assert!(size_of::<GemmParams>() == 128);

impl GemmParams {
    /// Enqueues the product of `n_stripes` stripes of codes in `n_splits` splits for up to `max_rows` rows.
    ///
    /// # Errors
    /// [`CudaError::Launch`] naming what does not fit, or the sink's.
    pub fn launch(
        &self,
        sink: &dyn LaunchSink,
        n_stripes: u32,
        n_splits: u32,
        max_rows: u32,
    ) -> Result<(), CudaError> {
        let (kernel, tile_rows) = match max_rows {
            ..=MMA_ROWS => ("gemm_1", MMA_ROWS),
            9..=16 => ("gemm_2", 2 * MMA_ROWS),
            17..=32 => ("gemm_4", 4 * MMA_ROWS),
            _ => ("gemm_8", GEMM_8_ROWS),
        };
        self.check(kernel)?;
        want(
            kernel,
            "splits",
            n_splits,
            (1..=self.n_units).contains(&n_splits),
            format_args!("1 to {}", self.n_units),
        )?;
        sink.submit(&Launch::new(
            kernel,
            (n_stripes, n_splits, max_rows.div_ceil(tile_rows)),
            THREADS,
            0,
            self,
        ))
    }

    /// The same for the dense parts, in one split.
    ///
    /// # Errors
    /// [`CudaError::Launch`] naming what does not fit, or the sink's.
    pub fn launch_dense(
        &self,
        sink: &dyn LaunchSink,
        n_stripes: u32,
        max_rows: u32,
    ) -> Result<(), CudaError> {
        let kernel = "gemm_dense";
        self.check(kernel)?;
        sink.submit(&Launch::new(
            kernel,
            (n_stripes, 1, max_rows.div_ceil(MMA_ROWS)),
            THREADS,
            0,
            self,
        ))
    }

    pub(super) fn check(&self, kernel: &str) -> Result<(), CudaError> {
        want(kernel, "parts", self.n_parts, (1..=3).contains(&self.n_parts), "1 to 3")?;
        want(kernel, "units", self.n_units, self.n_units > 0, "at least 1")?;
        want_stride(
            kernel,
            "distance of rows of x",
            self.x_stride,
            64,
            self.n_units.saturating_mul(64),
        )
    }
}
