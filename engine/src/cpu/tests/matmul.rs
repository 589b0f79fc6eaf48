//! Products of every block format, with int8 and with f32 activations, against f64 sums.

use std::ops::Range;

use crate::{
    cpu::{
        Isa, epilogue::Epilogue, matmul_f32::F32Tiles, matmul_int8::Int8Tiles, memory::Arena,
        packed::PackedMatrix, simd::LANES, threads::Parts,
    },
    quant::BlockFormat,
    reference::matmul::{Int8Row, dequantized_weights, exact_weights, matmul, matmul_magnitude},
};

use super::{
    Guarded, Random, assert_close, bits, int8_rows::quantize, is_untouched, isas,
    random::case_seed, random_rows, widen,
};

/// Share of `Σ |w x|` by which an int8 product may differ from the exact one of the same codes: one rounding for each
/// scale and group in f32.
const INT8_TOLERANCE: f64 = 1e-5;
/// Share of `Σ |w x|` for f32 products: rounding of at most 256 terms in each of four chains.
const F32_TOLERANCE: f64 = 2e-6;

const ROWS: [usize; 9] = [1, 2, 3, 5, 7, 8, 9, 31, 33];
const ROWS_MAX: usize = 33;
/// Values before and after a matrix's own in every row of the output.
const MARGIN: usize = 16;

/// One matrix and what a kernel does with it.
struct Case {
    matrix: PackedMatrix,
    n_in: usize,
    int8: bool,
    /// Padded to whole tiles.
    bias: Option<Vec<f32>>,
    accumulate: bool,
}

impl Case {
    /// Products with `rows`, `[rows, n_out]`. `initial` is what the output holds before, if it is added to.
    fn run(&self, isa: Isa, rows: &[&[f32]], initial: f32, what: &str) -> Vec<f32> {
        let padded = self.matrix.n_out.next_multiple_of(LANES);
        let stride = padded + 2 * MARGIN;
        // Two rows more than there are: they must stay as they are.
        let mut out = Guarded::new((rows.len() + 2) * stride);
        if self.accumulate {
            for row in out.values().chunks_exact_mut(stride).take(rows.len()) {
                row[MARGIN..MARGIN + padded].fill(initial);
            }
        }
        let parts = Parts::new(out.values());
        let epilogue = Epilogue {
            out: &parts,
            stride,
            column: MARGIN,
            accumulate: self.accumulate,
            bias: self.bias.as_deref(),
            lora: None,
        };
        // In two calls, as two chunks would.
        let middle = self.matrix.n_tiles() / 2;
        for tiles in [middle..self.matrix.n_tiles(), 0..middle] {
            self.tiles(isa, tiles, rows, &epilogue);
        }
        let out = out.checked(what);
        let mut values = Vec::new();
        for (index, row) in out.chunks_exact(stride).enumerate() {
            let own = MARGIN..MARGIN + padded;
            for (column, value) in row.iter().enumerate() {
                let written = index < rows.len() && own.contains(&column);
                assert!(
                    written != is_untouched(*value),
                    "{what}: row {index} column {column} is {value}"
                );
            }
            if index < rows.len() {
                values.extend_from_slice(&row[MARGIN..MARGIN + self.matrix.n_out]);
            }
        }
        values
    }

    fn tiles(&self, isa: Isa, tiles: Range<usize>, rows: &[&[f32]], epilogue: &Epilogue<'_>) {
        let (matrix, n_rows) = (&self.matrix, rows.len());
        if self.int8 {
            let rows = quantize(isa, rows, self.n_in);
            isa.run(Int8Tiles { matrix, tiles, rows: &rows, n_rows, epilogue });
        } else {
            // Wider than the matrix, as buffers are; what lies beyond must not count.
            let x_stride = self.matrix.n_in + 32;
            let mut x = vec![f32::NAN; n_rows * x_stride];
            for (to, from) in x.chunks_exact_mut(x_stride).zip(rows) {
                to[..matrix.n_in].fill(0.0);
                to[..self.n_in].copy_from_slice(from);
            }
            let mut scratch = vec![f32::NAN; matrix.n_in * LANES];
            isa.run(F32Tiles {
                matrix,
                tiles,
                x: &x,
                x_stride,
                n_rows,
                epilogue,
                scratch: &mut scratch,
            });
        }
    }
}

