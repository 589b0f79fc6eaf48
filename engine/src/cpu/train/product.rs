//! The one dense product of training: `c[i, n] (+)= Σ_j a(i, j) p[j, n]`.
//!
//! Sixteen lanes are sixteen columns `n`; the sum over `j` is one chain of multiply-adds, ascending, that starts from
//! zero or from what `c` holds. So an element has the same bits however rows and columns are shared out, and a sum that
//! is stored and taken up again later (over micro-batches, over chunks of the vocabulary) has the bits of one sum.
//!
//! A product with 16-bit inputs would be another `micro` and another panel; all else would stay.
#![expect(unsafe_code, reason = "vector kernel over strided rows")]

use crate::cpu::{
    simd::{LANES, Simd},
    threads::Parts,
};

/// Rows of values that a product reads; row `r` begins at `r * stride`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) stride: usize,
}

impl<'a> Rows<'a> {
    pub(crate) fn new(values: &'a [f32], stride: usize) -> Self {
        Self { values, stride }
    }

    /// The same rows from element `start` on.
    pub(crate) fn from(self, start: usize) -> Self {
        Self { values: &self.values[start..], stride: self.stride }
    }

    /// The same rows without the first `n`.
    pub(crate) fn skip_rows(self, n: usize) -> Self {
        self.from(n * self.stride)
    }

    /// Checks that rows `0..n_rows` have `n_columns` values.
    fn check(self, n_rows: usize, n_columns: usize, what: &str) {
        let needed = if n_rows == 0 { 0 } else { (n_rows - 1) * self.stride + n_columns };
        assert!(needed <= self.values.len(), "{what}: {needed} values of {}", self.values.len());
    }
}

/// Where a product writes: rows of a buffer from element `start` on. Threads write different columns of the same rows.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) parts: &'a Parts<'a, f32>,
    pub(crate) start: usize,
    pub(crate) stride: usize,
}

impl Target<'_> {
    /// The same rows without the first `n`.
    pub(crate) fn skip_rows(self, n: usize) -> Self {
        Self { start: self.start + n * self.stride, ..self }
    }
}

/// How the left factor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// `a(i, j) = a[i, j]`.
    Rows,
    /// `a(i, j) = a[j, i]`: the sum goes along its rows.
    Columns,
}

/// The right factor: vector `w` of row `j` is at `j * stride + w * vector_stride`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panel<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) vector_stride: usize,
}

impl<'a> Panel<'a> {
    /// Rows of a matrix.
    pub(crate) fn of_rows(rows: Rows<'a>) -> Self {
        Self { values: rows.values, stride: rows.stride, vector_stride: LANES }
    }
}

/// What becomes of the values that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sum {
    /// They are overwritten.
    New,
    /// The chain of sums goes on from them.
    GoesOn,
    /// The product, a chain of its own, is added to them: for sums so long that small terms would be lost in one chain.
    Added,
}

impl Sum {
    /// Goes on, or begins.
    pub(crate) fn goes_on(accumulate: bool) -> Self {
        if accumulate { Self::GoesOn } else { Self::New }
    }
}

/// Sizes of a product: `c` is `[m, n]`, the sum has `k` terms; `n` is a multiple of 16.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
}

/// Computes one product on this thread.
///
/// # Safety
/// The processor must have the instruction set, and nobody else may use the elements of `c` meanwhile.
///
/// # Panics
/// When a factor is smaller than `size` says.
#[inline(always)]
pub(crate) unsafe fn product<S: Simd>(
    size: Size,
    left: Left,
    a: Rows<'_>,
    p: Panel<'_>,
    c: Target<'_>,
    sum: Sum,
) {
    let Size { m, n, k } = size;
    if m == 0 || n == 0 {
        return;
    }
    assert!(n.is_multiple_of(LANES), "{n} columns");
    match left {
        Left::Rows => a.check(m, k, "left factor"),
        Left::Columns => a.check(k, m, "left factor"),
    }
    if k > 0 {
        let last = (k - 1) * p.stride + (n / LANES - 1) * p.vector_stride + LANES;
        assert!(last <= p.values.len(), "panel: {last} values of {}", p.values.len());
    }
    let out = c.parts.at(c.start, (m - 1) * c.stride + n);
    // SAFETY: all that the blocks touch lies within the bounds checked above.
    unsafe {
        match left {
            Left::Rows => blocks::<S, false>(size, a, p, out, c.stride, sum),
            Left::Columns => blocks::<S, true>(size, a, p, out, c.stride, sum),
        }
    }
}

#[inline(always)]
unsafe fn blocks<S: Simd, const COLUMNS: bool>(
    size: Size,
    a: Rows<'_>,
    p: Panel<'_>,
    out: *mut f32,
    out_stride: usize,
    sum: Sum,
) {
    let n_vectors = size.n / LANES;
    let mut vector = 0;
    macro_rules! vectors {
        ($w:literal) => {
            while S::PRODUCT_BLOCK.1 >= $w && n_vectors - vector >= $w {
                let mut row = 0;
                macro_rules! rows {
                    ($m:literal) => {
                        while S::PRODUCT_BLOCK.0 >= $m && size.m - row >= $m {
                            let first = if COLUMNS { row } else { row * a.stride };
                            // SAFETY: rows and vectors are within the product.
                            unsafe {
                                micro::<S, COLUMNS, $m, $w>(
                                    size.k,
                                    a.values.as_ptr().add(first),
                                    a.stride,
                                    (p.values.as_ptr().add(vector * p.vector_stride), p),
                                    out.add(row * out_stride + vector * LANES),
                                    out_stride,
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
unsafe fn micro<S: Simd, const COLUMNS: bool, const M: usize, const W: usize>(
    k: usize,
    a: *const f32,
    a_stride: usize,
    (panel, p): (*const f32, Panel<'_>),
    out: *mut f32,
    out_stride: usize,
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
        for j in 0..k {
            let mut values = [S::splat(0.0); W];
            for (w, value) in values.iter_mut().enumerate() {
                *value = S::load(panel.add(j * p.stride + w * p.vector_stride));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let at = if COLUMNS { j * a_stride + r } else { r * a_stride + j };
                let x = S::splat(*a.add(at));
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum = S::fma(x, value, *sum);
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
