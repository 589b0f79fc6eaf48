use half::f16;

use crate::{
    cuda::{DevicePtr, ops::RmsNormParams},
    reference,
};

use super::{
    Bench, CheckError, CheckRow, ROWS_BEYOND, Sizes,
    compare::{Comparison, F16_ROUNDED, is_fill_half},
    header, to_u32, widen,
};

const EPS: f32 = 1e-5;

/// Odd widths, rows of a step and gathered rows; a row of large values saturates.
pub(super) fn rms_norm(bench: &mut Bench<'_>, sizes: Sizes) -> Result<Vec<CheckRow>, CheckError> {
    let mut shapes = vec![
        (1, 1, None),
        (3, 3, None),
        (7, 64, Some(2)),
        (2, 133, None),
        (5, 576, Some(3)),
        (3, 1027, None),
    ];
    if sizes == Sizes::Full {
        shapes.extend([
            (1, 4096, None),
            (64, 4096, None),
            (300, 2048, Some(17)),
            (8, 16_384, None),
        ]);
    }
    shapes
        .into_iter()
        .map(|(n_rows, width, gathered)| one(bench, n_rows, width, gathered))
        .collect()
}

fn one(
    bench: &mut Bench<'_>,
    n_rows: usize,
    width: usize,
    gathered: Option<usize>,
) -> Result<CheckRow, CheckError> {
    bench.next_shape();
    let shape = format!("{n_rows} rows of {width}, gathered {gathered:?}");
    let mut compare = Comparison::new("rms_norm", shape);
    let (x_stride, out_stride) = (width.next_multiple_of(4) + 4, width.next_multiple_of(64));
    let x = bench.random.values(n_rows * x_stride, 3.0);
    let weight = bench.random.values(width, 1.0);
    let rows: Vec<u32> =
        bench.random.permutation(n_rows).into_iter().take(gathered.unwrap_or(n_rows)).collect();
    let max_rows = n_rows + ROWS_BEYOND;
    let out = bench.output::<f16>(max_rows * out_stride)?;
    let saturations = bench.in_out(&[0_u32])?;
    let params = RmsNormParams {
        step: bench.input(&[header(n_rows, rows.len())])?,
        x: bench.input(&x)?,
        rows: if gathered.is_some() { bench.input(&rows)? } else { DevicePtr::NULL },
        weight: bench.input(&weight)?,
        out: out.ptr,
        saturations: saturations.ptr,
        x_stride: to_u32(x_stride),
        out_stride: to_u32(out_stride),
        width: to_u32(width),
        eps: EPS,
    };
    params.launch(bench.sink(), to_u32(max_rows))?;

    let (found, whole) = bench.read(&out, f16::ZERO)?;
    compare.guards(whole);
    for (t, found) in found.chunks_exact(out_stride).enumerate() {
        if t >= rows.len() {
            compare.untouched("a row beyond the step", found, is_fill_half);
            continue;
        }
        let row = if gathered.is_some() { rows[t] as usize } else { t };
        let expected = reference::norm::rms_norm(
            &widen(&x[row * x_stride..][..width]),
            &widen(&weight),
            f64::from(EPS),
        );
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            compare.near(
                || format!("row {t}, column {i}"),
                found.to_f64(),
                *expected,
                *expected,
                F16_ROUNDED,
            );
        }
        compare.holds(found[width..].iter().all(|&pad| pad == f16::ZERO), || {
            format!("row {t}: padding is not zero")
        });
    }
    let (found, whole) = bench.read(&saturations, 0_u32)?;
    compare.guards(whole);
    compare.holds(found == [0], || format!("counted {found:?} saturations"));
    Ok(compare.row())
}
