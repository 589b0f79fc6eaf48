//! Exact products: f32 activations with dense weights, or with weights dequantized tile by tile.
//!
//! `y[t, n] = (c0 + c1) + (c2 + c3)` with `c_j = Σ x[t, k] * w[n, k]` over `k ≡ j (mod 4)` in ascending order, fused
//! multiply-adds where the instruction set has them: four short chains, the same for one row or many.
#![expect(unsafe_code, reason = "vector kernel over packed tiles")]

use crate::quant::CodeLayout;

use super::{
    epilogue::Epilogue,
    matmul_int8::load_planes,
    packed::{BLOCK, Dense, PackedMatrix, SUPER, Storage, TileLayout},
    simd::{Kernel, LANES, Simd},
};

/// Multiplies all rows with some tiles of any matrix.
pub(crate) struct F32Tiles<'a> {
    pub(crate) matrix: &'a PackedMatrix,
    pub(crate) tiles: std::ops::Range<usize>,
    /// `[T, x_stride]`; each row has at least `matrix.n_in` values.
    pub(crate) x: &'a [f32],
    pub(crate) x_stride: usize,
    pub(crate) n_rows: usize,
    pub(crate) epilogue: &'a Epilogue<'a>,
    /// Room for a dequantized tile, `[n_in, 16]`; not used for dense matrices.
    pub(crate) scratch: &'a mut [f32],
}

impl Kernel for F32Tiles<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n_in = self.matrix.n_in;
        assert!(n_in <= self.x_stride && self.x.len() >= self.n_rows * self.x_stride);
        for tile in self.tiles.clone() {
            let bytes = self.matrix.tile(tile);
            // SAFETY: the instruction set is the caller's; a tile has `n_in * 16` values (checked when packed), the
            // scratch is checked in `dequantize_tile`, and the rows were checked above.
            unsafe {
                match self.matrix.storage {
                    Storage::Codes(layout) => {
                        dequantize_tile::<S>(layout, n_in, bytes, self.scratch);
                        self.rows::<S, 0>(tile, self.scratch.as_ptr().cast());
                    }
                    Storage::Dense(Dense::F32) => self.rows::<S, 0>(tile, bytes.as_ptr()),
                    Storage::Dense(Dense::F16) => self.rows::<S, 1>(tile, bytes.as_ptr()),
                    Storage::Dense(Dense::Bf16) => self.rows::<S, 2>(tile, bytes.as_ptr()),
                }
            }
        }
    }
}

impl F32Tiles<'_> {
    #[inline(always)]
    unsafe fn rows<S: Simd, const TYPE: u8>(&self, tile: usize, weights: *const u8) {
        let n_in = self.matrix.n_in;
        let mut row = 0;
        // SAFETY: as in `run`.
        unsafe {
            macro_rules! rows {
                ($n:literal) => {
                    while S::F32_ROWS >= $n && self.n_rows - row >= $n {
                        let x =
                            std::array::from_fn(|i| self.x.as_ptr().add((row + i) * self.x_stride));
                        let sums = dot_rows::<S, TYPE, $n>(weights, n_in, x);
                        for (i, sum) in sums.into_iter().enumerate() {
                            self.epilogue.put::<S>(row + i, tile, sum);
                        }
                        row += $n;
                    }
                };
            }
            rows!(4);
            rows!(2);
            rows!(1);
        }
    }
}

/// `ROWS` rows of x times one dense tile; `n_in` is a multiple of 4. `TYPE` is 0 for f32, 1 for f16, 2 for bf16.
#[inline(always)]
pub(super) unsafe fn dot_rows<S: Simd, const TYPE: u8, const ROWS: usize>(
    weights: *const u8,
    n_in: usize,
    x: [*const f32; ROWS],
) -> [S::F; ROWS] {
    // SAFETY: the caller gives `n_in * 16` weights and `ROWS` rows of at least `n_in` values.
    unsafe {
        let mut chains = [[S::splat(0.0); 4]; ROWS];
        let mut k = 0;
        while k < n_in {
            for j in 0..4 {
                let at = (k + j) * LANES;
                let w = match TYPE {
                    0 => S::load(weights.cast::<f32>().add(at)),
                    1 => S::load_f16(weights.cast::<u16>().add(at)),
                    _ => S::load_bf16(weights.cast::<u16>().add(at)),
                };
                for (r, chains) in chains.iter_mut().enumerate() {
                    chains[j] = S::fma(w, S::splat(*x[r].add(k + j)), chains[j]);
                }
            }
            k += 4;
        }
        chains.map(|[a, b, c, d]| S::add(S::add(a, b), S::add(c, d)))
    }
}

