//! Products of many rows on compute capability 9.0: rows are put into tiles once, then multiplied.

use crate::cuda::{CudaError, DevicePtr, Launch, LaunchSink, launch::kernel_params};

use super::{GRID_ROWS_MAX, GemmParams, want, want_stride};

/// Rows of a tile.
const TILE_ROWS: u32 = 128;
/// Bytes of a unit of a tile: 64 values of each row.
const UNIT_BYTES: u32 = TILE_ROWS * 128;
/// Threads of `x_tiles`.
const TILES_THREADS: u32 = 256;
/// Threads that share a stripe.
const WARPGROUP: u32 = 128;
/// Stripes of a CTA.
const STRIPES: u32 = 2;
/// Tiles of rows whose CTAs follow one another, so that they find the same weights in L2.
const TILES_TOGETHER: u32 = 16;
/// Stages of `x`, their barriers, and what it takes to begin at a multiple of 1024.
const SHARED_BYTES: u32 = 6 * (UNIT_BYTES + 8) + 1024;

kernel_params! {
    /// Rows in the order of [`GemmParams::launch_wide`]; see `cuda/gemm_wide.cu`.
    pub struct XTilesParams {
        /// [`super::StepHeader`].
        pub step: DevicePtr,
        /// f16 `[T][x_stride]`.
        pub x: DevicePtr,
        /// [`XTilesParams::bytes`] bytes, at a multiple of 16.
        pub tiles: DevicePtr,
        /// Units of 64 in features.
        pub n_units: u32,
        /// Distance of rows of `x`, a multiple of 64.
        pub x_stride: u32,
        /// 1: as many rows as the step samples; 0: all rows.
        pub sample_rows: u32,
        /// Zero.
        pub reserved: u32,
    }
}
const _: () = assert!(size_of::<XTilesParams>() == 40);

impl XTilesParams {
    /// Bytes of the tiles of so many rows and units.
    pub fn bytes(max_rows: usize, n_units: usize) -> usize {
        max_rows.div_ceil(TILE_ROWS as usize) * n_units * UNIT_BYTES as usize
    }

    /// Enqueues the kernel for up to `max_rows` rows. It needs no particular device.
    ///
    /// # Errors
    /// [`CudaError::Launch`] naming what does not fit, or the sink's.
    pub fn launch(&self, sink: &dyn LaunchSink, max_rows: u32) -> Result<(), CudaError> {
        let kernel = "x_tiles";
        want(kernel, "units", self.n_units, self.n_units > 0, "at least 1")?;
        let width = self.n_units.saturating_mul(64);
        want_stride(kernel, "distance of rows of x", self.x_stride, 64, width)?;
        let grid = (self.n_units, tiles(kernel, max_rows)?, 1);
        sink.submit(&Launch::new(kernel, grid, TILES_THREADS, 0, self))
    }
}

impl GemmParams {
    /// As [`Self::launch`], in one split, for many rows, on compute capability 9.0: elsewhere the kernel traps. `x` is
    /// what [`XTilesParams`] made of the rows, `x_stride` theirs.
    ///
    /// # Errors
    /// [`CudaError::Launch`] naming what does not fit, or the sink's.
    pub fn launch_wide(
        &self,
        sink: &dyn LaunchSink,
        n_stripes: u32,
        max_rows: u32,
    ) -> Result<(), CudaError> {
        let kernel = "gemm_wide";
        self.check(kernel)?;
        let tiles = tiles(kernel, max_rows)?;
        let together = tiles.min(TILES_TOGETHER);
        let params = Self { reserved: n_stripes, ..*self };
        sink.submit(&Launch::new(
            kernel,
            (together, n_stripes.div_ceil(STRIPES), tiles.div_ceil(TILES_TOGETHER)),
            STRIPES * WARPGROUP,
            SHARED_BYTES,
            &params,
        ))
    }
}

/// Tiles of so many rows.
fn tiles(kernel: &str, max_rows: u32) -> Result<u32, CudaError> {
    let most = GRID_ROWS_MAX * TILE_ROWS;
    want(kernel, "rows", max_rows, (1..=most).contains(&max_rows), format_args!("1 to {most}"))?;
    Ok(max_rows.div_ceil(TILE_ROWS))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::cuda::ops::{GemmPart, PARTS_MAX};

    /// Name and grid.
    type Recorded = (String, (u32, u32, u32));

    /// Keeps name and grid of what is launched.
    #[derive(Default)]
    struct Recorder(RefCell<Vec<Recorded>>);

    impl LaunchSink for Recorder {
        fn submit(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
            launch.check()?;
            self.0.borrow_mut().push((launch.kernel.to_owned(), launch.grid));
            Ok(())
        }
    }

    fn product(n_units: u32) -> GemmParams {
        GemmParams {
            step: DevicePtr::NULL,
            x: DevicePtr::NULL,
            planes: DevicePtr::NULL,
            plane_stride: 0,
            parts: [GemmPart::NONE; PARTS_MAX],
            n_parts: 1,
            n_units,
            x_stride: 64 * n_units,
            plane_row: 64,
            sample_rows: 0,
            reserved: 0,
        }
    }

    fn tiles_of(n_units: u32, x_stride: u32) -> XTilesParams {
        XTilesParams {
            step: DevicePtr::NULL,
            x: DevicePtr::NULL,
            tiles: DevicePtr::NULL,
            n_units,
            x_stride,
            sample_rows: 0,
            reserved: 0,
        }
    }

    #[test]
    fn grids_cover_all_tiles_and_stripes() {
        for (max_rows, n_stripes, grid) in [
            (1, 1, (1, 1, 1)),
            (129, 3, (2, 2, 1)),
            (2048, 448, (16, 224, 1)),
            (2049, 448, (16, 224, 2)),
        ] {
            let sink = Recorder::default();
            product(9).launch_wide(&sink, n_stripes, max_rows).unwrap();
            assert_eq!(*sink.0.borrow(), [("gemm_wide".to_owned(), grid)]);
        }
        let sink = Recorder::default();
        tiles_of(9, 576).launch(&sink, 129).unwrap();
        assert_eq!(*sink.0.borrow(), [("x_tiles".to_owned(), (9, 2, 1))]);
        assert_eq!(XTilesParams::bytes(129, 9), 2 * 9 * 128 * 64 * 2);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let sink = Recorder::default();
        for (result, what) in [
            (tiles_of(0, 64).launch(&sink, 1), "units"),
            (tiles_of(2, 64).launch(&sink, 1), "distance of rows of x"),
            (tiles_of(1, 64).launch(&sink, 0), "rows"),
            (product(0).launch_wide(&sink, 1, 1), "units"),
            (product(1).launch_wide(&sink, 1, 0), "rows"),
            (product(1).launch_wide(&sink, 0, 1), "blocks along y"),
        ] {
            let message = result.unwrap_err().to_string();
            assert!(message.contains(what), "{message}");
        }
        assert!(sink.0.borrow().is_empty());
    }
}
