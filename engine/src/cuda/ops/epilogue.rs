//! What happens to a product when its planes are there.

use crate::cuda::{CudaError, DevicePtr, Launch, LaunchSink, launch::kernel_params};

use super::{ADAPTER_TILE_ROWS, GRID_ROWS_MAX, PARTS_MAX, TILED_ROWS_MIN, want, want_stride};

/// Of the kernels that take rows one by one: a column each.
const THREADS: u32 = 256;

const TILE_THREADS: u32 = 128;
/// Rows of a tile.
const TILE_ROWS: u32 = 64;
const _: () = assert!(TILE_ROWS as usize == ADAPTER_TILE_ROWS);
/// Parts begin in the planes at multiples of this; so do the columns of a CTA of the kernels for tiles.
const TILE_COLUMNS: u32 = 64;
/// Most columns of such a CTA: `v` of its rows is read once for all of them.
const TILE_COLUMNS_MAX: u32 = 256;
/// Such CTAs that a launch should have: four for each multiprocessor of a large GPU.
const TILE_CTAS_WANTED: u32 = 528;

kernel_params! {
    /// One linear of a product.
    pub struct EpiloguePart {
        /// Where it begins in a row of the planes, a multiple of 64.
        pub plane_column: u32,
        /// Where it begins in a row of `out`, a multiple of 4.
        pub out_column: u32,
        /// Output features.
        pub n_out: u32,
        /// In the table of sites.
        pub site: u32,
    }
}

impl EpiloguePart {
    /// Stands for parts that are not there.
    pub const NONE: Self = Self { plane_column: 0, out_column: 0, n_out: 0, site: 0 };
}

kernel_params! {
    /// `y[t, n] = gain[n] (Σ_s planes[s, t, n] + lora_scale Σ_r b[n, r] Σ_s v_planes[s, t, r]) + bias[n] + shift[n]`, written
    /// to `out`, added to it, or gated; see `cuda/epilogue.cu` and `cuda/epilogue_tiles.cu`.
    pub struct EpilogueParams {
        /// [`super::StepHeader`].
        pub step: DevicePtr,
        /// f32 `[n_planes][T][plane_row]`.
        pub planes: DevicePtr,
        /// f32 `[n_v_planes][T][V_STRIDE]` of `lora_shrink`; null: no row has an adapter.
        pub v_planes: DevicePtr,
        /// u32 `[T]`, slot of each row or [`super::NO_SLOT`].
        pub slots: DevicePtr,
        /// [`super::AdapterTile`] `[n_adapter_tiles]`, which cover all rows; read if a launch is for some.
        pub tiles: DevicePtr,
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
        /// Distance of rows of a plane, a multiple of 64.
        pub plane_row: u32,
        /// Planes of `v`.
        pub n_v_planes: u32,
        /// Sites of a slot.
        pub n_sites: u32,
        /// Distance of rows of `out`, a multiple of 4, of 8 when gated.
        pub out_stride: u32,
        /// 1: add to `out`; 0: overwrite it. Not read when gated.
        pub accumulate: u32,
        /// Zero: launches for tiles say here how many columns a CTA takes.
        pub reserved: u32,
    }
}
const _: () = assert!(size_of::<EpilogueParams>() == 184);

/// How a launch takes its rows: at most so many rows or tiles.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rows {
    /// One by one.
    Single(u32),
    /// Rows of which none has an adapter, in tiles: the same bits as one by one.
    Plain(u32),
    /// Tiles of one adapter each, or of none.
    AdapterTiles(u32),
}

impl EpilogueParams {
    /// Writes `y` to `out`, or adds it, for up to `max_rows` rows in up to `max_tiles` tiles of adapters. Without such
    /// tiles (0) rows with adapters are taken one by one, as few rows are.
    ///
    /// # Errors
    /// [`CudaError::Launch`] naming what does not fit, or the sink's.
    pub fn launch(
        &self,
        sink: &dyn LaunchSink,
        max_rows: u32,
        max_tiles: u32,
    ) -> Result<(), CudaError> {
        self.launch_as(sink, self.rows(max_rows, max_tiles))
    }

    /// Writes `f16(silu(y of part 0) · y of part 1)` to `out`, for rows and tiles as in [`Self::launch`].
    ///
    /// # Errors
    /// [`CudaError::Launch`] naming what does not fit, or the sink's.
    pub fn launch_swiglu(
        &self,
        sink: &dyn LaunchSink,
        max_rows: u32,
        max_tiles: u32,
    ) -> Result<(), CudaError> {
        self.launch_swiglu_as(sink, self.rows(max_rows, max_tiles))
    }

    /// Writes `y` over the one plane that it is made of, `out`, for up to `max_rows` rows; those without a slot stay as they
    /// are.
    ///
    /// # Errors
    /// [`CudaError::Launch`] naming what does not fit, or the sink's.
    pub fn launch_in_place(&self, sink: &dyn LaunchSink, max_rows: u32) -> Result<(), CudaError> {
        let (kernel, rows) = ("epilogue_in_place_1", Rows::Single(max_rows));
        self.check(kernel, rows)?;
        let stride = self.out_stride;
        let same = self.out == self.planes
            && stride == self.plane_row
            && self.parts.iter().all(|part| part.out_column == part.plane_column);
        want(kernel, "distance of rows of out", stride, same, "the plane itself")?;
        want(kernel, "planes", self.n_planes, self.n_planes == 1, "1")?;
        self.submit(sink, kernel, rows, &self.parts.map(|part| part.n_out)[..self.n_parts as usize])
    }