/// Writes the values of a tile of codes, `[n_in, 16]`, bit-equal to the file format's definition.
#[inline(always)]
pub(super) unsafe fn dequantize_tile<S: Simd>(
    layout: CodeLayout,
    n_in: usize,
    tile: &[u8],
    out: &mut [f32],
) {
    assert!(out.len() >= n_in * LANES);
    for (block, out) in
        out.as_chunks_mut::<{ BLOCK * LANES }>().0[..n_in / BLOCK].iter_mut().enumerate()
    {
        // SAFETY: the instruction set is the caller's; the tile is checked there.
        unsafe { dequantize_block::<S>(layout, n_in, tile, block, out) };
    }
}

/// Writes the values of one block of a tile of codes, `[32, 16]`.
#[inline(always)]
pub(super) unsafe fn dequantize_block<S: Simd>(
    layout: CodeLayout,
    n_in: usize,
    tile: &[u8],
    block: usize,
    out: &mut [f32; BLOCK * LANES],
) {
    let at = TileLayout::of(layout, n_in);
    assert!(tile.len() >= at.tile_bytes && block < n_in / BLOCK);
    let parts = if layout.has_min { 2 } else { 1 };
    // SAFETY: offsets stay within the tile by `TileLayout`, and within `out`, which is one block.
    unsafe {
        let scales = tile.as_ptr().add(at.scales);
        let supers = tile.as_ptr().add(at.supers).cast::<u16>();
        let codes = tile.as_ptr().add(block * at.block_bytes);
        let planes = match layout.bits {
            4 => load_planes::<S, 4>(codes),
            5 => load_planes::<S, 5>(codes),
            6 => load_planes::<S, 6>(codes),
            _ => load_planes::<S, 8>(codes),
        };
        let offset = S::splat(layout.offset as f32);
        for (i, plane) in planes.into_iter().enumerate() {
            let group = (block * BLOCK + 4 * i) / layout.group;
            let (scale, min) = if layout.super_block {
                let d16 = supers.add(block * BLOCK / SUPER * parts * LANES);
                let sc = scales.add(group * parts * LANES);
                let min = if layout.has_min {
                    let product = S::mul(S::load_f16(d16.add(LANES)), S::load_u8(sc.add(LANES)));
                    // Not 0 − product: a minimum of zero must not change the sign of a zero.
                    S::mul(product, S::splat(-1.0))
                } else {
                    S::splat(0.0)
                };
                (S::mul(S::load_f16(d16), S::load_i8(sc.cast())), min)
            } else {
                let d16 = scales.cast::<u16>().add(group * parts * LANES);
                let min = if layout.has_min { S::load_f16(d16.add(LANES)) } else { S::splat(0.0) };
                (S::load_f16(d16), min)
            };
            let lanes = [
                S::byte_lane::<0>(plane),
                S::byte_lane::<1>(plane),
                S::byte_lane::<2>(plane),
                S::byte_lane::<3>(plane),
            ];
            for (b, lane) in lanes.into_iter().enumerate() {
                // The product is exact in f32 (at most 24 bits), so a fused multiply-add rounds as the format's
                // definition does: once.
                let code = S::sub(S::to_f(lane), offset);
                let value =
                    if layout.has_min { S::fma(code, scale, min) } else { S::mul(code, scale) };
                S::store(out.as_mut_ptr().add((4 * i + b) * LANES), value);
            }
        }
    }
}

/// Dequantizes one tile, for tests.
#[cfg(test)]
pub(crate) struct DequantizeTile<'a> {
    pub(crate) matrix: &'a PackedMatrix,
    pub(crate) tile: usize,
    pub(crate) out: &'a mut [f32],
}

#[cfg(test)]
impl Kernel for DequantizeTile<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Storage::Codes(layout) = self.matrix.storage else { panic!("dense matrix") };
        // SAFETY: the instruction set is the caller's; sizes are checked inside.
        unsafe {
            dequantize_tile::<S>(layout, self.matrix.n_in, self.matrix.tile(self.tile), self.out);
        };
    }
}
