//! As [`super::lora`], with factors in bf16: what is trained is rounded when it is packed, as frozen weights are.
//!
//! Gradients sum over rows of the batch, two at a time. A pair has rows of one sequence only, the last of an odd number of
//! rows beside zeros: so a sum's bits do not depend on what else is in the batch.
#![expect(unsafe_code, reason = "vector kernels over strided rows")]

use std::ops::Range;

use crate::cpu::{
    simd::{Bf16, Bf16Kernel, LANES, Simd, Tiles},
    threads::Parts,
};

use super::{
    lora::{GRADIENT_COLUMNS, GRADIENT_ROWS, GradientPanel},
    panel::as_pairs,
    product::{Rows, Sum, Target},
    product_bf16::{PairPanel, PairRows, Terms, product_bf16},
};

/// `out[r, c] = scale Σ_k x[r, k] factor[k, c]` for some rows, and the same rounded: `A x` or `Bᵀ dy`.
pub(crate) struct ShrinkPairs<'a> {
    pub(crate) rows: Range<usize>,
    /// Terms of the sum.
    pub(crate) n_in: usize,
    pub(crate) x: PairRows<'a>,
    /// `[n_in / 2, padded rank]`, pairs of two rows.
    pub(crate) factor: PairRows<'a>,
    pub(crate) lora_scale: f32,
    pub(crate) out: Target<'a>,
    pub(crate) rounded: &'a Parts<'a, u32>,
    /// Pairs of a row of `rounded`.
    pub(crate) rounded_stride: usize,
}

impl Bf16Kernel for ShrinkPairs<'_> {
    #[inline(always)]
    unsafe fn run<S: Bf16, T: Tiles>(self) {
        let Self { rows, n_in, x, factor, lora_scale, out, rounded, rounded_stride } = self;
        let (m, n) = (rows.len(), factor.stride);
        let a = x.skip_rows(rows.start);
        let terms = [Terms { k: n_in.next_multiple_of(2), a, p: PairPanel::of_rows(factor) }];
        let out = out.skip_rows(rows.start);
        // SAFETY: instruction set and tiles are the caller's; these rows are this task's alone.
        unsafe {
            product_bf16::<S, T>((m, n), &terms, out, Sum::New);
            for row in 0..m {
                let to = out.parts.at(out.start + row * out.stride, n);
                let pairs = rounded.at((rows.start + row) * rounded_stride, n / 2).cast::<u16>();
                for at in (0..n).step_by(LANES) {
                    let value = S::mul(S::load(to.add(at)), S::splat(lora_scale));
                    S::store(to.add(at), value);
                    S::store_bf16(pairs.add(at), value);
                }
            }
        }
    }
}

/// `v` or `dv` for gradients: row `s + j` has rows `s + 2 j` and `s + 2 j + 1` of a sequence from row `s` on, in pairs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByTwos<'a> {
    pub(crate) pairs: PairRows<'a>,
    /// Rows of the batch.
    pub(crate) sequences: &'a [Range<usize>],
}

/// Makes the rows of [`ByTwos`] of one sequence.
pub(crate) struct PairSequence<'a> {
    pub(crate) sequence: Range<usize>,
    pub(crate) rows: Rows<'a>,
    /// A multiple of 16.
    pub(crate) width: usize,
    pub(crate) to: &'a Parts<'a, u32>,
}

impl Bf16Kernel for PairSequence<'_> {
    #[inline(always)]
    unsafe fn run<S: Bf16, T: Tiles>(self) {
        let Self { sequence, rows, width, to } = self;
        let to = (sequence.start..).map(|row| to.row(row, width));
        // SAFETY: the instruction set is the caller's; a sequence's rows are one task's.
        unsafe { pair_all::<S>(rows, sequence, to) };
    }
}

