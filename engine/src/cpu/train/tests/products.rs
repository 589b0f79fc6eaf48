//! Products, and linears of every block format in both directions.
#![expect(unsafe_code, reason = "a test kernel over the product")]
#![expect(clippy::inline_always, reason = "as for every kernel")]

use crate::{
    cpu::{
        Isa,
        memory::Arena,
        packed::PackedMatrix,
        simd::{Kernel, LANES, Simd},
        tests::{
            Guarded, Random, assert_close, bits, is_untouched, isas, random::case_seed,
            random_rows, widen,
        },
        threads::Parts,
        train::{
            elementwise::Transpose,
            linear::{Factors, LinearPanel, LowRank},
            linear_back::LinearBackPanel,
            lora::{Factor, GRADIENT_COLUMNS, GradientPanel, gradient_values},
            panel::PANEL,
            product::{Left, Panel, Rows, Size, Sum, Target, product},
        },
    },
    quant::BlockFormat,
    reference::matmul::{dequantized_weights, matmul, matmul_magnitude},
};

/// Share of `Σ |a b|` by which a sum of a few hundred terms in one f32 chain may differ.
const TOLERANCE: f64 = 4e-6;

struct OneProduct<'a> {
    size: Size,
    left: Left,
    a: Rows<'a>,
    p: Panel<'a>,
    c: Target<'a>,
    sum: Sum,
}

impl Kernel for OneProduct<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the instruction set is the caller's, and `c` is the test's alone.
        unsafe {
            product::<S>(self.size, self.left, self.a, self.p, self.c, self.sum);
        }
    }
}

fn turned(values: &[f64], width: usize) -> Vec<f64> {
    (0..width).flat_map(|c| values.iter().skip(c).step_by(width).copied()).collect()
}

#[test]
fn products_of_all_sizes_equal_the_reference_and_rows_know_nothing_of_each_other() {
    let mut random = Random::new(case_seed(200));
    for isa in isas() {
        for (m, n, k) in
            [(1, 16, 1), (3, 48, 7), (12, 32, 0), (13, 16, 64), (25, 80, 33), (29, 32, 300)]
        {
            for left in [Left::Rows, Left::Columns] {
                let (a_rows, a_columns) = if left == Left::Rows { (m, k) } else { (k, m) };
                let a = random.units(a_rows * (a_columns + 3) + 32);
                let p = random.units(k * (n + 5) + 5);
                let initial = random.units(m * n);
                let (a_of, p_of) = (Rows::new(&a, a_columns + 3), Rows::new(&p, n + 5));
                let run = |rows: std::ops::Range<usize>, sum: Sum| {
                    let stride = n + 16;
                    let mut out = Guarded::new(rows.len() * stride);
                    for (out, row) in out.values().chunks_exact_mut(stride).zip(rows.clone()) {
                        out[..n].copy_from_slice(&initial[row * n..][..n]);
                    }
                    let parts = Parts::new(out.values());
                    let first = rows.start * if left == Left::Rows { a_of.stride } else { 1 };
                    isa.run(OneProduct {
                        size: Size { m: rows.len(), n, k },
                        left,
                        a: a_of.from(first),
                        p: Panel::of_rows(p_of),
                        c: Target { parts: &parts, start: 0, stride },
                        sum,
                    });
                    let out = out.checked("product");
                    let mut values = Vec::new();
                    for row in out.chunks_exact(stride) {
                        assert!(row[n..].iter().copied().all(is_untouched), "{isa} {m} {n} {k}");
                        values.extend_from_slice(&row[..n]);
                    }
                    values
                };
                let compact = |rows: Rows<'_>, n_rows: usize, width: usize| -> Vec<f64> {
                    (0..n_rows)
                        .flat_map(|r| widen(&rows.values[r * rows.stride..][..width]))
                        .collect()
                };
                let mut left_factor = compact(a_of, a_rows, a_columns);
                if left == Left::Columns {
                    left_factor = turned(&left_factor, m);
                }
                let right = turned(&compact(p_of, k, n), n);
                for sum in [Sum::New, Sum::GoesOn, Sum::Added] {
                    let found = run(0..m, sum);
                    let (mut expected, mut magnitude) = (vec![0.0; m * n], vec![1e-6; m * n]);
                    if k > 0 {
                        expected = matmul(&right, &left_factor, k);
                        magnitude = matmul_magnitude(&right, &left_factor, k);
                    }
                    if sum != Sum::New {
                        let initial = widen(&initial);
                        expected.iter_mut().zip(&initial).for_each(|(e, i)| *e += i);
                        magnitude.iter_mut().zip(&initial).for_each(|(e, i)| *e += i.abs());
                    }
                    let what = format!("{isa} {left:?} {m} {n} {k} {sum:?}");
                    assert_close(&what, &found, &expected, &magnitude, TOLERANCE);
                    for row in 0..m {
                        let alone = run(row..row + 1, sum);
                        assert_eq!(bits(&alone), bits(&found[row * n..][..n]), "{what}: row {row}");
                    }
                }
            }
        }
    }
}

