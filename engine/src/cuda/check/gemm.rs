use half::f16;

use crate::{
    backend::MatrixSource,
    cuda::{
        ops::{GemmParams, GemmPart, PARTS_MAX, XTilesParams},
        repack::repack,
    },
    quant::{BlockFormat, dequantize_row},
};

use super::{
    Bench, CheckError, CheckRow, ROWS_BEYOND, Sizes,
    compare::{Comparison, Tolerance, is_fill_float},
    header, to_u32, widen_halves,
};

/// Weights are rounded to f16 (scale, minimum and value: 3 · 2^-11 of the largest magnitude of a group), sums are f32.
const F16_WEIGHTS: Tolerance = Tolerance { abs: 1e-5, rel: 1e-3 };

/// Which kernels.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kernels {
    /// `gemm_1` to `gemm_8`, in so many splits.
    Split(usize),
    /// `gemm_wide`.
    Wide,
}

/// Parts (format and features), input features, rows.
type Shape = (Vec<(BlockFormat, usize)>, usize, usize);

/// One to three parts of every block format, odd row counts, tails of rows and features, several splits.
pub(super) fn gemm(bench: &mut Bench<'_>, sizes: Sizes) -> Result<Vec<CheckRow>, CheckError> {
    use BlockFormat as F;

    let mut shapes: Vec<(Shape, usize)> = Vec::new();
    for (index, format) in BlockFormat::ALL.into_iter().enumerate() {
        let n_in = if format.block_values() == 256 { 512 } else { 576 };
        let splits = if format.is_float() { 1 } else { 1 + index % 3 };
        shapes.push(((vec![(format, 133)], n_in, [1, 7, 9, 17, 33, 8, 16][index % 7]), splits));
    }
    shapes.push(((vec![(F::Q4_0, 100), (F::Q8_0, 64), (F::Q4_1, 1)], 96, 5), 2));
    shapes.push(((vec![(F::Q4K, 70), (F::Q6K, 65)], 256, 3), 4));
    shapes.push(((vec![(F::Q5_0, 70), (F::F16, 65)], 64, 11), 1));
    if sizes == Sizes::Full {
        shapes.push(((vec![(F::Q4_1, 576), (F::Q4_1, 192), (F::Q4_1, 192)], 576, 1), 8));
        shapes.push(((vec![(F::Q4_0, 4096)], 4096, 64), 4));
        shapes.push(((vec![(F::Q4K, 1024), (F::Q6K, 1024)], 4096, 300), 2));
        shapes.push(((vec![(F::Q8_0, 5000)], 576, 64), 1));
    }
    shapes.into_iter().map(|(shape, splits)| one(bench, &shape, Kernels::Split(splits))).collect()
}

/// The same for the kernel of many rows, where the device has it: tails of its tiles of rows and of stripes, one to nine
/// units, parts of different formats in one CTA.
pub(super) fn gemm_wide(bench: &mut Bench<'_>, sizes: Sizes) -> Result<Vec<CheckRow>, CheckError> {
    use BlockFormat as F;

    if !bench.has_wide() {
        return Ok(Vec::new());
    }
    let mut shapes: Vec<Shape> = Vec::new();
    let quantized = BlockFormat::ALL.into_iter().filter(|format| !format.is_float());
    for (index, format) in quantized.enumerate() {
        let n_in = match format.block_values() {
            256 => [256, 512][index % 2],
            _ => [64, 128, 192, 320, 576][index % 5],
        };
        shapes.push((vec![(format, 133)], n_in, [65, 127, 128, 129, 200][index % 5]));
    }
    shapes.push((vec![(F::Q4_0, 128), (F::Q8_0, 60), (F::Q4_1, 1)], 96, 300));
    shapes.push((vec![(F::Q4K, 70), (F::Q6K, 65)], 256, 3));
    shapes.push((vec![(F::Q5_0, 70), (F::F16, 65)], 64, 70));
    if sizes == Sizes::Full {
        shapes.push((vec![(F::Q4_0, 4096)], 4096, 512));
        shapes.push((vec![(F::Q4K, 1024), (F::Q4K, 256), (F::Q6K, 256)], 4096, 2100));
        shapes.push((vec![(F::Q4_1, 576), (F::Q4_1, 192), (F::Q4_1, 192)], 576, 300));
    }
    shapes.into_iter().map(|shape| one(bench, &shape, Kernels::Wide)).collect()
}