/// Some rows by twos, as wide as what they are written to; the last of an odd number beside zeros.
#[inline(always)]
unsafe fn pair_all<'a, S: Bf16>(
    from: Rows<'_>,
    rows: Range<usize>,
    to: impl Iterator<Item = &'a mut [u32]>,
) {
    for (low, to) in rows.clone().step_by(2).zip(to) {
        let row = |row: usize| &from.values[row * from.stride..][..to.len()];
        let high = (low + 1 < rows.end).then(|| row(low + 1));
        // SAFETY: the caller's.
        unsafe { pair_rows::<S>(row(low), high, to) };
    }
}

/// Two rows in pairs, with zeros beyond their end; the second one may be missing.
#[inline(always)]
unsafe fn pair_rows<S: Bf16>(low: &[f32], high: Option<&[f32]>, to: &mut [u32]) {
    for (i, to) in to.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        // SAFETY: the instruction set is the caller's; a chunk has sixteen pairs.
        unsafe {
            let high = high.map_or(S::splat(0.0), |high| load_padded::<S>(high, i * LANES));
            S::store_pairs(to.as_mut_ptr(), S::pair(load_padded::<S>(low, i * LANES), high));
        }
    }
}

/// Sixteen values from `start` on, zeros beyond the end.
#[inline(always)]
unsafe fn load_padded<S: Simd>(values: &[f32], start: usize) -> S::F {
    let left = values.get(start..).unwrap_or_default();
    let mut padded = [0.0; LANES];
    // SAFETY: the instruction set is the caller's; sixteen values are there.
    unsafe {
        if left.len() >= LANES {
            return S::load(left.as_ptr());
        }
        padded[..left.len()].copy_from_slice(left);
        S::load(padded.as_ptr())
    }
}

/// Rounds rows `2 j` and `2 j + 1` of `from`, `[n_rows, width]`, to row `j` of `to`, for some `j`.
pub(crate) struct PackPairs<'a> {
    pub(crate) from: &'a [f32],
    pub(crate) width: usize,
    pub(crate) pairs: Range<usize>,
    pub(crate) to: &'a Parts<'a, u32>,
    /// Pairs of a row of `to`; what is beyond `width` becomes zero.
    pub(crate) stride: usize,
}

impl Bf16Kernel for PackPairs<'_> {
    #[inline(always)]
    unsafe fn run<S: Bf16, T: Tiles>(self) {
        let Self { from, width, pairs, to, stride } = self;
        let row = |row: usize| from.get(row * width..(row + 1) * width);
        for j in pairs {
            let to = to.row(j, stride);
            match row(2 * j) {
                // SAFETY: the instruction set is the caller's; a row is one task's.
                Some(low) => unsafe { pair_rows::<S>(low, row(2 * j + 1), to) },
                None => to.fill(0),
            }
        }
    }
}

/// Rounds columns `2 j` and `2 j + 1` of `from`, `[n_rows, width]`, to row `j` of `to`: element `r` has those of row `r`.
/// For some columns, from a multiple of 16 on, of rows `16 * block..`, which become zero beyond the last one.
pub(crate) struct TurnPairs<'a> {
    pub(crate) from: &'a [f32],
    pub(crate) width: usize,
    pub(crate) columns: Range<usize>,
    pub(crate) block: usize,
    pub(crate) to: &'a Parts<'a, u32>,
    /// Pairs of a row of `to`.
    pub(crate) stride: usize,
}

impl Bf16Kernel for TurnPairs<'_> {
    #[inline(always)]
    unsafe fn run<S: Bf16, T: Tiles>(self) {
        let Self { from, width, columns, block, to, stride } = self;
        let first_row = block * LANES;
        for column in columns.clone().step_by(LANES) {
            // Row by row eight pairs.
            let mut rounded = [[0_u32; LANES / 2]; LANES];
            for (r, rounded) in rounded.iter_mut().enumerate() {
                let row = (first_row + r) * width;
                let Some(row) = from.get(row..row + width) else { continue };
                // SAFETY: the instruction set is the caller's; eight pairs are sixteen halves.
                unsafe {
                    S::store_bf16(rounded.as_mut_ptr().cast(), load_padded::<S>(row, column));
                }
            }
            for j in 0..(columns.end - column).min(LANES).div_ceil(2) {
                let to = to.at((column / 2 + j) * stride + first_row, LANES);
                for (r, rounded) in rounded.iter().enumerate() {
                    // SAFETY: sixteen pairs by the part; these columns of the rows are this task's.
                    unsafe { *to.add(r) = rounded[j] };
                }
            }
        }
    }
}

