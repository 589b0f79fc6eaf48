//! Weights from a GGUF file into tiles and planes, without loss.
//!
//! Done once, on the host, while loading; see `tile.rs` for where everything lies. Codes and scales are those of the
//! file in another order, so that [`RepackedMatrix::value`], which reads only the packed bytes, is bit-equal to
//! [`crate::quant::dequantize_row`]. Dense tensors stay rows of their own type: `[n_out_padded][n_in_padded]`.
//! Padding is codes and scales of zero, hence values of zero.

use std::{num::NonZero, thread};

use super::tile::{BLOCK_ROWS, BLOCKS, LANES, Place, STRIPE_ROWS, SUPER_UNITS, TileLayout, UNIT_K};
use crate::{
    backend::MatrixSource,
    quant::{BlockFormat, CodeRow, Scales, unpack_row},
};

/// How the values of a repacked matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CudaLayout {
    /// Codes and scales in units of 64 × 64.
    Tiles(TileLayout),
    /// Rows of F32, F16 or BF16, one after the other.
    Dense,
}

/// A weight as kernels read it.
#[derive(Clone, Debug)]
pub struct RepackedMatrix {
    /// The file's format; its ggml number is `Format` in `tile.cuh`.
    pub format: BlockFormat,
    /// How values are stored.
    pub layout: CudaLayout,
    /// Output features.
    pub n_out: usize,
    /// Input features.
    pub n_in: usize,
    /// Output features with padding, a multiple of 64.
    pub n_out_padded: usize,
    /// Input features with padding, a multiple of 64.
    pub n_in_padded: usize,
    /// What goes to the device, at a multiple of 256.
    pub bytes: Vec<u8>,
}

/// The matrix cannot be repacked.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RepackError {
    /// No values.
    #[error("{name}: [{n_out}, {n_in}] has no values")]
    Empty {
        /// The tensor.
        name: String,
        /// Output features.
        n_out: usize,
        /// Input features.
        n_in: usize,
    },
    /// A row is not a whole number of blocks.
    #[error("{name}: {n_in} values are not a whole number of {format} blocks")]
    NotWholeBlocks {
        /// The tensor.
        name: String,
        /// Values of a row.
        n_in: usize,
        /// Their format.
        format: BlockFormat,
    },
    /// More bytes than an address space, or than 2³² rows or columns.
    #[error("{name}: [{n_out}, {n_in}] is too large")]
    TooLarge {
        /// The tensor.
        name: String,
        /// Output features.
        n_out: usize,
        /// Input features.
        n_in: usize,
    },
    /// A row has other bytes than its format says.
    #[error("{name}: row {row} has {found} bytes, {expected} are expected")]
    RowBytes {
        /// The tensor.
        name: String,
        /// The row, in the order that the engine wants.
        row: usize,
        /// Bytes of the row.
        found: usize,
        /// Bytes of a row of this format.
        expected: usize,
    },
}

impl From<RepackError> for crate::backend::RunError {
    fn from(error: RepackError) -> Self {
        Self::Device(error.to_string())
    }
}

/// Sizes of a repacked matrix, known before anything is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepackPlan {
    /// How values will be stored.
    pub layout: CudaLayout,
    /// Output features with padding.
    pub n_out_padded: usize,
    /// Input features with padding.
    pub n_in_padded: usize,
    /// Bytes of a stripe of 64 rows.
    pub stripe_bytes: usize,
    /// Bytes of the matrix.
    pub bytes: usize,
}

