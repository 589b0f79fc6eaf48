//! The trained factors: their first halves, and their gradients. `v = s A x`, `dv = s Bᵀ dy`, `dA += dvᵀ x`,
//! `dB += dyᵀ v`; what is stored is scaled by `s` already.
#![expect(unsafe_code, reason = "vector kernels over strided rows")]

use std::ops::Range;

use crate::cpu::{
    simd::{Kernel, LANES, Simd},
    threads::Parts,
};

use super::product::{Left, Panel, Rows, Size, Sum, Target, product};

/// Columns that a rank takes.
pub(crate) const fn padded(rank: usize) -> usize {
    rank.next_multiple_of(LANES)
}

/// `out[r, c] = scale Σ_k x[r, k] factor[k, c]` for some rows: `A x` or `Bᵀ dy`.
pub(crate) struct ShrinkRows<'a> {
    pub(crate) rows: Range<usize>,
    /// Terms of the sum.
    pub(crate) n_in: usize,
    pub(crate) x: Rows<'a>,
    /// `[n_in, padded rank]`.
    pub(crate) factor: Rows<'a>,
    pub(crate) lora_scale: f32,
    pub(crate) out: Target<'a>,
}

impl Kernel for ShrinkRows<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { rows, n_in, x, factor, lora_scale, out } = self;
        let size = Size { m: rows.len(), n: factor.stride, k: n_in };
        let out = out.skip_rows(rows.start);
        // SAFETY: the instruction set is the caller's; these rows are this task's alone.
        unsafe {
            let x = x.skip_rows(rows.start);
            product::<S>(size, Left::Rows, x, Panel::of_rows(factor), out, Sum::New);
            for row in 0..size.m {
                let to = out.parts.at(out.start + row * out.stride, size.n);
                for at in (0..size.n).step_by(LANES) {
                    let value = S::mul(S::load(to.add(at)), S::splat(lora_scale));
                    S::store(to.add(at), value);
                }
            }
        }
    }
}

/// Which gradient, and how it lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Factor {
    /// `[R, K]`.
    A,
    /// `[N, R]`.
    B,
}

/// Columns of a gradient's panel: rows of `x` are read some cache lines at a time.
pub(crate) const GRADIENT_COLUMNS: usize = 6 * LANES;
/// Rows of a batch that a panel takes at a time: what is read of them stays near for all columns.
pub(crate) const GRADIENT_ROWS: usize = 64;

/// Values of scratch that a panel of this rank needs: `[rank, 96]`, and in bf16 some rows of `x` by twos.
pub(crate) const fn gradient_values(rank: usize) -> usize {
    (rank + GRADIENT_ROWS / 2) * GRADIENT_COLUMNS
}

/// `gradient[r, c] += Σ_t v[t, r] x[t, c]` for at most 96 columns `c`, over all rows of the batch; `V` is [`Rows`], or
/// [`super::lora_bf16::ByTwos`].
pub(crate) struct GradientPanel<'a, V> {
    pub(crate) factor: Factor,
    pub(crate) rank: usize,
    /// Features of the factor's long side.
    pub(crate) n_features: usize,
    pub(crate) columns: Range<usize>,
    pub(crate) n_rows: usize,
    /// `[T, R]`: `dv` for `A`, `v` for `B`.
    pub(crate) v: V,
    /// `[T, features]`: `x` for `A`, `dy` for `B`; whole vectors can be read.
    pub(crate) x: Rows<'a>,
    pub(crate) gradient: &'a Parts<'a, f32>,
    /// [`gradient_values`] at least.
    pub(crate) scratch: &'a mut [f32],
}

impl<V> GradientPanel<'_, V> {
    /// Where element `r`, `c` is, seen from the gradient's start.
    fn at(&self, r: usize, c: usize) -> usize {
        match self.factor {
            Factor::A => r * self.n_features + c,
            Factor::B => c * self.rank + r,
        }
    }

    /// Columns of whole vectors.
    pub(super) fn n_padded(&self) -> usize {
        self.columns.len().next_multiple_of(LANES)
    }

    /// Copies what the gradient is so far to scratch, `[rank, 96]`.
    pub(super) fn copy_in(&self, scratch: &mut [f32]) {
        for (r, row) in scratch.chunks_exact_mut(GRADIENT_COLUMNS).enumerate() {
            for c in self.columns.clone() {
                // SAFETY: these columns of the gradient are this task's alone.
                row[c - self.columns.start] = unsafe { *self.gradient.at(self.at(r, c), 1) };
            }
            row[self.columns.len()..].fill(0.0);
        }
    }

    /// Copies it back.
    pub(super) fn copy_out(&self, scratch: &[f32]) {
        for (r, row) in scratch.chunks_exact(GRADIENT_COLUMNS).enumerate() {
            for c in self.columns.clone() {
                // SAFETY: as above.
                unsafe { *self.gradient.at(self.at(r, c), 1) = row[c - self.columns.start] };
            }
        }
    }
}

impl Kernel for GradientPanel<'_, Rows<'_>> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let scratch = &mut std::mem::take(&mut self.scratch)[..self.rank * GRADIENT_COLUMNS];
        self.copy_in(scratch);
        let x = self.x.from(self.columns.start);
        for first in (0..self.n_rows).step_by(GRADIENT_ROWS) {
            let k = (self.n_rows - first).min(GRADIENT_ROWS);
            let size = Size { m: self.rank, n: self.n_padded(), k };
            let (v, x) = (self.v.skip_rows(first), x.skip_rows(first));
            let parts = Parts::new(scratch);
            let target = Target { parts: &parts, start: 0, stride: GRADIENT_COLUMNS };
            // SAFETY: the instruction set is the caller's; the scratch is this task's alone.
            unsafe {
                product::<S>(size, Left::Columns, v, Panel::of_rows(x), target, Sum::GoesOn);
            }
        }
        self.copy_out(scratch);
    }
}

/// Copies columns `columns` of `from`, `[n_rows, width]`, to the same place of `to`, whose rows are `stride` long, with
/// zeros in padding.
pub(crate) fn copy_padded(
    from: &[f32],
    width: usize,
    rows: Range<usize>,
    to: &Parts<'_, f32>,
    stride: usize,
) {
    for row in rows {
        // SAFETY: a row of the copy is in one task.
        let to = to.row(row, stride);
        match from.get(row * width..(row + 1) * width) {
            Some(from) => {
                to[..width].copy_from_slice(from);
                to[width..].fill(0.0);
            }
            None => to.fill(0.0),
        }
    }
}

/// Copies `from`, `[n_rows, width]`, turned round: rows `rows` of `to`, each `stride` long, are columns of `from`.
pub(crate) fn copy_turned(
    from: &[f32],
    width: usize,
    rows: Range<usize>,
    to: &Parts<'_, f32>,
    stride: usize,
) {
    for column in rows {
        let to = to.row(column, stride);
        to.fill(0.0);
        if column < width {
            for (to, from) in to.iter_mut().zip(from.iter().skip(column).step_by(width)) {
                *to = *from;
            }
        }
    }
}
