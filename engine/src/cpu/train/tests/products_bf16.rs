//! Products of bf16: against plain sums in f64 over rounded factors, bit by bit against plain Rust, and linears of every
//! block format in both directions.
#![expect(unsafe_code, reason = "a test kernel over the product")]
#![expect(clippy::inline_always, reason = "as for every kernel")]

use half::bf16;

use crate::{
    cpu::{
        Isa,
        memory::Arena,
        packed::PackedMatrix,
        simd::{Bf16, Bf16Kernel, LANES},
        tests::{
            Guarded, Random, assert_close, bits, is_untouched, random::case_seed, random_rows,
            widen,
        },
        threads::Parts,
        train::{
            linear::{LinearBackPanel, LinearPanel, LowRank},
            panel::PANEL,
            product::{Rows, Size, Sum, Target},
            product_bf16::{PairPanel, PairRows, RoundRows, product_bf16},
        },
    },
    quant::BlockFormat,
    reference::matmul::{dequantized_weights, matmul, matmul_magnitude},
};

/// Share of `Σ |a b|` by which a sum of a few hundred terms in one f32 chain may differ.
const TOLERANCE: f64 = 4e-6;

/// Instruction sets with products of bf16 that this processor has.
fn isas() -> Vec<Isa> {
    let isas: Vec<Isa> =
        Isa::ALL.into_iter().filter(|isa| isa.lacks_for_bf16().is_none()).collect();
    if isas.len() == 1 {
        eprintln!("no AVX512-BF16 here: only plain Rust is tested");
    }
    isas
}

fn rounded(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| bf16::from_f32(*value).to_f64()).collect()
}

fn turned(values: &[f64], width: usize) -> Vec<f64> {
    (0..width).flat_map(|c| values.iter().skip(c).step_by(width).copied()).collect()
}

/// Rows of `width` values, a multiple of 16, as pairs.
fn round_rows(isa: Isa, values: &[f32], width: usize) -> Vec<u32> {
    let n_rows = values.len() / width;
    let mut pairs = vec![u32::MAX; values.len() / 2];
    let parts = Parts::new(&mut pairs);
    isa.run_bf16(RoundRows {
        rows: 0..n_rows,
        n_columns: width,
        from: Rows::new(values, width),
        to: &parts,
        stride: width / 2,
    });
    pairs
}

#[test]
fn rows_are_rounded_to_the_nearest_and_ties_to_even() {
    let mut random = Random::new(case_seed(220));
    let special = [
        0.0,
        -0.0,
        1.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MAX,
        f32::MIN_POSITIVE,
        // Halfway between two: to the even one, below and above.
        f32::from_bits(0x3f80_8000),
        f32::from_bits(0x3f81_8000),
        f32::from_bits(0xbf80_8000),
        f32::from_bits(0x3f80_8001),
        f32::from_bits(0x3f80_7fff),
    ];
    for isa in isas() {
        for width in [16, 48, 576] {
            let mut values = random.spiky(3 * width);
            values[..special.len()].copy_from_slice(&special);
            let pairs = round_rows(isa, &values, width);
            for (index, value) in values.iter().enumerate() {
                let found = pairs[index / 2] >> (index % 2 * 16) & 0xffff;
                let expected = bf16::from_f32(*value).to_bits();
                assert_eq!(found, u32::from(expected), "{isa}: {value} at {index}");
            }
        }
        let nan = round_rows(isa, &[f32::NAN; 16], 16)[0];
        assert!(f32::from_bits(nan << 16).is_nan() && f32::from_bits(nan & 0xffff_0000).is_nan());
    }
}

struct OneProduct<'a> {
    size: Size,
    a: PairRows<'a>,
    p: PairPanel<'a>,
    c: Target<'a>,
    sum: Sum,
}

impl Bf16Kernel for OneProduct<'_> {
    #[inline(always)]
    unsafe fn run<S: Bf16>(self) {
        // SAFETY: the instruction set is the caller's, and `c` is the test's alone.
        unsafe { product_bf16::<S>(self.size, self.a, self.p, self.c, self.sum) };
    }
}

