//! Linears with frozen weights, each with the second half of its adapter in the same chain of sums:
//! `y (+)= W x + bias + B v`. The backward half is [`super::linear_back`].
#![expect(unsafe_code, reason = "vector kernels over panels")]

use std::ops::Range;

use crate::cpu::{
    Isa,
    packed::PackedMatrix,
    simd::{Bf16, Bf16Kernel, Kernel, LANES, Simd, Tiles},
};

use super::{
    panel::{forward_pairs, forward_panel},
    product::{Left, Panel, Rows, Size, Sum, Target, product},
    product_bf16::{PairPanel, PairRows, Terms, product_bf16},
};

/// The adapter's second half: `[T, rank]` times `[rank, n]`; `X` is [`Rows`] or [`PairRows`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct LowRank<X> {
    /// With [`PairRows`] an even number.
    pub(crate) rank: usize,
    /// `v` or `dv`, scaled.
    pub(crate) v: X,
    /// `Bᵀ` or `A`.
    pub(crate) factor: X,
}

/// What a linear reads in one precision: rows from row 0 of the batch on, and its adapter's half.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factors<X> {
    /// `x` or `dy`.
    pub(crate) x: X,
    pub(crate) low_rank: Option<LowRank<X>>,
}

/// The same as its precision wants them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Inputs<'a> {
    F32(Factors<Rows<'a>>),
    Bf16(Factors<PairRows<'a>>),
}

/// Some rows of one panel of a linear; `F` is [`Factors`], or [`Inputs`] before the precision is known.
pub(crate) struct LinearPanel<'a, F> {
    pub(crate) matrix: &'a PackedMatrix,
    /// At most two.
    pub(crate) tiles: Range<usize>,
    pub(crate) rows: Range<usize>,
    pub(crate) factors: F,
    /// Of all output features, padded to whole tiles.
    pub(crate) bias: Option<&'a [f32]>,
    /// `start` is where the panel's first feature is in row 0.
    pub(crate) out: Target<'a>,
    pub(crate) accumulate: bool,
    pub(crate) scratch: &'a mut [f32],
}

impl<'a> LinearPanel<'a, Inputs<'a>> {
    /// Runs it in its precision.
    pub(crate) fn run(self, isa: Isa) {
        let Self { matrix, tiles, rows, factors, bias, out, accumulate, scratch } = self;
        macro_rules! with {
            ($factors:expr) => {
                LinearPanel {
                    matrix,
                    tiles,
                    rows,
                    factors: $factors,
                    bias,
                    out,
                    accumulate,
                    scratch,
                }
            };
        }
        match factors {
            Inputs::F32(factors) => isa.run(with!(factors)),
            Inputs::Bf16(factors) => isa.run_bf16(with!(factors)),
        }
    }
}

impl<'a, F> LinearPanel<'a, F> {
    fn size(&self) -> Size {
        Size { m: self.rows.len(), n: self.tiles.len() * LANES, k: self.matrix.n_in }
    }

    fn target(&self) -> Target<'a> {
        self.out.skip_rows(self.rows.start)
    }

    /// What comes before the product; returns how that goes on.
    #[inline(always)]
    unsafe fn begin<S: Simd>(&self) -> Sum {
        let Some(bias) = self.bias else { return Sum::goes_on(self.accumulate) };
        let (size, column) = (self.size(), self.tiles.start * LANES);
        // SAFETY: the caller's.
        unsafe {
            let bias = &bias[column..column + size.n];
            put_bias::<S>(bias, size.m, self.target(), self.accumulate);
        }
        Sum::GoesOn
    }
}

impl LowRank<Rows<'_>> {
    /// Adds the adapter's second half to `size.m` rows from `first_row` on, of `size.n` columns from `column` on.
    ///
    /// # Safety
    /// As [`product`].
    #[inline(always)]
    pub(super) unsafe fn add<S: Simd>(
        self,
        size: Size,
        first_row: usize,
        column: usize,
        out: Target<'_>,
        sum: Sum,
    ) {
        let (size, v) = (Size { k: self.rank, ..size }, self.v.skip_rows(first_row));
        // SAFETY: the caller's.
        unsafe {
            let panel = Panel::of_rows(self.factor.from(column));
            product::<S>(size, Left::Rows, v, panel, out, sum);
        }
    }
}

impl<'a> LowRank<PairRows<'a>> {
    /// The terms of the adapter's second half of rows from `first_row` on, of columns from `column` on.
    pub(super) fn terms(self, first_row: usize, column: usize) -> Terms<'a> {
        let Self { rank, v, factor } = self;
        Terms { k: rank, a: v.skip_rows(first_row), p: PairPanel::of_rows(factor.from(column)) }
    }
}

impl<'a> Kernel for LinearPanel<'a, Factors<Rows<'a>>> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (size, out, column) = (self.size(), self.target(), self.tiles.start * LANES);
        let Factors { x, low_rank } = self.factors;
        // SAFETY: the instruction set is the caller's; these columns of these rows are this task's alone.
        unsafe {
            let sum = self.begin::<S>();
            let panel = forward_panel::<S>(self.matrix, self.tiles, self.scratch);
            product::<S>(size, Left::Rows, x.skip_rows(self.rows.start), panel, out, sum);
            if let Some(low_rank) = low_rank {
                low_rank.add::<S>(size, self.rows.start, column, out, Sum::GoesOn);
            }
        }
    }
}

impl<'a> Bf16Kernel for LinearPanel<'a, Factors<PairRows<'a>>> {
    #[inline(always)]
    unsafe fn run<S: Bf16, T: Tiles>(self) {
        let (Size { m, n, k }, out) = (self.size(), self.target());
        let (first_row, column) = (self.rows.start, self.tiles.start * LANES);
        let Factors { x, low_rank } = self.factors;
        // SAFETY: the instruction set is the caller's; these columns of these rows are this task's alone.
        unsafe {
            let sum = self.begin::<S>();
            let p = forward_pairs::<S>(self.matrix, self.tiles, self.scratch);
            let of_base = Terms { k, a: x.skip_rows(first_row), p };
            let of_adapter = low_rank.map_or(of_base, |own| own.terms(first_row, column));
            let terms = &[of_base, of_adapter][..=usize::from(low_rank.is_some())];
            product_bf16::<S, T>((m, n), terms, out, sum);
        }
    }
}

#[inline(always)]
unsafe fn put_bias<S: Simd>(bias: &[f32], n_rows: usize, out: Target<'_>, add: bool) {
    for row in 0..n_rows {
        let to = out.parts.at(out.start + row * out.stride, bias.len());
        for (i, bias) in bias.as_chunks::<LANES>().0.iter().enumerate() {
            // SAFETY: within the part, which is the caller's alone.
            unsafe {
                let to = to.add(i * LANES);
                let bias = S::load(bias.as_ptr());
                S::store(to, if add { S::add(S::load(to), bias) } else { bias });
            }
        }
    }
}