/// One format and shape: every row alone against the reference, then batches of rows against the rows alone.
fn check(
    random: &mut Random,
    isa: Isa,
    format: BlockFormat,
    int8: bool,
    n_out: usize,
    n_in: usize,
) {
    let weights = random_rows(random, format, n_out, n_in, true);
    let with_bias = random.chance(50);
    let accumulate = random.chance(50);
    let what = format!(
        "{isa} {format} [{n_out}, {n_in}], int8 {int8}, bias {with_bias}, added {accumulate}"
    );
    let mut bias = vec![0.0; n_out.next_multiple_of(LANES)];
    bias[..n_out].copy_from_slice(&random.units(n_out));
    let case = Case {
        matrix: PackedMatrix::pack(format, n_out, n_in, &mut Arena::new(0), |n| &weights[n]),
        n_in,
        int8,
        bias: with_bias.then(|| bias.clone()),
        accumulate,
    };
    let initial = 3.25;
    let xs: Vec<Vec<f32>> = (0..ROWS_MAX).map(|_| random.spiky(n_in)).collect();
    let alone: Vec<Vec<f32>> = xs.iter().map(|x| case.run(isa, &[x], initial, &what)).collect();
    let tolerance = if int8 { INT8_TOLERANCE } else { F32_TOLERANCE };
    let values = |row: &Vec<u8>| {
        if int8 { exact_weights(format, row, n_in) } else { dequantized_weights(format, row, n_in) }
    };
    let w: Vec<f64> = weights.iter().flat_map(values).collect();
    for (x, found) in xs.iter().zip(&alone) {
        let x = if int8 { Int8Row::quantize(x).values() } else { widen(x) };
        let (mut expected, mut magnitude) = (matmul(&w, &x, n_in), matmul_magnitude(&w, &x, n_in));
        if int8 && format.code_layout().is_some_and(|layout| layout.has_min || layout.offset > 0) {
            // Codes and minimum (or offset) are summed apart and may cancel: the error is that of the larger parts.
            for magnitude in &mut magnitude {
                *magnitude *= 4.0;
            }
        }
        for (n, (expected, magnitude)) in expected.iter_mut().zip(&mut magnitude).enumerate() {
            let bias = if with_bias { f64::from(bias[n]) } else { 0.0 };
            let initial = if accumulate { f64::from(initial) } else { 0.0 };
            *expected += bias + initial;
            *magnitude += bias.abs() + initial;
        }
        assert_close(&what, found, &expected, &magnitude, tolerance);
    }
    for n_rows in ROWS {
        let mut order: Vec<usize> = (0..ROWS_MAX).collect();
        random.shuffle(&mut order);
        let rows: Vec<&[f32]> = order[..n_rows].iter().map(|&row| xs[row].as_slice()).collect();
        let found = case.run(isa, &rows, initial, &what);
        for (found, &row) in found.chunks_exact(n_out).zip(&order) {
            assert_eq!(bits(found), bits(&alone[row]), "{what}: {n_rows} rows change a row");
        }
    }
}

const N_OUT: [usize; 5] = [1, 3, 16, 17, 33];

#[test]
fn int8_products_of_every_format() {
    let mut random = Random::new(case_seed(20));
    for isa in isas() {
        for format in BlockFormat::ALL.into_iter().filter(|format| !format.is_float()) {
            for n_out in N_OUT {
                for n_blocks in [1, 2, 5] {
                    check(&mut random, isa, format, true, n_out, n_blocks * format.block_values());
                }
            }
        }
    }
}

#[test]
fn f32_products_of_every_format() {
    let mut random = Random::new(case_seed(21));
    for isa in isas() {
        for format in BlockFormat::ALL {
            for n_out in N_OUT {
                // Dense matrices need no whole blocks.
                let widths =
                    if format.is_float() { vec![1, 31, 32, 100, 576] } else { vec![1, 2, 3] };
                for width in widths {
                    check(&mut random, isa, format, false, n_out, width * format.block_values());
                }
            }
        }
    }
}

#[test]
fn codes_of_the_largest_magnitude_do_not_overflow() {
    for isa in isas() {
        for format in BlockFormat::ALL.into_iter().filter(|format| !format.is_float()) {
            let n_in = format.block_values();
            for byte in [0x00u8, 0x7f, 0x80, 0xff] {
                let mut random = Random::new(case_seed(22));
                let mut weights = random_rows(&mut random, format, 16, n_in, true);
                for row in &mut weights {
                    let scales = row.clone();
                    row.fill(byte);
                    // The f16 scales stay: a full exponent would not be finite.
                    let halves: &[usize] = match format.block_bytes() {
                        84 => &[80, 82],
                        110 => &[108],
                        210 => &[208],
                        20 | 24 | 144 | 176 => &[0, 2],
                        _ => &[0],
                    };
                    for &at in halves {
                        row[at..at + 2].copy_from_slice(&scales[at..at + 2]);
                    }
                }
                let matrix =
                    PackedMatrix::pack(format, 16, n_in, &mut Arena::new(0), |n| &weights[n]);
                let case = Case { matrix, n_in, int8: true, bias: None, accumulate: false };
                for sign in [1.0, -1.0] {
                    let x = vec![sign * 2.0; n_in];
                    let what = format!("{isa} {format} bytes {byte} times {sign}");
                    let found = case.run(isa, &[&x], 0.0, &what);
                    let w: Vec<f64> =
                        weights.iter().flat_map(|row| exact_weights(format, row, n_in)).collect();
                    let x = Int8Row::quantize(&x).values();
                    let magnitude: Vec<f64> =
                        matmul_magnitude(&w, &x, n_in).iter().map(|m| 4.0 * m + 1.0).collect();
                    assert_close(&what, &found, &matmul(&w, &x, n_in), &magnitude, INT8_TOLERANCE);
                }
            }
        }
    }
}