/// `[rows, n]`, columns padded with zeros to `stride`.
fn padded(values: &[f32], n: usize, stride: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for row in values.chunks_exact(n) {
        out.extend_from_slice(row);
        out.resize(out.len() + stride - n, 0.0);
    }
    out
}

const N_ROWS: usize = 14;
const RANK: usize = 3;

fn check_format(random: &mut Random, isa: Isa, format: BlockFormat, n_out: usize, n_in: usize) {
    let rows = random_rows(random, format, n_out, n_in, true);
    let matrix = PackedMatrix::pack(format, n_out, n_in, &mut Arena::new(0), |n| &rows[n]);
    let w: Vec<f64> = rows.iter().flat_map(|row| dequantized_weights(format, row, n_in)).collect();
    let (tiles, wide) = (matrix.n_tiles(), matrix.n_in.max(matrix.n_tiles() * LANES));
    let (v, factor) = (random.units(N_ROWS * RANK), random.units(RANK * wide));
    let low_rank =
        Some(LowRank { rank: RANK, v: Rows::new(&v, RANK), factor: Rows::new(&factor, wide) });
    let delta = |n: usize| -> (Vec<f64>, Vec<f64>) {
        let columns: Vec<f32> =
            factor.chunks_exact(wide).flat_map(|row| row[..n].to_vec()).collect();
        let factor = turned(&widen(&columns), n);
        (matmul(&factor, &widen(&v), RANK), matmul_magnitude(&factor, &widen(&v), RANK))
    };
    let sum = |mut a: Vec<f64>, b: Vec<f64>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    };
    let what = format!("{isa} {format} [{n_out}, {n_in}]");

    // Forward, with a bias.
    let (x, bias) =
        (random.units(N_ROWS * n_in), padded(&random.units(n_out), n_out, tiles * LANES));
    let x_padded = padded(&x, n_in, matrix.n_in + 32);
    let stride = tiles * LANES;
    let mut out = Guarded::new(N_ROWS * stride);
    let mut scratch = vec![f32::NAN; matrix.n_in * PANEL];
    let parts = Parts::new(out.values());
    for first in (0..tiles).step_by(2) {
        isa.run(LinearPanel {
            matrix: &matrix,
            tiles: first..tiles.min(first + 2),
            rows: 0..N_ROWS,
            factors: Factors { x: Rows::new(&x_padded, matrix.n_in + 32), low_rank },
            bias: Some(&bias),
            out: Target { parts: &parts, start: first * LANES, stride },
            accumulate: false,
            scratch: &mut scratch,
        });
    }
    let out = out.checked(&what);
    let found: Vec<f32> = out.chunks_exact(stride).flat_map(|row| row[..n_out].to_vec()).collect();
    let biases = || (0..N_ROWS).flat_map(|_| widen(&bias[..n_out]));
    let (d, d_magnitude) = delta(n_out);
    let expected = sum(sum(matmul(&w, &widen(&x), n_in), d), biases().collect());
    let magnitude = sum(
        sum(matmul_magnitude(&w, &widen(&x), n_in), d_magnitude),
        biases().map(f64::abs).collect(),
    );
    assert_close(&format!("{what} forward"), &found, &expected, &magnitude, TOLERANCE);

    // Backward, over all output features in two calls that go on with the sums.
    let dy = random.units(N_ROWS * n_out);
    let dy_padded = padded(&dy, n_out, stride);
    let mut dx = Guarded::new(N_ROWS * matrix.n_in);
    let mut scratch = vec![f32::NAN; stride * PANEL];
    let parts = Parts::new(dx.values());
    let middle = tiles / 2;
    for block in 0..matrix.n_in / 32 {
        for (tiles, low_rank) in [(0..middle, None), (middle..tiles, low_rank)] {
            let accumulate = middle > 0 && tiles.start > 0;
            isa.run(LinearBackPanel {
                matrix: &matrix,
                block,
                rows: 0..N_ROWS,
                factors: Factors {
                    x: Rows::new(&dy_padded[tiles.start * LANES..], stride),
                    low_rank,
                },
                tiles,
                dropped: None,
                dx: Target { parts: &parts, start: 0, stride: matrix.n_in },
                sum: Sum::goes_on(accumulate),
                scratch: &mut scratch,
            });
        }
    }
    let dx = dx.checked(&what);
    let found: Vec<f32> =
        dx.chunks_exact(matrix.n_in).flat_map(|row| row[..n_in].to_vec()).collect();
    let w_turned = turned(&w, n_in);
    let (d, d_magnitude) = delta(n_in);
    let expected = sum(matmul(&w_turned, &widen(&dy), n_out), d);
    let magnitude = sum(matmul_magnitude(&w_turned, &widen(&dy), n_out), d_magnitude);
    assert_close(&format!("{what} backward"), &found, &expected, &magnitude, TOLERANCE);
}

