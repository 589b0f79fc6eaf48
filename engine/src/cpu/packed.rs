//! Frozen matrices as the CPU kernels read them: tiles of sixteen output features.
//!
//! ```text
//! tile (16 rows of W, all of K)      = codes of all blocks, then scales, padded to 64 bytes
//! codes of a block (32 values of K)  = planes of 64 bytes; byte 4r + b of a plane belongs to row r
//!   4 bits   4 planes: plane j holds k = 4j + b in its low and k = 16 + 4j + b in its high nibbles
//!   5 bits   the same, then 1 plane of fifth bits: bit i belongs to k = 4i + b
//!   6 bits   the same, then 2 planes of bits 4–5: plane i / 4, bits 2(i % 4).. belong to k = 4i + b
//!   8 bits   8 planes: plane i holds k = 4i + b
//! scales, each an array of 16 rows:
//!   legacy   per block: f16 d, then f16 m if the format has minima
//!   k-quants per group: i8 sc, then u8 mn; after all groups, per 256 values: f16 d, then f16 dmin
//! dense      per k: 16 values (f32, f16 or bf16), no blocks
//! ```
//!
//! One vector load is one plane; a 32-bit lane of it is one output feature, as VNNI wants it. Nothing is lost: the
//! codes and scales are those of the file, only their order changes, and the file's pages can be dropped afterwards.

use crate::quant::{BlockFormat, CodeLayout, CodeRow, Scales, unpack_row};

use super::{
    memory::{AlignedBytes, Arena},
    simd::LANES,
};

/// Values of K in a block of codes.
pub(crate) const BLOCK: usize = 32;
/// Values of K under one f16 scale of a k-quant.
pub(crate) const SUPER: usize = 256;

/// How the values of a packed matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    /// Codes and scales.
    Codes(CodeLayout),
    /// One f32, f16 or bf16 per value.
    Dense(Dense),
}

/// Types of a dense matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dense {
    F32,
    F16,
    Bf16,
}

impl Dense {
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

fn dense_tile_bytes(dense: Dense, n_in: usize) -> usize {
    (n_in * LANES * dense.bytes()).next_multiple_of(64)
}

/// Where the scales of a tile begin, and how they are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TileLayout {
    /// Bytes of codes in a block.
    pub(crate) block_bytes: usize,
    /// Offset of the scales in a tile.
    pub(crate) scales: usize,
    /// Offset of the f16 super scales of k-quants in a tile.
    pub(crate) supers: usize,
    /// Bytes of a tile.
    pub(crate) tile_bytes: usize,
}

impl TileLayout {
    pub(crate) fn of(layout: CodeLayout, n_in: usize) -> Self {
        let block_bytes = match layout.bits {
            4 => 256,
            5 => 320,
            6 => 384,
            _ => 512,
        };
        let scales = n_in / BLOCK * block_bytes;
        let parts = if layout.has_min { 2 } else { 1 };
        let (supers, end) = if layout.super_block {
            let supers = scales + n_in / layout.group * LANES * parts;
            (supers, supers + n_in / SUPER * LANES * 2 * parts)
        } else {
            let end = scales + n_in / BLOCK * LANES * 2 * parts;
            (end, end)
        };
        Self { block_bytes, scales, supers, tile_bytes: end.next_multiple_of(64) }
    }
}

/// One frozen weight `[n_out, n_in]`, in tiles.
#[derive(Debug)]
pub(crate) struct PackedMatrix {
    pub(crate) n_out: usize,
    /// Values of K stored, a multiple of 32: `n_in` of the file, padded with zeros if that is none.
    pub(crate) n_in: usize,
    pub(crate) storage: Storage,
    tile_bytes: usize,
    data: AlignedBytes,
}

impl PackedMatrix {
    /// Bytes of its tiles.
    pub(crate) fn n_bytes(&self) -> usize {
        self.data.n_bytes()
    }