/// `[k, n]` as rows of pairs, two rows at a time.
fn pairs_of_rows(values: &[f32], n: usize) -> Vec<u32> {
    let bits = |value: f32| u32::from(bf16::from_f32(value).to_bits());
    let two = values.chunks_exact(2 * n);
    two.flat_map(|rows| (0..n).map(|i| bits(rows[i]) | bits(rows[n + i]) << 16)).collect()
}

#[test]
fn products_of_all_sizes_equal_the_reference_and_rows_know_nothing_of_each_other() {
    let mut random = Random::new(case_seed(221));
    for (m, n, k) in [
        (1usize, 16usize, 2usize),
        (3, 48, 8),
        (12, 32, 0),
        (13, 16, 64),
        (25, 80, 34),
        (29, 32, 300),
    ] {
        let width = k.next_multiple_of(LANES);
        let (mut a, p) = (random.units(m * width), random.units(k * n));
        let initial = random.units(m * n);
        let panel = pairs_of_rows(&p, n);
        if width > 0 {
            // What lies beyond the terms is not read.
            a.chunks_exact_mut(width).for_each(|row| row[k..].fill(f32::NAN));
        }
        let (mut expected, mut magnitude) = (vec![0.0; m * n], vec![1e-6; m * n]);
        if k > 0 {
            let terms: Vec<f64> =
                a.chunks_exact(width).flat_map(|row| rounded(&row[..k])).collect();
            let right = turned(&rounded(&p), n);
            expected = matmul(&right, &terms, k);
            magnitude = matmul_magnitude(&right, &terms, k);
        }
        let mut of_isas: Vec<Vec<u32>> = Vec::new();
        for isa in isas() {
            let pairs = if width > 0 { round_rows(isa, &a, width) } else { Vec::new() };
            let run = |rows: std::ops::Range<usize>, sum: Sum| {
                let stride = n + 16;
                let mut out = Guarded::new(rows.len() * stride);
                for (out, row) in out.values().chunks_exact_mut(stride).zip(rows.clone()) {
                    out[..n].copy_from_slice(&initial[row * n..][..n]);
                }
                let parts = Parts::new(out.values());
                let a = PairRows { pairs: &pairs, stride: width / 2 };
                isa.run_bf16(OneProduct {
                    size: Size { m: rows.len(), n, k },
                    a: a.skip_rows(rows.start),
                    p: PairPanel { pairs: &panel, stride: n, vector_stride: LANES },
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
            let mut all = Vec::new();
            for sum in [Sum::New, Sum::GoesOn, Sum::Added] {
                let found = run(0..m, sum);
                let (mut expected, mut magnitude) = (expected.clone(), magnitude.clone());
                if sum != Sum::New {
                    let initial = widen(&initial);
                    expected.iter_mut().zip(&initial).for_each(|(e, i)| *e += i);
                    magnitude.iter_mut().zip(&initial).for_each(|(e, i)| *e += i.abs());
                }
                let what = format!("{isa} {m} {n} {k} {sum:?}");
                assert_close(&what, &found, &expected, &magnitude, TOLERANCE);
                for row in 0..m {
                    let alone = run(row..row + 1, sum);
                    assert_eq!(bits(&alone), bits(&found[row * n..][..n]), "{what}: row {row}");
                }
                all.extend(bits(&found));
            }
            of_isas.push(all);
        }
        let (first, others) = of_isas.split_first().unwrap();
        assert!(others.iter().all(|other| other == first), "{m} {n} {k}: instruction sets differ");
    }
}

const N_ROWS: usize = 14;
const RANK: usize = 3;

fn check_format(random: &mut Random, isa: Isa, format: BlockFormat, n_out: usize, n_in: usize) {
    let rows = random_rows(random, format, n_out, n_in, true);
    let matrix = PackedMatrix::pack(format, n_out, n_in, &mut Arena::new(0), |n| &rows[n]);
    let exact = rows.iter().flat_map(|row| dequantized_weights(format, row, n_in));
    #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
    let weights: Vec<f32> = exact.map(|value| value as f32).collect();
    let w = rounded(&weights);
    let tiles = matrix.n_tiles();
    let stride = tiles * LANES;
    let wide = n_in.max(stride);
    let (v, factor) = (random.units(N_ROWS * RANK), random.units(RANK * wide));
    let low_rank =
        Some(LowRank { rank: RANK, v: Rows::new(&v, RANK), factor: Rows::new(&factor, wide) });
    // The adapter's half stays exact.
    let with_adapter = |w: &[f64], x: &[f64], k: usize, n: usize| {
        let columns: Vec<f32> =
            factor.chunks_exact(wide).flat_map(|row| row[..n].to_vec()).collect();
        let (factor, v) = (turned(&widen(&columns), n), widen(&v));
        let sum = |a: Vec<f64>, b: Vec<f64>| a.iter().zip(b).map(|(a, b)| a + b).collect();
        let expected: Vec<f64> = sum(matmul(w, x, k), matmul(&factor, &v, RANK));
        let magnitude: Vec<f64> =
            sum(matmul_magnitude(w, x, k), matmul_magnitude(&factor, &v, RANK));
        (expected, magnitude)
    };
    let what = format!("{isa} {format} [{n_out}, {n_in}]");

    let x = random.units(N_ROWS * n_in);
    let pairs = round_rows(isa, &x, n_in);
    let mut out = Guarded::new(N_ROWS * stride);
    let mut scratch = vec![f32::NAN; matrix.n_in * PANEL];
    let parts = Parts::new(out.values());
    for first in (0..tiles).step_by(2) {
        isa.run_bf16(LinearPanel {
            matrix: &matrix,
            tiles: first..tiles.min(first + 2),
            rows: 0..N_ROWS,
            x: PairRows { pairs: &pairs, stride: n_in / 2 },
            bias: None,
            low_rank,
            out: Target { parts: &parts, start: first * LANES, stride },
            accumulate: false,
            scratch: &mut scratch,
        });
    }
    let out = out.checked(&what);
    let found: Vec<f32> = out.chunks_exact(stride).flat_map(|row| row[..n_out].to_vec()).collect();
    let (expected, magnitude) = with_adapter(&w, &rounded(&x), n_in, n_out);
    assert_close(&format!("{what} forward"), &found, &expected, &magnitude, TOLERANCE);

    let mut dy = vec![0.0; N_ROWS * stride];
    for row in dy.chunks_exact_mut(stride) {
        row[..n_out].copy_from_slice(&random.units(n_out));
    }
    let pairs = round_rows(isa, &dy, stride);
    let mut dx = Guarded::new(N_ROWS * n_in);
    let mut scratch = vec![f32::NAN; stride * PANEL];
    let parts = Parts::new(dx.values());
    for block in 0..n_in / 32 {
        isa.run_bf16(LinearBackPanel {
            matrix: &matrix,
            tiles: 0..tiles,
            block,
            rows: 0..N_ROWS,
            dy: PairRows { pairs: &pairs, stride: stride / 2 },
            low_rank,
            dropped: None,
            dx: Target { parts: &parts, start: 0, stride: n_in },
            sum: Sum::New,
            scratch: &mut scratch,
        });
    }
    let dx = dx.checked(&what);
    let dy: Vec<f32> = dy.chunks_exact(stride).flat_map(|row| row[..n_out].to_vec()).collect();
    let (expected, magnitude) = with_adapter(&turned(&w, n_in), &rounded(&dy), n_out, n_in);
    assert_close(&format!("{what} backward"), &dx, &expected, &magnitude, TOLERANCE);
}

#[test]
fn linears_of_every_format_in_both_directions() {
    let mut random = Random::new(case_seed(222));
    for isa in isas() {
        for format in BlockFormat::ALL {
            let block = format.block_values().max(32);
            for (n_out, n_in) in [(16, block), (33, 2 * block)] {
                check_format(&mut random, isa, format, n_out, n_in);
            }
        }
    }
}
