//! Causal attention over the sequences of a micro-batch, forward and backward (the derivative is that of
//! `FlashAttention`, arXiv 2205.14135, without its blocks over keys: a tile's scores are in memory as a whole).
//!
//! A task is one query head of a [`QueryTile`]: some consecutive rows of one sequence. With `s[i, j] = q_i · k_j`
//! (queries come scaled), `p[i, j] = exp(s[i, j] − lse_i)`:
//!
//! ```text
//! o_i = Σ_j p[i, j] v_j                ds[i, j] = p[i, j] (do_i · v_j − do_i · o_i)
//! dq_i = Σ_j ds[i, j] k_j              dk_j = Σ_i ds[i, j] q_i              dv_j = Σ_i p[i, j] do_i
//! ```
//! Keys and values also lie turned round, `[D, T]`, so that lanes are tokens where scores are computed.
#![expect(unsafe_code, reason = "vector kernels over strided rows")]

use crate::cpu::{
    simd::{Kernel, LANES, Simd},
    threads::Parts,
};

use super::product::{Left, Panel, Rows, Size, Sum, Target, product};

/// Rows of a query tile.
pub(crate) const QUERY_ROWS: usize = 24;

/// Consecutive rows of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueryTile {
    /// First row, in the micro-batch.
    pub(crate) start: usize,
    pub(crate) n_rows: usize,
    /// First row of the sequence.
    pub(crate) sequence_start: usize,
}

impl QueryTile {
    /// Tokens that its last row sees.
    pub(crate) fn n_keys(&self) -> usize {
        self.start + self.n_rows - self.sequence_start
    }

    /// Values of a row of scores.
    pub(crate) fn span(&self) -> usize {
        self.n_keys().next_multiple_of(LANES)
    }
}

/// One head's places in the buffers of a micro-batch.
#[derive(Clone, Copy)]
pub(crate) struct HeadView<'a> {
    pub(crate) dim: usize,
    /// From the head's first column on, as are the others.
    pub(crate) q: Rows<'a>,
    pub(crate) k: Rows<'a>,
    pub(crate) v: Rows<'a>,
    /// Keys turned round: row `d`, column `t`; at least 16 columns more than rows of the batch.
    pub(crate) k_turned: Rows<'a>,
    /// The same of values; only backward.
    pub(crate) v_turned: Rows<'a>,
}

/// Scores of a tile: `[n_rows, span]`, the padding arbitrary.
#[inline(always)]
unsafe fn scores<S: Simd>(
    tile: QueryTile,
    dim: usize,
    rows: Rows<'_>,
    turned: Rows<'_>,
    out: &mut [f32],
) {
    let size = Size { m: tile.n_rows, n: tile.span(), k: dim };
    let parts = Parts::new(out);
    let target = Target { parts: &parts, start: 0, stride: tile.span() };
    let panel = Panel::of_rows(turned.from(tile.sequence_start));
    // SAFETY: the instruction set is the caller's, and `out` is borrowed here.
    unsafe {
        product::<S>(size, Left::Rows, rows.skip_rows(tile.start), panel, target, Sum::New);
    }
}

/// Forward: the head's output for a tile, and the logarithm of each row's sum of exponentials.
pub(crate) struct Attend<'a> {
    pub(crate) tile: QueryTile,
    pub(crate) head: HeadView<'a>,
    /// `start` is the head's first column in row 0 of the batch.
    pub(crate) out: Target<'a>,
    /// `[n_rows]`.
    pub(crate) lse: &'a mut [f32],
    /// At least `n_rows * span` values.
    pub(crate) scratch: &'a mut [f32],
}

impl Kernel for Attend<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { tile, head, out, lse, scratch } = self;
        let span = tile.span();
        let weights = &mut scratch[..tile.n_rows * span];
        // SAFETY: the instruction set is the caller's; the columns of `out` are this task's alone.
        unsafe {
            scores::<S>(tile, head.dim, head.q, head.k_turned, weights);
            for (i, row) in weights.chunks_exact_mut(span).enumerate() {
                lse[i] = softmax::<S>(row, tile.start + i + 1 - tile.sequence_start);
            }
            let size = Size { m: tile.n_rows, n: head.dim, k: tile.n_keys() };
            let panel = Panel::of_rows(head.v.skip_rows(tile.sequence_start));
            product::<S>(
                size,
                Left::Rows,
                Rows::new(weights, span),
                panel,
                out.skip_rows(tile.start),
                Sum::New,
            );
        }
    }
}

/// Turns scores into weights, zero beyond `limit`; returns the logarithm of the sum of their exponentials.
#[inline(always)]
unsafe fn softmax<S: Simd>(row: &mut [f32], limit: usize) -> f32 {
    let (vectors, _) = row.as_chunks_mut::<LANES>();
    let hidden = |i: usize| limit.saturating_sub(i * LANES);
    // SAFETY: the instruction set is the caller's; every vector has sixteen values.
    unsafe {
        let mut largest = S::splat(f32::NEG_INFINITY);
        for (i, vector) in vectors.iter_mut().enumerate() {
            let seen = S::first(hidden(i), S::load(vector.as_ptr()), S::splat(f32::NEG_INFINITY));
            S::store(vector.as_mut_ptr(), seen);
            largest = S::max(largest, seen);
        }
        let top = S::largest(largest);
        let mut sum = S::splat(0.0);
        for vector in vectors.iter_mut() {
            let p = S::exp(S::sub(S::load(vector.as_ptr()), S::splat(top)));
            S::store(vector.as_mut_ptr(), p);
            sum = S::add(sum, p);
        }
        let sum = S::sum(sum);
        let inverse = S::splat(1.0 / sum);
        for vector in vectors.iter_mut() {
            S::store(vector.as_mut_ptr(), S::mul(S::load(vector.as_ptr()), inverse));
        }
        top + sum.ln()
    }
}

