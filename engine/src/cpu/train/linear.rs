//! Linears with frozen weights, forward and backward, each with the second half of its adapter in the same chain of
//! sums: `y (+)= W x + bias + B v` and `dx (+)= Wᵀ dy + Aᵀ dv`.
#![expect(unsafe_code, reason = "vector kernels over panels")]

use std::ops::Range;

use crate::{
    cpu::{
        Isa,
        packed::{BLOCK, PackedMatrix},
        simd::{Bf16, Bf16Kernel, Kernel, LANES, Simd, Tiles},
    },
    site::Site,
};

use super::{
    dropout::Masks,
    panel::{PANEL, backward_pairs, backward_panel, forward_pairs, forward_panel},
    product::{Left, Panel, Rows, Size, Sum, Target, product},
    product_bf16::{PairRows, product_bf16},
};

/// Inputs of a linear as its precision wants them, from row 0 of the batch on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Inputs<'a> {
    F32(Rows<'a>),
    Bf16(PairRows<'a>),
}

/// The adapter's second half: `[T, rank]` times `[rank, n]`.
#[derive(Clone, Copy)]
pub(crate) struct LowRank<'a> {
    pub(crate) rank: usize,
    /// `v` or `dv`, scaled.
    pub(crate) v: Rows<'a>,
    /// `Bᵀ` or `A`.
    pub(crate) factor: Rows<'a>,
}

/// Some rows of one panel of a linear; `X` is [`Rows`], [`PairRows`], or [`Inputs`] before it is known.
pub(crate) struct LinearPanel<'a, X> {
    pub(crate) matrix: &'a PackedMatrix,
    /// At most two.
    pub(crate) tiles: Range<usize>,
    pub(crate) rows: Range<usize>,
    pub(crate) x: X,
    /// Of all output features, padded to whole tiles.
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) low_rank: Option<LowRank<'a>>,
    /// `start` is where the panel's first feature is in row 0.
    pub(crate) out: Target<'a>,
    pub(crate) accumulate: bool,
    pub(crate) scratch: &'a mut [f32],
}

impl<'a> LinearPanel<'a, Inputs<'a>> {
    /// Runs it in its precision.
    pub(crate) fn run(self, isa: Isa) {
        let Self { matrix, tiles, rows, x, bias, low_rank, out, accumulate, scratch } = self;
        macro_rules! with {
            ($x:expr) => {
                LinearPanel { matrix, tiles, rows, x: $x, bias, low_rank, out, accumulate, scratch }
            };
        }
        match x {
            Inputs::F32(x) => isa.run(with!(x)),
            Inputs::Bf16(x) => isa.run_bf16(with!(x)),
        }
    }
}

impl<'a, X> LinearPanel<'a, X> {
    fn size(&self) -> Size {
        Size { m: self.rows.len(), n: self.tiles.len() * LANES, k: self.matrix.n_in }
    }

    fn target(&self) -> Target<'a> {
        Target { start: self.out.start + self.rows.start * self.out.stride, ..self.out }
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

/// Adds the adapter's second half to rows `rows` of `size.n` columns from `column` on.
#[inline(always)]
unsafe fn add_low_rank<S: Simd>(
    low_rank: LowRank<'_>,
    size: Size,
    first_row: usize,
    column: usize,
    out: Target<'_>,
) {
    let LowRank { rank, v, factor } = low_rank;
    let (size, v) = (Size { k: rank, ..size }, v.from(first_row * v.stride));
    // SAFETY: the caller's.
    unsafe {
        let panel = Panel::of_rows(factor.from(column));
        product::<S>(size, Left::Rows, v, panel, out, Sum::GoesOn);
    }
}

impl<'a> Kernel for LinearPanel<'a, Rows<'a>> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (size, out, column) = (self.size(), self.target(), self.tiles.start * LANES);
        // SAFETY: the instruction set is the caller's; these columns of these rows are this task's alone.
        unsafe {
            let sum = self.begin::<S>();
            let panel = forward_panel::<S>(self.matrix, self.tiles, self.scratch);
            let x = self.x.from(self.rows.start * self.x.stride);
            product::<S>(size, Left::Rows, x, panel, out, sum);
            if let Some(low_rank) = self.low_rank {
                add_low_rank::<S>(low_rank, size, self.rows.start, column, out);
            }
        }
    }
}

impl<'a> Bf16Kernel for LinearPanel<'a, PairRows<'a>> {
    #[inline(always)]
    unsafe fn run<S: Bf16, T: Tiles>(self) {
        let (size, out, column) = (self.size(), self.target(), self.tiles.start * LANES);
        // SAFETY: the instruction set is the caller's; these columns of these rows are this task's alone.
        unsafe {
            let sum = self.begin::<S>();
            let panel = forward_pairs::<S>(self.matrix, self.tiles, self.scratch);
            product_bf16::<S, T>(size, self.x.skip_rows(self.rows.start), panel, out, sum);
            if let Some(low_rank) = self.low_rank {
                add_low_rank::<S>(low_rank, size, self.rows.start, column, out);
            }
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

/// Dropout on the inputs that the adapter saw.
#[derive(Clone, Copy)]
pub(crate) struct Dropped<'a> {
    pub(crate) masks: Masks,
    pub(crate) site: Site,
    /// Of every row of the batch.
    pub(crate) places: &'a [(u32, u32)],
}

/// Some rows of 32 input features of a linear's backward half; `X` as for [`LinearPanel`].
pub(crate) struct LinearBackPanel<'a, X> {
    pub(crate) matrix: &'a PackedMatrix,
    /// Output features that are summed over.
    pub(crate) tiles: Range<usize>,
    /// Input features `32 * block..`.
    pub(crate) block: usize,
    pub(crate) rows: Range<usize>,
    /// From the first of the output features on.
    pub(crate) dy: X,
    pub(crate) low_rank: Option<LowRank<'a>>,
    pub(crate) dropped: Option<Dropped<'a>>,
    /// `start` is input feature 0 in row 0.
    pub(crate) dx: Target<'a>,
    pub(crate) sum: Sum,
    pub(crate) scratch: &'a mut [f32],
}