    /// Packs a matrix given row by row: `row(n)` is the bytes of row `n` in `format`.
    ///
    /// `n_in` is a multiple of the format's block; every row has the format's size for it (checked by the caller from
    /// the file's tensor table).
    pub(crate) fn pack<'a>(
        format: BlockFormat,
        n_out: usize,
        n_in: usize,
        arena: &mut Arena,
        row: impl Fn(usize) -> &'a [u8],
    ) -> Self {
        match format.code_layout() {
            Some(layout) => Self::pack_codes(format, layout, n_out, n_in, arena, row),
            None => Self::pack_dense(format, n_out, n_in, arena, row),
        }
    }

    fn pack_codes<'a>(
        format: BlockFormat,
        layout: CodeLayout,
        n_out: usize,
        n_in: usize,
        arena: &mut Arena,
        row: impl Fn(usize) -> &'a [u8],
    ) -> Self {
        let tile = TileLayout::of(layout, n_in);
        let mut data = arena.take(n_out.div_ceil(LANES) * tile.tile_bytes);
        let mut codes = CodeRow::default();
        for n in 0..n_out {
            unpack_row(format, row(n), n_in, &mut codes);
            let start = n / LANES * tile.tile_bytes;
            let out = &mut data.as_mut_slice()[start..start + tile.tile_bytes];
            put_codes(out, tile, layout.bits, n % LANES, &codes.codes);
            put_scales(
                &mut out[tile.scales..],
                tile.supers - tile.scales,
                n % LANES,
                &codes.scales,
            );
        }
        Self { n_out, n_in, storage: Storage::Codes(layout), tile_bytes: tile.tile_bytes, data }
    }

    fn pack_dense<'a>(
        format: BlockFormat,
        n_out: usize,
        n_in: usize,
        arena: &mut Arena,
        row: impl Fn(usize) -> &'a [u8],
    ) -> Self {
        let dense = if format == BlockFormat::F16 {
            Dense::F16
        } else if format == BlockFormat::Bf16 {
            Dense::Bf16
        } else {
            Dense::F32
        };
        let width = dense.bytes();
        let mut packed = Self::dense_zeroed(dense, n_out, n_in.next_multiple_of(BLOCK), arena);
        for n in 0..n_out {
            for (k, value) in row(n).chunks_exact(width).take(n_in).enumerate() {
                packed.put_dense(n, k, value);
            }
        }
        packed
    }

    fn dense_zeroed(dense: Dense, n_out: usize, n_in: usize, arena: &mut Arena) -> Self {
        let tile_bytes = dense_tile_bytes(dense, n_in);
        let data = arena.take(n_out.div_ceil(LANES) * tile_bytes);
        Self { n_out, n_in, storage: Storage::Dense(dense), tile_bytes, data }
    }

    fn put_dense(&mut self, n: usize, k: usize, bytes: &[u8]) {
        let at = n / LANES * self.tile_bytes + (k * LANES + n % LANES) * bytes.len();
        self.data.as_mut_slice()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Packs f32 values `[n_out, n_in]`, row-major, as f32 or rounded to a 16-bit type. Columns are padded with zeros
    /// to a multiple of `pad`.
    pub(crate) fn from_f32(
        dense: Dense,
        n_out: usize,
        n_in: usize,
        pad: usize,
        values: &[f32],
        arena: &mut Arena,
    ) -> Self {
        let mut packed = Self::dense_zeroed(dense, n_out, n_in.next_multiple_of(pad), arena);
        for (n, row) in values.chunks_exact(n_in).enumerate() {
            for (k, &value) in row.iter().enumerate() {
                match dense {
                    Dense::F32 => packed.put_dense(n, k, &value.to_le_bytes()),
                    Dense::F16 => packed.put_dense(n, k, &half::f16::from_f32(value).to_le_bytes()),
                    Dense::Bf16 => {
                        packed.put_dense(n, k, &half::bf16::from_f32(value).to_le_bytes());
                    }
                }
            }
        }
        packed
    }

    /// Bytes that [`Self::from_f32`] takes of an arena.
    pub(crate) fn f32_bytes(dense: Dense, n_out: usize, n_in: usize, pad: usize) -> usize {
        n_out.div_ceil(LANES) * dense_tile_bytes(dense, n_in.next_multiple_of(pad))
    }

    /// Tiles of sixteen output features; the last may be partly padding.
    pub(crate) fn n_tiles(&self) -> usize {
        self.n_out.div_ceil(LANES)
    }

    /// All tiles.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.data.as_slice()
    }

    /// The bytes of a tile.
    pub(crate) fn tile(&self, index: usize) -> &[u8] {
        &self.data.as_slice()[index * self.tile_bytes..(index + 1) * self.tile_bytes]
    }

    /// Writes the values of one row (the embedding of a token). `out` has at most `n_in` values.
    pub(crate) fn row_values(&self, n: usize, out: &mut [f32]) {
        let tile = self.tile(n / LANES);
        let lane = n % LANES;
        match self.storage {
            Storage::Dense(dense) => {
                for (k, value) in out.iter_mut().enumerate() {
                    *value = dense_value(dense, tile, k * LANES + lane);
                }
            }
            Storage::Codes(layout) => {
                let at = TileLayout::of(layout, self.n_in);
                for (k, value) in out.iter_mut().enumerate() {
                    let code =
                        code_at(&tile[k / BLOCK * at.block_bytes..], layout.bits, lane, k % BLOCK);
                    let (scale, min) = scale_at(tile, at, layout, lane, k);
                    let product = f32::from(i16::from(code) - offset_i16(layout)) * scale;
                    // Without minima nothing is added: −0.0 + 0.0 would lose its sign.
                    *value = if layout.has_min { product + min } else { product };
                }
            }
        }
    }
}

