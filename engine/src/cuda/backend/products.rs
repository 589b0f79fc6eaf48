//! Products with weights, and what adapters add to them.

use crate::{
    backend::{OUTPUT_ALIGN, Output, Projection},
    cuda::{
        CudaError, DevicePtr,
        ops::{
            EpilogueParams, EpiloguePart, GemmParams, GemmPart, LoraShrinkParams, PARTS_MAX,
            V_STRIDE, XTilesParams, tile_split_columns,
        },
    },
    site::{Site, TargetModule},
    spec::ModelSpec,
};

use super::{
    CudaBackend, CudaBuffer, CudaMatrix, CudaVector, ROW_ALIGN, StepMode, site_index,
    step_graphs::AdapterKernels, word,
};

/// CTAs that a product should have: two for each multiprocessor of a large GPU.
const CTAS_WANTED: usize = 264;
/// Most splits of K.
const SPLITS_MAX: usize = 8;
/// The wide product is the faster one from so many rows on, and for fewer rows if it has CTAs enough, 48 of 2 stripes and
/// 128 rows; measured on an H100, where the others do better at few CTAs because they split K.
const WIDE_ROWS: usize = 256;
const WIDE_ROWS_MIN: usize = 64;
const WIDE_AREA_MIN: usize = 48 * 2 * 128;
/// Columns of a split of the adapters' first half.
pub(super) const SHRINK_COLUMNS: usize = 1024;

impl CudaBackend {
    /// The product of parts that share an input into the planes; returns `(n_planes, plane_row)`.
    pub(super) fn multiply(
        &self,
        parts: &[&CudaMatrix],
        x: DevicePtr,
        x_stride: usize,
        rows: u32,
        sampled: bool,
    ) -> Result<(usize, usize), CudaError> {
        let n_stripes: usize = parts.iter().map(|part| part.n_stripes()).sum();
        let any_dense = parts.iter().any(|part| part.is_dense());
        let n_units = parts[0].n_in_padded / ROW_ALIGN;
        let is_wide = self.has_wide && is_wide(n_stripes, rows as usize);
        // Fixed for a matrix, so that a row's bits do not depend on how many rows there are (below the wide kernel).
        let n_splits = if any_dense || sampled || is_wide { 1 } else { splits(n_stripes, n_units) };
        let plane_row = n_stripes * ROW_ALIGN;
        let mut listed = [GemmPart::NONE; PARTS_MAX];
        let mut first = 0;
        for (slot, part) in listed.iter_mut().zip(parts) {
            *slot = GemmPart {
                weights: part.ptr,
                format: part.format.ggml_type(),
                first_stripe: word(first),
                plane_column: word(first * ROW_ALIGN),
                reserved: 0,
            };
            first += part.n_stripes();
        }
        let params = GemmParams {
            step: self.inputs().header,
            x,
            planes: self.planes,
            plane_stride: (rows as usize * plane_row) as u64,
            parts: listed,
            n_parts: word(parts.len()),
            n_units: word(n_units),
            x_stride: word(x_stride),
            plane_row: word(plane_row),
            sample_rows: u32::from(sampled),
            reserved: 0,
        };
        debug_assert!(n_splits * rows as usize * plane_row * 4 <= self.planes_bytes);
        if parts.iter().all(|part| part.is_dense()) {
            // Only the kernel below.
        } else if is_wide {
            self.launch_wide(&params, word(n_stripes), rows)?;
        } else {
            params.launch(&self.device, word(n_stripes), word(n_splits), rows)?;
        }
        if any_dense {
            params.launch_dense(&self.device, word(n_stripes), rows)?;
        }
        Ok((n_splits, plane_row))
    }

    fn launch_wide(&self, params: &GemmParams, n_stripes: u32, rows: u32) -> Result<(), CudaError> {
        XTilesParams {
            step: params.step,
            x: params.x,
            tiles: self.x_tiles,
            n_units: params.n_units,
            x_stride: params.x_stride,
            sample_rows: params.sample_rows,
            reserved: 0,
        }
        .launch(&self.device, rows)?;
        GemmParams { x: self.x_tiles, ..*params }.launch_wide(&self.device, n_stripes, rows)
    }