/// Random blocks with scales of a sane size.
pub(super) fn random_rows(
    bench: &mut Bench<'_>,
    format: BlockFormat,
    n_out: usize,
    n_in: usize,
) -> Vec<u8> {
    let halves: &[usize] = match format {
        BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => &[0],
        BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q4K | BlockFormat::Q5K => &[0, 2],
        BlockFormat::Q2K => &[80, 82],
        BlockFormat::Q3K => &[108],
        BlockFormat::Q6K => &[208],
        BlockFormat::F32 => {
            return bench
                .random
                .values(n_out * n_in, 0.1)
                .into_iter()
                .flat_map(f32::to_le_bytes)
                .collect();
        }
        BlockFormat::F16 => {
            return bench
                .random
                .halves(n_out * n_in, 0.1)
                .into_iter()
                .flat_map(f16::to_le_bytes)
                .collect();
        }
        BlockFormat::Bf16 => {
            let values = bench.random.values(n_out * n_in, 0.1).into_iter();
            return values.flat_map(|v| half::bf16::from_f32(v).to_le_bytes()).collect();
        }
    };
    let row_bytes = format.row_bytes(n_in).expect("whole blocks");
    let mut bytes: Vec<u8> =
        (0..n_out * row_bytes).map(|_| bench.random.bits().to_le_bytes()[3]).collect();
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        for &at in halves {
            let scale = f16::from_f32(bench.random.value() * 0.01);
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    bytes
}

fn one(
    bench: &mut Bench<'_>,
    (formats, n_in, n_rows): &Shape,
    kernels: Kernels,
) -> Result<CheckRow, CheckError> {
    bench.next_shape();
    let (n_in, n_rows) = (*n_in, *n_rows);
    let (name, n_splits) = match kernels {
        Kernels::Split(n) => ("gemm", n),
        Kernels::Wide => ("gemm_wide", 1),
    };
    let names: Vec<String> =
        formats.iter().map(|(format, n)| format!("{n} {}", format.name())).collect();
    let shape = format!("{n_rows} rows of {n_in} by {}, {n_splits} splits", names.join(" + "));
    let mut compare = Comparison::new(name, shape);
    let x_stride = n_in.next_multiple_of(64);
    let max_rows = n_rows + ROWS_BEYOND;
    let mut x = bench.random.halves(max_rows * x_stride, 1.0);
    for row in x.chunks_exact_mut(x_stride) {
        row[n_in..].fill(f16::ZERO);
    }
    let mut parts = [GemmPart::NONE; PARTS_MAX];
    let mut weights = Vec::new();
    let mut n_stripes = 0;
    for (part, &(format, n_out)) in parts.iter_mut().zip(formats) {
        let bytes = random_rows(bench, format, n_out, n_in);
        let row_bytes = bytes.len() / n_out;
        let row = |n: usize| &bytes[n * row_bytes..][..row_bytes];
        let matrix = repack(&MatrixSource { name: "check", format, n_out, n_in, row: &row })
            .expect("whole blocks");
        *part = GemmPart {
            weights: bench.input(&matrix.bytes)?,
            format: format.ggml_type(),
            first_stripe: to_u32(n_stripes),
            plane_column: to_u32(n_stripes * 64),
            reserved: 0,
        };
        let mut values = vec![0f32; n_out * n_in];
        for (n, out) in values.chunks_exact_mut(n_in).enumerate() {
            dequantize_row(format, row(n), out);
        }
        weights.push((n_stripes * 64, values));
        n_stripes += matrix.n_out_padded / 64;
    }
    let plane_row = n_stripes * 64;
    let planes = bench.output::<f32>(n_splits * max_rows * plane_row)?;
    let params = GemmParams {
        step: bench.input(&[header(n_rows, 0)])?,
        x: bench.input(&x)?,
        planes: planes.ptr,
        plane_stride: (max_rows * plane_row) as u64,
        parts,
        n_parts: to_u32(formats.len()),
        n_units: to_u32(x_stride / 64),
        x_stride: to_u32(x_stride),
        plane_row: to_u32(plane_row),
        sample_rows: 0,
        reserved: 0,
    };
    if formats.iter().any(|(format, _)| !format.is_float()) {
        let (n_stripes, max_rows) = (to_u32(n_stripes), to_u32(max_rows));
        match kernels {
            Kernels::Split(n) => params.launch(bench.sink(), n_stripes, to_u32(n), max_rows)?,
            Kernels::Wide => {
                compare.guards(launch_wide(bench, &params, n_stripes, max_rows)?);
            }
        }
    }
    if formats.iter().any(|(format, _)| format.is_float()) {
        params.launch_dense(bench.sink(), to_u32(n_stripes), to_u32(max_rows))?;
    }

    let (found, whole) = bench.read(&planes, 0f32)?;
    compare.guards(whole);
    for plane in found.chunks_exact(max_rows * plane_row) {
        compare.untouched("rows beyond the step", &plane[n_rows * plane_row..], is_fill_float);
    }
    for t in 0..n_rows {
        let x = widen_halves(&x[t * x_stride..][..n_in]);
        for (column, values) in &weights {
            for (n, w) in values.chunks_exact(n_in).enumerate() {
                let (mut expected, mut magnitude) = (0f64, 0f64);
                let largest = w.iter().fold(0f32, |m, v| m.max(v.abs()));
                for (&w, x) in w.iter().zip(&x) {
                    expected += f64::from(w) * x;
                    magnitude += f64::from(largest) * x.abs();
                }
                let at = t * plane_row + column + n;
                let sum: f64 =
                    (0..n_splits).map(|s| f64::from(found[s * max_rows * plane_row + at])).sum();
                compare.near(
                    || format!("row {t}, column {}", column + n),
                    sum,
                    expected,
                    magnitude,
                    F16_WEIGHTS,
                );
            }
        }
    }
    Ok(compare.row())
}

/// Puts x into tiles and multiplies; whether the guards around the tiles are whole.
fn launch_wide(
    bench: &Bench<'_>,
    params: &GemmParams,
    n_stripes: u32,
    max_rows: u32,
) -> Result<bool, CheckError> {
    let bytes = XTilesParams::bytes(max_rows as usize, params.n_units as usize);
    let tiles = bench.output::<u8>(bytes)?;
    XTilesParams {
        step: params.step,
        x: params.x,
        tiles: tiles.ptr,
        n_units: params.n_units,
        x_stride: params.x_stride,
        sample_rows: params.sample_rows,
        reserved: 0,
    }
    .launch(bench.sink(), max_rows)?;
    GemmParams { x: tiles.ptr, ..*params }.launch_wide(bench.sink(), n_stripes, max_rows)?;
    Ok(bench.read(&tiles, 0u8)?.1)
}
