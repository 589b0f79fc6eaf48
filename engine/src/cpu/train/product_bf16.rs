//! The dense product with factors in bf16 and sums in f32: `c[i, n] (+)= Σ_j a(i, j) p[j, n]`.
//!
//! As [`super::product`], but that the chain of an element takes two terms at a time (which it has in the same order
//! wherever it runs: see [`Bf16`]), or 32 where there are tiles (see [`super::product_tiles`]). A sum may have terms of
//! two pairs of factors, one after the other: a linear's, and its adapter's.
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
        self.from(n * self.stride)
    }

    /// The same rows from pair `start` on.
    pub(crate) fn from(self, start: usize) -> Self {
        Self { pairs: &self.pairs[start..], stride: self.stride }
    }
}

/// The right factor: vector `w` of rows `2 j` and `2 j + 1`, in pairs, is at `j * stride + w * vector_stride`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PairPanel<'a> {
    pub(crate) pairs: &'a [u32],
    pub(crate) stride: usize,
    pub(crate) vector_stride: usize,
}

impl<'a> PairPanel<'a> {
    /// Rows that hold pairs of two rows each.
    pub(crate) fn of_rows(rows: PairRows<'a>) -> Self {
        Self { pairs: rows.pairs, stride: rows.stride, vector_stride: LANES }
    }
}

/// Terms of a sum: `k` of them, an even number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms<'a> {
    pub(crate) k: usize,
    pub(crate) a: PairRows<'a>,
    pub(crate) p: PairPanel<'a>,
}

impl Terms<'_> {
    /// Checks that the factors of `m` rows and `n` columns are there.
    fn check(&self, m: usize, n: usize) {
        let Self { k, a, p } = self;
        assert!(k.is_multiple_of(2), "{k} terms");
        let needed = (m - 1) * a.stride + k / 2;
        assert!(needed <= a.pairs.len(), "left factor: {needed} pairs of {}", a.pairs.len());
        if *k > 0 {
            let last = (k / 2 - 1) * p.stride + (n / LANES - 1) * p.vector_stride + LANES;
            assert!(last <= p.pairs.len(), "panel: {last} pairs of {}", p.pairs.len());
        }
    }
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

/// Computes one product of `m` rows and `n` columns on this thread, `n` a multiple of 16; there are terms.
///
/// # Safety
/// The processor must have the instruction set and the tiles, and nobody else may use the elements of `c` meanwhile.
///
/// # Panics
/// When a factor is smaller than its terms say.
#[inline(always)]
pub(crate) unsafe fn product_bf16<S: Bf16, T: Tiles>(
    (m, n): (usize, usize),
    terms: &[Terms<'_>],
    c: Target<'_>,
    sum: Sum,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(n.is_multiple_of(LANES), "{n} columns");
    for terms in terms {
        terms.check(m, n);
    }
    let out = c.parts.at(c.start, (m - 1) * c.stride + n);
    if T::ARE_HERE && terms.iter().all(|terms| terms.k > 0) {
        let mut sum = sum;
        for &Terms { k, a, p } in terms {
            // SAFETY: all that the tiles cover lies within the bounds checked above.
            unsafe { by_tiles::<S, T>(Size { m, n, k }, a, p, (out, c.stride), sum) };
            if sum == Sum::New {
                sum = Sum::GoesOn;
            }
        }
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
                                    (row, vector),
                                    terms,
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
    (row, vector): (usize, usize),
    terms: &[Terms<'_>],
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
        for &Terms { k, a, p } in terms {
            let (left, right) = (
                a.pairs.as_ptr().add(row * a.stride),
                p.pairs.as_ptr().add(vector * p.vector_stride),
            );
            for j in 0..k / 2 {
                let right = right.add(j * p.stride);
                let mut values = [S::load_pairs(right); W];
                for (w, value) in values.iter_mut().enumerate().skip(1) {
                    *value = S::load_pairs(right.add(w * p.vector_stride));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = S::splat_pair(left.add(r * a.stride + j));
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum = S::dot_pairs(*sum, x, value);
                    }
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