impl<'a> LinearBackPanel<'a, Inputs<'a>> {
    /// Runs it in its precision.
    pub(crate) fn run(self, isa: Isa) {
        let Self { matrix, tiles, block, rows, dy, low_rank, dropped, dx, sum, scratch } = self;
        macro_rules! with {
            ($dy:expr) => {
                LinearBackPanel {
                    matrix,
                    tiles,
                    block,
                    rows,
                    dy: $dy,
                    low_rank,
                    dropped,
                    dx,
                    sum,
                    scratch,
                }
            };
        }
        match dy {
            Inputs::F32(dy) => isa.run(with!(dy)),
            Inputs::Bf16(dy) => isa.run_bf16(with!(dy)),
        }
    }
}

impl<'a, X> LinearBackPanel<'a, X> {
    fn size(&self) -> Size {
        Size { m: self.rows.len(), n: PANEL, k: self.tiles.len() * LANES }
    }

    fn target(&self) -> Target<'a> {
        let start = self.dx.start + self.rows.start * self.dx.stride + self.block * BLOCK;
        Target { start, ..self.dx }
    }
}

/// What a backward half adds of the adapter.
#[inline(always)]
unsafe fn add_low_rank_back<S: Simd>(
    (low_rank, dropped): (LowRank<'_>, Option<Dropped<'_>>),
    size: Size,
    rows: Range<usize>,
    column: usize,
    out: Target<'_>,
) {
    // SAFETY: the caller's.
    unsafe {
        let Some(dropped) = dropped else {
            return add_low_rank::<S>(low_rank, size, rows.start, column, out);
        };
        let LowRank { rank, v, factor } = low_rank;
        let (v, factor) = (v.from(rows.start * v.stride), factor.from(column));
        let places = &dropped.places[rows];
        add_dropped::<S>(dropped, places, column, LowRank { rank, v, factor }, out);
    }
}

impl<'a> Kernel for LinearBackPanel<'a, Rows<'a>> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (size, out, column) = (self.size(), self.target(), self.block * BLOCK);
        // SAFETY: the instruction set is the caller's; these columns of these rows are this task's alone.
        unsafe {
            let panel = backward_panel::<S>(self.matrix, self.block, self.tiles, self.scratch);
            let dy = self.dy.from(self.rows.start * self.dy.stride);
            product::<S>(size, Left::Rows, dy, panel, out, self.sum);
            if let Some(low_rank) = self.low_rank {
                add_low_rank_back::<S>((low_rank, self.dropped), size, self.rows, column, out);
            }
        }
    }
}

impl<'a> Bf16Kernel for LinearBackPanel<'a, PairRows<'a>> {
    #[inline(always)]
    unsafe fn run<S: Bf16, T: Tiles>(self) {
        let (size, out, column) = (self.size(), self.target(), self.block * BLOCK);
        // SAFETY: the instruction set is the caller's; these columns of these rows are this task's alone.
        unsafe {
            let panel = backward_pairs::<S>(self.matrix, self.block, self.tiles, self.scratch);
            product_bf16::<S, T>(size, self.dy.skip_rows(self.rows.start), panel, out, self.sum);
            if let Some(low_rank) = self.low_rank {
                add_low_rank_back::<S>((low_rank, self.dropped), size, self.rows, column, out);
            }
        }
    }
}

/// Adds `mask * (Aᵀ dv)` to 32 input features of some rows.
#[inline(always)]
unsafe fn add_dropped<S: Simd>(
    dropped: Dropped<'_>,
    places: &[(u32, u32)],
    column: usize,
    low_rank: LowRank<'_>,
    out: Target<'_>,
) {
    let (mut delta, mut factors) = ([0.0; PANEL], [0.0; PANEL]);
    for (row, &place) in places.iter().enumerate() {
        let parts = crate::cpu::threads::Parts::new(&mut delta);
        let target = Target { parts: &parts, start: 0, stride: PANEL };
        let size = Size { m: 1, n: PANEL, k: low_rank.rank };
        let v = low_rank.v.from(row * low_rank.v.stride);
        // SAFETY: the instruction set is the caller's; `delta` is this function's.
        unsafe {
            product::<S>(size, Left::Rows, v, Panel::of_rows(low_rank.factor), target, Sum::New);
        }
        dropped.masks.factors(place, dropped.site, column, &mut factors);
        let to = out.parts.at(out.start + row * out.stride, PANEL);
        for (i, (delta, factor)) in delta.iter().zip(&factors).enumerate() {
            // SAFETY: within the part, which is the caller's alone.
            unsafe { *to.add(i) += delta * factor };
        }
    }
}
