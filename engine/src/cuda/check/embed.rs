use crate::{
    backend::MatrixSource,
    cuda::{ops::EmbedParams, repack::repack},
    quant::{BlockFormat, dequantize_row},
};

use super::{
    Bench, CheckError, CheckRow, ROWS_BEYOND, Sizes,
    compare::{Comparison, is_fill_float},
    header, to_u32,
};

/// Every block format, rows in tiles that are not full, an id outside the table; bit-equal.
pub(super) fn embed(bench: &mut Bench<'_>, sizes: Sizes) -> Result<Vec<CheckRow>, CheckError> {
    let (vocab, n_rows) = if sizes == Sizes::Full { (1000, 200) } else { (133, 7) };
    BlockFormat::ALL.into_iter().map(|format| one(bench, format, vocab, n_rows)).collect()
}

fn one(
    bench: &mut Bench<'_>,
    format: BlockFormat,
    vocab: usize,
    n_rows: usize,
) -> Result<CheckRow, CheckError> {
    bench.next_shape();
    // Not a multiple of 64 where the format allows it.
    let width = if format.block_values() == 256 { 512 } else { 576 + 32 };
    let mut compare =
        Comparison::new("embed", format!("{n_rows} rows of {width} of {vocab}, {}", format.name()));
    let row_bytes = format.row_bytes(width).expect("whole blocks");
    let bytes: Vec<u8> =
        (0..vocab * row_bytes).map(|_| bench.random.bits().to_le_bytes()[3]).collect();
    let row = |n: usize| &bytes[n * row_bytes..][..row_bytes];
    let source = MatrixSource { name: "check", format, n_out: vocab, n_in: width, row: &row };
    let matrix = repack(&source).expect("whole blocks");
    let mut token_ids: Vec<u32> = (0..n_rows).map(|_| to_u32(bench.random.below(vocab))).collect();
    token_ids[0] = to_u32(vocab);
    let x_stride = width.next_multiple_of(64);
    let max_rows = n_rows + ROWS_BEYOND;
    let out = bench.output::<f32>(max_rows * x_stride)?;
    let params = EmbedParams {
        step: bench.input(&[header(n_rows, 0)])?,
        table: bench.input(&matrix.bytes)?,
        token_ids: bench.input(&token_ids)?,
        x: out.ptr,
        vocab: to_u32(vocab),
        width: to_u32(width),
        width_padded: to_u32(matrix.n_in_padded),
        x_stride: to_u32(x_stride),
        format: format.ggml_type(),
        reserved: 0,
    };
    params.launch(bench.sink(), to_u32(max_rows))?;

    let (found, whole) = bench.read(&out, 0_f32)?;
    compare.guards(whole);
    let mut expected = vec![0.0; width];
    for (t, found) in found.chunks_exact(x_stride).enumerate() {
        compare.untouched("the padding", &found[width..], is_fill_float);
        if t >= n_rows {
            compare.untouched("a row beyond the step", found, is_fill_float);
            continue;
        }
        match token_ids[t] as usize {
            known if known < vocab => dequantize_row(format, row(known), &mut expected),
            _ => expected.fill(0.0),
        }
        let bad =
            found.iter().zip(&expected).position(|(found, expected)| !same(*found, *expected));
        compare.holds(bad.is_none(), || {
            let i = bad.unwrap_or_default();
            format!("row {t}, column {i}: found {}, expected {}", found[i], expected[i])
        });
    }
    Ok(compare.row())
}

/// Bit-equal, or NaN both: scales of random bytes may be.
fn same(found: f32, expected: f32) -> bool {
    found.to_bits() == expected.to_bits()
        || (found.is_nan() && expected.is_nan())
        || (found == 0.0 && expected == 0.0)
}