/// Backward, first half: weights `p` and `ds` of a tile, and the gradient of its queries.
pub(crate) struct AttendBackRows<'a> {
    pub(crate) tile: QueryTile,
    pub(crate) head: HeadView<'a>,
    /// The forward output, from the head's first column on.
    pub(crate) out: Rows<'a>,
    /// Its gradient.
    pub(crate) d_out: Rows<'a>,
    /// `[n_rows]`.
    pub(crate) lse: &'a [f32],
    /// `[n_rows, span]`.
    pub(crate) p: &'a mut [f32],
    /// `[n_rows, span]`.
    pub(crate) ds: &'a mut [f32],
    /// `start` is the head's first column in row 0 of the batch.
    pub(crate) dq: Target<'a>,
}

impl Kernel for AttendBackRows<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { tile, head, out, d_out, lse, p, ds, dq } = self;
        let span = tile.span();
        // SAFETY: the instruction set is the caller's; the columns of `dq` are this task's alone.
        unsafe {
            scores::<S>(tile, head.dim, head.q, head.k_turned, p);
            scores::<S>(tile, head.dim, d_out, head.v_turned, ds);
            for (i, (p, ds)) in p.chunks_exact_mut(span).zip(ds.chunks_exact_mut(span)).enumerate()
            {
                let row = tile.start + i;
                let (o, d_o) = (
                    &out.values[row * out.stride..][..head.dim],
                    &d_out.values[row * d_out.stride..][..head.dim],
                );
                let limit = row + 1 - tile.sequence_start;
                weights_back::<S>(p, ds, limit, lse[i], dot::<S>(o, d_o));
            }
            let size = Size { m: tile.n_rows, n: head.dim, k: tile.n_keys() };
            let panel = Panel::of_rows(head.k.skip_rows(tile.sequence_start));
            product::<S>(
                size,
                Left::Rows,
                Rows::new(ds, span),
                panel,
                dq.skip_rows(tile.start),
                Sum::New,
            );
        }
    }
}

#[inline(always)]
unsafe fn dot<S: Simd>(a: &[f32], b: &[f32]) -> f32 {
    // SAFETY: the instruction set is the caller's; every chunk has sixteen values.
    unsafe {
        let mut sum = S::splat(0.0);
        for (a, b) in a.as_chunks::<LANES>().0.iter().zip(b.as_chunks::<LANES>().0) {
            sum = S::fma(S::load(a.as_ptr()), S::load(b.as_ptr()), sum);
        }
        S::sum(sum)
    }
}

/// From scores and `do · v` to `p` and `ds`, both zero beyond `limit`.
#[inline(always)]
unsafe fn weights_back<S: Simd>(p: &mut [f32], ds: &mut [f32], limit: usize, lse: f32, delta: f32) {
    let vectors = p.as_chunks_mut::<LANES>().0.iter_mut().zip(ds.as_chunks_mut::<LANES>().0);
    for (i, (p, ds)) in vectors.enumerate() {
        // SAFETY: the instruction set is the caller's; every vector has sixteen values.
        unsafe {
            let (seen, zero) = (limit.saturating_sub(i * LANES), S::splat(0.0));
            let weight = S::exp(S::sub(S::load(p.as_ptr()), S::splat(lse)));
            let weight = S::first(seen, weight, zero);
            let slope = S::sub(S::load(ds.as_ptr()), S::splat(delta));
            S::store(p.as_mut_ptr(), weight);
            S::store(ds.as_mut_ptr(), S::first(seen, S::mul(weight, slope), zero));
        }
    }
}

/// Backward, second half: what one tile and head add to the gradients of some keys and values.
pub(crate) struct AttendBackKeys<'a> {
    pub(crate) tile: QueryTile,
    pub(crate) dim: usize,
    /// Rows of the batch that are these keys; all lie before the tile's end.
    pub(crate) keys: std::ops::Range<usize>,
    /// From the query head's first column on.
    pub(crate) q: Rows<'a>,
    pub(crate) d_out: Rows<'a>,
    pub(crate) p: &'a [f32],
    pub(crate) ds: &'a [f32],
    /// `start` is the key head's first column in row 0 of the batch.
    pub(crate) dk: Target<'a>,
    pub(crate) dv: Target<'a>,
}

impl Kernel for AttendBackKeys<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { tile, dim, keys, q, d_out, p, ds, dk, dv } = self;
        let span = tile.span();
        let first = keys.start - tile.sequence_start;
        let size = Size { m: keys.len(), n: dim, k: tile.n_rows };
        for (weights, rows, target) in [(ds, q, dk), (p, d_out, dv)] {
            let weights = Rows::new(weights, span).from(first);
            let panel = Panel::of_rows(rows.skip_rows(tile.start));
            let target = target.skip_rows(keys.start);
            // SAFETY: the instruction set is the caller's; these keys of the head are this task's alone.
            unsafe { product::<S>(size, Left::Columns, weights, panel, target, Sum::GoesOn) };
        }
    }
}
