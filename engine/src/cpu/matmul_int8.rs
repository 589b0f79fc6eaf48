//! Products of int8 activations with packed weight codes.
//!
//! `y[t, n] = Σ_g (d_x[t, g] * scale[n, g]) * (Σ_k q[t, k] * (code[n, k] − offset)) + min[n, g] * d_x[t, g] * Σ_k q[t, k]`
//!
//! The inner sum is of integers and exact. The outer sum runs over the groups in order, in f32, one lane for one n:
//! the same operations in the same order for one row or many.
#![expect(unsafe_code, reason = "vector kernel over packed tiles")]

use crate::quant::CodeLayout;

use super::{
    epilogue::Epilogue,
    int8_rows::{Int8Rows, PANEL},
    packed::{BLOCK, PackedMatrix, SUPER, Storage, TileLayout},
    simd::{Kernel, LANES, Simd},
};

/// Multiplies all rows with some tiles of a matrix of codes.
pub(crate) struct Int8Tiles<'a> {
    pub(crate) matrix: &'a PackedMatrix,
    pub(crate) tiles: std::ops::Range<usize>,
    pub(crate) rows: &'a Int8Rows,
    pub(crate) n_rows: usize,
    pub(crate) epilogue: &'a Epilogue<'a>,
}

impl Kernel for Int8Tiles<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Storage::Codes(layout) = self.matrix.storage else {
            unreachable!("dense matrices are multiplied in f32");
        };
        // One instantiation per kind of format; the integer arguments are bits, group, super scales, minima.
        // SAFETY: the instruction set is the caller's; shapes are checked in `tiles`.
        unsafe {
            match (layout.bits, layout.group, layout.super_block, layout.has_min) {
                (4, 32, false, false) => self.tiles_of::<S, 4, 32, false, false>(layout),
                (4, 32, false, true) => self.tiles_of::<S, 4, 32, false, true>(layout),
                (5, 32, false, false) => self.tiles_of::<S, 5, 32, false, false>(layout),
                (5, 32, false, true) => self.tiles_of::<S, 5, 32, false, true>(layout),
                (8, 32, false, false) => self.tiles_of::<S, 8, 32, false, false>(layout),
                (4, 32, true, true) => self.tiles_of::<S, 4, 32, true, true>(layout),
                (5, 32, true, true) => self.tiles_of::<S, 5, 32, true, true>(layout),
                (6, 16, true, false) => self.tiles_of::<S, 6, 16, true, false>(layout),
                (4, 16, true, true) => self.tiles_of::<S, 4, 16, true, true>(layout),
                (4, 16, true, false) => self.tiles_of::<S, 4, 16, true, false>(layout),
                _ => unreachable!("no such block format: {layout:?}"),
            }
        }
    }
}

