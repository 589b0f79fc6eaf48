//! Linears with frozen weights, forward and backward, each with the second half of its adapter in the same chain of
//! sums: `y (+)= W x + bias + B v` and `dx (+)= Wᵀ dy + Aᵀ dv`.
#![expect(unsafe_code, reason = "vector kernels over panels")]

use std::ops::Range;

use crate::{
    cpu::{
        packed::{BLOCK, PackedMatrix},
        simd::{Kernel, LANES, Simd},
    },
    site::Site,
};

use super::{
    dropout::Masks,
    panel::{PANEL, backward_panel, forward_panel},
    product::{Left, Panel, Rows, Size, Target, product},
};

/// The adapter's second half: `[T, rank]` times `[rank, n]`.
#[derive(Clone, Copy)]
pub(crate) struct LowRank<'a> {
    pub(crate) rank: usize,
    /// `v` or `dv`, scaled.
    pub(crate) v: Rows<'a>,
    /// `Bᵀ` or `A`.
    pub(crate) factor: Rows<'a>,
}

/// Some rows of one panel of a linear.
pub(crate) struct LinearPanel<'a> {
    pub(crate) matrix: &'a PackedMatrix,
    /// At most two.
    pub(crate) tiles: Range<usize>,
    pub(crate) rows: Range<usize>,
    pub(crate) x: Rows<'a>,
    /// Of all output features, padded to whole tiles.
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) low_rank: Option<LowRank<'a>>,
    /// `start` is where the panel's first feature is in row 0.
    pub(crate) out: Target<'a>,
    pub(crate) accumulate: bool,
    pub(crate) scratch: &'a mut [f32],
}

impl Kernel for LinearPanel<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { matrix, tiles, rows, x, bias, low_rank, out, mut accumulate, scratch } = self;
        let column = tiles.start * LANES;
        let size = Size { m: rows.len(), n: tiles.len() * LANES, k: matrix.n_in };
        let out = Target { start: out.start + rows.start * out.stride, ..out };
        // SAFETY: the instruction set is the caller's; these columns of these rows are this task's alone.
        unsafe {
            if let Some(bias) = bias {
                put_bias::<S>(&bias[column..column + size.n], size.m, out, accumulate);
                accumulate = true;
            }
            let panel = forward_panel::<S>(matrix, tiles, scratch);
            let x = x.from(rows.start * x.stride);
            product::<S>(size, Left::Rows, x, panel, out, accumulate);
            if let Some(LowRank { rank, v, factor }) = low_rank {
                let panel = Panel::of_rows(factor.from(column));
                let size = Size { k: rank, ..size };
                product::<S>(size, Left::Rows, v.from(rows.start * v.stride), panel, out, true);
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

/// Some rows of 32 input features of a linear's backward half.
pub(crate) struct LinearBackPanel<'a> {
    pub(crate) matrix: &'a PackedMatrix,
    /// Output features that are summed over.
    pub(crate) tiles: Range<usize>,
    /// Input features `32 * block..`.
    pub(crate) block: usize,
    pub(crate) rows: Range<usize>,
    /// From the first of the output features on.
    pub(crate) dy: Rows<'a>,
    pub(crate) low_rank: Option<LowRank<'a>>,
    pub(crate) dropped: Option<Dropped<'a>>,
    /// `start` is input feature 0 in row 0.
    pub(crate) dx: Target<'a>,
    pub(crate) accumulate: bool,
    pub(crate) scratch: &'a mut [f32],
}

impl Kernel for LinearBackPanel<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { matrix, tiles, block, rows, dy, low_rank, dropped, dx, accumulate, scratch } =
            self;
        let column = block * BLOCK;
        let size = Size { m: rows.len(), n: PANEL, k: tiles.len() * LANES };
        let out = Target { start: dx.start + rows.start * dx.stride + column, ..dx };
        // SAFETY: the instruction set is the caller's; these columns of these rows are this task's alone.
        unsafe {
            let panel = backward_panel::<S>(matrix, block, tiles, scratch);
            let dy = dy.from(rows.start * dy.stride);
            product::<S>(size, Left::Rows, dy, panel, out, accumulate);
            let Some(LowRank { rank, v, factor }) = low_rank else { return };
            let (size, v) = (Size { k: rank, ..size }, v.from(rows.start * v.stride));
            let factor = factor.from(column);
            match dropped {
                None => {
                    product::<S>(size, Left::Rows, v, Panel::of_rows(factor), out, true);
                }
                Some(dropped) => {
                    let places = &dropped.places[rows];
                    add_dropped::<S>(dropped, places, column, LowRank { rank, v, factor }, out);
                }
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
            product::<S>(size, Left::Rows, v, Panel::of_rows(low_rank.factor), target, false);
        }
        dropped.masks.factors(place, dropped.site, column, &mut factors);
        let to = out.parts.at(out.start + row * out.stride, PANEL);
        for (i, (delta, factor)) in delta.iter().zip(&factors).enumerate() {
            // SAFETY: within the part, which is the caller's alone.
            unsafe { *to.add(i) += delta * factor };
        }
    }
}
