//! The dense product with factors in bf16 and sums in f32: `c[i, n] (+)= Σ_j a(i, j) p[j, n]`.
//!
//! As [`super::product`], but that the chain of an element takes two terms at a time (which it has in the same order
//! wherever it runs: see [`Bf16`]), or 32 where there are tiles (see [`super::product_tiles`]).
#![expect(unsafe_code, reason = "vector kernel over strided rows")]

use std::ops::Range;

use crate::cpu::{
    simd::{Bf16, Bf16Kernel, LANES, Tiles},
    threads::Parts,
};

use super::{
    product::{Rows, Size, Sum, Target},
    product_tiles::by_tiles,
};

/// Rows of pairs of bf16; row `r` begins at pair `r * stride`, the first of a pair is its low half.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PairRows<'a> {
    pub(crate) pairs: &'a [u32],
    pub(crate) stride: usize,
}

impl PairRows<'_> {
    /// The same rows without the first `n`.
    pub(crate) fn skip_rows(self, n: usize) -> Self {
        Self { pairs: &self.pairs[n * self.stride..], stride: self.stride }
    }
}

/// The right factor: vector `w` of rows `2 j` and `2 j + 1`, in pairs, is at `j * stride + w * vector_stride`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PairPanel<'a> {
    pub(crate) pairs: &'a [u32],
    pub(crate) stride: usize,
    pub(crate) vector_stride: usize,
}

/// Rounds rows to bf16.
pub(crate) struct RoundRows<'a> {
    pub(crate) rows: Range<usize>,
    /// A multiple of 16; padding that is read must be finite.
    pub(crate) n_columns: usize,
    pub(crate) from: Rows<'a>,
    pub(crate) to: &'a Parts<'a, u32>,
    /// Pairs of a row of `to`.
    pub(crate) stride: usize,
}

impl Bf16Kernel for RoundRows<'_> {
    #[inline(always)]
    unsafe fn run<S: Bf16, T: Tiles>(self) {
        let vectors = self.n_columns / LANES;
        for row in self.rows {
            let from = &self.from.values[row * self.from.stride..][..self.n_columns];
            let to = self.to.at(row * self.stride, vectors * LANES / 2).cast::<u16>();
            for (i, values) in from.as_chunks::<LANES>().0.iter().enumerate() {
                // SAFETY: the instruction set is the caller's; the row has the values by the part and the slice, and a
                // row is one task's.
                unsafe { S::store_bf16(to.add(i * LANES), S::load(values.as_ptr())) };
            }
        }
    }
}

/// Computes one product on this thread; `k` is even.
///
/// # Safety
/// The processor must have the instruction set and the tiles, and nobody else may use the elements of `c` meanwhile.
///
/// # Panics
/// When a factor is smaller than `size` says.
#[inline(always)]
pub(crate) unsafe fn product_bf16<S: Bf16, T: Tiles>(
    size: Size,
    a: PairRows<'_>,
    p: PairPanel<'_>,
    c: Target<'_>,
    sum: Sum,
) {
    let Size { m, n, k } = size;
    if m == 0 || n == 0 {
        return;
    }
    assert!(n.is_multiple_of(LANES) && k.is_multiple_of(2), "{n} columns of {k} terms");
    let needed = (m - 1) * a.stride + k / 2;
    assert!(needed <= a.pairs.len(), "left factor: {needed} pairs of {}", a.pairs.len());
    if k > 0 {
        let last = (k / 2 - 1) * p.stride + (n / LANES - 1) * p.vector_stride + LANES;
        assert!(last <= p.pairs.len(), "panel: {last} pairs of {}", p.pairs.len());
    }
    let out = c.parts.at(c.start, (m - 1) * c.stride + n);
    if T::ARE_HERE && k > 0 {
        // SAFETY: all that the tiles cover lies within the bounds checked above.
        unsafe { by_tiles::<S, T>(size, a, p, (out, c.stride), sum) };
        return;
    }
    let mut vector = 0;
    macro_rules! vectors {
        ($w:literal) => {
            while S::PRODUCT_BLOCK.1 >= $w && n / LANES - vector >= $w {
                let mut row = 0;
                macro_rules! rows {
                    ($m:literal) => {
                        while S::PRODUCT_BLOCK.0 >= $m && m - row >= $m {
                            // SAFETY: all that the block touches lies within the bounds checked above.
                            unsafe {
                                micro::<S, $m, $w>(
                                    k / 2,
                                    (a.pairs.as_ptr().add(row * a.stride), a.stride),
                                    (p.pairs.as_ptr().add(vector * p.vector_stride), p),
                                    (out.add(row * c.stride + vector * LANES), c.stride),
                                    sum,
                                );
                            }
                            row += $m;
                        }
                    };
                }
                rows!(12);
                rows!(6);
                rows!(4);
                rows!(1);
                vector += $w;
            }
        };
    }
    vectors!(2);
    vectors!(1);
}

/// `M` rows by `W` vectors of the result, in registers.
#[inline(always)]
unsafe fn micro<S: Bf16, const M: usize, const W: usize>(
    n_pairs: usize,
    (a, a_stride): (*const u32, usize),
    (panel, p): (*const u32, PairPanel<'_>),
    (out, out_stride): (*mut f32, usize),
    sum: Sum,
) {
    // SAFETY: the caller checked every row, panel and result.
    unsafe {
        let mut sums = [[S::splat(0.0); W]; M];
        if sum == Sum::GoesOn {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (w, value) in sums.iter_mut().enumerate() {
                    *value = S::load(out.add(r * out_stride + w * LANES));
                }
            }
        }
        for j in 0..n_pairs {
            let row = panel.add(j * p.stride);
            let mut values = [S::load_pairs(row); W];
            for (w, value) in values.iter_mut().enumerate().skip(1) {
                *value = S::load_pairs(row.add(w * p.vector_stride));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = S::splat_pair(a.add(r * a_stride + j));
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum = S::dot_pairs(*sum, x, value);
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (w, value) in sums.into_iter().enumerate() {
                let out = out.add(r * out_stride + w * LANES);
                S::store(out, if sum == Sum::Added { S::add(S::load(out), value) } else { value });
            }
        }
    }
}