#[test]
fn linears_of_every_format_in_both_directions() {
    let mut random = Random::new(case_seed(201));
    for isa in isas() {
        for format in BlockFormat::ALL {
            let block = format.block_values().max(32);
            for (n_out, n_in) in [(16, block), (33, 2 * block)] {
                check_format(&mut random, isa, format, n_out, n_in);
            }
        }
        // A width that is padded.
        check_format(&mut random, isa, BlockFormat::F32, 40, 40);
    }
}

/// That a factor's gradient went on from `initial` by the products of `v` and `x`, both turned: `n_rows` terms each.
pub(super) fn check_gradient(
    what: &str,
    factor: Factor,
    (v, x): (Vec<f64>, Vec<f64>),
    n_rows: usize,
    initial: &[f32],
    found: &[f32],
) {
    let (first, second) = if factor == Factor::A { (v, x) } else { (x, v) };
    let mut expected = matmul(&second, &first, n_rows);
    expected.iter_mut().zip(widen(initial)).for_each(|(e, i)| *e += i);
    let mut magnitude = matmul_magnitude(&second, &first, n_rows);
    magnitude.iter_mut().zip(widen(initial)).for_each(|(e, i)| *e += i.abs());
    assert_close(what, found, &expected, &magnitude, TOLERANCE);
}

#[test]
fn gradients_of_factors_are_sums_over_rows_that_go_on() {
    let mut random = Random::new(case_seed(202));
    for isa in isas() {
        for (factor, n_features) in [(Factor::A, 40), (Factor::B, 152)] {
            let (n_rows, stride) = (149, 160);
            let (v, x) = (random.units(n_rows * RANK), random.units(n_rows * stride));
            let initial = random.units(RANK * n_features);
            let run = |cuts: &[usize]| {
                let mut gradient = initial.clone();
                for (from, to) in cuts.iter().zip(&cuts[1..]) {
                    let parts = Parts::new(&mut gradient);
                    for start in (0..n_features).step_by(GRADIENT_COLUMNS) {
                        isa.run(GradientPanel {
                            factor,
                            rank: RANK,
                            n_features,
                            columns: start..n_features.min(start + GRADIENT_COLUMNS),
                            n_rows: to - from,
                            v: Rows::new(&v[from * RANK..], RANK),
                            x: Rows::new(&x[from * stride..], stride),
                            gradient: &parts,
                            scratch: &mut vec![f32::NAN; gradient_values(RANK)],
                        });
                    }
                }
                gradient
            };
            let found = run(&[0, n_rows]);
            assert_eq!(bits(&found), bits(&run(&[0, 7, n_rows])), "{isa} {factor:?}");
            let columns: Vec<f32> =
                x.chunks_exact(stride).flat_map(|row| row[..n_features].to_vec()).collect();
            let (v, x) = (turned(&widen(&v), RANK), turned(&widen(&columns), n_features));
            let what = format!("{isa} {factor:?}");
            check_gradient(&what, factor, (v, x), n_rows, &initial, &found);
        }
    }
}

#[test]
fn rows_turned_round() {
    let mut random = Random::new(case_seed(203));
    for isa in isas() {
        for (n_rows, n_columns) in [(0, 16), (1, 16), (15, 48), (16, 32), (37, 16)] {
            let stride = n_columns + 3;
            let rows = random.units(n_rows * stride);
            let out_stride = n_rows + 5;
            let mut out = Guarded::new(n_columns * out_stride);
            let parts = Parts::new(out.values());
            let out_start = 2;
            let rows_of = &rows;
            isa.run(Transpose {
                rows: rows_of,
                stride,
                n_rows,
                n_columns,
                out: &parts,
                out_start,
                out_stride,
            });
            let out = out.checked("transpose");
            for (index, value) in out.into_iter().enumerate() {
                let (column, at) = (index / out_stride, index % out_stride);
                match at.checked_sub(out_start).filter(|row| *row < n_rows) {
                    Some(row) => {
                        let expected = rows[row * stride + column];
                        assert_eq!(value.to_bits(), expected.to_bits(), "{isa} {row} {column}");
                    }
                    None => assert!(is_untouched(value), "{isa}: wrote at {column}, {at}"),
                }
            }
        }
    }
}
