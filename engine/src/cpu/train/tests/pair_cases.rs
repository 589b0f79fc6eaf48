//! What products of bf16 are tested on: factors and linears, against plain sums in f64 over rounded factors.
#![expect(unsafe_code, reason = "a test kernel over the product")]
#![expect(clippy::inline_always, reason = "as for every kernel")]

use std::{fmt, ops::Range};

use half::bf16;

use crate::{
    cpu::{
        Isa,
        memory::Arena,
        packed::PackedMatrix,
        simd::{Bf16, Bf16Kernel, LANES, Portable, Tiles},
        tests::{Guarded, Random, assert_close, bits, is_untouched, random_rows, widen},
        threads::Parts,
        train::{
            linear::{Factors, LinearPanel, LowRank},
            linear_back::LinearBackPanel,
            panel::PANEL,
            product::{Rows, Size, Sum, Target},
            product_bf16::{PairPanel, PairRows, RoundRows, Terms, product_bf16},
        },
    },
    quant::BlockFormat,
    reference::matmul::{dequantized_weights, matmul, matmul_magnitude},
};

use super::emulated_tiles::EmulatedTiles;

/// Share of `Σ |a b|` by which a sum of a few hundred terms in one f32 chain may differ.
const TOLERANCE: f64 = 4e-6;

/// Who runs a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Runner {
    /// What this processor has.
    Of(Isa),
    /// Plain Rust, and tiles in plain Rust.
    Emulated,
}

impl Runner {
    pub(super) fn run(self, kernel: impl Bf16Kernel) {
        match self {
            Self::Of(isa) => isa.run_bf16(kernel),
            // SAFETY: needs no feature.
            Self::Emulated => unsafe { kernel.run::<Portable, EmulatedTiles>() },
        }
    }
}

impl fmt::Display for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Of(isa) => isa.fmt(f),
            Self::Emulated => f.write_str("emulated tiles"),
        }
    }
}

pub(super) fn rounded(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| bf16::from_f32(*value).to_f64()).collect()
}

pub(super) fn turned(values: &[f64], width: usize) -> Vec<f64> {
    (0..width).flat_map(|c| values.iter().skip(c).step_by(width).copied()).collect()
}

/// Rows of `width` values, a multiple of 16, as pairs.
pub(super) fn round_rows(runner: Runner, values: &[f32], width: usize) -> Vec<u32> {
    let n_rows = values.len() / width;
    let mut pairs = vec![u32::MAX; values.len() / 2];
    let parts = Parts::new(&mut pairs);
    runner.run(RoundRows {
        rows: 0..n_rows,
        n_columns: width,
        from: Rows::new(values, width),
        to: &parts,
        stride: width / 2,
    });
    pairs
}

struct OneProduct<'a> {
    size: (usize, usize),
    terms: &'a [Terms<'a>],
    c: Target<'a>,
    sum: Sum,
}

impl Bf16Kernel for OneProduct<'_> {
    #[inline(always)]
    unsafe fn run<S: Bf16, T: Tiles>(self) {
        // SAFETY: instruction set and tiles are the caller's, and `c` is the test's alone.
        unsafe { product_bf16::<S, T>(self.size, self.terms, self.c, self.sum) };
    }
}

/// Rows of `width` values as rows of sixteen.
pub(super) fn padded_rows(values: &[f32], width: usize) -> Vec<f32> {
    let pad = |row: &[f32]| row.iter().copied().chain(vec![0.0; LANES - width]).collect::<Vec<_>>();
    values.chunks_exact(width).flat_map(pad).collect()
}

/// `[k, n]` as rows of pairs, two rows at a time.
pub(super) fn pairs_of_rows(values: &[f32], n: usize) -> Vec<u32> {
    let bits = |value: f32| u32::from(bf16::from_f32(value).to_bits());
    let two = values.chunks_exact(2 * n);
    two.flat_map(|rows| (0..n).map(|i| bits(rows[i]) | bits(rows[n + i]) << 16)).collect()
}

/// `c (+)= a p` with `c` `[m, n]` and `k` terms.
pub(super) struct ProductCase {
    pub(super) size: Size,
    /// Values of a row of `a`.
    width: usize,
    /// What lies beyond the terms must not be read.
    pub(super) a: Vec<f32>,
    /// `[k, n]`.
    pub(super) p: Vec<f32>,
    /// Of `c`.
    pub(super) initial: Vec<f32>,
    pairs: Vec<u32>,
    panel: Vec<u32>,
}

impl ProductCase {
    pub(super) fn new(random: &mut Random, m: usize, n: usize, k: usize) -> Self {
        let width = k.next_multiple_of(LANES);
        let (mut a, p) = (random.units(m * width), random.units(k * n));
        let (mut pairs, panel) = (Vec::new(), pairs_of_rows(&p, n));
        if width > 0 {
            a.chunks_exact_mut(width).for_each(|row| row[k..].fill(f32::NAN));
            pairs = round_rows(Runner::Of(Isa::Portable), &a, width);
        }
        let initial = random.units(m * n);
        Self { size: Size { m, n, k }, width, a, p, initial, pairs, panel }
    }

