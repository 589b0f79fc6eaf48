use half::f16;

use crate::{cuda::ops::SwiGluParams, reference};

use super::{
    Bench, CheckError, CheckRow, ROWS_BEYOND, Sizes,
    compare::{Comparison, F16_ROUNDED, is_fill_half},
    header, to_u32,
};

/// Odd widths; one value in each row is beyond the range of f16.
pub(super) fn swiglu(bench: &mut Bench<'_>, sizes: Sizes) -> Result<Vec<CheckRow>, CheckError> {
    let mut shapes = vec![(1, 1), (2, 7), (3, 64), (5, 1536), (2, 1031)];
    if sizes == Sizes::Full {
        shapes.extend([(64, 14_336), (300, 8192)]);
    }
    shapes.into_iter().map(|(n_rows, width)| one(bench, n_rows, width)).collect()
}

fn one(bench: &mut Bench<'_>, n_rows: usize, width: usize) -> Result<CheckRow, CheckError> {
    bench.next_shape();
    let mut compare = Comparison::new("swiglu", format!("{n_rows} rows of {width}"));
    let up_column = width.next_multiple_of(64);
    let (in_stride, out_stride) = (2 * up_column, up_column);
    let mut gate_up = bench.random.values(n_rows * in_stride, 4.0);
    for row in gate_up.chunks_exact_mut(in_stride) {
        (row[width - 1], row[up_column + width - 1]) = (300.0, -300.0);
    }
    let max_rows = n_rows + ROWS_BEYOND;
    let out = bench.output::<f16>(max_rows * out_stride)?;
    let saturations = bench.in_out(&[0_u32])?;
    let params = SwiGluParams {
        step: bench.input(&[header(n_rows, 0)])?,
        gate_up: bench.input(&gate_up)?,
        h: out.ptr,
        saturations: saturations.ptr,
        in_stride: to_u32(in_stride),
        gate_column: 0,
        up_column: to_u32(up_column),
        width: to_u32(width),
        out_stride: to_u32(out_stride),
        reserved: 0,
    };
    params.launch(bench.sink(), to_u32(max_rows))?;

    let (found, whole) = bench.read(&out, f16::ZERO)?;
    compare.guards(whole);
    for (t, found) in found.chunks_exact(out_stride).enumerate() {
        if t >= n_rows {
            compare.untouched("a row beyond the step", found, is_fill_half);
            continue;
        }
        for (i, found_value) in found[..width].iter().enumerate() {
            let (gate, up) = (gate_up[t * in_stride + i], gate_up[t * in_stride + up_column + i]);
            let exact = reference::swiglu::swiglu(f64::from(gate), f64::from(up));
            let expected = exact.clamp(f16::MIN.to_f64(), f16::MAX.to_f64());
            compare.near(
                || format!("row {t}, column {i}"),
                found_value.to_f64(),
                expected,
                expected,
                F16_ROUNDED,
            );
        }
        compare.holds(found[width..].iter().all(|&pad| pad == f16::ZERO), || {
            format!("row {t}: padding is not zero")
        });
    }
    let (found, whole) = bench.read(&saturations, 0_u32)?;
    compare.guards(whole);
    compare
        .holds(found == [to_u32(n_rows)], || format!("counted {found:?} saturations of {n_rows}"));
    Ok(compare.row())
}