    fn rows(&self, max_rows: u32, max_tiles: u32) -> Rows {
        match (self.v_planes.is_null(), max_tiles) {
            (true, _) if max_rows >= TILED_ROWS_MIN => Rows::Plain(max_rows),
            (true, _) | (false, 0) => Rows::Single(max_rows),
            (false, _) => Rows::AdapterTiles(max_tiles),
        }
    }

    pub(crate) fn launch_as(&self, sink: &dyn LaunchSink, rows: Rows) -> Result<(), CudaError> {
        let kernel = match rows {
            Rows::Single(_) => "epilogue_1",
            Rows::Plain(_) => "epilogue_tiles",
            Rows::AdapterTiles(_) => "epilogue_adapter_tiles",
        };
        self.check(kernel, rows)?;
        want_stride(kernel, "distance of rows of out", self.out_stride, 4, 4)?;
        let parts = &self.parts[..self.n_parts as usize];
        for part in parts {
            let begin = part.out_column;
            let fits = begin.is_multiple_of(4);
            want(kernel, "begin of a part in out", begin, fits, "a multiple of 4")?;
            let end = begin.saturating_add(part.n_out);
            want(
                kernel,
                "end of a part in out",
                end,
                end <= self.out_stride,
                format_args!("at most {}", self.out_stride),
            )?;
        }
        let widths = self.parts.map(|part| part.n_out);
        self.submit(sink, kernel, rows, &widths[..parts.len()])
    }

    pub(crate) fn launch_swiglu_as(
        &self,
        sink: &dyn LaunchSink,
        rows: Rows,
    ) -> Result<(), CudaError> {
        let kernel = match rows {
            Rows::Single(_) => "epilogue_swiglu_1",
            Rows::Plain(_) => "epilogue_swiglu_tiles",
            Rows::AdapterTiles(_) => "epilogue_swiglu_adapter_tiles",
        };
        self.check(kernel, rows)?;
        let (gate, up) = (self.parts[0].n_out, self.parts[1].n_out);
        want(kernel, "parts", self.n_parts, self.n_parts == 2, "2: gate and up")?;
        want(kernel, "features of up", up, up == gate, format_args!("{gate} as of gate"))?;
        want_stride(kernel, "distance of rows of out", self.out_stride, 8, gate)?;
        self.submit(sink, kernel, rows, &[self.out_stride])
    }

    fn check(&self, kernel: &str, rows: Rows) -> Result<(), CudaError> {
        let n_parts = self.n_parts;
        want(kernel, "parts", n_parts, (1..=3).contains(&n_parts), "1 to 3")?;
        want(kernel, "planes", self.n_planes, self.n_planes > 0, "at least 1")?;
        want_stride(kernel, "distance of rows of the planes", self.plane_row, TILE_COLUMNS, 1)?;
        for stride in [self.plane_stride, self.v_plane_stride] {
            let (given, fits) =
                (u32::try_from(stride).unwrap_or(u32::MAX), stride.is_multiple_of(4));
            want(kernel, "distance of planes", given, fits, "a multiple of 4")?;
        }
        match rows {
            Rows::Single(_) => {}
            Rows::Plain(rows) => {
                want(kernel, "rows", rows, self.v_planes.is_null(), "no rows with adapters")?;
            }
            Rows::AdapterTiles(tiles) => {
                let given = !self.tiles.is_null() && !self.v_planes.is_null();
                want(kernel, "tiles", tiles, given, "a list of tiles, and planes of v")?;
            }
        }
        for part in &self.parts[..n_parts as usize] {
            want(kernel, "features of a part", part.n_out, part.n_out > 0, "at least 1")?;
            let begin = part.plane_column;
            let fits = begin.is_multiple_of(TILE_COLUMNS);
            want(kernel, "begin of a part in the planes", begin, fits, "a multiple of 64")?;
            let end = begin.saturating_add(part.n_out);
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

    /// Over all columns of `widths`, none of which shares a CTA with the next.
    fn submit(
        &self,
        sink: &dyn LaunchSink,
        kernel: &str,
        rows: Rows,
        widths: &[u32],
    ) -> Result<(), CudaError> {
        let strips = |columns: u32| widths.iter().map(|width| width.div_ceil(columns)).sum::<u32>();
        let tiles = match rows {
            Rows::Single(rows) => {
                let grid = (strips(THREADS), rows.min(GRID_ROWS_MAX), 1);
                return sink.submit(&Launch::new(kernel, grid, THREADS, 0, self));
            }
            Rows::Plain(rows) => rows.div_ceil(TILE_ROWS),
            Rows::AdapterTiles(tiles) => tiles,
        };
        let units = strips(TILE_COLUMNS).saturating_mul(tiles);
        let units_of_cta = (units / TILE_CTAS_WANTED).clamp(1, TILE_COLUMNS_MAX / TILE_COLUMNS);
        let columns = units_of_cta * TILE_COLUMNS;
        let params = Self { reserved: columns, ..*self };
        let grid = (strips(columns), tiles.min(GRID_ROWS_MAX), 1);
        sink.submit(&Launch::new(kernel, grid, TILE_THREADS, 0, &params))
    }
}