/// What a matrix of this shape will take on the device.
///
/// # Errors
/// [`RepackError`], naming `name`.
pub fn plan(
    name: &str,
    format: BlockFormat,
    n_out: usize,
    n_in: usize,
) -> Result<RepackPlan, RepackError> {
    if n_out == 0 || n_in == 0 {
        return Err(RepackError::Empty { name: name.to_owned(), n_out, n_in });
    }
    if !n_in.is_multiple_of(format.block_values()) {
        return Err(RepackError::NotWholeBlocks { name: name.to_owned(), n_in, format });
    }
    let sizes = || {
        format.row_bytes(n_in)?;
        // Kernels count rows and columns in 32 bits, and offsets in 64.
        u32::try_from(n_out.checked_next_multiple_of(STRIPE_ROWS)?).ok()?;
        u32::try_from(n_in.checked_next_multiple_of(UNIT_K)?).ok()?;
        let (n_out_padded, n_in_padded) =
            (n_out.next_multiple_of(STRIPE_ROWS), n_in.next_multiple_of(UNIT_K));
        let (layout, stripe_bytes) = match format.code_layout() {
            Some(codes) => {
                let tiles = TileLayout::new(codes);
                (CudaLayout::Tiles(tiles), tiles.stripe_bytes(n_in_padded / UNIT_K))
            }
            None => {
                (CudaLayout::Dense, n_in_padded.checked_mul(format.block_bytes() * STRIPE_ROWS)?)
            }
        };
        let bytes = stripe_bytes.checked_mul(n_out_padded / STRIPE_ROWS)?;
        isize::try_from(bytes).ok()?;
        Some(RepackPlan { layout, n_out_padded, n_in_padded, stripe_bytes, bytes })
    };
    sizes().ok_or_else(|| RepackError::TooLarge { name: name.to_owned(), n_out, n_in })
}

/// Repacks a matrix, on as many threads as the machine has.
///
/// # Errors
/// [`RepackError`], naming the tensor.
pub fn repack(source: &MatrixSource<'_>) -> Result<RepackedMatrix, RepackError> {
    let plan = plan(source.name, source.format, source.n_out, source.n_in)?;
    let expected = source.format.row_bytes(source.n_in).unwrap_or_default();
    let mut rows = Vec::with_capacity(source.n_out);
    for row in 0..source.n_out {
        let bytes = (source.row)(row);
        if bytes.len() != expected {
            return Err(RepackError::RowBytes {
                name: source.name.to_owned(),
                row,
                found: bytes.len(),
                expected,
            });
        }
        rows.push(bytes);
    }
    let mut bytes = vec![0; plan.bytes];
    let shape = Shape { format: source.format, n_in: source.n_in, plan };
    let n_threads = thread::available_parallelism().map_or(1, NonZero::get);
    let share_rows = source.n_out.div_ceil(STRIPE_ROWS).div_ceil(n_threads) * STRIPE_ROWS;
    let shares =
        bytes.chunks_mut(share_rows / STRIPE_ROWS * plan.stripe_bytes).zip(rows.chunks(share_rows));
    thread::scope(|scope| {
        for (out, rows) in shares {
            scope.spawn(move || pack_stripes(shape, out, rows));
        }
    });
    Ok(RepackedMatrix {
        format: source.format,
        layout: plan.layout,
        n_out: source.n_out,
        n_in: source.n_in,
        n_out_padded: plan.n_out_padded,
        n_in_padded: plan.n_in_padded,
        bytes,
    })
}

/// What the packing of every stripe needs to know.
#[derive(Clone, Copy)]
struct Shape {
    format: BlockFormat,
    n_in: usize,
    plan: RepackPlan,
}

/// Packs whole stripes, zero so far, from their rows: 64 each, or fewer in the last one.
fn pack_stripes(shape: Shape, out: &mut [u8], rows: &[&[u8]]) {
    let stripes = out.chunks_exact_mut(shape.plan.stripe_bytes).zip(rows.chunks(STRIPE_ROWS));
    match shape.plan.layout {
        CudaLayout::Dense => {
            let row_bytes = shape.plan.stripe_bytes / STRIPE_ROWS;
            for (out, rows) in stripes {
                for (out, row) in out.chunks_exact_mut(row_bytes).zip(rows) {
                    out[..row.len()].copy_from_slice(row);
                }
            }
        }
        CudaLayout::Tiles(tiles) => {
            let mut unpacked = CodeRow::default();
            // Codes of all 64 rows, padded.
            let mut codes = vec![0; STRIPE_ROWS * shape.plan.n_in_padded];
            for (out, rows) in stripes {
                codes.fill(0);
                for (row_idx, row) in rows.iter().enumerate() {
                    unpack_row(shape.format, row, shape.n_in, &mut unpacked);
                    codes[row_idx * shape.plan.n_in_padded..][..shape.n_in]
                        .copy_from_slice(&unpacked.codes);
                    pack_scales(tiles, row_idx, &unpacked.scales, out);
                }
                pack_codes(tiles, &codes, shape.plan.n_in_padded, out);
            }
        }
    }
}

