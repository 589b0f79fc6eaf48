//! What happens to a product when its planes are there.

use crate::cuda::{CudaError, DevicePtr, Launch, LaunchSink, launch::kernel_params};

use super::{GRID_ROWS_MAX, PARTS_MAX, TILED_ROWS_MIN, want, want_stride};

const THREADS: u32 = 256;
/// Rows of a tile in the kernels whose names end in 8.
const TILE_ROWS: u32 = 8;

kernel_params! {
    /// One linear of a product.
    pub struct EpiloguePart {
        /// Where it begins in a row of the planes.
        pub plane_column: u32,
        /// Where it begins in a row of `out`.
        pub out_column: u32,
        /// Output features.
        pub n_out: u32,
        /// `layer * 7 + module`.
        pub site: u32,
    }
}

impl EpiloguePart {
    /// Stands for parts that are not there.
    pub const NONE: Self = Self { plane_column: 0, out_column: 0, n_out: 0, site: 0 };
}

kernel_params! {
    /// `y[t, n] = Σ_s planes[s, t, n] + bias[n] + lora_scale Σ_r b[n, r] Σ_s v_planes[s, t, r]`, written to `out`, added to
    /// it, or gated; see `cuda/epilogue.cu`.
    pub struct EpilogueParams {
        /// [`super::StepHeader`].
        pub step: DevicePtr,
        /// f32 `[n_planes][T][plane_row]`.
        pub planes: DevicePtr,
        /// f32 `[n_v_planes][T][V_STRIDE]` of `lora_shrink`; null: no row has an adapter.
        pub v_planes: DevicePtr,
        /// u32 `[T]`, slot of each row or [`super::NO_SLOT`].
        pub slots: DevicePtr,
        /// [`super::LoraSite`] `[slots][n_sites]`.
        pub sites: DevicePtr,
        /// f32 `[T][out_stride]`; gated: f16, columns from `N` on become zero.
        pub out: DevicePtr,
        /// u32, counts values beyond the range of f16 (gated).
        pub saturations: DevicePtr,
        /// f32 `[N]` of each part, or null.
        pub bias: [DevicePtr; PARTS_MAX],
        /// Distance of planes, values.
        pub plane_stride: u64,
        /// Distance of the planes of `v`, values.
        pub v_plane_stride: u64,
        /// The linears; the first `n_parts` count.
        pub parts: [EpiloguePart; PARTS_MAX],
        /// How many linears.
        pub n_parts: u32,
        /// Split-K planes.
        pub n_planes: u32,
        /// Distance of rows of a plane.
        pub plane_row: u32,
        /// Planes of `v`.
        pub n_v_planes: u32,
        /// Sites of a slot.
        pub n_sites: u32,
        /// Distance of rows of `out`.
        pub out_stride: u32,
        /// 1: add to `out`; 0: overwrite it. Not read when gated.
        pub accumulate: u32,
        /// Zero.
        pub reserved: u32,
    }
}
const _: () = assert!(size_of::<EpilogueParams>() == 176);

impl EpilogueParams {
    /// Writes `y` to `out`, or adds it, for up to `max_rows` rows.
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
        let (kernel, rows) = if tiled { ("epilogue_8", TILE_ROWS) } else { ("epilogue_1", 1) };
        self.check(kernel)?;
        let parts = &self.parts[..self.n_parts as usize];
        for part in parts {
            let end = part.out_column.saturating_add(part.n_out);
            want(
                kernel,
                "end of a part in out",
                end,
                end <= self.out_stride,
                format_args!("at most {}", self.out_stride),
            )?;
        }
        let chunks = parts.iter().map(|part| part.n_out.div_ceil(THREADS)).sum();
        self.submit(sink, kernel, chunks, max_rows.div_ceil(rows))
    }

    /// Writes `f16(silu(y of part 0) · y of part 1)` to `out`, for up to `max_rows` rows.
    ///
    /// # Errors
    /// [`CudaError::Launch`] naming what does not fit, or the sink's.
    pub fn launch_swiglu(&self, sink: &dyn LaunchSink, max_rows: u32) -> Result<(), CudaError> {
        self.launch_swiglu_tiled(sink, max_rows, max_rows >= TILED_ROWS_MIN)
    }

    /// [`Self::launch_swiglu`] with or without tiles of several rows: the same bits.
    pub(crate) fn launch_swiglu_tiled(
        &self,
        sink: &dyn LaunchSink,
        max_rows: u32,
        tiled: bool,
    ) -> Result<(), CudaError> {
        let (kernel, rows) =
            if tiled { ("epilogue_swiglu_8", TILE_ROWS) } else { ("epilogue_swiglu_1", 1) };
        self.check(kernel)?;
        let (gate, up) = (self.parts[0].n_out, self.parts[1].n_out);
        want(kernel, "parts", self.n_parts, self.n_parts == 2, "2: gate and up")?;
        want(kernel, "features of up", up, up == gate, format_args!("{gate} as of gate"))?;
        want_stride(kernel, "distance of rows of out", self.out_stride, 8, gate)?;
        self.submit(sink, kernel, self.out_stride.div_ceil(THREADS), max_rows.div_ceil(rows))
    }

    fn check(&self, kernel: &str) -> Result<(), CudaError> {
        let n_parts = self.n_parts;
        want(kernel, "parts", n_parts, (1..=3).contains(&n_parts), "1 to 3")?;
        want(kernel, "planes", self.n_planes, self.n_planes > 0, "at least 1")?;
        for part in &self.parts[..n_parts as usize] {
            want(kernel, "features of a part", part.n_out, part.n_out > 0, "at least 1")?;
            let end = part.plane_column.saturating_add(part.n_out);
            let fits = end <= self.plane_row;
            want(
                kernel,
                "end of a part in the planes",
                end,
                fits,
                format_args!("at most {}", self.plane_row),
            )?;
            let fits = self.v_planes.is_null() || part.site < self.n_sites;
            want(kernel, "site", part.site, fits, format_args!("below {}", self.n_sites))?;
        }
        Ok(())
    }

    fn submit(
        &self,
        sink: &dyn LaunchSink,
        kernel: &str,
        chunks: u32,
        tiles: u32,
    ) -> Result<(), CudaError> {
        sink.submit(&Launch::new(kernel, (chunks, tiles.min(GRID_ROWS_MAX), 1), THREADS, 0, self))
    }
}