fn offset_i16(layout: CodeLayout) -> i16 {
    i16::try_from(layout.offset).unwrap_or(i16::MAX)
}

fn dense_value(dense: Dense, tile: &[u8], index: usize) -> f32 {
    let half_bits = |i: usize| u16::from_le_bytes([tile[2 * i], tile[2 * i + 1]]);
    match dense {
        Dense::F32 => {
            let at = 4 * index;
            f32::from_le_bytes([tile[at], tile[at + 1], tile[at + 2], tile[at + 3]])
        }
        Dense::F16 => half::f16::from_bits(half_bits(index)).to_f32(),
        Dense::Bf16 => half::bf16::from_bits(half_bits(index)).to_f32(),
    }
}

/// Where code `k` (0..32) of a row lies in its block: plane, nibble.
fn put_codes(tile: &mut [u8], at: TileLayout, bits: u32, lane: usize, codes: &[u8]) {
    for (block, codes) in tile.chunks_exact_mut(at.block_bytes).zip(codes.chunks_exact(BLOCK)) {
        for (k, &code) in codes.iter().enumerate() {
            let (group, byte) = (k / 4, 4 * lane + k % 4);
            if bits == 8 {
                block[group * 64 + byte] = code;
                continue;
            }
            block[group % 4 * 64 + byte] |= (code & 15) << (group / 4 * 4);
            match bits {
                5 => block[256 + byte] |= (code >> 4) << group,
                6 => block[256 + group / 4 * 64 + byte] |= (code >> 4) << (2 * (group % 4)),
                _ => {}
            }
        }
    }
}

fn code_at(block: &[u8], bits: u32, lane: usize, k: usize) -> u8 {
    let (group, byte) = (k / 4, 4 * lane + k % 4);
    if bits == 8 {
        return block[group * 64 + byte];
    }
    let low = (block[group % 4 * 64 + byte] >> (group / 4 * 4)) & 15;
    match bits {
        5 => low | ((block[256 + byte] >> group) & 1) << 4,
        6 => low | ((block[256 + group / 4 * 64 + byte] >> (2 * (group % 4))) & 3) << 4,
        _ => low,
    }
}

fn put_scales(scales: &mut [u8], supers: usize, lane: usize, row: &Scales) {
    let mut put_half = |start: usize, index: usize, bits: u16| {
        let at = start + (index * LANES + lane) * 2;
        scales[at..at + 2].copy_from_slice(&bits.to_le_bytes());
    };
    match row {
        Scales::Half { d, m } => {
            let parts = if m.is_some() { 2 } else { 1 };
            for (i, &bits) in d.iter().enumerate() {
                put_half(0, i * parts, bits);
            }
            for (i, &bits) in m.iter().flatten().enumerate() {
                put_half(0, i * parts + 1, bits);
            }
        }
        Scales::Super { d, sc, dmin, mn } => {
            let parts = if mn.is_some() { 2 } else { 1 };
            for (i, &bits) in d.iter().enumerate() {
                put_half(supers, i * parts, bits);
            }
            for (i, &bits) in dmin.iter().flatten().enumerate() {
                put_half(supers, i * parts + 1, bits);
            }
            for (i, &value) in sc.iter().enumerate() {
                scales[i * parts * LANES + lane] = value.cast_unsigned();
            }
            for (i, &value) in mn.iter().flatten().enumerate() {
                scales[(i * parts + 1) * LANES + lane] = value;
            }
        }
    }
}

/// Scale and (signed) minimum of value `k` of a row.
fn scale_at(tile: &[u8], at: TileLayout, layout: CodeLayout, lane: usize, k: usize) -> (f32, f32) {
    let half_at = |start: usize, index: usize| {
        let at = start + (index * LANES + lane) * 2;
        half::f16::from_bits(u16::from_le_bytes([tile[at], tile[at + 1]])).to_f32()
    };
    let parts = if layout.has_min { 2 } else { 1 };
    if !layout.super_block {
        let group = k / BLOCK * parts;
        let min = if layout.has_min { half_at(at.scales, group + 1) } else { 0.0 };
        return (half_at(at.scales, group), min);
    }
    let (group, super_block) = (k / layout.group * parts, k / SUPER * parts);
    let scale = f32::from(tile[at.scales + group * LANES + lane].cast_signed());
    let min = if layout.has_min {
        -(half_at(at.supers, super_block + 1)
            * f32::from(tile[at.scales + (group + 1) * LANES + lane]))
    } else {
        0.0
    };
    (half_at(at.supers, super_block) * scale, min)
}