    /// First half of the adapters of a projection; returns how many planes of `v` there are.
    fn shrink(
        &self,
        layer: usize,
        modules: &[TargetModule],
        x: &CudaBuffer,
        n_in: usize,
    ) -> Result<usize, CudaError> {
        let mut site = [0; PARTS_MAX];
        for (slot, &module) in site.iter_mut().zip(modules) {
            *slot = word(site_index(&self.spec, Site { layer, module }));
        }
        let (n_tiles, width) = (self.adapter_tiles(), word(n_in.next_multiple_of(8)));
        let split_columns = if n_tiles > 0 {
            let planes = shrink_splits(&self.spec) * self.max_rows / self.launch_rows() as usize;
            tile_split_columns(width, n_tiles, word(planes))
        } else {
            word(SHRINK_COLUMNS)
        };
        let params = LoraShrinkParams {
            step: self.inputs().header,
            x: x.half,
            slots: self.inputs().slots,
            tiles: self.inputs().adapter_tiles,
            sites: self.residents.sites,
            v: self.v,
            v_plane_stride: self.v_plane_stride(),
            x_stride: word(x.stride),
            a_stride: width,
            n_in: width,
            split_columns,
            n_sites: word(self.n_sites()),
            n_parts: word(modules.len()),
            site,
            reserved: 0,
        };
        if n_tiles > 0 {
            params.launch_tiles(&self.device, n_tiles)?;
        } else {
            params.launch(&self.device, self.launch_rows())?;
        }
        Ok(params.n_splits() as usize)
    }

    /// Tiles of one adapter each that launches are for; 0: rows are taken one by one, as in all graphs.
    fn adapter_tiles(&self) -> u32 {
        match self.mode {
            StepMode::Launch => self.launch_inputs.n_adapter_tiles(),
            StepMode::Capture(_) | StepMode::Replay(_) => 0,
        }
    }

    /// Distance of the planes of `v`, values.
    fn v_plane_stride(&self) -> u64 {
        u64::from(self.launch_rows()) * V_STRIDE as u64
    }

    pub(super) fn try_project(
        &self,
        projection: &Projection<CudaMatrix, CudaVector>,
        x: &CudaBuffer,
        out: &CudaBuffer,
        output: Output,
    ) -> Result<(), CudaError> {
        let params = EpilogueParams {
            out: out.wide,
            out_stride: word(out.stride),
            accumulate: u32::from(output == Output::Add),
            ..self.products(projection, x)?
        };
        params.launch(&self.device, self.launch_rows(), self.adapter_tiles())
    }

    pub(super) fn try_project_swiglu(
        &self,
        projection: &Projection<CudaMatrix, CudaVector>,
        x: &CudaBuffer,
        out: &CudaBuffer,
    ) -> Result<(), CudaError> {
        let params = EpilogueParams {
            out: out.half,
            out_stride: word(out.stride),
            ..self.products(projection, x)?
        };
        params.launch_swiglu(&self.device, self.launch_rows(), self.adapter_tiles())
    }