    /// Some rows, `[rows, n]`.
    pub(super) fn run(&self, runner: Runner, rows: Range<usize>, sum: Sum) -> Vec<f32> {
        let Size { n, k, .. } = self.size;
        let stride = n + 16;
        let mut out = Guarded::new(rows.len() * stride);
        for (out, row) in out.values().chunks_exact_mut(stride).zip(rows.clone()) {
            out[..n].copy_from_slice(&self.initial[row * n..][..n]);
        }
        let parts = Parts::new(out.values());
        let a = PairRows { pairs: &self.pairs, stride: self.width / 2 };
        runner.run(OneProduct {
            size: (rows.len(), n),
            terms: &[Terms {
                k,
                a: a.skip_rows(rows.start),
                p: PairPanel { pairs: &self.panel, stride: n, vector_stride: LANES },
            }],
            c: Target { parts: &parts, start: 0, stride },
            sum,
        });
        let out = out.checked("product");
        let mut values = Vec::new();
        for row in out.chunks_exact(stride) {
            assert!(row[n..].iter().copied().all(is_untouched), "{runner} {:?}", self.size);
            values.extend_from_slice(&row[..n]);
        }
        values
    }

    /// All rows: near the reference, and each as it is alone.
    pub(super) fn checked(&self, runner: Runner, sum: Sum) -> Vec<f32> {
        let Size { m, n, k } = self.size;
        let (mut expected, mut magnitude) = (vec![0.0; m * n], vec![1e-6; m * n]);
        if k > 0 {
            let rows = self.a.chunks_exact(self.width);
            let terms: Vec<f64> = rows.flat_map(|row| rounded(&row[..k])).collect();
            let right = turned(&rounded(&self.p), n);
            expected = matmul(&right, &terms, k);
            magnitude = matmul_magnitude(&right, &terms, k);
        }
        if sum != Sum::New {
            let initial = widen(&self.initial);
            expected.iter_mut().zip(&initial).for_each(|(e, i)| *e += i);
            magnitude.iter_mut().zip(&initial).for_each(|(e, i)| *e += i.abs());
        }
        let found = self.run(runner, 0..m, sum);
        let what = format!("{runner} {m} {n} {k} {sum:?}");
        assert_close(&what, &found, &expected, &magnitude, TOLERANCE);
        for row in 0..m {
            let alone = self.run(runner, row..row + 1, sum);
            assert_eq!(bits(&alone), bits(&found[row * n..][..n]), "{what}: row {row}");
        }
        found
    }
}

const N_ROWS: usize = 14;
/// Odd: the last pair has a zero.
const RANK: usize = 3;

/// A linear of some format in both directions.
fn check_linear(
    random: &mut Random,
    runner: Runner,
    format: BlockFormat,
    (n_out, n_in): (usize, usize),
) {
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
    let v_pairs = round_rows(runner, &padded_rows(&v, RANK), LANES);
    let padded_factor: Vec<f32> = factor.iter().copied().chain(vec![0.0; wide]).collect();
    let factor_pairs = pairs_of_rows(&padded_factor, wide);
    let low_rank = Some(LowRank {
        rank: RANK + 1,
        v: PairRows { pairs: &v_pairs, stride: LANES / 2 },
        factor: PairRows { pairs: &factor_pairs, stride: wide },
    });
    let with_adapter = |w: &[f64], x: &[f64], k: usize, n: usize| {
        let columns: Vec<f32> =
            factor.chunks_exact(wide).flat_map(|row| row[..n].to_vec()).collect();
        let (factor, v) = (turned(&rounded(&columns), n), rounded(&v));
        let sum = |a: Vec<f64>, b: Vec<f64>| a.iter().zip(b).map(|(a, b)| a + b).collect();
        let expected: Vec<f64> = sum(matmul(w, x, k), matmul(&factor, &v, RANK));
        let magnitude: Vec<f64> =
            sum(matmul_magnitude(w, x, k), matmul_magnitude(&factor, &v, RANK));
        (expected, magnitude)
    };
    let what = format!("{runner} {format} [{n_out}, {n_in}]");

    let x = random.units(N_ROWS * n_in);
    let pairs = round_rows(runner, &x, n_in);
    let mut out = Guarded::new(N_ROWS * stride);
    let mut scratch = vec![f32::NAN; matrix.n_in * PANEL];
    let parts = Parts::new(out.values());
    for first in (0..tiles).step_by(2) {
        runner.run(LinearPanel {
            matrix: &matrix,
            tiles: first..tiles.min(first + 2),
            rows: 0..N_ROWS,
            factors: Factors { x: PairRows { pairs: &pairs, stride: n_in / 2 }, low_rank },
            bias: None,
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
    let pairs = round_rows(runner, &dy, stride);
    let mut dx = Guarded::new(N_ROWS * n_in);
    let mut scratch = vec![f32::NAN; stride * PANEL];
    let parts = Parts::new(dx.values());
    for block in 0..n_in / 32 {
        runner.run(LinearBackPanel {
            matrix: &matrix,
            tiles: 0..tiles,
            block,
            rows: 0..N_ROWS,
            factors: Factors { x: PairRows { pairs: &pairs, stride: stride / 2 }, low_rank },
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

/// Linears of every format.
pub(super) fn check_linears(random: &mut Random, runner: Runner) {
    for format in BlockFormat::ALL {
        let block = format.block_values().max(32);
        for shape in [(16, block), (33, 2 * block)] {
            check_linear(random, runner, format, shape);
        }
    }
}