/// Writes the scales of one row of a stripe.
fn pack_scales(tiles: TileLayout, row: usize, scales: &Scales, stripe: &mut [u8]) {
    let unit_groups = tiles.unit_groups();
    let mut put = |at: usize, bytes: &[u8]| stripe[at..at + bytes.len()].copy_from_slice(bytes);
    let meta = |which, group: usize| {
        tiles.unit_offset(group / unit_groups) + tiles.meta_offset(row, which, group % unit_groups)
    };
    let supers = |which, n: usize| {
        tiles.super_offset(n * SUPER_UNITS) + tiles.super_scale_offset(row, which)
    };
    match scales {
        Scales::Half { d, m } => {
            for (which, halves) in [Some(d), m.as_ref()].into_iter().flatten().enumerate() {
                for (group, half) in halves.iter().enumerate() {
                    put(meta(which, group), &half.to_le_bytes());
                }
            }
        }
        Scales::Super { d, sc, dmin, mn } => {
            for (group, sc) in sc.iter().enumerate() {
                put(meta(0, group), &sc.to_le_bytes());
            }
            for (group, mn) in mn.iter().flatten().enumerate() {
                put(meta(1, group), &[*mn]);
            }
            for (which, halves) in [Some(d), dmin.as_ref()].into_iter().flatten().enumerate() {
                for (n, half) in halves.iter().enumerate() {
                    put(supers(which, n), &half.to_le_bytes());
                }
            }
        }
    }
}

/// Writes all planes of a stripe. `codes` is `[64][n_in_padded]`.
fn pack_codes(tiles: TileLayout, codes: &[u8], n_in_padded: usize, stripe: &mut [u8]) {
    for unit in 0..n_in_padded / UNIT_K {
        let out = &mut stripe[tiles.unit_offset(unit)..][..tiles.meta_begin()];
        for block in 0..BLOCKS {
            for lane in 0..LANES {
                let words = LaneWords::gather(
                    codes,
                    n_in_padded,
                    block * BLOCK_ROWS + lane / 4,
                    unit * UNIT_K + lane % 4 * 16,
                );
                let mut put =
                    |at: usize, word: u32| out[at..at + 4].copy_from_slice(&word.to_le_bytes());
                for (step, word) in words.low.into_iter().enumerate() {
                    put(tiles.p4_offset(block, lane) + 4 * step, word);
                }
                let extra = tiles.extra_offset(block, lane);
                match tiles.codes().bits {
                    5 => put(extra, words.p1),
                    6 => {
                        put(extra, words.p2[0]);
                        put(extra + 4, words.p2[1]);
                    }
                    8 => {
                        for (step, word) in words.high.into_iter().enumerate() {
                            put(extra + 4 * step, word);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

/// All that one lane owns of a block, in every plane.
#[derive(Default)]
struct LaneWords {
    low: [u32; 4],
    high: [u32; 4],
    p1: u32,
    p2: [u32; 2],
}

impl LaneWords {
    /// Of the lane whose first code is at `(row, k)`.
    fn gather(codes: &[u8], n_in_padded: usize, row: usize, k: usize) -> Self {
        let mut words = Self::default();
        for step in 0..4 {
            for reg in 0..4 {
                for element in 0..2 {
                    let place = Place { block: 0, lane: 0, step, reg, element };
                    let in_lane = 4 * step + 2 * (reg >> 1) + element;
                    let code = codes[(row + 8 * (reg & 1)) * n_in_padded + k + in_lane];
                    let high = u32::from(code >> 4);
                    words.low[step] |= u32::from(code & 0x0f) << place.p4_shift();
                    words.high[step] |= high << place.p4_shift();
                    words.p1 |= (high & 1) << place.p1_shift();
                    words.p2[place.p2_word()] |= (high & 3) << place.p2_shift();
                }
            }
        }
        words
    }
}