impl Bf16Kernel for GradientPanel<'_, ByTwos<'_>> {
    #[inline(always)]
    unsafe fn run<S: Bf16, T: Tiles>(mut self) {
        let scratch = std::mem::take(&mut self.scratch);
        let (sums, near) = scratch.split_at_mut(self.rank * GRADIENT_COLUMNS);
        let near = &mut as_pairs(near)[..GRADIENT_ROWS / 2 * GRADIENT_COLUMNS];
        self.copy_in(sums);
        let ByTwos { pairs, sequences } = self.v;
        let (n, x) = (self.n_padded(), self.x.from(self.columns.start));
        for sequence in sequences {
            for first in sequence.clone().step_by(GRADIENT_ROWS) {
                let rows = first..sequence.end.min(first + GRADIENT_ROWS);
                let n_pairs = rows.len().div_ceil(2);
                let to = near.chunks_exact_mut(GRADIENT_COLUMNS).map(|row| &mut row[..n]);
                // SAFETY: the instruction set is the caller's.
                unsafe { pair_all::<S>(x, rows, to) };
                let v = pairs.skip_rows(sequence.start + (first - sequence.start) / 2);
                assert!((n_pairs - 1) * v.stride + self.rank <= v.pairs.len(), "{n_pairs} pairs");
                // SAFETY: the instruction set is the caller's; there are so many pairs of both.
                unsafe { add_pairs::<S>((self.rank, n, n_pairs), v, near, sums) };
            }
        }
        self.copy_out(sums);
    }
}

/// Adds the products of some pairs of rows, `[n_pairs, rank]` and `[n_pairs, 96]`, to `rank` rows of `n` columns.
#[inline(always)]
unsafe fn add_pairs<S: Bf16>(
    (rank, n, n_pairs): (usize, usize, usize),
    v: PairRows<'_>,
    x: &[u32],
    sums: &mut [f32],
) {
    assert!(n <= GRADIENT_COLUMNS && n.is_multiple_of(LANES));
    assert!(n_pairs * GRADIENT_COLUMNS <= x.len() && rank * GRADIENT_COLUMNS <= sums.len());
    for at in (0..n).step_by(LANES) {
        let mut r = 0;
        macro_rules! rows {
            ($m:literal) => {
                while rank - r >= $m {
                    // SAFETY: ranks and columns are within the rows by the assertions and the caller's.
                    unsafe {
                        add_block::<S, $m>(
                            n_pairs,
                            (v.pairs.as_ptr().add(r), v.stride),
                            x.as_ptr().add(at),
                            sums.as_mut_ptr().add(r * GRADIENT_COLUMNS + at),
                        );
                    }
                    r += $m;
                }
            };
        }
        rows!(16);
        rows!(8);
        rows!(4);
        rows!(1);
    }
}

/// `M` rows of sixteen columns.
#[inline(always)]
unsafe fn add_block<S: Bf16, const M: usize>(
    n_pairs: usize,
    (v, v_stride): (*const u32, usize),
    x: *const u32,
    out: *mut f32,
) {
    // SAFETY: the caller checked all of it.
    unsafe {
        let mut sums = [S::splat(0.0); M];
        for (r, sum) in sums.iter_mut().enumerate() {
            *sum = S::load(out.add(r * GRADIENT_COLUMNS));
        }
        for j in 0..n_pairs {
            let two = S::load_pairs(x.add(j * GRADIENT_COLUMNS));
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = S::dot_pairs(*sum, S::splat_pair(v.add(j * v_stride + r)), two);
            }
        }
        for (r, sum) in sums.into_iter().enumerate() {
            S::store(out.add(r * GRADIENT_COLUMNS), sum);
        }
    }
}
