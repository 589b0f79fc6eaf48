//! Panels of frozen weights: what a product reads of a packed matrix, dequantized into scratch that stays in the cache.
//!
//! Forward, lanes are output features and the panel of two tiles is all of K. Backward, lanes are input features: the
//! panel is one block of 32 of them over some tiles, turned round sixteen by sixteen. Values are bit-equal to the
//! format's definition in both.
#![expect(unsafe_code, reason = "vector kernel over packed tiles")]

use std::ops::Range;

use crate::cpu::{
    matmul_f32::{dequantize_block, dequantize_tile},
    packed::{BLOCK, Dense, PackedMatrix, Storage},
    simd::{LANES, Simd},
};

use super::product::Panel;

/// Output features of a forward panel, and input features of a backward one.
pub(crate) const PANEL: usize = 2 * LANES;

/// Values of scratch that a panel of any of these products needs: `[inner, 32]`.
pub(crate) const fn panel_values(inner: usize) -> usize {
    inner.next_multiple_of(BLOCK) * PANEL
}

/// The panel of at most two tiles, `[tile, K, 16]`: row `k` holds the weights of input `k`.
///
/// # Safety
/// The processor must have the instruction set.
#[inline(always)]
pub(crate) unsafe fn forward_panel<'a, S: Simd>(
    matrix: &PackedMatrix,
    tiles: Range<usize>,
    scratch: &'a mut [f32],
) -> Panel<'a> {
    let per_tile = matrix.n_in * LANES;
    assert!(tiles.len() * LANES <= PANEL && scratch.len() >= tiles.len() * per_tile);
    for (tile, out) in tiles.zip(scratch.chunks_exact_mut(per_tile)) {
        let bytes = matrix.tile(tile);
        // SAFETY: the instruction set is the caller's; a tile has `n_in * 16` values, and so has `out`.
        unsafe {
            match matrix.storage {
                Storage::Codes(layout) => {
                    dequantize_tile::<S>(layout, matrix.n_in, bytes, out);
                }
                Storage::Dense(dense) => {
                    for (k, out) in out.chunks_exact_mut(LANES).enumerate() {
                        S::store(out.as_mut_ptr(), load_dense::<S>(dense, bytes, k));
                    }
                }
            }
        }
    }
    Panel { values: scratch, stride: LANES, vector_stride: per_tile }
}

/// The panel of input features `32 * block..` over some tiles, `[tiles * 16, 32]`: row `n` holds the weights of output
/// feature `n` of the first tile on.
///
/// # Safety
/// The processor must have the instruction set.
#[inline(always)]
pub(crate) unsafe fn backward_panel<'a, S: Simd>(
    matrix: &PackedMatrix,
    block: usize,
    tiles: Range<usize>,
    scratch: &'a mut [f32],
) -> Panel<'a> {
    assert!(scratch.len() >= tiles.len() * LANES * PANEL && (block + 1) * BLOCK <= matrix.n_in);
    let mut values = [0.0; BLOCK * LANES];
    for (tile, out) in tiles.zip(scratch.chunks_exact_mut(LANES * PANEL)) {
        let bytes = matrix.tile(tile);
        // SAFETY: the instruction set is the caller's; a tile has the block by the assertion, `out` is `[16, 32]`.
        unsafe {
            match matrix.storage {
                Storage::Codes(layout) => {
                    dequantize_block::<S>(layout, matrix.n_in, bytes, block, &mut values);
                }
                Storage::Dense(dense) => {
                    for (k, out) in values.chunks_exact_mut(LANES).enumerate() {
                        let value = load_dense::<S>(dense, bytes, block * BLOCK + k);
                        S::store(out.as_mut_ptr(), value);
                    }
                }
            }
            for half in 0..2 {
                let mut square = [S::splat(0.0); LANES];
                for (k, vector) in square.iter_mut().enumerate() {
                    *vector = S::load(values.as_ptr().add((half * LANES + k) * LANES));
                }
                for (n, vector) in S::transpose(square).into_iter().enumerate() {
                    S::store(out.as_mut_ptr().add(n * PANEL + half * LANES), vector);
                }
            }
        }
    }
    Panel { values: scratch, stride: PANEL, vector_stride: LANES }
}

/// The sixteen values of input `k` of a dense tile.
#[inline(always)]
unsafe fn load_dense<S: Simd>(dense: Dense, tile: &[u8], k: usize) -> S::F {
    let at = k * LANES * dense.bytes();
    let bytes = tile[at..at + LANES * dense.bytes()].as_ptr();
    // SAFETY: sixteen values by the slice; the instruction set is the caller's.
    unsafe {
        match dense {
            Dense::F32 => S::load(bytes.cast()),
            Dense::F16 => S::load_f16(bytes.cast()),
            Dense::Bf16 => S::load_bf16(bytes.cast()),
        }
    }
}