    /// Enqueues a projection's products; returns what finishes them, all but where to.
    fn products(
        &self,
        projection: &Projection<CudaMatrix, CudaVector>,
        x: &CudaBuffer,
    ) -> Result<EpilogueParams, CudaError> {
        let rows = self.launch_rows();
        let matrices: Vec<&CudaMatrix> = projection.parts.iter().map(|part| &part.matrix).collect();
        let modules: Vec<TargetModule> = projection.parts.iter().map(|part| part.module).collect();
        let (_, n_in) = self.spec.linear_shape(modules[0]);
        let n_v_planes = match self.adapters {
            AdapterKernels::None => 0,
            AdapterKernels::Linears | AdapterKernels::WithEnds => {
                self.shrink(projection.layer, &modules, x, n_in)?
            }
        };
        let (n_planes, plane_row) = self.multiply(&matrices, x.half, x.stride, rows, false)?;
        let mut parts = [EpiloguePart::NONE; PARTS_MAX];
        let mut bias = [DevicePtr::NULL; PARTS_MAX];
        let (mut plane_column, mut out_column) = (0, 0);
        for (index, part) in projection.parts.iter().enumerate() {
            parts[index] = EpiloguePart {
                plane_column: word(plane_column),
                out_column: word(out_column),
                n_out: word(part.matrix.n_out),
                site: word(site_index(
                    &self.spec,
                    Site { layer: projection.layer, module: part.module },
                )),
            };
            bias[index] = part.bias.map_or(DevicePtr::NULL, |bias| bias.0);
            plane_column += part.matrix.n_out_padded;
            out_column += part.matrix.n_out.next_multiple_of(OUTPUT_ALIGN);
        }
        Ok(EpilogueParams {
            step: self.inputs().header,
            planes: self.planes,
            v_planes: if n_v_planes > 0 { self.v } else { DevicePtr::NULL },
            slots: self.inputs().slots,
            tiles: self.inputs().adapter_tiles,
            sites: self.residents.sites,
            out: DevicePtr::NULL,
            saturations: self.saturations,
            bias,
            plane_stride: (rows as usize * plane_row) as u64,
            v_plane_stride: self.v_plane_stride(),
            parts,
            n_parts: word(projection.parts.len()),
            n_planes: word(n_planes),
            plane_row: word(plane_row),
            n_v_planes: word(n_v_planes),
            n_sites: word(self.n_sites()),
            out_stride: 0,
            accumulate: 0,
            reserved: 0,
        })
    }
}

/// Whether the wide product is the faster one.
fn is_wide(n_stripes: usize, rows: usize) -> bool {
    rows >= WIDE_ROWS || (rows >= WIDE_ROWS_MIN && n_stripes * rows >= WIDE_AREA_MIN)
}

/// Splits of K so that a product has CTAs enough.
fn splits(n_stripes: usize, n_units: usize) -> usize {
    (CTAS_WANTED / n_stripes).clamp(1, SPLITS_MAX).min(n_units)
}

/// Bytes of the widest input of `max_rows` rows in tiles.
pub(super) fn x_tiles_bytes(spec: &ModelSpec, max_rows: usize) -> usize {
    let widest = spec.hidden.max(spec.ffn).max(spec.n_heads * spec.head_dim);
    XTilesParams::bytes(max_rows, widest.div_ceil(ROW_ALIGN))
}

/// Splits of the widest input of an adapter.
pub(super) fn shrink_splits(spec: &ModelSpec) -> usize {
    spec.hidden.max(spec.ffn).max(spec.n_heads * spec.head_dim).div_ceil(SHRINK_COLUMNS)
}

/// Bytes of planes of the widest product of `max_rows` rows, and of the logits of `sample_rows`.
pub(super) fn planes_bytes(spec: &ModelSpec, max_rows: usize, sample_rows: usize) -> usize {
    use TargetModule as M;
    let row = |modules: &[M]| {
        let features =
            modules.iter().map(|&module| spec.linear_shape(module).0.next_multiple_of(ROW_ALIGN));
        let (n_row, n_in) = (features.sum::<usize>(), spec.linear_shape(modules[0]).1);
        n_row * splits(n_row / ROW_ALIGN, n_in.div_ceil(ROW_ALIGN))
    };
    let layers = [
        row(&[M::QProj, M::KProj, M::VProj]),
        row(&[M::OProj]),
        row(&[M::GateProj, M::UpProj]),
        row(&[M::DownProj]),
    ];
    let widest = layers.into_iter().max().unwrap_or(0);
    (widest * max_rows).max(spec.vocab.next_multiple_of(ROW_ALIGN) * sample_rows) * 4
}