impl Int8Tiles<'_> {
    #[inline(always)]
    unsafe fn tiles_of<
        S: Simd,
        const BITS: u32,
        const GROUP: usize,
        const SUPERS: bool,
        const MIN: bool,
    >(
        &self,
        layout: CodeLayout,
    ) {
        let n_in = self.matrix.n_in;
        assert_eq!(self.rows.n_in, n_in, "activations and weights differ in width");
        assert!(self.rows.q.len() >= self.n_rows.next_multiple_of(PANEL) * n_in);
        let at = TileLayout::of(layout, n_in);
        for tile in self.tiles.clone() {
            self.epilogue.prefetch(tile);
            let bytes = self.matrix.tile(tile);
            assert!(bytes.len() >= at.tile_bytes);
            let mut row = 0;
            // SAFETY: the tile has the layout's size and the rows have its width, as asserted above.
            unsafe {
                macro_rules! rows {
                    ($n:literal) => {
                        // Groups never leave a panel: they begin at multiples of their size.
                        while S::INT8_ROWS >= $n && self.n_rows - row >= $n {
                            let sums = self.tile_rows::<S, BITS, GROUP, SUPERS, MIN, $n>(
                                bytes, at, layout, row,
                            );
                            for (i, sum) in sums.into_iter().enumerate() {
                                self.epilogue.put::<S>(row + i, tile, sum);
                            }
                            row += $n;
                        }
                    };
                }
                rows!(8);
                rows!(4);
                rows!(2);
                rows!(1);
            }
        }
    }

    /// One tile times `ROWS` rows from `first` on.
    #[inline(always)]
    unsafe fn tile_rows<
        S: Simd,
        const BITS: u32,
        const GROUP: usize,
        const SUPERS: bool,
        const MIN: bool,
        const ROWS: usize,
    >(
        &self,
        tile: &[u8],
        at: TileLayout,
        layout: CodeLayout,
        first: usize,
    ) -> [S::F; ROWS] {
        let n_in = self.matrix.n_in;
        let n_blocks = n_in / BLOCK;
        let parts = if MIN { 2 } else { 1 };
        // SAFETY: all offsets below stay within the tile (`TileLayout`) and within the rows of `Int8Rows`.
        unsafe {
            let codes = tile.as_ptr();
            let scales = codes.add(at.scales);
            let supers = codes.add(at.supers).cast::<u16>();
            // Of the first block of the panel; the next block is `PANEL` rows further in each array.
            let panel = first / PANEL * n_blocks * PANEL + first % PANEL;
            let q = self.rows.q.as_ptr().add(panel * BLOCK);
            let d = self.rows.d.as_ptr().add(panel);
            let (sums, sums_d) = if GROUP == 32 {
                (self.rows.sum32.as_ptr().add(panel), self.rows.sum32_d.as_ptr().add(panel))
            } else {
                let panel = first / PANEL * n_blocks * 2 * PANEL + first % PANEL;
                (self.rows.sum16.as_ptr().add(panel), self.rows.sum16_d.as_ptr().add(panel))
            };
            let groups_in_block = BLOCK / GROUP;
            let with_offset = layout.offset != 0 && !(BITS == 8 && S::BYTES_ARE_SIGNED);
            let minus_offset = S::splat(-(layout.offset as f32));
            let mut acc = [S::splat(0.0); ROWS];
            for block in 0..n_blocks {
                let planes = load_planes::<S, BITS>(codes.add(block * at.block_bytes));
                for half in 0..groups_in_block {
                    let group = block * groups_in_block + half;
                    let (scale, min) = if SUPERS {
                        let d16 = supers.add(block * BLOCK / SUPER * parts * LANES);
                        let sc = scales.add(group * parts * LANES);
                        let scale = S::mul(S::load_f16(d16), S::load_i8(sc.cast()));
                        let min = if MIN {
                            let product =
                                S::mul(S::load_f16(d16.add(LANES)), S::load_u8(sc.add(LANES)));
                            S::sub(S::splat(0.0), product)
                        } else {
                            S::splat(0.0)
                        };
                        (scale, min)
                    } else {
                        let d16 = scales.cast::<u16>().add(group * parts * LANES);
                        let min = if MIN { S::load_f16(d16.add(LANES)) } else { S::splat(0.0) };
                        (S::load_f16(d16), min)
                    };
                    // Rows inside, so that their chains of dot products run side by side.
                    let x = q.add(block * PANEL * BLOCK + half * GROUP);
                    let mut dots = [S::zero_i(); ROWS];
                    for i in 0..GROUP / 4 {
                        let plane = planes[half * (GROUP / 4) + i];
                        for (r, dot) in dots.iter_mut().enumerate() {
                            let x = x.add(r * BLOCK + 4 * i);
                            *dot = if BITS == 8 {
                                S::dot_bytes(*dot, plane, x)
                            } else {
                                S::dot(*dot, plane, x)
                            };
                        }
                    }
                    for r in 0..ROWS {
                        let mut dot = S::to_f(dots[r]);
                        if with_offset {
                            // Exact: all are integers below 2^24.
                            dot = S::fma(minus_offset, S::splat(*sums.add(group * PANEL + r)), dot);
                        }
                        let scale = S::mul(scale, S::splat(*d.add(block * PANEL + r)));
                        acc[r] = S::fma(dot, scale, acc[r]);
                        if MIN {
                            acc[r] = S::fma(min, S::splat(*sums_d.add(group * PANEL + r)), acc[r]);
                        }
                    }
                }
            }
            acc
        }
    }
}

/// The eight planes of codes of a block, unpacked to bytes: plane i is k = 4i..4i+4.
#[inline(always)]
pub(super) unsafe fn load_planes<S: Simd, const BITS: u32>(block: *const u8) -> [S::I; 8] {
    // SAFETY: a block has `TileLayout::block_bytes` bytes for these bits (the caller's pointer).
    unsafe {
        if BITS == 8 {
            return std::array::from_fn(|i| S::load_i(block.add(64 * i)));
        }
        let p0 = S::load_i(block);
        let p1 = S::load_i(block.add(64));
        let p2 = S::load_i(block.add(128));
        let p3 = S::load_i(block.add(192));
        let mut planes = [
            S::low_nibbles(p0),
            S::low_nibbles(p1),
            S::low_nibbles(p2),
            S::low_nibbles(p3),
            S::high_nibbles(p0),
            S::high_nibbles(p1),
            S::high_nibbles(p2),
            S::high_nibbles(p3),
        ];
        if BITS == 5 {
            let bits = S::load_i(block.add(256));
            planes = [
                S::or_bit::<0>(planes[0], bits),
                S::or_bit::<1>(planes[1], bits),
                S::or_bit::<2>(planes[2], bits),
                S::or_bit::<3>(planes[3], bits),
                S::or_bit::<4>(planes[4], bits),
                S::or_bit::<5>(planes[5], bits),
                S::or_bit::<6>(planes[6], bits),
                S::or_bit::<7>(planes[7], bits),
            ];
        }
        if BITS == 6 {
            let low = S::load_i(block.add(256));
            let high = S::load_i(block.add(320));
            planes = [
                S::or_two_bits::<0>(planes[0], low),
                S::or_two_bits::<1>(planes[1], low),
                S::or_two_bits::<2>(planes[2], low),
                S::or_two_bits::<3>(planes[3], low),
                S::or_two_bits::<0>(planes[4], high),
                S::or_two_bits::<1>(planes[5], high),
                S::or_two_bits::<2>(planes[6], high),
                S::or_two_bits::<3>(planes[7], high),
            ];
        }
        planes
    }
}
