//! Panels of frozen weights: what a product reads of a packed matrix, dequantized into scratch that stays in the cache.
//!
//! Forward, lanes are output features and the panel of two tiles is all of K. Backward, lanes are input features: the
//! panel is one block of 32 of them over some tiles, turned round sixteen by sixteen. Values are bit-equal to the
//! format's definition in both; panels of pairs hold the same values rounded to bf16.
#![expect(unsafe_code, reason = "vector kernel over packed tiles")]

use std::ops::Range;

use crate::cpu::{
    matmul_f32::{dequantize_block, dequantize_tile},
    packed::{BLOCK, Dense, PackedMatrix, Storage},
    simd::{Bf16, LANES, Simd},
};

use super::{product::Panel, product_bf16::PairPanel};

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
        // SAFETY: the instruction set is the caller's; a tile has the block by the assertion, `out` is `[16, 32]`.
        unsafe {
            block_values::<S>(matrix, tile, block, &mut values);
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

/// The values of inputs `32 * block..` of a tile, `[32, 16]`.
#[inline(always)]
unsafe fn block_values<S: Simd>(
    matrix: &PackedMatrix,
    tile: usize,
    block: usize,
    values: &mut [f32; BLOCK * LANES],
) {
    let bytes = matrix.tile(tile);
    // SAFETY: the instruction set is the caller's, and the tile has the block; `values` holds it.
    unsafe {
        match matrix.storage {
            Storage::Codes(layout) => {
                dequantize_block::<S>(layout, matrix.n_in, bytes, block, values);
            }
            Storage::Dense(dense) => {
                for (k, out) in values.chunks_exact_mut(LANES).enumerate() {
                    let value = load_dense::<S>(dense, bytes, block * BLOCK + k);
                    S::store(out.as_mut_ptr(), value);
                }
            }
        }
    }
}

/// Scratch for pairs of bf16.
pub(super) fn as_pairs(scratch: &mut [f32]) -> &mut [u32] {
    // SAFETY: the two types have one size and alignment, and every pattern of bits is a value of both.
    unsafe { std::slice::from_raw_parts_mut(scratch.as_mut_ptr().cast(), scratch.len()) }
}

/// As [`forward_panel`], rounded to bf16: row `k / 2` holds the weights of inputs `k` and `k + 1` in pairs.
///
/// # Safety
/// The processor must have the instruction set.
#[inline(always)]
pub(crate) unsafe fn forward_pairs<'a, S: Bf16>(
    matrix: &PackedMatrix,
    tiles: Range<usize>,
    scratch: &'a mut [f32],
) -> PairPanel<'a> {
    let (per_tile, scratch) = (matrix.n_in / 2 * LANES, as_pairs(scratch));
    assert!(tiles.len() * LANES <= PANEL && scratch.len() >= tiles.len() * per_tile);
    let mut values = [0.0; BLOCK * LANES];
    for (tile, out) in tiles.zip(scratch.chunks_exact_mut(per_tile)) {
        for (block, out) in out.chunks_exact_mut(BLOCK / 2 * LANES).enumerate() {
            // SAFETY: the instruction set is the caller's; a tile has `n_in / 32` blocks, `out` is `[16, 16]`.
            unsafe {
                block_values::<S>(matrix, tile, block, &mut values);
                for pair in 0..BLOCK / 2 {
                    let row = values.as_ptr().add(2 * pair * LANES);
                    let pairs = S::pair(S::load(row), S::load(row.add(LANES)));
                    S::store_pairs(out.as_mut_ptr().add(pair * LANES), pairs);
                }
            }
        }
    }
    PairPanel { pairs: scratch, stride: LANES, vector_stride: per_tile }
}

/// As [`backward_panel`], rounded to bf16: row `n / 2` holds the weights of output features `n` and `n + 1` in pairs.
///
/// # Safety
/// The processor must have the instruction set.
#[inline(always)]
pub(crate) unsafe fn backward_pairs<'a, S: Bf16>(
    matrix: &PackedMatrix,
    block: usize,
    tiles: Range<usize>,
    scratch: &'a mut [f32],
) -> PairPanel<'a> {
    let (per_tile, scratch) = (LANES / 2 * PANEL, as_pairs(scratch));
    assert!(scratch.len() >= tiles.len() * per_tile && (block + 1) * BLOCK <= matrix.n_in);
    let mut values = [0.0; BLOCK * LANES];
    for (tile, out) in tiles.zip(scratch.chunks_exact_mut(per_tile)) {
        // SAFETY: the instruction set is the caller's; a tile has the block by the assertion, `out` is `[8, 32]`.
        unsafe {
            block_values::<S>(matrix, tile, block, &mut values);
            for half in 0..2 {
                let mut square = [S::splat(0.0); LANES];
                for (k, vector) in square.iter_mut().enumerate() {
                    *vector = S::load(values.as_ptr().add((half * LANES + k) * LANES));
                }
                let square = S::transpose(square);
                for (n, two) in square.chunks_exact(2).enumerate() {
                    let to = out.as_mut_ptr().add(n * PANEL + half * LANES);
                    S::store_pairs(to, S::pair(two[0], two[1]));
                }
            }
        }
    }
    PairPanel { pairs: scratch, stride: PANEL, vector_stride: LANES }
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
