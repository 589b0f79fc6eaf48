//! The product of [`super::product_bf16`] by tiles, which take both factors as they are: sixteen rows of pairs of the
//! left one, and sixteen rows of a vector of the panel.
//!
//! An element takes 32 terms at a time, from the first on: the first terms of all pairs in one chain from zero, the
//! second ones in another, both added up, and that to the element ([`crate::reference::matmul::tile_sum`]). So its bits do not
//! depend on how rows and columns are shared out, and are others than those of a chain of pairs.
#![expect(unsafe_code, reason = "tiles of strided rows")]

use crate::cpu::simd::{BLOCK_ROWS, LANES, STEP_PAIRS, Simd, Strip, StripShape, Tiles};

use super::{
    product::{Size, Sum},
    product_bf16::{PairPanel, PairRows},
};

/// Most columns of a strip.
const COLUMNS: usize = 2 * LANES;
/// Rows of a product of its own before it is added: as many as stay near.
const ADDED_ROWS: usize = 4 * BLOCK_ROWS;

#[repr(align(64))]
struct Aside([f32; ADDED_ROWS * COLUMNS]);

/// Computes one product on this thread; there is at least one of everything.
///
/// # Safety
/// The processor must have the instruction set and the tiles, and everything must be within factors and result, which
/// nobody else may use meanwhile.
#[inline(always)]
pub(super) unsafe fn by_tiles<S: Simd, T: Tiles>(
    size: Size,
    a: PairRows<'_>,
    p: PairPanel<'_>,
    (out, out_stride): (*mut f32, usize),
    sum: Sum,
) {
    for column in (0..size.n).step_by(COLUMNS) {
        let n = (size.n - column).min(COLUMNS);
        let panel = PairPanel { pairs: &p.pairs[column / LANES * p.vector_stride..], ..p };
        // SAFETY: these columns are within the result.
        unsafe {
            let out = out.add(column);
            if sum == Sum::Added {
                let mut aside = Aside([0.0; ADDED_ROWS * COLUMNS]);
                for row in (0..size.m).step_by(ADDED_ROWS) {
                    let size = Size { m: (size.m - row).min(ADDED_ROWS), n, k: size.k };
                    let own = (aside.0.as_mut_ptr(), COLUMNS);
                    strips::<T>(size, a.skip_rows(row), panel, own, false);
                    add_rows::<S>(size, &aside.0, out.add(row * out_stride), out_stride);
                }
            } else {
                let size = Size { n, ..size };
                strips::<T>(size, a, panel, (out, out_stride), sum == Sum::GoesOn);
            }
        }
    }
}

/// At most 32 columns: whole steps and blocks first, then what is left of terms and rows.
#[inline(always)]
unsafe fn strips<T: Tiles>(
    size: Size,
    a: PairRows<'_>,
    p: PairPanel<'_>,
    (out, out_stride): (*mut f32, usize),
    mut goes_on: bool,
) {
    let (n_pairs, mut spare) = (size.k / 2, [0.0; BLOCK_ROWS]);
    let (whole_pairs, whole_rows) = (n_pairs - n_pairs % STEP_PAIRS, size.m - size.m % BLOCK_ROWS);
    for (pair, pairs, n_steps) in [
        (0, STEP_PAIRS, whole_pairs / STEP_PAIRS),
        (whole_pairs, n_pairs - whole_pairs, usize::from(whole_pairs < n_pairs)),
    ] {
        for (row, rows, n_blocks) in [
            (0, BLOCK_ROWS, whole_rows / BLOCK_ROWS),
            (whole_rows, size.m - whole_rows, usize::from(whole_rows < size.m)),
        ] {
            if n_steps == 0 || n_blocks == 0 {
                continue;
            }
            let shape = StripShape { rows, n_blocks, columns: size.n, pairs, n_steps, goes_on };
            // SAFETY: these rows and terms are within factors and result; tiles are the caller's.
            unsafe {
                T::multiply(&mut Strip::new(
                    shape,
                    (a.pairs.as_ptr().add(row * a.stride + pair), a.stride),
                    (p.pairs.as_ptr().add(pair * p.stride), p.stride, p.vector_stride),
                    (out.add(row * out_stride), out_stride),
                    &mut spare,
                ));
            }
        }
        goes_on |= n_steps > 0;
    }
}

/// Adds rows of [`COLUMNS`] values.
#[inline(always)]
unsafe fn add_rows<S: Simd>(size: Size, from: &[f32], to: *mut f32, to_stride: usize) {
    for (row, from) in from.chunks_exact(COLUMNS).take(size.m).enumerate() {
        for (i, values) in from[..size.n].as_chunks::<LANES>().0.iter().enumerate() {
            // SAFETY: the instruction set is the caller's; the row is within the result.
            unsafe {
                let to = to.add(row * to_stride + i * LANES);
                S::store(to, S::add(S::load(to), S::load(values.as_ptr())));
            }
        }
    }
}
