//! The backward half of linears with frozen weights, each with the first half of its adapter in the same chain of sums:
//! `dx (+)= Wᵀ dy + Aᵀ dv`.
#![expect(unsafe_code, reason = "vector kernels over panels")]

use std::ops::Range;

use crate::{
    cpu::{
        Isa,
        packed::{BLOCK, PackedMatrix},
        simd::{Bf16, Bf16Kernel, Kernel, LANES, Simd, Tiles},
        threads::Parts,
    },
    site::Site,
};

use super::{
    dropout::Masks,
    linear::{Factors, Inputs},
    panel::{PANEL, backward_pairs, backward_panel},
    product::{Left, Rows, Size, Sum, Target, product},
    product_bf16::{PairRows, Terms, product_bf16},
};

/// Rows of an adapter's half that are masked at a time.
const MASKED_ROWS: usize = 12;

/// Dropout on the inputs that the adapter saw.
#[derive(Clone, Copy)]
pub(crate) struct Dropped<'a> {
    pub(crate) masks: Masks,
    pub(crate) site: Site,
    /// Of every row of the batch.
    pub(crate) places: &'a [(u32, u32)],
}

/// Some rows of 32 input features of a linear's backward half; `F` as for [`super::linear::LinearPanel`].
pub(crate) struct LinearBackPanel<'a, F> {
    pub(crate) matrix: &'a PackedMatrix,
    /// Output features that are summed over.
    pub(crate) tiles: Range<usize>,
    /// Input features `32 * block..`.
    pub(crate) block: usize,
    pub(crate) rows: Range<usize>,
    /// From the first of the output features on.
    pub(crate) factors: F,
    pub(crate) dropped: Option<Dropped<'a>>,
    /// `start` is input feature 0 in row 0.
    pub(crate) dx: Target<'a>,
    pub(crate) sum: Sum,
    pub(crate) scratch: &'a mut [f32],
}

impl<'a> LinearBackPanel<'a, Inputs<'a>> {
    /// Runs it in its precision.
    pub(crate) fn run(self, isa: Isa) {
        let Self { matrix, tiles, block, rows, factors, dropped, dx, sum, scratch } = self;
        macro_rules! with {
            ($factors:expr) => {
                LinearBackPanel {
                    matrix,
                    tiles,
                    block,
                    rows,
                    factors: $factors,
                    dropped,
                    dx,
                    sum,
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

impl<'a, F> LinearBackPanel<'a, F> {
    fn size(&self) -> Size {
        Size { m: self.rows.len(), n: PANEL, k: self.tiles.len() * LANES }
    }

    fn target(&self) -> Target<'a> {
        let rows = self.dx.skip_rows(self.rows.start);
        Target { start: rows.start + self.block * BLOCK, ..rows }
    }
}

impl<'a> Kernel for LinearBackPanel<'a, Factors<Rows<'a>>> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (size, out, column) = (self.size(), self.target(), self.block * BLOCK);
        let Factors { x: dy, low_rank } = self.factors;
        // SAFETY: the instruction set is the caller's; these columns of these rows are this task's alone.
        unsafe {
            let panel = backward_panel::<S>(self.matrix, self.block, self.tiles, self.scratch);
            product::<S>(size, Left::Rows, dy.skip_rows(self.rows.start), panel, out, self.sum);
            let Some(low_rank) = low_rank else { return };
            let Some(dropped) = self.dropped else {
                return low_rank.add::<S>(size, self.rows.start, column, out, Sum::GoesOn);
            };
            for (rows, mut delta) in blocks(self.rows.clone()) {
                let parts = Parts::new(&mut delta);
                let aside = Target { parts: &parts, start: 0, stride: PANEL };
                let size = Size { m: rows.len(), ..size };
                low_rank.add::<S>(size, rows.start, column, aside, Sum::New);
                let first = rows.start - self.rows.start;
                add_masked(dropped, rows, column, &delta, out.skip_rows(first));
            }
        }
    }
}

impl<'a> Bf16Kernel for LinearBackPanel<'a, Factors<PairRows<'a>>> {
    #[inline(always)]
    unsafe fn run<S: Bf16, T: Tiles>(self) {
        let (Size { m, n, k }, out) = (self.size(), self.target());
        let (first_row, column) = (self.rows.start, self.block * BLOCK);
        let Factors { x: dy, low_rank } = self.factors;
        // SAFETY: the instruction set is the caller's; these columns of these rows are this task's alone.
        unsafe {
            let p = backward_pairs::<S>(self.matrix, self.block, self.tiles, self.scratch);
            let of_base = Terms { k, a: dy.skip_rows(first_row), p };
            let at_once = low_rank.filter(|_| self.dropped.is_none());
            let of_adapter = at_once.map_or(of_base, |own| own.terms(first_row, column));
            let terms = &[of_base, of_adapter][..=usize::from(at_once.is_some())];
            product_bf16::<S, T>((m, n), terms, out, self.sum);
            let (Some(low_rank), Some(dropped)) = (low_rank, self.dropped) else { return };
            for (rows, mut delta) in blocks(self.rows) {
                let parts = Parts::new(&mut delta);
                let aside = Target { parts: &parts, start: 0, stride: PANEL };
                let terms = [low_rank.terms(rows.start, column)];
                product_bf16::<S, T>((rows.len(), n), &terms, aside, Sum::New);
                let first = rows.start - first_row;
                add_masked(dropped, rows, column, &delta, out.skip_rows(first));
            }
        }
    }
}

/// Rows, some at a time, each time with room for what is to be masked of them.
fn blocks(rows: Range<usize>) -> impl Iterator<Item = (Range<usize>, [f32; MASKED_ROWS * PANEL])> {
    let end = rows.end;
    let block = move |start: usize| start..end.min(start + MASKED_ROWS);
    rows.step_by(MASKED_ROWS).map(move |start| (block(start), [0.0; MASKED_ROWS * PANEL]))
}

/// Adds `mask * delta` to 32 input features of some rows, the first of which is row 0 of `out`.
fn add_masked(
    dropped: Dropped<'_>,
    rows: Range<usize>,
    column: usize,
    delta: &[f32],
    out: Target<'_>,
) {
    let mut factors = [0.0; PANEL];
    let places = &dropped.places[rows];
    for ((row, &place), delta) in places.iter().enumerate().zip(delta.chunks_exact(PANEL)) {
        dropped.masks.factors(place, dropped.site, column, &mut factors);
        let to = out.parts.at(out.start + row * out.stride, PANEL);
        for (i, (delta, factor)) in delta.iter().zip(&factors).enumerate() {
            // SAFETY: within the part, which is the caller's alone.
            unsafe { *to.add(i) += delta * factor };
        }
    }
}
